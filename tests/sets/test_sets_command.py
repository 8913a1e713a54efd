"""`gradledger check-set` where there is nothing to read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.cli import main


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "phone1.json"
    save_key_file(path, "phone1", PrivateKey.generate())
    return str(path)


def command(key_file: str, *words: str) -> list[str]:
    return [
        "check-set",
        "digits",
        "--device",
        "phone1",
        "--version",
        "1",
        "--key",
        key_file,
        *words,
    ]


def test_no_node_answers(key_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--chain", "http://127.0.0.1:9", "--store", "/ip4/127.0.0.1/tcp/9")
    assert main(command(key_file, *words)) == 3
    assert "gradledger: could not be checked: no endpoint answered" in capsys.readouterr().err


def test_a_store_is_needed(key_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(key_file, "--chain", "http://127.0.0.1:9")) == 1
    assert "expected --home DIR, or --store ADDR" in capsys.readouterr().err


def test_a_key_file_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(str(tmp_path / "none.json"))) == 1
    assert "none.json" in capsys.readouterr().err


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["check-set", "--help"])
    assert caught.value.code == 0
    assert "exit codes: 0 the set was drawn by the round's block" in capsys.readouterr().out
