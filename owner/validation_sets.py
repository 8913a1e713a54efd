"""The owner's validation points, and which of them a device gets: m of each class it declared.

Martinez, Francis, Hafid, section II-E (class-sampled validation error scheme). Which m follows from
`gradledger.validation.draw_points`: in a task that commits to the points, from the block that
opened the round; otherwise from the owner's secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import starmap
from typing import Any

import numpy as np
import numpy.typing as npt

from gradledger.chain.names import name_to_int
from gradledger.errors import ConfigError
from gradledger.merkle import Tree
from gradledger.models import dump_validation_set
from gradledger.target import Target
from gradledger.validation import (
    CLASSES_MAX,
    SALT_BYTES,
    Commitment,
    dump_issued_set,
    leaf_record,
)

__all__ = ["CommittedPoints", "ValidationData"]

_SALT_PERSON = b"gradledger salt"


class ValidationData:
    """The owner's own labelled points, sorted by class, otherwise in the order given.

    Parameters
    ----------
    x : array of float, shape (points, features)
    y : array of int, shape (points,)
        Class of each row, 0..63; with `classes`, a number of float32.
    classes : array of int, shape (points,), optional
        Where `y` is a number to be learned: the class, or stratum, of each row.

    Attributes
    ----------
    x : array of float32
    y : array of int64 or float32
    classes : array of int64

    Raises
    ------
    ConfigError
        The shapes do not fit, there is no point, or a class is out of range.
    """

    def __init__(
        self, x: npt.ArrayLike, y: npt.ArrayLike, classes: npt.ArrayLike | None = None
    ) -> None:
        rows = np.asarray(x, dtype="<f4")
        strata = np.asarray(y if classes is None else classes, dtype="<i8")
        labels = strata if classes is None else np.asarray(y, dtype="<f4")
        if rows.ndim != 2 or not len(rows) or {labels.shape, strata.shape} != {(len(rows),)}:
            found = f"{list(rows.shape)} and {list(labels.shape)}"
            raise ConfigError(f"validation data: expected x [points, features], y; got {found}")
        if int(strata.min()) < 0 or int(strata.max()) >= CLASSES_MAX:
            raise ConfigError(f"validation data: expected labels 0 to {CLASSES_MAX - 1}")
        order = np.argsort(strata, kind="stable")
        self.x, self.y, self.classes = rows[order], labels[order], strata[order]
        self._committed: dict[tuple[str, int, bytes], CommittedPoints] = {}

    @classmethod
    def of(cls, x: npt.ArrayLike, y: npt.ArrayLike, target: Target | None) -> ValidationData:
        """Return a task's points: `y` are its classes, or numbers where it has a target."""
        return cls(x, y, None if target is None else target.stratum_of(y))

    def __len__(self) -> int:
        return len(self.y)

    def counts(self, classes: int) -> tuple[int, ...]:
        """Return how many points there are of each of a task's classes.

        Raises
        ------
        ConfigError
            There are points of a class that the task does not have.
        """
        found = np.bincount(self.classes, minlength=classes)
        if len(found) > classes:
            raise ConfigError(
                f"validation data: expected classes 0 to {classes - 1}, got {len(found) - 1}"
            )
        return tuple(found.tolist())

    def committed(self, *, task: str, classes: int, secret: bytes) -> CommittedPoints:
        """Return the points as a task commits to them; the same object for the same arguments.

        Parameters
        ----------
        task : str
        classes : int
            That the task has.
        secret : bytes, at most 64
            Of the owner; the salts follow from it.
        """
        key = (task, classes, secret)
        if key not in self._committed:
            self._committed[key] = CommittedPoints(self, task=task, classes=classes, secret=secret)
        return self._committed[key]

    def dump(self, leaves: Sequence[int]) -> bytes:
        """Return the payload of a set of these points, where nothing is committed."""
        return dump_validation_set(self.x[leaves], self.y[leaves])


class CommittedPoints:
    """Validation points under a Merkle root, each with a salt that hides it.

    Made by `ValidationData.committed`.

    Attributes
    ----------
    root : bytes
    counts : tuple of int
        Points of each class.
    """

    def __init__(self, data: ValidationData, *, task: str, classes: int, secret: bytes) -> None:
        self.counts = data.counts(classes)
        self._data = data
        name = name_to_int(task).to_bytes(8, "little")
        self._salts = [
            hashlib.blake2b(
                name + leaf.to_bytes(8, "little"),
                digest_size=SALT_BYTES,
                key=secret,
                person=_SALT_PERSON,
            ).digest()
            for leaf in range(len(data))
        ]
        self._tree = Tree(starmap(leaf_record, map(self._parts, range(len(data)))))
        self.root = self._tree.root

    def _parts(self, leaf: int) -> tuple[bytes, int, bytes, bytes]:
        data = self._data
        stratum = int(data.classes[leaf])
        return self._salts[leaf], stratum, data.x[leaf].tobytes(), data.y[leaf].tobytes()

    def commitment(self, per_class: int) -> Commitment:
        """Return what the task's card says about them.

        Raises
        ------
        ConfigError
            A class has fewer points than a device that declares it would get, for the task's life.
        """
        for c, count in enumerate(self.counts):
            if count < per_class:
                raise ConfigError(
                    f"validation data: class {c}: expected at least {per_class} points to commit "
                    f"to, got {count}"
                )
        return Commitment(self.root, self.counts, per_class)

    def dump(self, leaves: Sequence[int]) -> bytes:
        """Return the payload of a set of these points, with what proves them committed."""
        data: Any = self._data
        rows = list(leaves)
        salts = [self._salts[leaf] for leaf in rows]
        return dump_issued_set(
            data.x[rows], data.y[rows], salts, rows, self._tree.shared_path(rows)
        )
