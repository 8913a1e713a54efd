"""Which validation points a device gets: m of each class that it declared, and no other class.

Martinez, Francis, Hafid, section II-E (class-sampled validation error scheme).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gradledger.errors import ConfigError

__all__ = ["ValidationData", "class_list", "generator_for"]

CLASSES_MAX = 64
SEED_BITS_MAX = 256


class ValidationData:
    """The owner's own labelled points, sorted by class.

    Parameters
    ----------
    x : array of float, shape (points, features)
    y : array of int, shape (points,)
        Class of each row, 0..63.

    Raises
    ------
    ConfigError
        The shapes do not fit, there is no point, or a label is out of range.
    """

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
        self.x = np.ascontiguousarray(x, dtype=np.float32)
        self.y = np.ascontiguousarray(y, dtype=np.int64)
        if self.x.ndim != 2 or self.y.shape != (len(self.x),) or not len(self.y):
            found = f"{list(self.x.shape)} and {list(self.y.shape)}"
            raise ConfigError(f"validation data: expected x [points, features], y; got {found}")
        if int(self.y.min()) < 0 or int(self.y.max()) >= CLASSES_MAX:
            raise ConfigError(f"validation data: expected labels 0 to {CLASSES_MAX - 1}")
        self._rows = {int(c): np.flatnonzero(self.y == c) for c in np.unique(self.y)}

    def __len__(self) -> int:
        return len(self.y)

    def sample(
        self, classes: int, per_class: int, generator: np.random.Generator
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Draw a validation set for one device, without repetition.

        Parameters
        ----------
        classes : int
            Bit set: bit c says that the device has data of class c.
        per_class : int, at least 1
            m, the points of each class.
        generator : numpy.random.Generator
            Decides which points; injected, so that a seed repeats the choice.

        Returns
        -------
        x : array of float32, shape (m x number of classes, features)
        y : array of int64
            In an order that the generator mixes.

        Raises
        ------
        ConfigError
            No class is declared, or a declared class has fewer than m points.
        """
        wanted = class_list(classes)
        if not wanted:
            raise ConfigError("a device that declared no class gets no validation set")
        if per_class < 1:
            raise ConfigError(f"expected at least 1 point of each class, got {per_class}")
        chosen = []
        for c in wanted:
            rows = self._rows.get(c, np.empty(0, dtype=np.int64))
            if len(rows) < per_class:
                raise ConfigError(
                    f"class {c}: expected at least {per_class} validation points, got {len(rows)}"
                )
            chosen.append(generator.choice(rows, size=per_class, replace=False))
        order = generator.permutation(np.concatenate(chosen))
        return self.x[order], self.y[order]


def class_list(classes: int) -> list[int]:
    """Return the classes of a bit set, ascending."""
    return [c for c in range(CLASSES_MAX) if classes >> c & 1]


def generator_for(seed: int, version: int, account: int) -> np.random.Generator:
    """Return the generator of one device's set in one round.

    Parameters
    ----------
    seed : int
        The owner's secret; whoever knows it knows which points are drawn.
    version : int
        Round.
    account : int
        The device's name as a 64-bit value.
    """
    if not 0 <= seed < 1 << SEED_BITS_MAX:
        raise ConfigError(f"expected a seed of at most {SEED_BITS_MAX} bits")
    return np.random.default_rng([seed, version, account])
