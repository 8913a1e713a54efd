"""Reads from IPFS that run beside the validator's work, so that no missing blob holds up another.

A few daemon threads read; what came is kept in a cache that is bounded in bytes; what did not come
is asked for again later, less and less often. Each CID is asked for with a bound, and the two
together name a read: what is too long for one bound says nothing about another.

A CID that nobody has keeps a thread for `PATIENCE_SEC[0]` at the first read, longer at the next,
and as long as the store allows from the third on. Nothing that comes steadily is cut short (see
`gradledger.store.Store.get`), and what came of a blob stays on the node for the next read. Reads
that were tried less often go first, and half of the threads do nothing but first reads; so K such
CIDs delay the other first reads by about K * PATIENCE_SEC[0] / threads, but a blob that takes
longer to come waits for its next reads behind K longer ones. Of reads tried equally often those go
first whose task has fewest waiting, so that one task's CIDs hardly delay another's.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BlobSource", "Failure", "Fetcher"]

THREADS_DEFAULT = 8
CACHE_BYTES_DEFAULT = 2**28
FAILURES_MAX = 65_536  # that are remembered
PATIENCE_SEC = (1.5, 6.0)  # of the first reads of a blob; then as much as the store has
RETRY_SEC_FIRST = 0.5
RETRY_SEC_MAX = 10.0

_Read = tuple[str, int]  # CID and bytes_max


class BlobSource(Protocol):
    """What a fetcher and a validator need of `gradledger.store.Store`."""

    def get(
        self, cid: str, *, bytes_max: int | None = None, patience_sec: float = math.inf
    ) -> bytes:
        """Return content; raises `StoreError`."""

    def put(self, data: bytes) -> str:
        """Add content, return its CID; raises `StoreError`."""


@dataclass(frozen=True)
class Failure:
    """The newest failed read of a CID with one bound.

    Parameters
    ----------
    error : Exception
        A `StoreError`, or what a broken store raised.
    attempts : int
        Reads that failed so far.
    retry_at : float
        By the monotonic clock.
    """

    error: Exception
    attempts: int
    retry_at: float


class Fetcher:
    """Reads blobs in the background.

    Parameters
    ----------
    store : BlobSource
        Verifies each read against its CID and bounds it in time; threads may share it.
    threads : int
        Reads at a time; half of them (rounded down) are for first reads alone.
    cache_bytes_max : int
        Bound of what is kept.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        store: BlobSource,
        *,
        threads: int = THREADS_DEFAULT,
        cache_bytes_max: int = CACHE_BYTES_DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._threads_max = threads
        self._cache_bytes_max = cache_bytes_max
        self._clock = clock
        self._changed = threading.Condition()
        # attempts, how many of its task waited before it, number, CID, bytes_max, task
        self._waiting: list[tuple[int, int, int, str, int, str]] = []
        self._waiting_of: Counter[str] = Counter()  # by task
        self._under_way: set[_Read] = set()  # waiting ones included
        self._cache: OrderedDict[_Read, bytes] = OrderedDict()
        self._cache_bytes = 0
        self._failures: OrderedDict[_Read, Failure] = OrderedDict()
        self._numbers = itertools.count()
        self._threads = 0
        self._closed = False

    def want(self, cid: str, bytes_max: int, task: str = "") -> None:
        """Ask for a blob, unless it is here, under way, or failed a moment ago.

        Parameters
        ----------
        cid : str
        bytes_max : int
            Bound of its length.
        task : str
            For which task; tasks take turns.
        """
        with self._changed:
            read = cid, bytes_max
            if self._closed or read in self._cache or read in self._under_way:
                return
            failure = self._failures.get(read)
            if failure is not None and self._clock() < failure.retry_at:
                return
            attempts = failure.attempts if failure else 0
            place = attempts, self._waiting_of[task], next(self._numbers)
            heapq.heappush(self._waiting, (*place, cid, bytes_max, task))
            self._waiting_of[task] += 1
            self._under_way.add(read)
            if self._threads < min(self._threads_max, len(self._under_way)):
                is_for_first = self._threads >= (self._threads_max + 1) // 2
                self._threads += 1
                threading.Thread(
                    target=self._work, args=(is_for_first,), name="gradledger-fetch", daemon=True
                ).start()
            self._changed.notify_all()

    def wait(self, wanted: Iterable[tuple[str, int]], timeout_sec: float) -> None:
        """Wait until none of these is under way, but not for longer than `timeout_sec`.

        Parameters
        ----------
        wanted : iterable of (str, int)
            CIDs and bounds, as they were asked for.
        timeout_sec : float
        """
        reads = set(wanted)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not reads & self._under_way, max(0.0, timeout_sec)
            )

    def blob(self, cid: str, bytes_max: int) -> bytes | None:
        """Return a blob that came, or None."""
        with self._changed:
            found = self._cache.get((cid, bytes_max))
            if found is not None:
                self._cache.move_to_end((cid, bytes_max))
            return found

    def failure(self, cid: str, bytes_max: int) -> Failure | None:
        """Return the newest failure of a blob that has not come since."""
        with self._changed:
            return self._failures.get((cid, bytes_max))

    def close(self) -> None:
        """Start no further read; the threads end by themselves."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self, is_for_first: bool) -> None:
        def is_due() -> bool:
            return bool(self._waiting) and not (is_for_first and self._waiting[0][0])

        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or is_due())
                if self._closed:
                    return
                attempts, _, _, cid, bytes_max, task = heapq.heappop(self._waiting)
                self._waiting_of[task] -= 1
                if not self._waiting_of[task]:
                    del self._waiting_of[task]
            self._read(cid, bytes_max, attempts)

    def _read(self, cid: str, bytes_max: int, attempts: int) -> None:
        """Read once; keep the blob, or the failure."""
        read, blob, error = (cid, bytes_max), b"", None
        patience_sec = PATIENCE_SEC[attempts] if attempts < len(PATIENCE_SEC) else math.inf
        try:
            blob = self._store.get(cid, bytes_max=bytes_max, patience_sec=patience_sec)
        except Exception as exc:  # a StoreError, or a fault of the caller's own store
            error = exc
        with self._changed:
            self._under_way.discard(read)
            if error is None:
                self._failures.pop(read, None)
                self._keep(read, blob)
            else:
                pause = min(RETRY_SEC_FIRST * 2 ** min(attempts, 16), RETRY_SEC_MAX)
                self._failures[read] = Failure(error, attempts + 1, self._clock() + pause)
                self._failures.move_to_end(read)
                while len(self._failures) > FAILURES_MAX:
                    self._failures.popitem(last=False)
            self._changed.notify_all()

    def _keep(self, read: _Read, blob: bytes) -> None:
        self._cache[read] = blob
        self._cache_bytes += len(blob)
        while self._cache_bytes > self._cache_bytes_max and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cache_bytes -= len(dropped)
