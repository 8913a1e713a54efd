"""Fixtures of the device's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from device_scene import Scene

from gradledger.chain.contract import FedLearning
from gradledger.chain.keys import PrivateKey
from gradledger.localnet.network import Network
from gradledger.store import Store
from owner.paillier_key import PaillierPrivateKey


@pytest.fixture(scope="session")
def paillier() -> PaillierPrivateKey:
    """A small key of the owner's."""
    return PaillierPrivateKey.generate(2048)


@pytest.fixture
def scene(
    localnet: Network,
    contract: FedLearning,
    store: Store,
    new_accounts: Callable[..., dict[str, PrivateKey]],
    new_name: Callable[[str], str],
    paillier: PaillierPrivateKey,
) -> Callable[..., Scene]:
    """Make tasks whose owner and validators the test plays."""

    def make(*, create: dict[str, Any] | None = None, **options: Any) -> Scene:
        key = options.pop("paillier", paillier)
        made = Scene(localnet, contract, store, new_accounts, key, new_name("dtask"), **options)
        made.create(**(create or {}))
        return made

    return make
