"""The load: a process of its own that posts what was made before and notes when answers came.

``python -m bench.chain_client FILE OUT --ports 8888 --path /v1/chain/send_transaction2`` reads
bodies (each after its length, four bytes, little endian), keeps one request in flight on each
keep-alive connection, and looks into an answer no further than its length. It writes, for each
request, when it left and when its answer was complete (CLOCK_MONOTONIC, 64-bit floats; zero: it was
not sent any more) and the HTTP status; some answers, and the first refusals, are kept whole.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ANSWER_BYTES_MAX = 64 * 2**20
REFUSALS_MAX = 5
ANSWER_SEC_MAX = 30.0
_END = b"\r\n\r\n"
_LENGTH = b"content-length: "


class Connection:
    """A keep-alive connection and what is in flight on it."""

    __slots__ = ("answer", "head", "keeps", "missing", "request", "socket")

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SEC_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: ".encode()
        self.answer = b""
        self.missing = 0  # bytes of the answer's body that have not come
        self.request = -1
        self.keeps = False

    def send(self, number: int, body: memoryview, *, keeps: bool) -> None:
        self.request, self.keeps, self.answer, self.missing = number, keeps, b"", 0
        self.socket.sendall(b"".join((self.head, b"%d" % len(body), _END, body)))

    def receive(self) -> int:
        """Take what has come; return the status once the answer is complete, 0 before."""
        piece = self.socket.recv(262_144)
        if not piece:
            raise SystemExit("the node closed a connection")
        if self.missing:  # the head is there
            self.missing -= len(piece)
            if self.keeps:
                self.answer += piece
        else:
            self.answer += piece
            end = self.answer.find(_END)
            if end < 0:
                return 0
            head = self.answer[:end].lower()
            at = head.find(_LENGTH)
            if at < 0:
                raise SystemExit(f"expected an answer with its length, got {head[:200]!r}")
            length = int(head[at + len(_LENGTH) :].partition(b"\r")[0])
            if length > ANSWER_BYTES_MAX:
                raise SystemExit(f"an answer of {length} bytes")
            self.missing = end + len(_END) + length - len(self.answer)
            self.keeps = self.keeps or head[9:10] != b"2"
        return 0 if self.missing else int(self.answer[9:12])


def bodies(path: Path) -> list[memoryview]:
    """Return the bodies of a file."""
    data = memoryview(path.read_bytes())
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def write_bodies(path: Path, made: Iterator[bytes]) -> None:
    """Write what `bodies` reads."""
    with path.open("ab") as file:
        for body in made:
            file.write(struct.pack("<I", len(body)) + body)


def run(
    requests: Sequence[memoryview],
    ports: Sequence[int],
    *,
    path: str,
    connections: int,
    seconds: float,
    keep_every: int,
) -> tuple[array[float], array[float], array[int], dict[str, Any]]:
    """Send the requests for `seconds`, or until there are no more.

    Returns
    -------
    sent, answered : array of float, one per request
    statuses : array of int
    rest : dict
        ``cpu_s`` of this process, ``kept``: request and body of each answer that was kept.
    """
    count = len(requests)
    sent, answered = array("d", bytes(8 * count)), array("d", bytes(8 * count))
    statuses = array("H", bytes(2 * count))
    open_ones = [Connection(ports[i % len(ports)], path) for i in range(connections)]
    poll = select.epoll()
    by_handle = {one.socket.fileno(): one for one in open_ones}
    kept: list[tuple[int, str]] = []
    refusals, following, flying = 0, 0, 0
    clock = time.monotonic
    cpu = time.process_time()
    end = clock() + seconds
    for handle, one in by_handle.items():
        if following < count:
            poll.register(handle, select.EPOLLIN)
            sent[following] = clock()
            one.send(following, requests[following], keeps=following % keep_every == 0)
            following, flying = following + 1, flying + 1
    while flying:
        events = poll.poll(ANSWER_SEC_MAX)
        if not events:
            raise SystemExit(f"no answer within {ANSWER_SEC_MAX:g} s")
        for handle, _ in events:
            one = by_handle[handle]
            status = one.receive()
            if not status:
                continue
            now = clock()
            answered[one.request], statuses[one.request] = now, status
            refused = status not in (200, 202)
            refusals += refused
            if one.keeps and (not refused or refusals <= REFUSALS_MAX):
                body = one.answer[one.answer.index(_END) + len(_END) :]
                kept.append((one.request, body.decode("utf-8", "replace")))
            if following < count and now < end:
                sent[following] = clock()
                one.send(following, requests[following], keeps=following % keep_every == 0)
                following += 1
            else:
                flying -= 1
    rest = {"cpu_s": time.process_time() - cpu, "kept": kept}
    for one in open_ones:
        one.socket.close()
    return sent, answered, statuses, rest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.chain_client", description="Send a load.")
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path, help="prefix of what is written")
    parser.add_argument("--ports", required=True, help="of the nodes, separated by commas")
    parser.add_argument("--path", required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--keep-every", type=int, default=11)
    options = parser.parse_args(argv)
    sent, answered, statuses, rest = run(
        bodies(options.requests),
        [int(port) for port in options.ports.split(",")],
        path=options.path,
        connections=options.connections,
        seconds=options.seconds,
        keep_every=options.keep_every,
    )
    with options.out.with_suffix(".times").open("wb") as file:
        for column in (sent, answered, statuses):
            column.tofile(file)
    options.out.with_suffix(".json").write_text(json.dumps(rest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
