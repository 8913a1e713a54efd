"""A task that learns a number, on a real node and a real Kubo."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import Phone, Training

from device_sdk import Device, Paid, Refused
from device_sdk.training_sklearn import sklearn_fit
from gradledger.chain.contract import VerdictCode
from gradledger.errors import ConfigError, RuleNotMetError
from gradledger.store import Store
from gradledger.target import Target
from owner.run import run
from producer_validation.replay import replay_verdicts

TARGET = Target((-0.5, 0.5), scale=2.0, tolerance=0.4, unit="m")
EXAMPLES = 150


def heights(seed: int, count: int, strata: tuple[int, ...] = (0, 1, 2)) -> tuple[Any, Any]:
    """Draw points whose number lies in some strata."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20 * count, 3)).astype(np.float32)
    y = (np.sin(x[:, 0]) + 0.7 * x[:, 1] + rng.normal(0, 0.05, len(x))).astype(np.float32)
    chosen = np.flatnonzero(np.isin(TARGET.stratum_of(y), strata))[:count]
    return x[chosen], y[chosen]


def test_a_regression_pays_sound_data_and_no_other(make_training: Any, tmp_path: Path) -> None:
    training: Training = make_training(
        mode="sealed",
        rounds=1,
        architecture={
            "kind": "mlp",
            "layers": [3, 16, 1],
            "activation": "relu",
            "output": "identity",
        },
        target=TARGET.to_dict(),
        initial="glorot",
        rule="both",
        tau=0.28,
        epochs=5,
        batch_size=8,
        rate=0.05,
        measures=6,
        points_per_class=20,
        open_sec=120,
    )
    phones, training.phones = training.phones, []
    store = training.make_owner().store.address

    def live(phone: Phone, strata: tuple[int, ...], is_sound: bool) -> Paid | Refused:
        client = phone.contract.client
        device = Device(phone.account, key=phone.key, task=phone.task, chain=client, store=store)
        client.wait_until(
            lambda: phone.contract.member(phone.task, phone.account) is not None, timeout_sec=60
        )
        x, y = heights(phone.seed, EXAMPLES, strata)
        terms = device.terms()
        assert terms.target == TARGET and terms.classes == TARGET.names
        assert "strata      below -0.5 m, -0.5 to 0.5 m, 0.5 m and more" in str(terms)
        assert "share of 2 m" in str(terms) and "classes" not in str(terms)
        with pytest.raises(ConfigError, match=r"strata of task .*, got 3"):
            device.join([3])
        device.join(terms.target.strata_of(y))
        with device.round(wait_sec=120) as current:
            check_x, check_y = current.validation
            assert check_y.dtype == np.float32 and len(check_x) == 20 * len(strata)
            assert TARGET.strata_of(check_y) == list(strata)
            if is_sound:
                update = current.train(sklearn_fit(x, y, current.recipe), examples=EXAMPLES)
                assert update.errors[0] == current.model.error_micro(*current.validation)
                return current.upload(update).wait(120)
            shuffled = np.random.default_rng(1).permutation(y)
            fit = sklearn_fit(x, shuffled, current.recipe)
            update = current.train(fit, examples=EXAMPLES)
            with pytest.raises(RuleNotMetError):  # the chain judges the errors that it reports
                current.upload(update)
            update = current.train(fit, examples=EXAMPLES)
            update.errors = (900_000, 50_000)  # and the validators measure them again
            return current.upload(update).wait(120)

    lives = (((0, 1, 2), True), ((0, 2), True), ((0, 1, 2), False))
    with training.played(), ThreadPoolExecutor(3) as pool:
        parts = [pool.submit(live, phone, *one) for phone, one in zip(phones, lives, strict=True)]
        (report,) = run(
            training.plan,
            owner=training.make_owner(),
            state=tmp_path,
            validation=heights(100, 300),
            test=heights(200, 300),
        )
        *paid, refused = [part.result(timeout=120) for part in parts]
    assert all(isinstance(outcome, Paid) for outcome in paid)
    assert isinstance(refused, Refused) and refused.reason is VerdictCode.ERROR_MISMATCH
    assert (report.accepted, report.refused, report.updates) == (2, 1, 2)
    assert report.reasons == {"error_mismatch": 1}
    assert report.accuracy is None
    assert report.r2 is not None and report.r2 > 0.8
    assert report.mean_absolute_error is not None and report.mean_absolute_error < 0.4
    assert report.within_tolerance is not None and report.within_tolerance > 0.6
    judge = training.validators[0]
    verdicts = replay_verdicts(
        judge.chain, training.plan.task, store=Store(store), keys=[(judge.account, judge._key)]
    )
    assert verdicts.verdict == "3 verdicts, all hold"
