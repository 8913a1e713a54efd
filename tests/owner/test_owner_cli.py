"""`gradledger owner ...`, on a real node and a real Kubo."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import EXAMPLES, Training, points
from scraping import scrape, url_in, value
from test_owner_deposit import Stopped, is_deposit

from gradledger.chain.client import ChainClient
from gradledger.chain.names import Asset
from gradledger.cli import main
from owner.paillier_key import PaillierPrivateKey


@pytest.fixture
def shell(make_training, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A training with its files, and a way to call the command line as its owner."""
    training: Training = make_training(rounds=1)
    for name, (x, y) in {"validation": points(100, 90), "test": points(200, 300)}.items():
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    data = {"validation": "validation.npz", "test": "test.npz"}
    document = {**training.plan.to_dict(), "data": data}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    options = ["--home", str(training.network.home), "--state", str(tmp_path / "state")]
    options += ["--account", training.make_owner().account]
    options += ["--paillier-key", str(training.paillier_key_file)]

    def call(*words: str, task: bool = True) -> tuple[int, str, str]:
        named = ["--task", training.plan.task] if task else []
        code = main(["owner", *words, *options, *named])
        return code, *capsys.readouterr()

    call.training = training  # type: ignore[attr-defined]
    call.plan = str(tmp_path / "plan.json")  # type: ignore[attr-defined]
    call.options = options  # type: ignore[attr-defined]
    call.folder = tmp_path  # type: ignore[attr-defined]
    return call


def facts(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert code == 0, err
    return dict(json.loads(out))


def test_a_round_step_by_step(shell):
    training: Training = shell.training
    names = {"devices": ",".join(training.plan.devices), "vals": training.plan.validators[0]}
    assert facts(shell("create", "--plan", shell.plan, "--json"))["task"] == training.plan.task
    admitted = facts(
        shell("admit", "--devices", names["devices"], "--validators", names["vals"], "--json")
    )
    assert admitted == {
        "devices": list(training.plan.devices),
        "validators": list(training.plan.validators),
    }
    assert shell("deposit", "2.0000 TOK")[0] == 0
    for actor in (*training.phones, *training.validators):
        actor.step()
    published = facts(shell("publish", "--version", "1", "--plan", shell.plan, "--json"))
    assert published["cid"].startswith("Qm")
    points_file = str(shell.folder / "validation.npz")
    issue = ("issue", "--version", "1", "--validation", points_file, "--json")
    code, _, err = shell(*issue)
    assert code == 1 and "round 1 is not open: the block that opens it draws its sets" in err
    opened = facts(shell("open", "--version", "1", "--plan", shell.plan, "--json"))
    assert opened["state"] == "open"
    code, _, err = shell(*issue, "--per-class", "5")
    assert code == 1 and "per_class: the task commits to 4, got 5" in err
    code, _, err = shell("issue", "--version", "1", "--validation", str(shell.folder / "test.npz"))
    assert code == 1 and "commits to other validation points" in err
    assert sorted(facts(shell(*issue))["devices"]) == sorted(training.plan.devices)
    code, _, err = shell("close", "--version", "1")
    assert code == 1 and err.startswith("gradledger: deadline_not_passed: expected a time")
    code, _, err = shell("withdraw", "1.0001 TOK")
    assert code == 1 and "reserved_money: expected at most 1.0000 TOK" in err
    for phone in training.phones:
        phone.step()
    assert facts(shell("close", "--version", "1", "--json"))["uploads"] == 3
    with training.played():
        result = facts(shell("aggregate", "--version", "1", "--json"))
    nobody = {"outvoted": [], "silent": [], "bad_copies": {}}
    assert result == {"version": 1, "updates": 3, "note": "", **nobody}
    code, out, _ = shell("settle", "--version", "1")
    assert code == 0 and "is settled, Merkle root" in out
    test = str(shell.folder / "test.npz")
    first = facts(shell("evaluate", "--version", "0", "--test", test, "--json"))
    second = facts(shell("evaluate", "--version", "1", "--test", test, "--json"))
    assert second["accuracy"] > first["accuracy"]
    status = facts(shell("status", "--json", task=False))  # the only task of this owner
    assert status["conserved"] is True and status["version"] == 1
    assert status["escrow"]["paid"] == 3 * EXAMPLES * 10
    assert [each["state"] for each in status["rounds"]] == ["settled"]
    left = 20_000 - 3 * EXAMPLES * 10
    assert shell("withdraw", f"{left // 10_000}.{left % 10_000:04d} TOK")[0] == 0
    code, out, _ = shell("status")
    assert code == 0
    assert "devices: 3 admitted, 3 joined" in out and "the escrow equation holds" in out
    assert "free 0.0000 TOK" in out and out.splitlines()[-1].split()[1] == "settled"


def test_a_deposit_that_was_killed_is_not_paid_a_second_time(shell, monkeypatch):
    owner = shell.training.make_owner()
    assert shell("create", "--plan", shell.plan)[0] == 0
    send = ChainClient.send

    def dying(self: ChainClient, body: dict[str, Any]) -> dict[str, Any]:
        if is_deposit(body):
            raise Stopped
        return send(self, body)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(ChainClient, "send", dying)
        shell("deposit", "2.0000 TOK")
    code, out, err = shell("deposit", "2.0000 TOK")
    assert code == 0 and out.endswith(", begun before; nothing else was paid\n")
    assert "the deposit of 2.0000 TOK, begun before, has happened" in err
    assert owner.escrow().deposited == 20_000
    # One that was written down and never signed: its time is over.
    with closing(owner.open_deposits(shell.folder / "state" / "outbox" / "deposits.db")) as outbox:
        amount = Asset.parse("1.0000 TOK")
        step = owner.contract.deposit(owner.task, owner.account, amount, "eosio.token")
        details, late = {"amount": str(amount)}, owner.chain_time() - 1
        outbox.add("the deposit of 1.0000 TOK", [step], give_up_at=late, details=details)
    found = facts(shell("deposit", "1.0000 TOK", "--json"))
    assert found["transaction"]
    (told,) = found["earlier"]
    assert "the deposit of 1.0000 TOK, begun before, never happened: not in time" in told
    assert owner.escrow().deposited == 30_000


def test_run_goes_on_after_it_gave_up_and_after_sigterm(shell):
    training: Training = shell.training
    training.kill_node()
    try:
        code, out, err = shell("run", "--plan", shell.plan, "--patience", "1")
    finally:
        training.network.up()
    assert (code, out) == (75, "")
    last = err.splitlines()[-1]
    assert last.startswith(f"gradledger owner: task {training.plan.task}, round 0: waited 1 s in ")
    assert "no endpoint answered" in last
    assert last.endswith("; the same command goes on from here")
    command = [sys.executable, "-m", "gradledger.cli", "owner", "run", "--plan", shell.plan, "-v"]
    command += [*shell.options, "--metrics", "0", "--log-format", "json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    training.phones, phones = [], training.phones  # nobody joins: the run waits
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        url = url_in(process.stderr)
        for line in process.stderr:
            if json.loads(line).get("step") == "join":
                break
        shown = scrape(url)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command goes on from here" in err
    assert value(shown, "owner_step_seconds_count", step="deposit") == 1
    assert value(shown, "chain_head_block") > 0
    training.phones = phones
    with training.played():
        code, out, err = shell("run", "--plan", shell.plan)
    assert code == 0, err
    assert out.startswith("round 1: accuracy ")
    assert ", 3 uploads, 3 accepted, 0 refused, paid 0.1800 TOK" in out


def test_a_key_file_is_new_and_private(tmp_path, capsys):
    path = tmp_path / "paillier.json"
    assert main(["owner", "key", "--out", str(path), "--bits", "2048"]) == 0
    assert "Paillier key of 2048 bits" in capsys.readouterr().out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PaillierPrivateKey.load(path).public.bits == 2048
    assert main(["owner", "key", "--out", str(path), "--bits", "2048"]) == 1
    assert "cannot write the Paillier key" in capsys.readouterr().err
    assert main(["owner", "key", "--out", str(tmp_path / "b"), "--bits", "512"]) == 1
    capsys.readouterr()
    assert main(["owner", "key", "--out", str(path / "below"), "--bits", "2048"]) == 1
    assert "cannot make the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "--chain", "http://127.0.0.1:1"], "or --chain URL and --store ADDR"),
        (["status", "--home", "nowhere"], "is `gradledger up` done?"),
        (
            ["status", "--chain", "http://127.0.0.1:1", "--store", "/ip4/127.0.0.1/tcp/1"],
            "expected --home DIR or --key-file FILE",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["owner", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


COMMANDS = (
    *("key", "create", "admit", "deposit", "withdraw", "publish", "issue", "open", "close"),
    *("aggregate", "settle", "evaluate", "status", "run"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["owner", command, "--help"])
    assert caught.value.code == 0
    assert "usage:" in capsys.readouterr().out
