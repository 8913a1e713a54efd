"""The `fedlearning` contract: its tables as dataclasses, its actions as builders.

The reference is ``eosio_contracts/fedlearning/fedlearning.hpp``; its ABI travels with this package.
Hashes and keys are bytes, CIDs are CIDv0 texts ("" where the row has none), amounts are integers in
the smallest units of the task's token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from importlib import resources
from typing import Any, TypeVar

from gradledger.chain.abi import Abi, parse_time
from gradledger.chain.client import ChainClient
from gradledger.chain.names import Asset, Symbol, check_account, name_to_int
from gradledger.chain.transaction import Action, action
from gradledger.cid import digest_to_cid
from gradledger.errors import BadFieldError, ConfigError, NodeAnswerError

CONTRACT_DEFAULT = "fedlearning"
ERROR_SCALE = 1_000_000  # an error of 1.0
BALLOTS_PER_ROW = 32
_MONEY_READS_MAX = 50


class Mode(IntEnum):
    """What lies on IPFS: packed ciphertexts, or updates sealed to owner and validators."""

    PAILLIER = 0
    SEALED = 1


class Role(IntEnum):
    """What a member of a task does."""

    DEVICE = 1
    VALIDATOR = 2


class ValidatorsKind(IntEnum):
    """Who judges: the admitted validators, or those of them that are active producers."""

    NAMED = 0
    PRODUCERS = 1


class Silence(IntEnum):
    """What an upload gets that nobody judged in time."""

    REFUND = 0
    PAY = 1


class Rule(IntEnum):
    """The CSVES rule of a round."""

    TREND = 1
    THRESHOLD = 2
    EITHER = 3
    BOTH = 4
    GAIN = 5


class RoundState(IntEnum):
    """Phase of a round."""

    OPEN = 1
    VERIFYING = 2
    DRAWING = 3
    AUDITING = 4
    SUMMING = 5
    SUMMED = 6
    SETTLED = 7


class UploadState(IntEnum):
    """What became of a device's newest upload."""

    NONE = 0
    PENDING = 1
    PAID = 2
    REFUSED = 3
    ACCEPTED = 4
    DRAWN = 5


class BallotStage(IntEnum):
    """What the validators may say about an upload, in this order."""

    NONE = 0
    HIDDEN = 1
    OPEN = 2
    DECIDED = 3
    DRAWN = 4
    OPENED = 5
    AUDITED = 6


class VerdictCode(IntEnum):
    """Why an upload was accepted or refused."""

    NONE = 0
    ACCEPT = 1
    UNAVAILABLE = 2
    HASH_MISMATCH = 3
    MALFORMED = 4
    HEADER_MISMATCH = 5
    WRONG_KEY = 6
    OUT_OF_RANGE = 7
    DUPLICATE = 8
    ERROR_MISMATCH = 9
    REPLAYED_SERIES = 10
    COPIED_SERIES = 11
    CLASS_CLAIM = 12
    NO_UPDATE = 13
    NORM = 14
    NO_GAIN = 15
    OPENING_MISMATCH = 16
    UNREVEALED = 17
    SILENCE = 20
    UNDELIVERED = 21
    UNANSWERED = 22


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a device trains in a round."""

    epochs: int
    batch_size: int
    rate_e6: int
    measures: int
    seed: int

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.rate_e6 / 1e6


@dataclass(frozen=True, kw_only=True)
class TaskTerms:
    """What a task fixes for its whole life."""

    token_contract: str
    token_symbol: Symbol
    mode: Mode
    is_public: bool
    validators_kind: ValidatorsKind
    silence: Silence
    classes: int
    errors_max: int
    cost_max: int
    devices_max: int
    sum_min: int
    parameters: int
    slot_bits: int
    clip_e6: int
    key_hash: bytes
    card_cid: str
    card_hash: bytes
    lot_e6: int
    bar_rounds: int


@dataclass(frozen=True, kw_only=True)
class RoundTerms:
    """What the owner says when it opens a round."""

    model_cid: str
    model_hash: bytes
    price: int
    budget: int
    open_sec: int
    verdict_sec: int
    sum_sec: int
    reveal_sec: int
    audit_sec: int
    close_after: int
    rule: Rule
    tau: int
    eta_e6: int
    norm_max_e6: int
    training: Recipe


@dataclass(frozen=True, kw_only=True)
class Task:
    """Row of table `tasks`."""

    id: str
    owner: str
    terms: TaskTerms
    version: int
    devices: int
    validators: int
    deposited: int
    paid: int
    withdrawn: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """Row of table `members`: an account in a task, and its newest upload.

    `upload_cid` is empty until it is revealed, `opening_cid` unless the upload was opened in an
    audit.
    """

    account: str
    role: Role
    joined: bool
    enc_key: bytes
    classes: int
    set_version: int
    set_cid: str
    set_hash: bytes
    upload_version: int
    upload_slot: int
    upload_hash: bytes
    upload_cid: str
    series_hash: bytes
    upload_cost: int
    error_first: int
    error_before: int
    error_last: int
    upload_state: UploadState
    upload_reason: VerdictCode
    barred_until: int
    opening_cid: str


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """What the validators said about one upload of the newest round.

    Byte i of `verdicts` is the `VerdictCode` of validator i of the round, anew in an audit.
    """

    device: str
    hash: bytes
    stage: BallotStage
    verdicts: bytes


@dataclass(frozen=True, kw_only=True)
class _BallotPage:
    """Row of table `ballots`."""

    page: int
    ballots: tuple[Ballot, ...]


@dataclass(frozen=True, kw_only=True)
class SumVote:
    """What one validator said about a round's sum; an empty CID when it said nothing."""

    hash: bytes
    cid: str


@dataclass(frozen=True, kw_only=True)
class Lot:
    """One validator's part in drawing audits; zeros: not committed to, or not revealed."""

    commitment: bytes
    value: bytes


@dataclass(frozen=True, kw_only=True)
class Round:
    """Row of table `rounds`. Times are seconds since 1970."""

    version: int
    state: RoundState
    model_cid: str
    model_hash: bytes
    price: int
    budget: int
    deadline: int
    verdict_sec: int
    verdict_deadline: int
    sum_sec: int
    sum_deadline: int
    reveal_sec: int
    reveal_deadline: int
    audit_sec: int
    audit_deadline: int
    opened_block: int
    close_after: int
    rule: Rule
    tau: int
    eta_e6: int
    norm_max_e6: int
    training: Recipe
    uploads: int
    pending: int
    accepted: int
    refused: int
    held: int
    drawn: int
    reserved: int
    paid: int
    sum_hash: bytes
    sum_cid: str
    root: bytes
    settled: int
    cursor: str
    validators: tuple[str, ...]
    sums: tuple[SumVote, ...]
    lots: tuple[Lot, ...]
    frontier: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One verdict, on the upload that has this place in the round and this hash."""

    slot: int
    hash: bytes
    code: VerdictCode


@dataclass(frozen=True, kw_only=True)
class Escrow:
    """The money of a task, in smallest units of its token, at one moment.

    Attributes
    ----------
    deposited, withdrawn : int
    paid : int
        As the task's row counts it, with that of the round which is not settled yet.
    reserved : int
        For uploads without a decision.
    kept : int
        What is left of the open round's budget.
    rounds_paid : int
        Sum of what every round's own row says was paid.
    holdings : int
        The contract's token balance; it covers all tasks with the same token.
    """

    symbol: Symbol
    deposited: int
    paid: int
    reserved: int
    withdrawn: int
    kept: int
    rounds_paid: int
    holdings: int

    @property
    def balance(self) -> int:
        """What the contract still holds for the task."""
        return self.deposited - self.paid - self.withdrawn

    @property
    def free(self) -> int:
        """What no upload has reserved."""
        return self.balance - self.reserved

    @property
    def withdrawable(self) -> int:
        """What the owner may withdraw now: free, and not kept for the open round."""
        return max(0, self.free - self.kept)

    @property
    def conserved(self) -> bool:
        """Whether no unit is lost, and none is there twice.

        The parts make up the deposits and none is negative, the rounds' rows agree with the task's
        about what was paid, and the contract holds the tokens that it owes.
        """
        parts = (self.paid, self.withdrawn, self.reserved, self.free)
        return (
            min(parts) >= 0
            and sum(parts) == self.deposited
            and self.rounds_paid == self.paid
            and self.holdings >= self.balance
        )


_T = TypeVar("_T")


def _cid(digest: str) -> str:
    raw = bytes.fromhex(digest)
    return digest_to_cid(raw) if any(raw) else ""


_NESTED: dict[str, type] = {"Recipe": Recipe, "TaskTerms": TaskTerms}
_CONVERT: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "bool": bool,
    "bytes": bytes.fromhex,
    "Symbol": Symbol.parse,
    "tuple[str, ...]": tuple,
    "tuple[bytes, ...]": lambda rows: tuple(bytes.fromhex(row) for row in rows),
    "tuple[SumVote, ...]": lambda rows: tuple(_from_row(SumVote, row) for row in rows),
    "tuple[Lot, ...]": lambda rows: tuple(_from_row(Lot, row) for row in rows),
    "tuple[Ballot, ...]": lambda rows: tuple(_from_row(Ballot, row) for row in rows),
    **{
        enum.__name__: enum
        for enum in (
            *(Mode, Role, ValidatorsKind, Silence, Rule),
            *(RoundState, UploadState, BallotStage, VerdictCode),
        )
    },
}
_TIMES = {"deadline", "verdict_deadline", "sum_deadline", "reveal_deadline", "audit_deadline"}
_DIGESTS = {"model_cid", "set_cid", "upload_cid", "opening_cid", "sum_cid", "cid"}
# card_cid is a text


def _from_row(cls: type[_T], row: Mapping[str, Any]) -> _T:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        kind, value = str(field.type), row[field.name]
        if field.name in _TIMES:
            values[field.name] = parse_time(value)
        elif field.name in _DIGESTS:
            values[field.name] = _cid(value)
        elif kind in _NESTED:
            values[field.name] = _from_row(_NESTED[kind], value)
        else:
            values[field.name] = _CONVERT[kind](value)
    return cls(**values)


def _to_row(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Symbol, Asset)):
        fields = dataclasses.fields(value)
        return {field.name: _to_row(getattr(value, field.name)) for field in fields}
    return int(value) if isinstance(value, (bool, IntEnum)) else value


@lru_cache(maxsize=1)
def contract_abi() -> Abi:
    """Return the ABI of the contract that this package was built with."""
    source = resources.files("gradledger.artifacts").joinpath("fedlearning.abi")
    return Abi.from_json(source.read_bytes())


class FedLearning:
    """The contract on one chain.

    Parameters
    ----------
    client : ChainClient
    account : str
        Where the contract is deployed.
    """

    def __init__(self, client: ChainClient, account: str = CONTRACT_DEFAULT) -> None:
        self.client = client
        self.account = check_account(account)
        self.abi = contract_abi()

    # ---- tables -----------------------------------------------------------------------------

    def tasks(self) -> list[Task]:
        """Return every task."""
        return self._rows(Task, self.account, "tasks")

    def task(self, task: str) -> Task:
        """Return a task. Raises BadFieldError (`unknown_task`) when there is none."""
        found = self._row(Task, self.account, "tasks", name_to_int(task))
        if found is None:
            raise BadFieldError("unknown_task", f"no task is named {task!r}")
        return found

    def round(self, task: str, version: int) -> Round | None:
        """Return a round of a task, or None."""
        return self._row(Round, task, "rounds", version)

    def rounds(self, task: str) -> list[Round]:
        """Return the rounds of a task, the oldest first."""
        return self._rows(Round, task, "rounds")

    def current_round(self, task: str) -> Round | None:
        """Return the newest round of a task, settled or not; None before the first."""
        newest = self.task(task).version
        return self.round(task, newest) if newest else None

    def members(self, task: str) -> list[Member]:
        """Return the members of a task, ascending by account."""
        return self._rows(Member, task, "members")

    def member(self, task: str, account: str) -> Member | None:
        """Return one member of a task, or None."""
        return self._row(Member, task, "members", name_to_int(account))

    def ballots(self, task: str, uploads: int) -> list[Ballot]:
        """Return the ballots on the first `uploads` of a task's newest round, slot by slot.

        Uploads may come while the rows are read, and rounds may end: hold each ballot's hash
        against the upload that it is taken for.
        """
        if not uploads:
            return []
        last = (uploads - 1) // BALLOTS_PER_ROW
        pages = self._rows(_BallotPage, task, "ballots", upper=last)
        return [ballot for page in pages for ballot in page.ballots][:uploads]

    def ballot(self, task: str, slot: int) -> Ballot | None:
        """Return one ballot (as `ballots`), or None where there is no room for it."""
        page = self._row(_BallotPage, task, "ballots", slot // BALLOTS_PER_ROW)
        return None if page is None else page.ballots[slot % BALLOTS_PER_ROW]

    def escrow(self, task: str) -> Escrow:
        """Return the task's money, from the contract's and the token's tables.

        The tables are read until nothing moved between the first row and the last, so that the
        numbers belong together. Raises NodeAnswerError when they do not come to rest.
        """
        before = self._money(task)
        for _ in range(_MONEY_READS_MAX):
            after = self._money(task)
            if after == before:
                return after
            before = after
        raise NodeAnswerError(f"the money of task {task} moves faster than its rows are read")

    def _money(self, task: str) -> Escrow:
        row, rounds = self.task(task), self.rounds(task)
        paid, reserved, kept = row.paid, 0, 0
        for live in rounds:
            if live.state is RoundState.SETTLED:
                continue
            paid, reserved = paid + live.paid, live.reserved
            if live.state is RoundState.OPEN:
                kept = max(0, live.budget - live.paid - live.reserved)
        terms = row.terms
        held = self.client.balance(terms.token_contract, self.account, terms.token_symbol.code)
        return Escrow(
            symbol=terms.token_symbol,
            deposited=row.deposited,
            paid=paid,
            reserved=reserved,
            withdrawn=row.withdrawn,
            kept=kept,
            rounds_paid=sum(live.paid for live in rounds),
            holdings=held.amount if held else 0,
        )

    def _rows(self, cls: type[_T], scope: str, table: str, *, upper: int | None = None) -> list[_T]:
        rows = self.client.table_rows(self.account, scope, table, abi=self.abi, upper=upper)
        return [self._parse(cls, row) for row in rows]

    def _row(self, cls: type[_T], scope: str, table: str, key: int) -> _T | None:
        row = self.client.table_row(self.account, scope, table, key, abi=self.abi)
        return None if row is None else self._parse(cls, row)

    @staticmethod
    def _parse(cls: type[_T], row: Mapping[str, Any]) -> _T:
        try:
            return _from_row(cls, row)
        except (ValueError, KeyError, ConfigError) as error:
            raise NodeAnswerError(
                f"expected a row of {cls.__name__}, got another: {error}"
            ) from None

    # ---- actions ----------------------------------------------------------------------------

    def createtask(self, task: str, owner: str, terms: TaskTerms) -> Action:
        """Create a task."""
        return self._action("createtask", owner, task=task, owner=owner, terms=_to_row(terms))

    def admit(self, task: str, owner: str, accounts: Sequence[str], role: Role) -> Action:
        """Admit accounts to a task."""
        return self._action("admit", owner, task=task, accounts=list(accounts), role=int(role))

    def remove(self, task: str, actor: str, account: str) -> Action:
        """Take a member out; `actor` is the owner or the account itself."""
        return self._action("remove", actor, task=task, account=account)

    def join(self, task: str, account: str, enc_key: bytes, classes: int) -> Action:
        """Agree to a task's terms; `classes` is a bit set, 0 for a validator."""
        return self._action(
            "join", account, task=task, account=account, enc_key=enc_key, classes=classes
        )

    def issueset(
        self, task: str, owner: str, device: str, version: int, cid: str, hash_: bytes
    ) -> Action:
        """Record the validation set issued to a device."""
        return self._action(
            "issueset", owner, task=task, device=device, version=version, cid=cid, hash=hash_
        )

    def openround(self, task: str, owner: str, version: int, terms: RoundTerms) -> Action:
        """Open a round."""
        return self._action("openround", owner, task=task, version=version, terms=_to_row(terms))

    def fedlearning(
        self,
        task: str,
        device: str,
        version: int,
        hash_: bytes,
        cid: str,
        cost: int,
        errors: Sequence[int],
    ) -> Action:
        """FederatedLearning: record an upload; `cid` is "" in a round that reveals CIDs later."""
        return self._action(
            "fedlearning",
            device,
            task=task,
            device=device,
            version=version,
            hash=hash_,
            cid=cid,
            cost=cost,
            errors=[int(error) for error in errors],
        )

    def reveal(self, task: str, device: str, version: int, cid: str) -> Action:
        """Tell the CID of an upload, where it was not told with it."""
        return self._action("reveal", device, task=task, device=device, version=version, cid=cid)

    def openupload(self, task: str, device: str, version: int, cid: str) -> Action:
        """Tell the CID of an opened upload, which was drawn for an audit."""
        return self._action(
            "openupload", device, task=task, device=device, version=version, cid=cid
        )

    def attest(
        self, task: str, version: int, validator: str, verdicts: Sequence[Verdict]
    ) -> Action:
        """Give verdicts on uploads of a round."""
        return self._verdicts("attest", task, version, validator, verdicts)

    def attestaudit(
        self, task: str, version: int, validator: str, verdicts: Sequence[Verdict]
    ) -> Action:
        """Give verdicts on opened uploads of a round."""
        return self._verdicts("attestaudit", task, version, validator, verdicts)

    def _verdicts(
        self, name: str, task: str, version: int, validator: str, verdicts: Sequence[Verdict]
    ) -> Action:
        rows = [_to_row(verdict) for verdict in verdicts]
        return self._action(
            name, validator, task=task, version=version, validator=validator, verdicts=rows
        )

    def commitlot(self, task: str, version: int, validator: str, commitment: bytes) -> Action:
        """Commit to the value of a validator's lot, see `gradledger.lots`."""
        return self._action(
            "commitlot",
            validator,
            task=task,
            version=version,
            validator=validator,
            commitment=commitment,
        )

    def reveallot(self, task: str, version: int, validator: str, value: bytes) -> Action:
        """Reveal the value of a validator's lot."""
        return self._action(
            "reveallot", validator, task=task, version=version, validator=validator, value=value
        )

    def attestsum(self, task: str, version: int, validator: str, hash_: bytes, cid: str) -> Action:
        """Give a validator's word on a round's sum."""
        return self._action(
            "attestsum",
            validator,
            task=task,
            version=version,
            validator=validator,
            hash=hash_,
            cid=cid,
        )

    def closeround(self, task: str, caller: str, version: int) -> Action:
        """Close a round to uploads."""
        return self._action("closeround", caller, task=task, version=version, caller=caller)

    def push(
        self, task: str, actor: str, version: int, limit: int = 100, start: str = ""
    ) -> Action:
        """Push a round on after a deadline; any account may.

        `start` is the member to begin with, in place of where the last call ended.
        """
        return self._action("push", actor, task=task, version=version, limit=limit, start=start)

    def settle(self, task: str, caller: str, version: int, limit: int = 200) -> Action:
        """Settle up to `limit` members of a round."""
        return self._action(
            "settle", caller, task=task, version=version, limit=limit, caller=caller
        )

    def withdraw(self, task: str, owner: str, quantity: Asset) -> Action:
        """Pay free money back to the owner."""
        return self._action("withdraw", owner, task=task, quantity=quantity)

    def deposit(
        self, task: str, payer: str, quantity: Asset, token_contract: str = "eosio.token"
    ) -> Action:
        """Transfer tokens into a task's escrow."""
        return transfer(token_contract, payer, self.account, quantity, task)

    def _action(self, name: str, actor: str, **data: Any) -> Action:
        return action(self.account, name, actor, self.abi.pack_action(name, data))


def transfer(token_contract: str, payer: str, to: str, quantity: Asset, memo: str = "") -> Action:
    """Return a token transfer."""
    data = TOKEN_ABI.pack_action(
        "transfer", {"from": payer, "to": to, "quantity": quantity, "memo": memo}
    )
    return action(token_contract, "transfer", payer, data)


TOKEN_ABI = Abi(
    {
        "structs": [
            {
                "name": "transfer",
                "fields": [
                    {"name": "from", "type": "name"},
                    {"name": "to", "type": "name"},
                    {"name": "quantity", "type": "asset"},
                    {"name": "memo", "type": "string"},
                ],
            }
        ],
        "actions": [{"name": "transfer", "type": "transfer"}],
    }
)
