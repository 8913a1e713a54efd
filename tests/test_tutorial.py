"""The tutorial's commands, run as they stand, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL_SEC_MAX = 300


def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [block for block in commands if not block.startswith("export PATH")]
    *steps, ending = commands
    assert "gradledger up" in steps[0] and "--wipe" in ending
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("GRADLEDGER_HOME", None)

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TUTORIAL_SEC_MAX,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        shown = run("\n".join(steps))
    finally:
        run(ending)
    rounds = re.findall(r"^round \d: .* 3 accepted, 0 refused, paid 1\.8000 TOK", shown, re.M)
    assert len(rounds) == 3
    assert len(re.findall(r"^Paid\(0\.6000 TOK, trx=[0-9a-f]{64}, block=\d+\)", shown, re.M)) == 3
    assert "paid 5.4000 TOK" in shown and "the escrow equation holds" in shown
    assert "withdrew 1.0000 TOK" in shown
    assert "\n9 payments, all explained\n" in shown
    assert "\nthe set was drawn by the round's block and is in the committed root\n" in shown
    assert [path.name for path in (tmp_path / ".gradledger").iterdir()] == ["owner"]
