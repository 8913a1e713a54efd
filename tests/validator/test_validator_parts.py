"""What the validator is made of: seen uploads, the log, the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from judging import World

from gradledger.cid import cid_v0
from gradledger.errors import ConfigError
from producer_validation import cli, seen
from producer_validation.seen import SeenUploads

# ---- seen uploads -------------------------------------------------------------------------------


def test_seen_uploads_outlive_the_process(tmp_path: Path) -> None:
    first = SeenUploads(tmp_path / "state", "val1")
    first.note(b"\1" * 32, "digits", 1, "phone1")
    first.note(b"\1" * 32, "digits", 2, "phone2")  # the first one stands
    again = SeenUploads(tmp_path / "state", "val1")
    found = again.earlier(b"\1" * 32)
    assert found == seen.Earlier("digits", 1, "phone1")
    assert again.earlier(b"\2" * 32) is None
    assert SeenUploads(tmp_path / "state", "val2").earlier(b"\1" * 32) is None


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    one = SeenUploads(tmp_path, "val1")
    one.note(b"\1" * 32, "digits", 1, "phone1")
    path = tmp_path / "seen-val1.txt"
    path.write_text(path.read_text() + "02" * 32 + " dig")
    again = SeenUploads(tmp_path, "val1")
    again.note(b"\3" * 32, "digits", 2, "phone1")
    lines = path.read_text().splitlines()
    assert len(lines) == 2 and lines[1] == "03" * 32 + " digits 2 phone1"


def test_seen_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "ENTRIES_MAX", 3)
    one = SeenUploads(tmp_path, "val1")
    for number in range(20):
        one.note(bytes([number]) * 32, "digits", 1, "phone1")
        assert len((tmp_path / "seen-val1.txt").read_text().splitlines()) <= 6
    again = SeenUploads(tmp_path, "val1")
    assert [again.earlier(bytes([n]) * 32) is not None for n in (16, 17, 18, 19)] == [
        False,
        True,
        True,
        True,
    ]


def test_a_series_of_an_earlier_round_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "ENTRIES_MAX", 3)
    one = SeenUploads(tmp_path, "val1")
    one.note(b"\1" * 32, "digits", 1, "phone1", b"\7" * 32)
    for known in (one, SeenUploads(tmp_path, "val1")):
        assert known.had_series("digits", 2, "phone1", b"\7" * 32)
        assert not known.had_series("digits", 1, "phone1", b"\7" * 32)  # this round's own
        assert not known.had_series("digits", 2, "phone2", b"\7" * 32)
        assert not known.had_series("letters", 2, "phone1", b"\7" * 32)
        assert not known.had_series("digits", 2, "phone1", b"")
    for number in range(2, 5):
        one.note(bytes([number]) * 32, "digits", 2, "phone1")
    assert not one.had_series("digits", 3, "phone1", b"\7" * 32)  # the oldest is let go


def test_a_line_whose_series_is_cut_off_is_left_out(tmp_path: Path) -> None:
    one = SeenUploads(tmp_path, "val1")
    one.note(b"\1" * 32, "digits", 1, "phone1", b"\7" * 32)
    path = tmp_path / "seen-val1.txt"
    for cut in (1, 2, 20, 66):
        path.write_text(path.read_text() + ("02" * 32 + " digits 1 phone1 " + "07" * 32)[:-cut])
        again = SeenUploads(tmp_path, "val1")
        assert again.earlier(b"\2" * 32) is None
        assert again.had_series("digits", 2, "phone1", b"\7" * 32)
        assert len(path.read_text().splitlines()) == 1


def test_a_state_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state directory"):
        SeenUploads(tmp_path / "file" / "below", "val1")


# ---- the log ------------------------------------------------------------------------------------


# ---- the command line ---------------------------------------------------------------------------


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    return parser.parse_args(["validator", *arguments])


def test_check_describes_an_envelope(
    paillier: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(paillier.blob())
    bad.write_bytes(b"hello")
    args = parse("check", str(good), "--json")
    assert args.func(args) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "well_formed"
    assert found["cid"] == cid_v0(good.read_bytes())
    assert (found["kind"], found["sender"], found["version"]) == ("update", "phone1", 3)
    assert found["readers"] == ["val1", "val2"]
    args = parse("check", str(good), str(bad), str(tmp_path / "none"), "--json")
    assert args.func(args) == 1
    documents: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [one["verdict"] for one in documents] == ["well_formed", "malformed", "unavailable"]
    assert documents[1]["reason"] == "expected at least 112 bytes, got 5"
    assert documents[1]["cid"] == cid_v0(b"hello")
    args = parse("check", str(good))
    assert args.func(args) == 0
    assert "sender:        phone1\n" in capsys.readouterr().out


WHERE = ("--account", "v", "--key-file", "k", "--chain", "c", "--store", "s")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("run", "--account", "val1"),
        ("run", *WHERE),
        ("run", *WHERE, "--task", "t", "--all-tasks"),
        ("check",),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as found:
        parse(*arguments)
    assert found.value.code == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("run", "--help")
    text = capsys.readouterr().out
    for word in ("--all-tasks", "event=refused", "error_mismatch", "SIGTERM", "gradledger owner"):
        assert word in text
