"""The live view: its numbers, its lines, and itself on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from audit_scene import COSTS, Bought, Liar, Played, in_ballot
from audited_round import AuditedRound
from device_scene import PRICE, Scene

from gradledger.chain.contract import FedLearning, Role
from gradledger.cli import main
from gradledger.errors import BadFieldError, NodeAnswerError, NodeError, NodeUnavailableError
from gradledger.watch import READS_MAX, Snapshot, _Lines, _looks, read_snapshot

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SCREEN_SEC_MAX = 30.0


def test_an_open_round(bought: Bought) -> None:
    seen = read_snapshot(bought.scene.contract, bought.scene.task)
    document = seen.to_dict()
    assert (document["version"], document["state"]) == (1, "open")
    assert (document["uploads"], document["accepted"], document["pending"]) == (1, 1, 0)
    judged = sorted(document["verdicts"].items())
    assert [name for name, _ in judged] == sorted(bought.scene.validators)
    assert sum(counts["accept"] for _, counts in judged) == 3
    assert sum(counts["refuse"] for _, counts in judged) == 1
    assert document["money"]["paid"] == f"0.{COSTS[0] * PRICE:04d} TOK"
    assert document["money"]["free"] == f"0.{10_000 - COSTS[0] * PRICE:04d} TOK"
    assert document["devices"] == {"admitted": 1, "joined": 1}
    assert seen.joined(Role.VALIDATOR) == 4
    assert seen.round is not None and seen.deadline == seen.round.deadline
    # the head may be a block behind the one that opened the round
    assert 0 < seen.left_sec <= 61 or time.time() > seen.deadline


def test_a_settled_task(played: Played) -> None:
    seen = read_snapshot(played.scene.contract, played.task)
    assert [one.version for one in seen.rounds] == [2, 1]
    assert seen.deadline == 0 and seen.verdicts() == {}
    money = seen.money()
    assert money["deposited"] == "1.0000 TOK" and money["withdrawn"] == "0.1000 TOK"
    with pytest.raises(BadFieldError, match="no task is named"):
        read_snapshot(played.scene.contract, "nosuchtask")


def test_verdicts_are_those_of_the_newest_round_and_of_its_uploads(
    audited_round: AuditedRound,
) -> None:
    """Other ballots lie behind that on the only upload; a node may tell of it at two moments."""
    contract, task = audited_round.scene.contract, audited_round.task
    seen = read_snapshot(contract, task)
    assert seen.verdicts() == dict.fromkeys(audited_round.judges, (0, 0, 1))
    altered = in_ballot(contract, 0, hash="ab" * 32, verdicts="01" * 32)
    left = [1, READS_MAX]  # so often, each time

    def lie(path: str, document: Any, answer: Any) -> None:
        if left[0] and document and document.get("table") == "ballots":
            left[0] -= 1
            altered(path, document, answer)

    liar = FedLearning(Liar(contract.client, lie))
    assert read_snapshot(liar, task).verdicts() == seen.verdicts() and not left.pop(0)
    with pytest.raises(NodeAnswerError, match=f"task {task} changes faster than its rows"):
        read_snapshot(liar, task)


def test_lines_are_written_for_changes_alone(
    make_scene: Callable[..., Scene], capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(devices_count=1)
    away: list[Exception] = []

    def lie(path: str, document: Any, answer: Any) -> None:
        if away:
            raise away.pop()

    contract = FedLearning(Liar(scene.contract.client, lie))
    lines, looks = _Lines(True), _looks(contract, scene.task, 0.01)
    for seen in islice(looks, 3):
        lines.show(seen)
    away += [NodeUnavailableError("away")] * 2
    for seen in islice(looks, 4):
        lines.show(seen)
    scene.device().join(classes=[0])
    for seen in islice(looks, 2):
        lines.show(seen)
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in one for one in documents] == [False, True, False, False]
    assert [one["devices"]["joined"] for one in documents if "devices" in one] == [0, 0, 1]
    assert all(one["time"].endswith("Z") for one in documents)

    text = _Lines(False)
    first, error = next(looks), NodeError("no endpoint answered")
    for seen in (first, first, error, error, first):
        text.show(seen)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and "the node does not answer: no endpoint" in out[1]
    assert isinstance(first, Snapshot) and out[0].endswith(first.line())
    assert "no round yet" in out[0] and "1 devices and 4 validators joined" in out[0]


def test_once(played: Played, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--chain", played.client.endpoints[0], "--once"]
    assert main(["watch", played.task, *where]) == 0
    assert "round 2 settled: 2 uploads, 2 accepted" in capsys.readouterr().out
    assert main(["watch", played.task, *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "settled"
    assert main(["watch", "nosuchtask", *where]) == 1
    assert main(["watch", played.task, "--chain", "http://127.0.0.1:9"]) == 1
    assert main(["watch", played.task, *where, "--interval", "0"]) == 1
    assert "--interval: expected 0.2 to 3600 s" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["ctrl-c", "terminate"])
def test_on_a_terminal(bought: Bought, ending: str) -> None:
    """It draws, redraws, and leaves the terminal as it was."""
    endpoint = bought.scene.contract.client.endpoints[0]
    command = [sys.executable, "-m", "gradledger.cli", "watch", bought.scene.task]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    process = subprocess.Popen(
        [*command, "--chain", endpoint, "--interval", "0.2"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "110", "LINES": "40"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        text = _read_until(master, lambda text: text.count("last rounds") >= 3)
        assert f"task {bought.scene.task}" in text and "round 1 open" in text
        assert "\x1b[?25l" in text  # the cursor is hidden while it draws
        for word in ("validator", "missing", "deposited", "irreversible up to"):
            assert word in text
        if ending == "ctrl-c":
            os.write(master, b"\x03")
        else:
            process.send_signal(signal.SIGTERM)
        rest = _read_until(master, lambda text: "\x1b[?25h" in text)
        assert "Traceback" not in rest
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_until(master: int, enough: Callable[[str], bool]) -> str:
    text, end = "", time.monotonic() + SCREEN_SEC_MAX
    while not enough(text):
        assert time.monotonic() < end, text
        if select.select([master], [], [], 0.2)[0]:
            try:
                text += os.read(master, 65_536).decode("utf-8", "replace")
            except OSError:  # its other end is closed
                return text
    return text
