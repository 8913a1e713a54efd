"""Trainings on the real network: small devices, real validators, an owner."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradledger import envelope
from gradledger.card import TaskCard, fetch_card, task_codec
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Mode,
    Round,
    RoundState,
    Task,
    UploadState,
)
from gradledger.chain.keys import PrivateKey
from gradledger.errors import GradledgerError
from gradledger.localnet.network import Network
from gradledger.models import Model
from gradledger.opening import pack_opening
from gradledger.store import Store
from gradledger.validation import Draw, opening_id, read_issued_set
from owner import Owner, Plan
from producer_validation.validator import Validator

ARCHITECTURE = {"kind": "mlp", "layers": [4, 3], "activation": "relu"}
CENTRES = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
EXAMPLES = 60
POLL_SEC = 0.05

log = logging.getLogger(__name__)


def points(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled points around three centres."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    return (CENTRES[y] + rng.normal(0, 0.5, (count, 4))).astype(np.float32), y


def train(model: Model, x: np.ndarray, y: np.ndarray, steps: int = 20) -> Model:
    """Softmax regression by gradient descent."""
    w, b = (model.arrays[name].astype(np.float64) for name in ("w0", "b0"))
    for _ in range(steps):
        scores = x @ w + b
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        w, b = w - 0.2 * x.T @ p / len(y), b - 0.2 * p.mean(axis=0)
    return model.with_arrays({"w0": w.astype(np.float32), "b0": b.astype(np.float32)})


@dataclass
class Phone:
    """A device that does by hand what the protocol asks of one."""

    account: str
    key: PrivateKey
    task: str
    contract: FedLearning
    store: Store
    seed: int
    deltas: dict[int, np.ndarray] = field(default_factory=dict)
    sent: dict[int, tuple[str, bytes, np.ndarray]] = field(default_factory=dict)
    shift: float = 0.0

    def join(self) -> None:
        public = envelope.public_key_of(self.key.encryption_key())
        self.push(self.contract.join(self.task, self.account, public, 0b111))

    def push(self, action: Any) -> None:
        self.contract.client.push([action], [self.key])

    def step(self) -> None:
        """Join; take part in a round that is open and not yet served; answer for the upload."""
        task = self.contract.task(self.task)
        member = self.contract.member(self.task, self.account)
        if member is None:
            return
        if not member.joined:
            self.join()
            return
        found = self.contract.round(self.task, task.version) if task.version else None
        if found is not None and member.upload_version == found.version:
            self.answer(task, found, member)
        if found is None or found.state is not RoundState.OPEN:
            return
        if member.upload_version == found.version or member.set_version != found.version:
            return
        self.upload(task, found)

    def read(self, cid: str, digest: bytes) -> bytes:
        data = self.store.get(cid)
        assert hashlib.sha256(data).digest() == digest
        return envelope.parse(data).open(self.account, self.key.encryption_key())

    def upload(self, task: Task, found: Round) -> None:
        member = self.contract.member(self.task, self.account)
        assert member is not None
        model = Model.from_bytes(self.read(found.model_cid, found.model_hash))
        card = fetch_card(self.store, task)
        draw = None
        if card.validation is not None:
            block_id = opening_id(self.contract, self.task, found)
            assert block_id is not None, "the set came before the round's opening was irreversible"
            where = (self.task, found.version, self.account, member.classes)
            draw = Draw(card.validation, block_id, *where)
        issued = self.read(member.set_cid, member.set_hash)
        valid_x, valid_y = read_issued_set(issued, draw)
        trained = train(model, *points(self.seed, EXAMPLES))
        delta = trained.vector - model.vector + np.float32(self.shift)
        codec = task_codec(task)
        codes = codec.quantise(delta)
        result = model.with_vector(model.vector + codec.dequantise(codes))
        errors = [one.error_micro(valid_x, valid_y) for one in (model, result)]
        blob = self.seal(task, found, card, codec, codes)
        cid = self.store.put(blob)
        digest = hashlib.sha256(blob).digest()
        self.sent[found.version] = cid, self.seed_of(found.version), codes
        shown = "" if found.reveal_sec else cid
        self.push(
            self.contract.fedlearning(
                self.task, self.account, found.version, digest, shown, EXAMPLES, errors
            )
        )
        self.deltas[found.version] = codec.dequantise(codes)

    def seed_of(self, version: int) -> bytes:
        return hashlib.sha256(f"{self.account} {version}".encode()).digest()

    def answer(self, task: Task, found: Round, member: Member) -> None:
        """Reveal the CID once the round is closed; open the upload if it was drawn."""
        cid, seed, codes = self.sent[found.version]
        if found.state is RoundState.VERIFYING and not member.upload_cid:
            self.push(self.contract.reveal(self.task, self.account, found.version, cid))
        if member.upload_state is UploadState.DRAWN and not member.opening_cid:
            codec = task_codec(task)
            header = envelope.Header(
                kind=envelope.Kind.OPENING,
                codec=envelope.PayloadCodec.QUANTISED,
                task=self.task,
                sender=self.account,
                version=found.version,
                parameters=codec.parameters,
                clip_e6=codec.clip_e6,
                examples=EXAMPLES,
            )
            blob = envelope.seal(header, pack_opening(seed, codes, codec), self.judges(found))
            opening = self.store.put(blob)
            self.push(self.contract.openupload(self.task, self.account, found.version, opening))

    def judges(self, found: Round) -> dict[str, bytes]:
        return {
            member.account: member.enc_key
            for member in self.contract.members(self.task)
            if member.account in found.validators
        }

    def seal(self, task: Task, found: Round, card: TaskCard, codec: Any, codes: Any) -> bytes:
        sealed = task.terms.mode is Mode.SEALED
        header = envelope.Header(
            kind=envelope.Kind.UPDATE,
            codec=envelope.PayloadCodec.QUANTISED if sealed else envelope.PayloadCodec.PAILLIER,
            task=self.task,
            sender=self.account,
            version=found.version,
            parameters=codec.parameters,
            slot_bits=0 if sealed else codec.slot_bits,
            clip_e6=codec.clip_e6,
            examples=EXAMPLES,
            key_hash=bytes(32) if sealed else task.terms.key_hash,
        )
        if sealed:
            payload = codec.to_bytes(codes)
        else:
            seed = self.seed_of(found.version) if task.terms.lot_e6 else None
            payload = card.public_key().encrypt(codes, codec, seed=seed)
        readers = self.judges(found)
        if sealed:
            readers[card.owner] = card.owner_enc_key
        return envelope.seal(header, payload, readers)


class LyingStore(Store):
    """The store of a Byzantine validator: it hands out another sum than it attested."""

    def put(self, data: bytes) -> str:
        if envelope.parse(data).header.kind is envelope.Kind.SUM:
            data = data[:-1] + bytes([data[-1] ^ 1])
        return super().put(data)


@dataclass
class Training:
    """A task to be: its plan, its members, and how to make its owner."""

    plan: Plan
    phones: list[Phone]
    validators: list[Validator]
    make_owner: Callable[[], Owner]
    network: Network
    paillier_key_file: Path

    @contextmanager
    def played(self) -> Iterator[Training]:
        """Let devices and validators act in a thread of their own."""
        stop = threading.Event()

        def play() -> None:
            while not stop.is_set():
                for actor in (*self.phones, *self.validators):
                    try:
                        actor.step()
                    except GradledgerError as exc:
                        log.info("%r: %s", actor, exc)
                time.sleep(POLL_SEC)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(timeout=60)

    def kill_node(self) -> None:
        """Kill the network's node without warning; `network.up()` brings it back.

        What it has now is irreversible by then: fresh accounts must not be forgotten.
        """
        self.make_owner().wait_irreversible(lambda: None, timeout_sec=60)
        for row in self.network.status()["processes"]:
            if row["name"].startswith("node"):
                os.kill(row["pid"], signal.SIGKILL)

    def expected(self, version: int, first: Model) -> np.ndarray:
        """Return T_version as it follows from what the devices sent."""
        vector = first.vector.astype(np.float64)
        for k in range(1, version + 1):
            vector = vector + np.mean([phone.deltas[k] for phone in self.phones], axis=0)
        return vector
