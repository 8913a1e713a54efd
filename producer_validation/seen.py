"""What a validator has judged before, on disk, so that a replay can be named in the log.

A replayed envelope is refused without this (its header names its round); this adds whose it was.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["Earlier", "SeenUploads"]

ENTRIES_MAX = 100_000
_LINE_BYTES_MAX = 128
_FILE_BYTES_MAX = 2 * ENTRIES_MAX * _LINE_BYTES_MAX


@dataclass(frozen=True)
class Earlier:
    """An upload that was judged before.

    Parameters
    ----------
    task : str
    version : int
    account : str
        The device that recorded it first.
    """

    task: str
    version: int
    account: str


class SeenUploads:
    """The hashes of the newest uploads that one validator judged.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    account : str
        The validator; several may share a folder.

    Raises
    ------
    ConfigError
        The folder or the file cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], account: str) -> None:
        self._path = Path(folder) / f"seen-{account}.txt"
        self._entries: OrderedDict[str, Earlier] = OrderedDict()
        self._lines = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            raise ConfigError(f"state directory {folder}: {error.strerror}") from error

    def earlier(self, upload_hash: bytes) -> Earlier | None:
        """Return the upload that had this hash first, or None."""
        return self._entries.get(upload_hash.hex())

    def note(self, upload_hash: bytes, task: str, version: int, account: str) -> None:
        """Remember an upload; the first one with a hash stands. Raises OSError."""
        digest = upload_hash.hex()
        if digest in self._entries:
            return
        self._entries[digest] = Earlier(task, version, account)
        if len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)
        if self._lines >= 2 * ENTRIES_MAX:
            self._rewrite()
            return
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{digest} {task} {version} {account}\n")
        self._lines += 1

    def _load(self) -> None:
        """Read the file; a line that was cut off by a crash is left out."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX).decode("ascii", "replace")
        for line in text.splitlines():
            self._lines += 1
            parts = line.split(" ")
            if len(parts) == 4 and len(parts[0]) == 64 and parts[2].isdecimal():
                self._entries.setdefault(parts[0], Earlier(parts[1], int(parts[2]), parts[3]))
        while len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)
        if self._lines > len(self._entries):
            self._rewrite()

    def _rewrite(self) -> None:
        """Keep one line for each entry; whole or not at all."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="ascii") as file:
            for digest, one in self._entries.items():
                file.write(f"{digest} {one.task} {one.version} {one.account}\n")
        os.replace(fresh, self._path)
        self._lines = len(self._entries)
