"""Whole trainings on a real node and a real Kubo."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import EXAMPLES, Phone, Training, points, train

from device_sdk import Device, Paid, Refused
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import RoundState
from gradledger.errors import ConfigError
from gradledger.models import Model
from gradledger.store import Store
from owner.plan import Plan
from owner.run import STEPS, Progress, RoundReport, first_model, run
from owner.state import StateDir

PRICE = 10
VALIDATION, TEST = points(100, 90), points(200, 300)


def carry(training: Training, state: Path, **options: Any) -> list[RoundReport]:
    reports = run(
        training.plan,
        owner=training.make_owner(),
        state=state,
        validation=VALIDATION,
        test=TEST,
        **options,
    )
    return list(reports)


def check_consistent(training: Training, state: Path, reports: list[RoundReport]) -> None:
    """One training, each upload paid once, the model what the devices' updates make of it."""
    plan, owner = training.plan, training.make_owner()
    assert [report.version for report in reports] == list(range(1, plan.rounds + 1))
    for report in reports:
        assert (report.uploads, report.accepted, report.refused, report.updates) == (3, 3, 0, 3)
        assert report.paid == 3 * EXAMPLES * PRICE
        assert report.reasons == {} and report.note == ""
    rounds = owner.contract.rounds(plan.task)
    assert [each.state for each in rounds] == [RoundState.SETTLED] * plan.rounds
    assert all(any(each.root) for each in rounds)
    escrow = owner.escrow()
    assert escrow.deposited == plan.amount("deposit").amount
    assert escrow.paid == sum(report.paid for report in reports)
    assert escrow.reserved == 0 and escrow.withdrawn == 0 and escrow.conserved
    for phone in training.phones:
        balance = owner.chain.balance("eosio.token", phone.account, "TOK")
        assert balance is not None and balance.amount == plan.rounds * EXAMPLES * PRICE
    model = StateDir(state).model(plan.rounds)
    assert model is not None
    wanted = training.expected(plan.rounds, first_model(plan))
    assert np.abs(model.vector - wanted).max() <= plan.rounds * 4 / 65_535
    assert reports[-1].accuracy == owner.evaluate(model, *TEST)


@pytest.mark.parametrize("mode", ["paillier", "sealed"])
def test_a_training_that_grows_to_three_rounds(make_training, tmp_path, mode):
    training = make_training(mode=mode, rounds=2)
    start = first_model(training.plan)
    owner = training.make_owner()
    with training.played():
        reports = carry(training, tmp_path)
    check_consistent(training, tmp_path, reports)
    assert reports[-1].accuracy > 0.9 > owner.evaluate(start, *TEST)
    # Everything is done: a further start repeats the reports and touches nothing.
    assert carry(training, tmp_path) == reports
    # The plan may grow: more rounds, more money.
    more = {**training.plan.to_dict(), "rounds": 3, "deposit": "11.0000 TOK"}
    training.plan = Plan.from_dict(more)
    with training.played():
        grown = carry(training, tmp_path)
    check_consistent(training, tmp_path, grown)
    assert grown[:2] == reports


@pytest.mark.parametrize("mode", ["paillier", "sealed"])
def test_the_device_sdk_takes_part_and_is_paid(make_training, tmp_path, mode):
    training: Training = make_training(mode=mode, validators=4)
    phones, training.phones = training.phones, []  # the SDK plays the devices
    store = training.make_owner().store.address

    def live(phone: Phone) -> list[Paid | Refused]:
        client, account = phone.contract.client, phone.account
        device = Device(account, key=phone.key, task=phone.task, chain=client, store=store)
        admitted = partial(phone.contract.member, phone.task, account)
        client.wait_until(lambda: admitted() is not None, timeout_sec=60)
        device.join(classes=[0, 1, 2])
        x, y = points(phone.seed, EXAMPLES)

        def fit(model: Model, validation: Any) -> tuple[Model, list[int]]:
            trained = train(model, x, y)
            return trained, [one.error_micro(*validation) for one in (model, trained)]

        receipts, version = [], 0
        while version < training.plan.rounds:
            with device.round(wait_sec=60, after=version) as current:
                version = current.version
                receipts.append(current.upload(current.train(fit, examples=EXAMPLES)))
        return [receipt.wait(60) for receipt in receipts]

    with training.played(), ThreadPoolExecutor(len(phones)) as pool:
        lives = [pool.submit(live, phone) for phone in phones]
        reports = carry(training, tmp_path)
        outcomes = [outcome for each in lives for outcome in each.result(timeout=120)]
    assert len(outcomes) == 6 and all(isinstance(outcome, Paid) for outcome in outcomes)
    assert {str(outcome.amount) for outcome in outcomes} == {"0.0600 TOK"}
    assert [(report.accepted, report.updates) for report in reports] == [(3, 3)] * 2
    assert reports[-1].accuracy > 0.9


class Stopped(Exception):
    """What the tests raise in the place of a kill."""


AUDITED = {"lot": 1.0, "reveal_sec": 30, "audit_sec": 30}


@pytest.mark.parametrize("terms", [{}, {"mode": "sealed"}, AUDITED])
def test_a_training_survives_a_stop_before_and_after_every_step(make_training, tmp_path, terms):
    training = make_training(**terms)
    stopped_at: set[tuple[str, int, bool]] = set()

    def stop_once_everywhere(progress: Progress) -> None:
        place = (progress.step, progress.version, progress.done)
        if place not in stopped_at:
            stopped_at.add(place)
            raise Stopped

    reports: list[RoundReport] = []
    with training.played():
        for _ in range(100):
            try:
                reports = carry(training, tmp_path, progress=stop_once_everywhere)
                break
            except Stopped:
                continue
    check_consistent(training, tmp_path, reports)
    before_rounds = {"create", "admit", "deposit", "join"}
    # Verdicts and sum may be there at once; nothing is drawn and audited without lots.
    always = set(STEPS) - before_rounds - {"verdicts", "draw", "audit", "sum"}
    if "lot" in terms:
        always.add("draw")  # by the owner alone, unless it is away for long
        assert [report.drawn for report in reports] == [3, 3]
    for done in (False, True):
        assert {(step, 0, done) for step in before_rounds} <= stopped_at
        assert {(step, version, done) for step in always for version in (1, 2)} <= stopped_at


def test_a_training_waits_out_a_node_that_is_away(make_training, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("owner.run.NOTICE_SEC", 0.5)
    training = make_training(rounds=1)
    back = threading.Timer(2.0, training.network.up)

    def kill_once(progress: Progress) -> None:
        if (progress.step, progress.done) == ("close", False) and not back.is_alive():
            with contextlib.suppress(RuntimeError):  # it was started before
                back.start()
                training.kill_node()

    with training.played():
        try:
            reports = carry(training, tmp_path, progress=kill_once, patience_sec=300)
        finally:
            back.join()
    check_consistent(training, tmp_path, reports)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("event=waiting")]
    assert "error=NodeUnavailableError" in line and "no endpoint answered" in line
    assert 290 < int(line.rpartition("gives_up_sec=")[2]) <= 300


def test_a_wait_that_is_no_wait_is_refused(make_training, tmp_path):
    with pytest.raises(ConfigError, match="patience: expected 0"):
        carry(make_training(), tmp_path, patience_sec=float("nan"))


def test_a_stop_between_ipfs_and_the_chain(make_training, tmp_path, monkeypatch):
    """Killed after a put or a transaction that nobody wrote down yet, at every place in turn."""
    training = make_training(rounds=1)
    left: list[int] = []
    watched: set[Any] = set()

    def interrupted(method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            if self in watched:
                left[0] -= 1
                if left[0] < 0:
                    raise Stopped
            return result

        return call

    monkeypatch.setattr(Store, "put", interrupted(Store.put))
    monkeypatch.setattr(ChainClient, "push", interrupted(ChainClient.push))
    reports: list[RoundReport] = []
    stops = 0
    with training.played():
        for allowed in range(60):
            owner = training.make_owner()
            owner.chain = ChainClient(owner.chain.endpoints)
            owner.contract.client = owner.chain
            owner.store = Store(owner.store.address)
            watched = {owner.chain, owner.store}
            left[:] = [allowed % 9]  # a start puts the card and issues three sets at once
            options = {"state": tmp_path, "validation": VALIDATION, "test": TEST}
            try:
                reports = list(run(training.plan, owner=owner, **options))
                break
            except Stopped:
                stops += 1
    assert stops >= 5
    check_consistent(training, tmp_path, reports)


def test_a_lost_state_directory_costs_nothing(make_training, tmp_path):
    training = make_training(rounds=2)

    def stop(progress: Progress) -> None:
        if (progress.step, progress.version, progress.done) == ("open", 2, True):
            raise Stopped

    with training.played():
        with pytest.raises(Stopped):
            carry(training, tmp_path / "first", progress=stop)
        reports = carry(training, tmp_path / "second")
    assert [report.version for report in reports] == [1, 2]
    # Who voted how in round 1 is gone from the chain, and was in the lost directory.
    assert [report.outvoted for report in reports] == [None, []]
    model = StateDir(tmp_path / "second").model(2)
    assert model is not None
    wanted = training.expected(2, first_model(training.plan))
    assert np.abs(model.vector - wanted).max() <= 2 * 4 / 65_535
    assert training.make_owner().escrow().deposited == training.plan.amount("deposit").amount


def test_a_byzantine_copy_of_the_sum_is_skipped_and_named(make_training, tmp_path, caplog):
    # Any quorum of three has one of the first two, whose copies the owner meets first.
    training = make_training(rounds=1, validators=4, liars=2)
    liars = [validator.account for validator in training.validators[:2]]
    with training.played(), caplog.at_level(logging.WARNING, "gradledger.owner"):
        reports = carry(training, tmp_path)
    check_consistent(training, tmp_path, reports)
    found = training.make_owner().round(1)
    assert found.validators == ()  # settled: the votes are gone, one copy's CID stays
    lines = [r.getMessage() for r in caplog.records if r.name == "gradledger.owner"]
    complaints = [line.split() for line in lines if "header, readers" in line]
    assert complaints, lines
    assert {words[0] for words in complaints} == {"event=bad_copy"}
    assert {words[3].partition("=")[2] for words in complaints} <= set(liars)
    assert reports[0].bad_copies and set(reports[0].bad_copies) <= set(liars)


def test_too_few_uploads_leave_the_model_and_say_so(make_training, tmp_path):
    training = make_training(rounds=1, close_after=2)
    training.phones.pop()
    training.plan = Plan.from_dict({**training.plan.to_dict(), "devices_min": 2})
    with training.played():
        (report,) = carry(training, tmp_path)
    assert (report.accepted, report.updates) == (2, 0)
    assert report.note == "2 accepted uploads, fewer than sum_min 3: the model stays as it is"
    state = StateDir(tmp_path)
    first, second = state.model(0), state.model(1)
    assert first is not None and second is not None
    assert (first.vector == second.vector).all()
    assert report.paid == 2 * EXAMPLES * PRICE
    assert (report.outvoted, report.silent, report.bad_copies) == ([], [], {})
    # Nothing was released: no sum is attested, and no validator made a copy of one.
    found = training.make_owner().round(1)
    assert not any(found.sum_hash) and not found.sum_cid
    for phone in training.phones:
        held = phone.contract.client.balance("eosio.token", phone.account, "TOK")
        assert held is not None and held.amount == EXAMPLES * PRICE


def test_a_spoilt_sum_is_not_applied(make_training, tmp_path, monkeypatch):
    """A device that encrypts more than a code spoils the round; the owner sees it and says so."""
    training = make_training(rounds=1)
    cheat = training.phones[0]

    def seal_twice(task: Any, found: Any, card: Any, codec: Any, codes: Any) -> bytes:
        public = card.public_key()
        payload = public.encrypt(np.full_like(codes, 65_535), codec)
        doubled = public.add([payload] * 3, codec)
        monkeypatch.setattr(type(public), "encrypt", lambda *_, **__: doubled)
        try:
            return type(cheat).seal(cheat, task, found, card, codec, codes)
        finally:
            monkeypatch.undo()

    cheat.seal = seal_twice
    with training.played():
        (report,) = carry(training, tmp_path)
    assert report.accepted == 3 and report.updates == 0
    assert report.note.startswith("spoilt sum: slot ")


def test_another_plan_or_task_is_refused(make_training, tmp_path):
    training = make_training()
    StateDir(tmp_path).save_plan(training.plan.to_dict())
    training.plan = Plan.from_dict({**training.plan.to_dict(), "clip": 2.0})
    with pytest.raises(ConfigError, match="started with another clip"):
        carry(training, tmp_path)
    training.plan = Plan.from_dict({**training.plan.to_dict(), "task": "other"})
    with pytest.raises(ConfigError, match="expected task"):
        carry(training, tmp_path)


@pytest.mark.slow
def test_a_training_survives_kill_minus_nine(make_training, tmp_path):
    """The command line, killed without warning wherever it happens to be."""
    training = make_training(rounds=2)
    home = training.network.home
    for name, (x, y) in {"validation": VALIDATION, "test": TEST}.items():
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    data = {"validation": "validation.npz", "test": "test.npz"}
    (tmp_path / "plan.json").write_text(json.dumps({**training.plan.to_dict(), "data": data}))
    account = training.make_owner().account
    command = [
        sys.executable,
        "-c",
        "import sys; from gradledger.cli import main; sys.exit(main())",
    ]
    command += ["owner", "run", "--plan", str(tmp_path / "plan.json"), "--home", str(home)]
    command += ["--account", account, "--state", str(tmp_path / "state"), "--json"]
    command += ["--paillier-key", str(training.paillier_key_file)]
    rng = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = ""
    with training.played():
        for attempt in range(12):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
            try:
                wait = 240 if attempt >= 5 else rng.uniform(1.2, 3.0)
                output, errors = process.communicate(timeout=wait)
                assert process.returncode == 0, errors
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate(timeout=30)
    reports = [RoundReport(**json.loads(line)) for line in output.splitlines()]
    check_consistent(training, tmp_path / "state", reports)
