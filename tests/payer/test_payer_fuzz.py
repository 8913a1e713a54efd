"""Malformed and hostile requests by the thousand: none crashes the payer, none gets a signature."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from payer_world import CHAIN_ID, CONTRACT, PAYER, TASK, World, raw_exchange

from gradledger.chain.keys import PrivateKey, recover_key
from gradledger.chain.payer import ACTIONS
from gradledger.chain.transaction import Action, Transaction
from owner.payer.service import PayerServer

SEED = 20_260
REQUESTS = 20_000
HOSTILE = 3_000
OVER_HTTP = 1_500

Mutate = Callable[[random.Random, World, dict[str, str]], bytes]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, per_round=10**6, per_device_hour=10**6, per_task_hour=10**6) as made:
        yield made


def flip(rng: random.Random, data: bytes) -> bytes:
    """Alter bytes: flip bits, overwrite, cut, repeat or insert."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del out[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 20)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 12))
    return bytes(out)


def random_bytes(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    return rng.randbytes(rng.randrange(400))


def truncated_json(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    whole = json.dumps(good).encode()
    return whole[: rng.randrange(len(whole))]


def altered_json(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    return flip(rng, json.dumps(good).encode())


def altered_fields(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    odd: tuple[Any, ...] = (None, 0, -1, 1e308, True, [], {}, "", "\0", "00", "💥", "ff" * 2000)
    document: dict[str, Any] = dict(good)
    name = rng.choice(sorted(document))
    kind = rng.randrange(4)
    if kind == 0:
        document[name] = rng.choice(odd)
    elif kind == 1:
        del document[name]
    elif kind == 2:
        document[rng.choice(("extra", "Signature", ""))] = rng.choice(odd)
    else:
        document[name] = [document[name]]
    return json.dumps(document).encode()


def altered_transaction(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    packed = flip(rng, bytes.fromhex(good["packed_trx"]))
    return json.dumps({**good, "packed_trx": packed.hex()}).encode()


def altered_signature(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    text = list(good["signature"])
    for _ in range(rng.choice((1, 3))):
        text[rng.randrange(len(text))] = rng.choice(letters)
    return json.dumps({**good, "signature": "".join(text)}).encode()


def oversized(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    return json.dumps({**good, "packed_trx": good["packed_trx"] * rng.randrange(3, 15)}).encode()


def nested(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    return rng.choice((b"[", b'{"a":', b"[[{")) * rng.randrange(1, 2500)


def resigned(rng: random.Random, world: World, good: dict[str, str]) -> bytes:
    """A member's own hostile transaction, with the member's own good signature."""
    packed = flip(rng, bytes.fromhex(good["packed_trx"]))
    try:
        transaction = Transaction.unpack(packed)
    except ValueError:
        transaction = hostile(rng, world)
    return json.dumps(world.request(transaction)).encode()


MUTATIONS: tuple[Mutate, ...] = (
    random_bytes,
    truncated_json,
    altered_json,
    altered_fields,
    altered_transaction,
    altered_signature,
    oversized,
    nested,
    resigned,
)


def hostile(rng: random.Random, world: World) -> Transaction:
    """Return a well-formed transaction of a member that wants more than it may."""
    names = ("phone1", "phone2", "newphone", "judge", PAYER, CONTRACT, "eosio", "")
    permissions = ("active", "owner", "cosign", "")

    def one() -> Action:
        device = rng.choice(names[:4])
        act = rng.choice((world.upload, world.join))(device)
        if rng.random() < 0.3:
            act = world.step(rng.choice(("reveal", "openupload")), device, rng.choice((0, 1, 1, 2)))
        levels = tuple(
            (rng.choice(names), rng.choice(permissions)) for _ in range(rng.randrange(4))
        )
        if rng.random() < 0.5:
            levels = ((PAYER, "cosign"), *act.authorization)
        account = rng.choice((CONTRACT, CONTRACT, CONTRACT, "eosio", "eosio.token"))
        name = rng.choice((act.name, act.name, act.name, "transfer", "attest", "updateauth"))
        data = flip(rng, act.data) if rng.random() < 0.2 else act.data
        return Action(account, name, levels, data)

    return Transaction(
        world.view.time + rng.choice((60, 60, -1, 0, 120, 121, 10**6)),
        rng.randrange(2**16),
        rng.randrange(2**32),
        tuple(one() for _ in range(rng.choice((1, 1, 1, 2, 5)))),
        rng.choice((50, 50, 1, 0, 51, 255)),
        rng.choice((128, 128, 1, 0, 129, 2**32 - 1)),
    )


def says_the_same(body: bytes, good: dict[str, str]) -> bool:
    """JSON and hex may be altered without changing what they say."""
    found = json.loads(body)
    for name in ("chain_id", "packed_trx"):
        found[name] = found[name].lower()
    return bool(found == good)


def signer_of(rng: random.Random, world: World, transaction: Transaction) -> PrivateKey:
    """Return the key of the device that a transaction names, or now and then another."""
    levels = transaction.actions[0].authorization
    named = world.view.keys.get(levels[-1][0]) if levels else None
    others = (*world.view.keys.values(), PrivateKey.generate())
    return named if named is not None and rng.random() < 0.8 else rng.choice(others)


def check_signed(world: World, body: bytes, answer: Any) -> None:
    """A signature was given: it must be for exactly what a device may do."""
    request = json.loads(body)
    assert request["chain_id"] == CHAIN_ID
    packed = bytes.fromhex(request["packed_trx"])
    transaction = Transaction.unpack(packed)
    assert answer["transaction_id"] == transaction.id
    digest = transaction.signing_digest(CHAIN_ID)
    assert recover_key(digest, answer["signature"]) == world.key.public
    (act,) = transaction.actions
    assert act.account == CONTRACT and act.name in ACTIONS
    data = world.abi.unpack(act.name, act.data)
    device = data["account" if act.name == "join" else "device"]
    assert data["task"] == TASK and act.authorization == ((PAYER, "cosign"), (device, "active"))
    assert recover_key(digest, request["signature"]) == world.view.keys[device].public
    assert 1 <= transaction.cpu_ms_max <= 50 and 1 <= transaction.net_words_max <= 128
    assert 0 < transaction.expiration - world.view.time <= 120
    if act.name != "join":
        assert data["version"] == 1 and device in ("phone1", "phone2")
        phases = {"fedlearning": 1, "reveal": 2, "openupload": 4}
        assert world.view.round.state == phases[act.name]


def test_no_malformed_request_is_signed_and_none_is_a_fault(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(SEED)
    server = PayerServer(world.cosigner, port=0)
    server.server_close()  # `answer` alone is asked here
    good = world.good()
    answers: Counter[tuple[str, str]] = Counter()
    # A resigned transaction costs twenty times as much as any other; it has a test of its own.
    cheap = MUTATIONS[:-1]
    for number in range(REQUESTS):
        mutate = cheap[number % len(cheap)]
        body = mutate(rng, world, good)
        if body == json.dumps(good).encode():
            continue
        status, answer = server.answer("/v1/payer/cosign", body)
        if status == 200:
            assert says_the_same(body, good)
        else:
            assert set(answer) == {"code", "message"} and len(answer["message"]) < 1000
        answers[mutate.__name__, answer.get("code", "signed")] += 1
    assert len(world.record.newest(10)) <= 1
    assert "internal_error" not in {code for _, code in answers}
    assert not caplog.records
    seen = {code for _, code in answers}
    assert seen >= {"bad_request", "malformed_transaction", "bad_signature", "too_large"}, answers
    assert seen >= {"unknown_action", "wrong_authorization", "unknown_task"}, answers
    assert server.answer("/v1/payer/cosign", json.dumps(world.good()).encode())[0] == 200


def test_a_member_gets_nothing_signed_but_what_it_may_do(world: World) -> None:
    rng = random.Random(SEED + 1)
    server = PayerServer(world.cosigner, port=0)
    server.server_close()
    codes: Counter[str] = Counter()
    for number in range(HOSTILE):
        if number % 2:
            body = resigned(rng, world, world.good())
        else:
            transaction = hostile(rng, world)
            signer = signer_of(rng, world, transaction)
            body = json.dumps(world.request(transaction, signer)).encode()
        status, answer = server.answer("/v1/payer/cosign", body)
        codes[answer.get("code", "signed")] += 1
        if status == 200:
            check_signed(world, body, answer)
    assert codes["internal_error"] == 0
    # Whatever is asked, some of it is right: the checks that it is are no idle ones.
    assert codes["signed"] > 20
    assert {"cap_exceeded", "expires_late", "expired", "wrong_role", "not_joined"} <= set(codes)
    assert {"round_not_closed", "not_auditing"} & set(codes)


@pytest.mark.parametrize("step", ["reveal", "openupload"])
def test_what_follows_an_upload_is_signed_only_when_the_chain_asks_for_it(
    world: World, step: str
) -> None:
    rng = random.Random(SEED + 3)
    server = PayerServer(world.cosigner, port=0)
    server.server_close()
    world.view.ask_for(step)
    codes: Counter[str] = Counter()
    for number in range(HOSTILE // 3):
        act = world.step(step, rng.choice(("phone1", "phone2", "newphone", "judge")))
        good = world.request(world.transaction(act), act.authorization[0][0])
        body = resigned(rng, world, good) if number % 2 else json.dumps(good).encode()
        if number % 4 == 0:
            body = json.dumps(world.request(hostile(rng, world))).encode()
        status, answer = server.answer("/v1/payer/cosign", body)
        codes[answer.get("code", "signed")] += 1
        if status == 200:
            check_signed(world, body, answer)
    assert codes["internal_error"] == 0 and codes["signed"] > 50
    assert {"wrong_role", "not_joined"} <= set(codes)


def test_malformed_requests_over_http(world: World) -> None:
    rng = random.Random(SEED + 2)
    good = world.good()
    with world.served(request_sec=2.0, connections_max=16) as server:

        def attack(rng: random.Random, count: int) -> None:
            for _ in range(count):
                body = rng.choice(MUTATIONS[:-1])(rng, world, good)
                path = rng.choice(("/v1/payer/cosign",) * 3 + ("/v1/payer/signature", "/x"))
                length = rng.choice((len(body), len(body), len(body), len(body) + 1, 0, -1, 10**9))
                data = f"POST {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode() + body
                if rng.random() < 0.3:
                    data = flip(rng, data)
                answer = raw_exchange(server, data)
                assert b'"signature"' not in answer or says_the_same(body, good)
                assert b"internal_error" not in answer

        failures: list[BaseException] = []

        def guarded(seed: int) -> None:
            try:
                attack(random.Random(seed), OVER_HTTP // 4)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(rng.randrange(2**32),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
        assert server.answered["internal_error"] == 0
        body = json.dumps(world.good()).encode()
        head = f"POST /v1/payer/cosign HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        assert b'"signature"' in raw_exchange(server, head + body)  # it serves on
    assert len(world.record.newest(10)) <= 2


def test_the_good_request_of_the_fuzzing_is_good(world: World) -> None:
    request = world.good()
    body = json.dumps(request).encode()
    check_signed(world, body, world.cosigner.cosign(request))
    other = replace(world.transaction(world.upload()), _packed=[], cpu_ms_max=51)
    digest = other.signing_digest(CHAIN_ID)
    forged = {"transaction_id": other.id, "signature": world.key.sign_digest(digest)}
    with pytest.raises(AssertionError):  # and what checks the signatures can fail
        check_signed(world, json.dumps(world.request(other)).encode(), forged)
