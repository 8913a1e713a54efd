"""What the tests let workers do: functions that a process can import by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

NAP_SEC = 60.0


def square(number: int) -> int:
    """Work that comes to something."""
    return number * number


def fail(text: str) -> None:
    """Work that its own fault stops."""
    raise ValueError(text)


def nap(note: Path) -> str:
    """Say who works; sleep at the first call, far longer than any test waits."""
    if not note.exists():
        note.with_suffix(".new").write_text(str(os.getpid()))
        note.with_suffix(".new").rename(note)
        time.sleep(NAP_SEC)
    return "rested"


def die(number: int) -> int:
    """Work that kills whoever does it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def napper(note: Path, *, timeout_sec: float = 20.0) -> int:
    """Wait until a worker sleeps; return its process's id."""
    until = time.monotonic() + timeout_sec
    while not note.exists():
        assert time.monotonic() < until, "no worker began"
        time.sleep(0.02)
    return int(note.read_text())


def is_gone(pid: int, *, timeout_sec: float = 10.0) -> bool:
    """Whether a process ends within the bound; a zombie has ended."""
    until = time.monotonic() + timeout_sec
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
