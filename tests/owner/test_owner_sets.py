"""Whole trainings with committed validation points, and what anybody can check of them later."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import EXAMPLES, Phone, Training, points, train

from device_sdk import Device, Paid, Refused
from gradledger.check_set import check_set
from gradledger.errors import ConfigError
from gradledger.localnet.network import Network
from gradledger.models import Model
from owner.plan import Plan
from owner.run import create_task, run
from owner.validation_sets import ValidationData

VALIDATION, TEST = points(100, 90), points(200, 300)
ROUNDS = 2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def fit(phone: Phone, model: Model, validation: tuple[Any, Any]) -> tuple[Model, list[int]]:
    trained = train(model, *points(phone.seed, EXAMPLES))
    errors = [model.error_micro(*validation), trained.error_micro(*validation)]
    return trained, [max(errors[0], errors[1] + 1), errors[1]]


def take_part(training: Training, phone: Phone) -> list[Paid | Refused]:
    """Train and upload in every round, with the SDK; remember the points that were given."""
    device = Device(
        phone.account,
        key=phone.key,
        task=phone.task,
        chain=phone.contract.client,
        store=phone.store,
    )
    phone.contract.client.wait_until(
        lambda: phone.contract.member(phone.task, phone.account), timeout_sec=30
    )

    device.join(classes=[0, 1] if phone.seed else [0, 1, 2])
    outcomes: list[Paid | Refused] = []
    for version in range(1, training.plan.rounds + 1):
        with device.round(wait_sec=60) as current:
            assert current.version == version
            phone.deltas[version] = np.sort(current.validation[0], axis=0)
            update = current.train(partial(fit, phone), examples=EXAMPLES)
            receipt = current.upload(update)
        outcomes.append(receipt.wait(timeout_sec=60))
    return outcomes


def test_devices_train_on_what_the_blocks_drew_and_are_paid(
    make_training: Any, tmp_path: Path
) -> None:
    training: Training = make_training(rounds=ROUNDS, mode="sealed", tau=1.000001, clip=8.0)
    phones, training.phones = training.phones, []  # the SDK plays the devices
    owner = training.make_owner()
    with training.played(), ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(take_part, training, phone) for phone in phones]
        reports = list(
            run(training.plan, owner=owner, state=tmp_path, validation=VALIDATION, test=TEST)
        )
        outcomes = [outcome for future in futures for outcome in future.result(timeout=60)]
    assert [report.accepted for report in reports] == [3, 3]
    assert len(outcomes) == 6 and all(isinstance(outcome, Paid) for outcome in outcomes)
    first, second = (phones[0].deltas[version] for version in (1, 2))
    assert len(first) == 3 * training.plan.points_per_class
    assert not np.array_equal(first, second), "each round's block draws anew"
    for phone, version in ((phones[0], 1), (phones[1], 1), (phones[1], 2)):
        report = check_set(
            owner.contract,
            owner.store,
            owner.task,
            device=phone.account,
            version=version,
            account=phone.account,
            key=phone.key,
        )
        assert report.holds, report.reason
        assert report.from_blocks == (version == 1)
        assert report.classes == ((0, 1) if phone.seed else (0, 1, 2))


def test_sets_of_earlier_classes_are_checked_by_the_blocks(
    make_training: Any, tmp_path: Path
) -> None:
    """A device that declares other classes after a round had those of its set before it."""
    training: Training = make_training(rounds=1)
    phone = training.phones[0]
    owner = training.make_owner()
    with training.played():
        list(run(training.plan, owner=owner, state=tmp_path, validation=VALIDATION, test=TEST))
    member = owner.contract.member(owner.task, phone.account)
    assert member is not None
    phone.push(owner.contract.join(owner.task, phone.account, member.enc_key, 0b001))
    options: dict[str, Any] = {"device": phone.account, "account": phone.account, "key": phone.key}
    report = check_set(owner.contract, owner.store, owner.task, version=1, **options)
    assert report.holds and report.from_blocks and report.classes == (0, 1, 2)
    with pytest.raises(ConfigError, match="has no round 2"):
        check_set(owner.contract, owner.store, owner.task, version=2, **options)
    options["device"] = training.plan.validators[0]
    with pytest.raises(ConfigError, match="have no set for"):
        check_set(owner.contract, owner.store, owner.task, version=1, **options)


def test_who_joins_while_the_round_is_open_gets_a_set_as_well(
    make_training: Any, tmp_path: Path
) -> None:
    training: Training = make_training(rounds=1, public=True, devices_min=2)
    late = training.phones.pop()
    owner = training.make_owner()

    def join_late() -> None:
        owner.chain.wait_until(
            lambda: owner.exists() and owner.version() >= 1, timeout_sec=60, what="round 1"
        )
        time.sleep(1)
        training.phones.append(late)

    thread = threading.Thread(target=join_late, daemon=True)
    with training.played():
        thread.start()
        (report,) = run(
            training.plan, owner=owner, state=tmp_path, validation=VALIDATION, test=TEST
        )
        thread.join(timeout=60)
    assert report.accepted == 3
    member = owner.contract.member(owner.task, late.account)
    assert member is not None and member.set_version == member.upload_version == 1


def test_points_are_needed_when_the_task_is_created(make_training: Any) -> None:
    training: Training = make_training()
    owner, plan = training.make_owner(), training.plan
    with pytest.raises(ConfigError, match="committed_sets: expected the owner's validation points"):
        create_task(owner, plan)
    few = ValidationData(*points(100, 9))
    with pytest.raises(ConfigError, match="class 0: expected at least 4 points to commit to, got"):
        create_task(owner, plan, validation=few)
    assert not owner.exists()
    task = create_task(owner, plan, validation=ValidationData(*VALIDATION))
    commitment = owner.card(task).validation
    assert commitment is not None and (commitment.counts, commitment.per_class) == ((30,) * 3, 4)
    with pytest.raises(ConfigError, match="commits to other validation points"):
        owner._set_maker(1, ValidationData(*points(101, 90)), None)
    with pytest.raises(ConfigError, match="exists with other terms"):
        create_task(owner, plan, validation=ValidationData(*points(101, 90)))


def test_points_cannot_be_exchanged_or_their_number_changed(
    make_training: Any, tmp_path: Path, localnet: Network
) -> None:
    training: Training = make_training(devices_min=0, join_sec=0)
    owner = training.make_owner()
    state: dict[str, Any] = {"owner": owner, "state": tmp_path, "test": TEST}
    with pytest.raises(KeyboardInterrupt):
        next(run(training.plan, validation=VALIDATION, progress=_stop, **state))
    with pytest.raises(ConfigError, match="exists with other terms"):
        next(run(training.plan, validation=points(101, 90), **state))
    more = Plan.from_dict({**training.plan.to_dict(), "points_per_class": 5})
    with pytest.raises(ConfigError, match="started with another points_per_class"):
        next(run(more, validation=VALIDATION, **state))


def _stop(progress: Any) -> None:
    if (progress.step, progress.done) == ("create", True):
        raise KeyboardInterrupt
