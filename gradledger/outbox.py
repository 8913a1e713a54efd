"""What a party still has to bring about on the chain, written down before it is begun.

A node that accepts a transaction promises nothing, and a process may end at any moment. So each
step is in a file first: the entry with all that it needs, then each signed transaction before it is
sent. The same bytes are sent again and again until they are in an irreversible block; a new
transaction is signed only once the old one is provably in none, since it has expired and the chain
is irreversible beyond that. Thus whatever is killed, and whenever, an entry happens once, or is
abandoned with a reason that can be read.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from gradledger.chain.client import ChainClient, Signed
from gradledger.chain.transaction import Action, Transaction
from gradledger.errors import (
    ChainError,
    ConfigError,
    ContractError,
    IrreversibilityTimeout,
    OutboxError,
    PayerRefusedError,
    StoreError,
    TransactionExpiredError,
    error_from_check,
)
from gradledger.keepsafe import connect, make_private

__all__ = ["Delivery", "Entry", "Outbox", "State"]

BYTES_MAX = 2**30  # of the file
PENDING_MAX = 64
# Entries that are over, with nothing kept: older ones are dropped.
KEPT_MAX = 1000
KEEP_SEC = 90 * 24 * 3600
RESEND_SEC = 3.0
POLL_SEC = 0.2
TEXT_MAX = 1000

# Refusals that another state of the chain may take back before the time is up.
_MAY_PASS = (
    "budget_short",
    "future_version",
    "lots_missing",
    "unknown_task",
    "not_a_member",
    "not_joined",
    "no_set",
)

_FORMAT = 1
_PAGE_BYTES = 4096
_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "format INTEGER NOT NULL, holder TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "name TEXT NOT NULL, state INTEGER NOT NULL, made_at INTEGER NOT NULL, "
    "give_up_at INTEGER NOT NULL, actions BLOB NOT NULL, details TEXT NOT NULL, "
    "blob BLOB NOT NULL, signed TEXT, is_whole INTEGER NOT NULL DEFAULT 0, "
    "refusal TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', "
    "block INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS kept (entry INTEGER NOT NULL, name TEXT NOT NULL, "
    "data BLOB NOT NULL, PRIMARY KEY (entry, name))",
)
_COLUMNS = (
    "id, name, state, made_at, give_up_at, actions, details, signed, is_whole, refusal, reason, "
    "block"
)


class State(IntEnum):
    """How an entry stands."""

    PENDING = 0  # not known to have happened
    DONE = 1  # in an irreversible block
    ABANDONED = 2  # it can never happen any more


@dataclass(frozen=True)
class Entry:
    """Something to bring about on the chain.

    Attributes
    ----------
    number : int
    name : str
        What it is, in its holder's words.
    state : State
    made_at : int
        By this machine's clock; it decides nothing but when an entry that is over is dropped.
    give_up_at : int
        On the chain's clock, seconds since 1970: no transaction is signed after it.
    actions : tuple of Action
        What is to happen, in one transaction.
    details : dict
        What the holder needs to go on; JSON.
    signed : Signed or None
        The newest transaction.
    is_whole : bool
        Whether all its signatures are there.
    refusal : str
        Why the chain, or the payer, refused it when it was last sent; empty when it did not.
    reason : str
        Why it was abandoned.
    block : int
        The irreversible block that has it.
    """

    number: int
    name: str
    state: State
    made_at: int
    give_up_at: int
    actions: tuple[Action, ...]
    details: dict[str, Any] = field(repr=False)
    signed: Signed | None = field(repr=False)
    is_whole: bool
    refusal: str
    reason: str
    block: int


class Outbox:
    """The entries of one party, in a file that only its account may read, or in memory.

    Parameters
    ----------
    path : path or None
        A SQLite file on a local file system, in a folder of mode 0700; made where it is missing,
        with mode 0600. None: nothing outlives the process.
    holder : str
        Whose outbox it is; the file names it.
    bytes_max : int
        Bound of the file.

    Raises
    ------
    OutboxError
        Another process has it open, or it cannot be read or written.
    ConfigError
        Others may read it, or it is another's.

    Notes
    -----
    Threads may share an outbox; processes may not, and the second one is refused. It is open until
    `close`, or until the process ends, however that comes.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, *, holder: str, bytes_max: int = BYTES_MAX
    ) -> None:
        self.path = None if path is None else Path(path).absolute()
        self.holder = holder
        self._lock = threading.RLock()
        try:
            if self.path is None:
                self._db = sqlite3.connect(
                    ":memory:", isolation_level=None, check_same_thread=False
                )
            else:
                make_private(self.path, "outbox files")
                self._db = connect(self.path, timeout_sec=0, check_same_thread=False)
        except sqlite3.Error as exc:
            raise self._error(exc) from exc
        try:
            self._open(bytes_max)
        except BaseException:
            self._db.close()
            raise

    def __repr__(self) -> str:
        return f"Outbox({self._place!r})"

    @property
    def _place(self) -> str:
        return "memory" if self.path is None else str(self.path)

    def _open(self, bytes_max: int) -> None:
        with self._transaction(first=True):
            for table in _TABLES:
                self._db.execute(table)
            self._db.execute("INSERT OR IGNORE INTO about VALUES (1, ?, ?)", (_FORMAT, self.holder))
            about = self._db.execute("SELECT format, holder FROM about").fetchone()
        if about != (_FORMAT, self.holder):
            raise ConfigError(
                f"{self._place}: expected an outbox of {self.holder} in format {_FORMAT}, "
                f"got one of {about[1]} in format {about[0]}"
            )
        self._db.execute(f"PRAGMA max_page_count = {max(1, bytes_max // _PAGE_BYTES)}")
        # Under this lock a journal would keep its bytes, and with them secrets that were released.
        self._db.execute("PRAGMA journal_mode = TRUNCATE")

    def close(self) -> None:
        """Let another process have it. What is pending stays."""
        with self._lock:
            self._db.close()

    def __del__(self) -> None:
        db = getattr(self, "_db", None)  # there is none where `__init__` failed
        if db is not None:
            db.close()

    # ---- entries ----------------------------------------------------------------------------

    def add(
        self,
        name: str,
        actions: Sequence[Action],
        *,
        give_up_at: int,
        details: Mapping[str, Any],
        blob: bytes = b"",
        keep: Mapping[str, bytes] | None = None,
    ) -> Entry:
        """Write an entry down, durably, before anything of it is done.

        Parameters
        ----------
        name, actions, give_up_at, details
            As `Entry` has them.
        blob : bytes
            What the entry itself needs; dropped when it is over.
        keep : mapping of str to bytes, optional
            What may be needed once it has happened, secrets perhaps; dropped by `release`, and
            when the entry is abandoned.

        Raises
        ------
        OutboxError
            It cannot be written (a full disk, too many pending entries): nothing was begun.
        """
        packed = Transaction(0, 0, 0, tuple(actions)).pack()
        with self._transaction():
            (pending,) = self._db.execute(
                "SELECT count(*) FROM entries WHERE state = ?", (State.PENDING,)
            ).fetchone()
            if pending >= PENDING_MAX:
                raise OutboxError(
                    f"{self._place}: expected at most {PENDING_MAX} pending entries: bring the "
                    "node back, and let them be sent"
                )
            made_at = int(time.time())
            number = self._db.execute(
                "INSERT INTO entries (name, state, made_at, give_up_at, actions, details, blob) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, State.PENDING, made_at, give_up_at, packed, json.dumps(details), blob),
            ).lastrowid
            for what, data in (keep or {}).items():
                self._db.execute("INSERT INTO kept VALUES (?, ?, ?)", (number, what, data))
            self._prune(made_at)
        assert number is not None
        return self.entry(number)

    def entry(self, number: int) -> Entry:
        """Return an entry as it stands. Raises OutboxError, also where there is none."""
        found = self._entries("id = ?", number)
        if not found:
            raise OutboxError(f"{self._place}: expected an entry with number {number}, got none")
        return found[0]

    def entries(self, state: State | None = None) -> list[Entry]:
        """Return all entries, or those of one state, the oldest first. Raises OutboxError."""
        return self._entries("1") if state is None else self._entries("state = ?", state)

    def blob(self, entry: Entry) -> bytes:
        """Return the bytes kept with a pending entry. Raises OutboxError."""
        with self._reading():
            row = self._db.execute(
                "SELECT blob FROM entries WHERE id = ?", (entry.number,)
            ).fetchone()
        return bytes(row[0])

    def kept(self, entry: Entry, name: str) -> bytes:
        """Return what was kept under a name; nothing when it was released. Raises OutboxError."""
        with self._reading():
            row = self._db.execute(
                "SELECT data FROM kept WHERE entry = ? AND name = ?", (entry.number, name)
            ).fetchone()
        return b"" if row is None else bytes(row[0])

    def keeping(self) -> list[Entry]:
        """Return the entries with which something is kept, the oldest first. Raises OutboxError."""
        return self._entries("id IN (SELECT entry FROM kept)")

    def release(self, entry: Entry) -> None:
        """Drop what was kept with an entry, and overwrite it in the file. Raises OutboxError."""
        with self._transaction():
            self._db.execute("DELETE FROM kept WHERE entry = ?", (entry.number,))

    def sign(self, entry: Entry, signed: Signed, *, is_whole: bool) -> Entry:
        """Write down a transaction before it is sent. Raises OutboxError."""
        document = {
            "trx_id": signed.trx_id,
            "first_block": signed.first_block,
            "expiration": signed.expiration,
            "body": signed.body,
        }
        return self._update(entry, "signed = ?, is_whole = ?", json.dumps(document), int(is_whole))

    def refuse(self, entry: Entry, refusal: str) -> Entry:
        """Write down why it was refused, or "" that it was not. Raises OutboxError."""
        if refusal == entry.refusal:
            return entry
        return self._update(entry, "refusal = ?", refusal[:TEXT_MAX])

    def finish(self, entry: Entry, block: int) -> Entry:
        """Write down that it is in an irreversible block. Raises OutboxError."""
        return self._update(entry, "state = ?, block = ?, blob = x''", State.DONE, block)

    def abandon(self, entry: Entry, reason: str) -> Entry:
        """Write down that it can never happen, and why. Raises OutboxError."""
        self.release(entry)
        return self._update(
            entry, "state = ?, reason = ?, blob = x''", State.ABANDONED, reason[:TEXT_MAX]
        )

    # ---- the file ---------------------------------------------------------------------------

    def _update(self, entry: Entry, changes: str, *values: Any) -> Entry:
        with self._transaction():
            self._db.execute(f"UPDATE entries SET {changes} WHERE id = ?", (*values, entry.number))
        return self.entry(entry.number)

    def _entries(self, where: str, *values: Any) -> list[Entry]:
        with self._reading():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE {where} ORDER BY id", values
            ).fetchall()
        try:
            return [_entry(row) for row in rows]
        except (ValueError, TypeError, KeyError) as exc:
            raise OutboxError(f"{self._place}: an entry is damaged: {exc}") from exc

    def _prune(self, now: int) -> None:
        """Drop what is over and old, unless something is kept with it: a clock may be wrong."""
        self._db.execute(
            "DELETE FROM entries WHERE state != ? AND id NOT IN (SELECT entry FROM kept) AND "
            "(made_at < ? OR id NOT IN (SELECT id FROM entries ORDER BY id DESC LIMIT ?))",
            (State.PENDING, now - KEEP_SEC, KEPT_MAX),
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as exc:
                raise self._error(exc) from exc

    @contextmanager
    def _transaction(self, *, first: bool = False) -> Iterator[None]:
        with self._reading():
            if first:  # the lock is kept until `close`
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("BEGIN EXCLUSIVE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _error(self, exc: sqlite3.Error) -> OutboxError:
        text = str(exc)
        if "locked" in text:
            return OutboxError(
                f"{self._place}: another process uses this outbox; wait for it or stop it"
            )
        return OutboxError(
            f"{self._place}: cannot be used ({text}); what is not written down is not sent: free "
            "space on the disk, then try again"
        )


def _entry(row: Sequence[Any]) -> Entry:
    number, name, state, made_at, give_up_at, packed, details, signed, whole, *rest = row
    return Entry(
        number,
        name,
        State(state),
        made_at,
        give_up_at,
        Transaction.unpack(packed).actions,
        dict(json.loads(details)),
        None if signed is None else Signed(**json.loads(signed)),
        bool(whole),
        *rest,
    )


class Delivery:
    """One entry on its way, in this process. Threads may share it.

    Parameters
    ----------
    outbox : Outbox
    entry : Entry
    chain : ChainClient
    sign : callable
        `sign(actions)` returns a transaction, signed by the party.
    cosign : callable, optional
        `cosign(signed)` returns it with the signatures of others.
    prepare : callable, optional
        Called before the first sending by this process; may be done twice without harm.
    happened : callable, optional
        `happened()` says whether the chain's tables show the entry: a refusal means nothing then.
    hindered : callable, optional
        Called before each sending: `hindered()` says, as a refusal of the chain would, what the
        entry rests on and the chain's tables do not show; "" for nothing.
    """

    def __init__(
        self,
        outbox: Outbox,
        entry: Entry,
        chain: ChainClient,
        *,
        sign: Callable[[Sequence[Action]], Signed],
        cosign: Callable[[Signed], Signed] | None = None,
        prepare: Callable[[], object] | None = None,
        happened: Callable[[], bool] | None = None,
        hindered: Callable[[], str] | None = None,
    ) -> None:
        self.entry = entry
        self._outbox = outbox
        self._chain = chain
        self._sign = sign
        self._cosign = cosign
        self._prepare = prepare
        self._happened = happened
        self._hindered = hindered
        self._sent_at = float("-inf")
        self._lock = threading.RLock()

    def send(self) -> None:
        """Send it, unless it is over.

        Raises
        ------
        ContractError, PayerRefusedError
            Refused, and not by reason of its having happened. `step` goes on all the same, until
            it is certain.
        NodeError, StoreError
            Node, payer or IPFS do not answer.
        OutboxError
            It could not be written down, and was not sent.
        """
        with self._lock:
            if self.entry.state is not State.PENDING:
                return
            if self.entry.signed is None:
                late = self._chain.get_info().head_time - self.entry.give_up_at
                if late > 0:
                    why = f"not in time: it was to be signed {late} s ago"
                    self.entry = self._outbox.abandon(self.entry, self.entry.refusal or why)
                    return
            self._sent_at = time.monotonic()
            missing = self._hindered() if self._hindered is not None else ""
            if missing:
                self.entry = self._outbox.refuse(self.entry, missing)
                raise error_from_check(missing)
            if self._prepare is not None:
                self._prepare()
                self._prepare = None
            try:
                self._chain.send(self._whole().body)
            except TransactionExpiredError:
                return  # `step` finds out whether it is in a block
            except (ContractError, PayerRefusedError) as error:
                if self._happened is not None and self._happened():
                    return
                self.entry = self._outbox.refuse(self.entry, str(error))
                raise
            self.entry = self._outbox.refuse(self.entry, "")

    def _whole(self) -> Signed:
        """Return the transaction to send, written down with all its signatures."""
        signed = self.entry.signed
        if signed is None:
            signed = self._sign(self.entry.actions)
            self.entry = self._outbox.sign(self.entry, signed, is_whole=self._cosign is None)
        if not self.entry.is_whole and self._cosign is not None:
            signed = self._cosign(signed)
            self.entry = self._outbox.sign(self.entry, signed, is_whole=True)
        return signed

    def step(self) -> bool:
        """Look where it stands and do what is next, without waiting; return whether it is over.

        Raises
        ------
        NodeError, StoreError, OutboxError
            As for `send`. A refusal is kept in `entry.refusal` instead.
        """
        with self._lock:
            signed = self.entry.signed
            if self.entry.state is State.PENDING and signed is not None:
                try:
                    block = self._chain.find_irreversible(signed)
                except TransactionExpiredError as error:
                    self._expired(str(error))
                    signed = self.entry.signed
                else:
                    if block is not None:
                        self.entry = self._outbox.finish(self.entry, block)
            if self.entry.state is not State.PENDING:
                return True
            if signed is None or time.monotonic() - self._sent_at >= RESEND_SEC:
                try:
                    self.send()
                except (ContractError, PayerRefusedError):
                    pass  # kept in `refusal`
            return False

    def give_up(self) -> None:
        """Abandon it if it was refused and can never happen any more; send nothing.

        For a holder that decides itself, upon a refusal, whether to try again.

        Raises
        ------
        NodeError, OutboxError
            As for `send`.
        """
        with self._lock:
            signed = self.entry.signed
            if self.entry.state is not State.PENDING or not self.entry.refusal:
                return
            try:
                block = None if signed is None else self._chain.find_irreversible(signed)
            except TransactionExpiredError:
                signed = block = None
            if block is not None:
                self.entry = self._outbox.finish(self.entry, block)
            elif signed is None:
                self.entry = self._outbox.abandon(self.entry, self.entry.refusal)

    def _expired(self, why: str) -> None:
        """The transaction can never happen: sign anew, or give the entry up."""
        refusal = self.entry.refusal
        error = error_from_check(refusal)
        is_final = type(error) is not ContractError and error.code not in _MAY_PASS
        is_late = self._chain.get_info().head_time > self.entry.give_up_at
        if (refusal and is_final) or is_late:
            self.entry = self._outbox.abandon(self.entry, refusal or f"not in time: {why}")
        else:
            signed = self._sign(self.entry.actions)
            self.entry = self._outbox.sign(self.entry, signed, is_whole=self._cosign is None)
            self._sent_at = float("-inf")

    def wait(self, timeout_sec: float = 60.0) -> int:
        """Wait until it is in an irreversible block; return the block's number.

        Raises
        ------
        ContractError
            It was abandoned; the message is the reason.
        IrreversibilityTimeout
            Not known within `timeout_sec`; wait again.
        OutboxError
            As for `send`.
        """
        end = time.monotonic() + timeout_sec
        while True:
            fault = ""
            try:
                if self.step():
                    break
            except (ChainError, StoreError) as error:
                fault = f"; {error}"
            if time.monotonic() >= end:
                said = f": refused so far: {self.entry.refusal}" if self.entry.refusal else ""
                raise IrreversibilityTimeout(
                    f"{self.entry.name} is not irreversible after {timeout_sec:g} s{said}{fault}"
                )
            time.sleep(min(POLL_SEC, max(0.0, end - time.monotonic())))
        if self.entry.state is State.ABANDONED:
            raise error_from_check(self.entry.reason)
        return self.entry.block
