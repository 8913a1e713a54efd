"""What a regression task says about the number that its model tells (docs/protocol.md, section 4).

A task that learns a number has no classes. Its validation points fall into strata, ranges of that
number, and a stratum takes a class's place: devices declare the strata they have data of, and get
validation points of these. Which predictions count as how wrong follows from the task's scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gradledger.errors import ConfigError
from gradledger.text import check_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["STRATA_MAX", "Target", "quantile_edges"]

KIND = "regression"
STRATA_MAX = 64
UNIT_CHARS_MAX = 32
ERROR_SCALE = 1_000_000
FIELDS = ("kind", "edges", "scale", "tolerance", "unit")
QUANTILE_DIGITS = 6
NUMBER_MAX = (2 - 2**-23) * 2.0**127  # of a float32


@dataclass(frozen=True)
class Target:
    """The number that a regression task learns.

    Parameters
    ----------
    edges : tuple of float, 0 to 63 entries
        Where one stratum ends and the next begins, ascending: `y` lies in stratum i when
        ``edges[i-1] <= y < edges[i]``; the first and the last stratum have no end.
    scale : float
        S, in the target's unit: who is off by S or more has an error of 1.
    tolerance : float
        Who is off by more than this is wrong.
    unit : str
        Of the target, for people; one line without control characters.

    Raises
    ------
    ConfigError
        The edges do not ascend, there are too many, a number is not finite or not positive, or the
        unit is no plain text.
    """

    edges: tuple[float, ...]
    scale: float
    tolerance: float
    unit: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.edges, str) or not isinstance(self.edges, Sequence):
            raise ConfigError("target: edges: expected a list of numbers")
        object.__setattr__(self, "edges", tuple(_number("edges", edge) for edge in self.edges))
        if len(self.edges) >= STRATA_MAX:
            raise ConfigError(
                f"target: edges: expected at most {STRATA_MAX - 1}, got {len(self.edges)}"
            )
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ConfigError("target: edges: expected each to be greater than the one before")
        for name in ("scale", "tolerance"):
            value = _number(name, getattr(self, name))
            if value <= 0:
                raise ConfigError(f"target: {name}: expected more than 0, got {value:g}")
            object.__setattr__(self, name, value)
        if not isinstance(self.unit, str) or len(self.unit) > UNIT_CHARS_MAX:
            raise ConfigError(f"target: unit: expected a text of at most {UNIT_CHARS_MAX} letters")
        check_text("target: unit", self.unit)

    @classmethod
    def by_quantiles(
        cls, y: npt.ArrayLike, strata: int, *, scale: float, tolerance: float, unit: str = ""
    ) -> Target:
        """Return a target whose strata hold equal shares of given numbers.

        Parameters
        ----------
        y : array of float, shape (points,)
            For instance the targets of the owner's validation points.
        strata : int, 1 to 64
        scale, tolerance, unit
            As for `Target`.

        Raises
        ------
        ConfigError
            So many of the numbers are equal that a stratum would be empty.
        """
        return cls(quantile_edges(y, strata), scale, tolerance, unit)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Target:
        """Read the card's `target`. Raises ConfigError."""
        if not isinstance(value, Mapping) or set(value) != set(FIELDS):
            raise ConfigError(f"target: expected exactly {', '.join(FIELDS)}")
        if value["kind"] != KIND:
            raise ConfigError(f"target: kind: expected {KIND}, got {value['kind']!r:.40}")
        return cls(value["edges"], value["scale"], value["tolerance"], value["unit"])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the card."""
        return {
            "kind": KIND,
            "edges": list(self.edges),
            "scale": self.scale,
            "tolerance": self.tolerance,
            "unit": self.unit,
        }

    # ---- strata -----------------------------------------------------------------------------

    @property
    def strata(self) -> int:
        """Number of strata."""
        return len(self.edges) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """What the strata are called, ascending: `below 2 km`, `2 to 5 km`, `5 km and more`."""
        if not self.edges:
            return ("all",)
        unit = f" {self.unit}" if self.unit else ""
        shown = [f"{edge:g}" for edge in self.edges]
        if len(set(shown)) < len(shown):
            shown = [repr(edge) for edge in self.edges]
        between = [f"{a} to {b}{unit}" for a, b in pairwise(shown)]
        return (f"below {shown[0]}{unit}", *between, f"{shown[-1]}{unit} and more")

    def stratum_of(self, y: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the stratum of each number, 0 to `strata` - 1. Raises ConfigError."""
        import numpy as np

        return np.searchsorted(self.edges, numbers(y), side="right").astype(np.int64)

    def strata_of(self, y: npt.ArrayLike) -> list[int]:
        """Return the strata that some of the numbers lie in, ascending: what a device declares."""
        import numpy as np

        return [int(stratum) for stratum in np.unique(self.stratum_of(y))]

    # ---- errors -----------------------------------------------------------------------------

    def error_micro(self, predicted: npt.ArrayLike, y: npt.ArrayLike) -> int:
        """Return how far off predictions are, in 1e-6 units of the scale, rounded down.

        The mean of ``min(1, |predicted - y| / scale)``; a prediction that is no number counts 1.

        Parameters
        ----------
        predicted : array of float, shape (points,)
        y : array of float, shape (points,)
            Finite.

        Notes
        -----
        The sum is the exactly rounded one (`math.fsum`), so that the order of the points and the
        machine do not matter.
        """
        import numpy as np

        shares = np.minimum(_off(predicted, y) / self.scale, 1.0)
        return int(math.fsum(shares.tolist()) * ERROR_SCALE / len(shares))

    def wrong_micro(self, predicted: npt.ArrayLike, y: npt.ArrayLike) -> int:
        """Return the share of points off by more than the tolerance, 1e-6 units, rounded down."""
        import numpy as np

        off = _off(predicted, y)
        return int(np.count_nonzero(off > self.tolerance)) * ERROR_SCALE // len(off)


def quantile_edges(y: npt.ArrayLike, strata: int) -> tuple[float, ...]:
    """Return edges between strata with equal shares of given numbers: `Target.by_quantiles`."""
    import numpy as np

    if type(strata) is not int or not 1 <= strata <= STRATA_MAX:
        raise ConfigError(f"target: strata: expected 1..{STRATA_MAX}, got {strata!r:.40}")
    values = numbers(y)
    found = np.quantile(values, np.arange(1, strata) / strata)
    # Six digits, so that the card tells no point of the owner's to the last bit.
    edges = tuple(float(f"{edge:.{QUANTILE_DIGITS}g}") for edge in found)
    filled = len(np.unique(np.searchsorted(edges, values, side="right")))
    if any(a >= b for a, b in pairwise(edges)) or filled < strata:
        raise ConfigError(
            f"target: strata: expected numbers far enough apart for {strata} strata with an equal "
            "share each; give edges"
        )
    return edges


def numbers(y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return targets as they count everywhere: float32, here widened. Raises ConfigError."""
    import numpy as np

    with np.errstate(over="ignore"):
        values = np.asarray(y, dtype=np.float32).astype(np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ConfigError("target: expected at least one number, and each a finite float32")
    return values


def _off(predicted: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the absolute errors; infinite where a prediction is no number."""
    import numpy as np

    wanted = numbers(y)
    found = np.asarray(predicted, dtype=np.float64)
    if found.shape != wanted.shape:
        raise ConfigError(f"target: expected {len(wanted)} predictions, got {list(found.shape)}")
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.abs(found - wanted), nan=np.inf, posinf=np.inf)


def _number(name: str, value: object) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= NUMBER_MAX:  # type: ignore[arg-type]
        raise ConfigError(f"target: {name}: expected a number, got {value!r:.40}")
    return float(value)  # type: ignore[arg-type]
