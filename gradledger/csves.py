"""CSVES, the class-sampled validation-error scheme: the same integers as the contract's.

A series v_E is a sequence of validation errors in 1e-6 units, taken in training. Martinez,
Francis, Hafid: "Record and Reward Federated Learning Contributions with Blockchain", section II-E,
Algorithms 3 (trend) and 4 (threshold). The third rule, gain, is this project's: docs/csves.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gradledger.chain.contract import ERROR_SCALE, Rule
from gradledger.errors import ConfigError

ERRORS_MAX = 64
CLASSES_MAX = 64
GAIN_ALLOWED = 80_000
GAIN_ALLOWED_LESS = 150_000


def trend_numerator(errors: Sequence[int]) -> int:
    """Return the numerator of the least-squares slope over x = 0, 1, ..., m - 1.

    Its sign is the slope's: the denominator is positive for m >= 2. The result is 0 for m = 1.

    Parameters
    ----------
    errors : sequence of int, length m in 1..64
        In 1e-6 units, each 0..1,000,000.

    Raises
    ------
    ConfigError
        The series is empty, too long or has a value outside the range.
    """
    values = _checked(errors)
    count = len(values)
    sum_x = count * (count - 1) // 2
    return count * sum(x * e for x, e in enumerate(values)) - sum_x * sum(values)


def meets_trend(errors: Sequence[int]) -> bool:
    """Return whether the errors fall: CSVES-Tr."""
    return trend_numerator(errors) < 0


def meets_threshold(errors: Sequence[int], tau: int) -> bool:
    """Return whether the last error is below `tau` (1e-6 units): CSVES-Th."""
    return _checked(errors)[-1] < tau


def gain_excess(errors: Sequence[int], held: int) -> int:
    """Return by how much the doubts lie above what sound data leaves: negative is good.

    With the doubts e_0..e_n, h = max(2, held), and R = sum(max(0, e_i - e_(i-1))), all their rises
    taken together: ``h (sum(e_1..e_n) - n e_0 + n R) - n (80,000 h - 150,000)``. 0 where there is
    no second doubt.

    Parameters
    ----------
    errors : sequence of int, length m in 1..64
        The doubts, e_0 before training, and behind them one number more (see `meets_gain`); in 1e-6
        units, each 0..1,000,000.
    held : int
        Declared classes, 1..64.

    Notes
    -----
    The mean doubt in training has to lie below that before it, and ups and downs count against it:
    sound data takes doubt away step by step, noise takes it away and brings it back. Whatever a
    device trains on, its model also learns which classes it has, and the fewer they are, the more
    doubt that takes away by itself; hence the allowance of 0.08 - 0.15 / h. The two numbers were
    fitted: docs/csves.md.
    """
    *doubts, _ = _checked(errors)
    h = _classes(held)
    later = max(len(doubts) - 1, 0)
    rises = sum(max(0, b - a) for a, b in pairwise(doubts))
    change = sum(doubts[1:]) - later * doubts[0] if later else 0
    return h * (change + later * rises) - later * (GAIN_ALLOWED * h - GAIN_ALLOWED_LESS)


def gain_limit(tau: int, held: int) -> int:
    """Return what the share of wrong answers must lie below, in 1e-6 units.

    `tau` (1e-6 units) of the share 1 - 1 / h that guessing among h = max(2, held) classes gets
    wrong, rounded up.
    """
    h = _classes(held)
    return -(-tau * (h - 1) // h)


def meets_gain(errors: Sequence[int], tau: int, held: int) -> bool:
    """Return whether training took doubt away and left few wrong answers: the third rule.

    Parameters
    ----------
    errors : sequence of int, length m in 1..64; below 3 never met
        The doubts (`Model.doubt_micro`), before training first, and behind them the trained model's
        share of wrong answers.
    tau : int
        See `gain_limit`.
    held : int
        Declared classes, 1..64.
    """
    return _checked(errors)[-1] < gain_limit(tau, held) and gain_excess(errors, held) < 0


def meets(rule: Rule, errors: Sequence[int], tau: int, held: int) -> bool:
    """Return whether a series meets a round's rule; `held` is the device's number of classes."""
    if rule is Rule.TREND:
        return meets_trend(errors)
    if rule is Rule.THRESHOLD:
        return meets_threshold(errors, tau)
    if rule is Rule.EITHER:
        return meets_trend(errors) or meets_threshold(errors, tau)
    if rule is Rule.BOTH:
        return meets_trend(errors) and meets_threshold(errors, tau)
    return meets_gain(errors, tau, held)


def _checked(errors: Sequence[int]) -> Sequence[int]:
    if not 1 <= len(errors) <= ERRORS_MAX:
        raise ConfigError(f"expected 1..{ERRORS_MAX} validation errors, got {len(errors)}")
    for error in errors:
        if not 0 <= error <= ERROR_SCALE:
            raise ConfigError(f"expected validation errors of 0..{ERROR_SCALE}, got {error}")
    return errors


def _classes(held: int) -> int:
    if not 1 <= held <= CLASSES_MAX:
        raise ConfigError(f"expected 1..{CLASSES_MAX} declared classes, got {held}")
    return max(held, 2)
