"""One way to log for all parties: an event and its fields, as a line of text or of JSON.

`say` makes the line, `start` says where lines go and in which form. Whatever a value holds, a line
stays one line and a field one field: other parties choose some of the values.
"""

from __future__ import annotations

import json
import logging
import math
from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["FORMATS", "LineFormatter", "add_options", "say", "start"]

FORMATS = ("text", "json")
VALUE_CHARS_MAX = 500
TRACEBACK_CHARS_MAX = 8000
FILE_BYTES_MAX = 2**23  # of a log file; two older ones are kept beside it
FILES_KEPT = 2


def say(
    log: logging.Logger,
    level: int,
    event: str,
    *,
    exc_info: BaseException | None = None,
    **fields: object,
) -> None:
    """Log an event.

    Parameters
    ----------
    log : logging.Logger
    level : int
        Of `logging`.
    event : str
        A word of this project's; docs/operations.md has them all.
    exc_info : exception, optional
        Its traceback becomes a field of that name.
    **fields
        Texts are cut at `VALUE_CHARS_MAX`. Never give a secret.
    """
    if log.isEnabledFor(level):
        log.log(level, _Line(event, fields), exc_info=exc_info)


class _Line:
    """The message of a record; its text is what a handler without `LineFormatter` shows."""

    def __init__(self, event: str, fields: Mapping[str, object]) -> None:
        self.pairs = {"event": event, **fields}

    def __str__(self) -> str:
        return " ".join(f"{name}={_word(_plain(value))}" for name, value in self.pairs.items())


class LineFormatter(logging.Formatter):
    """Writes records with time (UTC, ISO 8601), level, event and fields.

    Parameters
    ----------
    form : str
        One of `FORMATS`.

    Notes
    -----
    What a library logs in its own words becomes ``event=message`` with its logger and text.
    """

    def __init__(self, form: str = "text") -> None:
        super().__init__()
        if form not in FORMATS:
            raise ConfigError(f"log format: expected one of {', '.join(FORMATS)}, got {form!r}")
        self._is_json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, timezone.utc)
        time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        pairs: Mapping[str, object]
        if isinstance(record.msg, _Line):
            pairs = record.msg.pairs
        else:
            pairs = {"event": "message", "logger": record.name, "text": record.getMessage()}
        shown = {name: _plain(value) for name, value in pairs.items()}
        if record.exc_info:
            shown["traceback"] = self.formatException(record.exc_info)[-TRACEBACK_CHARS_MAX:]
        if self._is_json:
            return json.dumps({"time": time, "level": record.levelname, **shown})
        words = [f"{name}={_word(value)}" for name, value in shown.items()]
        return " ".join([time, f"level={record.levelname}", *words])


def _plain(value: object) -> object:
    """Return what JSON can hold: a number or None as it is, anything else as a bounded text."""
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if value is None or is_number else str(value)[:VALUE_CHARS_MAX]


def _word(value: object) -> str:
    """Return a value for a line of text: one word as it is, anything else as a JSON string."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and not set(text) & set(' "=\\')
    return text if text and is_word else json.dumps(text)


def add_options(parser: ArgumentParser) -> None:
    """Add ``--log-format`` and ``--log-file`` to a command."""
    group = parser.add_argument_group("log")
    group.add_argument(
        "--log-format",
        choices=FORMATS,
        default="text",
        help="lines of key=value (default), or of JSON",
    )
    group.add_argument("--log-file", type=Path, metavar="FILE", help="default: standard error")


def start(level: int, *, form: str = "text", path: Path | None = None) -> None:
    """Send the process's log to a file of bounded size, or to standard error.

    Raises
    ------
    ConfigError
        The file cannot be written.
    """
    from logging.handlers import RotatingFileHandler

    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        try:
            handler = RotatingFileHandler(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT)
        except OSError as error:
            raise ConfigError(f"cannot write the log file {path}: {error.strerror}") from error
    handler.setFormatter(LineFormatter(form))
    logging.basicConfig(level=level, handlers=[handler])
