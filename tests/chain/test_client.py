"""The client against nodes that fail in every way: each call ends, with the right error."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest

from gradledger.chain import client as client_module
from gradledger.chain.abi import Abi
from gradledger.chain.client import ChainClient, PushResult, Timeout
from gradledger.chain.contract import BALLOTS_PER_ROW, FedLearning
from gradledger.chain.keys import PrivateKey
from gradledger.chain.transaction import ACTIONS_MAX, Transaction, action
from gradledger.errors import (
    AlreadyDoneError,
    ConfigError,
    ContractError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeBusyError,
    NodeError,
    NodeUnavailableError,
    NotAllowedError,
    TransactionExpiredError,
)

CHAIN_ID = "ab" * 32
T0 = 1_769_860_800  # 2026-01-31T12:00:00Z
ABI = Abi(
    {
        "structs": [{"name": "row", "fields": [{"name": "id", "type": "uint64"}]}],
        "actions": [],
        "tables": [{"name": "rows", "type": "row"}],
    }
)
Answer = Callable[[str, Any], Any]


def info(head: int = 10, last: int = 8, chain_id: str = CHAIN_ID) -> dict[str, Any]:
    return {
        "chain_id": chain_id,
        "server_version": "fake",
        "head_block_num": head,
        "head_block_id": f"{head:08x}" + "22" * 28,
        "head_block_time": "2026-01-31T12:00:00.500",
        "last_irreversible_block_num": last,
        "last_irreversible_block_id": f"{last:08x}" + "11" * 28,
    }


def error(code: int, message: str, name: str = "some_exception") -> bytes:
    detail = {"message": message, "file": "", "line_number": 1, "method": ""}
    document = {"code": code, "name": name, "what": "What", "details": [detail]}
    return json.dumps({"code": 500, "message": "Internal", "error": document}).encode()


def http(body: bytes, status: int = 200, *, length: int | None = None, head: str = "") -> bytes:
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{head}\r\n".encode() + body


class FakeNode:
    """Serve raw bytes: `answer(path, document)` gives a document, bytes, or pieces with pauses."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[str] = []
        self.connections = 0
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.05)
        raw = b""
        with connection:
            while not self._stop.is_set():
                try:
                    piece = connection.recv(65_536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not piece:
                    return
                raw += piece
                head, found, body = raw.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0)
                if not found or len(body) < length:
                    continue
                raw = b""
                path = head.split()[1].decode()
                self.calls.append(path)
                if not self._send(connection, self.answer(path, json.loads(body))):
                    return

    def _send(self, connection: socket.socket, answer: Any) -> bool:
        """Send an answer; return whether the connection stays open."""
        if answer is None:
            return False
        if isinstance(answer, (dict, list)):
            answer = http(json.dumps(answer).encode())
        try:
            for piece in [answer] if isinstance(answer, bytes) else answer:
                if self._stop.is_set():
                    return False
                connection.sendall(piece)
        except OSError:
            return False
        return isinstance(answer, bytes)


@pytest.fixture
def serve() -> Iterator[Callable[[Any], FakeNode]]:
    """Start fake nodes; what is no function is the answer to everything."""
    nodes: list[FakeNode] = []

    def start(answer: Any) -> FakeNode:
        nodes.append(FakeNode(answer if callable(answer) else lambda path, document: answer))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


def client(*nodes: FakeNode | str, read: float = 5.0) -> ChainClient:
    urls = [node if isinstance(node, str) else node.url for node in nodes]
    return ChainClient(urls, timeout=Timeout(connect=1.0, read=read))


def trickle(piece: bytes, pause_sec: float, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield piece
        time.sleep(pause_sec)


# ---- endpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoints",
    [
        "",
        "localhost:8888",
        "ftp://x",
        "http://",
        "http://a/path",
        [],
        ["http://a"] * 17,
        "http://a,",
    ],
)
def test_what_is_no_endpoint_is_refused(endpoints: Any) -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        ChainClient(endpoints)


def test_endpoints_come_as_text_or_list() -> None:
    expected = ("http://a:1", "https://b")
    assert ChainClient("http://a:1/, https://b").endpoints == expected
    assert ChainClient(["http://a:1", "https://b"]).endpoints == expected
    assert repr(ChainClient("http://a:1")) == "ChainClient(http://a:1)"


BAD_NODES: dict[str, Any] = {
    "hangs up": None,
    "no http": b"SSH-2.0-OpenSSH_9\r\n",
    "no json": http(b"<html>"),
    "empty": http(b""),
    "half": (http(b'{"chain', length=1000),),
    "deep": http(b"[" * 100_000),
    "not utf-8": http(b'"\xff\xfe"'),
    "busy": http(error(0, "busy"), 503),
    "bad gateway": http(b"Bad Gateway", 502),
    "moved": http(b"", 301, head="Location: http://127.0.0.1:1/\r\n"),
    "error without a document": http(b'{"code": 500}', 500),
    "timed out inside": http(error(3080006, "deadline", "deadline_exception"), 500),
    "on another fork": http(error(3040007, "no such block", "invalid_ref_block_exception"), 500),
    "long header": b"HTTP/1.1 200 X\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 X\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "bad length": b"HTTP/1.1 200 X\r\nContent-Length: -5\r\n\r\n{}",
    "bad chunks": b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
}


@pytest.mark.parametrize("kind", BAD_NODES)
def test_the_next_endpoint_is_asked(kind: str, serve: Callable[[Any], FakeNode]) -> None:
    bad, good = serve(BAD_NODES[kind]), serve(info())
    both = client(bad, good, read=1.0)
    assert both.get_info().head_block == 10
    assert both.get_info().head_time == T0
    assert len(good.calls) == 2 and len(bad.calls) == 1  # the good one is remembered


@pytest.mark.parametrize("kind", BAD_NODES)
def test_without_a_good_endpoint_the_call_ends(kind: str, serve: Callable[[Any], FakeNode]) -> None:
    bad = serve(BAD_NODES[kind])
    with pytest.raises(NodeUnavailableError, match="no endpoint answered /v1/chain/get_info") as e:
        client(bad, read=0.3).get_info()
    assert bad.url in str(e.value)
    assert isinstance(e.value, NodeBusyError) == (kind == "timed out inside")
    assert len(bad.calls) <= 2 * client_module.ROUNDS_OF_ENDPOINTS


def test_a_refused_connection_is_stepped_over(serve: Callable[[Any], FakeNode]) -> None:
    assert client("http://127.0.0.1:9", serve(info())).get_info().irreversible_block == 8


@pytest.mark.parametrize(
    "pieces",
    [
        lambda: trickle(b"", 0.05, 1000),
        lambda: trickle(b"H", 0.05, 1000),
        lambda: trickle(b"HTTP/1.1 200 X\r\nA: b\r\n", 0.05, 1000),
        lambda: chain([http(b"{", length=10**6)], trickle(b" ", 0.05, 1000)),
    ],
    ids=["silence", "slow status", "slow headers", "slow body"],
)
def test_a_slow_answer_cannot_hold_the_caller(
    pieces: Callable[[], Any], serve: Callable[[Any], FakeNode]
) -> None:
    def lazily(path: str, document: Any) -> Iterator[bytes]:
        return (piece for piece in pieces())

    slow, good = serve(lazily), serve(info())
    assert client(slow, good, read=0.3).get_info().head_block == 10


def test_an_endless_answer_is_cut(
    serve: Callable[[Any], FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 100_000)
    flood = serve(lambda path, document: (http(b"", length=10**12), *[b" " * 65_536] * 200))
    with pytest.raises(NodeUnavailableError, match="an answer of over 100000 bytes"):
        client(flood).get_info()


def test_connections_are_kept_and_made_again(serve: Callable[[Any], FakeNode]) -> None:
    node = serve(info())
    one = client(node)
    for _ in range(5):
        one.get_info()
    assert node.connections == 1
    closing = serve(lambda path, document: iter([http(json.dumps(info()).encode())]))
    other = client(closing)
    for _ in range(3):
        assert other.get_info().head_block == 10  # the node hung up in between, unannounced
    announced = serve(http(json.dumps(info()).encode(), head="Connection: close\r\n"))
    last = client(announced)
    for _ in range(3):
        last.get_info()
    assert announced.connections == 3 and len(announced.calls) == 3


def test_threads_share_a_client(serve: Callable[[Any], FakeNode]) -> None:
    node = serve(info())
    one = client(node)
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(lambda _: one.get_info().head_block, range(40)))
    assert heads == [10] * 40 and node.connections <= 4


def test_a_node_of_another_chain_is_not_believed(serve: Callable[[Any], FakeNode]) -> None:
    answers = [info(), info(chain_id="cd" * 32)]
    node = serve(lambda path, document: answers.pop(0))
    one = client(node)
    one.get_info()
    with pytest.raises(NodeAnswerError, match="expected chain abab"):
        one.get_info()


@pytest.mark.parametrize("answer", [[], {}, 5, None, "x", {**info(), "head_block_time": 5}])
def test_an_info_that_is_none_is_a_node_error(
    answer: Any, serve: Callable[[Any], FakeNode]
) -> None:
    with pytest.raises(NodeAnswerError, match="expected a get_info document"):
        client(serve(http(json.dumps(answer).encode()))).get_info()


SEND = "/v1/chain/send_transaction2"
NONSENSE: list[tuple[str, Any]] = [
    *(
        ("/v1/chain/get_info", {**info(), name: value})
        for name, value in [
            ("head_block_num", float("inf")),
            ("head_block_num", 2**32),
            ("head_block_num", "10"),
            ("last_irreversible_block_num", float("nan")),
            ("last_irreversible_block_num", -1),
            ("head_block_time", "1900-01-01T00:00:00"),
            ("head_block_time", "2106-02-07T06:28:00"),  # no time is left for an expiration
            ("head_block_time", "9000-01-01T00:00:00"),
            ("last_irreversible_block_id", "zz"),
            ("last_irreversible_block_id", "00"),
            ("last_irreversible_block_id", "00 " * 21 + "0"),
            ("head_block_id", "AB" * 32),
            ("chain_id", "zz" * 32),
            ("chain_id", None),
        ]
    ),
    *(
        (SEND, answer)
        for answer in [
            None,
            [1],
            {"processed": None},
            {"processed": [1]},
            {"processed": {"receipt": "x"}},
            {"processed": {"receipt": {"cpu_usage_us": "x"}}},
            {"processed": {"receipt": {"cpu_usage_us": float("inf")}}},
            {"processed": {"receipt": {"net_usage_words": -1}}},
            http(b'{"error": {"code": 1e999, "name": "x"}}', 500),
        ]
    ),
]


def speaking(path: str, answer: Any) -> Answer:
    """Return a good node, but for what it answers to this path."""
    raw = answer if isinstance(answer, bytes) else http(json.dumps(answer).encode())
    good = {SEND: {"processed": {"receipt": {"cpu_usage_us": 5, "net_usage_words": 2}}}}
    return lambda asked, _: raw if asked == path else good.get(asked, info())


@pytest.mark.parametrize(("path", "answer"), NONSENSE, ids=str)
def test_nonsense_is_a_node_error_and_one_of_three_is_passed_over(
    path: str, answer: Any, serve: Callable[[Any], FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAUSE_SEC", 0.0)
    bad, good = serve(speaking(path, answer)), serve(speaking("", None))
    actions, keys = [action("a", "b", "c", b"")], [PrivateKey.generate()]
    with pytest.raises(NodeError):
        client(bad).push(actions, keys)
    three = client(bad, good, good)
    assert three.get_confirmed().irreversible_block == 8
    result = three.push(actions, keys)
    assert (result.cpu_us, result.net_bytes) == (5, 16)
    assert client(bad, good, good).get_info().head_block == 10


# ---- errors of the chain ----------------------------------------------------------------------

REFUSALS: list[tuple[int, str, type[Exception], str]] = [
    (
        *(3050003, "assertion failure with message: second_upload: expected one, got two"),
        *(AlreadyDoneError, "^second_upload: expected one, got two$"),
    ),
    (3050003, "assertion failure with message: overdrawn balance", ContractError, "^overdrawn"),
    (3050004, "assertion failure with error code: 77", ContractError, "error code: 77"),
    (3090003, "transaction declares authority", NotAllowedError, "^missing_authority: "),
    (3040005, "expired transaction", TransactionExpiredError, "expired"),
    (3050001, "bad action", ContractError, "some_exception: bad action"),
    (3080004, "billed CPU time", NodeAnswerError, "billed CPU time"),
]


@pytest.mark.parametrize(("code", "message", "kind", "match"), REFUSALS)
def test_a_refusal_is_final_and_has_its_class(
    code: int, message: str, kind: type[Exception], match: str, serve: Callable[[Any], FakeNode]
) -> None:
    first, second = serve(http(error(code, message), 500)), serve({"processed": {}})
    with pytest.raises(kind, match=match):
        client(first, second).send({"packed_trx": ""})
    assert len(first.calls) == 1 and second.calls == []


def test_a_known_transaction_is_a_success(serve: Callable[[Any], FakeNode]) -> None:
    duplicate = http(error(3040008, "duplicate transaction", "tx_duplicate"), 409)
    node = serve(lambda path, _: info() if path.endswith("get_info") else duplicate)
    key = PrivateKey.generate()
    result = client(node).push([action("a", "b", "c", b"x")], [key, key])
    assert result.traces == {} and result.cpu_us == 0
    assert result.first_block == 9 and result.expiration == T0 + 60
    assert len(result.body["signatures"]) == 1
    assert key.to_string() not in repr(result)


def test_a_lost_answer_is_sent_again_as_the_same_transaction(
    serve: Callable[[Any], FakeNode],
) -> None:
    sent: list[Any] = []

    def flaky(path: str, document: Any) -> Any:
        if path.endswith("get_info"):
            return info()
        sent.append(document["transaction"])
        if len(sent) == 1:
            return None  # it arrived; the answer did not
        return http(error(3040008, "duplicate transaction"), 409)

    client(serve(flaky)).push([action("a", "b", "c", b"")], [PrivateKey.generate()])
    assert len(sent) == 2 and sent[0] == sent[1]


@pytest.mark.parametrize("seconds", [0, 3601])
def test_an_expiration_outside_its_bounds_is_refused(seconds: int) -> None:
    with pytest.raises(ConfigError, match=r"expected 1\.\.3600 s"):
        client("http://127.0.0.1:9").push([], [], expiration_sec=seconds)


@pytest.mark.parametrize("count", [0, ACTIONS_MAX + 1])
def test_a_transaction_has_a_bounded_number_of_actions(count: int) -> None:
    with pytest.raises(ConfigError, match="actions"):
        Transaction(1, 2, 3, (action("a", "b", "c", b""),) * count).pack()


def test_a_transaction_has_a_bounded_size() -> None:
    with pytest.raises(ConfigError, match="send fewer actions at once"):
        Transaction(1, 2, 3, (action("a", "b", "c", bytes(600_000)),)).pack()
    with pytest.raises(ConfigError, match="a block id of 32 bytes"):
        Transaction.refer([], 1, "00" * 31)


# ---- tables -----------------------------------------------------------------------------------


def row(number: int) -> str:
    return ABI.pack("row", {"id": number}).hex()


def test_pages_are_followed(serve: Callable[[Any], FakeNode]) -> None:
    asked: list[str] = []

    def pages(path: str, query: Any) -> Any:
        asked.append(query["lower_bound"])
        low = int(query["lower_bound"] or 1)
        rows = [row(n) for n in range(low, min(low + query["limit"], 8))]
        more = low + query["limit"] < 8
        return {"rows": rows, "more": more, "next_key": str(low + query["limit"]) if more else ""}

    rows = client(serve(pages)).table_rows("c", "s", "rows", abi=ABI, limit=3)
    assert [one["id"] for one in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert asked == ["", "4", "7"]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"rows": 5, "more": False},
        {"rows": [{"id": 1}], "more": False},
        {"rows": ["zz"], "more": False},
        {"rows": ["00"], "more": False},
        {"rows": [], "more": True, "next_key": "x"},
        {"rows": [], "more": True},
        {"rows": [], "more": True, "next_key": "5"},  # for ever the same page
        {"rows": [], "more": True, "next_key": float("inf")},
    ],
)
def test_rows_that_are_none_are_a_node_error(answer: Any, serve: Callable[[Any], FakeNode]) -> None:
    with pytest.raises(NodeAnswerError, match="expected rows of c/s/rows"):
        list(client(serve(answer)).table_rows("c", "s", "rows", abi=ABI))


def test_only_the_pages_of_ballots_that_are_needed_are_read(
    serve: Callable[[Any], FakeNode],
) -> None:
    asked: list[str] = []

    def empty(path: str, query: Any) -> Any:
        asked.append(query["upper_bound"])
        return {"rows": [], "more": False}

    contract = FedLearning(client(serve(empty)))
    for uploads in (0, 1, BALLOTS_PER_ROW, BALLOTS_PER_ROW + 1):
        assert contract.ballots("digits", uploads) == []
    assert asked == ["0", "0", "1"]


@pytest.mark.parametrize("answer", [{}, {"a": 1}, 5, ["x"], [5], "1.0000 TOK"])
def test_a_balance_that_is_none_is_a_node_error(
    answer: Any, serve: Callable[[Any], FakeNode]
) -> None:
    one = client(serve(http(json.dumps(answer).encode())))
    if answer == {}:
        assert one.balance("t", "a", "TOK") is None
        return
    with pytest.raises(NodeAnswerError, match="expected a list of balances"):
        one.balance("t", "a", "TOK")


# ---- waiting ----------------------------------------------------------------------------------


class FakeChain:
    """A chain whose last irreversible block rises by one with every get_info."""

    def __init__(self, holding: dict[int, list[Any]], *, last: int = 8, top: int = 10**6) -> None:
        self.holding, self.last, self.top = holding, last, top
        self.asked: list[int] = []

    def __call__(self, path: str, document: Any) -> Any:
        if path.endswith("get_info"):
            self.last = min(self.last + 1, self.top)
            return info(self.last + 2, self.last)
        if path.endswith("get_block_info"):
            return {"id": f"{document['block_num']:08x}" + "11" * 28}
        number = int(document["block_num_or_id"])
        self.asked.append(number)
        second = number // 2 % 60
        return {
            "block_num": number,
            "id": f"{number:08x}" + "11" * 28,
            "timestamp": f"2026-01-31T12:00:{second:02d}.{500 * (number % 2):03d}",
            "transactions": self.holding.get(number, []),
        }


def executed(trx_id: str, status: str = "executed") -> dict[str, Any]:
    return {"status": status, "trx": {"id": trx_id}}


def pushed(trx_id: str, first_block: int = 9, expiration: int = T0 + 30) -> PushResult:
    return PushResult(trx_id, first_block, expiration, {}, 0, 0, {})


def test_several_waits_fetch_each_block_once(serve: Callable[[Any], FakeNode]) -> None:
    fake = FakeChain({12: [executed("a"), executed("b")], 14: [executed("c")]})
    one = client(serve(fake))
    found = [one.wait_irreversible(pushed(t), timeout_sec=20, poll_sec=0) for t in "abc"]
    assert found == [12, 12, 14]
    assert fake.asked == [9, 10, 11, 12, 13, 14]


def test_only_an_executed_transaction_counts(serve: Callable[[Any], FakeNode]) -> None:
    fake = FakeChain({10: [executed("a", "hard_fail")], 11: [{"status": "executed", "trx": "a"}]})
    assert client(serve(fake)).wait_irreversible(pushed("a"), timeout_sec=20, poll_sec=0) == 11


def test_an_expired_transaction_is_told_from_a_late_one(
    serve: Callable[[Any], FakeNode],
) -> None:
    # Block 20 is at 12:00:10.0, block 21 half a second later, block 22 at 12:00:11.
    fake = FakeChain({21: [executed("late")]})
    one = client(serve(fake))
    at_ten = dataclasses.replace(pushed("late"), expiration=T0 + 10)
    assert one.wait_irreversible(at_ten, timeout_sec=20, poll_sec=0) == 21
    with pytest.raises(TransactionExpiredError, match="sign it anew"):
        one.wait_irreversible(pushed("none", expiration=T0 + 10), timeout_sec=20, poll_sec=0)
    assert max(fake.asked) == 22


def test_a_wait_is_bounded(serve: Callable[[Any], FakeNode]) -> None:
    fake = FakeChain({}, last=10, top=11)
    with pytest.raises(IrreversibilityTimeout, match=r"after 0\.2 s; irreversible up to block 11"):
        client(serve(fake)).wait_irreversible(pushed("a"), timeout_sec=0.2, poll_sec=0.01)
    assert fake.asked == [9, 10, 11]


def test_a_wait_outlives_a_node_that_comes_back(serve: Callable[[Any], FakeNode]) -> None:
    fake, failures = FakeChain({10: [executed("a")]}), [None, http(b"<html>"), http(b"[]")] * 4

    def shaky(path: str, document: Any) -> Any:
        return failures.pop() if failures else fake(path, document)

    assert client(serve(shaky)).wait_irreversible(pushed("a"), timeout_sec=30, poll_sec=0) == 10


def test_a_wait_without_any_node_names_the_fault() -> None:
    with pytest.raises(IrreversibilityTimeout, match="no endpoint answered"):
        client("http://127.0.0.1:9").wait_irreversible(pushed("a"), timeout_sec=0.1)


def test_a_block_comes_from_the_node_that_calls_it_irreversible(
    serve: Callable[[Any], FakeNode],
) -> None:
    ahead, too = (FakeChain({10: [executed("a")]}) for _ in range(2))
    behind = FakeChain({}, top=8)  # what it has after that may be on a fork
    down = threading.Event()

    def first(path: str, document: Any) -> Any:
        if path.endswith("get_block") and not down.is_set():
            down.set()
            return None
        return ahead(path, document)

    three = client(serve(behind), serve(first), serve(too))
    assert three.wait_irreversible(pushed("a"), timeout_sec=20, poll_sec=0) == 10
    assert behind.asked == []


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("invented", [{}, {10: [executed("c")]}], ids=["left out", "invented"])
def test_a_node_that_lies_about_a_block_is_outvoted(
    place: int, invented: dict[int, list[Any]], serve: Callable[[Any], FakeNode]
) -> None:
    chains = [FakeChain({12: [executed("a")]}) for _ in range(3)]
    chains[place].holding = invented
    three = client(*(serve(one) for one in chains))
    assert three.wait_irreversible(pushed("a"), timeout_sec=20, poll_sec=0) == 12
    gone = pushed("c", expiration=T0 + 4)
    with pytest.raises(TransactionExpiredError):
        three.wait_irreversible(gone, timeout_sec=20, poll_sec=0)
    assert all(len(one.asked) == len(set(one.asked)) for one in chains)


def test_an_endpoint_that_gives_no_blocks_is_left_alone_for_a_while(
    serve: Callable[[Any], FakeNode],
) -> None:
    fakes = [FakeChain({13: [executed("a")]}) for _ in range(3)]

    def mute(path: str, document: Any) -> Any:
        return None if path.endswith("get_block") else fakes[0](path, document)

    first = serve(mute)
    three = client(first, serve(fakes[1]), serve(fakes[2]))
    assert three.wait_irreversible(pushed("a"), timeout_sec=20, poll_sec=0) == 13
    asked = first.calls.count("/v1/chain/get_block")
    assert 1 <= asked <= 2 * client_module.ROUNDS_OF_ENDPOINTS


def test_without_a_majority_for_a_block_nothing_is_believed(
    serve: Callable[[Any], FakeNode],
) -> None:
    both = client(serve(FakeChain({9: [executed("a")]}, last=9)), serve(FakeChain({}, last=9)))
    with pytest.raises(NodeAnswerError, match="expected 2 of 2 endpoints to have the same block 9"):
        both.find_irreversible(pushed("a"))


def telling(last: int, tail: str = "11", below: str = "11") -> Any:
    """Return a node with this last irreversible block; the tails are those of its ids."""

    def answer(path: str, document: Any) -> Any:
        if path.endswith("get_block_info"):
            return {"id": f"{document['block_num']:08x}" + below * 28}
        return {**info(last + 5, last), "last_irreversible_block_id": f"{last:08x}" + tail * 28}

    return answer


@pytest.mark.parametrize(
    ("nodes", "confirmed"),
    [
        ([telling(20)], 20),
        ([telling(25), telling(20)], 20),  # the first may be ahead, or may lie
        ([telling(25, below="66"), telling(20)], None),
        ([telling(20), telling(20, tail="66")], None),
        ([telling(99, below="66"), telling(20), telling(18)], 18),
        ([telling(99), telling(98), telling(20), telling(19), telling(18)], 20),
        ([None, telling(25), telling(20)], 20),
        ([http(b"<html>"), [], telling(20)], 20),
    ],
)
def test_what_most_endpoints_have_is_irreversible(
    nodes: list[Any], confirmed: int | None, serve: Callable[[Any], FakeNode]
) -> None:
    one = client(*(serve(node) for node in nodes))
    if confirmed is not None:
        assert one.get_confirmed().irreversible_block == confirmed
        return
    with pytest.raises(NodeAnswerError, match=r"expected 2 of 2 endpoints to agree on .*, 1 do"):
        one.get_confirmed()


@pytest.mark.parametrize(
    ("nodes", "tail"),
    [
        ([telling(20)], "11"),
        ([telling(15, tail="66")], "66"),  # its last irreversible block is the one asked for
        ([telling(14)], None),
        ([telling(20), telling(14), telling(14)], None),
        ([telling(20), telling(20), telling(14)], "11"),
        ([telling(20, below="66"), telling(20), telling(20)], "11"),
        ([telling(20), telling(20, below="66")], "1 do"),
        ([telling(20, below="6x")], "0 do; expected block 15, got another"),
        ([telling(20, below="6x"), telling(20), telling(20)], "11"),
        ([None, telling(20)], "11"),
    ],
)
def test_the_id_of_a_block_is_what_most_endpoints_have(
    nodes: list[Any], tail: str | None, serve: Callable[[Any], FakeNode]
) -> None:
    one = client(*(serve(node) for node in nodes))
    if tail is None or len(tail) == 2:
        assert one.get_confirmed_id(15) == (tail and f"{15:08x}" + tail * 28)
        return
    with pytest.raises(NodeAnswerError, match=tail):
        one.get_confirmed_id(15)


def test_an_id_is_asked_for_once(serve: Callable[[Any], FakeNode]) -> None:
    node = serve(telling(20))
    one = client(node)
    assert one.get_confirmed_id(15) == one.get_confirmed_id(15)
    assert len(node.calls) == 2


def test_a_transaction_refers_to_what_most_endpoints_have(serve: Callable[[Any], FakeNode]) -> None:
    liar = telling(90)

    def answer(path: str, document: Any) -> Any:
        return {"processed": {}} if path.endswith("send_transaction2") else liar(path, document)

    one = client(serve(answer), serve(telling(20)), serve(telling(21)))
    result = one.push([action("a", "b", "c", b"")], [PrivateKey.generate()])
    assert result.first_block == 22  # what it is in cannot be overlooked
    assert result.expiration == T0 + 60  # by the clock of the one that is asked first
    packed = Transaction.unpack(bytes.fromhex(result.body["packed_trx"]))
    assert packed.ref_block_num == 21


def test_a_transaction_refers_to_the_block_that_is_named(serve: Callable[[Any], FakeNode]) -> None:
    one = client(serve(info(300, 8)))
    head_id = one.get_info().head_id
    signed = one.sign([action("a", "b", "c", b"")], [PrivateKey.generate()], reference=head_id)
    packed = Transaction.unpack(bytes.fromhex(signed.body["packed_trx"]))
    assert (packed.ref_block_num, packed.ref_block_prefix) == (300, 0x22222222)
    assert signed.expiration == packed.expiration == T0 + 60
    with pytest.raises(ConfigError, match="a block id of 32 bytes, got 2"):
        one.sign([], [], reference="0012")


def test_an_endpoint_that_does_not_answer_is_left_alone_for_a_while(
    serve: Callable[[Any], FakeNode],
) -> None:
    dead, alive = serve(None), serve(telling(20))
    one = client(dead, alive)
    for _ in range(3):
        assert one.get_confirmed().irreversible_block == 20
    asked = len(dead.calls)
    assert asked <= 2 and len(alive.calls) == 3
    alone = client(serve(http(b"[]")), serve(None))
    for _ in range(2):
        with pytest.raises(NodeUnavailableError, match="no endpoint answered"):
            alone.get_confirmed()


BLOCK = {"id": "00000009" + "11" * 28, "timestamp": "2026-01-31T12:00:00", "transactions": []}


@pytest.mark.parametrize(
    "block",
    [
        {},
        [],
        {**BLOCK, "id": "00000008" + "11" * 28},
        {**BLOCK, "id": "9"},
        {**BLOCK, "timestamp": "soon"},
        {**BLOCK, "transactions": [{}]},
        {**BLOCK, "transactions": [executed([])]},  # type: ignore[arg-type]
    ],
)
def test_a_block_that_is_none_is_not_believed(block: Any, serve: Callable[[Any], FakeNode]) -> None:
    node = serve(lambda path, _: info(12, 10) if path.endswith("get_info") else block)
    with pytest.raises(IrreversibilityTimeout, match="expected block 9"):
        client(node).wait_irreversible(pushed("a"), timeout_sec=0.2, poll_sec=0.05)


def test_wait_until_is_bounded() -> None:
    answers = [0, "", "now"]
    one = client("http://127.0.0.1:9")
    assert one.wait_until(lambda: answers.pop(0), timeout_sec=10, poll_sec=0) == "now"
    with pytest.raises(IrreversibilityTimeout, match=r"waited 0\.1 s for the moon in vain"):
        one.wait_until(lambda: False, timeout_sec=0.1, poll_sec=0.01, what="the moon")
