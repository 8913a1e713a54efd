"""Verdicts of real rounds, given again: honest ones hold, and each lie is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import PARAMETERS, UPDATE
from oracle import COST, Oracle, decided, step_until

from gradledger import envelope
from gradledger.chain.contract import Mode, RoundState, Verdict, VerdictCode
from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.cli import main
from gradledger.envelope import Header, Kind, PayloadCodec
from gradledger.errors import BlobMissingError, ConfigError, StoreUnavailableError
from gradledger.lots import lot_commitment
from gradledger.store import Store
from producer_validation import replay
from producer_validation.checks import Refusal
from producer_validation.replay import Outcome, Truth, VerdictsReport, replay_verdicts, weigh

MakeOracle = Callable[..., Oracle]
Code = VerdictCode
A = Code.ACCEPT


@dataclass
class Told:
    """A round that is over, and which of its verdicts are lies: (device, code) of the liar's."""

    stage: Oracle
    lies: dict[str, tuple[Code, Code]] = field(default_factory=dict)  # said, expected
    audit_lies: dict[str, tuple[Code, Code]] = field(default_factory=dict)

    @property
    def liar(self) -> str:
        return self.stage.judges[3]

    def key(self, account: str) -> tuple[str, PrivateKey]:
        return account, self.stage.keys[account]

    def report(self, *accounts: str, **options: Any) -> VerdictsReport:
        stage = self.stage
        given = {"store": stage.store, "keys": [self.key(one) for one in accounts], **options}
        return replay_verdicts(stage.contract.client, stage.task, **given)

    def judge(self, device: str, codes: dict[str, Code], *, is_audit: bool = False) -> None:
        """Let validators say codes on a device's upload."""
        stage, row = self.stage, self.stage.member(device)
        act = stage.contract.attestaudit if is_audit else stage.contract.attest
        for judge, code in codes.items():
            verdict = Verdict(slot=row.upload_slot, hash=row.upload_hash, code=code)
            stage.push(act(stage.task, 1, judge, [verdict]), judge)


def named(report: VerdictsReport) -> dict[tuple[str, bool], tuple[Code, Code]]:
    """Return what does not hold, by device and phase."""
    return {(one.device, one.is_audit): (one.code, one.expected) for one in report.wrong}


def said_of(stage: Oracle, device: str) -> bytes:
    """Return the verdicts on a device's upload."""
    return stage.said(device).replace(b"\0", b"")


SEALED = {  # what the liar says of whom, and what is to be said; the rest of it is true
    "good": (Code.OUT_OF_RANGE, A),
    "rider": (A, Code.NO_UPDATE),
    "hidden": (A, Code.MALFORMED),
    "torn": (A, Code.MALFORMED),
    "stale": (Code.HASH_MISMATCH, Code.HEADER_MISMATCH),
    "swapped": (A, Code.HASH_MISMATCH),
    "early": (Code.UNREVEALED, A),
    "lone": (Code.DUPLICATE, A),
}


@pytest.fixture(scope="module")
def sealed_round(oracle: MakeOracle) -> Told:
    """Three honest validators and a liar, in sealed mode."""
    names = [*SEALED, "forger", "copier", "plain", "slow"]
    stage = oracle(Mode.SEALED, devices=len(names))
    devices = dict(zip(names, stage.devices, strict=True))
    told = Told(stage, {devices[name]: said for name, said in SEALED.items()})
    honest = stage.validators(3)
    stage.push(stage.contract.join(stage.task, told.liar, stage.enc_key(told.liar), 0), told.liar)
    stage.open()
    stage.upload(devices["good"])
    stage.upload(devices["rider"], np.zeros(PARAMETERS))
    stage.upload(devices["hidden"], UPDATE * 0.3, readers=stage.judges[:1])
    stage.upload(devices["torn"], spoil=lambda blob: blob[:150])
    stage.upload(devices["stale"], UPDATE * 0.4, version=7)
    swapped = stage.store.put(b"another")
    stage.push(
        stage.contract.fedlearning(
            stage.task, devices["swapped"], 1, b"\7" * 32, swapped, COST, [500_000, 0]
        ),
        devices["swapped"],
    )
    stage.upload(devices["early"], UPDATE * 0.5)
    stage.upload(devices["lone"], UPDATE * 0.6)
    stage.upload(devices["forger"], UPDATE * 0.7, errors=[900_000, 0])
    step_until(honest, decided(stage, [devices["good"]]))
    stage.upload(devices["copier"])  # the same codes as those of good
    stage.upload(devices["plain"], UPDATE * 0.8)
    stage.upload(devices["slow"], UPDATE * 0.9)
    step_until(honest, lambda: all(len(said_of(stage, d)) == 3 for d in stage.devices))
    for name, (said, _) in SEALED.items():
        told.judge(devices[name], {told.liar: said})
    told.judge(devices["forger"], {told.liar: Code.COPIED_SERIES})
    told.judge(devices["copier"], {told.liar: A})
    told.judge(devices["plain"], {told.liar: Code.MALFORMED})
    told.judge(devices["slow"], {told.liar: Code.UNAVAILABLE})
    stage.finality()
    return told


def test_sealed_mode_with_a_validators_key(sealed_round: Told) -> None:
    stage = sealed_round.stage
    first, second, third, liar = stage.judges
    plain = stage.devices[10]
    report = sealed_round.report(first, second)
    assert (report.rounds, report.uploads) == (1, 12)
    assert named(report) == {(one, False): said for one, said in sealed_round.lies.items()}
    assert {one.validator for one in report.wrong} == {liar}
    assert report.verdict == "8 of 48 verdicts do not hold"
    for judge in (first, second, third):
        tally = report.validators[judge]
        assert (tally.held, tally.wrong, tally.untold) == (12, 0, 0)
    assert vars(report.validators[liar]) == {"held": 2, "wrong": 8, "untold": 2}
    assert report.untold == {replay.LATER: 1, replay.OWN_SEAL: 1}
    assert report.noted[replay.NOTE_SERIES] == 1  # whose series it is
    assert report.noted[replay.NOTE_COPIES] >= 4  # the copy, accepted and refused
    # with its own key it cannot say any more that the upload was not sealed to it
    report = sealed_round.report(first, liar)
    assert named(report)[plain, False] == (Code.MALFORMED, A)
    assert report.count("wrong") == 9 and report.untold == {replay.LATER: 1}
    assert "expected accept: nothing is wrong with it" in str(
        next(one for one in report.wrong if one.device == plain)
    )


def test_sealed_mode_without_a_key_or_with_a_strangers(sealed_round: Told) -> None:
    """What is public names what is plainly wrong, and never an honest verdict."""
    stage = sealed_round.stage
    public = {"hidden", "torn", "stale", "swapped", "early"}
    said = dict(zip(SEALED, sealed_round.lies.values(), strict=True))
    report = sealed_round.report()
    found = named(report)
    assert {code for code, _ in found.values()} == {said[name][0] for name in public}
    assert len(found) == 5 and {one.validator for one in report.wrong} == {sealed_round.liar}
    assert report.untold[replay.NO_KEY] > 20
    stranger = replay_verdicts(
        stage.contract.client,
        stage.task,
        store=stage.store,
        keys=[("stranger", PrivateKey.generate()), (stage.judges[0], PrivateKey.generate())],
    )
    assert (stranger.wrong, stranger.untold) == (report.wrong, report.untold)
    # the owner opens updates, but not what they are measured with
    owner = sealed_round.report(stage.owner)
    assert owner.count("wrong") == 5
    assert any("cannot be read by the keys given" in reason for reason in owner.untold)


def test_bytes_that_are_gone_are_held_against_nobody(sealed_round: Told) -> None:
    stage = sealed_round.stage
    row = stage.member(stage.devices[11])  # of which the liar said that it was unavailable

    class Forgetful(Store):
        def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
            if cid == row.upload_cid:
                raise BlobMissingError("nobody has it")
            return super().get(cid, bytes_max=bytes_max)

    report = sealed_round.report(*stage.judges[:2], store=Forgetful(stage.store.address))
    assert report.untold[replay.GONE] == 3 and report.noted[replay.NOTE_GONE] == 1
    # it might have been the one that the duplicate was a copy of
    assert report.untold[replay.NOT_ALL] == 1 and report.count("wrong") == 7

    class Away(Store):
        def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
            if cid == stage.contract.task(stage.task).terms.card_cid:
                return super().get(cid, bytes_max=bytes_max)
            raise StoreUnavailableError("no answer")

    report = sealed_round.report(store=Away(stage.store.address))
    assert report.untold[replay.AWAY] == 47 and named(report) == {
        (stage.devices[6], False): (Code.UNREVEALED, Code.NONE)
    }
    report = sealed_round.report(store=None)
    assert report.untold == {replay.NOT_ASKED: 47}


def test_the_command(
    sealed_round: Told, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = sealed_round.stage
    where = ["--chain", stage.contract.client.endpoints[0], "--store", stage.store.address]
    files = []
    for judge in stage.judges[:2]:
        save_key_file(tmp_path / judge, judge, stage.keys[judge])
        files += ["--key", str(tmp_path / judge)]
    command = ["audit", "verdicts", stage.task]
    assert main([*command, *where, *files]) == 1
    out = capsys.readouterr().out
    assert out.endswith("8 of 48 verdicts do not hold\n")
    row = f"  {sealed_round.liar:<13}{12:>10}{2:>10}{8:>10}{2:>16}\n"
    assert row in out
    good = stage.devices[0]
    line = f"round 1, {sealed_round.liar} on the upload of {good}: said out_of_range, expected"
    assert f"  not held    {line} accept: nothing is wrong with it\n" in out
    assert main([*command, *where, *files, "--json", "--version", "1"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["held"], document["wrong"], document["untold"]) == (38, 8, 2)
    assert len(document["not_held"]) == 8
    assert main([*command, *where, "--version", "2"]) == 2
    assert "round 2 of task" in capsys.readouterr().err


# ---- paillier mode, with audits ------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited_round(oracle: MakeOracle) -> Told:
    """Four uploads are audited, played by hand: three validators say what is true, one lies."""
    stage = oracle(devices=6, lot_e6=1_000_000)
    good, cheat, forger, shrunk, torn, looped = stage.devices
    told = Told(
        stage,
        {good: (Code.OUT_OF_RANGE, A), shrunk: (A, Code.OUT_OF_RANGE), torn: (A, Code.MALFORMED)},
        {
            good: (Code.NO_UPDATE, A),
            cheat: (A, Code.OPENING_MISMATCH),
            looped: (A, Code.MALFORMED),
        },
    )
    act, task, judges, client = stage.contract, stage.task, stage.judges, stage.contract.client
    keys = [stage.keys[one] for one in judges]
    client.push([act.join(task, one, stage.enc_key(one), 0) for one in judges], keys)
    stage.open(audit_sec=60)
    value = b"\5" * 32
    client.push(
        [act.commitlot(task, 1, one, lot_commitment(task, 1, one, value)) for one in judges], keys
    )
    stage.upload(good)
    stage.upload(cheat, UPDATE / 2)
    stage.upload(forger, -UPDATE)
    stage.record(shrunk, out_of_range(stage, shrunk))
    stage.upload(torn, spoil=lambda blob: blob[:150])
    # sealed to as many as an upload can be, which is longer than any opening
    crowd = dict.fromkeys((f"reader{c}" for c in "abcdefghijklmnopqrstuvwxyz12"), stage.keys[good])
    stage.keys |= crowd
    stage.upload(looped, UPDATE * 0.5, readers=[*judges, *crowd])
    truth = {good: A, cheat: A, forger: A, looped: A}
    truth |= {shrunk: Code.OUT_OF_RANGE, torn: Code.MALFORMED}
    for device, code in truth.items():
        lie = told.lies.get(device, (code, code))[0]
        told.judge(device, {**dict.fromkeys(judges[:3], code), told.liar: lie})
    stage.close()
    client.push([act.reveallot(task, 1, one, value) for one in judges], keys)
    stage.push(act.push(task, stage.owner, 1), stage.owner)
    assert stage.round().state is RoundState.AUDITING
    stage.open_upload(good)
    stage.open_upload(cheat, UPDATE)
    stage.open_upload(forger)
    truth = {good: A, cheat: Code.OPENING_MISMATCH, forger: Code.ERROR_MISMATCH}
    for device, code in truth.items():
        lie = told.audit_lies.get(device, (Code.OPENING_MISMATCH, code))[0]
        codes = {**dict.fromkeys(judges[:3], code), told.liar: lie}
        told.judge(device, codes, is_audit=True)
    stage.push(act.openupload(task, looped, 1, stage.cids[looped]), looped)  # the upload itself
    said = [Code.MALFORMED, Code.OPENING_MISMATCH, Code.MALFORMED, A]
    told.judge(looped, dict(zip(judges, said, strict=True)), is_audit=True)
    stage.finality()
    return told


def out_of_range(stage: Oracle, device: str) -> bytes:
    """Return an upload whose ciphertexts are zero."""
    terms, readers = stage.contract.task(stage.task).terms, stage.round().validators
    header = Header(
        kind=Kind.UPDATE,
        codec=PayloadCodec.PAILLIER,
        task=stage.task,
        sender=device,
        version=1,
        parameters=PARAMETERS,
        slot_bits=terms.slot_bits,
        clip_e6=terms.clip_e6,
        examples=COST,
        key_hash=terms.key_hash,
    )
    payload = bytes(stage.public.ciphertext_bytes)
    return envelope.seal(header, payload, {name: stage.enc_key(name) for name in readers})


def test_audits_with_a_validators_key(audited_round: Told) -> None:
    stage = audited_round.stage
    first, liar = stage.judges[0], audited_round.liar
    forger = stage.devices[2]
    report = audited_round.report(first)
    assert named(report) == {
        **{(one, False): said for one, said in audited_round.lies.items()},
        **{(one, True): said for one, said in audited_round.audit_lies.items()},
    }
    assert {one.validator for one in report.wrong} == {liar}
    # 6 uploads, 4 openings; that the forger's was not sealed to it, the liar alone could know
    assert vars(report.validators[first]) == {"held": 10, "wrong": 0, "untold": 0}
    assert vars(report.validators[liar]) == {"held": 3, "wrong": 6, "untold": 1}
    assert report.untold == {replay.OWN_SEAL: 1} and report.noted == {replay.NOTE_LONG: 1}
    report = audited_round.report(liar)
    assert named(report)[forger, True] == (Code.OPENING_MISMATCH, Code.ERROR_MISMATCH)
    assert report.count("wrong") == 7 and not report.untold


def test_audits_without_a_key(audited_round: Told) -> None:
    good, _, _, _, torn, looped = audited_round.stage.devices
    report = audited_round.report()
    public = {(torn, False): (A, Code.MALFORMED), (looped, True): (A, Code.MALFORMED)}
    assert named(report) == public
    assert audited_round.lies[good][0] is Code.OUT_OF_RANGE
    assert report.count("wrong") == report.validators[audited_round.liar].wrong == 2
    with pytest.raises(ConfigError, match=r"round 9 of task .* was not opened"):
        audited_round.report(version=9)


def test_an_opening_that_is_gone(audited_round: Told) -> None:
    stage = audited_round.stage
    row = stage.member(stage.devices[0])

    class Forgetful(Store):
        def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
            if cid == row.opening_cid:
                raise BlobMissingError("nobody has it")
            return super().get(cid, bytes_max=bytes_max)

    report = audited_round.report(stage.judges[0], store=Forgetful(stage.store.address))
    assert report.untold[replay.GONE] == 4
    assert report.count("wrong") == 5  # one of the liar's cannot be told any more


# ---- weighing ------------------------------------------------------------------------------------

MALFORMED = Refusal(Code.MALFORMED, "torn")
NO_UPDATE = Refusal(Code.NO_UPDATE, "none")
HELD, WRONG, UNTOLD = Outcome.HELD, Outcome.WRONG, Outcome.UNTOLD
OPEN: dict[str, Any] = {"is_told": True, "opened_by": ("val1",)}


@pytest.mark.parametrize(
    ("code", "truth", "outcome"),
    [
        (Code.MALFORMED, Truth(MALFORMED), HELD),
        (A, Truth(MALFORMED), WRONG),
        (Code.HEADER_MISMATCH, Truth(MALFORMED), WRONG),
        (Code.UNAVAILABLE, Truth(MALFORMED), UNTOLD),
        (Code.UNAVAILABLE, Truth(is_missing=True, untold=replay.GONE), HELD),
        (Code.UNAVAILABLE, Truth(is_missing=True, untold=replay.AWAY), UNTOLD),
        (A, Truth(is_missing=True, untold=replay.GONE), UNTOLD),
        (Code.NORM, Truth(is_missing=True, untold=replay.GONE, possible=(A,)), WRONG),
        (A, Truth(), UNTOLD),
        (Code.HASH_MISMATCH, Truth(), WRONG),
        (Code.MALFORMED, Truth(), UNTOLD),
        (Code.MALFORMED, Truth(own={"val1": MALFORMED}), HELD),
        (A, Truth(own={"val1": MALFORMED}), WRONG),
        (A, Truth(own={"val2": MALFORMED}, is_told=True), HELD),
        (A, Truth(**OPEN), HELD),
        (Code.MALFORMED, Truth(**OPEN), WRONG),
        (Code.MALFORMED, Truth(is_told=True, opened_by=("val2",)), UNTOLD),
        (Code.NO_UPDATE, Truth(**OPEN, inner=NO_UPDATE), HELD),
        (Code.NORM, Truth(**OPEN, inner=NO_UPDATE), WRONG),
        (A, Truth(**OPEN, inner=NO_UPDATE), WRONG),
        (Code.DUPLICATE, Truth(**OPEN, inner=NO_UPDATE), WRONG),
        (Code.DUPLICATE, Truth(**OPEN), WRONG),
        (Code.DUPLICATE, Truth(**OPEN, copies=("phone2",)), HELD),
        (Code.DUPLICATE, Truth(**OPEN, copies=None), UNTOLD),
        (A, Truth(**OPEN, copies=("phone2",)), HELD),
        (A, Truth(**OPEN, copies=("phone3",)), UNTOLD),
        (Code.UNAVAILABLE, Truth(**OPEN), UNTOLD),
        (Code.UNREVEALED, Truth(**OPEN, possible=(A,)), WRONG),
    ],
)
def test_weighing(code: Code, truth: Truth, outcome: Outcome) -> None:
    weight = weigh(code, "val1", truth, accepted_too={"phone3"})
    assert weight.outcome is outcome
    assert bool(weight.reason) or outcome is HELD
