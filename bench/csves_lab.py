"""The laboratory of `bench.csves`: devices with sound and with faulty data, trained for real.

An instance is a device: classes drawn at random, training points of these classes, and a validation
set of the same classes from points that no training has seen. It is trained by the round's recipe
(`device_sdk.training`) from a global model of a known stage; what comes back is its series of
validation errors. Everything follows from seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from device_sdk.training import MOMENTUM, TrainingRecipe
from gradledger.demo.data import Dataset, Samples
from gradledger.models import FloatArray, IntArray, Mlp, Model, mean_micro, share_micro

STAGES = ("random", "one_pass", "converged")
"""Of the global model: N(0, 1) weights, one pass over the training set, `PASSES` passes."""

DATA = ("valid", "labels", "random_labels", "pixels")
"""A device's data: sound, labels shuffled, labels drawn at random, pixels drawn at random."""

SEED = 2026
TRAINING_POINTS = 1_000
VALIDATION_POINTS = 100
EPOCHS = 5
BATCH_SIZE = 32
RATE_E6 = 50_000
PER_EPOCH = 4
LAYERS = (784, 128, 10)

PASSES = 8
"""Of the converged model, the second half of them at a fifth of the rate."""

Arrays = dict[str, FloatArray]
Series = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lab:
    """What all instances share.

    Parameters
    ----------
    dataset : Dataset
        Devices draw from `train`, the owner's points are `validation`.
    layers : tuple of int
        Of the perceptron.
    models : mapping of str to array of float32
        The global model's vector at each stage but "random", which every instance draws anew.
    """

    dataset: Dataset
    layers: tuple[int, ...]
    models: Mapping[str, FloatArray]

    def model(self, stage: str, seed: int) -> Model:
        """Return the global model of a stage, as an instance with this seed meets it."""
        if stage == "random":
            return Model.random_normal(Mlp(self.layers), seed)
        return Model(Mlp(self.layers), self.models[stage])


@dataclass(frozen=True)
class Instance:
    """A device and the validation set it is issued.

    Parameters
    ----------
    classes : array of int64
        Declared classes, ascending.
    points : Samples
        Training points, sound.
    validation : Samples
    seed : int
    """

    classes: IntArray
    points: Samples
    validation: Samples
    seed: int


def global_models(
    points: Samples, layers: tuple[int, ...], seed: int, passes: int = PASSES
) -> dict[str, FloatArray]:
    """Train the global model in one place; return its vector at each stage but "random".

    Parameters
    ----------
    points : Samples
    layers : tuple of int
    seed : int
        Of the first weights (Glorot and Bengio's: from N(0, 1) these passes reach 6 % of wrong
        answers at best) and of the shuffles.
    passes : int
        After the first the model is "one_pass", after the last "converged".
    """
    model = Model.random_glorot(Mlp(layers), seed)
    models = {}
    for done in range(1, passes + 1):
        rate = RATE_E6 if done == 1 or 2 * done <= passes else RATE_E6 // 5
        recipe = TrainingRecipe(done, 1, BATCH_SIZE, rate, 1, seed)
        model = model.with_arrays(train(model, points, recipe)[0])
        if done == 1:
            models["one_pass"] = model.vector
    return {**models, "converged": model.vector}


def class_count(rng: np.random.Generator, classes: int) -> int:
    """Draw a number of classes: each is in or out by a coin, none and all are drawn again.

    The numbers in the paper's Tables II to V are those of this law: 10 of 1,000 instances with one
    class, 246 with five, 10 with nine.
    """
    while True:
        count = int(rng.binomial(classes, 0.5))
        if 0 < count < classes:
            return count


def draw(lab: Lab, count: int, seed: int) -> Instance:
    """Draw a device with `count` classes.

    The validation set has 100 points, the same number of each class to within one.
    """
    rng = np.random.default_rng(seed)
    points, owned = lab.dataset.train, lab.dataset.validation
    classes = np.sort(rng.choice(lab.dataset.classes, count, replace=False))
    pool = np.flatnonzero(np.isin(points.y, classes))
    rows = rng.choice(pool, min(TRAINING_POINTS, len(pool)), replace=False)
    each, more = divmod(VALIDATION_POINTS, count)
    issued = [
        rng.choice(np.flatnonzero(owned.y == name), each + (i < more), replace=False)
        for i, name in enumerate(rng.permutation(classes))
    ]
    return Instance(classes, points.take(rows), owned.take(np.concatenate(issued)), seed)


def spoil(lab: Lab, instance: Instance, data: str) -> Samples:
    """Return the instance's training points with the fault that `data` names.

    Wrong labels are of the device's classes, for others would show; a device with one class has no
    such labels, and gets them from all classes.
    """
    rng = np.random.default_rng([instance.seed, zlib.crc32(data.encode())])
    x, y = instance.points.x, instance.points.y
    if data == "valid":
        return instance.points
    if data == "pixels":
        return Samples(rng.random(x.shape, dtype=np.float32), y)
    if len(instance.classes) == 1:
        return Samples(x, rng.integers(lab.dataset.classes, size=len(y)))
    if data == "labels":
        return Samples(x, rng.permutation(y))
    return Samples(x, rng.choice(instance.classes, len(y)))


def series(lab: Lab, instance: Instance, stage: str, data: str) -> Series:
    """Train an instance; return its errors.

    Returns
    -------
    array of int64, shape (2, EPOCHS * PER_EPOCH + 1)
        Share of wrong answers and doubt, 1e-6 units: before training, and `PER_EPOCH` times in
        each epoch, the last time at its end.
    """
    measures = EPOCHS * PER_EPOCH + 1
    recipe = TrainingRecipe(1, EPOCHS, BATCH_SIZE, RATE_E6, measures, instance.seed)
    model = lab.model(stage, instance.seed)
    x, y = instance.validation.x, instance.validation.y

    def measure(arrays: Arrays) -> tuple[int, int]:
        wrong, doubts = model.with_arrays(arrays).wrong_and_doubts(x, y)
        return share_micro(wrong), mean_micro(doubts)

    return np.array(train(model, spoil(lab, instance, data), recipe, measure)[1]).T


def train(
    model: Model,
    points: Samples,
    recipe: TrainingRecipe,
    measure: Callable[[Arrays], tuple[int, ...]] = lambda arrays: (),
) -> tuple[Arrays, list[tuple[int, ...]]]:
    """Follow a recipe in numpy: the steps of `sklearn_fit` and `torch_fit`.

    Parameters
    ----------
    model : Model
        Of the kind `mlp`.
    points : Samples
    recipe : TrainingRecipe
    measure : callable
        Asked whenever the recipe measures.

    Returns
    -------
    arrays : dict of str to array of float32
        The trained parameters.
    measured : list
        What `measure` returned.
    """
    network = model.network
    assert isinstance(network, Mlp)
    weights = {name: array.copy() for name, array in model.arrays.items()}
    speeds = {name: np.zeros_like(array) for name, array in weights.items()}
    momentum, rate = np.float32(MOMENTUM), np.float32(recipe.rate)
    measured: list[tuple[int, ...]] = []
    for rows, measures in recipe.runs(len(points)):
        for start in range(0, len(rows), recipe.batch_size):
            batch = rows[start : start + recipe.batch_size]
            for name, slope in _slopes(weights, points.x[batch], points.y[batch]).items():
                slope *= rate
                speeds[name] *= momentum
                speeds[name] -= slope
                weights[name] += speeds[name]
        if measures:
            measured += [measure(weights)] * measures
    return weights, measured


def _slopes(weights: Arrays, x: FloatArray, y: npt.NDArray[Any]) -> Arrays:
    """Return the gradient of the mean cross entropy: backpropagation through relu layers.

    Where `y` are floats, that of half the mean squared error.
    """
    last = len(weights) // 2 - 1
    layers = [x]
    for i in range(last):
        layers.append(np.maximum(layers[i] @ weights[f"w{i}"] + weights[f"b{i}"], 0))
    scores = layers[last] @ weights[f"w{last}"] + weights[f"b{last}"]
    if y.dtype.kind == "f":
        error = scores - y[:, None]
    else:
        error = np.exp(scores - scores.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(len(y)), y] -= 1
    error /= np.float32(len(y))
    slopes: Arrays = {}
    for i in range(last, -1, -1):
        slopes[f"w{i}"], slopes[f"b{i}"] = layers[i].T @ error, error.sum(axis=0)
        if i:
            error = (error @ weights[f"w{i}"].T) * (layers[i] > 0)
    return slopes
