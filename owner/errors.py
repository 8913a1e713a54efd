"""What goes wrong in round control alone; everything else is in `gradledger.errors`.

GradledgerError
 +- OwnerError
     +- SumUnusableError   no validator's copy of the sum is right: try again, or ask the validators
     +- WaitTimeoutError   a wait reached its bound: look at `gradledger owner status`, start again
     +- StateBusyError     another process works with this state directory: wait for it to end
"""

from __future__ import annotations

from gradledger.errors import GradledgerError

__all__ = ["OwnerError", "StateBusyError", "SumUnusableError", "WaitTimeoutError"]


class OwnerError(GradledgerError):
    """Base of the errors that only the owner's side raises."""


class SumUnusableError(OwnerError):
    """Every copy of a round's sum is missing or wrong; the message says which, and why."""


class WaitTimeoutError(OwnerError):
    """What was waited for did not happen within the bound."""


class StateBusyError(OwnerError):
    """Another process holds the state directory."""
