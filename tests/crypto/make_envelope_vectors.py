"""Make the golden envelopes anew: python tests/crypto/make_envelope_vectors.py

Only after a change of the format. Keys and nonces are fixed; sealed boxes carry a fresh key of
their own, so every run gives other bytes.
"""

import dataclasses
import json
from pathlib import Path

from gradledger import envelope
from gradledger.envelope import Header, Kind, PayloadCodec

VECTORS = Path(__file__).parents[1] / "vectors" / "envelope"
SECRETS = {name: bytes([place + 1] * 32) for place, name in enumerate(("alice", "bob", "carol"))}
KEY, NONCE = bytes(range(32)), bytes(range(100, 124))
KEY_HASH = bytes(range(200, 232))

CASES = {
    "card_plain": (
        Header(Kind.TASK_CARD, PayloadCodec.BYTES, "digits", "owner"),
        b'{"format": 1, "task": "digits"}',
        (),
    ),
    "model_plain": (
        Header(Kind.MODEL, PayloadCodec.BYTES, "digits", "owner", version=1, parameters=7),
        bytes(range(64)),
        (),
    ),
    "model_sealed": (
        Header(Kind.MODEL, PayloadCodec.BYTES, "digits", "owner", version=2, parameters=7),
        bytes(range(64)),
        ("alice", "bob", "carol"),
    ),
    "validation_set_sealed": (
        Header(Kind.VALIDATION_SET, PayloadCodec.BYTES, "digits", "owner", version=1),
        b"",
        ("bob",),
    ),
    "update_quantised": (
        Header(
            Kind.UPDATE,
            PayloadCodec.QUANTISED,
            "digits",
            "phone.1",
            version=3,
            parameters=5,
            clip_e6=500_000,
            examples=600,
        ),
        bytes.fromhex("0000 0100 0001 ff7f ffff"),
        ("alice", "carol"),
    ),
    "update_paillier": (
        Header(
            Kind.UPDATE,
            PayloadCodec.PAILLIER,
            "zzzzzzzzzzzzj",
            "a",
            version=2**32 - 1,
            parameters=2**31 - 1,
            slot_bits=32,
            clip_e6=2**32 - 1,
            examples=2**32 - 1,
            key_hash=KEY_HASH,
        ),
        bytes(range(256)) * 4,
        ("alice", "bob"),
    ),
    "opening_quantised": (
        Header(
            Kind.OPENING,
            PayloadCodec.QUANTISED,
            "digits",
            "phone.1",
            version=3,
            parameters=5,
            clip_e6=500_000,
            examples=600,
        ),
        bytes(range(50, 82)) + bytes.fromhex("0000 0100 0001 ff7f ffff"),
        ("alice", "carol"),
    ),
    "sum_paillier": (
        Header(
            Kind.SUM,
            PayloadCodec.PAILLIER,
            "digits",
            "validator.a",
            version=3,
            parameters=650,
            slot_bits=26,
            clip_e6=500_000,
            examples=4,
            key_hash=KEY_HASH,
        ),
        bytes.fromhex("03000000 04000000") + bytes(range(256)),
        ("alice",),
    ),
}


def main():
    """Write one `.bin` and one `.json` per case."""
    for name, (header, payload, readers) in CASES.items():
        if readers:
            keys = {reader: envelope.public_key_of(SECRETS[reader]) for reader in readers}
            data = envelope._seal(header, payload, keys, KEY, NONCE)
        else:
            data = envelope.plain(header, payload)
        fields = {
            field: value.hex() if isinstance(value, bytes) else value
            for field, value in dataclasses.asdict(envelope.parse(data).header).items()
        }
        document = {
            "header": fields,
            "header_hex": data[: envelope.HEADER_BYTES].hex(),
            "readers": sorted(readers),
            "secrets": {reader: SECRETS[reader].hex() for reader in readers},
            "payload": payload.hex(),
        }
        (VECTORS / f"{name}.bin").write_bytes(data)
        (VECTORS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
