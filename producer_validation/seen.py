"""What a validator has judged before, on disk, so that a replay can be named.

A replayed envelope is refused without this (its header names its round); this adds whose it was. A
series that does not fit its update is refused without this as well; this adds that the device
reported it in an earlier round.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["Earlier", "SeenUploads"]

ENTRIES_MAX = 100_000
_LINE_BYTES_MAX = 256
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
    series_hash : bytes
        Of its errors; empty where it was written down by an earlier release.
    """

    task: str
    version: int
    account: str
    series_hash: bytes = b""


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
        self._series: dict[tuple[str, str, bytes], int] = {}  # the first version that had it
        self._lines = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            raise ConfigError(f"state directory {folder}: {error.strerror}") from error

    def earlier(self, upload_hash: bytes) -> Earlier | None:
        """Return the upload that had this hash first, or None."""
        return self._entries.get(upload_hash.hex())

    def had_series(self, task: str, version: int, account: str, series_hash: bytes) -> bool:
        """Return whether a device reported these errors in a round before this version."""
        return self._series.get((task, account, series_hash), version) < version

    def note(
        self, upload_hash: bytes, task: str, version: int, account: str, series_hash: bytes = b""
    ) -> None:
        """Remember an upload; the first one with a hash stands. Raises OSError."""
        digest = upload_hash.hex()
        if digest in self._entries:
            return
        self._keep(digest, Earlier(task, version, account, series_hash))
        if self._lines >= 2 * ENTRIES_MAX:
            self._rewrite()
            return
        with self._path.open("a", encoding="ascii") as file:
            file.write(_line(digest, self._entries[digest]))
        self._lines += 1

    def _keep(self, digest: str, one: Earlier) -> None:
        if digest in self._entries:
            return
        self._entries[digest] = one
        if one.series_hash:
            self._series.setdefault((one.task, one.account, one.series_hash), one.version)
        if len(self._entries) > ENTRIES_MAX:
            _, gone = self._entries.popitem(last=False)
            place = (gone.task, gone.account, gone.series_hash)
            if self._series.get(place) == gone.version:
                del self._series[place]

    def _load(self) -> None:
        """Read the file; a line that was cut off by a crash is left out."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            text = file.read(_FILE_BYTES_MAX).decode("ascii", "replace")
        for line in text.splitlines(keepends=True):
            self._lines += 1
            parts = line.split()
            is_whole = line.endswith("\n") and len(parts) in (4, 5) and parts[2].isdecimal()
            if not is_whole or not all(_is_digest(one) for one in (parts[0], *parts[4:])):
                continue
            series = bytes.fromhex(parts[4]) if len(parts) == 5 else b""
            self._keep(parts[0], Earlier(parts[1], int(parts[2]), parts[3], series))
        if self._lines > len(self._entries):
            self._rewrite()

    def _rewrite(self) -> None:
        """Keep one line for each entry; whole or not at all."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="ascii") as file:
            for digest, one in self._entries.items():
                file.write(_line(digest, one))
        os.replace(fresh, self._path)
        self._lines = len(self._entries)


def _line(digest: str, one: Earlier) -> str:
    series = f" {one.series_hash.hex()}" if one.series_hash else ""
    return f"{digest} {one.task} {one.version} {one.account}{series}\n"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
