"""Errors of the local network.

GradledgerError
 +- LocalnetError
     +- PlatformError   use a node and a Kubo by address: there are no binaries for this machine
     +- PartsError      a binary part could not be fetched, or is not the pinned file
     +- StartError      a process did not come up: the message names its log
"""

from gradledger.errors import GradledgerError


class LocalnetError(GradledgerError):
    """The local network could not do what was asked."""


class PlatformError(LocalnetError):
    """The local network's binaries do not run on this machine."""


class PartsError(LocalnetError):
    """A binary part could not be fetched, or is not the pinned file."""


class StartError(LocalnetError):
    """A process of the local network did not come up in time."""
