"""Commit, then reveal; and audits by lot: who is drawn, what is opened, who is paid or barred."""

from __future__ import annotations

import hashlib

import pytest
from contracts.test_money import REFUSER
from contracts.world import (
    ACCEPTED,
    AUDITING,
    DRAWING,
    DRAWN,
    MALFORMED,
    OPENING_MISMATCH,
    PAID,
    PENDING,
    REFUSED,
    SETTLED,
    SILENCE,
    SUMMED,
    SUMMING,
    UNANSWERED,
    UNDELIVERED,
    UNREVEALED,
    VERIFYING,
    ZERO,
    Scene,
    World,
    cid,
    digest,
    lot_value,
)

from gradledger import lots
from gradledger.chain.abi import parse_time
from gradledger.chain.contract import FedLearning
from gradledger.cid import cid_to_digest
from gradledger.localnet import system
from gradledger.merkle import merkle_root, round_records

ALL = 1_000_000
PRICE = 600  # of one upload


def drawing(scene: Scene, version: int = 1, **terms: int) -> None:
    """Bring a round with lots to the draw, with an accepted upload of each device."""
    scene.do(scene.open(version, **terms))
    scene.do(*[scene.commit_lot(v, version) for v in scene.validators])
    scene.do(*[scene.upload(d, version) for d in scene.devices])
    accepted = [scene.verdict(v, scene.devices, version) for v in scene.quorum()]
    scene.do(*accepted, scene.close(version))


def states(scene: Scene) -> list[tuple[int, int]]:
    """Return what became of each device's upload, and why."""
    rows = [scene.member(d) for d in scene.devices]
    return [(row["upload_state"], row["upload_reason"]) for row in rows]


def balances(scene: Scene) -> list[int]:
    return [scene.world.balance(d) for d in scene.devices]


# ---- commit, then reveal ----------------------------------------------------------------------


def test_a_cid_is_told_once_the_round_is_closed(world: World) -> None:
    scene = Scene.make(world, mode=1)
    scene.do(scene.open(reveal_sec=100, verdict_sec=10))
    scene.do(*[scene.upload(d, cid="") for d in scene.devices])
    assert {row["upload_cid"] for row in scene.members()} == {ZERO}
    assert parse_time(scene.round()["reveal_deadline"]) == 0
    scene.do(scene.close())
    found = scene.round()
    reveal, verdict = (parse_time(found[f"{name}_deadline"]) for name in ("reveal", "verdict"))
    assert verdict == reveal + 10
    scene.do(*[scene.reveal(d) for d in scene.devices])
    for device in scene.devices:
        assert scene.member(device)["upload_cid"] == cid_to_digest(cid("upload", device, 1)).hex()
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    assert balances(scene) == [PRICE] * 3
    assert scene.round()["state"] == SUMMED


def test_what_is_not_revealed_is_refused_and_silence_does_not_pay_it(
    world: World, contract: FedLearning
) -> None:
    scene = Scene.make(world, mode=1, silence=1)
    told, refused, forgotten = scene.devices
    scene.do(scene.open(reveal_sec=2, verdict_sec=3))
    scene.do(*[scene.upload(d, cid="") for d in scene.devices], scene.close(), scene.reveal(told))
    scene.wait(parse_time(scene.round()["reveal_deadline"]))
    scene.do(*[scene.verdict(v, [refused], code=UNREVEALED) for v in scene.quorum()])
    assert scene.member(refused)["upload_state"] == REFUSED
    scene.wait(parse_time(scene.round()["verdict_deadline"]))
    scene.do(scene.push_on(world.creator))
    assert states(scene) == [(PAID, SILENCE), (REFUSED, UNREVEALED), (REFUSED, UNREVEALED)]
    assert balances(scene) == [PRICE, 0, 0]
    scene.do(scene.settle())
    records = round_records(scene.task, contract.members(scene.task), 1, 10)
    assert scene.round()["root"] == merkle_root(records).hex()  # zeros for a CID that nobody knows
    assert scene.member(forgotten)["upload_cid"] == ZERO


# ---- the draw ---------------------------------------------------------------------------------


def test_lots_draw_those_that_python_computes(world: World) -> None:
    """Upload hashes and lots are the same each time."""
    share = 200_000
    scene = Scene.make(world, devices=12, lot_e6=share)
    values = [lot_value("place", place) for place in range(4)]
    hashes = {d: digest("fixed upload", at) for at, d in enumerate(scene.devices)}
    pairs = list(zip(scene.validators, values, strict=True))
    scene.do(scene.open(), *[scene.commit_lot(v, value=value) for v, value in pairs])
    scene.do(*[scene.upload(d, hash=hashes[d]) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    scene.do(scene.close(), *[scene.reveal_lot(v, value=value) for v, value in pairs])
    places = {
        d: [
            int.from_bytes(hashlib.sha256(bytes.fromhex(value + one)).digest()[:8], "big")
            for value in values
        ]
        for d, one in hashes.items()
    }
    drawn = [d for d in scene.devices if min(places[d]) < share * (2**64 // 10**6)]
    assert drawn == [
        d
        for d, one in hashes.items()
        if any(lots.is_drawn(bytes.fromhex(v), bytes.fromhex(one), share) for v in values)
    ]
    assert len(drawn) == 6
    scene.do(scene.push_on(world.creator))
    for device in scene.devices:
        row, is_drawn = scene.member(device), device in drawn
        assert row["upload_state"] == (DRAWN if is_drawn else PAID)
        assert row["upload_reason"] == (0 if is_drawn else 1)
        assert world.balance(device) == (0 if is_drawn else PRICE)
    found = scene.round()
    assert (found["state"], found["held"], found["drawn"], found["accepted"]) == (AUDITING, 0, 6, 6)
    assert scene.money()["reserved"] == found["reserved"] == 6 * PRICE


def test_a_quorum_of_lots_is_enough_and_is_all_that_is_waited_for(world: World) -> None:
    scene = Scene.make(world, lot_e6=ALL)
    scene.do(scene.open(), *[scene.commit_lot(v) for v in scene.quorum()])
    scene.do(*[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.close())
    scene.do(*[scene.reveal_lot(v) for v in scene.quorum()], scene.push_on(world.creator, limit=2))
    assert [state for state, _ in states(scene)] == [DRAWN, DRAWN, ACCEPTED]  # bounded
    assert scene.round()["state"] == DRAWING
    scene.do(scene.push_on(world.creator, limit=1))
    assert scene.round()["state"] == AUDITING


@pytest.mark.parametrize(("revealed", "state"), [(0, PAID), (1, DRAWN)])
def test_who_keeps_a_lot_back_stops_nobody(world: World, revealed: int, state: int) -> None:
    scene = Scene.make(world, lot_e6=ALL)
    drawing(scene, audit_sec=3)
    scene.wait(parse_time(scene.round()["audit_deadline"]))
    told = [scene.reveal_lot(v) for v in scene.validators[:revealed]]
    scene.do(*told, scene.push_on(world.creator))
    assert [found for found, _ in states(scene)] == [state] * 3
    assert scene.round()["state"] == (AUDITING if revealed else SUMMING)
    assert balances(scene) == [0 if revealed else PRICE] * 3


def test_uploads_that_nobody_draws_in_time_are_refunded(world: World) -> None:
    """Also one whose device cannot be paid: those behind it are paid before."""
    scene = Scene.make(world, lot_e6=ALL, silence=1)
    evil, good, _ = scene.devices
    world.push(system.set_contract(evil, REFUSER, b'{"version": "eosio::abi/1.1"}'))
    drawing(scene, audit_sec=3)
    deadline = parse_time(scene.round()["audit_deadline"])
    scene.wait(deadline)
    world.refusal(scene.push_on(world.creator, limit=1))
    scene.do(scene.push_on(world.creator, limit=1, start=good))
    scene.wait(deadline + 3)
    scene.do(scene.push_on(world.creator))
    assert states(scene) == [(REFUSED, UNDELIVERED), (PAID, 1), (REFUSED, UNDELIVERED)]
    assert [scene.member(d)["barred_until"] for d in scene.devices] == [0, 0, 0]
    found = scene.round()
    assert (found["state"], found["held"], found["accepted"], found["refused"]) == (SUMMED, 0, 1, 2)
    assert scene.money() == {
        "deposited": 1_000_000,
        "paid": PRICE,
        "reserved": 0,
        "withdrawn": 0,
        "free": 1_000_000 - PRICE,
    }


# ---- audits -----------------------------------------------------------------------------------


def test_from_acceptance_to_pay_through_an_audit(world: World) -> None:
    scene = Scene.make(world, lot_e6=ALL)
    scene.do(scene.open(), *[scene.commit_lot(v) for v in scene.validators])
    scene.do(*[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    found = scene.round()
    assert (found["state"], found["pending"], found["held"], found["accepted"]) == (1, 0, 3, 0)
    assert states(scene) == [(ACCEPTED, 0)] * 3
    assert balances(scene) == [0, 0, 0] and scene.money()["reserved"] == 3 * PRICE
    late, first = scene.validators[3], scene.devices[0]
    scene.do(scene.close(), scene.verdict(late, [first], code=MALFORMED))
    assert scene.ballot(first)["verdicts"] == "01010104" + "00" * 28  # and that is all it does
    assert scene.round()["state"] == DRAWING
    scene.do(*[scene.reveal_lot(v) for v in scene.validators], scene.push_on(world.creator))
    found = scene.round()
    assert (found["state"], found["held"], found["drawn"]) == (AUDITING, 0, 3)
    assert [lot["value"] for lot in found["lots"]] == [lot_value(v, 1) for v in scene.validators]
    # a verdict from before the draw is none on what was opened
    scene.do(scene.verdict(late, scene.devices), *[scene.opening(d) for d in scene.devices])
    scene.do(scene.verdict(scene.validators[0], scene.devices))
    assert {scene.ballot(d)["verdicts"] for d in scene.devices} == {ZERO}
    assert scene.member(first)["opening_cid"] == cid_to_digest(cid("opening", first, 1)).hex()
    for validator in scene.quorum():
        assert balances(scene) == [0, 0, 0]
        scene.do(scene.audit_verdict(validator, scene.devices))
    assert states(scene) == [(PAID, 1)] * 3
    assert balances(scene) == [PRICE] * 3
    found = scene.round()
    assert (found["state"], found["drawn"], found["accepted"]) == (SUMMING, 0, 3)
    assert scene.money()["reserved"] == 0 and scene.money()["paid"] == 3 * PRICE


def test_who_is_caught_is_not_paid_and_barred_for_so_many_rounds(world: World) -> None:
    scene = Scene.make(world, lot_e6=ALL, bar_rounds=2)
    cheat, *honest = scene.devices
    drawing(scene)
    scene.do(*[scene.reveal_lot(v) for v in scene.validators], scene.push_on(world.creator))
    scene.do(*[scene.opening(d) for d in scene.devices])
    for validator, code in zip(scene.validators, [9, OPENING_MISMATCH, 9], strict=False):
        scene.do(
            scene.audit_verdict(validator, [cheat], code=code),
            scene.audit_verdict(validator, honest),
        )
    assert states(scene) == [(REFUSED, 9), (PAID, 1), (PAID, 1)]
    assert balances(scene) == [0, PRICE, PRICE]
    assert [scene.member(d)["barred_until"] for d in scene.devices] == [3, 0, 0]
    found = scene.round()
    assert (found["state"], found["accepted"], found["refused"]) == (SUMMED, 2, 1)
    scene.do(scene.settle())
    for version in (2, 3):
        scene.do(scene.open(version), *[scene.commit_lot(v, version) for v in scene.quorum()])
        assert world.refusal(scene.upload(cheat, version)).startswith(
            f"barred: {cheat} failed an audit and may upload again after version 3"
        )
        scene.do(scene.upload(honest[0], version))
        refused = [scene.verdict(v, honest[:1], version, code=MALFORMED) for v in scene.quorum()]
        scene.do(*refused, scene.close(version), scene.settle(version))
    scene.do(scene.open(4), *[scene.commit_lot(v, 4) for v in scene.quorum()])
    scene.do(scene.upload(cheat, 4))
    row = scene.member(cheat)
    assert (row["upload_state"], row["barred_until"], row["opening_cid"]) == (PENDING, 3, ZERO)


def test_unanswered_is_barred_and_an_unjudged_opening_is_not(world: World) -> None:
    """Nor is it paid for silence before validators have had their time after the last opening."""
    scene = Scene.make(world, lot_e6=ALL, bar_rounds=1, silence=1)
    mute, opened, judged = scene.devices
    drawing(scene, audit_sec=3)
    scene.do(
        *[scene.reveal_lot(v) for v in scene.validators],
        scene.push_on(world.creator),
        scene.opening(opened),
        scene.opening(judged),
    )
    deadline = parse_time(scene.round()["audit_deadline"])
    scene.wait(deadline)
    message = world.refusal(scene.opening(mute))
    assert message.startswith(f"deadline_passed: expected an opened upload before {deadline}, ")
    scene.do(scene.push_on(world.creator))
    assert states(scene) == [(REFUSED, UNANSWERED), (DRAWN, 0), (DRAWN, 0)]
    assert scene.member(mute)["barred_until"] == 2
    scene.do(*[scene.audit_verdict(v, [judged]) for v in scene.quorum()])  # in time still
    scene.wait(deadline + 3)
    scene.do(scene.push_on(world.creator))
    assert states(scene) == [(REFUSED, UNANSWERED), (PAID, SILENCE), (PAID, 1)]
    assert scene.member(opened)["barred_until"] == 0
    found = scene.round()
    assert (found["state"], found["drawn"], found["accepted"]) == (SUMMED, 0, 1)
    assert scene.money()["paid"] == 2 * PRICE


def test_an_audit_that_nobody_ends_refunds_and_bars_nobody(world: World) -> None:
    scene = Scene.make(world, devices=1, lot_e6=ALL, bar_rounds=1, silence=1)
    drawing(scene, audit_sec=1)
    scene.do(
        *[scene.reveal_lot(v) for v in scene.validators],
        scene.push_on(world.creator),
        scene.opening(scene.devices[0]),
        *[scene.audit_verdict(v, scene.devices) for v in scene.quorum()[:2]],
    )
    deadline = parse_time(scene.round()["audit_deadline"])
    scene.wait(deadline + 2)
    assert world.refusal(scene.audit_verdict(scene.validators[2], scene.devices)).startswith(
        f"deadline_passed: expected verdicts before {deadline + 2}, "
    )
    scene.do(scene.push_on(world.creator))
    assert states(scene) == [(REFUSED, UNDELIVERED)]
    assert scene.member(scene.devices[0])["barred_until"] == 0
    assert scene.money()["free"] == 1_000_000


def test_without_owner_and_validators_anyone_ends_a_round_with_audits(world: World) -> None:
    """Nobody tells a lot, opens or judges: everybody is paid, since all had been accepted."""
    scene = Scene.make(world, lot_e6=ALL)
    drawing(scene, audit_sec=3, sum_sec=1)
    anyone = world.creator
    scene.wait(parse_time(scene.round()["audit_deadline"]))
    scene.do(scene.push_on(anyone))
    scene.wait(parse_time(scene.round()["sum_deadline"]))
    scene.do(scene.push_on(anyone), scene.settle(caller=anyone))
    found = scene.round()
    assert (found["state"], found["lots"], found["paid"]) == (SETTLED, [], 3 * PRICE)


# ---- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        ((2, 3, 4), 2),  # once each: the smallest
        ((4, 3, 4), 4),  # most of them
        ((17, 9, 9), 9),
        ((3, 3, 17), 3),
        ((1, 5, 6, 5), 5),  # one of four accepts
        ((1, 17, 16, 2), 2),
    ],
)
def test_a_quorum_refuses_whatever_its_reasons(
    world: World, codes: tuple[int, ...], reason: int
) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device), scene.close())
    for validator, code in zip(scene.validators, codes, strict=False):
        assert scene.member(device)["upload_state"] == PENDING
        scene.do(scene.verdict(validator, [device], code=code))
    row = scene.member(device)
    assert (row["upload_state"], row["upload_reason"]) == (REFUSED, reason)
    assert scene.ballot(device)["verdicts"] == bytes(codes).ljust(32, b"\0").hex()
    assert scene.round()["state"] == SUMMED and scene.money()["free"] == 1_000_000


def test_two_refusals_and_two_acceptances_decide_nothing(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device), scene.close())
    for validator, code in zip(scene.validators, (1, 2, 1, 2), strict=True):
        scene.do(scene.verdict(validator, [device], code=code))
    assert scene.member(device)["upload_state"] == PENDING
    assert scene.round()["state"] == VERIFYING
