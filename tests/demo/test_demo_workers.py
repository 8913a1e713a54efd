"""The demo's worker processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradledger.demo.workers import WorkerError, WorkerPool


def test_a_workers_log_is_of_this_run_and_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "demo-worker-0.log"
    log.write_text("KeyError: of an earlier run\n")
    with WorkerPool(1, tmp_path) as pool:
        flags = Path(f"/proc/{pool._processes[0].pid}/fdinfo/2").read_text().split()[3]
        assert int(flags, 8) & os.O_APPEND  # the log keeper may cut it
        pool.assign([{"no": "job"}])
        with pytest.raises(WorkerError, match="worker 0 ended before the demo did"):
            while pool.event(20):
                pass
    assert "earlier run" not in log.read_text()
