"""Fixtures of the validator's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from judging import World, make_key
from oracle import Oracle

from gradledger.chain.contract import FedLearning, Mode
from gradledger.chain.keys import PrivateKey
from gradledger.localnet.network import Network
from gradledger.paillier import PaillierPublicKey
from gradledger.store import Store
from owner.paillier_key import PaillierPrivateKey


@pytest.fixture(scope="session")
def key() -> PaillierPublicKey:
    """The owner's public key."""
    return make_key()


@pytest.fixture(scope="session")
def paillier(key: PaillierPublicKey) -> World:
    """A round in paillier mode."""
    return World(Mode.PAILLIER, key)


@pytest.fixture(scope="session")
def sealed() -> World:
    """A round in sealed mode."""
    return World(Mode.SEALED, None)


@pytest.fixture(scope="session")
def paillier_key() -> PaillierPrivateKey:
    """The owner's private key."""
    return PaillierPrivateKey.generate(2048)


@pytest.fixture(scope="session")
def oracle(
    localnet: Network,
    contract: FedLearning,
    store: Store,
    new_accounts: Callable[..., dict[str, PrivateKey]],
    new_name: Callable[[str], str],
    paillier_key: PaillierPrivateKey,
) -> Callable[..., Oracle]:
    """Make a task with fresh accounts, created on the chain."""

    def make(
        mode: Mode = Mode.PAILLIER,
        *,
        devices: int = 4,
        judges: list[str] | None = None,
        **options: Any,
    ) -> Oracle:
        owner, phones = new_accounts(1, "boss"), new_accounts(devices, "phone")
        if judges is None:
            referees = new_accounts(4, "val")
        else:
            referees = {name: localnet.key(name) for name in judges}
        localnet.transfer(next(iter(owner)), "1000.0000 TOK")
        made = Oracle(
            network=localnet,
            contract=contract,
            store=store,
            mode=mode,
            paillier=paillier_key,
            task=new_name("vtask"),
            owner=next(iter(owner)),
            keys={**owner, **phones, **referees},
            devices=sorted(phones),
            judges=sorted(referees),
            **options,
        )
        made.create()
        return made

    return make
