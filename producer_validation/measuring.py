"""What a validator measures of an update in the clear, and the bounds that it holds it to.

Pure functions of the received model, an update's codes and the device's validation set. Models run
on ONNX Runtime (`gradledger.onnx_models`), never on code of a device or an owner. Sums over codes
are exact, so that all honest validators get the same to the last digit; where float32 sums have a
part, the tolerances are named, and `docs/csves.md` says how they were found.

The bounds behind `MOVED_LEAST` are for the rule gain alone. They were fitted, on other instances
than those that `docs/csves.md` reports on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
import numpy.typing as npt

from gradledger.codec import CODE_MAX, Codec
from gradledger.models import ERROR_SCALE, Model, mean_micro, share_micro
from gradledger.onnx_models import RuntimeModel

__all__ = [
    "DOUBT_TOLERANCE",
    "ERROR_TOLERANCE_EXAMPLES",
    "ClassView",
    "Views",
    "error_tolerance",
    "is_near",
    "is_next_to_nothing",
    "moved_nothing",
    "norm_e6",
    "norm_exceeds",
    "unknown_class",
    "update_sketch",
    "views",
    "without_gain",
]

ERROR_TOLERANCE_EXAMPLES = 2
"""Answers by which a measured error may differ from the reported one: rounding to codes and another
machine's float32 sums can each turn an example that lies on the border of two classes."""

DOUBT_TOLERANCE = 500
"""By which a measured doubt, or a regression's error, may differ from the reported one, in 1e-6
units. numpy and ONNX Runtime were seen to differ by 10 at most."""

_STEPS = np.int64(2)  # a code is twice as many steps of clip / 65535 from the middle, less 65535


# ---- the update itself: exact integers ----------------------------------------------------------


def _steps(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Return an update in units of clip / 65535: odd integers of -65535 to 65535."""
    return codes.astype(np.int64) * _STEPS - CODE_MAX


def _square(codes: npt.NDArray[np.uint16]) -> int:
    steps = _steps(codes)
    return int(steps @ steps)  # below 2^26 x 2^32: exact


def norm_e6(codes: npt.NDArray[np.uint16], codec: Codec) -> int:
    """Return the L2 norm of an update as decoded, in 1e-6 units, rounded down.

    Parameters
    ----------
    codes : array of uint16, shape (parameters,)
    codec : Codec
    """
    return isqrt(_square(codes) * codec.clip_e6**2 // CODE_MAX**2)


def norm_exceeds(codes: npt.NDArray[np.uint16], codec: Codec, norm_max_e6: int) -> bool:
    """Return whether the L2 norm of an update lies above a bound (1e-6 units; 0: no bound)."""
    if not norm_max_e6:
        return False
    return _square(codes) * codec.clip_e6**2 > norm_max_e6**2 * CODE_MAX**2


def is_next_to_nothing(codes: npt.NDArray[np.uint16]) -> bool:
    """Return whether an update is no larger than what quantising makes of a zero one.

    Zero has no code of its own: it decodes to half a step above or below. Next to nothing is an
    update whose root mean square is at most one step, 2 clip / 65535.
    """
    return _square(codes) <= 4 * len(codes)


SKETCH_NUMBERS = 64
NEAR_PERCENT = 1
"""Two updates that are less than so much apart, relative to the longer one, are the same; so are
two that only rounding to codes can have put apart."""

ROUNDING = 2
"""Rounding two updates puts them apart by a square of 2 / 3 steps in each parameter; three times as
much, since a sketch deviates."""

_SKETCH_LABEL = b"gradledger update sketch"


def update_sketch(codes: npt.NDArray[np.uint16]) -> bytes:
    """Return 520 bytes by which two updates' distance can be told, without either.

    64 sums over the parameters, each parameter in one of them with a sign from SHAKE-256: a count
    sketch (Charikar, Chen, Farach-Colton 2002). The sketch of a difference is the difference of the
    sketches, and its squared length is that of the difference but for a relative deviation of
    sqrt(2 / 64) at most. Integers: the same everywhere. The number of parameters stands last.

    Parameters
    ----------
    codes : array of uint16, shape (parameters,)
    """
    signed = _steps(codes) * _signs(len(codes))
    rows = -(-len(codes) // SKETCH_NUMBERS)
    padded = np.zeros(rows * SKETCH_NUMBERS, dtype=np.int64)
    padded[: len(signed)] = signed
    sums = padded.reshape(rows, SKETCH_NUMBERS).sum(axis=0)
    return np.append(sums, len(codes)).astype("<i8").tobytes()


@lru_cache(maxsize=2)
def _signs(parameters: int) -> npt.NDArray[np.int8]:
    stream = hashlib.shake_256(_SKETCH_LABEL).digest(-(-parameters // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=parameters)
    signs = bits.astype(np.int8) * np.int8(2) - np.int8(1)
    signs.flags.writeable = False
    return signs


def is_near(sketch: bytes, others: Sequence[bytes]) -> list[bool]:
    """Return which of other updates are nearly this one, by their sketches.

    Parameters
    ----------
    sketch : bytes
    others : sequence of bytes
        Of the same number of parameters. All empty, or none of them near, where there are no
        sketches (`b""`).

    Returns
    -------
    list of bool
        Exact, so that all validators say the same: float64 only sorts out the many that are far.
    """
    found = [False] * len(others)
    places = [i for i, other in enumerate(others) if sketch and len(other) == len(sketch)]
    if not places:
        return found
    *sums, parameters = np.frombuffer(sketch, dtype="<i8").tolist()
    own = np.array(sums)
    rows = np.frombuffer(b"".join(others[i] for i in places), dtype="<i8")
    rows = rows.reshape(len(places), -1)[:, :-1]
    gaps = (rows - own).astype(np.float64)
    bound = max(1.0, float(np.square(own.astype(np.float64)).sum()))
    apart = np.einsum("ij,ij->i", gaps, gaps)
    lengths = np.square(rows.astype(np.float64)).sum(axis=1)
    limit = 2 * ((NEAR_PERCENT / 100) ** 2 * np.maximum(lengths, bound) + ROUNDING * parameters)
    for place in np.flatnonzero(apart < limit):
        found[places[place]] = _is_exactly_near(sums, rows[place].tolist(), parameters)
    return found


def _is_exactly_near(a: list[int], b: list[int], parameters: int) -> bool:
    """Compare exactly, in integers of any length."""
    apart = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    longer = max(sum(x * x for x in a), sum(y * y for y in b))
    return apart * 100**2 < NEAR_PERCENT**2 * longer + ROUNDING * parameters * 100**2


# ---- the model before and after -----------------------------------------------------------------


@dataclass(frozen=True)
class ClassView:
    """What a model makes of the points of one class.

    Parameters
    ----------
    points : int
    wrong : int
        Of these, answered wrongly.
    doubt : float
        Mean over them, 0 to 1.
    """

    points: int
    wrong: int
    doubt: float


@dataclass(frozen=True)
class Views:
    """What a model makes of a validation set.

    Parameters
    ----------
    error : int
        Share of wrong answers, or a regression's error, 1e-6 units, rounded down.
    doubt : int
        `Model.doubt_micro`; 0 where it was not asked for.
    moved : float
        Mean absolute difference of the points' doubts from those of the model before, 0 to 1.
    classes : mapping of int to ClassView
        Empty where doubt was not asked for.
    """

    error: int
    doubt: int
    moved: float
    classes: Mapping[int, ClassView]


def views(
    model: Model,
    codes: npt.NDArray[np.uint16],
    codec: Codec,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.int64],
    *,
    doubts: bool,
) -> tuple[Views, Views]:
    """Run the received model, and the same with the update, on a validation set.

    Parameters
    ----------
    model : Model
        As received.
    codes : array of uint16, shape (parameters,)
        The update.
    codec : Codec
    x : array of float32, shape (points, features)
    y : array of int64, shape (points,); of a regression float32
    doubts : bool
        Whether the doubts are wanted (rule gain).

    Returns
    -------
    before, after : Views

    Raises
    ------
    ModelError
        Model and set do not fit together, or a sum is not finite.
    ConfigError
        ONNX Runtime is not installed.
    """
    received = RuntimeModel(model.network, model.vector, model.target)
    with np.errstate(over="ignore"):
        vector = model.vector + codec.dequantise(codes)
    arrived = RuntimeModel(model.network, vector, model.target)
    if not doubts:
        before, after = (Views(one.error_micro(x, y), 0, 0.0, {}) for one in (received, arrived))
        return before, after
    seen = received.wrong_and_doubts(x, y)
    first = seen[1]
    return _view(*seen, y, first), _view(*arrived.wrong_and_doubts(x, y), y, first)


def _view(
    wrong: npt.NDArray[np.bool_],
    points: npt.NDArray[np.float64],
    y: npt.NDArray[np.int64],
    first: npt.NDArray[np.float64],
) -> Views:
    classes = {}
    for name in np.unique(y).tolist():
        chosen = y == name
        count = int(np.count_nonzero(chosen))
        bad = int(np.count_nonzero(wrong[chosen]))
        classes[name] = ClassView(count, bad, float(points[chosen].mean()))
    moved = float(np.abs(points - first).mean())
    return Views(share_micro(wrong), mean_micro(points), moved, classes)


def error_tolerance(points: int) -> int:
    """Return by how much two shares of wrong answers may differ, in 1e-6 units.

    Rounded up, which covers that both shares are rounded down.
    """
    return -(-ERROR_TOLERANCE_EXAMPLES * ERROR_SCALE // points)


# ---- the rule gain: what an update must have learnt ---------------------------------------------

MOVED_LEAST = 0.012
"""How far a training moves the doubt in the mean point, at least."""

FALL_PER_CLASS = 0.08
FALL_LESS = 0.015
"""With h classes the doubt falls by 0.08 / h - 0.015 at least: the fewer there are, the more doubt
any training takes away."""

KNOWN_EARLY = (0.15, 0.05, 0.02, 0.0, -0.01, -0.02, -0.05, -0.055, -0.065)
KNOWN_LATE = (0.03, 0.02, 0.0, -0.04, -0.055, -0.06, -0.075, -0.1, -0.1)
"""By how much the doubt in one class falls at least, with 1, 2, ... 9 and more classes: while the
received model still has a doubt of 0.80, and once it has 0.75 and less."""

EARLY_DOUBT, LATE_DOUBT = 0.80, 0.75
IGNORANT_ERROR = 500_000
"""A model that answers half of the set wrongly has nothing to forget."""

WRONG_OF_CLASS_MOST = 0.85
"""There: the share of a class that may still be answered wrongly afterwards."""


def moved_nothing(after: Views) -> bool:
    """Return whether an update left every doubt about where it was: noise, or next to nothing."""
    return after.moved < MOVED_LEAST


def unknown_class(before: Views, after: Views) -> int | None:
    """Return a class of the set that the update knows nothing of, or None.

    Who trains on other classes alone makes the model forget this one: its doubt rises. A model that
    knows nothing yet must answer some points of each class rightly afterwards.

    Parameters
    ----------
    before, after : Views
        With their classes.

    Returns
    -------
    int or None
        The class that speaks most against the claim.
    """
    if before.error >= IGNORANT_ERROR:
        name, view = max(after.classes.items(), key=lambda one: one[1].wrong / one[1].points)
        return name if view.wrong > WRONG_OF_CLASS_MOST * view.points else None
    falls = {name: before.classes[name].doubt - after.classes[name].doubt for name in after.classes}
    name = min(falls, key=lambda one: falls[one])
    return name if falls[name] < _least_fall(len(falls), before.doubt / ERROR_SCALE) else None


def _least_fall(held: int, doubt: float) -> float:
    """Return by how much the doubt in each of so many classes falls, as far as one may ask."""
    place = min(held, len(KNOWN_LATE)) - 1
    early = min(max((doubt - LATE_DOUBT) / (EARLY_DOUBT - LATE_DOUBT), 0.0), 1.0)
    return KNOWN_LATE[place] + early * (KNOWN_EARLY[place] - KNOWN_LATE[place])


def without_gain(before: Views, after: Views) -> bool:
    """Return whether the doubt in all points together fell by less than training takes away."""
    fall = (before.doubt - after.doubt) / ERROR_SCALE
    return fall < FALL_PER_CLASS / len(after.classes) - FALL_LESS
