"""A played task for the audit's tests, and nodes that lie about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from device_scene import Scene

from device_sdk import Device, Paid, Receipt, Refused
from gradledger.audit.blocks import merkle_of_digests, read_block
from gradledger.audit.reader import BlockReader, Step, Subject
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, RoundState, VerdictCode
from gradledger.chain.names import Asset
from gradledger.models import Model

A, X = VerdictCode.ACCEPT, VerdictCode.OUT_OF_RANGE
COSTS = (60, 70, 80)


def steps_of(client: ChainClient, task: str) -> list[Step]:
    """Return what the irreversible blocks have of a task."""
    info = client.get_info()
    subject = Subject(task, "fedlearning", "eosio.token", info.chain_id)
    reader = BlockReader(client, subject, traces=False)
    stretch = reader.read(1, info.irreversible_block, info.irreversible_id)
    steps = list(stretch.steps())
    stretch.close()
    return steps


@dataclass
class Played:
    """A task whose two rounds are settled, irreversibly."""

    scene: Scene
    receipts: dict[tuple[int, str], Receipt]
    outcomes: dict[tuple[int, str], Paid | Refused]

    @property
    def task(self) -> str:
        return self.scene.task

    @property
    def client(self) -> ChainClient:
        return self.scene.contract.client

    @property
    def devices(self) -> list[str]:
        return list(self.scene.devices)

    def steps(self) -> list[Step]:
        """Return what the blocks have of the task."""
        return steps_of(self.client, self.task)

    def block_of(self, action: str) -> int:
        """Return the last block with such an action of the task."""
        return max(s.block for s in self.steps() if any(i.name == action for i in s.inputs))


@dataclass
class Bought:
    """A task whose open round has an upload that validators accepted without looking."""

    scene: Scene
    device: str
    cid: str


def buy(scene: Scene) -> Bought:
    """Record a hash and another blob's CID; let a quorum accept it."""
    device = scene.device()
    device.join(classes=[0])
    scene.publish(1)
    cid, digest = scene.store.put(b"anything"), hashlib.sha256(b"other").digest()
    action = scene.contract.fedlearning(
        scene.task, device.account, 1, digest, cid, COSTS[0], [900_000, 100_000]
    )
    scene.contract.client.push([action], [device.key])
    scene.attest(1, digest, [A, X, A, A])
    return Bought(scene, device.account, cid)


def shift(model: Model, validation: object) -> tuple[Model, list[int]]:
    """Train by adding 0.25; in sealed mode the errors are those that are measured."""
    return model.with_vector(model.vector + 0.25), [1_000_000, 1_000_000, 0]


def upload(device: Device, cost: int) -> Receipt:
    """Take part in the open round."""
    with device.round(wait_sec=20) as round_:
        return round_.upload(round_.train(shift, examples=cost))


def play(scene: Scene) -> Played:
    """Play both rounds: in the first one is accepted, one refused and one gets no verdict."""
    client = scene.contract.client
    devices = [scene.device(number, verdict_sec_min=2) for number in range(3)]
    for device in devices:
        device.join(classes=[0, 1, 2])
    played = Played(scene, {}, {})
    for version, (kinds, terms) in enumerate(
        ((("accept", "refuse", "silent"), {"verdict_sec": 2}), (("accept", "accept"), {})), 1
    ):
        scene.issue(version)
        scene.open(version, close_after=len(kinds), tau=1_000_000, **terms)
        for device, cost, kind in zip(devices, COSTS, kinds, strict=False):
            receipt = upload(device, cost)
            played.receipts[version, device.account] = receipt
            codes = {"accept": [A, A, X, A], "refuse": [X, A, X, X]}.get(kind, [A])
            scene.attest(version, receipt.hash, codes)
        scene.push(scene.contract.closeround(scene.task, scene.owner, version))
        if "silent" in kinds:
            client.wait_until(lambda: _try_push(scene), timeout_sec=20, poll_sec=0.4)
        scene.push(scene.contract.settle(scene.task, scene.owner, version))
        for device in devices[: len(kinds)]:
            receipt = played.receipts[version, device.account]
            played.outcomes[version, device.account] = receipt.wait(timeout_sec=30)
    quantity = Asset(1000, scene.contract.task(scene.task).terms.token_symbol)
    withdrawal = scene.contract.withdraw(scene.task, scene.owner, quantity)
    client.transact([withdrawal], [scene.owner_key])
    return played


def _try_push(scene: Scene) -> bool:
    """Push round 1 on, once its verdict deadline allows it."""
    row = scene.contract.round(scene.task, 1)
    assert row is not None
    if row.state is RoundState.SUMMED:
        return True
    if scene.contract.client.get_info().head_time > row.verdict_deadline:
        scene.push(scene.contract.push(scene.task, scene.owner, 1))
    return False


class Liar(ChainClient):
    """A client of a true node whose answers are changed on the way.

    Parameters
    ----------
    true : ChainClient
    lie : callable
        Is given path, request and answer; changes the answer in place or returns another.
    """

    def __init__(self, true: ChainClient, lie: Callable[[str, Any, Any], Any]) -> None:
        super().__init__(true.endpoints)
        self._lie = lie

    def _call(self, path: str, document: Any, **options: Any) -> tuple[Any, int]:
        answer, endpoint = super()._call(path, document, **options)
        changed = self._lie(path, document, answer)
        return answer if changed is None else changed, endpoint


def in_block(number: int, change: Callable[[Any], None]) -> Callable[[str, Any, Any], None]:
    """Change one raw block."""

    def lie(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_raw_block" and document["block_num_or_id"] == str(number):
            change(answer)

    return lie


def in_row(
    contract: FedLearning, table: str, where: Callable[[Any], bool], **changes: Any
) -> Callable[[str, Any, Any], None]:
    """Change fields of the rows of a table for which `where` holds."""

    def lie(path: str, document: Any, answer: Any) -> None:
        if path != "/v1/chain/get_table_rows" or document["table"] != table:
            return
        kind = contract.abi.tables[table]
        for place, raw in enumerate(answer["rows"]):
            row = contract.abi.unpack(kind, bytes.fromhex(raw))
            if where(row):
                answer["rows"][place] = contract.abi.pack(kind, {**row, **changes}).hex()

    return lie


def in_ballot(contract: FedLearning, slot: int, **changes: Any) -> Callable[[str, Any, Any], None]:
    """Change fields of the ballot in a slot of the first page."""

    def lie(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_table_rows" and document["table"] == "ballots":
            row = contract.abi.unpack("ballot_page", bytes.fromhex(answer["rows"][0]))
            row["ballots"][slot].update(changes)
            answer["rows"][0] = contract.abi.pack("ballot_page", row).hex()

    return lie


class Forger:
    """A node that invents a whole chain: one block changed, everything after it made to fit."""

    def __init__(self, true: ChainClient, number: int, change: Callable[[Any], None]) -> None:
        self._true, self._number, self._change = true, number, change
        self._blocks: dict[int, Any] = {}
        self._ids: dict[int, str] = {}

    def __call__(self, path: str, document: Any, answer: Any) -> Any:
        if path == "/v1/chain/get_info":
            last = answer["last_irreversible_block_num"]
            self._forge(last)
            answer["last_irreversible_block_id"] = self._ids[last]
        elif path == "/v1/chain/get_raw_block":
            return self._blocks.get(int(document["block_num_or_id"]), answer)
        return None

    def _forge(self, last: int) -> None:
        from gradledger.audit.blocks import _receipt

        for number in range(max(self._blocks, default=self._number - 1) + 1, last + 1):
            block = self._true.call("/v1/chain/get_raw_block", {"block_num_or_id": str(number)})
            if number == self._number:
                self._change(block)
                roots = [_receipt(row)[0] for row in block["transactions"]]
                block["transaction_mroot"] = merkle_of_digests(roots).hex()
            else:
                block["previous"] = self._ids[number - 1]
            self._blocks[number] = block
            self._ids[number] = read_block(number, block).id
