"""A node that cannot be trusted: a proxy before a real one, which misbehaves when it is told to."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HONEST, NONSENSE, HANG, LIE = "honest", "nonsense", "hang", "lie"
HANG_SEC = 30.0
_BODY_BYTES_MAX = 1 << 20


class Proxy(ThreadingHTTPServer):
    """Serves on a loopback port of its own.

    Parameters
    ----------
    node : str
        ``http://host:port`` of the real node.

    Attributes
    ----------
    mode : str
        `HONEST`; `NONSENSE`: answers that are none; `HANG`: no answer; `LIE`: the newest block is
        called irreversible.
    """

    daemon_threads = True

    def __init__(self, node: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.node = urlsplit(node)
        self.mode = HONEST
        self.misled = 0  # answers that were not the node's
        self.nonsense = itertools.cycle(
            [b"", b"<html>502</html>", b"[]", b"null", b'{"rows": 5}', os.urandom(64)]
        )
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients are killed while they are served."""

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = min(int(self.headers.get("Content-Length") or 0), _BODY_BYTES_MAX)
        body = self.rfile.read(length)
        mode = self.server.mode
        if mode != HONEST:
            self.server.misled += 1
        if mode == HANG:
            until = time.monotonic() + HANG_SEC
            while time.monotonic() < until and self.server.mode == HANG:
                time.sleep(0.1)
            self.close_connection = True
            return
        if mode == NONSENSE:
            self._answer(200, next(self.server.nonsense))
            return
        try:
            status, answer = self._ask(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # the node is away, and so is its proxy
            return
        if mode == LIE and self.path.endswith("/get_info") and status == 200:
            document = json.loads(answer)
            document["last_irreversible_block_num"] = document["head_block_num"]
            document["last_irreversible_block_id"] = document["head_block_id"]
            answer = json.dumps(document).encode()
        self._answer(status, answer)

    def _ask(self, body: bytes) -> tuple[int, bytes]:
        node = self.server.node
        connection = http.client.HTTPConnection(node.hostname or "", node.port, timeout=15)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
