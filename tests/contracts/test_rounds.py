"""Rounds that go well: uploads on both sides of each bound, verdicts, sums, settling, RAM."""

from __future__ import annotations

import hashlib

import pytest
from contracts.world import (
    MALFORMED,
    OPEN,
    PAID,
    PENDING,
    REFUSED,
    SETTLED,
    SUMMED,
    SUMMING,
    VERIFYING,
    ZERO,
    Scene,
    World,
    cid,
    digest,
)

from gradledger.chain.abi import parse_time
from gradledger.chain.contract import BallotStage, FedLearning
from gradledger.cid import cid_to_digest
from gradledger.errors import ContractError
from gradledger.merkle import merkle_path, merkle_root, round_records, verify_path

EMPTY_ROOT = hashlib.sha256(b"").hexdigest()


# ---- uploads --------------------------------------------------------------------------------


def test_an_upload_is_recorded_and_reserves_its_price(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open())
    data = scene.upload_data(device)
    scene.do(scene.upload(device))
    row = scene.member(device)
    assert row["upload_version"] == 1
    assert row["upload_hash"] == data["hash"]
    assert row["upload_cid"] == cid_to_digest(data["cid"]).hex()
    errors = b"".join(error.to_bytes(4, "little") for error in data["errors"])
    assert row["series_hash"] == hashlib.sha256(errors).hexdigest()
    assert row["upload_cost"] == 60
    assert [row[f"error_{at}"] for at in ("first", "before", "last")] == data["errors"]
    assert (row["upload_state"], row["upload_reason"], row["upload_slot"]) == (PENDING, 0, 0)
    assert scene.ballots()[0] == {
        "device": device,
        "hash": data["hash"],
        "stage": BallotStage.OPEN,
        "verdicts": ZERO,
    }
    found = scene.round()
    assert (found["uploads"], found["pending"], found["reserved"]) == (1, 1, 600)
    assert scene.money() == {
        "deposited": 1_000_000,
        "paid": 0,
        "reserved": 600,
        "withdrawn": 0,
        "free": 999_400,
    }


def test_of_a_series_of_one_point_that_point_is_recorded(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(rule=2), scene.upload(scene.devices[0], errors=[99_999]))
    row = scene.member(scene.devices[0])
    assert {row[f"error_{at}"] for at in ("first", "before", "last")} == {99_999}


def test_a_round_knows_the_block_that_opened_it(world: World) -> None:
    scene = Scene.make(world)
    traces = scene.do(scene.open(norm_max_e6=123)).traces
    found = scene.round()
    assert found["opened_block"] == traces["block_num"]
    assert found["norm_max_e6"] == 123


@pytest.mark.parametrize(
    ("name", "terms", "fields"),
    [
        ("least cost", {}, {"cost": 1}),
        ("most cost", {}, {"cost": 1000}),
        ("most errors", {}, {"errors": [5, 4, 3, 2, 1]}),
        ("largest error", {}, {"errors": [1_000_000, 0]}),
        ("smallest fall", {}, {"errors": [1, 0]}),
        ("least slope", {}, {"errors": [1_000_000, 1_000_000, 999_999]}),
        ("hash of one bit", {}, {"hash": "00" * 31 + "01"}),
        ("one point under tau", {"rule": 2}, {"errors": [99_999]}),
        ("threshold while rising", {"rule": 2}, {"errors": [0, 99_999]}),
        ("either by trend", {"rule": 3}, {"errors": [900_001, 900_000]}),
        ("either by threshold", {"rule": 3}, {"errors": [5, 6]}),
        ("both", {"rule": 4}, {"errors": [100_000, 99_999]}),
    ],
)
def test_an_upload_at_a_bound_is_taken(world: World, name: str, terms: dict, fields: dict) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(**terms))
    scene.do(scene.upload(scene.devices[0], **fields))
    assert scene.round()["uploads"] == 1, name


def test_an_upload_may_use_the_last_unit(world: World) -> None:
    scene = Scene.make(world, deposit=600)
    scene.do(scene.open(budget=600), scene.upload(scene.devices[0]))
    assert scene.money()["free"] == 0


def test_an_upload_that_is_refused_by_the_contract_can_be_mended(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open())
    world.refusal(scene.upload(scene.devices[0], cost=0))
    scene.do(scene.upload(scene.devices[0]))
    assert scene.member(scene.devices[0])["upload_state"] == PENDING


def test_hashes_with_equal_first_bytes_are_different_uploads(world: World) -> None:
    scene = Scene.make(world, devices=18)
    scene.do(scene.open())
    hashes = [f"{1:016x}{n:048x}" for n in range(18)]
    scene.do(*[scene.upload(d, hash=h) for d, h in zip(scene.devices[:16], hashes, strict=False)])
    for validator in scene.quorum():
        scene.do(scene.verdict(validator, scene.devices[:16]))
    assert scene.round()["accepted"] == 16
    # the look-up stays short: no more than 16 of a kind
    message = world.refusal(scene.upload(scene.devices[16], hash=hashes[16]))
    assert message == "repeated_hash: expected a new hash, 16 uploads have its first eight bytes"


def test_the_device_must_sign(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open())
    one = scene.upload(scene.devices[0])
    forged = type(one)(one.account, one.name, ((scene.devices[1], "active"),), one.data)
    with pytest.raises(ContractError, match="missing authority"):
        scene.do(forged)


@pytest.mark.parametrize("action", ["uploadgrad", "payment"])
def test_not_even_the_contracts_own_key_calls_internal_actions(world: World, action: str) -> None:
    scene = Scene.make(world)
    scene.do(scene.open())
    data = scene.upload_data(scene.devices[0])
    if action == "payment":
        data = {"version": 1, "device": scene.devices[0], "quantity": "0.0001 TOK"}
    message = world.refusal(scene.act(action, world.contract, **data))
    assert message == (
        f"internal_only: expected an inline action of {world.contract}, got a call from outside"
    )


# ---- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(("validators", "quorum"), [(1, 1), (2, 2), (3, 3), (4, 3), (7, 5)])
def test_the_quorum_pays_and_one_fewer_does_not(world: World, validators: int, quorum: int) -> None:
    scene = Scene.make(world, validators=validators)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device))
    for validator in scene.validators[: quorum - 1]:
        scene.do(scene.verdict(validator, [device]))
    assert scene.member(device)["upload_state"] == PENDING
    assert world.balance(device) == 0
    scene.do(scene.verdict(scene.validators[quorum - 1], [device]))
    assert scene.member(device)["upload_state"] == PAID
    assert scene.member(device)["upload_reason"] == 1
    assert world.balance(device) == 600
    assert scene.money()["paid"] == 600
    assert scene.money()["reserved"] == 0


def test_a_refusal_gives_the_reserve_back(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device))
    scene.do(*[scene.verdict(v, [device], code=MALFORMED) for v in scene.quorum()])
    row = scene.member(device)
    assert (row["upload_state"], row["upload_reason"]) == (REFUSED, MALFORMED)
    assert world.balance(device) == 0
    assert scene.money()["free"] == 1_000_000
    found = scene.round()
    assert (found["pending"], found["accepted"], found["refused"]) == (0, 0, 1)


def test_a_byzantine_minority_changes_nothing(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device))
    scene.do(scene.verdict(scene.validators[0], [device], code=MALFORMED))
    scene.do(*[scene.verdict(v, [device]) for v in scene.validators[1:]])
    assert scene.member(device)["upload_state"] == PAID
    assert scene.ballot(device)["verdicts"] == "04010101" + "00" * 28


def test_a_late_verdict_is_recorded_without_effect(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.close())
    assert scene.round()["state"] == SUMMING
    before = scene.round(), scene.money()
    scene.do(scene.verdict(scene.validators[3], scene.devices, code=MALFORMED))
    assert (scene.round(), scene.money()) == before
    assert scene.ballot(scene.devices[0])["verdicts"] == "01010104" + "00" * 28


def test_a_batch_judges_each_upload_on_its_own(world: World) -> None:
    scene = Scene.make(world, devices=40)
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices])
    good, bad = scene.devices[::2], scene.devices[1::2]
    for validator in scene.validators:
        scene.do(
            scene.verdict(validator, good),
            scene.verdict(validator, bad, code=MALFORMED),
        )
    found = scene.round()
    assert (found["accepted"], found["refused"], found["pending"]) == (20, 20, 0)
    assert {world.balance(d) for d in good} == {600}
    assert {world.balance(d) for d in bad} == {0}


def test_a_device_is_paid_once_for_a_version(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]
    scene.do(scene.open(), scene.upload(device))
    scene.do(*[scene.verdict(v, [device]) for v in scene.validators])
    world.refusal(scene.upload(device, hash=digest("again")))
    assert world.balance(device) == 600
    assert scene.money()["paid"] == 600


def test_validators_are_the_active_producers_where_the_task_says_so(world: World) -> None:
    scene = Scene.make(world, validators=1, validators_kind=1)
    scene.do(scene.act("admit", scene.owner, accounts=["eosio"], role=2))
    # an admitted producer that has not joined does not do, nor a validator that is no producer
    assert "not_a_validator" in world.refusal(scene.open())
    scene.do(scene.join("eosio", classes=0))
    scene.do(scene.open(), scene.upload(scene.devices[0]))
    assert scene.round()["validators"] == ["eosio"]
    message = world.refusal(scene.verdict(scene.validators[0], scene.devices[:1]))
    assert message == (
        f"not_a_validator: {scene.validators[0]} is not among the validators of round 1"
    )
    scene.do(scene.verdict("eosio", scene.devices[:1]))
    assert scene.member(scene.devices[0])["upload_state"] == PAID


def test_validators_ascend_and_only_the_joined_count(world: World) -> None:
    scene = Scene.make(world, validators=5)
    extra = world.accounts(1)
    scene.do(scene.act("admit", scene.owner, accounts=extra, role=2))
    scene.do(scene.open())
    assert scene.round()["validators"] == scene.validators
    assert scene.round()["sums"] == [{"hash": ZERO, "cid": ZERO}] * 5


# ---- closing, sum ---------------------------------------------------------------------------


def test_the_owner_may_close_early_once_enough_have_uploaded(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(close_after=2), scene.upload(scene.devices[0]))
    assert "deadline_not_passed" in world.refusal(scene.close())
    scene.do(scene.upload(scene.devices[1]), scene.close())
    assert scene.round()["state"] == VERIFYING


def test_anyone_may_close_after_the_deadline(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(open_sec=2, close_after=0), scene.upload(scene.devices[0]))
    scene.wait(parse_time(scene.round()["deadline"]))
    assert "deadline_passed" in world.refusal(scene.upload(scene.devices[1]))
    scene.do(scene.close(caller=scene.devices[1]))
    assert scene.round()["state"] == VERIFYING


def test_a_round_without_uploads_goes_straight_on(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(open_sec=1))
    scene.wait(parse_time(scene.round()["deadline"]))
    scene.do(scene.close(), scene.settle())
    found = scene.round()
    assert (found["state"], found["root"]) == (SETTLED, EMPTY_ROOT)
    scene.do(scene.open(2))
    assert scene.round(2)["state"] == OPEN


@pytest.mark.parametrize(
    ("mode", "accepted", "state"), [(0, 3, SUMMING), (0, 2, SUMMED), (1, 3, SUMMED)]
)
def test_a_sum_is_due_only_of_enough_in_paillier_mode(
    world: World, mode: int, accepted: int, state: int
) -> None:
    scene = Scene.make(world, mode=mode)
    good, bad = scene.devices[:accepted], scene.devices[accepted:]
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices], scene.close())
    for validator in scene.quorum():
        actions = [scene.verdict(validator, good)]
        if bad:
            actions.append(scene.verdict(validator, bad, code=MALFORMED))
        scene.do(*actions)
    found = scene.round()
    assert (found["state"], found["sum_hash"]) == (state, ZERO)


def test_the_sum_needs_a_quorum_of_equal_hashes(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.close())
    scene.do(
        scene.vote_sum(scene.validators[0], hash=digest("wrong")),
        scene.vote_sum(scene.validators[1]),
        scene.vote_sum(scene.validators[2]),
    )
    assert scene.round()["state"] == SUMMING
    scene.do(scene.vote_sum(scene.validators[3]))
    found = scene.round()
    assert (found["state"], found["sum_hash"]) == (SUMMED, digest("sum"))
    assert found["sum_cid"] == cid_to_digest(cid("sum", scene.validators[3])).hex()
    assert found["sums"][1]["hash"] == digest("sum")


# ---- settling -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 17])
def test_the_root_is_the_one_that_python_computes(
    world: World, contract: FedLearning, count: int
) -> None:
    scene = Scene.make(world, devices=count + 1, mode=1)
    loaded = scene.devices[:count]
    scene.do(scene.open(), *[scene.upload(d, cost=10 + i) for i, d in enumerate(loaded)])
    for validator in scene.quorum():
        scene.do(scene.verdict(validator, loaded[:1], code=MALFORMED))
        if loaded[1:]:
            scene.do(scene.verdict(validator, loaded[1:]))
    scene.do(scene.close(), scene.settle(limit=2))
    while scene.round()["state"] != SETTLED:
        scene.do(scene.settle(limit=3))
    found = scene.round()
    records = round_records(scene.task, contract.members(scene.task), 1, found["price"])
    assert len(records) == count == found["settled"]
    assert found["root"] == merkle_root(records).hex()
    for index, record in enumerate(records):
        path = merkle_path(records, index)
        assert verify_path(record, index, count, path, bytes.fromhex(found["root"]))


def test_settling_hands_the_transient_ram_back(world: World) -> None:
    scene = Scene.make(world)
    before_task = world.ram(scene.owner)
    devices_before = [world.ram(d) for d in [*scene.devices, *scene.validators]]
    scene.do(scene.open())
    opened = world.ram(scene.owner)
    for device in scene.devices:
        scene.do(scene.upload(device))
    for validator in scene.quorum():
        scene.do(scene.verdict(validator, scene.devices))
    scene.do(scene.close(), *[scene.vote_sum(v) for v in scene.quorum()])
    assert world.ram(scene.owner) == opened  # neither uploads nor verdicts take any
    scene.do(scene.settle())
    settled = world.ram(scene.owner)
    # the vectors: 4 validators of 8 + 64 bytes, 16 subtree roots of 32
    assert opened - settled == 4 * 72 + 16 * 32
    scene.do(scene.open(2))
    second = world.ram(scene.owner) - settled
    scene.do(scene.upload(scene.devices[0], 2), scene.close(2))
    # a table's own 112 bytes came with the first round
    assert second == opened - before_task - 112
    after = [world.ram(d) for d in [*scene.devices, *scene.validators]]
    # a device's first balance is a row that the token contract bills to the payer, the contract
    assert after == devices_before


def test_a_member_that_leaves_gives_its_ram_back(world: World) -> None:
    scene = Scene.make(world, devices=1, validators=1)
    before = world.ram(scene.owner)
    device, validator = world.accounts(2)
    scene.do(scene.act("admit", scene.owner, accounts=[device], role=1))
    scene.do(scene.act("admit", scene.owner, accounts=[validator], role=2))
    assert scene.task_row()["devices"] == scene.task_row()["validators"] == 2
    scene.do(scene.act("remove", device, account=device))
    scene.do(scene.act("remove", scene.owner, account=validator))
    assert world.ram(scene.owner) == before
    assert scene.task_row()["devices"] == scene.task_row()["validators"] == 1
    assert len(scene.members()) == 2


def test_the_next_round_starts_anew(world: World) -> None:
    scene = Scene.make(world, mode=1)
    for version in (1, 2, 3):
        scene.do(scene.open(version), *[scene.upload(d, version) for d in scene.devices])
        scene.do(*[scene.verdict(v, scene.devices, version) for v in scene.quorum()])
        scene.do(scene.close(version), scene.settle(version))
    assert [world.balance(d) for d in scene.devices] == [1800] * 3
    assert scene.task_row()["paid"] == 5400 == scene.money()["paid"]


def test_a_validation_set_is_recorded_for_the_next_or_the_open_round(world: World) -> None:
    scene = Scene.make(world)
    device = scene.devices[0]

    def issue(version: int, tag: str) -> dict:
        scene.do(
            scene.act(
                "issueset",
                scene.owner,
                device=device,
                version=version,
                cid=cid(tag),
                hash=digest(tag, "hash"),
            )
        )
        return scene.member(device)

    row = issue(1, "a")
    assert row["set_version"] == 1
    assert row["set_cid"] == cid_to_digest(cid("a")).hex()
    assert row["set_hash"] == digest("a", "hash")
    scene.do(scene.open())
    assert issue(1, "b")["set_cid"] == cid_to_digest(cid("b")).hex()
    scene.do(*[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    scene.do(scene.close(), *[scene.vote_sum(v) for v in scene.quorum()], scene.settle())
    assert issue(2, "c")["set_version"] == 2


def test_members_may_change_their_key_between_rounds(world: World) -> None:
    scene = Scene.make(world, mode=1)
    device = scene.devices[0]
    scene.do(scene.join(device, classes=0b1000))
    assert scene.member(device)["classes"] == 0b1000
    late = world.accounts(1)[0]
    scene.do(scene.open(), scene.act("admit", scene.owner, accounts=[late], role=1))
    scene.do(scene.join(late), scene.upload(late))  # the first time, also in a round
    assert scene.round()["uploads"] == 1
