"""One small task on the real network that has everything an audit must explain."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_scene import Bought, Played, buy, play
from audited_round import AuditedRound, play_audited
from device_scene import Scene

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, Mode, Silence
from gradledger.chain.keys import PrivateKey
from gradledger.localnet import parts
from gradledger.localnet.network import Network
from gradledger.store import Store

SYNC_SEC_MAX = 90.0
NO_KEY: Any = None  # sealed mode needs none


@pytest.fixture(scope="session")
def make_scene(
    localnet: Network,
    contract: FedLearning,
    store: Store,
    new_accounts: Callable[..., dict[str, PrivateKey]],
    new_name: Callable[[str], str],
) -> Callable[..., Scene]:
    """Make tasks in sealed mode, so that no key is needed."""

    def make(**options: Any) -> Scene:
        is_created = options.pop("is_created", True)
        given = {"mode": Mode.SEALED, "silence": Silence.PAY, "devices_count": 3, **options}
        made = Scene(localnet, contract, store, new_accounts, NO_KEY, new_name("audit"), **given)
        if is_created:
            made.create()
        return made

    return make


@pytest.fixture(scope="session")
def played(make_scene: Callable[..., Scene]) -> Played:
    """Two settled rounds: accepted, refused and silent uploads, a payment each, a withdrawal."""
    return play(make_scene())


@pytest.fixture(scope="session")
def audited_round(make_scene: Callable[..., Scene]) -> AuditedRound:
    """A settled round in which every thing happened that lots and hidden CIDs bring about."""
    return play_audited(make_scene(devices_count=6, silence=Silence.REFUND, is_created=False))


@pytest.fixture(scope="session")
def bought(make_scene: Callable[..., Scene]) -> Bought:
    """An open round in which validators accepted what they did not look at."""
    return buy(make_scene(devices_count=1))


@pytest.fixture(scope="session")
def tracing(
    localnet: Network,
    played: Played,
    free_ports: Callable[[int], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Address of a second node of the same chain, with the trace API."""
    http, p2p = free_ports(2)
    home = tmp_path_factory.mktemp("tracing")
    peer = _p2p_port(localnet.home)
    command = [
        *(str(parts.nodeos_path()), "--config-dir", str(home), "--data-dir", str(home / "data")),
        *("--genesis-json", str(localnet.home / "genesis.json")),
        *("--plugin", "eosio::chain_plugin", "--plugin", "eosio::chain_api_plugin"),
        *("--plugin", "eosio::net_plugin", "--plugin", "eosio::trace_api_plugin"),
        *("--trace-no-abis", "--http-server-address", f"127.0.0.1:{http}"),
        *("--p2p-listen-endpoint", f"127.0.0.1:{p2p}", "--p2p-peer-address", f"127.0.0.1:{peer}"),
        "--resource-monitor-not-shutdown-on-threshold-exceeded",
    ]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{http}"
    try:
        _wait_for(url, played.client.get_info().irreversible_block, home / "log")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _p2p_port(home: Path) -> str:
    for line in (home / "node1" / "config.ini").read_text().splitlines():
        if line.startswith("p2p-listen-endpoint"):
            return line.rpartition(":")[2]
    raise AssertionError("no p2p port")


def _wait_for(url: str, block: int, log: Path) -> None:
    from gradledger.errors import NodeError

    client, end = ChainClient(url), time.monotonic() + SYNC_SEC_MAX
    while time.monotonic() < end:
        try:
            if client.get_info().irreversible_block >= block:
                return
        except NodeError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])
