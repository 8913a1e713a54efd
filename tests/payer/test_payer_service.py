"""The payer's HTTP service: its answers, and what it does with callers that misbehave."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from payer_world import World, raw_exchange

from gradledger.errors import ConfigError
from owner.payer.service import BODY_BYTES_MAX, HEAD_BYTES_MAX, PayerServer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def server(world: World) -> Iterator[PayerServer]:
    with world.served() as running:
        yield running


def post(path: str, body: bytes, *, length: object = None, method: str = "POST") -> bytes:
    """Return a request's bytes."""
    size = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def parsed(answer: bytes) -> tuple[int, Any]:
    """Return status and document of an answer, which must be whole."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0].startswith("HTTP/1.0 "), answer
    assert f"Content-Length: {len(body)}" in lines
    return int(lines[0].split()[1]), json.loads(body)


def ask(server: PayerServer, path: str, document: Any) -> tuple[int, Any]:
    return parsed(raw_exchange(server, post(path, json.dumps(document).encode())))


def test_a_signature_over_http(world: World, server: PayerServer) -> None:
    status, terms = ask(server, "/v1/payer/terms", {})
    assert status == 200 and terms["account"] == "payer"
    request = world.good()
    status, given = ask(server, "/v1/payer/cosign", request)
    assert status == 200 and set(given) == {"transaction_id", "signature"}
    status, refusal = ask(server, "/v1/payer/cosign", request)
    assert status == 409 and refusal["code"] == "replay" and set(refusal) == {"code", "message"}
    query = {"transaction_id": given["transaction_id"]}
    assert ask(server, "/v1/payer/signature", query) == (200, given)
    assert server.answered == {"terms": 1, "signed": 1, "replay": 1, "signature": 1}


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (post("/", b"{}"), 404, "unknown_path"),
        (post("/v1/payer/cosign/", b"{}"), 404, "unknown_path"),
        (post("/v1/payer/terms", b"", method="GET"), 405, "wrong_method"),
        (post("/v1/payer/terms", b"", method="PUT"), 405, "wrong_method"),
        (b"POST /v1/payer/terms HTTP/1.1\r\n\r\n{}", 411, "length_required"),
        (post("/v1/payer/terms", b"{}", length=-1), 411, "length_required"),
        (post("/v1/payer/terms", b"{}", length="1e3"), 411, "length_required"),
        (post("/v1/payer/terms", b"{}", length="²"), 411, "length_required"),
        (post("/v1/payer/terms", b"{}", length=9**9 * 10), 411, "length_required"),
        (post("/v1/payer/terms", b"{}", length=BODY_BYTES_MAX + 1), 413, "too_large"),
        (post("/v1/payer/terms", b"{}", length=3), 400, "bad_request"),
        (post("/v1/payer/terms", b""), 400, "bad_request"),
        (post("/v1/payer/terms", b"{"), 400, "bad_request"),
        (post("/v1/payer/terms", b"[]"), 400, "bad_request"),
        (post("/v1/payer/terms", b"\xff\xfe"), 400, "bad_request"),
        (post("/v1/payer/terms", b"[" * BODY_BYTES_MAX), 400, "bad_request"),
        (post("/v1/payer/terms", b"1" * BODY_BYTES_MAX), 400, "bad_request"),
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"POST /v1/payer/terms HTTP/7.0\r\n\r\n", 400, "bad_request"),
        (b"POST /" + b"x" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 400, "bad_request"),
        (os.urandom(200) + b"\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_no_request_gets_a_reason(
    server: PayerServer, data: bytes, status: int, code: str
) -> None:
    got = parsed(raw_exchange(server, data))
    assert (got[0], got[1]["code"]) == (status, code)
    assert server.answered == {code: 1}


def test_the_largest_body_is_read(server: PayerServer) -> None:
    body = b"{}" + b" " * (BODY_BYTES_MAX - 2)
    assert parsed(raw_exchange(server, post("/v1/payer/terms", body)))[0] == 200


def test_an_oversized_body_still_gets_its_answer(server: PayerServer) -> None:
    body = b"x" * 500_000
    status, refusal = parsed(raw_exchange(server, post("/v1/payer/cosign", body)))
    assert (status, refusal["code"]) == (413, "too_large")
    assert "expected at most 8192 bytes, got 500000" in refusal["message"]


def connect(server: PayerServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=10)


def test_slow_callers_are_cut_off_and_others_served_meanwhile(world: World) -> None:
    with world.served(request_sec=1.5) as server:
        head = post("/v1/payer/terms", b"", length=100)
        slow = [connect(server) for _ in range(20)]
        try:
            begun = time.monotonic()
            for number, sock in enumerate(slow):
                sock.sendall(head[: 5 * number] if number < 10 else head + b"{")
            assert ask(server, "/v1/payer/cosign", world.good())[0] == 200
            while time.monotonic() - begun < 1.2:  # one byte now and then does not help
                for sock in slow[10:]:
                    sock.sendall(b" ")
                time.sleep(0.2)
            for sock in slow:
                status, refusal = parsed(b"".join(iter(lambda s=sock: s.recv(4096), b"")))
                assert (status, refusal["code"]) == (408, "too_slow")
        finally:
            for sock in slow:
                sock.close()
        assert server.answered["too_slow"] == 20


def test_more_connections_than_it_has_places_are_told_to_come_back(world: World) -> None:
    with world.served(connections_max=4, request_sec=5.0) as server:
        held = [connect(server) for _ in range(4)]
        try:
            until = time.monotonic() + 5
            while server._slots._value and time.monotonic() < until:  # type: ignore[attr-defined]
                time.sleep(0.01)
            threads = threading.active_count()
            for _ in range(50):
                status, refusal = parsed(raw_exchange(server, b"", half_close=False))
                assert (status, refusal["code"]) == (503, "busy")
            assert threading.active_count() <= threads
        finally:
            for sock in held:
                sock.close()
        until = time.monotonic() + 5
        while not server._slots._value and time.monotonic() < until:  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert ask(server, "/v1/payer/terms", {})[0] == 200


def test_callers_at_once_share_the_limits(tmp_path: Path) -> None:
    world = World(tmp_path, per_device_hour=5)
    requests = [world.request(world.transaction(world.join(classes=n + 1))) for n in range(40)]
    statuses: list[int] = []
    with world.served() as server:

        def run(mine: list[dict[str, str]]) -> None:
            statuses.extend(ask(server, "/v1/payer/cosign", request)[0] for request in mine)

        threads = [threading.Thread(target=run, args=(requests[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200] * 5 + [429] * 35
    assert len(world.record.newest(100)) == 5
    world.record.close()


def test_the_same_transaction_at_once_is_signed_once(world: World, server: PayerServer) -> None:
    request = world.good()
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: statuses.append(ask(server, "/v1/payer/cosign", request)[0])
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [409] * 7


def test_a_fault_of_its_own_is_logged_and_told_to_nobody(
    world: World, server: PayerServer, caplog: pytest.LogCaptureFixture
) -> None:
    request = world.good()
    del world.view.keys
    status, answer = ask(server, "/v1/payer/cosign", request)
    assert (status, answer["code"]) == (500, "internal_error")
    assert "keys" not in answer["message"] and "AttributeError" in caplog.text
    assert ask(server, "/v1/payer/terms", {})[0] == 200


def test_what_is_signed_is_logged_without_secrets(
    world: World, server: PayerServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        _, given = ask(server, "/v1/payer/cosign", world.good())
    said = "event=signed task=digits sender=phone1 action=fedlearning"
    assert f"{said} transaction={given['transaction_id']}" in caplog.text
    assert world.key.to_string() not in caplog.text and given["signature"] not in caplog.text


def test_a_port_that_is_taken_is_said(world: World, server: PayerServer) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{server.server_port}"):
        PayerServer(world.cosigner, port=server.server_port)
    with pytest.raises(ConfigError, match=r"cannot listen on 127.0.0.1:65536"):
        PayerServer(world.cosigner, port=65_536)
