"""The state directory: whole files or none, one process at a time, private."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gradledger.errors import ConfigError
from gradledger.models import Model
from owner import state as state_module
from owner.errors import StateBusyError
from owner.state import StateDir, write_atomically

ARCHITECTURE = {"kind": "mlp", "layers": [3, 2], "activation": "relu"}


def test_models_records_and_reports_come_back(tmp_path):
    first = StateDir(tmp_path / "state")
    model = Model.random_normal(ARCHITECTURE, 3)
    first.save_model(2, model, {"evidence": "ab"})
    first.save_published(3, {"cid": "Qm"})
    first.save_report(2, {"version": 2})
    first.save_plan({"task": "t"})
    again = StateDir(tmp_path / "state")
    assert (again.model(2).vector == model.vector).all()
    assert again.model_record(2) == {"evidence": "ab"}
    assert again.published(3) == {"cid": "Qm"}
    assert again.report(2) == {"version": 2}
    assert again.plan() == {"task": "t"}
    assert again.model(1) is None and again.model_record(1) is None and again.report(1) is None


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def cut_off(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_module.os, "replace", cut_off)
    with pytest.raises(ConfigError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_damaged_model_counts_as_absent_and_a_damaged_record_is_named(tmp_path):
    state = StateDir(tmp_path)
    state.save_model(0, Model.random_normal(ARCHITECTURE, 3), {"evidence": ""})
    (tmp_path / "models" / "000000.st").write_bytes(b"half a mod")
    assert state.model(0) is None
    (tmp_path / "models" / "000000.json").write_text("[")
    with pytest.raises(ConfigError, match=r"000000\.json: expected a JSON object"):
        state.model_record(0)


def test_two_processes_do_not_work_in_one_directory(tmp_path):
    code = (
        "import sys; from owner.state import StateDir; from owner.errors import StateBusyError\n"
        "try:\n  StateDir(sys.argv[1]).locked().__enter__()\n"
        "except StateBusyError as exc:\n  print(exc); sys.exit(7)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    state = StateDir(tmp_path)
    with state.locked():
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert found.returncode == 7 and "another process" in found.stdout
        with pytest.raises(StateBusyError), StateDir(tmp_path).locked():
            pass
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
