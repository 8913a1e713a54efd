"""Train by the round's recipe with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier, MLPRegressor
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from device_sdk.training import MOMENTUM, TrainingData, TrainingRecipe
from gradledger.errors import ConfigError, ModelError
from gradledger.models import FloatArray, Mlp, Model

__all__ = ["sklearn_fit"]

UNREACHABLE = np.float32(-1e9)


def sklearn_fit(
    x: npt.ArrayLike, y: npt.ArrayLike, recipe: TrainingRecipe
) -> Callable[[Model, tuple[FloatArray, npt.NDArray[Any]]], tuple[Model, list[int]]]:
    """Return a `fit` for `Round.train` that follows the recipe with scikit-learn.

    Parameters
    ----------
    x : array of float, shape (examples, features)
    y : array of int or float, shape (examples,)
        Floats for a regression.
    recipe : TrainingRecipe
        `round.recipe`.

    Returns
    -------
    callable
        `fit(model, validation) -> (trained, errors)`; for models of the kind `mlp`.

    Notes
    -----
    Runs on one thread, so that the order of additions is the same everywhere. The weights of the
    `MLPClassifier` or `MLPRegressor` are replaced after its first, throw-away step, which only lets
    it learn its shapes.
    """
    data = TrainingData(x, y)

    def fit(
        model: Model, validation: tuple[FloatArray, npt.NDArray[Any]]
    ) -> tuple[Model, list[int]]:
        network = model.network
        if not isinstance(network, Mlp):
            raise ConfigError(f"scikit-learn trains models of kind mlp, got {network.kind}")
        data.check(network)
        errors: list[int] = []
        with threadpool_limits(1):
            estimator = _estimator(model, network, recipe)
            for rows, measures in recipe.runs(len(data)):
                if len(rows):
                    estimator.batch_size = min(recipe.batch_size, len(rows))
                    _step(estimator, data.x[rows], data.y[rows])
                if measures:
                    model = _model(model, network, estimator)
                    errors += [recipe.measure(model, validation)] * measures
        return model, errors + recipe.closing(model, validation)

    return fit


def _estimator(model: Model, network: Mlp, recipe: TrainingRecipe) -> MLPClassifier | MLPRegressor:
    estimator = (MLPRegressor if network.identity else MLPClassifier)(
        hidden_layer_sizes=network.layers[1:-1],
        activation="relu",
        solver="sgd",
        alpha=0.0,
        batch_size=1,
        learning_rate="constant",
        learning_rate_init=recipe.rate,
        momentum=MOMENTUM,
        nesterovs_momentum=False,
        shuffle=False,
        random_state=0,
    )
    # Below three classes scikit-learn drops the softmax; a class that no row reaches keeps it.
    outputs = 1 if network.identity else max(network.classes(), 3)
    nothing = np.zeros((1, network.features()), dtype=np.float32)
    if network.identity:
        estimator.partial_fit(nothing, np.zeros(1, dtype=np.float32))
    else:
        estimator.partial_fit(nothing, [0], classes=np.arange(outputs))
    del estimator._optimizer
    arrays = model.arrays
    last = len(network.layers) - 2
    spare = outputs - network.classes()
    for i in range(last + 1):
        weights, bias = arrays[f"w{i}"], arrays[f"b{i}"]
        if i == last:
            weights = np.pad(weights, ((0, 0), (0, spare)))
            bias = np.pad(bias, (0, spare), constant_values=UNREACHABLE)
        estimator.coefs_[i] = weights.copy()
        estimator.intercepts_[i] = bias.copy()
    return estimator


def _step(estimator: MLPClassifier | MLPRegressor, x: FloatArray, y: npt.NDArray[Any]) -> None:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            estimator.partial_fit(x, y)
    except ValueError as error:  # scikit-learn's answer to weights that are not finite any more
        raise ModelError(
            f"the training diverged, at rate {estimator.learning_rate_init:g}: {error}"
        ) from error


def _model(model: Model, network: Mlp, estimator: MLPClassifier | MLPRegressor) -> Model:
    arrays = {}
    for i, width in enumerate(network.layers[1:]):
        arrays[f"w{i}"] = estimator.coefs_[i][:, :width]
        arrays[f"b{i}"] = estimator.intercepts_[i][:width]
    return model.with_arrays(arrays)
