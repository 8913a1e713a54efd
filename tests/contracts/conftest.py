"""The chain that the contract tests run on: the session's local network."""

from __future__ import annotations

import pytest
from contracts.world import World

from gradledger.localnet.network import Network


@pytest.fixture(scope="session")
def world(localnet: Network) -> World:
    """Fresh accounts and tasks on the session's chain; nothing is restarted between tests."""
    return World.on(localnet)
