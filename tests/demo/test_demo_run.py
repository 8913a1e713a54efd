"""`gradledger demo` from end to end, as a user calls it."""

from __future__ import annotations

import importlib.util
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sklearn.datasets import load_digits

from gradledger.chain.contract import FedLearning, RoundState
from gradledger.cli import main
from gradledger.localnet.network import Network

COMMAND = [sys.executable, "-m", "gradledger.cli", "demo"]
RUN_SEC_MAX = 240


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command; one that hangs is interrupted, so that it takes its network down."""
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=RUN_SEC_MAX)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            pytest.fail(f"not done after {RUN_SEC_MAX} s: {err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def processes_of(home: Path) -> list[str]:
    """Command lines that name `home`."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        text = " ".join(process.info["cmdline"] or [])
        if str(home) in text:
            found.append(text)
    return found


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """The report, home and output folder of a run with five devices and two rounds."""
    base = tmp_path_factory.mktemp("demo")
    home, out = base / "home", base / "out"
    done = demo(
        *("--devices", "5", "--rounds", "2", "--seed", "7"),
        *("--home", str(home), "--out", str(out), "--json"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), home, out


def test_report_has_every_key(small_run: tuple[dict[str, Any], Path, Path]) -> None:
    report, _, _ = small_run
    assert [row["version"] for row in report["rounds"]] == [1, 2]
    for row in report["rounds"]:
        counts = {"uploads", "accepted", "refused", "audited", "caught"}
        assert set(row) == {"version", "accuracy", "paid", *counts}
        assert row["uploads"] == row["accepted"] + row["refused"]
        assert type(row["paid"]) is int
        assert row["paid"] > 0
    assert report["final_accuracy"] == report["rounds"][-1]["accuracy"]
    assert report["final_accuracy"] > report["initial_accuracy"] + 0.3
    assert report["centralised_accuracy"] == report["centralised"][-1]
    assert set(report["escrow"]) == {"deposited", "paid", "reserved", "withdrawn", "balance"}
    assert all(type(amount) is int for amount in report["escrow"].values())
    assert report["conserved"] is True
    assert all(report["checks"].values())
    assert report["seconds"] > 0
    assert report["chain"]["server_version"].startswith("v")
    assert report["seed"] == 7
    assert report["token"]["symbol"] == "TOK"
    assert report["options"]["key_bits"] == 3072


def test_misbehaviour_is_refused_and_counted(
    small_run: tuple[dict[str, Any], Path, Path],
) -> None:
    report, _, _ = small_run
    by_role = {device["role"]: device for device in report["devices"]}
    assert set(by_role) == {"honest", "late", "shuffled", "stale"}
    reasons = report["reasons"]
    assert reasons["round_not_open"] == 1  # the late device, in round 2
    assert reasons["stale_version"] == 1  # the stale one, in round 2
    assert by_role["late"]["refused"] >= 1
    assert by_role["stale"]["refused"] >= 1
    assert sum(reasons.values()) == sum(row["refused"] for row in report["rounds"])


def test_money_adds_up(small_run: tuple[dict[str, Any], Path, Path]) -> None:
    report, _, _ = small_run
    escrow = report["escrow"]
    left = escrow["paid"] + escrow["reserved"] + escrow["withdrawn"] + escrow["balance"]
    assert escrow["deposited"] == left
    assert sum(row["paid"] for row in report["rounds"]) == escrow["paid"]
    assert sum(device["paid"] for device in report["devices"]) == escrow["paid"]
    price = report["options"]["price_per_example"]
    for device in report["devices"]:
        assert device["paid"] == device["accepted"] * device["examples"] * price


def test_files_are_written(small_run: tuple[dict[str, Any], Path, Path]) -> None:
    report, _, out = small_run
    assert sorted(path.name for path in out.iterdir()) == [
        "accuracy.png",
        "pay.png",
        "report.html",
        "report.json",
    ]
    assert json.loads((out / "report.json").read_text()) == report


def test_network_is_down_and_its_chain_says_the_same(
    small_run: tuple[dict[str, Any], Path, Path],
) -> None:
    report, home, _ = small_run
    assert processes_of(home) == []
    network = Network(home)
    try:
        info = network.up()
        contract = FedLearning(network.client, info.contract)
        (task,) = contract.tasks()
        rounds = contract.rounds(task.id)
        assert [found.state for found in rounds] == [RoundState.SETTLED] * 2
        assert [found.paid for found in rounds] == [row["paid"] for row in report["rounds"]]
        assert [found.accepted for found in rounds] == [row["accepted"] for row in report["rounds"]]
        for device in report["devices"]:
            held = network.client.balance(info.token_contract, device["account"], "TOK")
            assert (held.amount if held else 0) == device["paid"]
        assert (task.paid, task.withdrawn) == (
            report["escrow"]["paid"],
            report["escrow"]["withdrawn"],
        )
    finally:
        network.down()


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """Four IDX files of 28x28 images: the digits of scikit-learn, enlarged."""
    digits = load_digits()
    pixels = np.kron(digits.images, np.ones((3, 3)))
    pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2))) * (255 / 16)
    images, labels = pixels.astype(np.uint8), digits.target.astype(np.uint8)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for stem, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        x, y = images[part], labels[part]
        head = struct.pack(">4I", 0x803, *x.shape)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        head = struct.pack(">2I", 0x801, len(y))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + y.tobytes())
    return folder


def test_sealed_mode_on_mnist_files(tmp_path: Path, small_mnist: Path) -> None:
    done = demo(
        *("--devices", "5", "--rounds", "1", "--mode", "sealed", "--data", str(small_mnist)),
        *("--home", str(tmp_path / "home"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["dataset"] == "mnist"
    assert report["options"]["mode"] == "sealed"
    assert report["conserved"] is True
    assert report["rounds"][0]["accepted"] >= 3


def test_a_forger_is_caught_and_barred(tmp_path: Path) -> None:
    done = demo(
        *("--devices", "5", "--rounds", "2", "--lot", "1", "--reveal", "--key-bits", "2048"),
        *("--home", str(tmp_path / "home"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    first, second = report["rounds"]
    assert (first["audited"], first["caught"]) == (first["accepted"] + 1, 1)
    assert (second["audited"], second["caught"]) == (second["accepted"], 0)
    (forger,) = (device for device in report["devices"] if device["role"] == "forger")
    assert (forger["paid"], forger["accepted"], forger["refused"]) == (0, 0, 2)
    assert report["reasons"]["error_mismatch"] == report["reasons"]["barred"] == 1
    assert report["conserved"] is True


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch(tmp_path: Path) -> None:
    done = demo(
        *("--devices", "4", "--rounds", "1", "--framework", "torch"),
        *("--home", str(tmp_path / "home"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["framework"] == "torch"
    assert report["final_accuracy"] > report["initial_accuracy"] + 0.3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_it_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(
        [*COMMAND, "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "joining" in line:
                    break
            workers = psutil.Process(process.pid).children()
            process.send_signal(number)
            _, complaint = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, complaint
    assert "interrupted" in complaint
    assert "Traceback" not in complaint
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert processes_of(home) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--rounds", "0"), 1, "--rounds: expected 1 to 200, got 0"),
        (("--devices", "3"), 1, "--devices: expected 4 to 100, got 3"),
        (("--data", "/nowhere"), 1, "--data: expected a directory with the four IDX files"),
        (("--out", "/dev/null/out"), 1, "--out: cannot write into /dev/null/out"),
        (("--lot", "2"), 1, "--lot: expected 0 to 1, got 2"),
        (("--mode", "open"), 2, "invalid choice: 'open'"),
        (("--devices", "many"), 2, "invalid int value: 'many'"),
    ],
)
def test_refused_arguments(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    try:
        found = main(["demo", *arguments])
    except SystemExit as ended:  # argparse's own
        found = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert found == code
    assert message in err
    assert out == ""
