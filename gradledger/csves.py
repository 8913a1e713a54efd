"""CSVES, the class-sampled validation-error scheme: the same integers as the contract's.

A series v_E is a sequence of validation errors in 1e-6 units, taken in training. Martinez,
Francis, Hafid: "Record and Reward Federated Learning Contributions with Blockchain", section II-E,
Algorithms 3 (trend) and 4 (threshold).
"""

from __future__ import annotations

from collections.abc import Sequence

from gradledger.chain.contract import ERROR_SCALE, Rule
from gradledger.errors import ConfigError

ERRORS_MAX = 64


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


def meets(rule: Rule, errors: Sequence[int], tau: int) -> bool:
    """Return whether a series meets a round's rule."""
    if rule is Rule.TREND:
        return meets_trend(errors)
    if rule is Rule.THRESHOLD:
        return meets_threshold(errors, tau)
    if rule is Rule.EITHER:
        return meets_trend(errors) or meets_threshold(errors, tau)
    return meets_trend(errors) and meets_threshold(errors, tau)


def _checked(errors: Sequence[int]) -> Sequence[int]:
    if not 1 <= len(errors) <= ERRORS_MAX:
        raise ConfigError(f"expected 1..{ERRORS_MAX} validation errors, got {len(errors)}")
    for error in errors:
        if not 0 <= error <= ERROR_SCALE:
            raise ConfigError(f"expected validation errors of 0..{ERROR_SCALE}, got {error}")
    return errors
