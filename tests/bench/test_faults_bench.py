"""A short run of `bench.faults`, and that its reckoning finds what it is there to find."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import faults_proxy as proxies
from bench.faults import Told
from gradledger.chain.client import ChainClient, Timeout
from gradledger.errors import NodeError
from gradledger.localnet.network import Network

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


@pytest.mark.parametrize(
    ("acknowledged", "abandoned", "written", "on_chain", "lost"),
    [
        ("ab", "c", "abc", "ab", ""),
        ("ab", "", "ab", "a", "b"),  # acknowledged, and not there
        ("", "", "a", "", "a"),  # written down, neither there nor given up
        ("", "a", "a", "a", "a"),  # given up, and there after all
        ("", "", "", "z", ""),  # a kill between the block and the file: the outbox would have it
    ],
)
def test_what_counts_as_lost(
    acknowledged: str, abandoned: str, written: str, on_chain: str, lost: str
) -> None:
    told = Told(set(acknowledged), set(abandoned), set(written))
    assert told.lost(set(on_chain)) == set(lost)


def test_a_proxy_misbehaves_as_it_is_told(localnet: Network) -> None:
    url = localnet.info().chain_url
    proxy = proxies.Proxy(url)
    try:
        one = ChainClient(proxy.url, timeout=Timeout(connect=1, read=1))
        honest = one.get_info()
        assert honest.irreversible_block < honest.head_block and proxy.misled == 0
        proxy.mode = proxies.LIE
        lied = one.get_info()
        assert lied.irreversible_block == lied.head_block
        both = ChainClient([proxy.url, url]).get_confirmed()
        assert both.irreversible_block < ChainClient(url).get_info().head_block
        proxy.mode = proxies.NONSENSE
        for _ in range(6):
            with pytest.raises(NodeError):
                one.get_info()
        proxy.mode = proxies.HANG
        begun = time.monotonic()
        with pytest.raises(NodeError, match="no whole answer in time"):
            one.get_info()
        assert time.monotonic() - begun > 1
        assert ChainClient([proxy.url, url], timeout=Timeout(read=1)).get_info().head_block > 0
        assert proxy.misled > 8
    finally:
        proxy.mode = proxies.HONEST
        proxy.close()
