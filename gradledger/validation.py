"""Validation sets that nobody picks: committed points, drawn by the block that opens a round.

The owner's points stand under one Merkle root in the task's card, before the task is there. Which
of them a device gets in a round follows from the id of the block that opened the round, which no
party knows before. Whoever opens a set computes the draw again and the root from the set's points:
the owner can neither choose points for a device nor change them (docs/protocol.md, section 4.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from gradledger.chain.names import name_to_int
from gradledger.errors import ConfigError, ModelError, ValidationSetError
from gradledger.merkle import root_of_shared

if TYPE_CHECKING:
    from gradledger.chain.contract import FedLearning, Round
    from gradledger.models import FloatArray
    from gradledger.target import Target

__all__ = [
    "SALT_BYTES",
    "Commitment",
    "Draw",
    "class_list",
    "draw_points",
    "dump_issued_set",
    "leaf_record",
    "opening_id",
    "read_issued_set",
]

CLASSES_MAX = 64
POINTS_TOTAL_MAX = 2**31 - 1
SALT_BYTES = 16
HASH_BYTES = 32
_DOMAIN = b"gradledger set"
_WORD = 1 << 64


@dataclass(frozen=True)
class Commitment:
    """What a task's card says about the owner's validation points.

    Parameters
    ----------
    root : bytes, length 32
        Merkle root over the points' records, sorted by class, then in the owner's order.
    counts : tuple of int
        Points of each of the task's classes.
    per_class : int
        m: points of each class that a device declared.

    Raises
    ------
    ConfigError
        A field is out of range.
    """

    root: bytes
    counts: tuple[int, ...]
    per_class: int

    def __post_init__(self) -> None:
        if len(self.root) != HASH_BYTES:
            raise ConfigError(f"validation: root: expected {HASH_BYTES} bytes")
        if not 1 <= len(self.counts) <= CLASSES_MAX:
            raise ConfigError(f"validation: counts: expected 1 to {CLASSES_MAX} of them")
        for number in self.counts:
            if type(number) is not int or not 0 <= number <= POINTS_TOTAL_MAX:
                raise ConfigError(f"validation: counts: expected numbers, got {number!r:.40}")
        if not 1 <= self.points <= POINTS_TOTAL_MAX:
            raise ConfigError(f"validation: expected 1 to {POINTS_TOTAL_MAX} points in all")
        if type(self.per_class) is not int or not 1 <= self.per_class <= POINTS_TOTAL_MAX:
            raise ConfigError(f"validation: per_class: expected 1 or more, got {self.per_class!r}")

    @property
    def points(self) -> int:
        """How many points there are in all."""
        return sum(self.counts)

    def class_of(self, leaf: int) -> int:
        """Return the class that number `leaf` of all points stands under."""
        return next(c for c, end in enumerate(accumulate(self.counts)) if leaf < end)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the task card."""
        return {
            "root": self.root.hex(),
            "counts": list(self.counts),
            "per_class": self.per_class,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Commitment:
        """Read the JSON object of a task card. Raises ConfigError."""
        if not isinstance(value, Mapping) or set(value) != {"root", "counts", "per_class"}:
            raise ConfigError("validation: expected root, counts and per_class, nothing else")
        root, counts = value["root"], value["counts"]
        if not isinstance(root, str) or not isinstance(counts, list):
            raise ConfigError("validation: expected root as a text and counts as a list")
        try:
            digest = bytes.fromhex(root)
        except ValueError:
            raise ConfigError("validation: root: expected hexadecimal digits") from None
        return cls(digest, tuple(counts), value["per_class"])


@dataclass(frozen=True)
class Draw:
    """What decides which committed points one device gets in one round.

    Parameters
    ----------
    commitment : Commitment
    block_id : str
        Of the irreversible block that opened the round, 64 hexadecimal digits.
    task : str
    version : int
    device : str
    classes : int
        Bit set of the classes that the device declared.
    """

    commitment: Commitment
    block_id: str
    task: str
    version: int
    device: str
    classes: int

    @cached_property
    def leaves(self) -> list[int]:
        """Numbers of the points among all committed ones, ascending. Raises ValidationSetError."""
        return draw_points(
            bytes.fromhex(self.block_id),
            task=self.task,
            version=self.version,
            device=self.device,
            classes=self.classes,
            counts=self.commitment.counts,
            per_class=self.commitment.per_class,
        )

    def __str__(self) -> str:
        number = int(self.block_id[:8], 16)
        return f"the draw of block {number} for {self.device} in round {self.version}"


def class_list(classes: int) -> list[int]:
    """Return the classes of a bit set, ascending."""
    return [c for c in range(CLASSES_MAX) if classes >> c & 1]


def draw_points(
    seed: bytes,
    *,
    task: str,
    version: int,
    device: str,
    classes: int,
    counts: Sequence[int],
    per_class: int,
) -> list[int]:
    """Draw `per_class` points of each declared class, without repetition.

    Parameters
    ----------
    seed : bytes, length 32
        The id of the block that opened the round; where nothing is committed, the owner's secret.
    task, device : str
    version : int
    classes : int
        Bit set.
    counts : sequence of int
        Points of each class.
    per_class : int

    Returns
    -------
    list of int
        Ascending. Point j of class c has the number sum(counts[:c]) + j. What is drawn of a class
        does not depend on which other classes are declared.

    Raises
    ------
    ValidationSetError
        No class is declared, the task has no such class, or too few points of it.
    """
    from gradledger.models import POINTS_MAX

    wanted = class_list(classes)
    if not wanted:
        raise ValidationSetError("a device that declared no class gets no validation set")
    if not 1 <= per_class * len(wanted) <= POINTS_MAX:
        raise ValidationSetError(
            f"expected 1 to {POINTS_MAX} points in a set, "
            f"got {per_class} of each of {len(wanted)} classes"
        )
    key = hashlib.sha256(
        b"".join(
            (
                _DOMAIN,
                seed,
                name_to_int(task).to_bytes(8, "little"),
                version.to_bytes(4, "little"),
                name_to_int(device).to_bytes(8, "little"),
            )
        )
    ).digest()
    found: list[int] = []
    starts = [0, *accumulate(counts)]
    for c in wanted:
        count = counts[c] if c < len(counts) else 0
        if count < per_class:
            raise ValidationSetError(
                f"class {c}: expected at least {per_class} validation points, got {count}"
            )
        chosen: set[int] = set()
        words = _words(key + bytes([c]))
        whole = _WORD - _WORD % count  # words from here on would favour small numbers
        while len(chosen) < per_class:
            word = next(words)
            if word < whole:
                chosen.add(word % count)
        found += [starts[c] + j for j in sorted(chosen)]
    return found


def _words(key: bytes) -> Iterator[int]:
    """Yield the 64-bit words of SHA-256 in counter mode."""
    for number in range(1 << 32):
        block = hashlib.sha256(key + number.to_bytes(4, "little")).digest()
        for start in range(0, HASH_BYTES, 8):
            yield int.from_bytes(block[start : start + 8], "little")


def leaf_record(salt: bytes, stratum: int, x: bytes, y: bytes) -> bytes:
    """Return what the tree has of a point: its salt, its class, and its bytes in the arrays."""
    return b"".join((salt, bytes([stratum]), x, y))


def opening_id(contract: FedLearning, task: str, row: Round) -> str | None:
    """Return the id of the block that opened a round; None while that can still be undone.

    Raises
    ------
    NodeError
        The nodes do not answer, or disagree.
    """
    found = contract.client.get_confirmed_id(row.opened_block)
    if found is None:
        return None
    # The row may be of a fork that lost since. Read now, it rests on the irreversible block.
    again = contract.round(task, row.version)
    return found if again is not None and again.opened_block == row.opened_block else None


# ---- the set ------------------------------------------------------------------------------------


def dump_issued_set(
    x: FloatArray, y: Any, salts: Sequence[bytes], leaves: Sequence[int], nodes: Sequence[bytes]
) -> bytes:
    """Return the safetensors file of a set out of committed points.

    Parameters
    ----------
    x : array of float32, shape (m, features)
    y : array of int64 or float32, shape (m,)
    salts : sequence of bytes
        Of each point's record.
    leaves : sequence of int
        Each point's number among all committed ones, ascending.
    nodes : sequence of bytes
        From `gradledger.merkle.Tree.shared_path`.
    """
    import numpy as np

    from gradledger.models import check_points, dump_arrays

    check_points(x, y)
    arrays = {
        "leaves": np.array(leaves, dtype="<i8"),
        "y": y,
        "x": x,
        "salts": _as_rows(salts, SALT_BYTES),
    }
    if nodes:
        arrays["nodes"] = _as_rows(nodes, HASH_BYTES)
    return dump_arrays(arrays, {})


def read_issued_set(
    data: bytes, draw: Draw | None, target: Target | None = None
) -> tuple[FloatArray, Any]:
    """Read a validation set; where points are committed, check that it is the one drawn.

    Parameters
    ----------
    data : bytes
        The opened payload.
    draw : Draw or None
        None: the task commits to no points, so that the set holds `x` and `y` alone.
    target : Target or None
        The card's: where the task learns a number.

    Returns
    -------
    x : array of float32, shape (m, features)
    y : array of int64, or of float32 where the task learns a number, shape (m,)

    Raises
    ------
    ModelError
        The bytes are malformed.
    ValidationSetError
        The points are not those drawn, or not the committed ones; the message says what was
        expected and what came.
    """
    from gradledger.models import check_points, load_arrays, load_validation_set

    if draw is None:
        return load_validation_set(data, regression=target is not None)
    arrays, _ = load_arrays(data)
    wanted = {"x", "y", "salts", "leaves"}
    if set(arrays) - {"nodes"} != wanted:
        found = ", ".join(sorted(arrays))
        raise ModelError(
            f"arrays x, y, salts and leaves, and nodes, expected in a set of a task with committed "
            f"points, got {found:.200}"
        )
    x, y, leaves = arrays["x"], arrays["y"], arrays["leaves"]
    wanted_y = "int64" if target is None else "float32"
    if x.dtype != "<f4" or y.dtype != wanted_y or leaves.dtype != "<i8":
        raise ModelError(f"x float32, y {wanted_y}, leaves int64 expected")
    check_points(x, y)
    salts = _rows_of("salts", arrays["salts"], SALT_BYTES)
    nodes = _rows_of("nodes", arrays["nodes"], HASH_BYTES) if "nodes" in arrays else []
    if leaves.shape != y.shape or len(salts) != len(y):
        raise ModelError(f"{len(y)} leaves and salts expected, one for each point")
    _check_draw(leaves.tolist(), draw)
    _check_root(x, y, salts, nodes, draw)
    _check_strata(y.tolist() if target is None else target.stratum_of(y).tolist(), draw)
    return x, y


def _check_draw(leaves: list[int], draw: Draw) -> None:
    wanted, commitment = draw.leaves, draw.commitment
    if len(leaves) != len(wanted):
        classes = ", ".join(str(c) for c in class_list(draw.classes))
        raise ValidationSetError(
            f"{draw}: expected {len(wanted)} points, {commitment.per_class} of each of the "
            f"classes {classes}, got {len(leaves)}"
        )
    for place, (expected, got) in enumerate(zip(wanted, leaves, strict=True)):
        if expected != got:
            of_class = ""
            if 0 <= got < commitment.points:
                of_class = f" (class {commitment.class_of(got)})"
            raise ValidationSetError(
                f"{draw}: expected point {expected} (class {commitment.class_of(expected)}) in "
                f"place {place}, got point {got}{of_class}"
            )


def _check_root(x: Any, y: Any, salts: Sequence[bytes], nodes: Sequence[bytes], draw: Draw) -> None:
    commitment, leaves = draw.commitment, draw.leaves
    strata = [commitment.class_of(leaf) for leaf in leaves]
    records = [
        leaf_record(salt, stratum, row.tobytes(), label.tobytes())
        for salt, stratum, row, label in zip(salts, strata, x, y, strict=True)
    ]
    root = root_of_shared(records, leaves, commitment.points, nodes)
    if root != commitment.root:
        got = root.hex() if root is not None else f"{len(nodes)} hashes that lead to none"
        raise ValidationSetError(
            f"{draw}: expected points of the committed root {commitment.root.hex()}, got {got}"
        )


def _check_strata(found: list[int], draw: Draw) -> None:
    """Refuse points that the owner committed to under another class, or stratum, than theirs."""
    for leaf, got in zip(draw.leaves, found, strict=True):
        expected = draw.commitment.class_of(leaf)
        if got != expected:
            raise ValidationSetError(f"point {leaf}: expected one of class {expected}, got {got}")


def _as_rows(texts: Sequence[bytes], width: int) -> Any:
    import numpy as np

    return np.frombuffer(b"".join(texts), dtype="u1").reshape(-1, width)


def _rows_of(name: str, array: Any, width: int) -> list[bytes]:
    if array.dtype != "u1" or array.ndim != 2 or array.shape[1] != width:
        raise ModelError(f"{name}: uint8 of shape [rows, {width}] expected")
    return [row.tobytes() for row in array]
