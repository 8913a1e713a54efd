"""Devices in processes of their own: the memory bound, and the quick start of the README."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from device_scene import Scene
from sklearn.datasets import load_digits

from gradledger.chain.contract import VerdictCode
from owner.paillier_key import PaillierPrivateKey

ROOT = Path(__file__).parents[2]
MEMORY_BUDGET_MB = 120

MakeScene = Callable[..., Scene]


def arguments(scene: Scene) -> list[str]:
    """Return the options that tell a process who it is."""
    info = scene.network.info()
    account = next(iter(scene.devices))
    return [
        *("--account", account, "--key-file", info.accounts[account], "--task", scene.task),
        *("--chain", info.chain_url, "--store", info.store_addr),
    ]


def run(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_encrypting_and_uploading_101770_parameters_stays_under_120_mb(scene: MakeScene) -> None:
    layers = [784, 128, 10]
    x = np.random.default_rng(0).random((200, 784), dtype=np.float32)
    s = scene(
        architecture={"kind": "mlp", "layers": layers, "activation": "relu"},
        validation=(x, np.arange(200) % 10),
        paillier=PaillierPrivateKey.generate(3072),
    )
    s.device().join(classes=range(10))
    s.publish(1)
    with run("-m", "bench.device", "upload", *arguments(s)) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    figures = json.loads(out)
    member = s.contract.member(s.task, s.device().account)
    assert member is not None and member.upload_hash.hex() == figures["hash"]
    assert figures["parameters"] == 101_770
    assert figures["peak_mb_fetched"] < figures["peak_mb"] < MEMORY_BUDGET_MB


def test_the_quick_start_is_paid(scene: MakeScene) -> None:
    raw = load_digits()
    s = scene(
        architecture={"kind": "mlp", "layers": [64, 32, 10], "activation": "relu"},
        validation=((raw.data[:200] / 16).astype(np.float32), raw.target[:200]),
    )
    client, account = s.contract.client, next(iter(s.devices))
    with run("examples/device_quickstart.py", *arguments(s)) as process:
        try:
            client.wait_until(
                lambda: (row := s.contract.member(s.task, account)) and row.joined, timeout_sec=60
            )
            s.issue(1)
            s.open(1, budget=6000)
            digest = client.wait_until(
                lambda: (
                    (row := s.contract.member(s.task, account))
                    and any(row.upload_hash)
                    and row.upload_hash
                ),
                timeout_sec=60,
            )
            ids = s.attest(1, digest, [VerdictCode.ACCEPT] * 3)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "if they stay silent, an upload is not paid" in out
    assert "Round(version=1, " in out
    assert f"Paid(0.6000 TOK, trx={ids[2]}, block=" in out
