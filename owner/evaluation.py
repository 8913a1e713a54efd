"""How good a model is on the owner's own test points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradledger.errors import ConfigError
from gradledger.models import Model
from gradledger.target import Target

__all__ = ["Quality", "quality"]


@dataclass(frozen=True)
class Quality:
    """What a model is worth; of classes the first, of a regression the rest, the others are None.

    Parameters
    ----------
    accuracy : float or None
        Share of right answers.
    mean_absolute_error : float or None
        In the target's unit. None as well where a prediction is beyond any number.
    r2 : float or None
        1 less the squared errors' share of the target's variance; None as well where all targets
        are the same.
    within_tolerance : float or None
        Share of predictions that are off by no more than the target's tolerance.
    """

    accuracy: float | None = None
    mean_absolute_error: float | None = None
    r2: float | None = None
    within_tolerance: float | None = None

    def told(self, target: Target | None) -> str:
        """Return it in words."""
        if target is None:
            return f"accuracy {self.accuracy:.2%}"
        unit = f" {target.unit}" if target.unit else ""
        error, r2 = (
            "unknown" if value is None else f"{value:.4g}"
            for value in (self.mean_absolute_error, self.r2)
        )
        return (
            f"mean absolute error {error}{unit}, R^2 {r2}, "
            f"{self.within_tolerance:.2%} within {target.tolerance:g}{unit}"
        )


def quality(
    model: Model, x: npt.ArrayLike, y: npt.ArrayLike, target: Target | None = None
) -> Quality:
    """Measure a model.

    Parameters
    ----------
    model : Model
    x : array of float, shape (points, features)
    y : array of int or float, shape (points,)
        Classes, or with a target numbers.
    target : Target, optional
        The card's, where the task learns a number.

    Raises
    ------
    ConfigError
        There is no point, or model and target do not go together.
    """
    truth = np.asarray(y)
    if truth.ndim != 1 or not len(truth):
        raise ConfigError("evaluation: expected at least one labelled point")
    if model.network.regresses() != (target is not None):
        raise ConfigError("evaluation: expected a target for a regression, and for nothing else")
    if target is None:
        return Quality(accuracy=float(np.count_nonzero(model.predict(x) == truth)) / len(truth))
    predicted = model.predict(x).astype(np.float64)
    wrong = target.wrong_micro(predicted, truth)
    off = predicted - truth
    variance = float(np.var(truth.astype(np.float64)))
    return Quality(
        mean_absolute_error=_number(np.mean(np.abs(off))),
        r2=_number(1 - np.mean(np.square(off)) / variance) if variance else None,
        within_tolerance=1 - wrong / 1e6,
    )


def _number(value: np.floating) -> float | None:
    return float(value) if math.isfinite(value) else None
