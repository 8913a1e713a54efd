"""A short run of `bench.faults`, and that its reckoning finds what it is there to find."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import faults
from bench import faults_proxy as proxies
from bench.faults import MUST_BE_ZERO, Scene, Tally, Told
from bench.faults_device import FULL_DISK, LOST_BLOB
from gradledger.chain.client import ChainClient, Timeout
from gradledger.chain.names import Asset
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
    assert found["command"] == (
        "python -m bench.faults --kills 4 --producers 1 --seed 5 --out FILE"
    )
    assert found["kills"] == sum(found["kills_by_target"].values()) >= 4
    assert found["faults"] == {"full_disk": 1}
    assert found["notes"] == []
    for name in MUST_BE_ZERO:
        assert found[name] == 0, name
    assert found["uploads"] >= found["payments"] > 0
    assert found["acknowledged"] + found["abandoned"] >= found["uploads"]
    assert found["recovery_s"]["max"] >= found["recovery_s"]["median"] > 0
    assert FULL_DISK not in found["recovery_s_by_target"]
    assert found["fault_recovery_s_by_kind"] == {"full_disk": found["fault_recovery_s"]}


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


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A training without a network: nothing runs, and the chain holds nothing."""
    made = Scene(tmp_path, 1, 1, lambda text: None)
    made.devices = {}
    made.progress = SimpleNamespace(  # type: ignore[assignment]
        expect=lambda *_: pytest.fail("nothing happened that there is to recover from")
    )
    return made


def test_a_fault_counts_when_it_held(scene: Scene) -> None:
    folder = scene.home / "phone1"
    folder.mkdir()
    told = [{"event": "fault", "at": 5.0, "kind": FULL_DISK, "held": True}]
    told += [{"event": "fault", "at": 5.0, "kind": LOST_BLOB, "held": False}]
    (folder / "events").write_text("".join(json.dumps(one) + "\n" for one in told))
    assert not scene._told("phone1", FULL_DISK, 6.0)
    assert scene._told("phone1", FULL_DISK, 4.0) and scene._told("phone1", LOST_BLOB, 4.0)
    assert scene.tally.faults == {FULL_DISK: 1} and scene.tally.not_held == 1
    assert scene.tally.notes == ["lost_blob at phone1: it did not hold"]


@pytest.mark.parametrize("kind", [faults.PARTIES_JUMP, faults.CLOCK_JUMP])
def test_without_its_library_a_clock_fault_is_left_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.delenv(faults.NEEDED[kind], raising=False)
    scene.fault(kind)
    assert scene.tally == Tally()


@pytest.mark.parametrize(("code", "not_held"), [(0, 0), (3, 1), (None, 1)])
def test_an_owner_has_to_end_well(scene: Scene, code: int | None, not_held: int) -> None:
    def wait(timeout: float) -> int:
        if code is None:
            raise subprocess.TimeoutExpired("owner", timeout)
        return code

    words = SimpleNamespace(kill=lambda number: True, start=lambda: None, last_words=lambda: "this")
    words.process = SimpleNamespace(wait=wait)
    scene.owner = words  # type: ignore[assignment]
    scene.network = SimpleNamespace(up=lambda: None)  # type: ignore[assignment]
    scene.info = SimpleNamespace(validators=[])  # type: ignore[assignment]
    scene.contract = SimpleNamespace(  # type: ignore[assignment]
        task=lambda task: SimpleNamespace(version=1)
    )
    scene.finish()
    assert scene.tally.not_held == len(scene.tally.notes) == not_held


def test_the_reckoning_finds_a_second_upload_of_a_version(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks hold two uploads of one device in one round; everything else is in order."""
    uploads = [{"device": "phone1", "version": 1, "hash": digest} for digest in ("aa", "bb")]

    def block(path: str, query: dict[str, str]) -> dict[str, Any]:
        upload = uploads[int(query["block_num_or_id"]) - 1]
        one = {"account": "fedlearning", "name": "fedlearning"}
        one["hex_data"] = one["data"] = json.dumps(upload).encode().hex()
        return {
            "transactions": [{"status": "executed", "trx": {"transaction": {"actions": [one]}}}]
        }

    price = faults.EXAMPLES * faults.PRICE
    balances = {"phone1": SimpleNamespace(amount=price)}
    scene.chain = SimpleNamespace(  # type: ignore[assignment]
        get_confirmed=lambda: SimpleNamespace(irreversible_block=2),
        call=block,
        balance=lambda token, name, symbol: balances.get(name),
    )
    deposited = Asset.parse(faults.DEPOSIT).amount
    escrow = SimpleNamespace(conserved=True, reserved=0, deposited=deposited)
    abi = SimpleNamespace(actions={"fedlearning": ""}, unpack=lambda kind, raw: json.loads(raw))
    scene.contract = SimpleNamespace(  # type: ignore[assignment]
        abi=abi, escrow=lambda task: escrow, rounds=lambda task: []
    )
    paid = [SimpleNamespace(device="phone1", version=1, amount=price)]
    report = SimpleNamespace(explained=True, payment_list=paid)
    monkeypatch.setattr(faults, "audit", lambda *_, **options: report)
    told = {"phone1": Told({"bb"}, set(), {"bb"})}
    monkeypatch.setattr(scene, "_resume", lambda name: told.get(name, Told(set(), set(), set())))
    scene.reckon()
    assert scene.tally.notes == ["two uploads of ('phone1', 1)"]
    assert scene.tally.escrow_mismatch == 1
    assert (scene.tally.lost, scene.tally.paid_twice, scene.tally.stuck_rounds) == (0, 0, 0)


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
