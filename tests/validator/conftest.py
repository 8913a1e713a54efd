"""Fixtures of the validator's tests."""

from __future__ import annotations

import pytest
from judging import World, make_key

from gradledger.chain.contract import Mode
from gradledger.paillier import PaillierPublicKey


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
