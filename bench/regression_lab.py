"""The laboratory of `bench.regression`: devices with some strata of a number, trained for real.

As `bench.csves_lab`, with strata of the target in the place of classes: a device has points of the
strata that it declares, and a validation set of these from points that no training has seen.
Everything follows from seeds; the data are scikit-learn's, and nothing is fetched.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_diabetes, make_friedman1

from bench.csves_lab import Arrays, train
from device_sdk.training import TrainingRecipe
from gradledger.demo.data import Samples
from gradledger.models import FloatArray, IntArray, Mlp, Model
from gradledger.target import Target

__all__ = ["DATA", "DATASETS", "STAGES", "STRATA", "Instance", "Lab", "draw", "series", "spoil"]

STAGES = ("random", "glorot", "one_pass", "converged")
"""Of the global model: N(0, 1) weights, those of Glorot and Bengio, one pass over the devices'
points, many."""

DATA = ("valid", "shuffled", "random", "inputs")
"""A device's data: sound, targets shuffled, targets drawn at random, inputs drawn at random."""

STRATA = 5
HIDDEN = 32
EPOCHS = 5
PER_EPOCH = 4
SCALE = 2.0
TOLERANCE = 0.5
"""Both in standard deviations of the target."""

Series = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """What differs between the datasets.

    Parameters
    ----------
    points : int
        Drawn for the dataset, where it is generated.
    owned : int
        Of these, the owner's; as many are its test set.
    training_points : int
        Of a device, if its strata have so many.
    validation_points : int
        Of a device, spread over its strata to within one.
    batch_size, rate_e6 : int
    passes : int
        Of the converged model, the second half of them at a fifth of the rate.
    """

    points: int
    owned: int
    training_points: int
    validation_points: int
    batch_size: int
    rate_e6: int
    passes: int


DATASETS = {
    "friedman1": Settings(20_000, 4_000, 1_000, 100, 32, 20_000, 40),
    "diabetes": Settings(442, 110, 120, 20, 8, 2_000, 80),
}


@dataclass(frozen=True)
class Lab:
    """What all instances share.

    Parameters
    ----------
    train, owned, test : Samples
        Devices draw from the first, validation sets from the second. Inputs and targets have mean
        0 and standard deviation 1.
    target : Target
        Five strata with equal shares of `owned`.
    models : mapping of str to array of float32
        The global model's vector once it is trained; the untrained every instance draws anew.
    settings : Settings
    """

    train: Samples
    owned: Samples
    test: Samples
    target: Target
    models: dict[str, FloatArray]
    settings: Settings

    def model(self, stage: str, seed: int) -> Model:
        """Return the global model of a stage, as an instance with this seed meets it."""
        network = network_for(self.train)
        if stage in self.models:
            return Model(network, self.models[stage], self.target)
        draw_first = Model.random_normal if stage == "random" else Model.random_glorot
        return Model(network, draw_first(network, seed).vector, self.target)


@dataclass(frozen=True)
class Instance:
    """A device and the validation set it is issued.

    Parameters
    ----------
    strata : array of int64
        Declared, ascending.
    points : Samples
        Training points, sound.
    validation : Samples
    seed : int
    """

    strata: IntArray
    points: Samples
    validation: Samples
    seed: int


def network_for(points: Samples) -> Mlp:
    """Return the network that a dataset is learnt by."""
    return Mlp((points.x.shape[1], HIDDEN, 1), identity=True)


def make_lab(name: str, seed: int) -> Lab:
    """Draw or load a dataset, and train the global model in one place."""
    settings = DATASETS[name]
    if name == "friedman1":
        x, y = make_friedman1(settings.points, n_features=10, noise=1.0, random_state=seed)
    else:
        x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    everything = Samples(standard(x)[order], standard(y)[order])
    cut = np.split(np.arange(len(y)), [settings.owned, 2 * settings.owned])
    owned, test, points = (everything.take(rows) for rows in cut)
    target = Target.by_quantiles(owned.y, STRATA, scale=SCALE, tolerance=TOLERANCE)
    return Lab(points, owned, test, target, global_models(points, settings, seed), settings)


def standard(values: npt.NDArray[np.float64]) -> FloatArray:
    """Return values, column by column, with mean 0 and standard deviation 1."""
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)


def global_models(points: Samples, settings: Settings, seed: int) -> dict[str, FloatArray]:
    """Train the global model; return its vector at the last two stages."""
    model = Model.random_glorot(network_for(points), seed)
    models = {}
    for done in range(1, settings.passes + 1):
        slow = done > 1 and 2 * done > settings.passes
        rate = settings.rate_e6 // 5 if slow else settings.rate_e6
        recipe = TrainingRecipe(done, 1, settings.batch_size, rate, 1, seed)
        model = model.with_arrays(train(model, points, recipe)[0])
        if done == 1:
            models["one_pass"] = model.vector
    return {**models, "converged": model.vector}


def draw(lab: Lab, count: int, seed: int) -> Instance:
    """Draw a device with `count` strata."""
    rng = np.random.default_rng(seed)
    strata = np.sort(rng.choice(STRATA, count, replace=False))
    pool = np.flatnonzero(np.isin(lab.target.stratum_of(lab.train.y), strata))
    rows = rng.choice(pool, min(lab.settings.training_points, len(pool)), replace=False)
    each, more = divmod(lab.settings.validation_points, count)
    of = lab.target.stratum_of(lab.owned.y)
    issued = [
        rng.choice(np.flatnonzero(of == stratum), each + (i < more), replace=False)
        for i, stratum in enumerate(rng.permutation(strata))
    ]
    return Instance(strata, lab.train.take(rows), lab.owned.take(np.concatenate(issued)), seed)


def spoil(lab: Lab, instance: Instance, data: str) -> Samples:
    """Return the instance's training points with the fault that `data` names.

    Wrong targets are of the device's strata, for others would show; a device with one stratum gets
    them from all strata: within one, any target is nearly right.
    """
    rng = np.random.default_rng([instance.seed, zlib.crc32(data.encode())])
    x, y = instance.points.x, instance.points.y
    if data == "valid":
        return instance.points
    if data == "inputs":
        return Samples(np.stack([rng.permutation(column) for column in x.T], axis=1), y)
    if len(instance.strata) == 1:
        return Samples(x, rng.choice(lab.train.y, len(y)))
    if data == "shuffled":
        return Samples(x, rng.permutation(y))
    held = np.isin(lab.target.stratum_of(lab.train.y), instance.strata)
    return Samples(x, rng.choice(lab.train.y[held], len(y)))


def doubt_micro(off: FloatArray, scale: float) -> int:
    """Return the mean of ``min(1, (off / scale)^2)``, 1e-6 units: the doubt tried for `gain`."""
    shares = np.fmin(np.square(off.astype(np.float64) / scale), 1.0)  # 1 where it is no number
    return int(shares.mean() * 1e6)


def series(lab: Lab, instance: Instance, stage: str, data: str) -> Series:
    """Train an instance; return its errors.

    Returns
    -------
    array of int64, shape (3, EPOCHS * PER_EPOCH + 1)
        Error, doubt, and share of points off by more than the tolerance, in 1e-6 units: before
        training, and `PER_EPOCH` times in each epoch, the last time at its end.
    """
    measures = EPOCHS * PER_EPOCH + 1
    settings, target = lab.settings, lab.target
    recipe = TrainingRecipe(
        1, EPOCHS, settings.batch_size, settings.rate_e6, measures, instance.seed
    )
    model = lab.model(stage, instance.seed)
    x, y = instance.validation.x, instance.validation.y

    def measure(arrays: Arrays) -> tuple[int, int, int]:
        predicted = model.network.scores(arrays, x)[:, 0]
        return (
            target.error_micro(predicted, y),
            doubt_micro(np.abs(predicted - y), target.scale),
            target.wrong_micro(predicted, y),
        )

    with np.errstate(over="ignore", invalid="ignore"):  # some diverge from random weights
        return np.array(train(model, spoil(lab, instance, data), recipe, measure)[1]).T
