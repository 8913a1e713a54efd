"""Read a chain backwards from its last irreversible block, and keep what concerns one task.

Every block must be the one that its successor names, so that each block read is proven to be an
ancestor of the last one. What is found is spooled to a temporary file and given out forwards:
memory does not grow with the chain.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import IO, Any

from gradledger.audit.blocks import (
    Authority,
    ProofError,
    RawAction,
    RawBlock,
    RawTransaction,
    check_linked,
    read_authorities,
    read_block,
)
from gradledger.chain.client import ChainClient
from gradledger.chain.names import name_to_int
from gradledger.errors import ConfigError, NodeAnswerError, NodeError, NodeUnavailableError

WORKERS = 4
AHEAD = 32  # blocks under way at once
TRIES = 4  # another node of several may be a little behind
RETRY_SEC = 0.5
_SYSTEM = "eosio"


@dataclass(frozen=True)
class Step:
    """One transaction that concerns the task, or changes who may sign for an account.

    Attributes
    ----------
    block, time : int
        Number; seconds since 1970 as the contract sees them.
    trx : str
    schedule_version : int
        Of the block's producers.
    inputs : tuple of RawAction
        Actions on the contract, and transfers to it, that were not sent by the contract itself.
    effects : tuple of RawAction or None
        What the contract itself sent, as the node's traces tell; None without traces.
    actors : tuple of str
        Whose authority the signed actions among `inputs` claim.
    keys : tuple of str
        That signed it, compressed, hexadecimal; only read where there are actors.
    other_keys : int
        Signatures of another kind, which were not looked at.
    authorities : tuple of Authority
        Newly set.
    code : str
        SHA-256 of code that was set for the contract's account; "" if none was.
    block_id : str
    """

    block: int
    time: int
    trx: str
    schedule_version: int
    inputs: tuple[RawAction, ...] = ()
    effects: tuple[RawAction, ...] | None = None
    actors: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    other_keys: int = 0
    authorities: tuple[Authority, ...] = ()
    code: str = ""
    block_id: str = ""


@dataclass(frozen=True)
class Subject:
    """What to look for: a task, its contract and its token."""

    task: str
    contract: str
    token_contract: str
    chain_id: str


@dataclass
class Stretch:
    """What a run of blocks has of the task.

    Attributes
    ----------
    first, last : int
        Blocks read, both included.
    first_previous : str
        Id of the block before the first: what an older stretch must end in.
    begins : bool
        The task was made in it.
    transactions : int
        In all its blocks.
    deferred : int
        Deferred transactions among them: a block has no more than their ids.
    untraced : int
        Blocks with transactions of which the node was asked for traces and has none.
    schedules : dict of int to tuple of str
        Producers announced, by version.
    rekeyed : set of str
        Accounts whose keys were changed in it.
    genesis : str
        What block 1 says the chain's id is; "" if it was not read.
    """

    first: int
    last: int
    first_previous: str = ""
    begins: bool = False
    transactions: int = 0
    deferred: int = 0
    untraced: int = 0
    schedules: dict[int, tuple[str, ...]] = field(default_factory=dict)
    rekeyed: set[str] = field(default_factory=set, repr=False)
    genesis: str = ""
    _file: IO[bytes] = field(default_factory=tempfile.TemporaryFile, repr=False)
    _offsets: array[int] = field(default_factory=lambda: array("Q"), repr=False)

    def __len__(self) -> int:
        """Return how many steps there are."""
        return len(self._offsets)

    def add(self, steps: list[Step]) -> None:
        """Keep the steps of the next older block."""
        for step in reversed(steps):
            self._offsets.append(self._file.tell())
            self._file.write(json.dumps(_pack(step), separators=(",", ":")).encode() + b"\n")

    def steps(self) -> Iterator[Step]:
        """Yield the steps, the oldest first."""
        for offset in reversed(self._offsets):
            self._file.seek(offset)
            yield _unpack(json.loads(self._file.readline()))

    def close(self) -> None:
        """Let go of the temporary file."""
        self._file.close()


class BlockReader:
    """Reads and proves blocks.

    Parameters
    ----------
    client : ChainClient
    subject : Subject
    traces : bool
        Ask the node for the traces of blocks that have transactions.
    tell : callable, optional
        Is told how many blocks have been read, after each.
    """

    def __init__(
        self,
        client: ChainClient,
        subject: Subject,
        *,
        traces: bool,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        self._client = client
        self._subject = subject
        self._traces = traces
        self._tell = tell or (lambda count: None)
        # Bytes that a transaction must have to concern us: most are not even unpacked.
        (self._contract_bytes,) = _name_bytes(subject.contract)
        self._markers = _name_bytes(subject.task, "newaccount", "updateauth")
        self._with_contract = _name_bytes("transfer", "setcode")
        self._actors: set[str] = set()  # of the task, in the blocks read so far

    def read(self, first: int, last: int, last_id: str) -> Stretch:
        """Read from `last` back to `first`, or to the block in which the task was made.

        Raises
        ------
        ProofError
            A block is not what the ids say.
        NodeError
            The node does not answer, or has a block no more.
        """
        stretch = Stretch(first=last + 1, last=last)
        try:
            self._read_into(stretch, first, last_id)
        except BaseException:
            stretch.close()
            raise
        return stretch

    def _read_into(self, stretch: Stretch, first: int, last_id: str) -> None:
        expected, named_by = last_id, "the last irreversible block"
        numbers = iter(range(stretch.last, first - 1, -1))
        under_way: deque[Future[tuple[RawBlock, list[Step], bool]]] = deque()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="audit") as pool:
            try:
                while not stretch.begins:
                    while len(under_way) < AHEAD and (number := next(numbers, None)) is not None:
                        under_way.append(pool.submit(self._fetch, number))
                    if not under_way:
                        break
                    block, steps, lacks_traces = under_way.popleft().result()
                    check_linked(block, expected, named_by)
                    expected, named_by = block.previous, f"block {block.number}"
                    self._note(stretch, block, steps)
                    stretch.untraced += lacks_traces
            finally:
                for one in under_way:
                    one.cancel()
        stretch.first_previous = expected

    def _note(self, stretch: Stretch, block: RawBlock, steps: list[Step]) -> None:
        stretch.first = block.number
        stretch.transactions += len(block.transactions)
        stretch.deferred += sum(not one.packed for one in block.transactions)
        stretch.schedules = {**block.new_schedules, **stretch.schedules}
        stretch.genesis = block.action_root if block.number == 1 else ""
        self._actors.update(actor for step in steps for actor in step.actors)
        steps = [one for step in steps if (one := self._without_strangers(step))]
        stretch.rekeyed.update(
            one.account for step in steps for one in step.authorities if not one.known_before
        )
        stretch.add(steps)
        stretch.begins = any(
            (one.account, one.name) == (self._subject.contract, "createtask")
            for step in steps
            for one in step.inputs
        )
        self._tell(1)

    def _without_strangers(self, step: Step) -> Step | None:
        """Leave out how accounts were made that sign nothing of the task later."""
        kept = tuple(
            one for one in step.authorities if not one.known_before or one.account in self._actors
        )
        if not (kept or step.inputs or step.effects or step.code):
            return None
        return replace(step, authorities=kept)

    def _fetch(self, number: int) -> tuple[RawBlock, list[Step], bool]:
        """Return a block, its steps, and whether the node lacks traces that they should have."""
        query = {"block_num_or_id": str(number)}
        for left in reversed(range(TRIES)):
            try:
                block = read_block(number, self._client.call("/v1/chain/get_raw_block", query))
                break
            except NodeUnavailableError:
                raise
            except NodeAnswerError as error:
                if not left:
                    raise NodeAnswerError(f"block {number} is not to be had: {error}") from None
                time.sleep(RETRY_SEC)
        if not block.transactions:
            return block, [], False
        traced = self._traced(block) if self._traces else None
        steps = [step for one in block.transactions if (step := self._step(block, one, traced))]
        return block, steps, self._traces and traced is None

    def _step(
        self, block: RawBlock, trx: RawTransaction, traced: Mapping[str, list[_Traced]] | None
    ) -> Step | None:
        """Return what a transaction has for us, or None."""
        signed: list[RawAction] = []
        if self._may_concern(trx.packed):
            signed = trx.actions()
        inputs = [one for one in signed if self._is_input(one)]
        actors = dict.fromkeys(actor for one in inputs for actor, _ in one.authorization)
        effects: list[RawAction] | None = None
        authorities = [entry for one in signed for entry in read_authorities(one)]
        codes = [self._code(one) for one in signed]
        if traced is not None:
            if trx.id not in traced:
                raise ProofError(
                    f"block {block.number}: the node's traces lack its transaction {trx.id}"
                )
            seen = traced[trx.id]
            found = [one.action for one in seen if one.is_input and self._is_input(one.action)]
            if not _is_within(inputs, found):
                raise ProofError(
                    f"block {block.number}, transaction {trx.id}: the node's trace lacks an action "
                    "that was signed, or has it with other arguments"
                )
            inputs = found
            effects = [one.action for one in seen if not one.is_input]
        inputs += [one for one in signed if self._leaves_escrow(one)]
        if not (inputs or effects or authorities or any(codes)):
            return None
        try:
            keys, others = trx.keys(self._subject.chain_id) if actors else ([], 0)
        except ConfigError as error:
            raise ProofError(
                f"block {block.number}, transaction {trx.id}: a signature is none: {error}"
            ) from None
        return Step(
            block.number,
            block.time,
            trx.id,
            block.schedule_version,
            tuple(inputs),
            None if effects is None else tuple(effects),
            tuple(actors),
            tuple(key.raw.hex() for key in keys),
            others,
            tuple(authorities),
            next(filter(None, codes), ""),
            block.id,
        )

    def _may_concern(self, packed: bytes) -> bool:
        """Whether a transaction has any of the bytes that we look for."""
        if any(marker in packed for marker in self._markers):
            return True
        return self._contract_bytes in packed and any(one in packed for one in self._with_contract)

    def _is_input(self, one: RawAction) -> bool:
        """Whether an action is one on our task, or a transfer that may pay into it."""
        subject = self._subject
        if one.account == subject.contract:
            return one.data[:8] == name_to_int(subject.task).to_bytes(8, "little")
        is_transfer = (one.account, one.name) == (subject.token_contract, "transfer")
        # from 8, to 8, quantity 16, then the memo: its length and text
        return (
            is_transfer
            and one.data[8:16] == self._contract_bytes
            and one.data[:8] != self._contract_bytes
            and one.data[33:].decode("ascii", "replace").rstrip(".") == subject.task
        )

    def _leaves_escrow(self, one: RawAction) -> bool:
        """Whether a signed action takes tokens from the contract without the contract's code."""
        is_transfer = (one.account, one.name) == (self._subject.token_contract, "transfer")
        return is_transfer and one.data[:8] == self._contract_bytes

    def _code(self, one: RawAction) -> str:
        if (one.account, one.name) != (_SYSTEM, "setcode") or one.data[:8] != self._contract_bytes:
            return ""
        return hashlib.sha256(_after_length(one.data[10:])).hexdigest()

    # ---- traces -----------------------------------------------------------------------------

    def _traced(self, block: RawBlock) -> dict[str, list[_Traced]] | None:
        """Return what the node's trace API says about a block's transactions, by id."""
        try:
            document = self._client.call("/v1/trace_api/get_block", {"block_num": block.number})
        except NodeUnavailableError:
            raise
        except NodeAnswerError:  # its trace log does not go back so far
            return None
        try:
            if document["id"] != block.id:
                raise ProofError(
                    f"block {block.number}: the node's traces are of block {document['id']}"
                )
            return {str(trx["id"]): self._ours(trx["actions"]) for trx in document["transactions"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NodeAnswerError(
                f"expected traces of block {block.number}, got another document: {error}"
            ) from None

    def _ours(self, rows: list[Mapping[str, Any]]) -> list[_Traced]:
        """Return the actions of a trace that concern the task, in the order they happened."""
        subject, found = self._subject, []
        for row in sorted(rows, key=lambda row: int(row["global_sequence"])):
            one = RawAction(
                str(row["account"]),
                str(row["action"]),
                tuple((str(a["account"]), str(a["permission"])) for a in row["authorization"]),
                bytes.fromhex(row["data"]),
            )
            receiver = str(row["receiver"])
            by_contract = any(actor == subject.contract for actor, _ in one.authorization)
            if one.account == subject.contract == receiver and self._is_input(one):
                found.append(_Traced(one, one.name not in ("uploadgrad", "payment")))
            elif (one.account, one.name) == (subject.token_contract, "transfer"):
                if receiver == subject.contract and self._is_input(one):
                    found.append(_Traced(one, True))
                elif receiver == one.account and by_contract and self._is_our_pay(one):
                    found.append(_Traced(one, False))
        return found

    def _is_our_pay(self, one: RawAction) -> bool:
        """Whether a transfer out of the contract names our task in its memo."""
        memo = one.data[33:].decode("ascii", "replace")
        return one.data[:8] == self._contract_bytes and memo.split(" ")[-1] == self._subject.task


@dataclass(frozen=True)
class _Traced:
    action: RawAction
    is_input: bool


def _name_bytes(*names: str) -> list[bytes]:
    return [name_to_int(name).to_bytes(8, "little") for name in names]


def _is_within(wanted: list[RawAction], found: list[RawAction]) -> bool:
    """Whether `wanted` lies in `found`, in its order."""
    rest = iter(found)
    return all(any(one == other for other in rest) for one in wanted)


def _after_length(data: bytes) -> bytes:
    """Return the bytes behind a length of 7-bit groups."""
    at = 0
    while data[at] & 0x80:
        at += 1
    size = sum((data[i] & 0x7F) << (7 * i) for i in range(at + 1))
    return data[at + 1 : at + 1 + size]


def _pack(step: Step) -> list[Any]:
    def rows(actions: tuple[RawAction, ...] | None) -> Any:
        if actions is None:
            return None
        return [[one.account, one.name, one.authorization, one.data.hex()] for one in actions]

    authorities = [(a.account, a.keys, a.accounts, a.known_before) for a in step.authorities]
    return [
        *(step.block, step.time, step.trx, step.schedule_version),
        *(rows(step.inputs), rows(step.effects)),
        *(step.actors, step.keys, step.other_keys, authorities, step.code, step.block_id),
    ]


def _unpack(row: list[Any]) -> Step:
    def actions(rows: Any) -> Any:
        if rows is None:
            return None
        return tuple(
            RawAction(account, name, tuple(map(tuple, levels)), bytes.fromhex(data))
            for account, name, levels, data in rows
        )

    block, moment, trx, schedule, inputs, effects, actors, keys, others, auths, code, id_ = row
    return Step(
        block=block,
        time=moment,
        trx=trx,
        schedule_version=schedule,
        inputs=actions(inputs),
        effects=actions(effects),
        actors=tuple(actors),
        keys=tuple(keys),
        other_keys=others,
        authorities=tuple(Authority(a, tuple(k), tuple(o), known) for a, k, o, known in auths),
        code=code,
        block_id=id_,
    )


def has_traces(client: ChainClient, block: int) -> bool:
    """Return whether the node's trace API has this block."""
    try:
        document = client.call("/v1/trace_api/get_block", {"block_num": block})
    except NodeUnavailableError:
        raise
    except NodeError:
        return False
    return isinstance(document, dict) and "transactions" in document
