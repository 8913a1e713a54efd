"""A bench that is told to stop takes its networks away before it ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["end_cleanly", "run_child"]


def end_cleanly() -> None:
    """Let SIGTERM unwind as Ctrl-C does, so that what is open is closed."""
    signal.signal(signal.SIGTERM, _stop)


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process to its end; whatever ends this one ends that one too, cleanly.

    Returns
    -------
    int
        Its exit code.
    """
    end_cleanly()
    child = subprocess.Popen(list(command), env=dict(environment))
    try:
        return child.wait()
    finally:
        child.terminate()  # nothing happens if it has ended
        child.wait()


def _stop(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not stop the tidying up
    raise SystemExit(128 + number)
