"""How much of a task's privacy budget a device has used: never less than it has."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradledger.errors import ConfigError, PrivacyError
from gradledger.privacy import Privacy

__all__ = ["Budget"]

FILE_BYTES_MAX = 1 << 22  # more than a budget of the most rounds writes
_COUNTS = re.compile(rb"(?:\d{1,10} \d{1,10}\n)*?(?:(?P<spent>\d{1,10}) (?P<newest>\d{1,10})\n)?")


class Budget:
    """Counts the rounds for which this device drew noise.

    Parameters
    ----------
    path : path, optional
        A file that keeps the count; made, with mode 0600, where there is none. Several processes
        of one device may share it.
    holder : str
        Whose count it is; the file names it.

    Attributes
    ----------
    spent : int
        Rounds; an upper bound.
    newest : int
        Version of the last of them.

    Raises
    ------
    ConfigError
        The file cannot be used, or is another's.

    Notes
    -----
    The chain keeps a device's newest upload alone, by its round's version. Versions count from 1,
    so that whoever uploaded for round v has uploaded at most v times: that bound is all that a
    process without the file knows when it starts. It knows nothing of noise that was drawn and
    never recorded on chain, nor of uploads before the owner removed the account and admitted it
    again.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, holder: str = "") -> None:
        self.spent = 0
        self.newest = 0
        self._path = None if path is None else Path(path)
        self._head = json.dumps({"privacy_budget": 1, "holder": holder}).encode() + b"\n"
        if self._path is not None:
            with self._file() as handle:
                self._read(handle)

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
        """Count a round, in the file first, before its noise is drawn.

        Raises
        ------
        PrivacyError
            The round was counted before, or the budget is used up.
        ConfigError
            The file cannot be written.
        """
        if self._path is None:
            self._count(version, privacy)
            return
        with self._file() as handle:
            self._read(handle)
            self._count(version, privacy)
            os.write(handle, f"{self.spent} {self.newest}\n".encode())
            os.fsync(handle)

    def _count(self, version: int, privacy: Privacy) -> None:
        if version <= self.newest:
            raise PrivacyError(
                f"round {version} has an update with noise already: upload that one, for another "
                "would tell more than the task says"
            )
        self.check(privacy)
        self.spent += 1
        self.newest = version

    @contextmanager
    def _file(self) -> Iterator[int]:
        """Open the file and hold it against other processes; make it where there is none."""
        assert self._path is not None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            handle = os.open(self._path, flags, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield handle
            finally:
                os.close(handle)
        except OSError as exc:
            raise ConfigError(f"{self._path}: cannot be used: {exc.strerror}") from exc

    def _read(self, handle: int) -> None:
        """Take what the file says into account; cut off a line that a crash left unfinished."""
        os.lseek(handle, 0, os.SEEK_SET)
        data = os.read(handle, FILE_BYTES_MAX)
        if len(data) < len(self._head) and self._head.startswith(data):
            os.ftruncate(handle, 0)
            os.write(handle, self._head)
            os.fsync(handle)
            return
        whole = data[: data.rfind(b"\n") + 1]
        found = _COUNTS.fullmatch(whole.removeprefix(self._head))
        if not whole.startswith(self._head) or found is None:
            raise ConfigError(
                f"{self._path}: expected a privacy budget that begins with "
                f"{self._head.decode().strip()}"
            )
        os.ftruncate(handle, len(whole))
        self.spent = max(self.spent, int(found["spent"] or 0))
        self.newest = max(self.newest, int(found["newest"] or 0))
