"""True runs that are unusual: packed, co-signed, re-keyed, judged by producers."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from audit_scene import COSTS, Liar, Played, in_row, steps_of
from device_scene import PRICE, Scene

from gradledger.audit.blocks import ProofError, _receipt, merkle_of_digests, read_block
from gradledger.audit.reader import Step
from gradledger.audit.replay import TaskReplay
from gradledger.audit.rows import differences, read_tables
from gradledger.audit.run import audit
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import (
    BALLOTS_PER_ROW,
    Role,
    ValidatorsKind,
    VerdictCode,
    contract_abi,
)
from gradledger.chain.keys import PrivateKey, recover_key, signature_variant
from gradledger.chain.names import Asset
from gradledger.chain.permissions import authority, update_auth
from gradledger.chain.transaction import Transaction
from gradledger.errors import ConfigError, NodeAnswerError
from gradledger.localnet.network import Network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
A = VerdictCode.ACCEPT


def test_producers_a_payer_a_packed_deposit_and_a_new_key(
    make_scene: Callable[..., Scene], localnet: Network
) -> None:
    scene = make_scene(devices_count=1, is_created=False)
    client, contract, device = scene.contract.client, scene.contract, scene.device()
    made = client.get_info().head_block + 1
    # so that the audit does not see how the accounts were made
    client.wait_until(lambda: client.get_info().head_block > made, timeout_sec=10)
    scene.validators = {"eosio": localnet.key("eosio")}
    scene.create(validators_kind=ValidatorsKind.PRODUCERS)
    device.join(classes=[0])

    # a deposit inside a compressed transaction
    localnet.transfer(scene.owner, "0.5000 TOK")
    info = client.get_info()
    action = contract.deposit(scene.task, scene.owner, Asset.parse("0.5000 TOK"))
    packed = Transaction.refer([action], info.head_time + 60, info.irreversible_id)
    body = packed.sign(info.chain_id, [scene.owner_key])
    body.update(compression=1, packed_trx=zlib.compress(packed.pack()).hex())
    client.send(body)

    # an upload that the owner co-signs, so that the device pays for nothing
    scene.issue(1)
    scene.open(1)
    digest = hashlib.sha256(b"update").digest()
    cid = scene.store.put(b"update")
    upload = contract.fedlearning(
        scene.task, device.account, 1, digest, cid, COSTS[0], [900_000, 100_000]
    )
    both = ((scene.owner, "active"), (device.account, "active"))
    client.push([replace(upload, authorization=both)], [scene.owner_key, device.key])
    scene.attest(1, digest, [A])

    # the device changes its key: what it signed before was signed with one that nobody shows
    key = PrivateKey.generate()
    auth = authority(key.public)
    client.push(
        [
            update_auth(device.account, "active", "owner", auth),
            update_auth(device.account, "owner", "", auth, by="owner"),
        ],
        [device.key],
    )
    scene.finish(1)
    report = audit(client, scene.task)
    assert report.verdict == "1 payments, all explained"
    assert (report.deposited, report.paid) == (15_000, COSTS[0] * PRICE)
    assert report.unsigned == 2  # join and upload
    assert report.signed == report.task_transactions - 2

    # a chain whose producers nobody names cannot be told
    def hide(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_producer_schedule":
            answer["active"]["version"] = 7

    report = audit(Liar(client, hide), scene.task)
    assert "are the producers of schedule 0, which no block read here announces" in report.finding


def test_ballots_have_room_for_all_devices(
    make_scene: Callable[..., Scene], new_accounts: Callable[..., dict[str, PrivateKey]]
) -> None:
    """With the device after the 32nd the table grows by a row, and shrinks when one leaves."""
    scene = make_scene(devices_count=BALLOTS_PER_ROW + 1)
    contract, task, owner = scene.contract, scene.task, scene.owner
    (other,) = new_accounts(1)
    moments = [read_tables(contract, task)]
    scene.push(contract.remove(task, owner, next(iter(scene.devices))))
    moments.append(read_tables(contract, task))
    last = contract.admit(task, owner, [other], Role.DEVICE)
    contract.client.transact([last], [scene.owner_key])
    moments.append(read_tables(contract, task))
    assert [len(tables.ballots) for tables in moments] == [2, 1, 2]
    books = TaskReplay(task, contract.account, contract.abi, schedules={})
    for step in steps_of(contract.client, task):
        if any(one.name in ("remove", "admit") for one in step.inputs) and books.deposited:
            assert list(differences(books, moments.pop(0))) == []
        books.apply(step)
    assert list(differences(books, moments.pop(0))) == [] and not moments


def test_a_chain_that_stands_still(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive's last block never becomes irreversible; where it is not ours, no matter."""
    monkeypatch.setattr("gradledger.audit.run.STANDSTILL_SEC", 0.3)
    client = played.client
    client.call("/v1/producer/pause", {})
    try:
        report = audit(client, played.task)
        changed = in_row(played.scene.contract, "tasks", bool, deposited=7)
        altered = audit(Liar(client, changed), played.task)
    finally:
        client.call("/v1/producer/resume", {})
    assert report.verdict == "4 payments, all explained"
    (note,) = report.notes
    assert note.startswith("the chain stands still at block ")
    assert "deposited: the blocks give 10000, the row says 7" in altered.finding


def test_every_block_of_a_real_chain_is_proven(chain: ChainClient) -> None:
    info = chain.get_info()
    expected = info.irreversible_id
    for number in range(info.irreversible_block, 0, -1):
        query = {"block_num_or_id": str(number)}
        block = read_block(number, chain.call("/v1/chain/get_raw_block", query))
        assert block.id == expected
        assert [trx.packed != b"" for trx in block.transactions].count(False) == 0
        expected = block.previous
    assert expected == "00" * 32 and block.action_root == info.chain_id


@pytest.fixture
def block_of(chain: ChainClient) -> Callable[..., dict[str, Any]]:
    """Make blocks of any number of transactions; their bytes follow from the first one's number."""
    empty = chain.call("/v1/chain/get_raw_block", {"block_num_or_id": "3"})

    def make(count: int, first: int = 0) -> dict[str, Any]:
        rows = []
        for number in range(first, first + count):
            body = {"signatures": [], "compression": "none", "packed_context_free_data": ""}
            body["packed_trx"] = number.to_bytes(4, "big").hex()
            row = {"status": "executed", "cpu_usage_us": 100, "net_usage_words": 0}
            rows.append({**row, "trx": [1, body]})
        root = merkle_of_digests([_receipt(row)[0] for row in rows]).hex()
        return {**empty, "transactions": rows, "transaction_mroot": root}

    return make


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_the_tree_marks_its_sides(count: int) -> None:
    leaves = [hashlib.sha256(bytes([number])).digest() for number in range(count)]

    def node(left: bytes, right: bytes) -> bytes:
        value = int.from_bytes(left, "big") & ~(1 << 255)
        other = int.from_bytes(right, "big") | 1 << 255
        return hashlib.sha256(value.to_bytes(32, "big") + other.to_bytes(32, "big")).digest()

    level = list(leaves)
    while len(level) > 1:
        level += level[-1:] * (len(level) % 2)
        level = [node(*level[at : at + 2]) for at in range(0, len(level), 2)]
    assert merkle_of_digests(leaves) == (level[0] if level else bytes(32))


@pytest.mark.parametrize(("count", "doubled"), [(3, 1), (6, 2), (7, 1)])
def test_a_doubled_transaction_is_refused_though_the_root_is_the_same(
    block_of: Callable[..., dict[str, Any]], count: int, doubled: int
) -> None:
    block = block_of(count)
    rows, root = block["transactions"], block["transaction_mroot"]
    assert len(read_block(3, block).transactions) == count
    again = [*rows, *rows[-doubled:]]
    assert merkle_of_digests([_receipt(row)[0] for row in again]).hex() == root
    with pytest.raises(ProofError, match="block 3: it has a transaction twice"):
        read_block(3, {**block, "transactions": again})


def test_a_node_of_the_tree_is_no_transaction(block_of: Callable[..., dict[str, Any]]) -> None:
    """Two transactions are hidden by giving the 64 bytes above them as a deferred one."""
    for first in range(10_000):
        block = block_of(2, first)
        left, right = (_receipt(row)[0] for row in block["transactions"])
        if left[0] & 0x7F == 0 and left[5] < 0x80:
            break
    node = bytes([0]) + left[1:] + bytes([right[0] | 0x80]) + right[1:]
    assert hashlib.sha256(node).hexdigest() == block["transaction_mroot"]
    row = {
        "status": "executed",
        "cpu_usage_us": int.from_bytes(node[1:5], "little"),
        "net_usage_words": node[5],
        "trx": node[6:].hex(),
    }
    with pytest.raises(NodeAnswerError, match="a transaction id of 58 bytes, not 32"):
        read_block(3, {**block, "transactions": [row]})


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": "2026-01-01T00:00:00.250"},
        {"timestamp": 7},
        {"previous": "00"},
        {"previous": "00000009" + "00" * 28},
        {"transactions": [{}]},
        {"transactions": None},
        {"header_extensions": [[1]]},
        {"producer": "NOBODY"},
        {"confirmed": -1},
        {"schedule_version": 2**32},
        {"new_producers": {"version": 1}},
    ],
)
def test_nonsense_instead_of_a_block(chain: ChainClient, change: dict[str, Any]) -> None:
    document = chain.call("/v1/chain/get_raw_block", {"block_num_or_id": "3"})
    assert read_block(3, document).number == 3
    with pytest.raises(NodeAnswerError, match="expected block 3"):
        read_block(3, {**document, **change})
    with pytest.raises(NodeAnswerError, match="expected block 3"):
        read_block(3, [])


def test_no_altered_field_of_a_block_passes_unnoticed(played: Played) -> None:
    """Whatever is changed, it is refused, or the block has another id."""
    number = played.block_of("attest")
    query = {"block_num_or_id": str(number)}
    text = json.dumps(played.client.call("/v1/chain/get_raw_block", query))
    true = read_block(number, json.loads(text))
    rng = random.Random(1)
    for _ in range(400):
        document = json.loads(text)
        # neither the producer's signature nor its extensions are part of what an id covers
        del document["producer_signature"], document["block_extensions"]
        path = rng.choice(list(_paths(document)))
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = rng.choice([None, -1, 2**70, "", "zz", "00" * 32, [], {}, [1, 2], 1.5])
        try:
            found = read_block(number, document)
        except (NodeAnswerError, ProofError):
            continue
        assert found.id != true.id or found == true


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything inside a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*path, key)
        if isinstance(one, (dict, list)):
            yield from _paths(one, (*path, key))


def test_signatures_of_other_kinds() -> None:
    digest = hashlib.sha256(b"text").digest()
    key = PrivateKey.generate()
    text = key.sign_digest(digest)
    assert recover_key(digest, text) == key.public
    assert signature_variant(text)[:1] == b"\0" and len(signature_variant(text)) == 66
    with pytest.raises(ConfigError, match="expected a signature"):
        signature_variant("SIG_XX_abc")
    with pytest.raises(ConfigError):
        signature_variant("SIG_R1_abc")


def test_a_task_that_nobody_made() -> None:
    books = TaskReplay("digits", "fedlearning", contract_abi(), schedules={})
    assert books.apply(Step(1, 0, "00" * 32, 0)) == []
    assert books.transactions == 0
