"""The oracle that a producer runs beside its node: fetch, check, attest, sum."""

from producer_validation.checks import Facts, Judgement, judge
from producer_validation.validator import Validator

__all__ = ["Facts", "Judgement", "Validator", "judge"]
