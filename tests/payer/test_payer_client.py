"""The device's side of the payer: nothing happens twice, whatever gets lost or is answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from payer_world import CHAIN_ID, NOW, World

from device_sdk import Device
from gradledger.chain.client import ChainInfo, Timeout
from gradledger.chain.keys import PrivateKey, recover_key
from gradledger.chain.payer import Payer, PayerTerms
from gradledger.chain.transaction import Transaction
from gradledger.errors import (
    ConfigError,
    ContractError,
    NodeUnavailableError,
    PayerRefusedError,
    PayerUnavailableError,
    TransactionExpiredError,
)
from owner.payer import service
from owner.payer.rules import Limits
from owner.payer.service import PayerServer


class Chain:
    """A node that takes what it is sent, or fails first."""

    def __init__(self, chain_id: str = CHAIN_ID) -> None:
        self.chain_id, self.time = chain_id, NOW
        self.sent: list[dict[str, Any]] = []
        self.faults: list[Exception] = []

    def get_confirmed(self) -> ChainInfo:
        return ChainInfo(self.chain_id, "", 12, self.time, 10, f"{10:08x}" + "ab" * 28, "")

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(body)
        if self.faults:
            raise self.faults.pop(0)
        return {"receipt": {"cpu_usage_us": 300, "net_usage_words": 40}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradledger.chain.payer.PAUSE_SEC", 0.01)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


@pytest.fixture
def server(world: World) -> Iterator[PayerServer]:
    with world.served() as running:
        yield running


def push(payer: Payer, chain: Chain, world: World, action: Any = None) -> Any:
    act = world.upload() if action is None else action
    return payer.push(chain, act, world.view.keys["phone1"])  # type: ignore[arg-type]


def test_what_is_sent_is_what_was_asked_with_both_signatures(
    world: World, server: PayerServer
) -> None:
    chain, act = Chain(), world.upload()
    result = push(Payer(server.url), chain, world, act)
    (body,) = chain.sent
    transaction = Transaction.unpack(bytes.fromhex(body["packed_trx"]))
    assert (result.trx_id, result.first_block) == (transaction.id, 11)
    assert (result.cpu_us, result.net_bytes, result.body) == (300, 320, body)
    (sent,) = transaction.actions
    assert (sent.account, sent.name, sent.data) == (act.account, act.name, act.data)
    assert sent.authorization == (("payer", "cosign"), ("phone1", "active"))
    assert (transaction.cpu_ms_max, transaction.net_words_max) == (50, 128)
    assert transaction.expiration == result.expiration == NOW + 60
    digest = transaction.signing_digest(CHAIN_ID)
    signers = [recover_key(digest, signature) for signature in body["signatures"]]
    assert signers == [world.key.public, world.view.keys["phone1"].public]


def test_a_lost_answer_of_the_service_is_fetched_again(
    world: World, server: PayerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    render, lost = service._render, []

    def lose(status: int, document: Any) -> bytes:
        if "signature" in document and not lost:
            lost.append(document)
            raise OSError("the line is cut")
        return render(status, document)

    monkeypatch.setattr(service, "_render", lose)
    chain = Chain()
    result = push(Payer(server.url), chain, world)
    assert [one.trx_id for one in world.record.newest(10)] == [result.trx_id]
    assert server.answered == {"terms": 1, "signed": 1, "replay": 1, "signature": 1}
    assert lost[0] == {"transaction_id": result.trx_id, "signature": result.body["signatures"][0]}


def test_the_same_transaction_is_sent_again_as_long_as_it_may_happen(
    world: World, server: PayerServer
) -> None:
    chain, payer, act = Chain(), Payer(server.url), world.upload()
    chain.faults = [NodeUnavailableError("no endpoint answered")]
    with pytest.raises(NodeUnavailableError):
        push(payer, chain, world, act)
    chain.time += 54
    again = push(payer, chain, world, act)
    assert chain.sent[0] == chain.sent[1] == again.body
    assert len(world.record.newest(10)) == 1
    chain.time += 1  # too near its end: a new one
    world.view.time = chain.time
    later = push(payer, chain, world, act)
    assert later.trx_id != again.trx_id and later.expiration == chain.time + 60
    assert len(world.record.newest(10)) == 2


@pytest.mark.parametrize(
    "fault", [ContractError("second_upload", "no"), TransactionExpiredError("late")]
)
def test_what_the_chain_refused_is_not_sent_again(
    world: World, server: PayerServer, fault: Exception
) -> None:
    chain, payer, act = Chain(), Payer(server.url), world.upload()
    chain.faults = [fault]
    with pytest.raises(type(fault)):
        push(payer, chain, world, act)
    chain.time = world.view.time = NOW + 1
    push(payer, chain, world, act)
    assert chain.sent[0] != chain.sent[1]


def test_an_unreachable_payer_is_said_soon_and_clearly(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PayerUnavailableError) as raised:
            push(Payer(url), Chain(), world)
    text = str(raised.value)
    assert text.startswith(f"the payer at {url} does not answer (ConnectionRefusedError): check")
    assert "ask the task's owner whether `gradledger owner payer run` is running" in text


@contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """Serve these answers, the last one again and again; None: say nothing at all."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def serve() -> None:
            for number in range(100):
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                answer = answers[min(number, len(answers) - 1)]
                if answer is None:
                    held.append(sock)
                    continue
                with sock:
                    asked.append(sock.recv(65_536))
                    sock.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for sock in held:
                sock.close()


def http(document: Any, status: int = 200) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return f"HTTP/1.0 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


TERMS = {
    "chain_id": CHAIN_ID,
    "contract": "fedlearning",
    "account": "payer",
    "permission": "cosign",
    "tasks": ["digits"],
    "cpu_ms_max": 50,
    "net_words_max": 128,
    "expiration_sec_max": 120,
}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((b"nonsense",), "does not answer"),
        ((http(b"<html>"),), "does not answer (no JSON)"),
        ((http(b"[" * 50_000),), "does not answer (no JSON)"),
        ((http(b"1" * 70_000),), "an answer of over 65536 bytes"),
        ((http([]),), "expected a payer's terms, got something else"),
        ((http({**TERMS, "account": "Payer"}),), "expected a payer's terms, got something else"),
        ((http({**TERMS, "cpu_ms_max": float("inf")}),), "cpu_ms_max: expected an integer"),
        ((http({**TERMS, "net_words_max": "128"}),), "expected an integer, got '128'"),
        ((http({**TERMS, "cpu_ms_max": 256}),), "a bound of theirs is out of range"),
        ((http({**TERMS, "net_words_max": 0}),), "a bound of theirs is out of range"),
        ((http({**TERMS, "expiration_sec_max": 5}),), "a bound of theirs is out of range"),
        ((http({}, 404),), "answers HTTP 404 without a reason: is it one?"),
        ((http({"code": "busy", "message": "later"}, 503),), "cannot now: busy: later"),
        ((http(TERMS), http({})), "expected its signature of"),
        ((http(TERMS), http({"transaction_id": "00" * 32, "signature": "SIG_K1_"})), "of another"),
        ((http(TERMS), http([1])), "expected its signature of"),
    ],
)
def test_a_service_that_answers_nonsense(
    world: World, answers: tuple[bytes, ...], message: str
) -> None:
    chain = Chain()
    with answering(*answers) as (url, _), pytest.raises(PayerUnavailableError) as raised:
        push(Payer(url), chain, world)
    assert message in str(raised.value) and url in str(raised.value)
    assert chain.sent == []


def lying(world: World, make: Callable[[Transaction, dict[str, Any]], Any]) -> Any:
    """Return what a service would answer that has the request before it."""

    def cosign(request: Any) -> Any:
        return make(Transaction.unpack(bytes.fromhex(request["packed_trx"])), request)

    return cosign


@pytest.mark.parametrize("lie", ["another transaction", "no signature", "the device's own"])
def test_a_service_that_lies_about_its_signature(
    world: World, server: PayerServer, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    def make(transaction: Transaction, request: dict[str, Any]) -> Any:
        signature = world.key.sign_digest(transaction.signing_digest(CHAIN_ID))
        return {
            "transaction_id": "00" * 32 if lie == "another transaction" else transaction.id,
            "signature": {
                "no signature": "SIG_K1_1111",
                "the device's own": request["signature"],
            }.get(lie, signature),
        }

    paths = {**server.paths, "/v1/payer/cosign": ("signed", lying(world, make))}
    monkeypatch.setattr(server, "paths", paths)
    chain = Chain()
    with pytest.raises(PayerUnavailableError, match="expected its signature of"):
        push(Payer(server.url), chain, world)
    assert chain.sent == []


def test_a_busy_service_is_asked_again(
    world: World, server: PayerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = world.view.now, []

    def once_away() -> int:
        asked.append(1)
        if len(asked) == 1:
            raise NodeUnavailableError("no endpoint answered")
        return now()

    monkeypatch.setattr(world.view, "now", once_away)
    push(Payer(server.url), Chain(), world)
    assert server.answered["node_unavailable"] == 1 and server.answered["signed"] == 1


def test_a_service_that_hangs_is_given_up(world: World) -> None:
    with answering(None) as (url, _):
        begun = time.monotonic()
        with pytest.raises(PayerUnavailableError, match="no whole answer in time"):
            push(Payer(url, timeout=Timeout(connect=0.2, read=0.2)), Chain(), world)
        assert time.monotonic() - begun < 5


def test_a_refusal_is_not_asked_again(world: World, server: PayerServer) -> None:
    chain, payer = Chain(), Payer(server.url)
    world.view.keys["phone1"], old = PrivateKey.generate(), world.view.keys["phone1"]
    with pytest.raises(PayerRefusedError) as raised:
        payer.push(chain, world.upload(), old)  # type: ignore[arg-type]
    assert raised.value.code == "bad_signature" and "phone1" in raised.value.text
    assert server.answered == {"terms": 1, "bad_signature": 1} and chain.sent == []


def test_terms_that_changed_are_asked_anew(world: World, server: PayerServer) -> None:
    chain, payer, act = Chain(), Payer(server.url), world.upload()
    assert payer.terms().cpu_ms_max == 50
    world.cosigner.limits = Limits(cpu_ms=20)
    with pytest.raises(PayerRefusedError, match="cap_exceeded: max_cpu_usage_ms: expected 1 to 20"):
        push(payer, chain, world, act)
    push(payer, chain, world, act)
    assert payer.terms().cpu_ms_max == 20


def test_an_expired_transaction_is_signed_anew(world: World, server: PayerServer) -> None:
    chain, payer, act = Chain(), Payer(server.url), world.upload()
    world.view.time = NOW + 60  # the service sees a later time than the device's node
    with pytest.raises(TransactionExpiredError, match="it expired at"):
        push(payer, chain, world, act)
    chain.time = NOW + 60
    assert push(payer, chain, world, act).expiration == NOW + 120


def test_a_payer_for_another_chain_or_of_the_device_itself(
    world: World, server: PayerServer
) -> None:
    with pytest.raises(ConfigError, match=f"pays on chain {CHAIN_ID}, the node has abab"):
        push(Payer(server.url), Chain("ab" * 32), world)
    with (
        answering(http({**TERMS, "account": "phone1"})) as (url, _),
        pytest.raises(ConfigError, match="would have this device pay for itself"),
    ):
        push(Payer(url), Chain(), world)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8899", "ftp://x", "http://x/path", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a payer's address like http://host:port"):
        Payer(url)


def test_devices_may_share_a_payer(world: World, server: PayerServer) -> None:
    payer, where = (
        Payer(server.url),
        {"chain": "http://127.0.0.1:1", "store": "/ip4/127.0.0.1/tcp/1"},
    )
    key = world.view.keys["phone1"]
    devices = [
        Device(name, key=key, task="digits", payer=payer, **where) for name in ("phone1", "phone2")
    ]
    assert devices[0].payer is devices[1].payer is payer
    assert repr(payer) == f"Payer('{server.url}')"
    assert Device("phone1", key=key, task="digits", **where).payer is None
    assert payer.terms() == PayerTerms(**{**TERMS, "tasks": ("digits",)})
