"""What the payer signs, and every refusal, without a chain."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from payer_world import CHAIN_ID, CONTRACT, NOW, PAYER, TASK, World

from gradledger.chain.contract import RoundState, UploadState
from gradledger.chain.keys import PrivateKey, recover_key
from gradledger.chain.payer import with_payer
from gradledger.chain.transaction import Action, Transaction
from gradledger.errors import ConfigError, NodeAnswerError
from owner.payer.record import KEEP_SEC, PRUNE_EVERY, Record, Signed
from owner.payer.rules import Limits, Refusal
from owner.payer.setup import Standing, check


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def refused(world: World, request: Any) -> Refusal:
    """Return the refusal of a request; nothing of it is recorded."""
    before = world.record.newest(1000)
    with pytest.raises(Refusal) as raised:
        world.cosigner.cosign(request)
    assert world.record.newest(1000) == before
    return raised.value


@pytest.mark.parametrize("device", ["phone1", "newphone"])
def test_it_signs_what_a_device_may_do_now(world: World, device: str) -> None:
    act = world.upload(device) if device == "phone1" else world.join(device)
    transaction = world.transaction(act)
    answer = world.cosigner.cosign(world.request(transaction, device))
    assert answer["transaction_id"] == transaction.id
    digest = transaction.signing_digest(CHAIN_ID)
    assert recover_key(digest, answer["signature"]) == world.key.public
    (one,) = world.record.newest(10)
    version = 1 if device == "phone1" else 0
    assert (one.trx_id, one.task, one.device) == (transaction.id, TASK, device)
    assert (one.action, one.version, one.signed_at) == (act.name, version, NOW)


Change = Callable[[World], Any]
TRANSFER = Action("eosio.token", "transfer", (("phone1", "active"),), b"")


def levels(*given: tuple[str, str]) -> Change:
    return lambda w: w.request(
        replace(
            w.transaction(w.upload()),
            _packed=[],
            actions=(replace(w.upload(), authorization=given),),
        )
    )


def of(make: Callable[[World], Transaction], signer: str = "phone1") -> Change:
    return lambda w: w.request(make(w), signer)


def raw(make: Callable[[bytes], bytes]) -> Change:
    """Alter the packed bytes of a good request."""

    def change(w: World) -> dict[str, str]:
        request = w.good()
        return {**request, "packed_trx": make(bytes.fromhex(request["packed_trx"])).hex()}

    return change


REFUSALS: dict[str, tuple[Change, int, str]] = {
    "no object": (lambda w: [], 400, "bad_request"),
    "a field too few": (lambda w: {"chain_id": CHAIN_ID}, 400, "bad_request: expected the fields"),
    "a field too many": (lambda w: {**w.good(), "x": ""}, 400, "bad_request: expected the fields"),
    "a number": (lambda w: {**w.good(), "signature": 1}, 400, "expected a text for signature"),
    "no hex": (lambda w: {**w.good(), "packed_trx": "0g"}, 400, "expected hex for packed_trx"),
    "half a byte": (lambda w: {**w.good(), "packed_trx": "012"}, 400, "hex for packed_trx"),
    "no bytes": (lambda w: {**w.good(), "packed_trx": ""}, 400, "hex for packed_trx"),
    "spaces in hex": (lambda w: {**w.good(), "packed_trx": "00 11 "}, 400, "hex for packed_trx"),
    "a short chain id": (
        lambda w: {**w.good(), "chain_id": "cf"},
        400,
        "32 bytes in hex for chain",
    ),
    "another chain": (
        lambda w: {**w.good(), "chain_id": "ab" * 32},
        422,
        f"wrong_chain: expected chain {CHAIN_ID}, got {'ab' * 32}",
    ),
    "too long": (raw(lambda b: b + bytes(2049)), 413, "too_large: expected at most 2048 bytes"),
    "truncated": (raw(lambda b: b[:-1]), 400, "malformed_transaction"),
    "a byte more": (
        raw(lambda b: b + b"\0"),
        400,
        "malformed_transaction: expected a transaction's",
    ),
    "a delay": (
        raw(lambda b: b[:13] + b"\1" + b[14:]),
        400,
        "malformed_transaction: expected a transaction with no delay",
    ),
    "context-free actions": (
        raw(lambda b: b[:14] + b"\1" + b[15:]),
        400,
        "malformed_transaction: expected a transaction with no context-free actions",
    ),
    "an extension": (
        raw(lambda b: b[:-1] + b"\1\0\0\0"),
        400,
        "malformed_transaction: expected a transaction with no extensions",
    ),
    "a longer form of a number": (
        raw(lambda b: b[:10] + b"\x80\x81\0" + b[12:]),
        400,
        "malformed_transaction: expected a transaction's shortest form",
    ),
    "no action": (
        raw(lambda b: b[:15] + b"\0\0"),
        400,
        "malformed_transaction: expected 1..1000 actions, got 0",
    ),
    "a transfer": (
        of(lambda w: w.transaction(TRANSFER)),
        422,
        "expected join, fedlearning, reveal, openupload of fedlearning, got transfer of",
    ),
    "another action of the contract": (
        of(lambda w: w.transaction(replace(w.upload(), name="uploadgrad"))),
        422,
        "expected join, fedlearning, reveal, openupload of fedlearning, got uploadgrad",
    ),
    "the same name elsewhere": (
        of(lambda w: w.transaction(replace(w.upload(), account="fedlearninh"))),
        422,
        "expected join, fedlearning, reveal, openupload of fedlearning, got fedlearning",
    ),
    "a transfer behind it": (
        of(lambda w: w.transaction(w.upload(), TRANSFER)),
        422,
        "expected join, fedlearning, reveal, openupload of fedlearning, got transfer of",
    ),
    "two uploads": (
        of(lambda w: w.transaction(w.upload(), w.upload())),
        422,
        "unknown_action: expected one action, got 2",
    ),
    "arguments that end early": (
        of(lambda w: w.transaction(replace(w.upload(), data=w.upload().data[:-1]))),
        400,
        "malformed_transaction: arguments of fedlearning",
    ),
    "arguments with a byte more": (
        of(lambda w: w.transaction(replace(w.upload(), data=w.upload().data + b"\0"))),
        400,
        "malformed_transaction: arguments of fedlearning",
    ),
    "another task": (
        of(lambda w: w.transaction(w.join(task="letters"))),
        422,
        "unknown_task: this payer pays for digits alone",
    ),
    "without the payer": (
        levels(("phone1", "active")),
        422,
        "wrong_authorization: expected payer@cosign, phone1@active, got phone1@active",
    ),
    "the payer second": (
        levels(("phone1", "active"), (PAYER, "cosign")),
        422,
        "wrong_authorization: expected payer@cosign, phone1@active, got phone1@active, payer@c",
    ),
    "the payer's active permission": (
        levels((PAYER, "active"), ("phone1", "active")),
        422,
        "wrong_authorization: expected payer@cosign, phone1@active, got payer@active",
    ),
    "the payer alone": (levels((PAYER, "cosign")), 422, "wrong_authorization"),
    "the payer twice": (
        levels((PAYER, "cosign"), (PAYER, "cosign")),
        422,
        "wrong_authorization",
    ),
    "one authoriser more": (
        levels((PAYER, "cosign"), ("phone1", "active"), ("phone2", "active")),
        422,
        "wrong_authorization",
    ),
    "for another device": (
        levels((PAYER, "cosign"), ("phone2", "active")),
        422,
        "wrong_authorization: expected payer@cosign, phone1@active, got payer@cosign, phone2@act",
    ),
    "no CPU cap": (
        of(lambda w: w.transaction(w.upload(), cpu_ms_max=0)),
        422,
        "cap_exceeded: max_cpu_usage_ms: expected 1 to 50, got 0",
    ),
    "a CPU cap too high": (
        of(lambda w: w.transaction(w.upload(), cpu_ms_max=51)),
        422,
        "cap_exceeded: max_cpu_usage_ms: expected 1 to 50, got 51",
    ),
    "no NET cap": (
        of(lambda w: w.transaction(w.upload(), net_words_max=0)),
        422,
        "cap_exceeded: max_net_usage_words: expected 1 to 128, got 0",
    ),
    "a NET cap too high": (
        of(lambda w: w.transaction(w.upload(), net_words_max=129)),
        422,
        "cap_exceeded: max_net_usage_words: expected 1 to 128, got 129",
    ),
    "no signature": (lambda w: {**w.good(), "signature": "SIG_K1_"}, 403, "bad_signature"),
    "a signature of nothing": (
        lambda w: {**w.good(), "signature": "SIG_K1_" + "1" * 90},
        403,
        "bad_signature",
    ),
    "a long signature": (
        lambda w: {**w.good(), "signature": "SIG_K1_" + "2" * 5000},
        403,
        "bad_signature",
    ),
    "another device's signature": (
        of(lambda w: w.transaction(w.upload()), "phone2"),
        403,
        "bad_signature: expected a signature of phone1's active key",
    ),
    "a signature for other bytes": (
        lambda w: {**w.good(), "signature": w.good()["signature"]},
        403,
        "bad_signature: expected a signature of phone1's active key",
    ),
    "expired": (
        of(lambda w: w.transaction(w.upload(), expiration=NOW)),
        410,
        f"expired: it expired at {NOW}, the time is {NOW}",
    ),
    "valid for too long": (
        of(lambda w: w.transaction(w.upload(), expiration=NOW + 121)),
        422,
        f"expires_late: expected to expire until {NOW + 120}, got {NOW + 121}",
    ),
    "a validator": (
        of(lambda w: w.transaction(w.join("judge")), "judge"),
        403,
        "wrong_role: expected a device, judge is a validator",
    ),
    "not joined": (
        of(lambda w: w.transaction(w.upload("newphone")), "newphone"),
        409,
        "not_joined: newphone has not joined task digits",
    ),
    "an old version": (
        of(lambda w: w.transaction(w.upload(version=0))),
        409,
        "stale_version: got version 0, the current version is 1",
    ),
    "a version to come": (
        of(lambda w: w.transaction(w.upload(version=2))),
        409,
        "future_version: got version 2, the current version is 1",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_it_refuses(world: World, case: str) -> None:
    make, status, message = REFUSALS[case]
    request = make(world)
    if not isinstance(request, dict):
        request = {}
    refusal = refused(world, request)
    assert refusal.status == status and message in str(refusal), str(refusal)
    # All that kept it from being signed is what the case altered.
    assert world.cosigner.cosign(world.good())["signature"]


def test_a_stranger_is_refused_and_spends_no_limit(world: World) -> None:
    stranger = PrivateKey.generate()
    world.view.keys["stranger"] = stranger
    request = world.request(world.transaction(world.upload("stranger")), stranger)
    assert str(refused(world, request)) == "not_a_member: stranger is no member of task digits"
    for _ in range(50):  # in a member's name, but not with its key
        refused(world, world.request(world.transaction(world.upload()), stranger))
    assert world.cosigner.cosign(world.good())["signature"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: setattr(v, "round", None), "round_not_open: task digits has no round yet"),
        (
            lambda v: setattr(v.round, "state", RoundState.VERIFYING),
            "round_not_open: round 1 is verifying",
        ),
        (
            lambda v: setattr(v.round, "deadline", NOW),
            f"deadline_passed: expected fedlearning before {NOW}, it is {NOW}",
        ),
        (
            lambda v: setattr(v.members["phone1"], "upload_version", 1),
            "second_upload: expected one upload of phone1 for version 1",
        ),
        (
            lambda v: setattr(v.members["phone1"], "barred_until", 1),
            "barred: phone1 failed an audit, and is barred up to 1",
        ),
    ],
)
def test_what_the_chain_would_refuse_is_not_paid_for(
    world: World, change: Callable[[Any], None], message: str
) -> None:
    change(world.view)
    assert str(refused(world, world.good())) == message
    assert world.view.forgot == 1  # it looked again before it said no


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        (
            "reveal",
            lambda v: setattr(v.round, "state", RoundState.OPEN),
            "round_not_closed: round 1 is open",
        ),
        (
            "reveal",
            lambda v: setattr(v.round, "reveal_deadline", NOW),
            f"deadline_passed: expected reveal before {NOW}, it is {NOW}",
        ),
        (
            "reveal",
            lambda v: setattr(v.members["phone1"], "upload_version", 0),
            "unknown_upload: phone1 has no upload in round 1",
        ),
        (
            "reveal",
            lambda v: setattr(v.members["phone1"], "upload_cid", "Qm"),
            "already_revealed: the CID of phone1 for version 1 is known",
        ),
        (
            "openupload",
            lambda v: setattr(v.round, "state", RoundState.VERIFYING),
            "not_auditing: round 1 is verifying",
        ),
        (
            "openupload",
            lambda v: setattr(v.round, "audit_deadline", NOW),
            f"deadline_passed: expected openupload before {NOW}, it is {NOW}",
        ),
        (
            "openupload",
            lambda v: setattr(v.members["phone1"], "upload_state", UploadState.ACCEPTED),
            "not_drawn: the upload of phone1 is not under audit",
        ),
        (
            "openupload",
            lambda v: setattr(v.members["phone1"], "opening_cid", "Qm"),
            "already_opened: the CID of phone1 for version 1 is known",
        ),
    ],
)
def test_what_follows_an_upload_is_paid_for_when_it_is_asked_for(
    world: World, step: str, change: Callable[[Any], None], message: str
) -> None:
    world.view.ask_for(step)
    change(world.view)
    request = world.request(world.transaction(world.step(step)))
    assert str(refused(world, request)) == message
    other = world.request(world.transaction(world.step(step, version=2)))
    assert refused(world, other).code == "future_version"


def test_each_step_of_an_upload_has_its_own_limit(bounded: World) -> None:
    world = bounded

    def ask(act: Action) -> str:
        try:
            world.cosigner.cosign(world.request(world.transaction(act)))
        except Refusal as refusal:
            return refusal.code
        return "signed"

    assert ask(world.upload()) == "signed"
    world.view.ask_for("reveal")
    codes = [ask(world.step("reveal")) for _ in range(3)]
    assert codes == ["signed", "signed", "round_limit"]
    world.view.ask_for("openupload")
    # Steps count for the device's hour as everything else does.
    assert [ask(world.step("openupload")) for _ in range(2)] == ["signed", "device_limit"]


def test_the_bounds_themselves_are_signed(world: World) -> None:
    world.view.round.deadline = NOW + 1
    for expiration in (NOW + 1, NOW + 120):
        transaction = world.transaction(world.upload(), expiration=expiration)
        assert world.cosigner.cosign(world.request(transaction))["signature"]
    least = world.transaction(world.upload(), cpu_ms_max=1, net_words_max=1)
    assert world.cosigner.cosign(world.request(least))["signature"]


def test_a_replay_is_refused_and_its_signature_can_be_fetched(world: World) -> None:
    request = world.good()
    first = world.cosigner.cosign(request)
    for again in (False, True):
        if again:
            world.restart()
        refusal = refused(world, request)
        assert (refusal.status, refusal.code) == (409, "replay")
        assert first["transaction_id"] in refusal.text
        query = {"transaction_id": first["transaction_id"].upper()}
        assert world.cosigner.signature(query) == first
    stolen = world.request(world.transaction(world.upload()), PrivateKey.generate())
    assert refused(world, {**request, "signature": stolen["signature"]}).code == "bad_signature"
    with pytest.raises(Refusal, match=f"unknown_transaction: no transaction {'0' * 64} was"):
        world.cosigner.signature({"transaction_id": "00" * 32})


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, per_round=2, per_device_hour=4, per_task_hour=6) as made:
        yield made


def test_limits_of_a_round_a_device_and_a_task(bounded: World) -> None:
    world = bounded

    def sign(device: str, act: Action) -> str:
        try:
            world.cosigner.cosign(world.request(world.transaction(act), device))
        except Refusal as refusal:
            assert refusal.status == 429
            return refusal.code
        return "signed"

    uploads = [sign("phone1", world.upload()) for _ in range(3)]
    assert uploads == ["signed", "signed", "round_limit"]
    world.view.round.version = 2
    assert sign("phone1", world.upload(version=2)) == "signed"  # another round
    assert [sign("phone1", world.join(classes=n)) for n in (1, 2)] == ["signed", "device_limit"]
    world.restart()  # forgets nothing
    assert sign("phone1", world.join(classes=3)) == "device_limit"
    assert [sign("phone2", world.join("phone2", classes=n)) for n in (1, 2, 3)] == [
        "signed",
        "signed",
        "task_limit",
    ]
    world.view.time += 3600 + 60  # an hour is over, of the chain's time
    world.view.round.deadline = world.view.time + 100
    assert sign("phone2", world.join("phone2", classes=4)) == "signed"
    world.view.round.version = 1
    assert sign("phone1", world.upload()) == "round_limit"  # that does not end with the hour


def test_a_refused_request_counts_for_nothing(bounded: World) -> None:
    for _ in range(7):
        refused(bounded, bounded.request(bounded.transaction(bounded.upload(version=2))))
    assert bounded.cosigner.cosign(bounded.good())["signature"]


def test_a_node_that_does_not_answer_gets_nothing_signed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.view.fails = True
    refusal = refused(world, world.good())
    assert (refusal.status, refusal.code) == (503, "node_unavailable")
    assert "no endpoint answered" in caplog.text and "endpoint" not in refusal.text


def test_a_full_disk_gets_nothing_signed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    pages = world.record._db.execute("PRAGMA page_count").fetchone()[0]
    world.record._db.execute(f"PRAGMA max_page_count = {pages}")
    signed = 0
    with pytest.raises(Refusal) as raised:
        for number in range(1000):
            world.view.keys[f"m{'abcdefghij'[number % 10]}"] = world.view.keys["phone1"]
            world.cosigner.cosign(world.request(world.transaction(world.join(classes=number + 1))))
            world.view.time += 3600
            signed += 1
    assert (raised.value.status, raised.value.code) == (503, "not_recorded")
    assert "event=not_recorded" in caplog.text and "disk is full" in caplog.text
    assert len(world.record.newest(1000)) == signed
    world.record._db.execute("PRAGMA max_page_count = 100000")
    world.view.round.deadline = world.view.time + 100
    assert world.cosigner.cosign(world.good())["signature"]


def test_the_record_is_private_durable_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "signed.sqlite"
    record = Record(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert record._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
    record.close()
    path.write_bytes(b"something else, " * 100)
    with pytest.raises(ConfigError, match="cannot be used as a record: file is not a database"):
        Record(path)
    with pytest.raises(ConfigError, match="cannot be used as a record"):
        Record(tmp_path / "nowhere" / "signed.sqlite")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(ConfigError, match="expected a record of format 1"):
        Record(other)


def test_the_record_drops_what_is_old(tmp_path: Path) -> None:
    record = Record(tmp_path / "signed.sqlite")

    def add(number: int, at: int) -> None:
        one = Signed(f"{number:064x}", TASK, f"phone{number}", "join", 0, at, at + 60, "SIG")
        with record.adding(one):
            pass

    for number in range(PRUNE_EVERY - 1):
        add(number, NOW)
    add(PRUNE_EVERY, NOW + KEEP_SEC)
    assert len(record.newest(1000)) == PRUNE_EVERY  # not older than that: kept
    for number in range(PRUNE_EVERY):
        add(1000 + number, NOW + KEEP_SEC + 1)
    assert len(record.newest(1000)) == PRUNE_EVERY + 1
    assert record._db.execute("SELECT COUNT(*) FROM minutes").fetchone()[0] == 1
    record.close()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("per_round", 1, 1_000_000),
        ("cpu_ms", 1, 255),
        ("net_words", 1, 65_536),
        ("expiration_sec", 10, 3600),
    ],
)
def test_limits_have_bounds(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(Limits(**{name: value}), name) == value
    for value in (low - 1, high + 1, True):
        with pytest.raises(ConfigError, match=f"{name}: expected {low} to {high}, got"):
            Limits(**{name: value})


def test_no_secret_is_shown(world: World) -> None:
    shown = f"{world.cosigner!r} {world.record!r} {vars(world.cosigner)}"
    assert world.key.to_string() not in shown and world.key.to_wif() not in shown
    assert f"{world.cosigner!r}" == "Cosigner('payer', tasks=('digits',))"


def test_terms_name_what_a_device_needs(world: World) -> None:
    assert world.cosigner.terms({}) == {
        "chain_id": CHAIN_ID,
        "contract": CONTRACT,
        "account": PAYER,
        "permission": "cosign",
        "tasks": [TASK],
        "cpu_ms_max": 50,
        "net_words_max": 128,
        "expiration_sec_max": 120,
    }
    with pytest.raises(Refusal, match="bad_request: expected the fields"):
        world.cosigner.terms({"x": 1})


def test_every_transaction_that_packs_unpacks(world: World) -> None:
    transaction = world.transaction(world.upload())
    assert Transaction.unpack(transaction.pack()) == transaction
    assert transaction.actions[0] == with_payer(
        Action(CONTRACT, "fedlearning", (("phone1", "active"),), transaction.actions[0].data),
        PAYER,
        "cosign",
    )
    for _ in range(2000):
        with pytest.raises(ConfigError):
            Transaction.unpack(os.urandom(14) + b"\1" + os.urandom(60))


GOOD_ACCOUNT: dict[str, Any] = {
    "permissions": [
        {
            "perm_name": "active",
            "parent": "owner",
            "required_auth": {"threshold": 1, "keys": [], "accounts": [], "waits": []},
            "linked_actions": [],
        }
    ],
    "ram_quota": 4096,
    "ram_usage": 2724,
    "cpu_limit": {"available": "10"},
    "net_limit": {"available": "0"},
}


class Node:
    """A node that answers what the test says."""

    def __init__(self, account: Any, features: Any) -> None:
        self.account, self.features = account, features

    def get_account(self, account: str) -> Any:
        return self.account

    def call(self, path: str, document: Any) -> Any:
        return self.features


def standing(account: Any, features: Any) -> Standing:
    public = PrivateKey.generate().public
    node: Any = Node(account, features)
    return check(node, account=PAYER, public=public, contract=CONTRACT)


def test_what_keeps_a_payer_from_paying_is_said() -> None:
    found = standing(GOOD_ACCOUNT, {"activated_protocol_features": []})
    assert (found.cpu_us, found.net_bytes, found.ram_bytes) == (10, 0, 1372)
    assert found.problems == (
        "the chain has not activated ONLY_BILL_FIRST_AUTHORIZER: it would bill the devices too",
        "payer@cosign is not this key's alone: run `owner payer setup`",
        "payer has no CPU or no NET to pay with",
    )


@pytest.mark.parametrize(
    ("account", "features"),
    [
        (GOOD_ACCOUNT, {}),
        (GOOD_ACCOUNT, {"activated_protocol_features": [1]}),
        ({}, {"activated_protocol_features": []}),
        ({**GOOD_ACCOUNT, "permissions": [{}]}, {"activated_protocol_features": []}),
        ({**GOOD_ACCOUNT, "cpu_limit": {"available": "x"}}, {"activated_protocol_features": []}),
    ],
)
def test_a_node_that_answers_nonsense_about_the_payer(account: Any, features: Any) -> None:
    with pytest.raises(NodeAnswerError, match="expected the "):
        standing(account, features)
