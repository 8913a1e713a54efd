"""Other clients of the chain: the same bytes, and the same round."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.terms import round_terms, task_choices
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import (
    FedLearning,
    Recipe,
    RoundState,
    UploadState,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.chain.transaction import Transaction, action
from gradledger.cid import cid_v0
from gradledger.localnet.network import Network
from gradledger.models import Model
from gradledger.store import Store
from owner import Owner
from owner.validation_sets import ValidationData
from producer_validation.validator import Validator

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-interop" / "bin" / "python"
CLIENTS = ("pyntelope", "eospy")
ARCHITECTURE = {"kind": "mlp", "layers": [4, 3], "activation": "relu"}
PRICE = 10
EXAMPLES = {"pyntelope": 60, "eospy": 45}

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make setup-interop comes first")


def points(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled points around three centres."""
    rng = np.random.default_rng(seed)
    centres = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
    y = np.arange(count) % 3
    return (centres[y] + rng.normal(0, 0.5, (count, 4))).astype(np.float32), y


def foreign(request: dict[str, Any]) -> dict[str, Any]:
    """Let the other clients pack and sign."""
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("foreign.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def name(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz12345"
    return "".join(rng.choices(letters, k=rng.randint(1, 12)))


def test_a_transaction_and_its_signature_are_pyntelopes_bytes() -> None:
    rng, key = random.Random(1), PrivateKey.generate()
    chain_id = rng.randbytes(32).hex()
    rows = [
        {
            "expiration": rng.randrange(1, 2**32),
            "block_id": rng.randbytes(32).hex(),
            "actions": [
                [name(rng), name(rng), name(rng), rng.randbytes(rng.randrange(1, 300)).hex()]
                for _ in range(rng.randint(1, 10))
            ],
        }
        for _ in range(40)
    ]
    theirs = foreign(
        {
            "chain_id": chain_id,
            "wif": key.to_wif(),
            "transactions": rows,
            "joins": [],
            "uploads": [],
        }
    )["transactions"]
    for row, other in zip(rows, theirs, strict=True):
        actions = [action(a, n, actor, bytes.fromhex(d)) for a, n, actor, d in row["actions"]]
        ours = Transaction.refer(actions, row["expiration"], row["block_id"])
        assert ours.pack().hex() == other["packed"]
        assert ours.id == other["id"]
        assert ours.sign(chain_id, [key])["signatures"] == [other["signature"]]


def test_the_contracts_actions_are_the_same_bytes_in_each_client(chain: ChainClient) -> None:
    rng, contract = random.Random(2), FedLearning(chain)
    joins = [[name(rng), name(rng), rng.randbytes(32).hex(), rng.getrandbits(64)] for _ in range(9)]
    uploads = [
        [
            *(name(rng), name(rng), rng.randrange(2**32), rng.randbytes(32).hex()),
            *(cid_v0(rng.randbytes(9)), rng.randrange(2**32)),
            [rng.randrange(10**6) for _ in range(rng.randrange(0, 130))],
        ]
        for _ in range(9)
    ]
    theirs = foreign(
        {
            "chain_id": "00" * 32,
            "wif": PrivateKey.generate().to_wif(),
            "transactions": [],
            "joins": joins,
            "uploads": uploads,
        }
    )
    for (task, account, enc_key, classes), packed in zip(joins, theirs["joins"], strict=True):
        ours = contract.join(task, account, bytes.fromhex(enc_key), classes)
        assert packed == [ours.data.hex()] * 2
    for row, packed in zip(uploads, theirs["uploads"], strict=True):
        task, account, version, digest, cid, cost, errors = row
        digest = bytes.fromhex(digest)
        ours = contract.fedlearning(task, account, version, digest, cid, cost, errors)
        assert packed == [ours.data.hex()] * 2


def start(
    client: str, network: Network, store: Store, task: str, key_file: Path, data: Path
) -> subprocess.Popen[str]:
    """Start an example device."""
    script = ROOT / "examples" / f"device_{client}.py"
    rpc = store.address.replace("/ip4/", "http://").replace("/tcp/", ":")
    options = {
        "--task": task,
        "--key-file": key_file,
        "--chain": network.info().chain_urls[0],
        "--store": rpc,
        "--data": data,
        "--classes": "7",
        "--make-update": f"{sys.executable} {ROOT / 'examples' / 'make_update.py'}",
    }
    command = [str(part) for pair in options.items() for part in pair]
    return subprocess.Popen(
        [PYTHON, str(script), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def judged(
    chain: ChainClient,
    store: Store,
    new_accounts: Callable[..., dict[str, PrivateKey]],
    new_name: Callable[[str], str],
) -> Any:
    """A task name and four validators that judge it, in a thread, until the test ends."""
    task, stop = new_name("task"), threading.Event()
    validators = new_accounts(4, "val")
    workers = [Validator(v, key, chain, store, tasks=[task]) for v, key in validators.items()]
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(worker.run, stop) for worker in workers]
        yield task, list(validators)
        stop.set()
        for one in running:
            one.result(timeout=60)


def test_each_example_device_takes_part_in_a_round_and_is_paid(
    localnet: Network,
    chain: ChainClient,
    contract: FedLearning,
    store: Store,
    new_account: Callable[..., tuple[str, PrivateKey]],
    new_accounts: Callable[..., dict[str, PrivateKey]],
    judged: tuple[str, list[str]],
    tmp_path: Path,
) -> None:
    task, validators = judged
    account, key = new_account("owner")
    localnet.transfer(account, "10.0000 TOK")
    owner = Owner(account, task=task, key=key, chain=chain, store=store)
    owner.create_task(
        task_choices(cost_max=1000, clip_e6=4_000_000),
        architecture=ARCHITECTURE,
        class_names=["left", "middle", "right"],
    )
    devices = dict(zip(CLIENTS, new_accounts(len(CLIENTS), "phone").items(), strict=True))
    owner.admit_validators(validators)
    owner.admit_devices([name for name, _ in devices.values()])
    owner.deposit("1.0000 TOK")
    running = {}
    for seed, (client, (phone, secret)) in enumerate(devices.items()):
        x, y = points(seed, EXAMPLES[client])
        np.savez(tmp_path / f"{phone}.npz", x=x, y=y)
        save_key_file(tmp_path / f"{phone}.json", phone, secret)
        files = tmp_path / f"{phone}.json", tmp_path / f"{phone}.npz"
        running[client] = start(client, localnet, store, task, *files)
    try:
        chain.wait_until(
            lambda: all(member.joined for member in contract.members(task)),
            timeout_sec=60,
            what="the members to join",
        )
        model = Model.random_normal(ARCHITECTURE, 1)
        published = owner.publish_model(model, 1)
        owner.issue_validation_sets(1, ValidationData(*points(9, 60)), per_class=10)
        owner.open_round(
            1,
            round_terms(
                model_cid=published.cid,
                model_hash=published.hash,
                price=PRICE,
                budget=5_000,
                phase_sec=120,
                close_after=len(devices),
                tau=400_000,
                training=Recipe(epochs=20, batch_size=10, rate_e6=100_000, measures=8, seed=1),
            ),
        )
        said = {client: one.communicate(timeout=180) for client, one in running.items()}
    finally:
        for one in running.values():
            if one.poll() is None:
                one.kill()
                one.communicate()
    for client, (phone, _) in devices.items():
        out, err = said[client]
        assert running[client].returncode == 0, err
        outcome = json.loads(out)
        assert outcome["account"] == phone and outcome["version"] == 1 and outcome["paid"]
        row = contract.member(task, phone)
        assert row is not None and row.upload_state is UploadState.PAID
        assert row.upload_reason is VerdictCode.ACCEPT
        assert row.upload_cost == EXAMPLES[client]
        blob = store.get(row.upload_cid)
        assert hashlib.sha256(blob).digest() == row.upload_hash
        got = chain.balance("eosio.token", phone, "TOK")
        assert got is not None and got.amount == EXAMPLES[client] * PRICE
    owner.close_round(1)
    found = owner.wait_sum(1)
    assert found.state is RoundState.SUMMED and found.accepted == len(devices)
    assert owner.aggregate(1, model).updates == len(devices)
    owner.settle(1)
    escrow = contract.escrow(task)
    assert escrow.conserved and escrow.paid == sum(EXAMPLES.values()) * PRICE
    assert escrow.reserved == 0 and escrow.free == 10_000 - escrow.paid
