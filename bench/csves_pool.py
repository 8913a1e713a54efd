"""Processes that compute on one thread each, and a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


def workers(count: int, begin: Callable[..., None], *given: Any) -> ProcessPoolExecutor:
    """Return `count` processes, each of which calls `begin(*given)` first.

    The environment limits the linear algebra, as for the demo's workers. On all cores the small
    products of these benches were seen to take over 15 times the processor's time on a busy
    machine.
    """
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(count, get_context("spawn"), begin, given)


def bar(parts: Iterable[T], total: int, name: str) -> Iterator[T]:
    """Pass the parts on and show on stderr, where that is a terminal, how far they are."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(parts, name, total, console=console, disable=not console.is_terminal)
