"""Fixtures of the payer's tests: a network with real limits, and services on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from device_scene import Scene

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning
from gradledger.chain.keys import PrivateKey
from gradledger.localnet.network import OWNER_RESOURCES, VALIDATOR_RESOURCES, Network
from gradledger.store import Store
from owner.paillier_key import PaillierPrivateKey
from owner.payer.record import Record
from owner.payer.rules import ChainView, Cosigner, Limits
from owner.payer.service import PayerServer
from owner.payer.setup import load_cosign_key, setup

STAKED = 5  # of a scene's accounts: the owner and four validators; the rest are devices


@pytest.fixture(scope="session")
def limited(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Network]:
    """A network with limits, of one node and Kubo."""
    http, p2p, kubo = free_ports(3)
    network = Network(
        tmp_path_factory.mktemp("limited"), http_port=http, p2p_port=p2p, kubo_port=kubo
    )
    network.up(validators=0, limits=True)
    yield network
    network.down(wipe=True)


@pytest.fixture(scope="session")
def limited_chain(limited: Network) -> ChainClient:
    """A client of its node."""
    return ChainClient(list(limited.info().chain_urls))


@pytest.fixture(scope="session")
def paillier() -> PaillierPrivateKey:
    """A small key of the owner's."""
    return PaillierPrivateKey.generate(2048)


@pytest.fixture
def scene(
    limited: Network,
    limited_chain: ChainClient,
    new_name: Callable[[str], str],
    paillier: PaillierPrivateKey,
) -> Callable[..., Scene]:
    """Make tasks whose devices have nothing; the test plays owner and validators."""

    def accounts(count: int) -> dict[str, PrivateKey]:
        names = [new_name("lim") for _ in range(count)]
        made = limited.create_accounts(names[:1], resources=OWNER_RESOURCES)
        made |= limited.create_accounts(names[1:STAKED], resources=VALIDATOR_RESOURCES)
        return made | limited.create_accounts(names[STAKED:])

    def make(*, create: dict[str, Any] | None = None, **options: Any) -> Scene:
        contract, store = FedLearning(limited_chain), Store(limited.info().store_addr)
        made = Scene(limited, contract, store, accounts, paillier, new_name("ltask"), **options)
        made.create(**(create or {}))
        return made

    return make


@pytest.fixture(scope="session")
def cosign_path(
    limited: Network, limited_chain: ChainClient, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The payer, set up: where its cosigning key lies."""
    path = tmp_path_factory.mktemp("payer") / "cosign.json"
    account = limited.info().payer
    assert account is not None
    key = limited.key(account)
    setup(limited_chain, account=account, key=key, key_path=path, contract="fedlearning")
    return path


@pytest.fixture
def serve(
    limited: Network, limited_chain: ChainClient, cosign_path: Path, tmp_path: Path
) -> Iterator[Callable[..., PayerServer]]:
    """Start services of the network's payer; they end with the test."""
    running: list[PayerServer] = []

    def start(*tasks: str, record: Path | None = None, **limits: int) -> PayerServer:
        account = limited.info().payer
        assert account is not None
        cosigner = Cosigner(
            ChainView(limited_chain, "fedlearning"),
            Record(record or tmp_path / f"signed{len(running)}.sqlite"),
            key=load_cosign_key(cosign_path, account),
            account=account,
            tasks=tasks,
            # A busy machine bills a transaction for what it made it wait.
            limits=Limits(**{"cpu_ms": 200, **limits}),
        )
        running.append(PayerServer(cosigner, port=0))
        threading.Thread(target=running[-1].serve_forever, args=(0.01,), daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()
        server.cosigner.record.close()
