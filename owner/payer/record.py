"""What the payer signed, in SQLite before a signature leaves: a restart forgets nothing."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["HOUR_SEC", "Record", "Signed", "Used"]

HOUR_SEC = 3600
KEEP_SEC = 30 * 24 * HOUR_SEC  # what is older is dropped; a round lasts less
PRUNE_EVERY = 256
PRUNE_ROWS_MAX = 1024  # at once, so that no request waits for long
BUSY_SEC = 5.0
FORMAT = 1

_SCHEMA = """
CREATE TABLE signed (
    trx_id TEXT PRIMARY KEY,
    task TEXT NOT NULL,
    device TEXT NOT NULL,
    action TEXT NOT NULL,
    version INTEGER NOT NULL,
    signed_at INTEGER NOT NULL,
    expiration INTEGER NOT NULL,
    signature TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX signed_device ON signed (device, signed_at);
CREATE INDEX signed_at ON signed (signed_at);
CREATE TABLE minutes (
    task TEXT NOT NULL,
    minute INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (task, minute)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Signed:
    """One transaction that was signed. Times are the chain's, in seconds since 1970."""

    trx_id: str
    task: str
    device: str
    action: str
    version: int  # of the round; 0 for a join
    signed_at: int
    expiration: int
    signature: str


@dataclass(frozen=True)
class Used:
    """How much of the limits is used before another signature.

    Attributes
    ----------
    round : int
        Signatures for this device, task and round.
    device, task : int
        In the last hour: for this device in all tasks, and for this task.
    """

    round: int
    device: int
    task: int


class Record:
    """The signatures given, durable. Safe to share between threads and processes.

    Parameters
    ----------
    path : path
        A SQLite file; made with mode 0600 where it is not there.

    Raises
    ------
    ConfigError
        It cannot be opened, or is no such record.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._signed = 0
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_SEC, isolation_level=None, check_same_thread=False
            )
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._open()
            except BaseException:
                self._db.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.path}: cannot be used as a record: {error}") from error

    def _open(self) -> None:
        with self._transaction():
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
            if found == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {FORMAT}")
            elif found != FORMAT:
                raise ConfigError(f"{self.path}: expected a record of format {FORMAT}")

    def __repr__(self) -> str:
        return f"Record({str(self.path)!r})"

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def find(self, trx_id: str) -> Signed | None:
        """Return what was signed under this transaction id. Raises sqlite3.Error."""
        with self._lock:
            row = self._db.execute("SELECT * FROM signed WHERE trx_id = ?", (trx_id,)).fetchone()
        return None if row is None else Signed(*row)

    def newest(self, count: int) -> list[Signed]:
        """Return the newest `count` signatures, the newest first. Raises sqlite3.Error."""
        query = "SELECT * FROM signed ORDER BY signed_at DESC LIMIT ?"
        with self._lock:
            return [Signed(*row) for row in self._db.execute(query, (count,)).fetchall()]

    def used(self, one: Signed) -> Used:
        """Return how much is used of the limits that `one` counts for. Raises sqlite3.Error."""
        with self._lock:
            return self._used(one)

    @contextmanager
    def adding(self, one: Signed) -> Iterator[Used]:
        """Record a signature when the block ends well, and durably; count nothing otherwise.

        What the block is given are the counts that it can rely on until it ends.

        Raises
        ------
        sqlite3.IntegrityError
            It was recorded before.
        sqlite3.Error
            It cannot be written (a full disk): the signature must not leave.
        """
        with self._lock, self._transaction():
            yield self._used(one)
            self._db.execute(
                "INSERT INTO signed VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    one.trx_id,
                    one.task,
                    one.device,
                    one.action,
                    one.version,
                    one.signed_at,
                    one.expiration,
                    one.signature,
                ),
            )
            self._db.execute(
                "INSERT INTO minutes VALUES (?, ?, 1) "
                "ON CONFLICT (task, minute) DO UPDATE SET count = count + 1",
                (one.task, one.signed_at // 60),
            )
            self._signed += 1
            if self._signed % PRUNE_EVERY == 0:
                self._prune(one.signed_at)

    def _used(self, one: Signed) -> Used:
        hour_ago = one.signed_at - HOUR_SEC
        of_round = self._count(
            "SELECT COUNT(*) FROM signed WHERE device = ? AND task = ? AND action = ? "
            "AND version = ?",
            (one.device, one.task, one.action, one.version),
        )
        of_device = self._count(
            "SELECT COUNT(*) FROM signed WHERE device = ? AND signed_at > ?",
            (one.device, hour_ago),
        )
        of_task = self._count(
            "SELECT COALESCE(SUM(count), 0) FROM minutes WHERE task = ? AND minute >= ?",
            (one.task, hour_ago // 60),
        )
        return Used(of_round, of_device, of_task)

    def _count(self, query: str, values: tuple[str | int, ...]) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _prune(self, now: int) -> None:
        self._db.execute(
            "DELETE FROM signed WHERE trx_id IN "
            "(SELECT trx_id FROM signed WHERE signed_at < ? ORDER BY signed_at LIMIT ?)",
            (now - KEEP_SEC, PRUNE_ROWS_MAX),
        )
        self._db.execute("DELETE FROM minutes WHERE minute < ?", ((now - 2 * HOUR_SEC) // 60,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
