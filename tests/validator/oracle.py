"""Rounds on the real network, played by hand up to where the validators come in."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from judging import ARCHITECTURE, PARAMETERS, POINTS_X, POINTS_Y, UPDATE

from gradledger import envelope
from gradledger.card import TaskCard, task_codec
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Mode,
    Recipe,
    Role,
    Round,
    RoundState,
    RoundTerms,
    Rule,
    Silence,
    TaskTerms,
    UploadState,
    ValidatorsKind,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset, Symbol
from gradledger.cid import cid_v0
from gradledger.envelope import Header, Kind, PayloadCodec
from gradledger.localnet.network import Network
from gradledger.models import Model, dump_validation_set
from gradledger.opening import pack_opening
from gradledger.store import Store
from owner.paillier_key import PaillierPrivateKey
from producer_validation.validator import Validator

COST = 60
PRICE = 10
WAIT_SEC = 60.0
SYMBOL = Symbol.parse("4,TOK")


@dataclass
class Oracle:
    """A task with one owner, some devices and some validators."""

    network: Network
    contract: FedLearning
    store: Store
    mode: Mode
    paillier: PaillierPrivateKey
    task: str
    owner: str
    keys: dict[str, PrivateKey]
    devices: list[str]
    judges: list[str]
    silence: Silence = Silence.REFUND
    lot_e6: int = 0
    architecture: dict[str, Any] = field(default_factory=lambda: ARCHITECTURE)
    codes: dict[str, npt.NDArray[np.uint16]] = field(default_factory=dict)
    seeds: dict[str, bytes] = field(default_factory=dict)
    cids: dict[str, str] = field(default_factory=dict)

    @property
    def public(self) -> Any:
        return self.paillier.public if self.mode is Mode.PAILLIER else None

    def push(self, action: Any, account: str) -> None:
        self.contract.client.push([action], [self.keys[account]])

    def enc_key(self, account: str) -> bytes:
        return envelope.public_key_of(self.keys[account].encryption_key())

    # ---- the owner --------------------------------------------------------------------------

    def create(self) -> None:
        """Create the task, pay into it, admit everybody; the devices join."""
        card = TaskCard(
            task=self.task,
            owner=self.owner,
            description="",
            classes=("zero", "one"),
            architecture=self.architecture,
            owner_enc_key=self.enc_key(self.owner),
            paillier_n=self.public.n if self.public else None,
        ).to_bytes()
        terms = TaskTerms(
            token_contract="eosio.token",
            token_symbol=SYMBOL,
            mode=self.mode,
            is_public=False,
            validators_kind=ValidatorsKind.NAMED,
            silence=self.silence,
            classes=2,
            errors_max=16,
            cost_max=1000,
            devices_max=100,
            sum_min=3,
            parameters=PARAMETERS,
            slot_bits=26,
            clip_e6=2_000_000,
            key_hash=self.public.key_hash if self.public else bytes(32),
            card_cid=self.store.put(card),
            card_hash=hashlib.sha256(card).digest(),
            lot_e6=self.lot_e6,
            bar_rounds=2,
        )
        make = self.contract
        self.push(make.createtask(self.task, self.owner, terms), self.owner)
        self.push(make.deposit(self.task, self.owner, Asset(1_000_000, SYMBOL)), self.owner)
        self.push(make.admit(self.task, self.owner, self.devices, Role.DEVICE), self.owner)
        self.push(make.admit(self.task, self.owner, self.judges, Role.VALIDATOR), self.owner)
        for device in self.devices:
            self.push(make.join(self.task, device, self.enc_key(device), 3), device)

    def open(self, **changes: Any) -> Round:
        """Publish model and validation sets, open the next round."""
        version = self.contract.task(self.task).version + 1
        header = Header(
            kind=Kind.MODEL,
            codec=PayloadCodec.BYTES,
            task=self.task,
            sender=self.owner,
            version=version,
            parameters=PARAMETERS,
        )
        readers = {name: self.enc_key(name) for name in (*self.devices, *self.judges)}
        model = envelope.seal(header, Model(self.architecture, np.zeros(6)).to_bytes(), readers)
        header = replace(header, kind=Kind.VALIDATION_SET, parameters=0)
        for device in self.devices:
            blob = envelope.seal(header, dump_validation_set(POINTS_X, POINTS_Y), readers)
            cid, digest = self.store.put(blob), hashlib.sha256(blob).digest()
            self.push(
                self.contract.issueset(self.task, self.owner, device, version, cid, digest),
                self.owner,
            )
        fields: dict[str, Any] = {
            "model_cid": self.store.put(model),
            "model_hash": hashlib.sha256(model).digest(),
            "price": PRICE,
            "budget": 100_000,
            "open_sec": 120,
            "verdict_sec": 120,
            "sum_sec": 120,
            "reveal_sec": 0,
            "audit_sec": 120 if self.lot_e6 else 0,
            "close_after": 1,
            "rule": Rule.EITHER,
            "tau": 100_000,
            "eta_e6": 1_000_000,
            "norm_max_e6": 0,
            "training": Recipe(epochs=1, batch_size=1, rate_e6=1, measures=2, seed=1),
        }
        terms = RoundTerms(**{**fields, **changes})
        self.push(self.contract.openround(self.task, self.owner, version, terms), self.owner)
        return self.round()

    def close(self) -> None:
        self.push(self.contract.closeround(self.task, self.owner, self.round().version), self.owner)

    def round(self) -> Round:
        found = self.contract.current_round(self.task)
        assert found is not None
        return found

    def member(self, account: str) -> Member:
        found = self.contract.member(self.task, account)
        assert found is not None
        return found

    def verdict(self, device: str) -> tuple[UploadState, VerdictCode]:
        row = self.member(device)
        return row.upload_state, row.upload_reason

    def said(self, device: str) -> bytes:
        """Return what each validator said of a device's upload, a byte each."""
        row = self.member(device)
        ballot = self.contract.ballot(self.task, row.upload_slot)
        assert ballot is not None and (ballot.device, ballot.hash) == (device, row.upload_hash)
        return ballot.verdicts

    # ---- devices ----------------------------------------------------------------------------

    def upload(
        self,
        device: str,
        update: npt.ArrayLike = UPDATE,
        *,
        spoil: Callable[[bytes], bytes] = lambda blob: blob,
        store: bool = True,
        readers: Iterable[str] | None = None,
        errors: Sequence[int] = (500_000, 0),
        **changes: Any,
    ) -> bytes:
        """Seal an update, store it, record it; return the envelope.

        In a task with lots its encryption follows from a seed, so that it can be opened.
        """
        now, task = self.round(), self.contract.task(self.task)
        codec = task_codec(task)
        codes = codec.quantise(np.asarray(update, dtype=np.float32))
        fields: dict[str, Any] = {
            "kind": Kind.UPDATE,
            "codec": PayloadCodec.PAILLIER if self.public else PayloadCodec.QUANTISED,
            "task": self.task,
            "sender": device,
            "version": now.version,
            "parameters": PARAMETERS,
            "slot_bits": 26 if self.public else 0,
            "clip_e6": task.terms.clip_e6,
            "examples": COST,
            "key_hash": task.terms.key_hash,
        }
        self.seeds[device] = os.urandom(32)
        if self.public:
            seed = self.seeds[device] if self.lot_e6 else None
            payload = self.public.encrypt(codes, codec, seed=seed)
        else:
            payload = codec.to_bytes(codes)
        names = list(now.validators if readers is None else readers)
        names += [] if self.public else [self.owner]
        blob = spoil(
            envelope.seal(
                Header(**{**fields, **changes}),
                payload,
                {name: self.enc_key(name) for name in names},
            )
        )
        self.record(device, blob, store=store, errors=errors)
        self.codes[device] = codes
        return blob

    def record(
        self,
        device: str,
        blob: bytes,
        *,
        store: bool = True,
        errors: Sequence[int] = (500_000, 0),
    ) -> None:
        """Record any bytes as a device's upload; without its CID where that is revealed later."""
        self.cids[device] = self.store.put(blob) if store else cid_v0(blob)
        now, digest = self.round(), hashlib.sha256(blob).digest()
        cid = "" if now.reveal_sec else self.cids[device]
        self.push(
            self.contract.fedlearning(
                self.task, device, now.version, digest, cid, COST, list(errors)
            ),
            device,
        )

    def reveal(self, device: str) -> None:
        """Tell the CID of a device's upload, once the round is closed."""
        version = self.round().version
        self.push(self.contract.reveal(self.task, device, version, self.cids[device]), device)

    def open_upload(self, device: str, update: npt.ArrayLike | None = None) -> None:
        """Hand the validators the update that a device encrypted, or another."""
        now, task = self.round(), self.contract.task(self.task)
        codec = task_codec(task)
        codes = self.codes[device]
        if update is not None:
            codes = codec.quantise(np.asarray(update, dtype=np.float32))
        header = Header(
            kind=Kind.OPENING,
            codec=PayloadCodec.QUANTISED,
            task=self.task,
            sender=device,
            version=now.version,
            parameters=PARAMETERS,
            clip_e6=task.terms.clip_e6,
            examples=COST,
        )
        readers = {name: self.enc_key(name) for name in now.validators}
        blob = envelope.seal(header, pack_opening(self.seeds[device], codes, codec), readers)
        cid = self.store.put(blob)
        self.push(self.contract.openupload(self.task, device, now.version, cid), device)

    def finality(self) -> None:
        """Wait until all that happened so far is irreversible."""
        client = self.contract.client
        head = client.get_info().head_block
        client.wait_until(lambda: client.get_info().irreversible_block > head, timeout_sec=20)

    # ---- validators -------------------------------------------------------------------------

    def validator(self, number: int, cls: type[Validator] = Validator, **options: Any) -> Validator:
        name = self.judges[number]
        store = options.pop("store", self.store)
        fields = {"tasks": [self.task], **options}
        return cls(name, self.keys[name], self.contract.client, store, **fields)

    def validators(self, count: int = 4) -> list[Validator]:
        """Make honest validators and let them join."""
        made = [self.validator(number) for number in range(count)]
        step(made)
        return made

    def check_sum(self, accepted: Iterable[str]) -> None:
        """Decrypt the attested sum and compare it with what the devices sent."""
        now, codec = self.round(), task_codec(self.contract.task(self.task))
        names = sorted(accepted)
        assert now.accepted == len(names)
        copies = {vote.cid for vote in now.sums if vote.hash == now.sum_hash}
        assert now.sum_cid in copies
        for cid in copies:
            blob = self.store.get(cid)
            secret = self.keys[self.owner].encryption_key()
            payload = envelope.parse(blob).open(self.owner, secret)
            assert hashlib.sha256(payload).digest() == now.sum_hash
            sums = self.paillier.decrypt_sums(payload[8:], codec, len(names))
            assert (sums == sum(self.codes[name].astype(np.uint64) for name in names)).all()

    def check_money(self, accepted: Iterable[str]) -> None:
        """Every accepted upload is paid exactly once, and no other; the escrow is conserved."""
        paid = dict.fromkeys(accepted, COST * PRICE)
        for device in self.devices:
            held = self.contract.client.balance("eosio.token", device, "TOK")
            assert (held.amount if held else 0) == paid.get(device, 0)
        escrow = self.contract.escrow(self.task)
        assert escrow.conserved and escrow.reserved == 0
        assert escrow.paid == sum(paid.values())


def step(validators: Iterable[Validator]) -> None:
    """Let each validator look once."""
    for validator in validators:
        validator.step()


def step_until(
    validators: Iterable[Validator], done: Callable[[], Any], *, timeout_sec: float = WAIT_SEC
) -> None:
    """Let the validators look until something has happened."""
    until, everybody = time.monotonic() + timeout_sec, list(validators)
    while not done():
        assert time.monotonic() < until, "the validators did not get there"
        step(everybody)
        time.sleep(0.05)


def decided(stage: Oracle, names: Mapping[str, Any] | Iterable[str]) -> Callable[[], bool]:
    """Return whether every upload has its verdict."""
    return lambda: all(
        stage.verdict(name)[0] in (UploadState.PAID, UploadState.REFUSED) for name in names
    )


def reached(stage: Oracle, state: RoundState) -> Callable[[], bool]:
    """Return whether the round has come to a state."""
    return lambda: stage.round().state is state
