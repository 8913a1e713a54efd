"""Paillier vectors under one public key: encrypt, add, check. `docs/protocol.md`, section 2.2."""

from gradledger.paillier.engines import backend, backends
from gradledger.paillier.public import (
    BITS_DEFAULT,
    BITS_MAX,
    BITS_MIN,
    SMALL_FACTOR_MAX,
    PaillierPublicKey,
    key_hash,
    split_sum_payload,
    sum_payload,
)
from gradledger.paillier.seeded import SEED_BYTES

__all__ = [
    "BITS_DEFAULT",
    "BITS_MAX",
    "BITS_MIN",
    "SEED_BYTES",
    "SMALL_FACTOR_MAX",
    "PaillierPublicKey",
    "backend",
    "backends",
    "key_hash",
    "split_sum_payload",
    "sum_payload",
]
