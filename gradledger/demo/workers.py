"""A bounded pool of processes that host the demo's devices.

Training and Paillier hold the interpreter's lock, so that devices in one process would not run
side by side. Each process is `python -m gradledger.demo.phone`; it reads one job (a line of JSON)
from its standard input and writes events (a line of JSON each) to its standard output. It ends by
itself when its input closes, so that it never outlives the demo.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradledger.errors import GradledgerError

LINE_BYTES_MAX = 1 << 20
EVENTS_MAX = 100_000
STOP_SEC = 5.0
LOG_TAIL_BYTES = 2_000
_MODULE = "gradledger.demo.phone"


class WorkerError(GradledgerError):
    """A worker process ended, or a device in it failed; the message says where its log lies."""


class WorkerPool:
    """Worker processes and the events they report.

    Parameters
    ----------
    count : int
        Number of processes.
    log_dir : Path
        Each process's standard error goes to a file of its own in here.

    Notes
    -----
    The processes start at once and load their libraries while the network comes up; `assign`
    then gives each its job.
    """

    def __init__(self, count: int, log_dir: Path) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue(EVENTS_MAX)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs = [log_dir / f"demo-worker-{index}.log" for index in range(count)]
        self._stopping = False
        # One thread per process: as many processes as cores run, and a sum is the same everywhere.
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        log_dir.mkdir(parents=True, exist_ok=True)
        try:
            for log in self._logs:
                # This run's alone; the log keeper cuts it, which only writers that append survive.
                log.unlink(missing_ok=True)
                with open(log, "ab") as file:
                    process = subprocess.Popen(
                        [sys.executable, "-m", _MODULE],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=file,
                        env={**os.environ, **single},
                        start_new_session=True,
                    )
                self._processes.append(process)
                index = len(self._processes) - 1
                threading.Thread(target=self._read, args=(index,), daemon=True).start()
        except BaseException:
            self.stop()
            raise

    @property
    def count(self) -> int:
        """Number of processes."""
        return len(self._processes)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def assign(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Give each process its job, one for one.

        Raises
        ------
        WorkerError
            A process has ended already.
        """
        for index, (process, job) in enumerate(zip(self._processes, jobs, strict=True)):
            try:
                self._write(process, job)
            except OSError as exc:
                raise WorkerError(self._obituary(index)) from exc

    def event(self, timeout_sec: float) -> dict[str, Any] | None:
        """Return the next event, or None where none came in time.

        Raises
        ------
        WorkerError
            A process ended, or reported an error that the demo does not expect.
        """
        try:
            event = self._events.get(timeout_sec > 0, timeout_sec or None)
        except queue.Empty:
            return None
        if event["event"] == "ended":
            raise WorkerError(self._obituary(event["worker"]))
        if event["event"] == "failed":
            raise WorkerError(
                f"{event.get('account', 'a worker')}: {event['message']} "
                f"(log: {self._logs[event['worker']]})"
            )
        return event

    def stop(self) -> None:
        """End every process: asked first, then told, then killed; at most about ten seconds."""
        self._stopping = True
        for process in self._processes:
            if process.stdin:
                try:
                    process.stdin.close()
                except OSError:
                    pass
        for end in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
            deadline = time.monotonic() + STOP_SEC
            for process in self._processes:
                if end is not None and process.poll() is None:
                    end(process)
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    pass

    def _write(self, process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()

    def _read(self, index: int) -> None:
        stream = self._processes[index].stdout
        assert stream is not None
        with stream:
            while line := stream.readline(LINE_BYTES_MAX):
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict) or "event" not in event:
                    event = {"event": "failed", "message": f"not an event: {line[:80]!r}"}
                self._events.put({**event, "worker": index})
        if not self._stopping:
            self._events.put({"event": "ended", "worker": index})

    def _obituary(self, index: int) -> str:
        log = self._logs[index]
        tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        last = tail.splitlines()[-1] if tail else "it wrote nothing"
        return f"worker {index} ended before the demo did: {last} (log: {log})"
