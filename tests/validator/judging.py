"""Rows, keys and envelopes of a made-up round, for tests that need no chain."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import gmpy2
import numpy as np

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.chain.contract import (
    Member,
    Mode,
    Recipe,
    Role,
    Round,
    RoundState,
    Rule,
    Silence,
    Task,
    TaskTerms,
    UploadState,
    ValidatorsKind,
    VerdictCode,
)
from gradledger.chain.names import Symbol
from gradledger.envelope import Header, Kind, PayloadCodec
from gradledger.models import Model, dump_validation_set
from gradledger.paillier import PaillierPublicKey
from producer_validation.checks import Measure

ARCHITECTURE = {"kind": "mlp", "layers": [2, 2], "activation": "relu"}
PARAMETERS = 6
CLIP_E6 = 2_000_000
VERSION = 3
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(("val1", "val2", "boss"), 1)}
PUBLIC = {name: envelope.public_key_of(secret) for name, secret in SECRETS.items()}
POINTS_X = np.array([[1, 0], [0, 1]] * 10, dtype=np.float32)
POINTS_Y = np.array([0, 1] * 10, dtype=np.int64)
UPDATE = np.array([1, -1, -1, 1, 0, 0], dtype=np.float32)  # the zero model becomes perfect


def make_key() -> PaillierPublicKey:
    """A key of 2048 bits whose secret nobody keeps."""
    low = gmpy2.mpz(3) << 1022
    primes = [
        gmpy2.next_prime(low + int(np.random.default_rng(seed).integers(2**62))) for seed in (1, 2)
    ]
    return PaillierPublicKey(int(primes[0] * primes[1]))


def make_task(mode: Mode, key: PaillierPublicKey | None) -> Task:
    """A task of account boss."""
    terms = TaskTerms(
        token_contract="eosio.token",
        token_symbol=Symbol.parse("4,TOK"),
        mode=mode,
        is_public=False,
        validators_kind=ValidatorsKind.NAMED,
        silence=Silence.REFUND,
        classes=2,
        errors_max=16,
        cost_max=1000,
        devices_max=100,
        sum_min=3,
        parameters=PARAMETERS,
        slot_bits=26,
        clip_e6=CLIP_E6,
        key_hash=key.key_hash if key else bytes(32),
        card_cid="",
        card_hash=bytes(32),
        lot_e6=0,
        bar_rounds=0,
    )
    return Task(
        id="digits",
        owner="boss",
        terms=terms,
        version=VERSION,
        devices=2,
        validators=2,
        deposited=0,
        paid=0,
        withdrawn=0,
    )


def make_member(account: str = "phone1", **changes: Any) -> Member:
    """A device with a pending upload of 60 examples."""
    fields: dict[str, Any] = {
        "account": account,
        "role": Role.DEVICE,
        "joined": True,
        "enc_key": bytes(32),
        "classes": 3,
        "set_version": VERSION,
        "set_cid": "",
        "set_hash": bytes(32),
        "upload_version": VERSION,
        "upload_slot": 1,
        "upload_hash": bytes(32),
        "upload_cid": "",
        "series_hash": bytes(32),
        "upload_cost": 60,
        "error_first": 500_000,
        "error_before": 500_000,
        "error_last": 0,
        "upload_state": UploadState.PENDING,
        "upload_reason": VerdictCode.NONE,
        "barred_until": 0,
        "opening_cid": "",
    }
    return Member(**{**fields, **changes})


def make_round(**changes: Any) -> Round:
    """The open round of version 3."""
    fields: dict[str, Any] = {
        "version": VERSION,
        "state": RoundState.OPEN,
        "model_cid": "",
        "model_hash": bytes(32),
        "price": 10,
        "budget": 1000,
        "deadline": 100,
        "verdict_sec": 10,
        "verdict_deadline": 0,
        "sum_sec": 10,
        "sum_deadline": 0,
        "reveal_sec": 0,
        "reveal_deadline": 0,
        "audit_sec": 0,
        "audit_deadline": 0,
        "opened_block": 1,
        "close_after": 0,
        "rule": Rule.EITHER,
        "tau": 100_000,
        "eta_e6": 1_000_000,
        "norm_max_e6": 0,
        "training": Recipe(epochs=1, batch_size=1, rate_e6=1, measures=2, seed=1),
        "uploads": 1,
        "pending": 1,
        "accepted": 0,
        "refused": 0,
        "held": 0,
        "drawn": 0,
        "reserved": 0,
        "paid": 0,
        "sum_hash": bytes(32),
        "sum_cid": "",
        "root": bytes(32),
        "settled": 0,
        "cursor": "",
        "validators": ("val1", "val2"),
        "sums": (),
        "lots": (),
        "frontier": (),
    }
    return Round(**{**fields, **changes})


@dataclass
class World:
    """A task in one mode, and an honest upload to it that a test spoils."""

    mode: Mode
    key: PaillierPublicKey | None

    def __post_init__(self) -> None:
        self.task = make_task(self.mode, self.key)
        self.codec = task_codec(self.task)
        codes = self.codec.quantise(UPDATE)
        if self.key is None:
            self.payload = self.codec.to_bytes(codes)
        else:
            self.payload = self.key.encrypt(codes, self.codec)
        self.readers = {name: PUBLIC[name] for name in ("val1", "val2")}
        packed = self.key is not None
        if not packed:
            self.readers["boss"] = PUBLIC["boss"]
        self.header = Header(
            kind=Kind.UPDATE,
            codec=PayloadCodec.PAILLIER if packed else PayloadCodec.QUANTISED,
            task="digits",
            sender="phone1",
            version=VERSION,
            parameters=PARAMETERS,
            slot_bits=26 if packed else 0,
            clip_e6=CLIP_E6,
            examples=60,
            key_hash=self.key.key_hash if self.key else bytes(32),
        )

    def blob(self, **changes: Any) -> bytes:
        """Seal the honest upload with some header fields changed."""
        return self.sealed(self.payload, **changes)

    def sealed(self, payload: bytes, **changes: Any) -> bytes:
        """Seal any payload."""
        return envelope.seal(replace(self.header, **changes), payload, self.readers)

    def measure(self, error_last: int = 0) -> Measure | None:
        """Return what sealed mode measures with."""
        if self.key is not None:
            return None
        model = Model(ARCHITECTURE, np.zeros(PARAMETERS))
        return Measure(model, POINTS_X, POINTS_Y, error_last)

    def facts(self, blob: bytes, **changes: Any) -> dict[str, Any]:
        """Return the arguments of `judge` for a blob whose hash was recorded rightly."""
        digest = hashlib.sha256(blob).digest()
        return {
            "task": self.task,
            "version": VERSION,
            "member": make_member(upload_hash=digest),
            "account": "val1",
            "secret": SECRETS["val1"],
            "key": self.key,
            "measure": self.measure(),
            **changes,
        }


def published(kind: Kind, payload: bytes, **changes: Any) -> bytes:
    """Seal something of the owner's to val1."""
    fields: dict[str, Any] = {
        "kind": kind,
        "codec": PayloadCodec.BYTES,
        "task": "digits",
        "sender": "boss",
        "version": VERSION,
        "parameters": PARAMETERS if kind is Kind.MODEL else 0,
    }
    return envelope.seal(Header(**{**fields, **changes}), payload, {"val1": PUBLIC["val1"]})


def validation_set() -> bytes:
    """Return the twenty points."""
    return dump_validation_set(POINTS_X, POINTS_Y)
