"""The validator's side: fetch, check, attest, sum.

`checks` holds the rules, pure functions from bytes to a verdict; `validator` follows the chain and
applies them; `executors` says where that work runs, `summing` multiplies there; `cli` is
`gradledger validator ...`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer_validation.validator import StepReport, Validator

__all__ = ["StepReport", "Validator"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from producer_validation import validator

        return getattr(validator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
