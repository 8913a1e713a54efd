"""The payer's HTTP service: one JSON request and one answer per connection, everything bounded."""

from __future__ import annotations

import io
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gradledger.chain.transport import BoundedReader
from gradledger.errors import ConfigError
from gradledger.logs import say
from owner.payer.rules import Cosigner, Refusal, parse_json

__all__ = ["HOST_DEFAULT", "PORT_DEFAULT", "PayerServer"]

log = logging.getLogger("gradledger.payer")

HOST_DEFAULT = "127.0.0.1"
PORT_DEFAULT = 8899
CONNECTIONS_MAX = 64  # at a time, a thread for each
REQUEST_SEC = 10.0  # from the connection to the last byte of the request, and again to answer
HEAD_BYTES_MAX = 8192
DRAIN_BYTES_MAX = 2**20
DRAIN_SEC = 1.0
BODY_BYTES_MAX = 8192  # a transaction of 2,048 bytes in hex, and the rest


class PayerServer(ThreadingHTTPServer):
    """The service of one `Cosigner`.

    Parameters
    ----------
    cosigner : Cosigner
    host, port : str, int
        Port 0 takes a free one; `url` has it.
    request_sec : float
        Bound on reading a request, and on writing its answer.
    connections_max : int
        More are told `busy` at once.

    Attributes
    ----------
    answered : Counter
        Answers since the start: `signed`, `terms`, `signature`, or a refusal's code.

    Raises
    ------
    ConfigError
        It cannot listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        cosigner: Cosigner,
        *,
        host: str = HOST_DEFAULT,
        port: int = PORT_DEFAULT,
        request_sec: float = REQUEST_SEC,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.cosigner = cosigner
        self.request_sec = request_sec
        self.answered: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._slots = threading.BoundedSemaphore(connections_max)
        self.paths: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]] = {
            "/v1/payer/terms": ("terms", cosigner.terms),
            "/v1/payer/cosign": ("signed", cosigner.cosign),
            "/v1/payer/signature": ("signature", cosigner.signature),
        }
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error

    @property
    def url(self) -> str:
        """The address that devices are given."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def server_bind(self) -> None:
        """Bind, without looking the host's name up."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def answer(self, path: str, body: bytes) -> tuple[int, Mapping[str, Any]]:
        """Return status and document for a request; it raises nothing."""
        try:
            if path not in self.paths:
                raise Refusal("unknown_path", f"expected one of {', '.join(self.paths)}")
            name, act = self.paths[path]
            document = act(parse_json(body))
            self.count(name)
            return 200, document
        except Refusal as refusal:
            self.count(refusal.code)
            return refusal.status, refusal.to_dict()
        except Exception as error:
            kind = type(error).__name__
            say(log, logging.ERROR, "fault", error=kind, reason=error, exc_info=error)
            self.count("internal_error")
            return 500, {"code": "internal_error", "message": "see the payer's log"}

    def count(self, name: str) -> None:
        """Note an answer."""
        with self._counting:
            self.answered[name] += 1
        self.cosigner.metrics.answer(name)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or tell it to come back."""
        if self._slots.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread can be had
                self._slots.release()
                self.shutdown_request(request)
            return
        refusal = Refusal("busy", "too many connections: try again")
        self.count(refusal.code)
        try:
            request.settimeout(0.0)  # the answer fits the socket's buffer
            request.send(_render(refusal.status, refusal.to_dict()))
        except OSError:
            pass
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request per connection
    server: PayerServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        end = time.monotonic() + self.server.request_sec
        most = HEAD_BYTES_MAX + BODY_BYTES_MAX
        self.rfile = io.BufferedReader(BoundedReader(self.connection, end, bytes_max=most))

    def handle_one_request(self) -> None:
        self._unread = True
        try:
            self.raw_requestline = self.rfile.readline(HEAD_BYTES_MAX + 1)
            if self.raw_requestline and self.parse_request():
                self._serve()
        except TimeoutError:
            self._refuse(Refusal("too_slow", f"expected all within {self.server.request_sec:g} s"))
        except Refusal as refusal:
            self._refuse(refusal)

    def _serve(self) -> None:
        if self.command != "POST":
            raise Refusal("wrong_method", "expected POST")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 9:
            raise Refusal("length_required", "expected a Content-Length")
        if int(length) > BODY_BYTES_MAX:
            raise Refusal("too_large", f"expected at most {BODY_BYTES_MAX} bytes, got {length}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refusal("bad_request", f"expected {length} bytes, got {len(body)}")
        self._unread = False
        self._write(*self.server.answer(self.path, body))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no HTTP; called by the base class."""
        self._refuse(Refusal("bad_request", "expected an HTTP request"))

    def _refuse(self, refusal: Refusal) -> None:
        self.server.count(refusal.code)
        self._write(refusal.status, refusal.to_dict())

    def _write(self, status: int, document: Mapping[str, Any]) -> None:
        self.close_connection = True
        try:
            self.connection.settimeout(self.server.request_sec)
            self.connection.sendall(_render(status, document))
            self.connection.shutdown(socket.SHUT_WR)
            if self._unread:
                self._drain()
        except OSError:
            pass

    def _drain(self) -> None:
        """Read what still comes, within bounds: a close before that would lose the answer."""
        end, left = time.monotonic() + DRAIN_SEC, DRAIN_BYTES_MAX
        while left > 0 and (wait := end - time.monotonic()) > 0:
            self.connection.settimeout(wait)
            got = len(self.connection.recv(min(left, 65_536)))
            if not got:
                return
            left -= got

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing here: the rules log what they sign."""


def _render(status: int, document: Mapping[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
