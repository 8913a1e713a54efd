"""A short run of `bench.faults`, and that its reckoning finds what it is there to find."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN_SEC_MAX = 300


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    command = [sys.executable, "-m", "bench.faults", "--kills", "4", "--producers", "1"]
    done = subprocess.run(
        [*command, "--seed", "5", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_SEC_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text("utf-8"))
    assert found["command"].startswith("python -m bench.faults --kills 4 --producers 1 --seed 5")
    assert found["kills"] == sum(found["kills_by_target"].values()) >= 4
    assert found["faults"] == {"full_disk": 1}
    for name in ("lost", "paid_twice", "escrow_mismatch", "stuck_rounds"):
        assert found[name] == 0, found["notes"]
    assert found["uploads"] >= found["payments"] > 0
    assert found["acknowledged"] + found["abandoned"] >= found["uploads"]
    assert found["recovery_s"]["max"] >= found["recovery_s"]["median"] > 0
