"""What the demo shows while it runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO


class View:
    """Plain lines, one for each thing that happened.

    Parameters
    ----------
    stream : text stream
        Where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> View:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, text: str) -> None:
        """Show a line that stays."""
        print(text, file=self._stream, flush=True)

    def rounds(self, done: int, total: int) -> None:
        """Show that `done` of `total` rounds are over."""

    def uploads(self, version: int, done: int, total: int, doing: str) -> None:
        """Show what round `version` is doing, and how many of its devices have reported."""

    def centralised(self, done: int, total: int) -> None:
        """Show how far the comparison, training in one place, has come."""


class BarView(View):
    """Three progress bars at the foot of the terminal, lines above them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._progress = Progress(
            TextColumn("{task.description:<34}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            console=Console(file=stream, highlight=False, markup=False),
            transient=True,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text)

    def rounds(self, done: int, total: int) -> None:
        self._show("rounds", "rounds", done, total)

    def uploads(self, version: int, done: int, total: int, doing: str) -> None:
        self._show("uploads", f"round {version}: {doing}", done, total)

    def centralised(self, done: int, total: int) -> None:
        self._show("centralised", "centralised, to compare", done, total)

    def _show(self, key: str, text: str, done: int, total: int) -> None:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(text, total=total)
        self._progress.update(self._bars[key], description=text, completed=done, total=total)


def make_view(stream: TextIO | None = None) -> View:
    """Return bars where `stream` (standard output by default) is a terminal, lines elsewhere."""
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        try:
            return BarView(stream)
        except ImportError:
            pass
    return View(stream)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned table: the first column to the left, the others to the right."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *others]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
