"""The bench of regressions: its instances, its faults, its tables."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench import regression as bench
from bench import regression_lab
from bench.csves_lab import train
from bench.regression_lab import DATA, STAGES, STRATA, Lab, Settings
from device_sdk.training import TrainingData, TrainingRecipe
from device_sdk.training_sklearn import sklearn_fit
from gradledger.demo.data import Samples
from gradledger.models import Model
from gradledger.target import Target


def waves(points: int, seed: int) -> Samples:
    """A number that a small network learns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(points, 4)).astype(np.float32)
    return Samples(x, (np.sin(x[:, 0]) + x[:, 1] / 2).astype(np.float32))


@pytest.fixture(scope="module")
def lab() -> Lab:
    owned, points = waves(600, 2), waves(2000, 1)
    settings = Settings(2600, 600, 200, 50, 32, 20_000, 4)
    target = Target.by_quantiles(owned.y, STRATA, scale=2.0, tolerance=0.5)
    models = regression_lab.global_models(points, settings, 1)
    return Lab(points, owned, waves(100, 3), target, models, settings)


def test_training_follows_the_recipe_like_the_devices_helper(lab: Lab) -> None:
    points, check = waves(210, 4), waves(100, 5)
    recipe = TrainingRecipe(2, 3, 32, 20_000, 4, 7)
    model = lab.model("glorot", 5)
    theirs, errors = sklearn_fit(points.x, points.y, recipe)(model, (check.x, check.y))
    rows = TrainingData(points.x, points.y)
    ours, measured = train(
        model,
        Samples(rows.x, rows.y),
        recipe,
        lambda arrays: (model.with_arrays(arrays).error_micro(check.x, check.y),),
    )
    np.testing.assert_allclose(model.with_arrays(ours).vector, theirs.vector, atol=1e-5)
    np.testing.assert_allclose([each for (each,) in measured], errors, atol=5)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_an_instance_is_of_its_strata(lab: Lab, count: int) -> None:
    one = regression_lab.draw(lab, count, 11)
    assert len(one.strata) == count
    for samples in (one.points, one.validation):
        assert lab.target.strata_of(samples.y) == one.strata.tolist()
    each = np.bincount(lab.target.stratum_of(one.validation.y), minlength=STRATA)[one.strata]
    assert each.sum() == 50 and each.max() - each.min() <= 1
    again = regression_lab.draw(lab, count, 11)
    np.testing.assert_array_equal(one.points.x, again.points.x)
    np.testing.assert_array_equal(one.validation.y, again.validation.y)


def test_faults(lab: Lab) -> None:
    one = regression_lab.draw(lab, 2, 11)
    sound = one.points
    assert regression_lab.spoil(lab, one, "valid") is sound
    shuffled = regression_lab.spoil(lab, one, "shuffled")
    assert Counter(shuffled.y.tolist()) == Counter(sound.y.tolist())
    drawn = regression_lab.spoil(lab, one, "random")
    assert lab.target.strata_of(drawn.y) == one.strata.tolist()
    for wrong in (shuffled, drawn):
        np.testing.assert_array_equal(wrong.x, sound.x)
        assert abs(np.corrcoef(wrong.y, sound.y)[0, 1]) < 0.3
    noise = regression_lab.spoil(lab, one, "inputs")
    np.testing.assert_array_equal(noise.y, sound.y)
    np.testing.assert_array_equal(np.sort(noise.x, axis=0), np.sort(sound.x, axis=0))
    alone = regression_lab.draw(lab, 1, 11)
    for data in ("shuffled", "random"):  # within one stratum any target is nearly right
        found = lab.target.strata_of(regression_lab.spoil(lab, alone, data).y)
        assert found == list(range(STRATA))


def test_series_fall_with_sound_data_and_repeat(lab: Lab) -> None:
    one = regression_lab.draw(lab, 5, 2)
    errors, doubts, wrong = regression_lab.series(lab, one, "glorot", "valid")
    assert len(errors) == regression_lab.EPOCHS * regression_lab.PER_EPOCH + 1
    model = lab.model("glorot", 2)
    assert errors[0] == model.error_micro(one.validation.x, one.validation.y)
    assert errors[-1] < errors[0] / 2 and doubts[-1] < doubts[0] and wrong[-1] < wrong[0]
    faulty = regression_lab.series(lab, one, "glorot", "shuffled")
    assert faulty[0, -1] > 2 * errors[-1]
    np.testing.assert_array_equal(regression_lab.series(lab, one, "glorot", "shuffled"), faulty)
    assert regression_lab.doubt_micro(np.array([1.0, 4.0, np.nan]), 2.0) == 750_000
    # who diverges is wrong everywhere, and no warning comes of it
    wild = Lab(lab.train, lab.owned, lab.test, lab.target, {}, Settings(0, 0, 200, 50, 4, 10**6, 1))
    assert regression_lab.series(wild, one, "random", "valid")[0, -1] == 1_000_000


def test_the_rules_judge_and_the_tables_say_so(lab: Lab) -> None:
    measured = [[900_000, *[300_000] * 19, 140_000], [500_000] * 21, [0] * 21]
    assert bench.accepts("trend", measured, 3, 150_000)
    assert bench.accepts("both", measured, 3, 150_000)
    assert not bench.accepts("threshold", measured, 3, 140_000)
    assert bench.accepts("either", measured, 3, 140_000)
    assert bench.accepts("gain", measured, 3, 0)
    assert not bench.accepts("gain", [*measured[:2], [10**6] * 21], 3, 0)
    found = np.broadcast_to(np.array(measured), (4, len(STAGES), len(DATA), 3, 21))
    rows = bench.judged("friedman1", np.array([1, 1, 2, 2]), found)
    assert {(r["instances"], r["accepted"]) for r in rows} == {(2, 2)}
    assert {r["data"] for r in rows if r["met"]} == {"valid"}
    document = {
        "settings": {
            "tau_e6": bench.TAU_E6,
            "tau_untrained_e6": bench.TAU_UNTRAINED_E6,
        },
        "models": {"friedman1": {"converged": {"r2": 0.5}}},
        "rows": rows,
    }
    lines = list(bench.tables(document))
    assert sum("100.0 [34.2, 100.0]" in line for line in lines) == 2 * len(STAGES) * len(DATA)
    assert any("converged, R^2 0.50" in line for line in lines)
    assert bench.drawn(document).startswith(b"\x89PNG")


def test_a_model_of_each_stage(lab: Lab) -> None:
    assert set(lab.models) | {"random", "glorot"} == set(STAGES)
    errors = {stage: lab.model(stage, 3).error_micro(lab.test.x, lab.test.y) for stage in STAGES}
    assert errors["converged"] < errors["one_pass"] < errors["glorot"]
    assert isinstance(lab.model("random", 3), Model)
