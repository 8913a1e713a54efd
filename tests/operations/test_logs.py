"""Log lines: one event, one line, whatever a value holds."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradledger import logs
from gradledger.chain.keys import PrivateKey
from gradledger.errors import ConfigError
from gradledger.logs import TRACEBACK_CHARS_MAX, VALUE_CHARS_MAX, LineFormatter, say

WORD = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)')


def written(form: str, event: str = "refused", **fields: Any) -> str:
    """Return what a handler writes of one event."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(form))
    log = logging.Logger("gradledger.test")
    log.addHandler(handler)
    say(log, logging.WARNING, event, **fields)
    return stream.getvalue()


def parsed(line: str) -> dict[str, str]:
    """Return the fields of a line of text; every character belongs to one."""
    assert line.endswith("\n")
    _, rest = line[:-1].split(" ", 1)
    found = WORD.findall(rest)
    assert " ".join(f"{name}={value}" for name, value in found) == rest
    return {name: json.loads(value) if value.startswith('"') else value for name, value in found}


@given(st.text(max_size=2 * VALUE_CHARS_MAX), st.text())
def test_a_value_cannot_begin_another_line_or_field(text: str, other: str) -> None:
    line = written("text", sender=text, reason=other)
    assert len(line.splitlines()) == 1 and line.isascii()
    assert parsed(line) == {
        "level": "WARNING",
        "event": "refused",
        "sender": text[:VALUE_CHARS_MAX],
        "reason": other[:VALUE_CHARS_MAX],
    }
    line = written("json", sender=text, reason=other)
    assert len(line.splitlines()) == 1 and line.isascii()
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == parsed(written("text", sender=text, reason=other))


@pytest.mark.parametrize(
    "hostile",
    [
        "x\n2026-01-01T00:00:00.000Z level=INFO event=accepted sender=me",
        'x" event="accepted',
        "x\u2028event=accepted",
        "x\x1b[2J",
        "x\\",
        '{"event": "accepted"}',
        "",
        "event=accepted",
    ],
)
def test_what_others_write_stays_a_value(hostile: str) -> None:
    line = written("text", reason=hostile)
    assert parsed(line)["event"] == "refused" and parsed(line)["reason"] == hostile
    assert json.loads(written("json", reason=hostile))["reason"] == hostile


def test_numbers_stay_numbers() -> None:
    values = {"version": 3, "left": None, "done": True, "part": 0.5, "name": Path("a")}
    document = json.loads(written("json", **values, odd=float("nan")))
    assert {name: document[name] for name in values} == {**values, "name": "a"}
    assert document["odd"] == "nan"


def test_a_line_has_time_and_level_first() -> None:
    before = datetime.now(timezone.utc)
    document = json.loads(written("json", task="digits"))
    assert list(document) == ["time", "level", "event", "task"]
    at = datetime.fromisoformat(document["time"].replace("Z", "+00:00"))
    assert at.utcoffset() is not None and abs((at - before).total_seconds()) < 60
    line = written("text", task="digits")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=WARNING event=refused task=digits\n", line
    )


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_traceback_is_a_field(form: str) -> None:
    try:
        raise ValueError("bad\nevent=accepted " + "x" * 2 * TRACEBACK_CHARS_MAX)
    except ValueError as error:
        line = written(form, "fault", exc_info=error)
    assert len(line.splitlines()) == 1
    found = json.loads(line) if form == "json" else parsed(line)
    assert found["event"] == "fault" and len(found["traceback"]) == TRACEBACK_CHARS_MAX


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_librarys_own_words_are_a_value_too(form: str) -> None:
    record = logging.LogRecord("lib", logging.INFO, "f", 1, "got %s", ("a\nevent=joined",), None)
    line = LineFormatter(form).format(record) + "\n"
    found = json.loads(line) if form == "json" else parsed(line)
    assert (found["event"], found["logger"], found["text"]) == (
        "message",
        "lib",
        "got a\nevent=joined",
    )


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_key_shows_no_secret(form: str) -> None:
    key = PrivateKey.generate()
    line = written(form, key=key, error=ConfigError(f"expected a key, got {key!r}"))
    assert key.to_string() not in line and "PVT" not in line


@contextmanager
def bare_root() -> Iterator[None]:
    """Take the root logger's handlers away: so a command finds it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def test_a_log_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 1000)
    log = logging.getLogger("gradledger.test")
    with bare_root():
        logs.start(logging.INFO, form="json", path=tmp_path / "log")
        for number in range(100):
            say(log, logging.INFO, "step", number=number)
        say(log, logging.DEBUG, "step", number=100)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2"]
    assert all(file.stat().st_size <= 1000 for file in files)
    assert json.loads(files[0].read_text().splitlines()[-1])["number"] == 99


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write the log file .*: Is a directory"):
        logs.start(logging.INFO, path=tmp_path)
    with pytest.raises(ConfigError, match="expected one of text, json, got 'xml'"):
        LineFormatter("xml")
