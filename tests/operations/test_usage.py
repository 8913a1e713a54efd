"""What is wrong in a command line is told before a node is asked, and is not taken for fraud."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.cli import main

AWAY = "--chain http://127.0.0.1:9 --store /ip4/127.0.0.1/tcp/9"  # nobody listens there
OWNER = f"{AWAY} --key-file key.json"
SET = "check-set digits --device phone1 --version 1"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a key, a lax key and a folder, and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADLEDGER_HOME", raising=False)
    for name in ("key", "lax"):
        save_key_file(tmp_path / f"{name}.json", "phone1", PrivateKey.generate())
    (tmp_path / "lax.json").chmod(0o644)
    (tmp_path / "folder").mkdir()
    return tmp_path


def code_of(command: str) -> int:
    try:
        return main(shlex.split(command))
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("audit digits", 2, "no network in "),
        ("audit digits --chain notaurl", 2, "expected an endpoint like http://host:port"),
        ("audit digits --chain http://127.0.0.1:9 --store nonsense", 2, "nonsense"),
        (f"audit digits {AWAY} --from-block -4", 2, "expected a whole number of 1 to 2^32 - 1"),
        (f"audit Bad_Task {AWAY}", 2, "expected an account name of a-z, 1-5 and dots"),
        (f"audit digits {AWAY}", 3, "no endpoint answered"),
        (f"audit verdicts digits {AWAY}", 3, "no endpoint answered"),
        ("audit verdicts digits", 2, "no network in "),
        (f"audit verdicts digits {AWAY} --version 0", 2, "got '0'"),
        (f"audit verdicts digits {AWAY} --key none.json", 2, "none.json"),
        ("receipt check nosuch.json", 2, "cannot read nosuch.json: No such file"),
        ("receipt check folder", 2, "cannot read folder: Is a directory"),
        ("receipt check key.json", 1, "format: expected"),
        (f"{SET} --key none.json {AWAY}", 2, "none.json"),
        (f"{SET} --key lax.json {AWAY}", 2, "expected mode 0600"),
        (f"{SET} --key key.json", 2, "no network in "),
        (f"{SET} --key key.json --chain http://127.0.0.1:9", 2, "or --store ADDR"),
        (f"{SET} --key key.json --chain http://127.0.0.1:9 --store none", 2, "or --store ADDR"),
        (f"{SET} --key key.json {AWAY}", 3, "no endpoint answered"),
        (f"{SET} --version 0 --key key.json {AWAY}", 2, "got '0'"),
        (f"{SET} --device Phone_1 --key key.json {AWAY}", 2, "got 'Phone_1'"),
    ],
)
def test_a_check_says_one_of_what_is_wrong_alone(
    command: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(command) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["audit", "audit verdicts", "receipt check", "check-set"])
def test_a_check_explains_its_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(f"{command} --help") == 0
    out = capsys.readouterr().out
    assert "\nexit codes: 0 " in out and "wrong usage" in out and "; 3 " in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("publish --version 0 --task digits", "got '0'"),
        ("open --version x --plan plan.json", "got 'x'"),
        ("evaluate --version -1 --test key.json", "expected a whole number of 0 to 2^32 - 1"),
        ("evaluate --version 1 --test none.npz", "expected a file, there is none at none.npz"),
        ("issue --version 1 --validation folder", "expected a file, there is none at folder"),
        ("publish --version 1 --model none.st", "expected a file, there is none at none.st"),
        ("admit --task digits", "expected --devices A,B,... or --validators A,B,..."),
        ("admit --devices phone1,Phone_1", "got 'Phone_1'"),
        ("deposit one", "expected an amount like '1.0000 TOK', got 'one'"),
        ("withdraw '-1.0000 TOK'", "expected an amount above zero, got '-1.0000 TOK'"),
        ("status --account BAD_", "got 'BAD_'"),
        ("status --task ../../evil", "got '../../evil'"),
        ("status --task ''", "expected the name of a task, got none"),
    ],
)
def test_the_owners_mistakes(
    folder: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.parent.rglob("*"))
    assert code_of(f"owner {command} {OWNER}") == (1 if command.startswith("admit --task") else 2)
    assert message in capsys.readouterr().err
    assert sorted(folder.parent.rglob("*")) == before


def test_status_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert code_of(f"owner status --task digits {OWNER}") == 1
    assert "no endpoint answered" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["status", "payer show"])
def test_the_owner_looks_where_up_puts_a_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(f"owner {command}") == 1
    told = "network.json: No such file or directory; is `gradledger up` done?"
    assert f"gradledger: .gradledger/{told}" in capsys.readouterr().err
    monkeypatch.setenv("GRADLEDGER_HOME", str(folder / "net"))
    assert code_of(f"owner {command}") == 1
    assert f"gradledger: {folder}/net/{told}" in capsys.readouterr().err
    # By address nothing is taken from a network that happens to be there.
    assert code_of(f"owner {command} --chain http://127.0.0.1:9") == 1
    assert "network.json" not in capsys.readouterr().err
