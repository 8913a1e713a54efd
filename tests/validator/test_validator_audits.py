"""Lots, reveals and audits on a real node and a real Kubo."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from judging import UPDATE
from oracle import Oracle, reached, step, step_until

from gradledger.chain.contract import Round, RoundState, UploadState, VerdictCode
from gradledger.errors import NotAllowedError, RoundClosedError
from gradledger.localnet.network import Network
from gradledger.watch import read_snapshot
from producer_validation import validator as validator_module
from producer_validation.replay import replay_verdicts

MakeOracle = Callable[..., Oracle]
PAID = (UploadState.PAID, VerdictCode.ACCEPT)
ALL_E6 = 1_000_000


def refused(code: VerdictCode) -> tuple[UploadState, VerdictCode]:
    return UploadState.REFUSED, code


def committed(stage: Oracle, count: int) -> Callable[[], bool]:
    """Return whether so many validators have committed to a lot."""
    return lambda: sum(any(lot.commitment) for lot in stage.round().lots) == count


def restarted(stage: Oracle) -> list[Any]:
    """Return all validators as new processes would be: with their keys and nothing else."""
    return [stage.validator(number) for number in range(4)]


def test_an_audit_pays_the_honest_and_bars_who_is_caught(
    oracle: MakeOracle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four validators are replaced between commitment and reveal, and again before audits."""
    monkeypatch.setattr(validator_module, "OWNER_FIRST_SEC", 0)  # nobody plays the owner
    stage = oracle(devices=8, lot_e6=ALL_E6)
    validators = stage.validators()
    *good, forger, other, silent, shy = stage.devices
    *good, copier = good
    stage.open(reveal_sec=3, audit_sec=4)
    with pytest.raises(RoundClosedError, match="lots_missing"):
        stage.upload(good[0])
    with caplog.at_level(logging.INFO, "gradledger.validator"):
        step_until(validators, committed(stage, 4))
        for number, device in enumerate((*good, other, silent, shy)):
            stage.upload(device, UPDATE * (number + 2) / 8)
        stage.upload(copier, UPDATE * 2 / 8)  # that of good[0], encrypted from a seed of its own
        stage.upload(forger, -UPDATE, errors=[500_000, 1])  # all answers wrong, not none
        step(validators)
        assert all(stage.member(one).upload_cid == "" for one in stage.devices)
        stage.close()
        step(validators)
        assert stage.round().pending == 8  # without a CID there is nothing to judge yet
        for device in stage.devices[:-1]:
            stage.reveal(device)
        step_until(validators, reached(stage, RoundState.DRAWING))
        assert stage.verdict(shy) == refused(VerdictCode.UNREVEALED)
        assert stage.verdict(forger)[0] is UploadState.ACCEPTED  # what it encrypted, nobody sees
        assert stage.contract.escrow(stage.task).reserved == 7 * 600
        validators = restarted(stage)
        step_until(validators, reached(stage, RoundState.AUDITING))
        assert stage.round().drawn == 7
        for device in (*good, copier, forger):
            stage.open_upload(device)
        stage.open_upload(other, UPDATE)
        seen = read_snapshot(stage.contract, stage.task)
        assert (seen.to_dict()["state"], seen.to_dict()["drawn"]) == ("auditing", 7)
        assert seen.to_dict()["unopened"] == 1 and seen.left_sec <= 5
        assert "7 uploads under audit, 1 of them not opened yet" in seen.line()
        validators = restarted(stage)
        step_until(validators, reached(stage, RoundState.SUMMED))
    assert [stage.verdict(one) for one in good] == [PAID] * 3
    assert stage.verdict(copier) == refused(VerdictCode.DUPLICATE)
    assert stage.verdict(forger) == refused(VerdictCode.ERROR_MISMATCH)
    assert stage.verdict(other) == refused(VerdictCode.OPENING_MISMATCH)
    assert stage.verdict(silent) == refused(VerdictCode.UNANSWERED)
    seen = read_snapshot(stage.contract, stage.task)
    assert seen.to_dict()["barred"] == sorted((copier, forger, other, silent))
    barred = {one: stage.member(one).barred_until for one in stage.devices}
    assert barred == {one: 0 if one in (*good, shy) else 3 for one in stage.devices}
    stage.check_sum(good)
    stage.check_money(good)
    for event, sender in (("audited", good[0]), ("caught", forger), ("caught", other)):
        assert f"event={event} validator={stage.judges[0]} task={stage.task} version=1" in (
            caplog.text
        )
        assert f"sender={sender}" in caplog.text
    while stage.round().state is not RoundState.SETTLED:
        stage.push(stage.contract.settle(stage.task, stage.owner, 1), stage.owner)
    stage.open(audit_sec=4)
    step_until(validators, committed(stage, 4))
    with pytest.raises(NotAllowedError, match="barred"):
        stage.upload(forger)
    stage.upload(good[0])
    stage.finality()
    judge = stage.judges[0]
    report = replay_verdicts(
        stage.contract.client, stage.task, store=stage.store, keys=[(judge, stage.keys[judge])]
    )
    assert not report.count("wrong") and not report.count("untold")
    assert report.count("held") >= 3 * (8 + 6) and report.sums.held >= 3
    assert "all hold" in report.verdict


def pid_of(network: Network, name: str) -> int:
    (row,) = (one for one in network.status()["processes"] if one["name"] == name)
    return int(row["pid"])


@pytest.fixture
def served(localnet_validators: Network) -> Iterator[Network]:
    yield localnet_validators
    localnet_validators.up()


def test_a_killed_validator_reveals_what_it_committed_to(
    served: Network, oracle: MakeOracle
) -> None:
    judges = ["validator1", "validator2", "validator3", "validator4"]
    stage = oracle(devices=3, judges=judges, lot_e6=ALL_E6 // 2)
    step_until([], lambda: all(stage.member(one).joined for one in judges))
    stage.open()
    step_until([], committed(stage, 4))
    os.kill(pid_of(served, "validator2"), signal.SIGKILL)
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    stage.close()
    step_until([], reached(stage, RoundState.DRAWING))
    served.up()

    def revealed(now: Round) -> bool:
        return all(any(lot.value) for lot in now.lots)

    step_until([], lambda: revealed(stage.round()) or stage.round().state > RoundState.DRAWING)
    lots = stage.round().lots
    assert revealed(stage.round())
    assert len({lot.value for lot in lots}) == 4
