"""Files of SQLite that only their owner may read, and that a crash leaves whole."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["connect", "make_private"]

# EXTRA: the folder is synchronised as well after the journal is unlinked, or a loss of power could
# bring the journal back, and with it what it would restore.
_SETTINGS = """
PRAGMA journal_mode = DELETE;
PRAGMA synchronous = EXTRA;
PRAGMA fullfsync = ON;
PRAGMA secure_delete = ON;
PRAGMA trusted_schema = OFF;
"""


def make_private(path: Path, what: str) -> None:
    """Make folder and file where they are missing; refuse those that others may read.

    Parameters
    ----------
    path : Path
        Of the file: mode 0600, in a folder of mode 0700.
    what : str
        What is kept in it, for messages.

    Raises
    ------
    ConfigError
        Others may read it, or it cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # The file is never opened but by SQLite once it exists: closing it would drop the
            # locks that SQLite holds for other threads of this process.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass
        for place, is_kind, kind, mode in (
            (path.parent, stat.S_ISDIR, "a folder", 0o700),
            (path, stat.S_ISREG, "a regular file", 0o600),
        ):
            status = os.lstat(place)
            if not is_kind(status.st_mode):
                raise ConfigError(f"{place}: expected {kind} for {what}")
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigError(
                    f"{place}: expected mode {mode:04o}, got {stat.S_IMODE(status.st_mode):04o};"
                    f" other accounts may have read these {what}"
                )
    except OSError as exc:
        raise ConfigError(f"{path}: cannot keep {what} here: {exc.strerror}") from exc


def connect(
    path: Path, *, timeout_sec: float, check_same_thread: bool = True
) -> sqlite3.Connection:
    """Open a file of `make_private`; transactions are the caller's. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw",
        timeout=timeout_sec,
        isolation_level=None,
        uri=True,
        check_same_thread=check_same_thread,
    )
    try:
        connection.executescript(_SETTINGS)
    except BaseException:
        connection.close()
        raise
    return connection
