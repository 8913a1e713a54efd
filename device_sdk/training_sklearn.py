"""Train by the round's recipe with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from device_sdk.training import MOMENTUM, TrainingData, TrainingRecipe
from gradledger.errors import ConfigError
from gradledger.models import FloatArray, IntArray, Mlp, Model

__all__ = ["sklearn_fit"]

UNREACHABLE = np.float32(-1e9)


def sklearn_fit(
    x: npt.ArrayLike, y: npt.ArrayLike, recipe: TrainingRecipe
) -> Callable[[Model, tuple[FloatArray, IntArray]], tuple[Model, list[int]]]:
    """Return a `fit` for `Round.train` that follows the recipe with `MLPClassifier`.

    Parameters
    ----------
    x : array of float, shape (examples, features)
    y : array of int, shape (examples,)
    recipe : TrainingRecipe
        `round.recipe`.

    Returns
    -------
    callable
        `fit(model, validation) -> (trained, errors)`; for models of the kind `mlp`.

    Notes
    -----
    Runs on one thread, so that the order of additions is the same everywhere. The classifier's
    weights are replaced after its first, throw-away step, which only lets it learn its shapes.
    """
    data = TrainingData(x, y)

    def fit(model: Model, validation: tuple[FloatArray, IntArray]) -> tuple[Model, list[int]]:
        network = model.network
        if not isinstance(network, Mlp):
            raise ConfigError(f"scikit-learn trains models of kind mlp, got {network.kind}")
        data.check(network.features(), network.classes())
        errors: list[int] = []
        with threadpool_limits(1):
            classifier = _classifier(model, network, recipe)
            for rows, measures in recipe.runs(len(data)):
                if len(rows):
                    classifier.batch_size = min(recipe.batch_size, len(rows))
                    classifier.partial_fit(data.x[rows], data.y[rows])
                if measures:
                    model = _model(model, network, classifier)
                    errors += [recipe.measure(model, validation)] * measures
        return model, errors + recipe.closing(model, validation)

    return fit


def _classifier(model: Model, network: Mlp, recipe: TrainingRecipe) -> MLPClassifier:
    classifier = MLPClassifier(
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
    classes = max(network.classes(), 3)
    classifier.partial_fit(
        np.zeros((1, network.features()), dtype=np.float32), [0], classes=np.arange(classes)
    )
    del classifier._optimizer
    arrays = model.arrays
    last = len(network.layers) - 2
    spare = classes - network.classes()
    for i in range(last + 1):
        weights, bias = arrays[f"w{i}"], arrays[f"b{i}"]
        if i == last:
            weights = np.pad(weights, ((0, 0), (0, spare)))
            bias = np.pad(bias, (0, spare), constant_values=UNREACHABLE)
        classifier.coefs_[i] = weights.copy()
        classifier.intercepts_[i] = bias.copy()
    return classifier


def _model(model: Model, network: Mlp, classifier: MLPClassifier) -> Model:
    arrays = {}
    for i, width in enumerate(network.layers[1:]):
        arrays[f"w{i}"] = classifier.coefs_[i][:, :width]
        arrays[f"b{i}"] = classifier.intercepts_[i][:width]
    return model.with_arrays(arrays)
