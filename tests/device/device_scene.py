"""A task on the real network whose owner and validators the test plays by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.terms import round_terms, task_terms
from device_sdk import Device
from gradledger import envelope
from gradledger.card import TaskCard
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Mode,
    Recipe,
    Role,
    Silence,
    Verdict,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Symbol
from gradledger.localnet.network import Network
from gradledger.lots import lot_commitment
from gradledger.models import Model, dump_validation_set
from gradledger.privacy import METADATA_KEY, Privacy
from gradledger.store import Store
from gradledger.validation import Commitment
from owner.paillier_key import PaillierPrivateKey

ARCHITECTURE = {"kind": "mlp", "layers": [4, 3], "activation": "relu"}
PARAMETERS = 15
CLIP_E6 = 1_000_000
SLOT_BITS = 26
PRICE = 10
TOKEN = Symbol(4, "TOK")


def points(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled points around three centres."""
    rng = np.random.default_rng(seed)
    centres = np.array([[3, 0, 0, 1], [0, 3, 0, 1], [0, 0, 3, 1]], dtype=np.float32)
    y = np.arange(count) % 3
    return (centres[y] + rng.normal(0, 0.5, (count, 4))).astype(np.float32), y


@dataclass
class Scene:
    """One task: its owner, four validators, and devices as asked for."""

    network: Network
    contract: FedLearning
    store: Store
    new_accounts: Callable[..., dict[str, PrivateKey]]
    paillier: PaillierPrivateKey
    task: str
    mode: Mode = Mode.PAILLIER
    silence: Silence = Silence.REFUND
    devices_count: int = 1
    architecture: Mapping[str, Any] = field(default_factory=lambda: ARCHITECTURE)
    validation: tuple[np.ndarray, np.ndarray] | None = None
    has_real_validators: bool = False
    privacy: Privacy | None = None
    commitment: Commitment | None = None
    owner: str = field(init=False)
    owner_key: PrivateKey = field(init=False, repr=False)
    validators: dict[str, PrivateKey] = field(init=False, repr=False)
    devices: dict[str, PrivateKey] = field(init=False, repr=False)
    card: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        accounts = list(self.new_accounts(5 + self.devices_count).items())
        self.owner, self.owner_key = accounts[0]
        self.validators = dict(accounts[1:5])
        if self.has_real_validators:
            names = self.network.info().validators
            self.validators = {name: self.network.key(name) for name in names}
        self.devices = dict(accounts[5:])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        names = ("left", "middle", "right")
        count = self.architecture["layers"][-1]
        return names if count == 3 else tuple(str(number) for number in range(count))

    @property
    def parameters(self) -> int:
        """Length of an update."""
        return Model.random_glorot(self.architecture, 0).parameters

    def create(self, **changes: Any) -> None:
        """Create and fund the task; admit everybody; let the validators join."""
        sealed = self.mode is Mode.SEALED
        self.card = TaskCard(
            task=self.task,
            owner=self.owner,
            description="three heaps of points",
            classes=self.classes,
            architecture=self.architecture,
            owner_enc_key=self.public(self.owner_key),
            paillier_n=None if sealed else self.paillier.public.n,
            privacy=self.privacy,
            validation=self.commitment,
        ).to_bytes()
        terms: dict[str, Any] = {
            "mode": self.mode,
            "silence": self.silence,
            "classes": len(self.classes),
            "errors_max": 8,
            "cost_max": 1000,
            "parameters": self.parameters,
            "slot_bits": SLOT_BITS,
            "clip_e6": CLIP_E6,
            "key_hash": bytes(32) if sealed else self.paillier.public.key_hash,
            "card_cid": self.store.put(self.card),
            "card_hash": hashlib.sha256(self.card).digest(),
        }
        act = self.contract
        self.push(act.createtask(self.task, self.owner, task_terms(**{**terms, **changes})))
        self.push(act.admit(self.task, self.owner, list(self.devices), Role.DEVICE))
        self.push(act.admit(self.task, self.owner, list(self.validators), Role.VALIDATOR))
        for name, key in self.validators.items() if not self.has_real_validators else ():
            act.client.push([act.join(self.task, name, self.public(key), 0)], [key])
        self.network.transfer(act.account, "1.0000 TOK", memo=self.task)

    def wait_validators(self) -> None:
        """Wait until the real validators have joined by themselves."""
        self.contract.client.wait_until(
            lambda: all(
                m.joined for m in self.contract.members(self.task) if m.role is Role.VALIDATOR
            ),
            timeout_sec=30,
            what="the validators",
        )

    def device(self, number: int = 0, **changes: Any) -> Device:
        """Return the SDK's view of a device."""
        account, key = list(self.devices.items())[number]
        given = {"key": key, "task": self.task, "chain": self.contract.client, "store": self.store}
        return Device(account, **{**given, **changes})

    def publish(self, version: int = 1) -> Model:
        """Give every joined device its validation set; open a round with a fresh model."""
        self.issue(version)
        return self.open(version)

    def issue(self, version: int, payload: bytes | None = None) -> None:
        """Give every joined device its validation set, or one that the test made."""
        joined = [m for m in self.contract.members(self.task) if m.joined]
        judges = {m.account: m.enc_key for m in joined if m.role is Role.VALIDATOR}
        for member in joined:
            if member.role is not Role.DEVICE:
                continue
            if payload is None:
                payload = dump_validation_set(*(self.validation or points(version, 30)))
            header = self.header(envelope.Kind.VALIDATION_SET, version, 0)
            blob = envelope.seal(header, payload, {**judges, member.account: member.enc_key})
            cid, digest = self.store.put(blob), hashlib.sha256(blob).digest()
            self.push(
                self.contract.issueset(self.task, self.owner, member.account, version, cid, digest)
            )

    def open(
        self,
        version: int,
        readers: Sequence[str] | None = None,
        *,
        header_version: int | None = None,
        tamper: bool = False,
        metadata: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Model:
        """Open a round."""
        if metadata is None and self.privacy is not None:
            metadata = {METADATA_KEY: self.privacy.spent(version).to_text()}
        model = Model.random_glorot(self.architecture, version)
        members = {m.account: m.enc_key for m in self.contract.members(self.task) if m.joined}
        wanted = members if readers is None else {name: members[name] for name in readers}
        header = self.header(envelope.Kind.MODEL, header_version or version, self.parameters)
        blob = envelope.seal(
            header, model.to_bytes(metadata), {**wanted, self.owner: self.public(self.owner_key)}
        )
        digest = hashlib.sha256(blob).digest()
        terms = round_terms(
            phase_sec=60,
            model_cid=self.store.put(blob),
            model_hash=bytes(31) + b"\1" if tamper else digest,
            price=PRICE,
            budget=100_000 // 20,
            training=Recipe(epochs=5, batch_size=8, rate_e6=100_000, measures=4, seed=7),
        )
        action = self.contract.openround(self.task, self.owner, version, replace(terms, **changes))
        self.push(action)
        return model

    def header(self, kind: envelope.Kind, version: int, parameters: int) -> envelope.Header:
        """Return a header of the owner's."""
        return envelope.Header(
            kind=kind,
            codec=envelope.PayloadCodec.BYTES,
            task=self.task,
            sender=self.owner,
            version=version,
            parameters=parameters,
        )

    def attest(
        self, version: int, digest: bytes, codes: Sequence[VerdictCode], *, is_audit: bool = False
    ) -> list[str]:
        """Let the validators say these codes in turn; return the transactions."""
        ids = []
        (slot,) = [
            m.upload_slot for m in self.contract.members(self.task) if m.upload_hash == digest
        ]
        say = self.contract.attestaudit if is_audit else self.contract.attest
        for (name, key), code in zip(self.validators.items(), codes, strict=False):
            action = say(self.task, version, name, [Verdict(slot=slot, hash=digest, code=code)])
            ids.append(self.contract.client.push([action], [key]).trx_id)
        return ids

    def commit_lots(self, version: int, which: slice = slice(4)) -> None:
        """Let validators commit to their lots."""
        for name, key in list(self.validators.items())[which]:
            made = lot_commitment(self.task, version, name, self._lot(name))
            action = self.contract.commitlot(self.task, version, name, made)
            self.contract.client.push([action], [key])

    def draw(self, version: int) -> str:
        """Let the validators reveal their lots; push the round on; return that transaction."""
        for name, key in self.validators.items():
            action = self.contract.reveallot(self.task, version, name, self._lot(name))
            self.contract.client.push([action], [key])
        return str(self.push(self.contract.push(self.task, self.owner, version)).trx_id)

    @staticmethod
    def _lot(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    def row(self, number: int = 0) -> Member:
        """Return a device's row."""
        found = self.contract.member(self.task, list(self.devices)[number])
        assert found is not None
        return found

    def wait_for(self, done: Callable[[], Any], what: str, timeout_sec: float = 40) -> Any:
        """Wait until something is true of the chain."""
        return self.contract.client.wait_until(done, timeout_sec=timeout_sec, what=what)

    def finish(self, version: int) -> None:
        """Close and settle a round whose uploads are decided."""
        self.push(self.contract.closeround(self.task, self.owner, version))
        self.push(self.contract.settle(self.task, self.owner, version))

    def push(self, action: Any) -> Any:
        """Send an action of the owner's."""
        return self.contract.client.push([action], [self.owner_key])

    @staticmethod
    def public(key: PrivateKey) -> bytes:
        """Return the X25519 public key of an account's key."""
        return envelope.public_key_of(key.encryption_key())
