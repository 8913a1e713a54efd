"""The round's training recipe: which rows, in which order, and when the error is measured.

Both helpers (`training_sklearn`, `training_torch`) walk through `TrainingRecipe.runs`, so that two
devices with the same data take the same steps. The recipe fixes the rest as well: mini-batch
gradient descent on the mean cross entropy, or for a regression on half the mean squared error,
constant rate, momentum 0.9 that starts at zero in each round, no weight decay, float32.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradledger.chain.contract import Rule
from gradledger.errors import ConfigError
from gradledger.models import Architecture, FloatArray, Model

__all__ = ["MOMENTUM", "TrainingData", "TrainingRecipe"]

MOMENTUM = 0.9
EXAMPLES_MAX = 2**31 - 1


@dataclass(frozen=True)
class TrainingRecipe:
    """What the round asks of a training.

    Parameters
    ----------
    version : int
        Round; the shuffles differ from round to round.
    epochs, batch_size : int
    rate_e6 : int
        Learning rate, 1e-6 units.
    measures : int
        Validation errors to take. The first is the received model's and the last the trained one's;
        with a single measure, the trained one's.
    seed : int
    rule : Rule
        What the errors are for: see `measure`.
    """

    version: int
    epochs: int
    batch_size: int
    rate_e6: int
    measures: int
    seed: int
    rule: Rule = Rule.TREND

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "rate_e6", "measures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"recipe: {name} of at least 1 expected")

    @property
    def rate(self) -> float:
        """Learning rate."""
        return self.rate_e6 / 1e6

    def measure(self, model: Model, validation: tuple[FloatArray, npt.NDArray[Any]]) -> int:
        """Return the error of a model as the round's rule wants it, in 1e-6 units.

        The share of wrong answers, or how far off a regression is; under the rule gain the model's
        doubt.
        """
        if self.rule is Rule.GAIN:
            return model.doubt_micro(*validation)
        return model.error_micro(*validation)

    def closing(self, model: Model, validation: tuple[FloatArray, npt.NDArray[Any]]) -> list[int]:
        """Return what follows the measured errors: behind doubts the share of wrong answers."""
        return [model.error_micro(*validation)] if self.rule is Rule.GAIN else []

    def order(self, examples: int, epoch: int) -> npt.NDArray[np.int64]:
        """Return the order of the rows in one epoch: the ranks of SHAKE-256 keys.

        Depends on nothing but seed, version, epoch and the number of rows, with any numpy.
        """
        label = struct.pack("<QIIQ", self.seed, self.version, epoch, examples)
        stream = hashlib.shake_256(b"gradledger-order" + label).digest(8 * examples)
        return np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable")

    def runs(self, examples: int) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
        """Walk through the training.

        Parameters
        ----------
        examples : int
            Rows of the device's data.

        Yields
        ------
        rows : array of int64
            Rows to train on now, in steps of `batch_size`; the last step of an epoch may be
            shorter, and it ends the run. Empty: no step.
        measures : int
            How often to take the error afterwards.
        """
        if not 1 <= examples <= EXAMPLES_MAX:
            raise ConfigError("at least one example is needed")
        per_epoch = -(-examples // self.batch_size)
        total = self.epochs * per_epoch
        spread = max(self.measures - 1, 1)
        due = [i * total // spread for i in range(self.measures)] if self.measures > 1 else [total]
        yield np.empty(0, dtype=np.int64), due.count(0)
        for epoch in range(self.epochs):
            order = self.order(examples, epoch)
            first = epoch * per_epoch
            stops = sorted({s for s in due if first < s < first + per_epoch} | {first + per_epoch})
            begin = 0
            for stop in stops:
                end = min((stop - first) * self.batch_size, examples)
                yield order[begin:end], due.count(stop)
                begin = end


class TrainingData:
    """A device's rows in an order of their own, so that equal data gives equal updates.

    Parameters
    ----------
    x : array of float, shape (examples, features)
    y : array of int or float, shape (examples,)
        Class of each row; a device need not have every class. For a regression floats.

    Notes
    -----
    The rows are put in ascending order of their SHA-256: two devices that hold the same rows in
    another order train alike.
    """

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
        rows = np.ascontiguousarray(x, dtype=np.float32)
        is_float = np.asarray(y).dtype.kind == "f"
        labels = np.ascontiguousarray(y, dtype=np.float32 if is_float else np.int64)
        if rows.ndim != 2 or labels.shape != (len(rows),) or not len(rows):
            found = f"{list(rows.shape)} and {list(labels.shape)}"
            raise ConfigError(f"x [examples, features] and y [examples] expected, got {found}")
        if not np.isfinite(rows).all() or not np.isfinite(labels).all():
            raise ConfigError("every value of x and y must be finite")
        if not is_float and int(labels.min()) < 0:
            raise ConfigError("no label may be negative")
        keys = [
            hashlib.sha256(row.tobytes() + label.tobytes()).digest()
            for row, label in zip(rows, labels, strict=True)
        ]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.x: npt.NDArray[np.float32] = rows[order]
        self.y: npt.NDArray[Any] = labels[order]

    def __len__(self) -> int:
        return len(self.y)

    def check(self, network: Architecture) -> None:
        """Refuse data that does not fit a model's inputs and outputs."""
        if self.x.shape[1] != network.features():
            raise ConfigError(
                f"the model takes {network.features()} features, got {self.x.shape[1]}"
            )
        if network.regresses() != (self.y.dtype.kind == "f"):
            wanted = "floats" if network.regresses() else "integers, one for each class"
            raise ConfigError(f"the model learns {wanted}: got y of {self.y.dtype}")
        if not network.regresses() and int(self.y.max()) >= network.classes():
            raise ConfigError(f"labels below {network.classes()} expected, got {int(self.y.max())}")
