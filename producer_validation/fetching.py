"""Reads from IPFS that run beside the validator's work, so that no missing blob holds up another.

A few daemon threads read; what came is kept in a cache that is bounded in bytes; what did not come
is asked for again later, less and less often. Reads that were tried less often go first, so that a
device that records CIDs nobody has cannot keep others' blobs waiting for long.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BlobSource", "Failure", "Fetcher"]

THREADS_DEFAULT = 4
CACHE_BYTES_DEFAULT = 2**28
FAILURES_MAX = 65_536  # CIDs whose failures are remembered
RETRY_SEC_FIRST = 0.5
RETRY_SEC_MAX = 10.0


class BlobSource(Protocol):
    """What a fetcher and a validator need of `gradledger.store.Store`."""

    def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
        """Return content; raises `StoreError`."""

    def put(self, data: bytes) -> str:
        """Add content, return its CID; raises `StoreError`."""


@dataclass(frozen=True)
class Failure:
    """The newest failed read of a CID.

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
        Reads at a time.
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
        self._waiting: list[tuple[int, int, str, int]] = []  # attempts, number, cid, bytes_max
        self._under_way: set[str] = set()  # waiting ones included
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cache_bytes = 0
        self._failures: OrderedDict[str, Failure] = OrderedDict()
        self._numbers = itertools.count()
        self._threads = 0
        self._closed = False

    def want(self, cid: str, bytes_max: int) -> None:
        """Ask for a blob, unless it is here, under way, or failed a moment ago."""
        with self._changed:
            if self._closed or cid in self._cache or cid in self._under_way:
                return
            failure = self._failures.get(cid)
            if failure is not None and self._clock() < failure.retry_at:
                return
            attempts = failure.attempts if failure else 0
            heapq.heappush(self._waiting, (attempts, next(self._numbers), cid, bytes_max))
            self._under_way.add(cid)
            if self._threads < min(self._threads_max, len(self._under_way)):
                self._threads += 1
                threading.Thread(target=self._work, name="gradledger-fetch", daemon=True).start()
            self._changed.notify_all()

    def wait(self, cids: Iterable[str], timeout_sec: float) -> None:
        """Wait until none of these is under way, but not for longer than `timeout_sec`."""
        wanted = set(cids)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not wanted & self._under_way, max(0.0, timeout_sec)
            )

    def blob(self, cid: str) -> bytes | None:
        """Return a blob that came, or None."""
        with self._changed:
            found = self._cache.get(cid)
            if found is not None:
                self._cache.move_to_end(cid)
            return found

    def failure(self, cid: str) -> Failure | None:
        """Return the newest failure of a blob that has not come since."""
        with self._changed:
            return self._failures.get(cid)

    def close(self) -> None:
        """Start no further read; the threads end by themselves."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                attempts, _, cid, bytes_max = heapq.heappop(self._waiting)
            blob, error = b"", None
            try:
                blob = self._store.get(cid, bytes_max=bytes_max)
            except Exception as exc:  # a StoreError, or a fault of the caller's own store
                error = exc
            with self._changed:
                self._under_way.discard(cid)
                if error is None:
                    self._failures.pop(cid, None)
                    self._keep(cid, blob)
                else:
                    pause = min(RETRY_SEC_FIRST * 2 ** min(attempts, 16), RETRY_SEC_MAX)
                    self._failures[cid] = Failure(error, attempts + 1, self._clock() + pause)
                    self._failures.move_to_end(cid)
                    while len(self._failures) > FAILURES_MAX:
                        self._failures.popitem(last=False)
                self._changed.notify_all()

    def _keep(self, cid: str, blob: bytes) -> None:
        self._cache[cid] = blob
        self._cache_bytes += len(blob)
        while self._cache_bytes > self._cache_bytes_max and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cache_bytes -= len(dropped)
