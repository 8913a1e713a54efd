"""A node's HTTP API: push, read tables, wait until a transaction cannot be undone.

Every call is bounded in time, size and tries. With several endpoints the next one is asked when one
does not answer; an answer of the chain itself (a refused transaction) is final.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gradledger.chain.abi import Abi, parse_time
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset
from gradledger.chain.transaction import Action, Transaction
from gradledger.errors import (
    ConfigError,
    ContractError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeBusyError,
    NodeError,
    NodeUnavailableError,
    NotAllowedError,
    TransactionExpiredError,
    error_from_check,
)

ENDPOINTS_MAX = 16
ANSWER_BYTES_MAX = 64 * 2**20
ROUNDS_OF_ENDPOINTS = 2  # how often each endpoint is asked before giving up
PAUSE_SEC = 0.2  # between these rounds
REST_SEC = 10.0  # how long an endpoint that did not answer has no vote
PAGES_MAX = 100_000
BLOCKS_CACHED_MAX = 1024
EXPIRATION_SEC_MAX = 3600

_CHECK_PREFIX = "assertion failure with message: "
_CHECK_CODES = (3050003, 3050004)  # eosio_assert_message, eosio_assert_code
_AUTHORITY_CODES = range(3090000, 3100000)
_EXPIRED_CODE = 3040005
_REFERENCE_CODE = 3040007  # the node's fork has not the block that it refers to
_DUPLICATE_CODE = 3040008
_BUSY_CODES = (3080006, 3081001)  # took too long here: another node, or later, may do it

_DIGEST = re.compile("[0-9a-f]{64}")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Timeout:
    """Seconds to wait for a connection, and for the whole answer after that."""

    connect: float = 3.0
    read: float = 15.0


@dataclass(frozen=True)
class ChainInfo:
    """What a node says about its chain."""

    chain_id: str
    server_version: str
    head_block: int
    head_time: int  # seconds since 1970
    irreversible_block: int
    irreversible_id: str
    head_id: str


@dataclass(frozen=True)
class Block:
    """An irreversible block: its time (seconds since 1970) and the transactions it executed."""

    number: int
    id: str
    time: int
    executed: frozenset[str] = field(repr=False)


@dataclass(frozen=True)
class Signed:
    """A signed transaction.

    Attributes
    ----------
    trx_id : str
    first_block : int
        The first block that can hold it.
    expiration : int
        Seconds since 1970; in no block after that.
    body : dict
        To be sent with `send`, as often as one likes: it is executed once.
    """

    trx_id: str
    first_block: int
    expiration: int
    body: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class PushResult(Signed):
    """A transaction that a node accepted. That is a promise only: see `wait_irreversible`.

    Attributes
    ----------
    cpu_us, net_bytes : int
        As billed by the node that accepted it; 0 when it knew the transaction already.
    traces : dict
        The node's ``processed`` document; empty when it knew the transaction already.
    """

    cpu_us: int
    net_bytes: int
    traces: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, signed: Signed, traces: dict[str, Any]) -> PushResult:
        """Return what the traces that `send` returned say about a transaction."""
        cpu_us, net_words = _billed(traces)
        return cls(
            signed.trx_id,
            signed.first_block,
            signed.expiration,
            signed.body,
            cpu_us,
            8 * net_words,
            traces,
        )


class ChainClient:
    """Talk to one chain through one or more nodes. Safe to share between threads.

    Parameters
    ----------
    endpoints : str or sequence of str
        ``http://host:port``; several in a list, or separated by commas.
    timeout : Timeout, optional

    Raises
    ------
    ConfigError
        An endpoint is no such address.
    """

    def __init__(self, endpoints: str | Sequence[str], *, timeout: Timeout | None = None) -> None:
        given = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
        self.endpoints = tuple(one.strip().rstrip("/") for one in given)
        if not 1 <= len(self.endpoints) <= ENDPOINTS_MAX:
            raise ConfigError(f"expected 1..{ENDPOINTS_MAX} endpoints, got {len(self.endpoints)}")
        for endpoint in self.endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
                raise ConfigError(f"expected an endpoint like http://host:port, got {endpoint!r}")
        self.timeout = timeout or Timeout()
        self._preferred = 0  # the endpoint that answered last
        from gradledger.chain.transport import Transport  # loads HTTP when it is first needed

        self._transport = Transport(connect_sec=self.timeout.connect, answer_sec=self.timeout.read)
        self._chain_id: str | None = None  # the first answer's: other endpoints must agree
        self.last_info: ChainInfo | None = None  # as last heard
        self._irreversible = 0  # as last heard
        self._resting: dict[int, float] = {}  # endpoint -> until when
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._ids: OrderedDict[int, str] = OrderedDict()  # of irreversible blocks

    def __repr__(self) -> str:
        return f"ChainClient({', '.join(self.endpoints)})"

    # ---- reading ----------------------------------------------------------------------------

    def get_info(self) -> ChainInfo:
        """Return the node's view of head and last irreversible block. Raises NodeError."""
        self.last_info = info = self._info()[0]
        return info

    def get_confirmed(self) -> ChainInfo:
        """As `get_info`, with the newest irreversible block that most endpoints have.

        More than half of the endpoints that answer must call it irreversible, so that a node which
        lies about that, or is on a fork, is outvoted. With a single endpoint: `get_info`. Head and
        time are those of the endpoint that other calls ask first.

        Raises
        ------
        NodeAnswerError
            There is no such block: they disagree.
        NodeUnavailableError
            No endpoint answers.
        """
        self.last_info = info = self._confirmed()[0]
        return info

    def _confirmed(self) -> tuple[ChainInfo, list[tuple[ChainInfo, int]]]:
        """Return `get_confirmed`'s answer, and what each endpoint that answers says."""
        heard = self._opinions()
        heard.sort(key=lambda each: each[0].irreversible_block, reverse=True)
        needed = len(heard) // 2 + 1
        most = 0
        for place, (info, endpoint) in enumerate(heard[needed - 1 :], needed - 1):
            having = [one[1] for one in heard[:place] if self._has(info, *one)] + [endpoint]
            if len(having) >= needed:
                asked = next((one for one, n in heard if n == self._preferred), info)
                asked = replace(
                    asked,
                    irreversible_block=info.irreversible_block,
                    irreversible_id=info.irreversible_id,
                )
                return asked, heard
            most = max(most, len(having))
        raise NodeAnswerError(
            f"expected {needed} of {len(heard)} endpoints to agree on an irreversible block, "
            f"{most} do"
        )

    def _opinions(self) -> list[tuple[ChainInfo, int]]:
        """Return what each endpoint that answers says of its chain."""
        if len(self.endpoints) == 1:
            return [(self.get_info(), 0)]
        heard: list[tuple[ChainInfo, int]] = []
        now = time.monotonic()
        awake = [n for n in range(len(self.endpoints)) if self._resting.get(n, 0.0) <= now]
        for number in awake or range(len(self.endpoints)):
            try:
                heard.append(self._info(only=number))
                self._resting.pop(number, None)
            except NodeError:
                self._resting[number] = time.monotonic() + REST_SEC
        if not heard:
            raise NodeUnavailableError("no endpoint answered /v1/chain/get_info")
        return heard

    def get_confirmed_id(self, number: int) -> str | None:
        """Return the id of an irreversible block, as most endpoints have it.

        More than half of the endpoints that answer must call it irreversible and have it under this
        id, see `get_confirmed`.

        Returns
        -------
        str or None
            None: not that many call it irreversible yet.

        Raises
        ------
        NodeAnswerError
            They disagree, or do not have the block any more.
        NodeUnavailableError
            No endpoint answers.
        """
        with self._lock:
            if number in self._ids:
                return self._ids[number]
        heard, behind = self._opinions(), 0
        ids: list[str] = []
        faults: list[str] = []
        for info, endpoint in heard:
            if info.irreversible_block < number:
                behind += 1
                continue
            try:
                ids.append(self._id(number, info, endpoint))
            except NodeError as error:
                faults.append(f"; {error}")
        needed = len(heard) // 2 + 1
        most = max(set(ids), key=ids.count, default="")
        if ids.count(most) + behind < needed:
            raise NodeAnswerError(
                f"expected {needed} of {len(heard)} endpoints to have the same block {number}, "
                f"{ids.count(most)} do{''.join(faults)}"
            )
        if ids.count(most) < needed:
            return None
        with self._lock:
            self._ids[number] = most
            while len(self._ids) > BLOCKS_CACHED_MAX:
                self._ids.popitem(last=False)
        return most

    def _id(self, number: int, info: ChainInfo, endpoint: int) -> str:
        """Return the id of a block that is irreversible for an endpoint."""
        if number == info.irreversible_block:
            return info.irreversible_id
        query = {"block_num": number}
        answer = self._call("/v1/chain/get_block_info", query, only=endpoint)[0]
        try:
            return _block_id(answer, number)
        except (KeyError, TypeError, ValueError) as error:
            raise NodeAnswerError(f"expected block {number}, got another: {error}") from None

    def _has(self, info: ChainInfo, its: ChainInfo, endpoint: int) -> bool:
        """Return whether an endpoint, which is as far, has the same irreversible block."""
        if its.irreversible_block == info.irreversible_block:
            return its.irreversible_id == info.irreversible_id
        query = {"block_num": info.irreversible_block}
        try:
            answer = self._call("/v1/chain/get_block_info", query, only=endpoint)[0]
            return bool(answer["id"] == info.irreversible_id)
        except (NodeError, KeyError, TypeError):
            return False

    def _info(self, *, only: int | None = None) -> tuple[ChainInfo, int]:
        info, endpoint = self._read("/v1/chain/get_info", {}, _chain_info, only=only)
        if self._chain_id is None:
            self._chain_id = info.chain_id
        if info.chain_id != self._chain_id:
            raise NodeAnswerError(f"expected chain {self._chain_id}, a node has {info.chain_id}")
        return info, endpoint

    def table_rows(
        self,
        code: str,
        scope: str,
        table: str,
        *,
        abi: Abi,
        lower: int | None = None,
        upper: int | None = None,
        index: int = 1,
        limit: int = 1000,
    ) -> Iterator[dict[str, Any]]:
        """Yield a table's rows, page after page, unpacked here with `abi`.

        Parameters
        ----------
        lower, upper : int, optional
            Bounds of the 64-bit key, both included.
        index : int
            1: primary; 2 and more: the secondary 64-bit indices.
        limit : int
            Rows in one page.
        """
        if table not in abi.tables:
            raise ConfigError(f"expected one of {sorted(abi.tables)}, got table {table!r}")
        bound = lower
        for _ in range(PAGES_MAX):
            query = {
                "code": code,
                "scope": scope,
                "table": table,
                "json": False,
                "limit": limit,
                "index_position": str(index),
                "key_type": "i64",
                "lower_bound": "" if bound is None else str(bound),
                "upper_bound": "" if upper is None else str(upper),
            }
            answer = self.call("/v1/chain/get_table_rows", query)
            try:
                rows, more, following = answer["rows"], answer["more"], answer.get("next_key", "")
                for row in rows:
                    yield abi.unpack(abi.tables[table], bytes.fromhex(row))
                if not more:
                    return
                if bound is not None and int(following) <= bound:
                    raise ValueError("its pages do not advance")
                bound = int(following)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise NodeAnswerError(
                    f"expected rows of {code}/{scope}/{table}, got something else: {error}"
                ) from None
        raise NodeAnswerError(f"expected at most {PAGES_MAX} pages of {code}/{scope}/{table}")

    def table_row(
        self, code: str, scope: str, table: str, key: int, *, abi: Abi
    ) -> dict[str, Any] | None:
        """Return the row with this primary key, or None."""
        rows = self.table_rows(code, scope, table, abi=abi, lower=key, upper=key, limit=1)
        return next(rows, None)

    def get_account(self, account: str) -> dict[str, Any]:
        """Return the node's document on an account. Raises NodeAnswerError when there is none."""
        return self.call("/v1/chain/get_account", {"account_name": account})

    def has_account(self, account: str) -> bool:
        """Return whether the account exists."""
        try:
            self.get_account(account)
        except _FinalAnswerError:
            return False
        return True

    def balance(self, token_contract: str, account: str, code: str) -> Asset | None:
        """Return an account's balance of a token, or None when it never had any."""
        query = {"code": token_contract, "account": account, "symbol": code}
        answer = self.call("/v1/chain/get_currency_balance", query)
        try:
            return Asset.parse(answer[0]) if len(answer) else None
        except (ConfigError, TypeError, KeyError):
            raise NodeAnswerError(f"expected a list of balances, got {str(answer)[:80]}") from None

    def _block(self, number: int, heard: Sequence[tuple[ChainInfo, int]]) -> Block:
        """Return an irreversible block, as more than half of those who were `heard` have it.

        The newest `BLOCKS_CACHED_MAX` blocks are kept, since they cannot change: several waits
        share them.
        """
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
        needed = len(heard) // 2 + 1
        votes: Counter[Block] = Counter()
        faults: list[NodeError] = []
        for info, endpoint in heard:
            if info.irreversible_block < number:
                continue  # it may be on a fork
            try:
                block = self._block_at(number, endpoint)
            except NodeError as error:
                faults.append(error)
                if isinstance(error, NodeUnavailableError):
                    self._resting[endpoint] = time.monotonic() + REST_SEC
                continue
            votes[block] += 1
            if votes[block] == needed:
                break
        else:
            if len(heard) == len(faults) == 1:
                raise faults[0]
            raise NodeAnswerError(
                f"expected {needed} of {len(heard)} endpoints to have the same block {number}, "
                f"{max(votes.values(), default=0)} do{''.join(f'; {one}' for one in faults)}"
            )
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > BLOCKS_CACHED_MAX:
                self._blocks.popitem(last=False)
        return block

    def _block_at(self, number: int, endpoint: int) -> Block:
        """Return a block as one endpoint has it."""
        query = {"block_num_or_id": str(number)}
        answer = self._call("/v1/chain/get_block", query, only=endpoint)[0]
        try:
            at, executed = parse_time(answer["timestamp"]), _executed_ids(answer)
            return Block(number, _block_id(answer, number), at, executed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NodeAnswerError(f"expected block {number}, got another: {error}") from None

    # ---- writing ----------------------------------------------------------------------------

    def push(
        self,
        actions: Iterable[Action],
        keys: Iterable[PrivateKey],
        *,
        expiration_sec: int = 60,
        reference: str | None = None,
    ) -> PushResult:
        """Sign and send a transaction.

        The clock is the chain's own.

        Parameters
        ----------
        actions : iterable of Action
        keys : iterable of PrivateKey
        expiration_sec : int
            1 to 3600, from the head on.
        reference : str, optional
            Id of a block: on a fork without it the transaction is never valid. None: an
            irreversible block, so that it is valid on every fork.

        Raises
        ------
        ContractError
            A check refused it; nothing happened.
        NodeUnavailableError
            No node took it, or none of them knows the block `reference`.
        NodeError
            No node took it. It may have arrived all the same: `wait_irreversible` tells.
        """
        signed = self.sign(actions, keys, expiration_sec=expiration_sec, reference=reference)
        return PushResult.of(signed, self.send(signed.body))

    def sign(
        self,
        actions: Iterable[Action],
        keys: Iterable[PrivateKey],
        *,
        expiration_sec: int = 60,
        reference: str | None = None,
    ) -> Signed:
        """Sign a transaction as `push` does, and do not send it. Raises NodeError."""
        if not 1 <= expiration_sec <= EXPIRATION_SEC_MAX:
            raise ConfigError(f"expected 1..{EXPIRATION_SEC_MAX} s, got {expiration_sec}")
        info = self.get_confirmed()
        expiration = info.head_time + expiration_sec
        block_id = info.irreversible_id if reference is None else reference
        transaction = Transaction.refer(actions, expiration, block_id)
        body = transaction.sign(info.chain_id, keys)
        return Signed(transaction.id, info.irreversible_block + 1, expiration, body)

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a signed transaction, perhaps again; return its traces, or {} if it was known.

        Raises as `push` does.
        """
        request = {
            "return_failure_trace": False,
            "retry_trx": False,
            "transaction": body,
        }
        return self._read("/v1/chain/send_transaction2", request, _traces)[0]

    def transact(
        self,
        actions: Iterable[Action],
        keys: Iterable[PrivateKey],
        *,
        expiration_sec: int = 60,
        timeout_sec: float = 60.0,
    ) -> tuple[PushResult, int]:
        """`push`, then `wait_irreversible`. Return the result and the block's number."""
        result = self.push(actions, keys, expiration_sec=expiration_sec)
        return result, self.wait_irreversible(result, timeout_sec=timeout_sec)

    def find_irreversible(self, signed: Signed, *, timeout_sec: float = 15.0) -> int | None:
        """Look once whether a transaction is in an irreversible block.

        Returns
        -------
        int or None
            The block's number; None while it may still come.

        Raises
        ------
        TransactionExpiredError
            It is in no irreversible block up to its expiration, so it never will be.
        NodeError
            The node does not answer, or answers nonsense; of several, no more than half of those
            that answer have the same block, with the same transactions.
        """
        end = time.monotonic() + timeout_sec
        info, heard = self._confirmed()
        self._irreversible = info.irreversible_block
        self.last_info = info
        for number in range(signed.first_block, info.irreversible_block + 1):
            if time.monotonic() >= end:
                break
            block = self._block(number, heard)
            if signed.trx_id in block.executed:
                return number
            if block.time > signed.expiration:
                raise TransactionExpiredError(
                    f"transaction {signed.trx_id} expired and is in no irreversible block: "
                    "sign it anew"
                )
        return None

    def wait_irreversible(
        self, signed: Signed, *, timeout_sec: float = 60.0, poll_sec: float = 0.1
    ) -> int:
        """Wait until a transaction is in an irreversible block; return the block's number.

        Raises
        ------
        TransactionExpiredError
            It is in no irreversible block up to its expiration, so it never will be.
        IrreversibilityTimeout
            Not known within `timeout_sec`.
        """
        fault = ""
        end = time.monotonic() + timeout_sec
        while True:
            try:
                found = self.find_irreversible(signed, timeout_sec=end - time.monotonic())
                if found is not None:
                    return found
            except (NodeUnavailableError, NodeAnswerError) as error:
                fault = f"; {error}"  # a node may come back, or another one take over
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(
                    f"transaction {signed.trx_id} is not irreversible after {timeout_sec:g} s; "
                    f"irreversible up to block {self._irreversible}{fault}"
                )
            time.sleep(min(poll_sec, max(0.0, end - time.monotonic())))

    def wait_until(
        self,
        done: Callable[[], Any],
        *,
        timeout_sec: float,
        poll_sec: float = 0.1,
        what: str = "the chain",
    ) -> Any:
        """Call `done` until it returns something true; return that. Raises NodeError in the end."""
        end = time.monotonic() + timeout_sec
        while True:
            answer = done()
            if answer:
                return answer
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(f"waited {timeout_sec:g} s for {what} in vain")
            time.sleep(poll_sec)

    # ---- transport --------------------------------------------------------------------------

    def call(self, path: str, document: Any) -> Any:
        """POST a document to the first endpoint that answers; return the answer's document.

        Raises
        ------
        ContractError
            The chain refused the transaction.
        NodeError
            No endpoint answered, or the answer is an error of the node.
        """
        return self._call(path, document)[0]

    def _read(
        self, path: str, document: Any, read: Callable[[Any], _T], *, only: int | None = None
    ) -> tuple[_T, int]:
        """As `_call`, with what `read` makes of an answer.

        Where it raises NodeAnswerError, the next endpoint is asked, now and by later calls.
        """
        for left in reversed(range(len(self.endpoints) if only is None else 1)):
            answer, endpoint = self._call(path, document, only=only)
            try:
                return read(answer), endpoint
            except NodeAnswerError:
                if not left:
                    raise
                self._preferred = (endpoint + 1) % len(self.endpoints)
        raise AssertionError("not reached")

    def _call(self, path: str, document: Any, *, only: int | None = None) -> tuple[Any, int]:
        """Return an answer and the endpoint that gave it; `only` asks no other one."""
        payload = json.dumps(document).encode()
        faults: list[str] = []
        kind = NodeUnavailableError
        first = self._preferred if only is None else only
        count = len(self.endpoints) if only is None else 1
        for attempt in range(ROUNDS_OF_ENDPOINTS * count):
            if attempt and attempt % count == 0:
                time.sleep(PAUSE_SEC)
            number = (first + attempt % count) % len(self.endpoints)
            try:
                answer = self._ask(self.endpoints[number], path, payload)
            except _FinalAnswerError:
                raise
            except (NodeUnavailableError, NodeAnswerError) as error:
                faults.append(f"{self.endpoints[number]}: {error}")
                kind = NodeBusyError if isinstance(error, NodeBusyError) else kind
                continue
            if only is None:
                self._preferred = number
            return answer, number
        raise kind(f"no endpoint answered {path}: " + "; ".join(dict.fromkeys(faults)))

    def _ask(self, endpoint: str, path: str, payload: bytes) -> Any:
        status, raw = self._transport.post(
            endpoint, path, payload, answer_bytes_max=ANSWER_BYTES_MAX
        )
        if status in (429, 503):
            raise NodeUnavailableError(f"HTTP {status}: it is busy")
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise NodeAnswerError(f"HTTP {status} without JSON") from None
        return answer if status in (200, 201, 202) else _error_answer(status, answer)


class _FinalAnswerError(NodeAnswerError):
    """The node understood and said no: asking another one is no use."""


def _error_answer(status: int, answer: Any) -> Any:
    """Raise what a node's error document says; return {} for a transaction that it knows."""
    try:
        error = answer["error"]
        code, name = int(error["code"]), str(error["name"])
        details = [str(detail["message"]) for detail in error.get("details", [])]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise NodeAnswerError(f"HTTP {status} without an error document") from None
    message = details[0] if details else str(error.get("what", name))
    if code == _DUPLICATE_CODE:
        return {}
    if code in _CHECK_CODES:
        start = message.find(_CHECK_PREFIX)
        raise error_from_check(message[start + len(_CHECK_PREFIX) :] if start >= 0 else message)
    if code in _AUTHORITY_CODES:
        raise NotAllowedError("missing_authority", message)
    if code == _EXPIRED_CODE:
        raise TransactionExpiredError(message)
    if code == _REFERENCE_CODE:
        raise NodeUnavailableError(f"{name}: {message}")  # another node may know it
    if code in _BUSY_CODES:
        raise NodeBusyError(f"{name}: {message}")
    if 3050000 <= code < 3060000:
        raise ContractError("", f"{name}: {message}")
    raise _FinalAnswerError(f"HTTP {status}, {name}: {message}")


def _chain_info(answer: Any) -> ChainInfo:
    try:
        info = ChainInfo(
            _digest(answer["chain_id"]),
            str(answer.get("server_version_string") or answer["server_version"]),
            _uint32(answer["head_block_num"]),
            parse_time(answer["head_block_time"]),
            _uint32(answer["last_irreversible_block_num"]),
            _digest(answer["last_irreversible_block_id"]),
            _digest(answer["head_block_id"]),
        )
        _uint32(info.head_time)
        _uint32(info.head_time + EXPIRATION_SEC_MAX)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NodeAnswerError(f"expected a get_info document, got another: {error}") from None
    return info


def _traces(answer: Any) -> dict[str, Any]:
    """Return the traces in an answer to a transaction, which may have been taken all the same."""
    try:
        traces: dict[str, Any] = answer.get("processed", {})
        _billed(traces)
    except (ValueError, AttributeError) as error:
        raise NodeAnswerError(f"expected traces, got something else: {error}") from None
    return traces


def _billed(traces: dict[str, Any]) -> tuple[int, int]:
    """Return the CPU time, us, and the words of 8 bytes that traces say were billed."""
    receipt = traces.get("receipt") or {}
    return _uint32(receipt.get("cpu_usage_us", 0)), _uint32(receipt.get("net_usage_words", 0))


def _uint32(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ValueError(f"number {str(value)[:80]}")
    return value


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError(f"id {str(value)[:80]}")
    return value


def _block_id(answer: Any, number: int) -> str:
    """Return the id in a block's document; it begins with the number."""
    found = _digest(answer["id"])
    if int(found[:8], 16) != number:
        raise ValueError(f"id {found}")
    return found


def _executed_ids(block: dict[str, Any]) -> frozenset[str]:
    executed = [row["trx"] for row in block["transactions"] if row["status"] == "executed"]
    return frozenset(trx["id"] if isinstance(trx, dict) else trx for trx in executed)


__all__ = [
    "Block",
    "ChainClient",
    "ChainInfo",
    "PushResult",
    "Signed",
    "Timeout",
]
