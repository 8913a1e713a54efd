"""Validators that give a wrong sum are outvoted, and named: on real rounds."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import LyingStore, Training
from test_owner_run import carry, check_consistent

from gradledger import envelope
from gradledger.chain.keys import save_key_file
from gradledger.cid import cid_v0
from gradledger.store import Store
from owner import cli
from owner.errors import SumUnusableError
from owner.run import Progress, RoundReport, first_model
from owner.state import StateDir
from producer_validation.executors import InlineExecutor
from producer_validation.validator import Validator


class WrongProduct(InlineExecutor):
    """Multiplies, but not what it was given: `change` is done to the list of updates."""

    def __init__(self, change: Callable[[list[bytes]], list[bytes]]) -> None:
        self.change = change

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if fn.__name__ == "add_payloads":
            key, codec, payloads = args
            args = (key, codec, self.change(payloads))
        return super().submit(fn, *args)


class OtherSum(Store):
    """Seals another sum to the owner than was attested."""

    owner_key = b""

    def put(self, data: bytes) -> str:
        parsed = envelope.parse(data)
        if parsed.header.kind is envelope.Kind.SUM:
            (reader,) = parsed.readers
            other = b"\1" * parsed.header.payload_bytes
            data = envelope.seal(parsed.header, other, {reader: self.owner_key})
        return super().put(data)


class Withholding(Store):
    """Keeps the sum to itself."""

    def put(self, data: bytes) -> str:
        if envelope.parse(data).header.kind is envelope.Kind.SUM:
            return cid_v0(data)
        return super().put(data)


def corrupt(training: Training, *options: dict[str, Any]) -> list[str]:
    """Make the first validators Byzantine; return their accounts, then those of the honest.

    The Byzantine ones have their turn before each of the others, so that their votes are always
    among those that the chain takes.
    """
    liars = []
    for honest, changes in zip(training.validators, options, strict=False):
        fields = {"store": honest.store, **changes}
        where = (honest.account, honest._key, honest.chain, fields.pop("store"))
        liars.append(Validator(*where, tasks=honest._tasks, **fields))
    others = training.validators[len(liars) :]
    training.validators = [one for honest in others for one in (*liars, honest)] or liars
    return [one.account for one in (*liars, *others)]


def status(training: Training, tmp_path: Path, *options: str) -> int:
    """Run `gradledger owner status` on a state directory that a training left."""
    owner = training.make_owner()
    key_file = tmp_path / "owner.json"
    if not key_file.exists():
        save_key_file(key_file, owner.account, owner._key)
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    where = ["--chain", ",".join(owner.chain.endpoints), "--store", owner.store.address]
    where += ["--key-file", str(key_file), "--state", str(tmp_path / "state")]
    args = parser.parse_args(["owner", "status", *where, "--task", owner.task, *options])
    return int(args.func(args) or 0)


def test_a_wrong_product_is_outvoted_and_named(
    make_training: Callable[..., Training],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = make_training(rounds=1, validators=4)
    wrong = WrongProduct(lambda updates: updates[1:])
    liar, *honest = corrupt(training, {"executor": wrong})

    def wait_for_the_log(progress: Progress) -> None:
        until = time.monotonic() + 30
        while (progress.step, progress.done) == ("settle", False) and time.monotonic() < until:
            if "event=outvoted validator=" in caplog.text:
                return
            time.sleep(0.05)

    with training.played(), caplog.at_level(logging.WARNING):
        reports = carry(training, tmp_path / "state", progress=wait_for_the_log)
    check_consistent(training, tmp_path / "state", reports)  # the model is that of the right sum
    (report,) = reports
    assert (report.outvoted, report.silent, report.bad_copies) == ([liar], [], {})
    lines = [(one.name, one.getMessage()) for one in caplog.records]
    told = f"event=outvoted task={training.plan.task} version=1 sender={liar}"
    assert ("gradledger.owner", told) in lines
    said = [line.split() for _, line in lines if line.startswith("event=outvoted validator=")]
    assert said and {words[1].partition("=")[2] for words in said} <= {liar, *honest}
    assert all(f"sender={liar}" in words for words in said)
    # The votes are gone from the chain; the state directory still tells.
    assert training.make_owner().round(1).validators == ()
    assert status(training, tmp_path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rounds"]
    assert (row["outvoted"], row["silent"], row["bad_copies"]) == ([liar], [], {})
    assert status(training, tmp_path) == 0
    assert f"{liar} attested another sum and was outvoted" in capsys.readouterr().out
    cli._print_report(report, training.plan.amount("price").symbol, None, False)
    assert f"; {liar} attested another sum and was outvoted\n" in capsys.readouterr().out
    # Whoever asks only now gets the same model and no names.
    late = training.make_owner().aggregate(1)
    model = StateDir(tmp_path / "state").model(1)
    assert model is not None and (late.model.vector == model.vector).all()
    assert late.votes is None


def test_wrong_copies_of_the_right_sum_are_passed_over_and_named(
    make_training: Callable[..., Training], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make_training(rounds=1, validators=4)
    address = training.make_owner().store.address
    other = OtherSum(address)
    other.owner_key = envelope.public_key_of(training.make_owner()._key.encryption_key())
    stores = [{"store": other}, {"store": Withholding(address)}]
    first, second, *honest = corrupt(training, *stores)
    with training.played():
        reports = carry(training, tmp_path / "state")
    check_consistent(training, tmp_path / "state", reports)
    (report,) = reports
    assert report.outvoted == []
    assert len(report.silent) == 1 and report.silent[0] in honest  # the quorum was there before it
    assert list(report.bad_copies) == [first, second]
    assert report.bad_copies[first].startswith("sum: expected the attested ")
    assert "was not found locally" in report.bad_copies[second]
    cli._print_report(report, training.plan.amount("price").symbol, None, True)
    assert RoundReport(**json.loads(capsys.readouterr().out)) == report
    assert status(training, tmp_path) == 0
    shown = capsys.readouterr().out
    assert f"{first} gave no right sum: sum: expected the attested" in shown
    assert f"{second} gave no right sum: " in shown


def test_without_a_quorum_the_model_stays_and_it_is_said_who_attested_what(
    make_training: Callable[..., Training], tmp_path: Path
) -> None:
    """Two liars of four are one more than f: they can stop a sum, and not have theirs taken."""
    training = make_training(rounds=1, validators=4, sum_sec=2)
    first, second, third, fourth = corrupt(
        training,
        {"executor": WrongProduct(lambda updates: updates[1:])},
        {"executor": WrongProduct(lambda updates: updates[:1])},
    )
    with training.played():
        (report,) = carry(training, tmp_path / "state")
    assert (report.accepted, report.updates) == (3, 0)
    assert report.note.startswith("no quorum of validators attested the sum of 3 uploads (")
    for names in (f"{first}: ", f"{second}: ", f"{third}, {fourth}: "):
        assert names in report.note
    assert (report.outvoted, report.silent) == ([], [])  # nobody can say who is wrong
    directory = StateDir(tmp_path / "state")
    before, after = directory.model(0), directory.model(1)
    assert before is not None and after is not None
    assert np.array_equal(before.vector, after.vector)


def test_a_quorum_of_liars_is_believed(
    make_training: Callable[..., Training], tmp_path: Path
) -> None:
    """The documented bound: 2f+1 validators can attest a false sum; the honest one is named."""
    training = make_training(rounds=1, validators=4)
    wrong = {"executor": WrongProduct(lambda updates: [updates[0]] * len(updates))}
    *_, honest = corrupt(training, wrong, wrong, wrong)
    training.validators.insert(0, training.validators.pop())  # the honest one votes first
    with training.played():
        (report,) = carry(training, tmp_path / "state")
    assert report.accepted == report.updates == 3
    assert report.outvoted in ([honest], []) and report.silent in ([], [honest])
    model = StateDir(tmp_path / "state").model(1)
    assert model is not None
    right = training.expected(1, first_model(training.plan))
    assert np.abs(model.vector - right).max() > 0.01


def test_a_copy_with_one_bit_changed_is_named_while_all_is_on_chain(
    make_training: Callable[..., Training], tmp_path: Path
) -> None:
    """One by one: nothing but wrong copies is no sum, and says whose they were."""
    training = make_training(rounds=1, validators=1)
    (liar,) = corrupt(training, {"store": LyingStore(training.make_owner().store.address)})
    owner = training.make_owner()

    class Enough(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == "aggregate":
            raise Enough

    with training.played(), pytest.raises(Enough):
        carry(training, tmp_path / "state", progress=stop)
    with pytest.raises(SumUnusableError, match=rf"no right copy of the attested sum \({liar}: "):
        owner.aggregate(1)
