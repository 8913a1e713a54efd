"""Fixtures of the owner's tests: a key, and trainings with fresh accounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from played import ARCHITECTURE, LyingStore, Phone, Training

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning
from gradledger.chain.keys import PrivateKey
from gradledger.localnet.network import Network
from gradledger.store import Store
from owner import Owner, PaillierPrivateKey, Plan
from producer_validation.validator import Validator


@pytest.fixture(scope="session")
def paillier_key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of 2048 bits, the least that is no toy."""
    path = tmp_path_factory.mktemp("paillier") / "paillier.json"
    PaillierPrivateKey.generate(2048).save(path)
    return path


@pytest.fixture
def make_training(
    localnet: Network,
    chain: ChainClient,
    store: Store,
    new_account: Callable[..., tuple[str, PrivateKey]],
    new_accounts: Callable[..., dict[str, PrivateKey]],
    new_name: Callable[[str], str],
    paillier_key_file: Path,
) -> Callable[..., Training]:
    """Make fresh accounts and a plan; the last of four validators is Byzantine if asked for."""

    def make(*, validators: int = 1, liars: int = 0, **changes: Any) -> Training:
        account, key = new_account("owner")
        localnet.transfer(account, "1000.0000 TOK")
        task = new_name("task")
        phones = new_accounts(3, "phone")
        judges = new_accounts(validators, "val")
        fields: dict[str, Any] = {
            "task": task,
            "rounds": 2,
            "architecture": ARCHITECTURE,
            "devices": tuple(phones),
            "validators": tuple(judges),
            "deposit": "10.0000 TOK",
            "price": "0.0010 TOK",
            "budget": "1.0000 TOK",
            "close_after": 3,
            "clip": 4.0,
            "tau": 0.5,
            "devices_min": 3,
            "points_per_class": 4,
            "open_sec": 60,
            **changes,
        }
        contract = FedLearning(chain)

        def make_owner() -> Owner:
            return Owner(
                account,
                task=task,
                key=key,
                chain=chain,
                store=store,
                paillier_key=paillier_key_file,
            )

        stores = [LyingStore(store.address)] * liars + [store] * (validators - liars)
        return Training(
            plan=Plan(**fields),
            phones=[
                Phone(name, secret, task, contract, store, seed)
                for seed, (name, secret) in enumerate(phones.items())
            ],
            validators=[
                Validator(name, secret, chain, its_store, tasks=[task])
                for (name, secret), its_store in zip(sorted(judges.items()), stores, strict=True)
            ],
            make_owner=make_owner,
            network=localnet,
            paillier_key_file=paillier_key_file,
        )

    return make
