"""One POST over HTTP/1.1, bounded as a whole: a slow or endless answer cannot hold its caller."""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from gradledger.errors import NodeAnswerError, NodeUnavailableError

_PIECE_BYTES = 65_536


class BoundedReader(io.RawIOBase):
    """Read from a socket until a moment, however slowly the bytes come.

    Parameters
    ----------
    sock : socket
    end : float
        Of `time.monotonic`; reading raises TimeoutError after it.
    bytes_max : int, optional
        After so many bytes the end of the stream is reported.
    """

    def __init__(self, sock: socket.socket, end: float, *, bytes_max: int | None = None) -> None:
        self._sock, self._end, self._left = sock, end, bytes_max

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        if self._left is None:
            return self._sock.recv_into(buffer)
        if not self._left:
            return 0
        got = self._sock.recv_into(buffer, min(len(buffer), self._left))
        self._left -= got
        return got


class _BoundedResponse(http.client.HTTPResponse):
    """An answer that is read through a `BoundedReader`, its head included."""

    def __init__(self, sock: socket.socket, *, end: float, method: str | None = None) -> None:
        super().__init__(sock, method=method)
        self.holder = self.fp  # keeps the socket open where the node asks to close it
        self.fp = io.BufferedReader(BoundedReader(sock, end))

    def close(self) -> None:
        super().close()
        self.holder.close()


class _Connections(dict[str, http.client.HTTPConnection]):
    """Open connections by endpoint; they are closed with the thread or client that had them."""

    def __del__(self) -> None:
        for connection in self.values():
            connection.close()


class Transport:
    """Connections that are kept open, one per thread and endpoint.

    Parameters
    ----------
    connect_sec, answer_sec : float
        Bounds for a connection and for a whole answer.
    """

    def __init__(self, *, connect_sec: float, answer_sec: float) -> None:
        self.connect_sec, self.answer_sec = connect_sec, answer_sec
        self._local = threading.local()

    def post(
        self, endpoint: str, path: str, payload: bytes, *, answer_bytes_max: int
    ) -> tuple[int, bytes]:
        """Return status and body.

        Raises
        ------
        NodeUnavailableError
            No whole answer in time.
        NodeAnswerError
            It is longer than `answer_bytes_max`.
        """
        kept = self._kept()
        while True:
            reused = endpoint in kept
            connection = kept.pop(endpoint) if reused else self._new(endpoint)
            done = False
            try:
                status, body, done = self._exchange(connection, path, payload, answer_bytes_max)
                break
            except (ConnectionError, http.client.RemoteDisconnected) as error:
                if not reused:  # else the node closed it while it was idle: connect again
                    raise NodeUnavailableError(type(error).__name__) from error
            except TimeoutError as error:
                raise NodeUnavailableError("no whole answer in time") from error
            except (OSError, http.client.HTTPException) as error:
                raise NodeUnavailableError(type(error).__name__) from error
            finally:
                if not done:
                    connection.close()
        if done:
            kept[endpoint] = connection
        return status, body

    def _kept(self) -> _Connections:
        if getattr(self._local, "process", None) != os.getpid():  # a fork shares no connection
            self._local.process, self._local.connections = os.getpid(), _Connections()
        connections: _Connections = self._local.connections
        return connections

    def _new(self, endpoint: str) -> http.client.HTTPConnection:
        parts = urlsplit(endpoint)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.connect_sec)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        payload: bytes,
        answer_bytes_max: int,
    ) -> tuple[int, bytes, bool]:
        """Return status, body, and whether the connection can be used again."""
        if connection.sock is None:
            connection.connect()
        end = time.monotonic() + self.answer_sec
        connection.sock.settimeout(self.answer_sec)
        connection.response_class = partial(_BoundedResponse, end=end)  # type: ignore[assignment]
        connection.request("POST", path, payload, {"Content-Type": "application/json"})
        response: Any = connection.getresponse()
        try:
            body = bytearray()
            while piece := response.read(_PIECE_BYTES):
                body += piece
                if len(body) > answer_bytes_max:
                    raise NodeAnswerError(f"an answer of over {answer_bytes_max} bytes")
            if response.length:  # the node hung up before the end that it announced
                raise NodeUnavailableError("half an answer")
            return response.status, bytes(body), not response.will_close
        finally:
            response.close()
