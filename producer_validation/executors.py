"""Where a validator's heavy work runs: here, in processes of its own, or on a Dask cluster.

What goes to an executor are pure functions of this package and bytes, numbers and arrays: never a
secret, and no connection to chain or IPFS. It travels pickled, among machines that trust each
other; what comes from outside is parsed by `gradledger.envelope` and never unpickled. A worker sees
what it is given, and what it answers is believed: the workers are part of the validator.

WorkersError and StoppedError stand below `gradledger.errors.GradledgerError`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import gradledger
from gradledger.errors import ConfigError, GradledgerError
from gradledger.logs import say

__all__ = [
    "DaskWorkers",
    "InlineExecutor",
    "Job",
    "ProcessWorkers",
    "StoppedError",
    "Work",
    "WorkersError",
]

PROCESSES_MAX = 256
WIDTH_DEFAULT = 4  # of an executor that does not say how many calls it runs at a time
TRIES_MAX = 2  # of a call whose worker was lost, within one step
RESULT_SEC = 60.0  # without any result; a call takes a second or so
STOP_POLL_SEC = 0.1
DASK_SEC = 10.0  # to reach a scheduler, and for it to answer a question

T = TypeVar("T")

log = logging.getLogger("gradledger.validator")


class WorkersError(GradledgerError):
    """The executor did not do it: nothing is known about the work; a later step tries again."""


class StoppedError(GradledgerError):
    """The validator is to stop: leave the work."""


class _TooLongError(WorkersError):
    """Nothing came within the bound."""


# ---- executors ----------------------------------------------------------------------------------


class InlineExecutor(Executor):
    """Does the work where it is asked for."""

    width = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call now; the future is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class ProcessWorkers(Executor):
    """A pool of processes that is made anew when one of them is lost.

    Parameters
    ----------
    processes : int, 1..256

    Raises
    ------
    ConfigError
        The number is out of bounds.

    Notes
    -----
    The processes are spawned, not forked, so that none begins with a copy of the validator's memory
    and its secrets. They end when this process does, however it ends.
    """

    def __init__(self, processes: int) -> None:
        if not 1 <= processes <= PROCESSES_MAX:
            raise ConfigError(f"processes: expected 1..{PROCESSES_MAX}, got {processes}")
        self.width = processes
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._leash: tuple[Connection, Connection] | None = None
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call in a process; raises RuntimeError after `shutdown`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("these workers are shut down")
            try:
                inner = self._started().submit(fn, *args, **kwargs)
            except BrokenExecutor:
                self._drop()
                inner = self._started().submit(fn, *args, **kwargs)
        # A future of the pool must not be cancelled: until Python 3.12 a pool that breaks later
        # does not expect it, and leaves the others without an answer.
        outer: Future[Any] = Future()
        inner.add_done_callback(lambda done: _hand_on(done, outer))
        return outer

    def renew(self) -> None:
        """End the processes, whatever they are at; the next call starts others."""
        with self._lock:
            self._drop()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: at once, or (`wait`) when they have done what they are at."""
        with self._lock:
            self._closed = True
            if wait and self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=cancel_futures)
            self._drop()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")
            self._leash = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.width, context, initializer=_begin, initargs=(self._leash[0],)
            )
        return self._pool

    def _drop(self) -> None:
        pool, leash, self._pool, self._leash = self._pool, self._leash, None, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        for end in leash or ():
            end.close()


def _begin(leash: Connection) -> None:
    """Make this process a worker: it leaves when the other end of the leash is let go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the validator's to see

    def hold() -> None:
        leash.poll(None)
        os._exit(0)

    threading.Thread(target=hold, name="gradledger-leash", daemon=True).start()


def _hand_on(inner: Future[Any], outer: Future[Any]) -> None:
    """Give one future the outcome of another, unless nobody waits for it any more."""
    if not outer.set_running_or_notify_cancel():
        return
    if inner.cancelled():
        outer.set_exception(BrokenExecutor("the processes were ended"))
        return
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


class DaskWorkers(Executor):
    """The workers of a Dask cluster.

    Parameters
    ----------
    address : str
        Of the scheduler: ``tls://host:port``, with the certificates that Dask's own configuration
        names; without TLS on this machine alone, such as ``tcp://127.0.0.1:8786``.

    Raises
    ------
    ConfigError
        `distributed` is not installed; the address cannot be used; nobody answers there; a worker
        has another gradledger, or none.

    Notes
    -----
    Whoever can talk to a scheduler can run code on its workers, and they on this machine. Dask
    gives a call whose worker is lost to another one by itself.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked_address(address)
        self._lock = threading.Lock()
        self._closed = False
        self._client = self._connected()
        self._executor: Executor = self._client.get_executor(pure=False)

    @property
    def width(self) -> int:
        """Calls that the cluster runs at a time, as far as it says."""
        try:
            threads = _within(DASK_SEC, self._client.nthreads)
        except Exception:  # whatever it is: the next call will meet it too, and say so
            return WIDTH_DEFAULT
        return max(1, sum(threads.values()))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call on a worker. Raises WorkersError where the scheduler is away."""
        with self._lock:
            if self._closed:
                raise RuntimeError("these workers are shut down")
            if self._client.status == "closed":  # the scheduler went away; it may be back
                try:
                    self._client = self._connected()
                except ConfigError as error:
                    raise WorkersError(str(error)) from error
                self._executor = self._client.get_executor(pure=False)
            client = self._client
            if client.status != "running":
                raise WorkersError(f"Dask: the scheduler at {self.address} went away")
            inner = self._executor.submit(fn, *args, **kwargs)
        outer: Future[Any] = Future()
        inner.add_done_callback(lambda done: _hand_on(done, outer))
        # A strong reference back would be a cycle, and keep results until it is collected.
        under_way = weakref.ref(inner)

        def give_up(asked: Future[Any]) -> None:
            left = under_way()
            if left is not None and asked.cancelled() and client.status == "running":
                left.cancel()

        outer.add_done_callback(give_up)
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which goes on; calls under way are given up unless `wait`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._executor.shutdown(wait=wait and not cancel_futures)
                self._client.close(timeout=DASK_SEC)

    def _connected(self) -> Any:
        try:
            import dask
            from distributed import Client, Security
        except ImportError as error:
            raise ConfigError(
                f"Dask: {error}; expected the package distributed: pip install 'gradledger[dask]'"
            ) from error
        if self.address.startswith("tls:"):
            arguments = Security().get_connection_args("client")
            if arguments.get("ssl_context") is None:
                raise ConfigError(
                    "Dask: expected CA, certificate and key for TLS in Dask's configuration: "
                    "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__CLIENT__CERT, ..__CLIENT__KEY"
                )
        # Uploads and groups of them are bounded by this package; Dask need not warn of them.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GiB"})
        try:
            client = Client(self.address, timeout=DASK_SEC, set_as_default=False)
        except Exception as error:
            raise ConfigError(f"Dask: no scheduler answers at {self.address}: {error}") from error
        try:
            found = _within(DASK_SEC, client.run, _version)
        except Exception as error:
            client.close(timeout=DASK_SEC)
            raise ConfigError(
                f"Dask: expected gradledger on the workers of {self.address}: "
                f"{type(error).__name__} {error}"
            ) from error
        wrong = sorted(set(found.values()) - {gradledger.__version__})
        if wrong:
            client.close(timeout=DASK_SEC)
            raise ConfigError(
                f"Dask: expected gradledger {gradledger.__version__} on the workers of "
                f"{self.address}, got {', '.join(wrong)}"
            )
        return client


def _within(seconds: float, fn: Callable[..., T], *args: Any) -> T:
    """Call what knows no bound in time; raises TimeoutError."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(fn(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="gradledger-dask", daemon=True).start()
    return future.result(seconds)


def _version() -> str:
    """Return which gradledger a worker has."""
    return gradledger.__version__


def _checked_address(text: str) -> str:
    """Refuse a scheduler in the clear on another machine."""
    address = text if "://" in text else f"tcp://{text}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or not port or parts.scheme not in ("tcp", "tls"):
        raise ConfigError(f"Dask: expected tcp://HOST:PORT or tls://HOST:PORT, got {text!r}")
    if parts.scheme == "tcp" and not _is_loopback(host):
        raise ConfigError(
            f"Dask: expected tls://... for a scheduler on another machine, got {text!r}: who can "
            "talk to it can run code on its workers"
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- bounded calls ------------------------------------------------------------------------------


@dataclass
class Job(Generic[T]):
    """A call that was handed to an executor. Made by `Work.submit`."""

    fn: Callable[..., T]
    args: tuple[Any, ...]
    future: Future[T]
    tries: int = 1


class Work:
    """Calls on an executor: bounded in time, tried again where a worker was lost, given up on stop.

    Parameters
    ----------
    executor : Executor
        Any; one with an attribute `width` says by it how many calls it runs at a time, one with a
        method `renew` is told by it to give up what it is at.
    is_stopped : callable
        Whether the caller is to stop.
    result_sec : float
        How long to wait without any result.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        result_sec: float = RESULT_SEC,
    ) -> None:
        self._executor = executor
        self._is_stopped = is_stopped
        self._result_sec = result_sec

    @property
    def width(self) -> int:
        """Calls that run at a time."""
        return max(1, int(getattr(self._executor, "width", WIDTH_DEFAULT)))

    def submit(self, fn: Callable[..., T], *args: Any) -> Job[T]:
        """Hand a pure function with arguments that hold no secret to the executor.

        Raises
        ------
        WorkersError
            The executor takes nothing now.
        """
        try:
            return Job(fn, args, self._executor.submit(fn, *args))
        except Exception as error:
            raise _as_ours(error) from error

    def result(self, job: Job[T]) -> T:
        """Wait for a call.

        Raises
        ------
        WorkersError
            Its worker was lost more than once, or nothing came within the bound.
        StoppedError
            The caller is to stop meanwhile.
        Exception
            Whatever the function raised.

        Notes
        -----
        A pool fails as a whole when one of its processes dies. What was lost with it is called
        again one by one, as each result is asked for, so that a call that kills its worker is alone
        with it the second time, and no other is lost by it twice.
        """
        while True:
            self._wait(job)
            try:
                return job.future.result()
            except Exception as error:
                if not _is_lost(error):
                    raise
                if job.tries == TRIES_MAX:
                    raise _as_ours(error) from error
                what, call = type(error).__name__, job.fn.__name__
                say(log, logging.WARNING, "worker_lost", error=what, call=call)
            again = self.submit(job.fn, *job.args)
            job.future, job.tries = again.future, job.tries + 1

    def results(self, jobs: Sequence[Job[T]]) -> Iterator[tuple[int, T | Exception]]:
        """Wait for several calls; yield place and outcome of each that came to one.

        A call that takes too long yields its WorkersError and costs no other its turn: those that
        have not come to anything by then are left out, for a later step, which will not wait for
        that one first.

        Raises
        ------
        StoppedError
            The caller is to stop meanwhile.
        """
        try:
            for place, job in enumerate(jobs):
                try:
                    yield place, self.result(job)
                except StoppedError:
                    raise
                except _TooLongError as error:
                    yield place, error
                    for later, other in enumerate(jobs[place + 1 :], place + 1):
                        if _has_come(other.future):
                            yield later, other.future.result()
                    return
                except Exception as error:
                    yield place, error
        finally:
            self.cancel(jobs)

    def cancel(self, jobs: Iterable[Job[Any]]) -> None:
        """Give up calls whose results nobody wants any more."""
        for job in jobs:
            job.future.cancel()

    def _wait(self, job: Job[Any]) -> None:
        until = time.monotonic() + self._result_sec
        while not job.future.done():
            wait([job.future], STOP_POLL_SEC)
            if self._is_stopped():
                raise StoppedError("the validator is to stop")
            if time.monotonic() >= until and not job.future.done():
                job.future.cancel()
                renew = getattr(self._executor, "renew", None)
                if renew is not None:
                    renew()
                raise _TooLongError(f"expected a result within {self._result_sec:g} s, got none")


def _has_come(future: Future[Any]) -> bool:
    """Whether a call has a result that its function gave."""
    return future.done() and not future.cancelled() and future.exception() is None


def _is_lost(error: Exception) -> bool:
    """Whether it says that a worker was lost, and nothing about the work.

    The functions that go to an executor neither read files nor talk to anybody, so that an OSError
    is the executor's own.
    """
    if isinstance(error, (BrokenExecutor, CancelledError, OSError, EOFError)):
        return True
    return type(error).__module__.partition(".")[0] == "distributed"


def _as_ours(error: Exception) -> WorkersError:
    if isinstance(error, WorkersError):
        return error
    return WorkersError(f"the executor failed: {type(error).__name__}: {error}")
