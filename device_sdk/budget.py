"""How much of a task's privacy budget a device has used: never less than it has."""

from __future__ import annotations

from gradledger.errors import PrivacyError
from gradledger.privacy import Privacy

__all__ = ["Budget"]


class Budget:
    """Counts the rounds for which this device drew noise.

    Attributes
    ----------
    spent : int
        Rounds; an upper bound.
    newest : int
        Version of the last of them.

    Notes
    -----
    The chain keeps a device's newest upload alone, by its round's version. Versions count from 1,
    so that whoever uploaded for round v has uploaded at most v times: that bound is all that a
    restarted process knows. It knows nothing of noise that was drawn and never recorded on chain,
    nor of uploads before the owner removed the account and admitted it again.
    """

    def __init__(self) -> None:
        self.spent = 0
        self.newest = 0

    def observe(self, upload_version: int) -> None:
        """Take note of the newest upload on chain; another process may have made it."""
        if upload_version > self.newest:
            self.spent += upload_version - self.newest
            self.newest = upload_version

    def check(self, privacy: Privacy) -> None:
        """Refuse a further round. Raises PrivacyError."""
        if self.spent >= privacy.rounds:
            raise PrivacyError(
                f"the privacy budget is for {privacy.rounds} rounds, and {self.spent} may be used: "
                "this device takes part in no more"
            )

    def charge(self, version: int, privacy: Privacy) -> None:
        """Count a round, before its noise is drawn. Raises PrivacyError."""
        if version <= self.newest:
            raise PrivacyError(
                f"round {version} has an update with noise already: upload that one, for another "
                "would tell more than the task says"
            )
        self.check(privacy)
        self.spent += 1
        self.newest = version
