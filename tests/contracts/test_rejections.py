"""One row per refusal: its exact message, and that nothing changed.

Each row names the stage that a fresh task is brought to, and the action that is refused there.
In the messages ``{task}``, ``{owner}``, ``{d0}``, ``{v0}`` ... stand for the scene's accounts, and
``#`` for a time in seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from contracts.world import (
    MALFORMED,
    OPENING_MISMATCH,
    UNREVEALED,
    ZERO,
    Scene,
    World,
    cid,
    digest,
)

from gradledger.chain.abi import parse_time
from gradledger.chain.transaction import Action
from gradledger.cid import digest_to_cid

# ---- stages ---------------------------------------------------------------------------------


def created(scene: Scene) -> None:
    """The members have joined, the money is there, no round was opened."""


def opened(scene: Scene) -> None:
    scene.do(scene.open())


def uploaded(scene: Scene) -> None:
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices[:3]])


def decided(scene: Scene) -> None:
    uploaded(scene)
    scene.do(*[scene.verdict(v, scene.devices[:3]) for v in scene.quorum()])


def verifying(scene: Scene) -> None:
    uploaded(scene)
    scene.do(scene.close())


def summing(scene: Scene) -> None:
    decided(scene)
    scene.do(scene.close())


def summed(scene: Scene) -> None:
    summing(scene)
    scene.do(*[scene.vote_sum(v) for v in scene.quorum()])


def settled(scene: Scene) -> None:
    summed(scene)
    scene.do(scene.settle())


def reopened(scene: Scene) -> None:
    settled(scene)
    scene.do(scene.open(2))


def expired(scene: Scene) -> None:
    """The time for uploads is over and nobody has closed the round."""
    scene.do(scene.open(open_sec=1))
    scene.wait(parse_time(scene.round()["deadline"]))


def committed(scene: Scene) -> None:
    """Of a task with lots, which all are committed to."""
    scene.do(scene.open(), *[scene.commit_lot(v) for v in scene.validators])


def loaded(scene: Scene) -> None:
    committed(scene)
    scene.do(*[scene.upload(d) for d in scene.devices[:3]])


def drawing(scene: Scene) -> None:
    loaded(scene)
    scene.do(*[scene.verdict(v, scene.devices[:3]) for v in scene.quorum()], scene.close())


def auditing(scene: Scene) -> None:
    drawing(scene)
    scene.do(*[scene.reveal_lot(v) for v in scene.validators], scene.push_on(scene.owner))


def barred(scene: Scene) -> None:
    """The first device was caught; the next round is open to uploads."""
    auditing(scene)
    scene.do(*[scene.opening(d) for d in scene.devices[:3]])
    for validator in scene.quorum():
        scene.do(
            scene.audit_verdict(validator, scene.devices[:1], code=OPENING_MISMATCH),
            scene.audit_verdict(validator, scene.devices[1:3]),
        )
    scene.do(scene.settle(), scene.open(2), *[scene.commit_lot(v, 2) for v in scene.validators])


def hidden(scene: Scene) -> None:
    """Three uploads whose CIDs are not known yet."""
    scene.do(scene.open(reveal_sec=3600), *[scene.upload(d, cid="") for d in scene.devices[:3]])


def revealing(scene: Scene) -> None:
    hidden(scene)
    scene.do(scene.close())


def unrevealed(scene: Scene) -> None:
    """It is too late for CIDs; the first device told its own."""
    uploads = [scene.upload(d, cid="") for d in scene.devices[:3]]
    scene.do(scene.open(reveal_sec=2), *uploads, scene.close(), scene.reveal(scene.devices[0]))
    scene.wait(parse_time(scene.round()["reveal_deadline"]))


def after(
    actions: Callable[[Scene], list[Action]], before: Callable[[Scene], None] = created
) -> Callable[[Scene], None]:
    """Return the stage that these actions lead to."""

    def stage(scene: Scene) -> None:
        before(scene)
        scene.do(*actions(scene))

    return stage


# ---- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    id: str
    stage: Callable[[Scene], None]
    action: Callable[[Scene], Action]
    message: str
    make: dict[str, Any] = field(default_factory=dict)


def upload(stage: Callable[[Scene], None], name: str, message: str, **fields: Any) -> Row:
    """Return the row of an upload of the fourth device with one field that is wrong."""
    make = fields.pop("make", {})
    version = fields.pop("version", 1)
    return Row(
        f"upload-{name}", stage, lambda s: s.upload(s.devices[3], version, **fields), message, make
    )


def terms(name: str, value: Any, message: str, **others: Any) -> Row:
    """Return the row of `createtask` with one term that is wrong."""

    def build(s: Scene) -> Action:
        document = {**s.terms, name: value, **others}
        return s.world.act("createtask", s.owner, task="zz", owner=s.owner, terms=document)

    return Row(f"createtask-{name}", created, build, message)


def round_terms(name: str, value: Any, message: str, **make: Any) -> Row:
    return Row(f"openround-{name}", created, lambda s: s.open(**{name: value}), message, make)


def training(name: str, value: int, message: str, **fields: Any) -> Row:
    recipe = {"epochs": 1, "batch_size": 1, "rate_e6": 1, "measures": 4, "seed": 0, name: value}
    return Row(f"openround-{name}", created, lambda s: s.open(training=recipe, **fields), message)


def said_of(
    scene: Scene, *slots: int, hash_of: int | None = None, version: int = 1, action: str = "attest"
) -> Action:
    """Return the first validator's verdicts on these slots, right unless another hash is asked.

    The hashes are those of the first round's uploads, in the order of the devices.
    """
    hashes = [digest("upload", scene.task, device, 1) for device in scene.devices]
    verdicts = [
        {"slot": slot, "hash": hashes[(slot if hash_of is None else hash_of) % 3], "code": 1}
        for slot in slots
    ]
    data = {"version": version, "validator": scene.validators[0], "verdicts": verdicts}
    return scene.act(action, scene.validators[0], **data)


LOTS = {"lot_e6": 1_000_000, "bar_rounds": 2}
PHASES = "verifying, drawing, auditing or summing"
NO_DIGEST = digest_to_cid(bytes(32))
TOO_EARLY = "deadline_not_passed: expected a time of at least #, it is #"
NO_CID = (
    "expected a CIDv0 of 46 base58 characters that starts with Qm, got {n} characters that are none"
)


def no_cid(field_name: str, characters: int) -> str:
    return f"bad_cid: {field_name}: " + NO_CID.format(n=characters)


HASH = digest("some hash")
ROWS = [
    # ---- uploads: what the issue names first --------------------------------------------------
    Row(
        "upload-unknown-task",
        opened,
        lambda s: s.act(
            "fedlearning", s.devices[0], **{**s.upload_data(s.devices[0]), "task": "zz"}
        ),
        "unknown_task: expected the name of a task, got 'zz'",
    ),
    Row(
        "upload-by-the-owner",
        opened,
        lambda s: s.upload(s.owner),
        "owner_cannot_upload: {owner} is the owner of task {task}",
    ),
    Row(
        "upload-by-a-stranger",
        opened,
        lambda s: s.upload(s.world.creator),
        "not_a_member: {creator} is no member of task {task}",
    ),
    Row(
        "upload-by-a-validator",
        opened,
        lambda s: s.upload(s.validators[0]),
        "wrong_role: expected a device, {v0} is a validator",
    ),
    upload(created, "no-round", "round_not_open: task {task} has no round yet"),
    upload(verifying, "closed", "round_not_open: expected round 1 to be open, it is verifying"),
    upload(settled, "settled", "round_not_open: expected round 1 to be open, it is settled"),
    upload(expired, "deadline", "deadline_passed: expected an upload before #, the time is #"),
    upload(reopened, "stale", "stale_version: got version 1, the current version is 2", version=1),
    upload(
        reopened, "stale-zero", "stale_version: got version 0, the current version is 2", version=0
    ),
    upload(opened, "future", "future_version: got version 2, the current version is 1", version=2),
    Row(
        "upload-second",
        uploaded,
        lambda s: s.upload(s.devices[0], hash=HASH),
        "second_upload: expected one upload of {d0} for version 1",
    ),
    Row(
        "upload-second-after-decision",
        decided,
        lambda s: s.upload(s.devices[0], hash=HASH),
        "second_upload: expected one upload of {d0} for version 1",
    ),
    Row(
        "upload-stale-comes-before-second",
        reopened,
        lambda s: s.upload(s.devices[0], 1),
        "stale_version: got version 1, the current version is 2",
    ),
    upload(opened, "cost-0", "bad_cost: expected a data cost of 1 to 1000, got 0", cost=0),
    upload(opened, "cost-max", "bad_cost: expected a data cost of 1 to 1000, got 1001", cost=1001),
    upload(
        opened,
        "cost-largest",
        "bad_cost: expected a data cost of 1 to 1000, got 4294967295",
        cost=2**32 - 1,
    ),
    upload(
        opened, "hash-zero", "empty_hash: hash: expected a SHA-256, got 32 zero bytes", hash=ZERO
    ),
    upload(opened, "hash-empty", "short_hash: hash: expected 32 bytes, got 0", hash=""),
    upload(opened, "hash-short", "short_hash: hash: expected 32 bytes, got 31", hash=HASH[:62]),
    upload(opened, "hash-long", "short_hash: hash: expected 32 bytes, got 33", hash=HASH + "00"),
    Row(
        "upload-hash-of-another",
        uploaded,
        lambda s: s.upload(s.devices[3], hash=s.upload_data(s.devices[0])["hash"]),
        "repeated_hash: expected a hash not used before, {d0} used it in round 1",
    ),
    Row(
        "upload-own-old-hash",
        reopened,
        lambda s: s.upload(s.devices[0], 2, hash=s.upload_data(s.devices[0], 1)["hash"]),
        "repeated_hash: expected a hash not used before, {d0} used it in round 1",
    ),
    upload(opened, "cid-empty", no_cid("cid", 0), cid=""),
    upload(opened, "cid-short", no_cid("cid", 45), cid=cid("x")[:-1]),
    upload(opened, "cid-long", no_cid("cid", 47), cid=cid("x") + "1"),
    upload(opened, "cid-alphabet", no_cid("cid", 46), cid=cid("x")[:-1] + "0"),
    upload(opened, "cid-prefix", no_cid("cid", 46), cid="Rm" + cid("x")[2:]),
    upload(opened, "cid-v1", no_cid("cid", 59), cid="b" + "a" * 58),
    upload(opened, "cid-of-zeros", no_cid("cid", 46), cid=NO_DIGEST),
    upload(
        hidden,
        "cid-told-too-early",
        "bad_cid: cid: expected none before the round is closed, got 46 characters",
    ),
    upload(
        opened,
        "before-lots",
        "lots_missing: expected the lots of 3 validators before an upload, got 0",
        make=LOTS,
    ),
    upload(
        after(lambda s: [s.open(), *[s.commit_lot(v) for v in s.validators[2:]]]),
        "before-enough-lots",
        "lots_missing: expected the lots of 3 validators before an upload, got 2",
        make=LOTS,
    ),
    Row(
        "upload-barred",
        barred,
        lambda s: s.upload(s.devices[0], 2),
        "barred: {d0} failed an audit and may upload again after version 3, got version 2",
        LOTS,
    ),
    upload(opened, "errors-none", "no_errors: expected 1 to 5 validation errors, got 0", errors=[]),
    upload(
        opened,
        "errors-too-many",
        "too_many_errors: expected 1 to 5 validation errors, got 6",
        errors=[6, 5, 4, 3, 2, 1],
    ),
    upload(
        opened,
        "errors-range",
        "error_out_of_range: error 1: expected 0 to 1000000, got 1000001",
        errors=[1_000_000, 1_000_001, 0],
    ),
    upload(
        opened,
        "trend-up",
        "csves_trend: expected a slope below 0, got numerator 6",
        errors=[1, 2, 3],
    ),
    upload(
        opened,
        "trend-flat",
        "csves_trend: expected a slope below 0, got numerator 0",
        errors=[7, 7, 7],
    ),
    upload(
        opened,
        "trend-one-point",
        "csves_trend: expected a slope below 0, got numerator 0",
        errors=[7],
    ),
    upload(
        after(lambda s: [s.open(rule=2)]),
        "threshold-equal",
        "csves_threshold: expected a last error below 100000, got 100000",
        errors=[900_000, 100_000],
    ),
    upload(
        after(lambda s: [s.open(rule=3)]),
        "either",
        "csves_either: expected a slope below 0 or a last error below 100000, "
        "got numerator 1 and 100001",
        errors=[100_000, 100_001],
    ),
    upload(
        after(lambda s: [s.open(rule=4)]),
        "both-threshold-fails",
        "csves_both: expected a slope below 0 and a last error below 100000, "
        "got numerator -1 and 100000",
        errors=[100_001, 100_000],
    ),
    upload(
        after(lambda s: [s.open(rule=4)]),
        "both-trend-fails",
        "csves_both: expected a slope below 0 and a last error below 100000, got numerator 1 and 2",
        errors=[1, 2],
    ),
    upload(
        after(lambda s: [s.open(rule=5, tau=450_000)]),
        "gain-doubt",
        # three classes: 3 x (2 x 50,000 + 2 x 50,000) - 2 x 90,000
        "csves_gain: expected an excess of doubt below 0 and a last error below 300000, "
        "got 420000 and 0",
        errors=[500_000, 550_000, 550_000, 0],
    ),
    upload(
        after(lambda s: [s.open(rule=5, tau=450_000)]),
        "gain-wrong",
        "csves_gain: expected an excess of doubt below 0 and a last error below 300000, "
        "got -390000 and 300000",
        errors=[500_000, 400_000, 300_000],
    ),
    upload(
        after(lambda s: [s.open(rule=5, tau=450_000)]),
        "gain-one-doubt",
        "csves_gain: expected an excess of doubt below 0 and a last error below 300000, "
        "got 0 and 0",
        errors=[500_000, 0],
    ),
    upload(
        after(lambda s: [s.open(budget=9000)]),
        "budget",
        "budget_short: expected 0.9010 TOK free, got 0.9000 TOK, short by 0.0010 TOK",
        cost=901,
        make={"deposit": 9000},
    ),
    Row(
        "upload-budget-counts-reserves",
        after(lambda s: [s.open(budget=600), s.upload(s.devices[0])]),
        lambda s: s.upload(s.devices[1]),
        "budget_short: expected 0.0600 TOK free, got 0.0399 TOK, short by 0.0201 TOK",
        {"deposit": 999},
    ),
    Row(
        "upload-not-joined",
        lambda s: (
            s.do(s.open(), s.act("admit", s.owner, accounts=[s.world.creator], role=1)) and None
        ),
        lambda s: s.upload(s.world.creator),
        "not_joined: {creator} has not joined task {task}",
    ),
    # ---- calls that are the contract's own ----------------------------------------------------
    Row(
        "uploadgrad-from-outside",
        opened,
        lambda s: s.act("uploadgrad", s.devices[0], **s.upload_data(s.devices[0])),
        "internal_only: expected an inline action of {contract}, got a call from outside",
    ),
    Row(
        "payment-from-outside",
        uploaded,
        lambda s: s.act(
            "payment", s.devices[0], version=1, device=s.devices[0], quantity="0.0600 TOK"
        ),
        "internal_only: expected an inline action of {contract}, got a call from outside",
    ),
    # ---- verdicts -----------------------------------------------------------------------------
    Row(
        "attest-stranger",
        uploaded,
        lambda s: s.verdict(s.world.creator, s.devices[:1]),
        "not_a_validator: {creator} is no joined validator of task {task}",
    ),
    Row(
        "attest-device",
        uploaded,
        lambda s: s.verdict(s.devices[0], s.devices[:1]),
        "not_a_validator: {d0} is no joined validator of task {task}",
    ),
    Row(
        "attest-owner",
        uploaded,
        lambda s: s.verdict(s.owner, s.devices[:1]),
        "not_a_validator: {owner} is no joined validator of task {task}",
    ),
    Row(
        "attest-joined-too-late",
        lambda s: (
            s.do(
                s.open(),
                s.upload(s.devices[0]),
                s.act("admit", s.owner, accounts=[s.world.creator], role=2),
                s.join(s.world.creator, classes=0),
            )
            and None
        ),
        lambda s: s.verdict(s.world.creator, s.devices[:1]),
        "not_a_validator: {creator} is not among the validators of round 1",
    ),
    Row(
        "attest-twice",
        after(lambda s: [s.verdict(s.validators[0], s.devices[:1])], uploaded),
        lambda s: s.verdict(s.validators[0], s.devices[:1], code=MALFORMED),
        "already_attested: {v0} has judged the upload of {d0} in round 1",
    ),
    Row(
        "attest-twice-in-one-batch",
        uploaded,
        lambda s: s.verdict(s.validators[0], [s.devices[0], s.devices[1], s.devices[0]]),
        "already_attested: {v0} has judged the upload of {d0} in round 1",
    ),
    Row(
        "attest-twice-in-one-batch-one-decides",
        after(lambda s: [s.verdict(v, s.devices[:3]) for v in s.quorum()[1:]], uploaded),
        lambda s: s.verdict(s.validators[0], [*s.devices[:2], s.devices[0]]),
        "already_attested: {v0} has judged the upload of {d0} in round 1",
    ),
    Row(
        "attest-twice-after-the-decision",
        decided,
        lambda s: s.verdict(s.validators[0], s.devices[:1]),
        "already_attested: {v0} has judged the upload of {d0} in round 1",
    ),
    Row(
        "attest-old-version",
        reopened,
        lambda s: s.verdict(s.validators[0], s.devices[:1], 1),
        "wrong_version: expected a verdict on the current version 2, got version 1",
    ),
    Row(
        "attest-future-version",
        uploaded,
        lambda s: s.verdict(s.validators[0], s.devices[:1], 2),
        "wrong_version: expected a verdict on the current version 1, got version 2",
    ),
    Row(
        "attest-no-round",
        created,
        lambda s: s.verdict(s.validators[0], s.devices[:1], 0),
        "wrong_version: expected a verdict on the current version 0, got version 0",
    ),
    Row(
        "attest-settled",
        settled,
        lambda s: s.verdict(s.validators[3], s.devices[:1]),
        "round_not_open: expected round 1 to be unsettled, it is settled",
    ),
    Row(
        "attest-unknown-hash",
        uploaded,
        lambda s: s.verdict(s.validators[0], [s.devices[1], s.devices[3]]),
        "unknown_upload: expected the hash of the upload in slot 0 of round 1, got another",
    ),
    Row(
        "attest-hash-of-another-slot",
        uploaded,
        lambda s: said_of(s, 2, hash_of=1),
        "unknown_upload: expected the hash of the upload in slot 2 of round 1, got another",
    ),
    *[
        Row(
            f"attest-slot-{slot}",
            uploaded,
            lambda s, slot=slot: said_of(s, 0, slot),  # behind one that is right
            f"unknown_upload: expected a slot below 3, the uploads of round 1, got {slot}",
        )
        for slot in (3, 31, 32, 2**32 - 1)
    ],
    Row(
        "attest-before-any-upload",
        opened,
        lambda s: said_of(s, 0, hash_of=0),
        "unknown_upload: expected a slot below 0, the uploads of round 1, got 0",
    ),
    Row(
        "attest-upload-of-an-older-round",
        reopened,
        lambda s: said_of(s, 0, hash_of=0, version=2),
        "unknown_upload: expected a slot below 0, the uploads of round 2, got 0",
    ),
    Row(
        "attest-hash-of-an-older-round",
        after(lambda s: [s.upload(s.devices[0], 2)], reopened),
        lambda s: said_of(s, 0, hash_of=0, version=2),
        "unknown_upload: expected the hash of the upload in slot 0 of round 2, got another",
    ),
    Row(
        "attest-code-0",
        uploaded,
        lambda s: s.verdict(s.validators[0], s.devices[:1], code=0),
        "bad_verdict: expected 1 to 17, got 0",
    ),
    Row(
        "attest-code-18",
        uploaded,
        lambda s: s.verdict(s.validators[0], s.devices[:1], code=18),
        "bad_verdict: expected 1 to 17, got 18",
    ),
    Row(
        "attest-nothing",
        uploaded,
        lambda s: s.verdict(s.validators[0], []),
        "bad_parameter: verdicts: expected at least 1, got 0",
    ),
    Row(
        "attest-too-many",
        uploaded,
        lambda s: s.verdict(s.validators[0], s.devices[:1] * 501),
        "limit_exceeded: expected at most 500 verdicts, got 501",
    ),
    # ---- CIDs that are revealed later -----------------------------------------------------------
    Row(
        "attest-hidden-open",
        hidden,
        lambda s: s.verdict(s.validators[0], s.devices[:1], code=UNREVEALED),
        "not_revealed: expected a refusal after 0, the CID of {d0} is not known",
    ),
    Row(
        "attest-hidden-early",
        revealing,
        lambda s: s.verdict(s.validators[0], s.devices[:1], code=UNREVEALED),
        "not_revealed: expected a refusal after #, the CID of {d0} is not known",
    ),
    Row(
        "attest-hidden-accept",
        unrevealed,
        lambda s: s.verdict(s.validators[0], s.devices[:2]),
        "not_revealed: expected a refusal after #, the CID of {d1} is not known",
    ),
    Row(
        "reveal-late",
        unrevealed,
        lambda s: s.reveal(s.devices[1]),
        "deadline_passed: expected a CID before #, the time is #",
    ),
    Row(
        "reveal-open",
        hidden,
        lambda s: s.reveal(s.devices[0]),
        "round_not_closed: expected round 1 to be verifying, it is open",
    ),
    Row(
        "reveal-where-none-is-due",
        verifying,
        lambda s: s.reveal(s.devices[0]),
        "deadline_passed: expected a CID before 0, the time is #",
    ),
    Row(
        "reveal-summing",
        summing,
        lambda s: s.reveal(s.devices[0]),
        "round_not_closed: expected round 1 to be verifying, it is summing",
    ),
    Row(
        "reveal-twice",
        after(lambda s: [s.reveal(s.devices[0])], revealing),
        lambda s: s.reveal(s.devices[0], cid_=cid("other")),
        "already_revealed: the CID of the upload of {d0} for version 1 is known",
    ),
    Row(
        "reveal-without-upload",
        revealing,
        lambda s: s.reveal(s.devices[3]),
        "unknown_upload: {d3} has no upload in round 1",
    ),
    Row(
        "reveal-stranger",
        revealing,
        lambda s: s.reveal(s.world.creator),
        "not_a_member: {creator} is no member of task {task}",
    ),
    Row(
        "reveal-validator",
        revealing,
        lambda s: s.reveal(s.validators[0]),
        "unknown_upload: {v0} has no upload in round 1",
    ),
    Row(
        "reveal-version",
        revealing,
        lambda s: s.reveal(s.devices[0], 2),
        "future_version: got version 2, the current version is 1",
    ),
    Row("reveal-nothing", revealing, lambda s: s.reveal(s.devices[0], cid_=""), no_cid("cid", 0)),
    Row(
        "reveal-zeros",
        revealing,
        lambda s: s.reveal(s.devices[0], cid_=NO_DIGEST),
        no_cid("cid", 46),
    ),
    # ---- lots -----------------------------------------------------------------------------------
    Row(
        "commitlot-without-audits",
        opened,
        lambda s: s.commit_lot(s.validators[0]),
        "no_lots: expected a task with audits, {task} has none",
    ),
    Row(
        "commitlot-device",
        opened,
        lambda s: s.commit_lot(s.devices[0]),
        "not_a_validator: {d0} is no joined validator of task {task}",
        LOTS,
    ),
    Row(
        "commitlot-twice",
        committed,
        lambda s: s.commit_lot(s.validators[0], value=HASH),
        "already_committed: {v0} has a lot in round 1",
        LOTS,
    ),
    Row(
        "commitlot-late",
        after(lambda s: [s.open(), *[s.commit_lot(v) for v in s.quorum()], s.upload(s.devices[0])]),
        lambda s: s.commit_lot(s.validators[3]),
        "uploads_begun: expected a lot before the first upload, there are 1",
        LOTS,
    ),
    Row(
        "commitlot-closed",
        drawing,
        lambda s: s.commit_lot(s.validators[0]),
        "round_not_open: expected round 1 to be open, it is drawing",
        LOTS,
    ),
    Row(
        "commitlot-version",
        committed,
        lambda s: s.commit_lot(s.validators[0], 2),
        "wrong_version: expected a verdict on the current version 1, got version 2",
        LOTS,
    ),
    Row(
        "commitlot-zero",
        opened,
        lambda s: s.act(
            "commitlot", s.validators[0], version=1, validator=s.validators[0], commitment=ZERO
        ),
        "empty_hash: commitment: expected 32 bytes that are not all zero",
        LOTS,
    ),
    Row(
        "reveallot-before-the-verdicts",
        loaded,
        lambda s: s.reveal_lot(s.validators[0]),
        "not_drawing: expected round 1 to be drawing, it is open",
        LOTS,
    ),
    Row(
        "reveallot-after-the-draw",
        auditing,
        lambda s: s.reveal_lot(s.validators[0]),
        "not_drawing: expected round 1 to be drawing, it is auditing",
        LOTS,
    ),
    Row(
        "reveallot-another-value",
        drawing,
        lambda s: s.reveal_lot(s.validators[0], value=HASH),
        "wrong_lot: expected the value that {v0} committed to in round 1",
        LOTS,
    ),
    Row(
        "reveallot-of-another",
        drawing,
        lambda s: s.act(
            "reveallot",
            s.validators[0],
            version=1,
            validator=s.validators[0],
            value=digest("lot", s.validators[1], 1),
        ),
        "wrong_lot: expected the value that {v0} committed to in round 1",
        LOTS,
    ),
    Row(
        "reveallot-without-commitment",
        lambda s: (
            s.do(
                s.open(),
                *[s.commit_lot(v) for v in s.quorum()],
                s.upload(s.devices[0]),
                *[s.verdict(v, s.devices[:1]) for v in s.quorum()],
                s.close(),
            )
            and None
        ),
        lambda s: s.reveal_lot(s.validators[3]),
        "wrong_lot: expected the value that {v3} committed to in round 1",
        LOTS,
    ),
    Row(
        "reveallot-zero",
        drawing,
        lambda s: s.reveal_lot(s.validators[0], value=ZERO),
        "empty_hash: value: expected 32 bytes that are not all zero",
        LOTS,
    ),
    Row(
        "reveallot-twice",
        after(lambda s: [s.reveal_lot(s.validators[0])], drawing),
        lambda s: s.reveal_lot(s.validators[0]),
        "already_revealed: {v0} has revealed its lot of round 1",
        LOTS,
    ),
    Row(
        "reveallot-stranger",
        drawing,
        lambda s: s.reveal_lot(s.world.creator),
        "not_a_validator: {creator} is no joined validator of task {task}",
        LOTS,
    ),
    Row(
        "push-before-all-lots",
        after(lambda s: [s.reveal_lot(v) for v in s.validators[:3]], drawing),
        lambda s: s.push_on(s.owner),
        TOO_EARLY,
        LOTS,
    ),
    # ---- audits ---------------------------------------------------------------------------------
    Row(
        "openupload-before-the-draw",
        drawing,
        lambda s: s.opening(s.devices[0]),
        "not_auditing: expected round 1 to be auditing, it is drawing",
        LOTS,
    ),
    Row(
        "openupload-not-drawn",
        after(
            lambda s: [
                s.opening(s.devices[0]),
                *[s.audit_verdict(v, s.devices[:1]) for v in s.quorum()],
            ],
            auditing,
        ),
        lambda s: s.opening(s.devices[0]),
        "not_drawn: the upload of {d0} for version 1 is not under audit",
        LOTS,
    ),
    Row(
        "openupload-twice",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: s.opening(s.devices[0], cid_=cid("other")),
        "already_opened: the upload of {d0} for version 1 was opened",
        LOTS,
    ),
    Row(
        "openupload-without-upload",
        auditing,
        lambda s: s.opening(s.devices[3]),
        "unknown_upload: {d3} has no upload in round 1",
        LOTS,
    ),
    Row(
        "openupload-version",
        auditing,
        lambda s: s.opening(s.devices[0], 2),
        "future_version: got version 2, the current version is 1",
        LOTS,
    ),
    Row(
        "openupload-cid",
        auditing,
        lambda s: s.opening(s.devices[0], cid_="Qm"),
        no_cid("cid", 2),
        LOTS,
    ),
    Row(
        "openupload-zeros",
        auditing,
        lambda s: s.opening(s.devices[0], cid_=NO_DIGEST),
        no_cid("cid", 46),
        LOTS,
    ),
    Row(
        "attestaudit-unopened",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: s.audit_verdict(s.validators[0], s.devices[:2]),
        "not_opened: expected a verdict on an opened upload, that of {d1} is not",
        LOTS,
    ),
    Row(
        "attestaudit-without-audit",
        uploaded,
        lambda s: s.audit_verdict(s.validators[0], s.devices[:1]),
        "not_opened: expected a verdict on an opened upload, that of {d0} is not",
    ),
    Row(
        "attestaudit-twice",
        after(
            lambda s: [s.opening(s.devices[0]), s.audit_verdict(s.validators[0], s.devices[:1])],
            auditing,
        ),
        lambda s: s.audit_verdict(s.validators[0], s.devices[:1], code=OPENING_MISMATCH),
        "already_attested: {v0} has judged the upload of {d0} in round 1",
        LOTS,
    ),
    Row(
        "attestaudit-code-18",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: s.audit_verdict(s.validators[0], s.devices[:1], code=18),
        "bad_verdict: expected 1 to 17, got 18",
        LOTS,
    ),
    Row(
        "attestaudit-unknown-hash",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: said_of(s, 0, hash_of=1, action="attestaudit"),
        "unknown_upload: expected the hash of the upload in slot 0 of round 1, got another",
        LOTS,
    ),
    Row(
        "attestaudit-slot-3",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: said_of(s, 0, 3, action="attestaudit"),
        "unknown_upload: expected a slot below 3, the uploads of round 1, got 3",
        LOTS,
    ),
    Row(
        "attestaudit-stranger",
        after(lambda s: [s.opening(s.devices[0])], auditing),
        lambda s: s.audit_verdict(s.world.creator, s.devices[:1]),
        "not_a_validator: {creator} is no joined validator of task {task}",
        LOTS,
    ),
    Row(
        "attestaudit-nothing",
        auditing,
        lambda s: s.audit_verdict(s.validators[0], []),
        "bad_parameter: verdicts: expected at least 1, got 0",
        LOTS,
    ),
    Row("push-audits-before-the-deadline", auditing, lambda s: s.push_on(s.owner), TOO_EARLY, LOTS),
    Row(
        "settle-auditing",
        auditing,
        lambda s: s.settle(),
        "not_summed: expected round 1 to be summed, it is auditing",
        LOTS,
    ),
    Row(
        "attestsum-drawing",
        drawing,
        lambda s: s.vote_sum(s.validators[0]),
        "not_summing: expected round 1 to be summing, it is drawing",
        LOTS,
    ),
    Row(
        "withdraw-reserve-of-held-uploads",
        drawing,
        lambda s: s.withdraw(998_201),
        "reserved_money: expected at most 99.8200 TOK, got 99.8201 TOK",
        LOTS,
    ),
    Row(
        "withdraw-reserve-of-drawn-uploads",
        auditing,
        lambda s: s.withdraw(998_201),
        "reserved_money: expected at most 99.8200 TOK, got 99.8201 TOK",
        LOTS,
    ),
    Row(
        "remove-under-audit",
        auditing,
        lambda s: s.act("remove", s.devices[0], account=s.devices[0]),
        "round_open: {d0} has an upload in round 1, which is not settled",
        LOTS,
    ),
    Row(
        "issueset-auditing",
        auditing,
        lambda s: s.act(
            "issueset", s.owner, device=s.devices[3], version=1, cid=cid("set"), hash=HASH
        ),
        "round_not_open: expected round 1 to be open, it is auditing",
        LOTS,
    ),
    # ---- the sum ------------------------------------------------------------------------------
    Row(
        "attestsum-open",
        uploaded,
        lambda s: s.vote_sum(s.validators[0]),
        "not_summing: expected round 1 to be summing, it is open",
    ),
    Row(
        "attestsum-verifying",
        verifying,
        lambda s: s.vote_sum(s.validators[0]),
        "not_summing: expected round 1 to be summing, it is verifying",
    ),
    Row(
        "attestsum-summed",
        summed,
        lambda s: s.vote_sum(s.validators[3]),
        "not_summing: expected round 1 to be summing, it is summed",
    ),
    Row(
        "attestsum-stranger",
        summing,
        lambda s: s.vote_sum(s.devices[0]),
        "not_a_validator: {d0} is no joined validator of task {task}",
    ),
    Row(
        "attestsum-version",
        summing,
        lambda s: s.vote_sum(s.validators[0], 2),
        "wrong_version: expected a verdict on the current version 1, got version 2",
    ),
    Row(
        "attestsum-zero",
        summing,
        lambda s: s.vote_sum(s.validators[0], hash=ZERO),
        "empty_hash: hash: expected 32 bytes that are not all zero",
    ),
    Row(
        "attestsum-cid",
        summing,
        lambda s: s.vote_sum(s.validators[0], cid="Qm"),
        no_cid("cid", 2),
    ),
    Row(
        "attestsum-twice",
        after(lambda s: [s.vote_sum(s.validators[0])], summing),
        lambda s: s.vote_sum(s.validators[0], hash=HASH),
        "already_attested: {v0} has attested the sum of round 1",
    ),
    # ---- pushing on ---------------------------------------------------------------------------
    Row(
        "close-early-by-a-stranger",
        uploaded,
        lambda s: s.close(caller=s.devices[0]),
        TOO_EARLY,
    ),
    Row(
        "close-early-without-uploads",
        opened,
        lambda s: s.close(),
        TOO_EARLY,
    ),
    Row(
        "close-early-never",
        after(lambda s: [s.open(close_after=0), s.upload(s.devices[0])]),
        lambda s: s.close(),
        TOO_EARLY,
    ),
    Row(
        "close-twice",
        verifying,
        lambda s: s.close(),
        "round_not_open: expected round 1 to be open, it is verifying",
    ),
    Row(
        "close-stale",
        reopened,
        lambda s: s.close(1),
        "stale_version: got version 1, the current version is 2",
    ),
    Row(
        "close-future",
        opened,
        lambda s: s.close(2),
        "future_version: got version 2, the current version is 1",
    ),
    Row(
        "close-none", created, lambda s: s.close(0), "round_not_open: task {task} has no round yet"
    ),
    Row(
        "push-open",
        uploaded,
        lambda s: s.push_on(s.owner),
        f"round_not_closed: expected round 1 to be {PHASES}, it is open",
    ),
    Row(
        "push-before-the-deadline",
        verifying,
        lambda s: s.push_on(s.owner),
        TOO_EARLY,
    ),
    Row(
        "push-sum-before-the-deadline",
        summing,
        lambda s: s.push_on(s.owner),
        TOO_EARLY,
    ),
    Row(
        "push-summed",
        summed,
        lambda s: s.push_on(s.owner),
        f"not_summing: expected round 1 to be {PHASES}, it is summed",
    ),
    Row(
        "push-settled",
        settled,
        lambda s: s.push_on(s.owner),
        f"not_summing: expected round 1 to be {PHASES}, it is settled",
    ),
    Row(
        "settle-verifying",
        verifying,
        lambda s: s.settle(),
        "not_summed: expected round 1 to be summed, it is verifying",
    ),
    Row(
        "settle-twice",
        settled,
        lambda s: s.settle(),
        "not_summed: expected round 1 to be summed, it is settled",
    ),
    Row(
        "settle-by-a-stranger",
        summed,
        lambda s: s.settle(caller=s.devices[0]),
        "deadline_not_passed: expected the owner or a time of at least #, it is #",
    ),
    Row(
        "settle-limit-0",
        summed,
        lambda s: s.settle(limit=0),
        "bad_parameter: limit: expected at least 1, got 0",
    ),
    Row(
        "settle-stale",
        reopened,
        lambda s: s.settle(1),
        "stale_version: got version 1, the current version is 2",
    ),
    # ---- money --------------------------------------------------------------------------------
    Row(
        "deposit-unknown-task",
        created,
        lambda s: s.world.transfer(s.world.token, s.owner, "0.0001 TOK", "zz"),
        "unknown_task: expected the name of a task as memo, got 'zz'",
    ),
    Row(
        "deposit-no-memo",
        created,
        lambda s: s.world.transfer(s.world.token, s.owner, "0.0001 TOK", ""),
        "unknown_task: expected the name of a task as memo, got ''",
    ),
    Row(
        "deposit-no-name",
        created,
        lambda s: s.world.transfer(s.world.token, s.owner, "0.0001 TOK", f"{s.task} "),
        "unknown_task: expected the name of a task as memo, got '{task} '",
    ),
    Row(
        "withdraw-zero",
        created,
        lambda s: s.withdraw(0),
        "not_positive: expected a positive quantity, got 0.0000 TOK",
    ),
    Row(
        "withdraw-negative",
        created,
        lambda s: s.withdraw(-1),
        "not_positive: expected a positive quantity, got -0.0001 TOK",
    ),
    Row(
        "withdraw-symbol",
        created,
        lambda s: s.act("withdraw", s.owner, quantity="0.0001 ABC"),
        "wrong_symbol: expected TOK, got ABC",
    ),
    Row(
        "withdraw-precision",
        created,
        lambda s: s.act("withdraw", s.owner, quantity="0.001 TOK"),
        "wrong_symbol: expected TOK, got TOK",
    ),
    Row(
        "withdraw-more-than-there-is",
        created,
        lambda s: s.withdraw(1_000_001),
        "reserved_money: expected at most 100.0000 TOK, got 100.0001 TOK",
    ),
    Row(
        "withdraw-budget-of-an-open-round",
        opened,
        lambda s: s.withdraw(900_001),
        "reserved_money: expected at most 90.0000 TOK, got 90.0001 TOK",
    ),
    Row(
        "withdraw-reserve-of-a-closed-round",
        verifying,
        lambda s: s.withdraw(998_201),
        "reserved_money: expected at most 99.8200 TOK, got 99.8201 TOK",
    ),
    Row(
        "withdraw-largest",
        created,
        lambda s: s.withdraw(2**62 - 1),
        "reserved_money: expected at most 100.0000 TOK, got 461168601842738.7903 TOK",
    ),
    # ---- opening ------------------------------------------------------------------------------
    Row(
        "open-future",
        created,
        lambda s: s.open(2),
        "future_version: expected version 1, got 2, the current version is 0",
    ),
    Row(
        "open-stale",
        settled,
        lambda s: s.open(1),
        "stale_version: expected version 2, got 1, the current version is 1",
    ),
    Row(
        "open-unsettled",
        summed,
        lambda s: s.open(2),
        "round_open: expected round 1 to be settled, it is summed",
    ),
    round_terms("model_cid", "Qm", no_cid("model_cid", 2)),
    round_terms(
        "model_hash", ZERO, "empty_hash: model_hash: expected 32 bytes that are not all zero"
    ),
    round_terms("price", 0, "bad_parameter: price: expected 1 to 4611686018427387903, got 0"),
    round_terms(
        "price",
        -1,
        "bad_parameter: price: expected 1 to 4611686018427387903, got 18446744073709551615",
    ),
    round_terms(
        "price",
        4_611_686_018_427_388,
        "overflow: 1000 x 4611686018427388 is more than an asset can hold",
    ),
    round_terms(
        "budget",
        -1,
        "bad_parameter: budget: expected 0 to 4611686018427387903, got 18446744073709551615",
    ),
    round_terms(
        "budget",
        1_000_001,
        "budget_short: expected 100.0001 TOK free, got 100.0000 TOK, short by 0.0001 TOK",
    ),
    round_terms("open_sec", 0, "bad_parameter: open_sec: expected 1 to 2592000, got 0"),
    round_terms(
        "open_sec", 2_592_001, "bad_parameter: open_sec: expected 1 to 2592000, got 2592001"
    ),
    round_terms("verdict_sec", 0, "bad_parameter: verdict_sec: expected 1 to 2592000, got 0"),
    round_terms(
        "verdict_sec", 2_592_001, "bad_parameter: verdict_sec: expected 1 to 2592000, got 2592001"
    ),
    round_terms("sum_sec", 0, "bad_parameter: sum_sec: expected 1 to 2592000, got 0"),
    round_terms("sum_sec", 2_592_001, "bad_parameter: sum_sec: expected 1 to 2592000, got 2592001"),
    round_terms(
        "reveal_sec", 2_592_001, "bad_parameter: reveal_sec: expected 0 to 2592000, got 2592001"
    ),
    round_terms("audit_sec", 1, "bad_parameter: audit_sec: expected 0 to 0, got 1"),
    round_terms("audit_sec", 0, "bad_parameter: audit_sec: expected 1 to 2592000, got 0", **LOTS),
    round_terms(
        "audit_sec",
        2_592_001,
        "bad_parameter: audit_sec: expected 1 to 2592000, got 2592001",
        **LOTS,
    ),
    round_terms("rule", 0, "bad_parameter: rule: expected 1 to 5, got 0"),
    round_terms("rule", 6, "bad_parameter: rule: expected 1 to 5, got 6"),
    round_terms("tau", 1_000_002, "bad_parameter: tau: expected 0 to 1000001, got 1000002"),
    training("epochs", 0, "bad_parameter: training.epochs: expected 1 to 65535, got 0"),
    training("batch_size", 0, "bad_parameter: training.batch_size: expected 1 to 65535, got 0"),
    training("measures", 0, "bad_parameter: training.measures: expected 1 to 5, got 0"),
    training("measures", 6, "bad_parameter: training.measures: expected 1 to 5, got 6"),
    training("measures", 1, "bad_parameter: training.measures: expected 2 to 4, got 1", rule=5),
    training("measures", 5, "bad_parameter: training.measures: expected 2 to 4, got 5", rule=5),
    Row(
        "open-without-validators",
        created,
        lambda s: s.open(),
        "not_a_validator: expected at least 1 joined validator of task {task}, got 0",
        {"validators": 0},
    ),
    Row(
        "open-without-producers",
        created,
        lambda s: s.open(),
        "not_a_validator: expected at least 1 joined validator of task {task}, got 0",
        {"validators_kind": 1},
    ),
    # ---- tasks and members --------------------------------------------------------------------
    Row(
        "createtask-again",
        created,
        lambda s: s.act("createtask", s.owner, owner=s.owner, terms=s.terms),
        "task_exists: expected a new name, got that of task {task}",
    ),
    Row(
        "createtask-no-name",
        created,
        lambda s: s.world.act("createtask", s.owner, task="", owner=s.owner, terms=s.terms),
        "bad_parameter: task: expected a name, got none",
    ),
    terms("token_contract", "zz", "bad_parameter: token_contract: expected an account, got 'zz'"),
    terms("mode", 2, "bad_parameter: mode: expected 0 to 1, got 2"),
    terms("is_public", 2, "bad_parameter: is_public: expected 0 to 1, got 2"),
    terms("validators_kind", 2, "bad_parameter: validators_kind: expected 0 to 1, got 2"),
    terms("silence", 2, "bad_parameter: silence: expected 0 to 1, got 2"),
    terms("classes", 0, "bad_parameter: classes: expected 1 to 64, got 0"),
    terms("classes", 65, "bad_parameter: classes: expected 1 to 64, got 65"),
    terms("errors_max", 1, "bad_parameter: errors_max: expected 2 to 64, got 1"),
    terms("errors_max", 65, "bad_parameter: errors_max: expected 2 to 64, got 65"),
    terms("cost_max", 0, "bad_parameter: cost_max: expected 1 to 4294967295, got 0"),
    terms("devices_max", 0, "bad_parameter: devices_max: expected 1 to 65535, got 0"),
    terms("parameters", 0, "bad_parameter: parameters: expected 1 to 2147483647, got 0"),
    terms(
        "parameters", 2**31, "bad_parameter: parameters: expected 1 to 2147483647, got 2147483648"
    ),
    terms("clip_e6", 0, "bad_parameter: clip_e6: expected 1 to 4294967295, got 0"),
    terms("sum_min", 2, "bad_parameter: sum_min: expected 3 to 1000, got 2"),
    terms("sum_min", 1001, "bad_parameter: sum_min: expected 3 to 1000, got 1001"),
    terms("slot_bits", 16, "bad_parameter: slot_bits: expected 17 to 32, got 16"),
    terms("slot_bits", 33, "bad_parameter: slot_bits: expected 17 to 32, got 33"),
    terms(
        "slot_bits",
        25,
        "bad_parameter: slot_bits: 1000 devices x 65535 do not fit 25 bits",
    ),
    terms("key_hash", ZERO, "empty_hash: key_hash: expected 32 bytes that are not all zero"),
    terms("key_hash", HASH, "bad_parameter: key_hash: expected zero in sealed mode", mode=1),
    terms("card_cid", "Qm", no_cid("card_cid", 2)),
    terms("lot_e6", 1_000_001, "bad_parameter: lot_e6: expected 0 to 1000000, got 1000001"),
    terms("lot_e6", 1, "bad_parameter: lot_e6: expected 0 to 0, got 1", mode=1, key_hash=ZERO),
    terms("bar_rounds", 10_001, "bad_parameter: bar_rounds: expected 0 to 10000, got 10001"),
    terms("card_hash", ZERO, "empty_hash: card_hash: expected 32 bytes that are not all zero"),
    Row(
        "admit-twice",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.devices[0]], role=1),
        "already_member: {d0} is a member of task {task}",
    ),
    Row(
        "admit-device-as-validator",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.devices[0]], role=2),
        "already_member: {d0} is a member of task {task}",
    ),
    Row(
        "admit-one-name-twice",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.creator] * 2, role=1),
        "already_member: {creator} is a member of task {task}",
    ),
    Row(
        "admit-owner",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.owner], role=2),
        "owner_cannot_upload: the owner {owner} cannot be a member of task {task}",
    ),
    Row(
        "admit-contract",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.contract], role=1),
        "bad_parameter: accounts: the contract cannot be a member",
    ),
    Row(
        "admit-no-account",
        created,
        lambda s: s.act("admit", s.owner, accounts=["zz"], role=1),
        "bad_parameter: accounts: 'zz' is no account",
    ),
    Row(
        "admit-nobody",
        created,
        lambda s: s.act("admit", s.owner, accounts=[], role=1),
        "bad_parameter: accounts: expected at least 1, got 0",
    ),
    Row(
        "admit-too-many",
        created,
        lambda s: s.act("admit", s.owner, accounts=["zz"] * 101, role=1),
        "limit_exceeded: expected at most 100 accounts, got 101",
    ),
    Row(
        "admit-role-0",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.creator], role=0),
        "wrong_role: expected 1 (device) or 2 (validator), got 0",
    ),
    Row(
        "admit-role-3",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.creator], role=3),
        "wrong_role: expected 1 (device) or 2 (validator), got 3",
    ),
    Row(
        "admit-devices-max",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.creator], role=1),
        "limit_exceeded: expected at most 4 devices, got 5",
        {"devices_max": 4},
    ),
    Row(
        "admit-validators-max",
        created,
        lambda s: s.act("admit", s.owner, accounts=[s.world.creator], role=2),
        "limit_exceeded: expected at most 32 validators, got 33",
        {"validators": 32},
    ),
    Row(
        "remove-stranger",
        created,
        lambda s: s.act("remove", s.owner, account=s.world.creator),
        "not_a_member: {creator} is no member of task {task}",
    ),
    Row(
        "remove-with-upload",
        summed,
        lambda s: s.act("remove", s.devices[0], account=s.devices[0]),
        "round_open: {d0} has an upload in round 1, which is not settled",
    ),
    Row(
        "remove-validator-of-the-round",
        opened,
        lambda s: s.act("remove", s.owner, account=s.validators[0]),
        "round_open: {v0} is a validator of round 1, which is not settled",
    ),
    Row(
        "join-stranger",
        created,
        lambda s: s.join(s.world.creator),
        "not_a_member: {creator} is no member of task {task}",
    ),
    Row(
        "join-again-in-a-round",
        opened,
        lambda s: s.join(s.devices[0]),
        "round_open: {d0} has joined and round 1 is not settled",
    ),
    Row(
        "join-without-classes",
        created,
        lambda s: s.join(s.devices[0], classes=0),
        "bad_parameter: classes: expected a set of some of the classes, of which there are 10, "
        "got 0",
    ),
    Row(
        "join-unknown-class",
        created,
        lambda s: s.join(s.devices[0], classes=1 << 10),
        "bad_parameter: classes: expected a set of some of the classes, of which there are 10, "
        "got 1024",
    ),
    Row(
        "join-zero-key",
        created,
        lambda s: s.act("join", s.devices[0], account=s.devices[0], enc_key=ZERO, classes=1),
        "bad_parameter: enc_key: expected an X25519 public key, got 32 zero bytes",
    ),
    *[
        Row(
            f"issueset-{name}",
            stage,
            lambda s, fields=fields: s.act(
                "issueset",
                s.owner,
                device=fields.get("device", lambda s: s.devices[0])(s),
                version=fields.get("version", 1),
                cid=fields.get("cid", cid("set")),
                hash=fields.get("hash", HASH),
            ),
            message,
        )
        for name, stage, fields, message in [
            (
                "stranger",
                created,
                {"device": lambda s: s.world.creator},
                "not_a_member: {creator} is no member of task {task}",
            ),
            (
                "validator",
                created,
                {"device": lambda s: s.validators[0]},
                "wrong_role: expected a device, {v0} is a validator",
            ),
            ("stale", reopened, {}, "stale_version: got version 1, the current version is 2"),
            (
                "future",
                opened,
                {"version": 3},
                "future_version: got version 3, the current version is 1",
            ),
            ("closed", summed, {}, "round_not_open: expected round 1 to be open, it is summed"),
            (
                "uploaded",
                uploaded,
                {},
                "already_uploaded: expected no upload of {d0} for version 1 yet",
            ),
            (
                "next",
                opened,
                {"version": 2},
                "round_open: expected round 1 to be settled, it is open",
            ),
            ("cid", created, {"cid": "x"}, no_cid("cid", 1)),
            ("hash", created, {"hash": "00"}, "short_hash: hash: expected 32 bytes, got 1"),
        ]
    ],
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.id}-{i}" for i, row in enumerate(ROWS)])
def test_refused_with_this_message_and_nothing_changed(world: World, row: Row) -> None:
    scene = Scene.make(world, **{"devices": 4, **row.make})
    row.stage(scene)
    names = {
        "task": scene.task,
        "owner": scene.owner,
        "creator": world.creator,
        "contract": world.contract,
        **{f"d{i}": name for i, name in enumerate(scene.devices)},
        **{f"v{i}": name for i, name in enumerate(scene.validators)},
    }
    before = scene.everything()
    message = world.refusal(row.action(scene))
    expected = re.escape(row.message.format(**names)).replace(r"\#", r"\d{10}")
    assert re.fullmatch(expected, message), message
    assert scene.everything() == before
