"""Table `ballots`: rows that come and go with devices, slots, and what a ballot takes when."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from contracts.model import PAGE_ROW, ROW_EXTRA, TABLE_EXTRA
from contracts.world import (
    ACCEPT,
    DRAWN,
    MALFORMED,
    OPENING_MISMATCH,
    PAID,
    PENDING,
    REFUSED,
    SUMMED,
    UNREVEALED,
    ZERO,
    Scene,
    World,
    digest,
    task_document,
)

from gradledger.chain.abi import parse_time
from gradledger.chain.contract import BALLOTS_PER_ROW, BallotStage, FedLearning
from gradledger.chain.transaction import Action

ALL = 1_000_000
PAGE = BALLOTS_PER_ROW
EMPTY = {"device": "", "hash": ZERO, "stage": BallotStage.NONE, "verdicts": ZERO}


def admit(scene: Scene, accounts: list[str]) -> Action:
    return scene.act("admit", scene.owner, accounts=accounts, role=1)


def leave(scene: Scene, account: str) -> Action:
    return scene.act("remove", scene.owner, account=account)


def slots(scene: Scene) -> list[int]:
    return [scene.member(d)["upload_slot"] for d in scene.devices]


def stages(scene: Scene) -> list[int]:
    return [scene.ballot(d)["stage"] for d in scene.devices]


def codes(scene: Scene, device: str) -> list[int]:
    """Return what the validators said about a device's upload."""
    said = bytes.fromhex(scene.ballot(device)["verdicts"])
    assert not any(said[len(scene.validators) :])
    return list(said[: len(scene.validators)])


# ---- rows -----------------------------------------------------------------------------------


def test_a_row_comes_with_the_1st_33rd_and_65th_device_and_goes_with_it(world: World) -> None:
    owner, *devices = world.accounts(1 + 2 * PAGE + 2)
    terms = task_document(token_contract=world.token, token_symbol=str(world.symbol))
    scene = Scene(world, owner, owner, devices, [], terms, 0)
    scene.do(world.act("createtask", owner, task=owner, owner=owner, terms=terms))
    empty = world.ram(owner)

    def look() -> tuple[int, int]:
        """Return what the owner pays for, and the number of rows, which are all in order."""
        pages = scene.pages()
        assert [page["page"] for page in pages] == list(range(len(pages)))
        assert all(len(page["ballots"]) == PAGE for page in pages)
        return world.ram(owner) - empty, len(pages)

    seen, order = {0: look()}, random.Random(1).sample(devices, len(devices))
    edges = [0, 1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1]
    for before, count in pairwise(edges):
        scene.do(admit(scene, order[before:count]))
        seen[count] = look()
    assert [rows for _, rows in seen.values()] == [0, 1, 1, 1, 1, 2, 2, 3]
    member = seen[2][0] - seen[1][0]
    row = PAGE_ROW + ROW_EXTRA
    assert seen[1][0] == member + row + 2 * TABLE_EXTRA  # the tables `members` and `ballots`
    assert seen[PAGE][0] == PAGE * member + row + 2 * TABLE_EXTRA
    assert seen[2 * PAGE + 1][0] == (2 * PAGE + 1) * member + 3 * row + 2 * TABLE_EXTRA
    order = random.Random(2).sample(order[: edges[-1]], edges[-1])
    for count, less in pairwise(reversed(edges)):
        scene.do(*[leave(scene, one) for one in order[less:count]])
        assert look() == seen[less], less
    # all at once, across two rows
    scene.do(admit(scene, devices[: 2 * PAGE + 1]))
    assert look() == seen[2 * PAGE + 1]
    # a list that ends in a refusal leaves no row
    again = world.refusal(admit(scene, [devices[-1], devices[0]]))
    assert again == f"already_member: {devices[0]} is a member of task {owner}"
    assert look() == seen[2 * PAGE + 1]


def test_validators_need_no_ballots(world: World) -> None:
    scene = Scene.make(world, devices=0, validators=32)
    assert scene.pages() == []
    extra = world.accounts(1)
    scene.do(
        leave(scene, scene.validators[0]), scene.act("admit", scene.owner, accounts=extra, role=2)
    )
    assert scene.pages() == []


def test_a_row_that_went_comes_back_empty(world: World) -> None:
    scene = Scene.make(world, devices=1, mode=1)
    (device,) = scene.devices
    scene.do(scene.open(), scene.upload(device), scene.close())
    scene.do(*[scene.verdict(v, [device]) for v in scene.quorum()], scene.settle())
    assert scene.ballots() == [
        {
            "device": device,
            "hash": digest("upload", scene.task, device, 1),
            "stage": BallotStage.DECIDED,
            "verdicts": "010101" + "00" * 29,
        },
        *[EMPTY] * (PAGE - 1),
    ]
    before = world.ram(scene.owner)
    scene.do(scene.act("remove", device, account=device))
    assert scene.pages() == []
    scene.do(admit(scene, [device]))
    assert scene.ballots() == [EMPTY] * PAGE
    assert world.ram(scene.owner) == before


# ---- slots ----------------------------------------------------------------------------------


def test_uploads_have_slots_in_their_order_whoever_comes_and_goes(world: World) -> None:
    """Also while the number of devices goes to and fro between one row and two."""
    scene = Scene.make(world, devices=PAGE + 2, mode=1)
    first, second, third, gone, *others = scene.devices
    (late,) = world.accounts(1)
    scene.do(scene.open(), scene.upload(third), scene.upload(first))
    message = world.refusal(leave(scene, first))
    assert message == f"round_open: {first} has an upload in round 1, which is not settled"
    scene.do(leave(scene, gone), leave(scene, others.pop()))
    assert len(scene.pages()) == 1
    scene.do(scene.upload(second), admit(scene, [late]), scene.join(late))
    assert len(scene.pages()) == 2
    scene.do(scene.upload(late), admit(scene, [gone]), scene.join(gone), scene.upload(gone))
    scene.devices = [third, first, second, late, gone]
    assert slots(scene) == [0, 1, 2, 3, 4]
    assert [one["device"] for one in scene.ballots()[:6]] == [*scene.devices, ""]
    for validator in scene.quorum():
        scene.do(scene.verdict(validator, [gone, first, late]))
    assert [scene.member(d)["upload_state"] for d in scene.devices] == [1, 2, 1, 2, 2]
    # in the next round the slots are given anew
    scene.do(*[scene.verdict(v, [second, third]) for v in scene.quorum()], scene.close())
    scene.do(scene.settle(), leave(scene, third), scene.open(2), scene.upload(gone, 2))
    assert scene.member(gone)["upload_slot"] == 0
    assert scene.member(first)["upload_slot"] == 1  # of its newest upload, in round 1
    assert [one["device"] for one in scene.ballots()[:3]] == [gone, first, second]


def test_a_ballot_of_an_older_round_takes_no_verdicts(world: World, contract: FedLearning) -> None:
    """Not even by the hash and slot that it had, until a new upload takes its place."""
    scene = Scene.make(world, mode=1)
    _, two, three = scene.devices
    late = scene.validators[3]  # has not judged in the first round
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices], scene.close())
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.settle())
    scene.do(scene.open(2), scene.upload(three, 2))
    stale = [
        {"slot": slot, "hash": digest("upload", scene.task, d, 1), "code": ACCEPT}
        for slot, d in enumerate(scene.devices)
    ]
    before = scene.everything()
    assert world.refusal(scene.attest(late, stale[1:2], 2)) == (
        "unknown_upload: expected a slot below 1, the uploads of round 2, got 1"
    )
    assert world.refusal(scene.attest(late, stale[:1], 2)) == (
        "unknown_upload: expected the hash of the upload in slot 0 of round 2, got another"
    )
    assert scene.everything() == before
    assert [found.device for found in contract.ballots(scene.task, 1)] == [three]
    assert contract.ballots(scene.task, 0) == []
    found = contract.ballot(scene.task, 0)
    assert found is not None and found.stage is BallotStage.OPEN and not any(found.verdicts)
    assert contract.ballot(scene.task, PAGE) is None
    scene.do(scene.upload(two, 2), scene.verdict(late, [two, three], 2))
    assert codes(scene, two) == codes(scene, three) == [0, 0, 0, 1]
    assert scene.ballots()[2]["device"] == three  # what it said in round 1, still


def test_one_batch_in_any_order_over_several_rows(world: World) -> None:
    """Half of the uploads are refused; the last verdict of a quorum decides all of them at once."""
    count = 2 * PAGE + 6
    scene = Scene.make(world, devices=count, mode=1)
    rng = random.Random(3)
    uploading = rng.sample(scene.devices, count)
    scene.do(scene.open(), *[scene.upload(d) for d in uploading])
    assert [one["device"] for one in scene.ballots()[:count]] == uploading
    assert len(scene.pages()) == 3
    before = world.ram(scene.owner)
    bad = set(uploading[::2])
    for place, validator in enumerate(scene.validators):
        said = [
            {
                "slot": slot,
                "hash": digest("upload", scene.task, device, 1),
                "code": MALFORMED if device in bad else ACCEPT,
            }
            for slot, device in enumerate(uploading)
        ]
        rng.shuffle(said)
        twice = world.refusal(scene.attest(validator, [*said, said[0]]))
        judged = uploading[said[0]["slot"]]
        assert (
            twice == f"already_attested: {validator} has judged the upload of {judged} in round 1"
        )
        scene.do(scene.attest(validator, said))
        for device, found in zip(uploading, scene.ballots(), strict=False):
            code = MALFORMED if device in bad else ACCEPT
            expected = bytes([code] * (place + 1)).ljust(32, b"\0").hex()
            assert found["verdicts"] == expected
            assert found["stage"] == (BallotStage.DECIDED if place >= 2 else BallotStage.OPEN)
    for row in scene.members():
        if row["account"] in uploading:
            state = REFUSED if row["account"] in bad else PAID
            assert row["upload_state"] == state
    assert {world.balance(d) for d in bad} == {0}
    assert {world.balance(d) for d in uploading if d not in bad} == {600}
    assert scene.money()["paid"] == 600 * count // 2
    assert world.ram(scene.owner) == before
    scene.do(scene.close(), scene.settle())
    assert scene.round()["settled"] == count


@pytest.mark.parametrize(("validators", "quorum"), [(5, 4), (21, 15), (32, 22)])
def test_each_of_many_validators_has_its_place(world: World, validators: int, quorum: int) -> None:
    """With audits, so that the round's row is as long as it can be."""
    scene = Scene.make(world, devices=1, validators=validators, lot_e6=ALL)
    (device,) = scene.devices
    scene.do(scene.open(), *[scene.commit_lot(v) for v in scene.quorum()], scene.upload(device))
    order = random.Random(4).sample(scene.validators, validators)
    scene.do(*[scene.verdict(v, [device]) for v in order[: quorum - 1]])
    assert scene.member(device)["upload_state"] == PENDING
    scene.do(scene.verdict(order[quorum - 1], [device]))
    assert scene.ballot(device)["stage"] == BallotStage.DECIDED
    scene.do(*[scene.verdict(v, [device], code=MALFORMED) for v in order[quorum:]])
    assert codes(scene, device) == [
        ACCEPT if v in order[:quorum] else MALFORMED for v in scene.validators
    ]
    scene.do(scene.close(), *[scene.reveal_lot(v) for v in scene.quorum()])
    scene.do(scene.push_on(world.creator))
    scene.do(scene.opening(device))
    refusing = [
        scene.audit_verdict(v, [device], code=OPENING_MISMATCH + place % 2)
        for place, v in enumerate(order[: quorum - 1])
    ]
    scene.do(*refusing)
    assert scene.member(device)["upload_state"] == DRAWN
    scene.do(scene.audit_verdict(order[quorum - 1], [device], code=OPENING_MISMATCH))
    assert scene.member(device)["upload_reason"] == OPENING_MISMATCH
    scene.do(scene.settle())


# ---- stages ---------------------------------------------------------------------------------


def test_a_hidden_upload_can_be_refused_or_revealed_and_is_decided(world: World) -> None:
    scene = Scene.make(world, mode=1)
    told, refused, _ = scene.devices
    scene.do(scene.open(reveal_sec=2, verdict_sec=1))
    scene.do(*[scene.upload(d, cid="") for d in scene.devices], scene.close())
    assert stages(scene) == [BallotStage.HIDDEN] * 3
    scene.do(scene.reveal(told))
    assert stages(scene) == [BallotStage.OPEN, BallotStage.HIDDEN, BallotStage.HIDDEN]
    scene.do(scene.verdict(scene.validators[0], [told]))
    scene.wait(parse_time(scene.round()["reveal_deadline"]))
    scene.do(*[scene.verdict(v, [refused], code=UNREVEALED) for v in scene.quorum()])
    assert stages(scene) == [BallotStage.OPEN, BallotStage.DECIDED, BallotStage.HIDDEN]
    scene.wait(parse_time(scene.round()["verdict_deadline"]))
    scene.do(scene.push_on(world.creator))
    assert stages(scene) == [BallotStage.DECIDED] * 3
    # once decided, whatever is said is recorded, in time or not
    scene.do(scene.verdict(scene.validators[3], scene.devices))
    assert [codes(scene, d) for d in scene.devices] == [[1, 0, 0, 1], [17, 17, 17, 1], [0, 0, 0, 1]]


def test_the_stages_of_an_audit(world: World) -> None:
    """Opened and judged, opened and not judged, not opened."""
    scene = Scene.make(world, lot_e6=ALL, bar_rounds=1)
    judged, waiting, mute = scene.devices
    scene.do(scene.open(audit_sec=2), *[scene.commit_lot(v) for v in scene.validators])
    scene.do(*[scene.upload(d) for d in scene.devices])
    assert stages(scene) == [BallotStage.OPEN] * 3
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.close())
    assert stages(scene) == [BallotStage.DECIDED] * 3  # accepted, and their pay waits
    scene.do(*[scene.reveal_lot(v) for v in scene.validators], scene.push_on(world.creator))
    assert stages(scene) == [BallotStage.DRAWN] * 3
    assert [codes(scene, d) for d in scene.devices] == [[0] * 4] * 3  # each begins anew
    scene.do(scene.opening(judged), scene.opening(waiting))
    assert stages(scene) == [BallotStage.OPENED, BallotStage.OPENED, BallotStage.DRAWN]
    scene.do(*[scene.audit_verdict(v, [judged]) for v in scene.quorum()])
    assert stages(scene) == [BallotStage.AUDITED, BallotStage.OPENED, BallotStage.DRAWN]
    deadline = parse_time(scene.round()["audit_deadline"])
    scene.wait(deadline)
    scene.do(scene.push_on(world.creator))
    scene.wait(deadline + 2)
    scene.do(scene.push_on(world.creator))
    assert stages(scene) == [BallotStage.AUDITED, BallotStage.AUDITED, BallotStage.DRAWN]
    assert scene.round()["state"] == SUMMED
    # a verdict on the upload says nothing about its audit; one on the audit is recorded, if there
    # was something to judge
    last = scene.validators[3]
    scene.do(scene.verdict(last, scene.devices, code=MALFORMED))
    assert [codes(scene, d) for d in scene.devices] == [[1, 1, 1, 0], [0] * 4, [0] * 4]
    scene.do(scene.audit_verdict(last, [judged, waiting], code=OPENING_MISMATCH))
    assert [codes(scene, d) for d in (judged, waiting)] == [[1, 1, 1, 16], [0, 0, 0, 16]]
    assert world.refusal(scene.audit_verdict(last, [mute])) == (
        f"not_opened: expected a verdict on an opened upload, that of {mute} is not"
    )
    assert [scene.member(d)["upload_state"] for d in scene.devices] == [PAID, REFUSED, REFUSED]


# ---- lots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lot_e6", "each"), [(0, 72), (1, 136)])
def test_lots_take_room_only_where_there_are_audits(world: World, lot_e6: int, each: int) -> None:
    scene = Scene.make(world, devices=1, validators=7, lot_e6=lot_e6)
    before = world.ram(scene.owner)
    scene.do(scene.open())
    row = scene.round()
    assert row["lots"] == ([{"commitment": ZERO, "value": ZERO}] * 7 if lot_e6 else [])
    assert len(row["sums"]) == len(row["validators"]) == 7
    fixed = 306 + 4 + 16 * 32
    assert world.ram(scene.owner) - before == fixed + 7 * each + ROW_EXTRA + TABLE_EXTRA
