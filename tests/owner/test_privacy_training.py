"""A training with differential privacy, from the plan to the next model, on the real parts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from played import EXAMPLES, Phone, Training, points, train

from device_sdk import Device, Paid, Update
from gradledger.card import task_codec
from gradledger.cli import main
from gradledger.errors import PrivacyError
from gradledger.models import Model
from owner.run import create_task, first_model, run
from owner.validation_sets import ValidationData

PRIVACY = {"epsilon": 30, "delta": 1e-5, "clip_norm": 0.5}
ROUNDS = 2


def test_noisy_updates_are_paid_and_summed(make_training, tmp_path, capsys):
    training: Training = make_training(rounds=ROUNDS, privacy=PRIVACY, tau=1.000001)
    phones, training.phones = training.phones, []  # the SDK plays the devices
    terms = training.plan.privacy_terms()
    assert terms is not None
    owner = training.make_owner()
    updates: dict[int, list[Update]] = {1: [], 2: []}
    trained: dict[int, list[np.ndarray]] = {1: [], 2: []}

    def live(phone: Phone) -> list[object]:
        client, account = phone.contract.client, phone.account
        store = owner.store.address
        device = Device(account, key=phone.key, task=phone.task, chain=client, store=store)
        admitted = partial(phone.contract.member, phone.task, account)
        client.wait_until(lambda: admitted() is not None, timeout_sec=60)
        device.join(classes=[0, 1, 2], epsilon_max=30)
        x, y = points(phone.seed, EXAMPLES)

        def fit(model: Model, validation: Any) -> tuple[Model, list[int]]:
            found = train(model, x, y)
            trained[version].append(terms.clipped(found.vector - model.vector))
            return found, [0]

        receipts, version = [], 0
        while version < ROUNDS:
            with device.round(wait_sec=60, after=version) as current:
                version = current.version
                updates[version].append(current.train(fit, examples=EXAMPLES))
                receipts.append(current.upload(updates[version][-1]))
        return [receipt.wait(60) for receipt in receipts]

    with training.played(), ThreadPoolExecutor(len(phones)) as pool:
        lives = [pool.submit(live, phone) for phone in phones]
        reports = list(
            run(
                training.plan,
                owner=owner,
                state=tmp_path / "state",
                validation=points(100, 90),
                test=points(200, 300),
            )
        )
        outcomes = [outcome for each in lives for outcome in each.result(timeout=120)]
    assert len(outcomes) == 3 * ROUNDS and all(isinstance(each, Paid) for each in outcomes)
    assert [(report.accepted, report.updates) for report in reports] == [(3, 3)] * ROUNDS
    assert [report.epsilon for report in reports] == [terms.spent(k).epsilon for k in (1, 2)]
    assert [report.delta for report in reports] == [1e-5] * ROUNDS

    # The next model is the last plus the mean of what was uploaded: true updates and noise.
    codec = task_codec(owner.contract.task(owner.task))
    model, noises = first_model(training.plan), []
    for version in (1, 2):
        mean = np.mean([update.delta for update in updates[version]], axis=0)
        after = owner.aggregate(version, model).model
        np.testing.assert_allclose(after.vector, model.vector + mean, atol=2 * codec.clip / 65_535)
        noises.append(after.vector - model.vector - np.mean(trained[version], axis=0))
        model = after
    noise = np.concatenate(noises) / (terms.sigma / np.sqrt(3))
    assert np.abs(noise).max() < 7  # by chance less than once in 10^10 runs
    assert 0.25 < np.sqrt(np.mean(noise**2)) < 2  # of 30 values, likewise

    words = ["owner", "status", "--task", owner.task, "--home", str(training.network.home)]
    words += ["--account", owner.account, "--state", str(tmp_path / "state")]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["privacy"] == {
        "clip_norm": 0.5,
        "sigma": terms.sigma,
        "rounds": ROUNDS,
        "epsilon": terms.epsilon(),
        "delta": 1e-5,
        "spent": {"rounds": 2, "epsilon": terms.spent(2).epsilon, "delta": 1e-5},
    }
    assert main(words) == 0
    assert "epsilon 30 of 30 given away, in 2 of 2 rounds" in capsys.readouterr().out
    # Without IPFS the chain's part is shown all the same.
    gone = ["--store", "http://127.0.0.1:9"]
    assert main([*words, *gone, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == ROUNDS and set(found["privacy"]) == {"error"}
    assert main([*words, *gone]) == 0
    assert "differential privacy is not known now" in capsys.readouterr().out


def test_a_task_is_not_created_with_a_codec_that_cuts_the_noise(make_training):
    training: Training = make_training(privacy=PRIVACY)
    owner, plan = training.make_owner(), training.plan
    object.__setattr__(plan, "clip", 0.5)
    with pytest.raises(PrivacyError, match=r"clip 0\.5 would cut off"):
        create_task(owner, plan, validation=ValidationData(*points(100, 90)))
    assert not owner.exists()
