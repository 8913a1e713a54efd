"""Real nodeos processes: their genesis, configuration, start and recovery."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests

from gradledger.chain.keys import PrivateKey, PublicKey
from gradledger.localnet import processes
from gradledger.localnet.errors import StartError
from gradledger.localnet.processes import Process

READY_SEC_MAX = 20.0
REPLAY_SEC_MAX = 600.0

# Each attempt after the first costs more than the one before, and gets over more.
_RECOVERIES: tuple[tuple[str, ...], ...] = (
    (),
    ("--replay-blockchain",),
    ("--hard-replay-blockchain",),
)


class PortBusyError(StartError):
    """Somebody else listens on the port: take another one."""


@dataclass(frozen=True)
class NodeSpec:
    """What one node is told.

    Attributes
    ----------
    name : str
        Of the process.
    folder : Path
        Its configuration and data.
    http_port, p2p_port : int
        Loopback ports.
    producers : mapping of str to PrivateKey
        Producer accounts and the keys that sign their blocks.
    peers : sequence of int
        p2p ports of the other nodes.
    """

    name: str
    folder: Path
    http_port: int
    p2p_port: int
    producers: Mapping[str, PrivateKey]
    peers: Sequence[int] = ()

    @property
    def url(self) -> str:
        """Address of the node's HTTP API."""
        return f"http://127.0.0.1:{self.http_port}"


def write_genesis(path: Path, key: PublicKey) -> None:
    """Write a genesis of our own; `key` is that of `eosio`. The limits are nodeos's defaults."""
    genesis = {
        "initial_timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000", time.gmtime()),
        "initial_key": str(key),
        "initial_configuration": {
            "max_block_net_usage": 1048576,
            "target_block_net_usage_pct": 1000,
            "max_transaction_net_usage": 524288,
            "base_per_transaction_net_usage": 12,
            "net_usage_leeway": 500,
            "context_free_discount_net_usage_num": 20,
            "context_free_discount_net_usage_den": 100,
            "max_block_cpu_usage": 200000,
            "target_block_cpu_usage_pct": 1000,
            "max_transaction_cpu_usage": 150000,
            "min_transaction_cpu_usage": 100,
            "max_transaction_lifetime": 3600,
            "deferred_trx_expiration_window": 600,
            "max_transaction_delay": 3888000,
            "max_inline_action_size": 524288,
            "max_inline_action_depth": 4,
            "max_authority_depth": 6,
        },
    }
    path.write_text(json.dumps(genesis, indent=2) + "\n", encoding="ascii")


def start_node(nodeos: Path, spec: NodeSpec, genesis: Path, log: Path) -> Process:
    """Start a node, whatever state its data were left in, and wait until it answers.

    Returns
    -------
    Process
        The real nodeos.

    Raises
    ------
    PortBusyError
        One of the ports is taken.
    StartError
        It did not come up, replaying its blocks included.
    """
    _write_config(spec)
    data = spec.folder / "data"
    command = [str(nodeos), "--config-dir", str(spec.folder), "--data-dir", str(data)]
    if not (data / "blocks" / "blocks.log").exists():
        command += ["--genesis-json", str(genesis)]
    failure: StartError | None = None
    for recovery in _RECOVERIES:
        before = log.stat().st_size if log.exists() else 0
        process = processes.start(
            spec.name,
            [*command, *recovery],
            log,
            ports={"http": spec.http_port, "p2p": spec.p2p_port},
        )
        try:
            processes.wait_until(
                process,
                partial(_answers, process, spec),
                wait_sec=REPLAY_SEC_MAX if recovery else READY_SEC_MAX,
            )
            return process
        except StartError as exc:
            failure = failure or exc
            if "already in use" in _log_since(log, before):
                raise PortBusyError(f"{spec.name}: a port is taken: {exc}") from exc
            if "--genesis-json" in command:
                break  # there is nothing to replay
    assert failure is not None
    raise failure


def info(url: str, *, timeout_sec: float = 2.0) -> dict[str, Any] | None:
    """Return the node's `get_info`, or None while it does not answer."""
    try:
        answer = requests.post(f"{url}/v1/chain/get_info", timeout=timeout_sec)
        return dict(answer.json()) if answer.ok else None
    except (requests.RequestException, ValueError):
        return None


def _answers(process: Process, spec: NodeSpec) -> bool:
    return processes.listens(process, spec.http_port) and info(spec.url) is not None


def _write_config(spec: NodeSpec) -> None:
    """Write config.ini, mode 0600: keys stay off the command line, where all can read them."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    plugins = ["chain", "chain_api", "producer", "producer_api", "net"]  # chain comes first
    lines = [f"plugin = eosio::{plugin}_plugin" for plugin in plugins]
    lines += [
        f"http-server-address = 127.0.0.1:{spec.http_port}",
        f"http-alias = localhost:{spec.http_port}",
        f"p2p-listen-endpoint = 127.0.0.1:{spec.p2p_port}",
        "p2p-max-nodes-per-host = 32",
        "enable-stale-production = true",
        "max-transaction-time = 200",
        "abi-serializer-max-time-ms = 200",
        "http-max-response-time-ms = 200",
        "resource-monitor-not-shutdown-on-threshold-exceeded = true",
    ]
    lines += [f"p2p-peer-address = 127.0.0.1:{port}" for port in spec.peers]
    for account, key in spec.producers.items():
        lines.append(f"producer-name = {account}")
        lines.append(f"signature-provider = {key.public}=KEY:{key.to_string()}")
    handle = os.open(spec.folder / "config.ini", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write("\n".join(lines) + "\n")
    console = {
        "name": "stderr",
        "type": "console",
        "args": {"stream": "std_error", "level_colors": []},
        "enabled": True,
    }
    loggers = [
        {
            "name": name,
            "level": level,
            "enabled": True,
            "additivity": False,
            "appenders": ["stderr"],
        }
        for name, level in (("default", "warn"), ("producer_plugin", "warn"), ("net", "error"))
    ]
    logging = {"includes": [], "appenders": [console], "loggers": loggers}
    (spec.folder / "logging.json").write_text(json.dumps(logging), encoding="ascii")


def _log_since(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read(2**20).decode("utf-8", "replace")
