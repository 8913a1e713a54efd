"""The training recipe and the helpers that follow it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from device_sdk.training import TrainingData, TrainingRecipe
from device_sdk.training_sklearn import sklearn_fit
from gradledger import csves
from gradledger.chain.contract import Rule
from gradledger.errors import ConfigError, ModelError
from gradledger.models import Model
from gradledger.target import Target

RECIPE = TrainingRecipe(version=3, epochs=3, batch_size=16, rate_e6=50_000, measures=5, seed=9)


def digits(layers: tuple[int, ...]) -> tuple[Model, np.ndarray, np.ndarray]:
    """Return a model and data whose labels are taken modulo its number of classes."""
    raw = load_digits()
    model = Model.random_glorot({"kind": "mlp", "layers": list(layers), "activation": "relu"}, 1)
    return model, (raw.data / 16).astype(np.float32), raw.target % layers[-1]


def waves(layers: tuple[int, ...]) -> tuple[Model, np.ndarray, np.ndarray]:
    """Return a regression's model, inputs and numbers."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(600, layers[0])).astype(np.float32)
    y = (np.sin(x[:, 0]) + x[:, 1] + rng.normal(0, 0.1, 600)).astype(np.float32)
    described = {
        "kind": "mlp",
        "layers": list(layers),
        "activation": "relu",
        "output": "identity",
    }
    drawn = Model.random_glorot(described, 1)
    return Model(described, drawn.vector, Target((0.0,), 2.0, 0.5)), x, y


def by_hand(model: Model, x: np.ndarray, y: np.ndarray, recipe: TrainingRecipe) -> Model:
    """Follow the recipe in float64: descent with momentum 0.9.

    On the mean cross entropy, or for a regression on half the mean squared error.
    """
    data = TrainingData(x, y)
    arrays = {name: array.astype(np.float64) for name, array in model.arrays.items()}
    speed = {name: np.zeros_like(array) for name, array in arrays.items()}
    depth = len(arrays) // 2
    for rows, _ in recipe.runs(len(data)):
        for at in range(0, len(rows), recipe.batch_size):
            part = rows[at : at + recipe.batch_size]
            layers = [data.x[part].astype(np.float64)]
            for i in range(depth):
                z = layers[-1] @ arrays[f"w{i}"] + arrays[f"b{i}"]
                layers.append(np.maximum(z, 0) if i < depth - 1 else z)
            if model.network.regresses():
                d = layers[-1] - data.y[part, None]
            else:
                p = np.exp(layers[-1] - layers[-1].max(axis=1, keepdims=True))
                d = p / p.sum(axis=1, keepdims=True)
                d[np.arange(len(part)), data.y[part]] -= 1
            d /= len(part)
            grads = {}
            for i in reversed(range(depth)):
                grads[f"w{i}"], grads[f"b{i}"] = layers[i].T @ d, d.sum(axis=0)
                d = (d @ arrays[f"w{i}"].T) * (layers[i] > 0)
            for name, grad in grads.items():
                speed[name] = 0.9 * speed[name] - recipe.rate * grad
                arrays[name] += speed[name]
    return model.with_arrays(arrays)


@pytest.mark.parametrize("examples", [1, 15, 16, 17, 160])
@pytest.mark.parametrize("measures", [1, 2, 5, 64])
def test_runs_cover_each_epoch_and_spread_the_measures(examples: int, measures: int) -> None:
    recipe = TrainingRecipe(1, 3, 16, 1000, measures, 0)
    runs = list(recipe.runs(examples))
    rows = np.concatenate([run for run, _ in runs])
    assert len(rows) == 3 * examples
    for epoch in range(3):
        part = rows[epoch * examples : (epoch + 1) * examples]
        np.testing.assert_array_equal(np.sort(part), np.arange(examples))
    counts = [count for _, count in runs]
    assert sum(counts) == measures
    assert counts[-1] >= 1  # the trained model is always measured
    assert (counts[0] >= 1) == (measures > 1)  # and the received one, if there is room
    short = [len(run) % 16 for run, _ in runs]
    assert sum(1 for rest in short if rest) == (3 if examples % 16 else 0)


def test_measures_are_evenly_spread() -> None:
    taken, steps = [], 0
    for rows, measures in TrainingRecipe(1, 2, 10, 1000, 5, 0).runs(100):
        steps += len(rows) // 10
        taken += [steps] * measures
    assert taken == [0, 5, 10, 15, 20]


def test_the_order_is_fixed_for_ever() -> None:
    assert RECIPE.order(8, 0).tolist() == [0, 7, 6, 2, 3, 5, 4, 1]
    assert RECIPE.order(8, 1).tolist() != RECIPE.order(8, 0).tolist()
    other = TrainingRecipe(4, 3, 16, 50_000, 5, 9)
    assert other.order(8, 0).tolist() != RECIPE.order(8, 0).tolist()


@pytest.mark.parametrize("field", ["epochs", "batch_size", "rate_e6", "measures"])
def test_recipes_that_are_none(field: str) -> None:
    values = {"version": 1, "epochs": 1, "batch_size": 1, "rate_e6": 1, "measures": 1, "seed": 0}
    with pytest.raises(ConfigError, match=field):
        TrainingRecipe(**{**values, field: 0})


@pytest.mark.parametrize("layers", [(64, 32, 10), (64, 10), (64, 20, 2), (64, 16, 8, 3)])
def test_sklearn_follows_the_recipe(layers: tuple[int, ...]) -> None:
    model, x, y = digits(layers)
    trained, errors = sklearn_fit(x[:310], y[:310], RECIPE)(model, (x[1000:], y[1000:]))
    np.testing.assert_allclose(
        trained.vector, by_hand(model, x[:310], y[:310], RECIPE).vector, atol=1e-5
    )
    assert len(errors) == RECIPE.measures
    assert errors[0] == model.error_micro(x[1000:], y[1000:])
    assert errors[-1] == trained.error_micro(x[1000:], y[1000:])
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("layers", [(3, 16, 1), (3, 1), (3, 8, 4, 1)])
def test_a_regression_follows_the_recipe(layers: tuple[int, ...]) -> None:
    model, x, y = waves(layers)
    check = x[400:], y[400:]
    trained, errors = sklearn_fit(x[:310], y[:310], RECIPE)(model, check)
    np.testing.assert_allclose(
        trained.vector, by_hand(model, x[:310], y[:310], RECIPE).vector, atol=1e-5
    )
    assert errors[0] == model.error_micro(*check) > 2 * errors[-1]
    assert errors[-1] == trained.error_micro(*check)
    order = np.random.default_rng(0).permutation(310)
    again, _ = sklearn_fit(x[order], y[order].astype(np.float64), RECIPE)(model, check)
    assert again.to_bytes() == trained.to_bytes()


def test_a_training_that_diverges_says_so() -> None:
    model, x, y = waves((3, 16, 1))
    recipe = dataclasses.replace(RECIPE, rate_e6=4_000_000, epochs=50)
    with pytest.raises(ModelError, match="diverged, at rate 4"):
        sklearn_fit(x, y, recipe)(model, (x, y))


def test_under_the_rule_gain_doubts_are_measured_and_then_the_wrong_answers() -> None:
    model, x, y = digits((64, 32, 10))
    recipe = dataclasses.replace(RECIPE, rule=Rule.GAIN)
    check = x[1000:], y[1000:]
    trained, errors = sklearn_fit(x[:310], y[:310], recipe)(model, check)
    assert len(errors) == recipe.measures + 1
    assert errors[0] == model.doubt_micro(*check)
    assert errors[-2:] == [trained.doubt_micro(*check), trained.error_micro(*check)]
    plain, _ = sklearn_fit(x[:310], y[:310], RECIPE)(model, check)
    np.testing.assert_array_equal(trained.vector, plain.vector)
    assert csves.meets_gain(errors, 450_000, 10)
    wrong = np.random.default_rng(0).permutation(y[:310])
    _, errors = sklearn_fit(x[:310], wrong, recipe)(model, check)
    assert not csves.meets_gain(errors, 450_000, 10)


def test_equal_data_gives_equal_bytes_whatever_the_order_of_its_rows() -> None:
    model, x, y = digits((64, 32, 10))
    validation = x[1000:1100], y[1000:1100]
    one, _ = sklearn_fit(x[:300], y[:300], RECIPE)(model, validation)
    shuffled = np.random.default_rng(0).permutation(300)
    two, _ = sklearn_fit(x[:300][shuffled], y[:300][shuffled], RECIPE)(model, validation)
    assert one.to_bytes() == two.to_bytes()
    other, _ = sklearn_fit(x[:299], y[:299], RECIPE)(model, validation)
    assert one.to_bytes() != other.to_bytes()


def test_a_device_need_not_have_every_class() -> None:
    model, x, y = digits((64, 32, 10))
    few = np.flatnonzero((y == 2) | (y == 7))[:100]
    trained, _ = sklearn_fit(x[few], y[few], RECIPE)(model, (x[few], y[few]))
    assert trained.error_micro(x[few], y[few]) < 100_000


def test_data_that_does_not_fit() -> None:
    model, x, y = digits((64, 32, 10))
    for bad_x, bad_y in (
        (x[:0], y[:0]),
        (x[:3], y[:2]),
        (x[0], y[:1]),
        (np.full((1, 64), np.nan), [0]),
        (x[:1], [-1]),
    ):
        with pytest.raises(ConfigError):
            sklearn_fit(bad_x, bad_y, RECIPE)
    with pytest.raises(ConfigError, match="features"):
        sklearn_fit(x[:5, :4], y[:5], RECIPE)(model, (x, y))
    with pytest.raises(ConfigError, match="labels below 10"):
        sklearn_fit(x[:1], [10], RECIPE)(model, (x, y))
    with pytest.raises(ConfigError, match="learns integers"):
        sklearn_fit(x[:1], [1.0], RECIPE)(model, (x, y))
    model, x, y = waves((3, 1))
    with pytest.raises(ConfigError, match="learns floats"):
        sklearn_fit(x[:1], [1], RECIPE)(model, (x, y))
    for bad in (np.nan, np.inf):
        with pytest.raises(ConfigError, match="finite"):
            sklearn_fit(x[:1], [bad], RECIPE)


@pytest.mark.parametrize("layers", [(64, 32, 10), (64, 10), (64, 20, 2)])
def test_torch_follows_the_recipe_and_agrees_with_sklearn(layers: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from device_sdk.training_torch import torch_fit

    model, x, y = digits(layers)
    validation = x[1000:], y[1000:]
    threads = torch.get_num_threads()
    trained, errors = torch_fit(x[:310], y[:310], RECIPE)(model, validation)
    again, _ = torch_fit(x[:310][::-1], y[:310][::-1], RECIPE)(model, validation)
    assert trained.to_bytes() == again.to_bytes()
    assert torch.get_num_threads() == threads
    theirs, their_errors = sklearn_fit(x[:310], y[:310], RECIPE)(model, validation)
    np.testing.assert_allclose(trained.vector, theirs.vector, atol=1e-4)
    assert errors == their_errors


def test_torch_trains_a_regression_as_sklearn_does() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from device_sdk.training_torch import torch_fit

    model, x, y = waves((3, 16, 1))
    check = x[400:], y[400:]
    trained, errors = torch_fit(x[:310], y[:310], RECIPE)(model, check)
    theirs, their_errors = sklearn_fit(x[:310], y[:310], RECIPE)(model, check)
    np.testing.assert_allclose(trained.vector, theirs.vector, atol=1e-5)
    np.testing.assert_allclose(errors, their_errors, atol=10)
