"""The state directory: whole files or none, one process at a time, private."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gradledger import files
from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.errors import ConfigError
from gradledger.files import write_atomically
from gradledger.models import Model
from owner.errors import StateBusyError
from owner.paillier_key import PaillierPrivateKey
from owner.state import StateDir

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

    monkeypatch.setattr(files.os, "replace", cut_off)
    with pytest.raises(ConfigError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def save_paillier(path):
    PaillierPrivateKey.generate(256, allow_insecure_size_for_tests=True).save(path)


def save_account(path):
    save_key_file(path, "phone1", PrivateKey.generate())


@pytest.mark.parametrize("save", [save_paillier, save_account])
def test_a_key_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch, save):
    path = tmp_path / "key.json"

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(ConfigError, match=r"cannot write the .*No space left"):
            save(path)
    assert os.listdir(tmp_path) == []
    save(path)
    written = path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        save(path)
    assert os.listdir(tmp_path) == ["key.json"] and path.read_bytes() == written
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="cannot write the"):
        save(path / "below")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    code = (
        "import os, signal, sys\nfrom owner.state import StateDir\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "StateDir(sys.argv[1]).save_report(1, {})\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert found.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    state = StateDir(tmp_path)
    with state.locked():
        assert list(tmp_path.rglob("*.tmp")) == []
    assert state.report(1) is None


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
