"""The store against servers that hang, lie, talk too much or too little, and a real Kubo."""

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time

import pytest

from gradledger import store as store_module
from gradledger.cid import cid_to_digest, cid_v0
from gradledger.errors import (
    BlobCorruptError,
    BlobMissingError,
    BlobTooLargeError,
    ConfigError,
    StoreError,
    StoreUnavailableError,
)
from gradledger.store import CALLS_MAX, Store

DATA = hashlib.shake_128(b"store").digest(5000)
CID = cid_v0(DATA)


def http(body, *, status="200 OK", length=None, headers=""):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body


def error(message, status="500 Internal Server Error"):
    body = json.dumps({"Message": message, "Code": 0, "Type": "error"}).encode()
    return http(body, status=status)


class Fake:
    """A server that answers each request with a scripted function of its connection."""

    def __init__(self, script):
        self._script = script
        self.requests = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self.over.is_set():
                connection.close()
                return
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            head, _, body = request.partition(b"\r\n\r\n")
            if b"chunked" in head:
                while not body.endswith(b"0\r\n\r\n"):
                    body += connection.recv(65_536)
            self.requests.append((head, body))
            self._script(connection, self.over)

    def close(self):
        self.over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._socket.close()
        for thread in self._threads:
            thread.join(15)


@pytest.fixture
def fake():
    servers = []

    def start(script, **options):
        if isinstance(script, bytes):
            answer = script
            script = lambda connection, over: connection.sendall(answer)  # noqa: E731
        server = Fake(script)
        servers.append(server)
        store = Store(f"http://127.0.0.1:{server.port}", **{"timeout_sec": 5, **options})
        store.server = server
        return store

    yield start
    for server in servers:
        server.close()


# ---- good answers ---------------------------------------------------------------------------


def test_get_verifies_and_returns(fake):
    assert fake(http(DATA)).get(CID) == DATA


def test_chunked_answers_are_read(fake):
    body = b"".join(
        b"%x\r\n%s\r\n" % (len(DATA[start : start + 999]), DATA[start : start + 999])
        for start in range(0, len(DATA), 999)
    )
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert fake(head + body + b"0\r\n\r\n").get(CID) == DATA


def test_requests_say_everything_explicitly(fake):
    store = fake(http(DATA))
    store.get(CID)
    head = store.server.requests[0][0].decode()
    assert head.startswith("POST /api/v0/cat?")
    assert f"arg={CID}" in head
    assert "timeout=" in head
    store = fake(http(json.dumps({"Name": CID, "Hash": CID, "Size": "5000"}).encode()))
    assert store.put(DATA) == CID
    head, body = store.server.requests[0]
    line = head.decode().splitlines()[0]
    for option in ("cid-version=0", "chunker=size-262144", "raw-leaves=false", "pin=true"):
        assert option in line
    assert DATA in body


def test_a_proxy_of_the_environment_is_not_asked(fake, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fake(http(DATA)).get(CID) == DATA


# ---- nobody, nothing, too late --------------------------------------------------------------


def each_call(store):
    return [
        lambda: store.get(CID),
        lambda: store.put(DATA),
        lambda: store.pin(CID),
        lambda: store.unpin(CID),
        store.version,
    ]


def test_a_dead_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for call in each_call(Store(f"/ip4/127.0.0.1/tcp/{port}")):
        with pytest.raises(StoreUnavailableError, match="no proper answer from"):
            call()


def test_a_server_that_hangs(fake):
    store = fake(lambda connection, over: over.wait(20), timeout_sec=0.3)
    for call in each_call(store):
        with pytest.raises(StoreUnavailableError, match=r"within 0\.3 s$"):
            call()


def test_a_server_that_does_not_even_read():
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        store = Store(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_sec=0.3)
        for call in (lambda: store.get(CID), lambda: store.put(bytes(2**24))):
            with pytest.raises(StoreUnavailableError, match=r"within 0\.3 s$"):
                call()


def drip(connection, over):
    """Send a byte now and then, so that no single wait is long."""
    connection.sendall(http(b"", length=len(DATA)))
    for byte in DATA:
        if over.wait(0.05):
            return
        connection.sendall(bytes([byte]))


def drip_head(connection, over):
    for byte in http(DATA, headers="X-Long: " + "x" * 5000 + "\r\n"):
        if over.wait(0.05):
            return
        connection.sendall(bytes([byte]))


@pytest.mark.parametrize("script", [drip, drip_head])
def test_a_server_that_drips_is_left_at_the_deadline(fake, script):
    store = fake(script, timeout_sec=0.5)
    with pytest.raises(StoreUnavailableError, match=r"within 0\.5 s$"):
        store.get(CID)


def test_patience_is_for_silence_and_for_content_behind_the_pace(fake, monkeypatch):
    with pytest.raises(StoreUnavailableError, match=r"no answer from .* within 0\.3 s$"):
        fake(lambda connection, over: over.wait(20), timeout_sec=20).get(CID, patience_sec=0.3)

    def steady(connection, over):
        connection.sendall(http(b"", length=len(DATA)))
        for start in range(0, len(DATA), 1000):
            over.wait(0.3)
            connection.sendall(DATA[start : start + 1000])

    store = fake(steady)
    with pytest.raises(StoreUnavailableError, match=r"more than 1 s behind \d+ bytes a second$"):
        store.get(CID, patience_sec=1)
    monkeypatch.setattr(store_module, "PACE_BYTES_PER_SEC", 100)
    assert store.get(CID, patience_sec=1) == DATA


def test_calls_left_behind_are_bounded(fake):
    store = fake(lambda connection, over: over.wait(20), timeout_sec=0.2)
    for _ in range(CALLS_MAX):
        assert store._slots.acquire(blocking=False)
    with pytest.raises(StoreUnavailableError, match=f"{CALLS_MAX} calls to .* are under way"):
        store.get(CID)
    store._slots.release()
    with pytest.raises(StoreUnavailableError, match="no answer from"):
        store.get(CID)


# ---- answers that are no answers ------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnonsense",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        http(DATA[:100], length=5000),
        http(b"", status="404 Not Found"),
        http(b"<html>", status="500 Internal Server Error"),
        http(b"[]", status="500 Internal Server Error"),
        http(b"[" * 50_000, status="500 Internal Server Error"),
        http(b"x" * 100_000, status="500 Internal Server Error"),
        http(b"", status="302 Found", headers="Location: http://127.0.0.1:9/\r\n"),
        error("out of disk"),
    ],
    ids=range(15),
)
def test_garbage(fake, answer):
    for call in each_call(fake(answer, timeout_sec=2)):
        with pytest.raises(StoreError) as caught:
            call()
        assert type(caught.value) in (StoreUnavailableError, BlobCorruptError)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"nonsense", b"5", b"[" * 60_000])
def test_a_strange_answer(fake, body):
    for call in each_call(fake(http(body)))[1:]:
        with pytest.raises(StoreUnavailableError, match=r"^expected a JSON answer with "):
            call()


@pytest.mark.parametrize("value", [None, 5, [], ["Qm"], [CID, CID], {"a": 1}])
def test_a_strange_value(fake, value):
    answer = http(json.dumps(dict.fromkeys(("Hash", "Pins", "Version"), value)).encode())
    for call in each_call(fake(answer))[1:]:
        with pytest.raises((StoreUnavailableError, BlobCorruptError)):
            call()


def test_an_answer_that_is_too_long_for_its_call(fake):
    for call in each_call(fake(http(b" " * 70_000), timeout_sec=5))[1:]:
        with pytest.raises(StoreUnavailableError, match="expected at most 65536 bytes"):
            call()


# ---- content --------------------------------------------------------------------------------


def test_content_that_is_not_the_cids(fake):
    for wrong in (DATA[:-1], DATA + b"\0", b"", DATA[:-1] + b"\0"):
        with pytest.raises(BlobCorruptError, match=f"^{CID}: the {len(wrong)} bytes that came"):
            fake(http(wrong)).get(CID)


def test_the_bound_on_content(fake):
    assert fake(http(DATA), bytes_max=5000).get(CID) == DATA
    assert fake(http(DATA)).get(CID, bytes_max=5000) == DATA
    for store, bound in ((fake(http(DATA), bytes_max=4999), None), (fake(http(DATA)), 4999)):
        with pytest.raises(BlobTooLargeError, match="expected at most 4999 bytes, more came"):
            store.get(CID, bytes_max=bound)
    with pytest.raises(BlobTooLargeError, match="4999 bytes to store, got 5000"):
        fake(http(b""), bytes_max=4999).put(DATA)


def test_endless_content_is_cut_at_the_bound(fake):
    sent = []

    def endless(connection, over):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not over.is_set():
            sent.append(connection.send(bytes(65_536)))

    with pytest.raises(BlobTooLargeError):
        fake(endless).get(CID, bytes_max=2**20)
    assert sum(sent) < 2**26


def test_a_node_that_stores_something_else(fake):
    other = cid_v0(b"other")
    answer = http(json.dumps({"Hash": other}).encode())
    with pytest.raises(BlobCorruptError, match=f"expected the node to store {CID}, it stored"):
        fake(answer).put(DATA)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("block was not found locally (offline): ipld: could not find Qm", BlobMissingError),
        ("merkledag: not found", BlobMissingError),
        ("context deadline exceeded", BlobMissingError),
        ("not pinned or pinned indirectly", BlobMissingError),
        ("block in storage has different hash than requested: Qm", BlobCorruptError),
        ("this dag node is a directory", StoreUnavailableError),
    ],
)
def test_what_kubo_says(fake, message, kind):
    store = fake(error(message))
    for call in (store.get, store.pin, store.unpin):
        with pytest.raises(StoreError) as caught:
            call(CID)
        assert type(caught.value) is kind
        assert message in str(caught.value)
        assert CID in str(caught.value)


def test_an_error_while_adding_is_about_the_node(fake):
    with pytest.raises(StoreUnavailableError):
        fake(error("not found")).put(DATA)


@pytest.mark.parametrize("cid", ["", "Qm", CID + "1", "../../etc/passwd", CID[:-1] + "0", None])
def test_no_request_for_what_is_no_cid(cid):
    store = Store("/ip4/127.0.0.1/tcp/9")
    for call in (store.get, store.pin, store.unpin):
        with pytest.raises(ConfigError):
            call(cid)


# ---- addresses and bounds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "multiaddr"),
    [
        ("/ip4/127.0.0.1/tcp/5001", "/ip4/127.0.0.1/tcp/5001"),
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://127.0.0.1:5001/", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://[::1]:5001", "/ip6/::1/tcp/5001/http"),
        ("http://kubo.example", "/dns/kubo.example/tcp/80/http"),
        ("https://kubo.example", "/dns/kubo.example/tcp/443/https"),
    ],
)
def test_addresses(address, multiaddr):
    assert Store(address).address == multiaddr
    assert repr(Store(address)) == f"Store({multiaddr!r})"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:5001",
        "ftp://127.0.0.1",
        "http://",
        "http://h:99999",
        "http://h/path",
        "http://user:secret@h",
        None,
    ],
)
def test_addresses_that_are_refused(address):
    with pytest.raises(ConfigError, match="store address"):
        Store(address)


def test_a_multiaddr_that_cannot_be_read():
    for address in ("/nonsense", "/ip4/127.0.0.1", "/ip4/1.2.3/tcp/5"):
        with pytest.raises(ConfigError, match="no store address"):
            Store(address).version()


def test_bounds_must_be_positive():
    for options in ({"timeout_sec": 0}, {"timeout_sec": float("nan")}, {"bytes_max": 0}):
        with pytest.raises(ConfigError):
            Store(**options)


# ---- a real Kubo ----------------------------------------------------------------------------


def block_file(kubo, digest):
    key = base64.b32encode(b"\x12\x20" + digest).decode().rstrip("=")
    return kubo.repo / "blocks" / key[-3:-1] / f"{key}.data"


@pytest.mark.parametrize("size", [0, 1, 5000, 262_145, 3_000_000])
def test_kubo_round_trip(kubo, size):
    store = Store(kubo.address)
    data = hashlib.shake_128(b"round trip").digest(size)
    cid = store.put(data)
    assert cid == cid_v0(data)
    assert store.get(cid) == data
    if size:
        with pytest.raises(BlobTooLargeError):
            store.get(cid, bytes_max=size - 1)


def test_kubo_pins(kubo):
    store = Store(f"http://127.0.0.1:{kubo.port}")
    cid = store.put(b"pinned")
    store.pin(cid)
    store.unpin(cid)
    with pytest.raises(BlobMissingError, match="not pinned"):
        store.unpin(cid)
    assert store.get(cid) == b"pinned"


def test_kubo_has_no_such_block(kubo):
    store = Store(kubo.address)
    cid = cid_v0(b"never added")
    for call in (store.get, store.pin):
        started = time.monotonic()
        with pytest.raises(BlobMissingError, match="could not find"):
            call(cid)
        assert time.monotonic() - started < store.timeout_sec


def test_kubo_with_a_damaged_block(kubo):
    store = Store(kubo.address)
    cid = store.put(b"about to be damaged")
    path = block_file(kubo, cid_to_digest(cid))
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole.replace(b"about", b"abouT"))
    with pytest.raises(BlobCorruptError):
        store.get(cid)


def test_kubo_serves_threads(kubo):
    store = Store(kubo.address)
    results = {}

    def work(number):
        data = hashlib.shake_128(bytes([number])).digest(200_000)
        results[number] = store.get(store.put(data)) == data

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(8), True)
