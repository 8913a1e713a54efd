"""The sum: what is checked before it is opened, and what becomes of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gradledger import envelope
from gradledger.chain.contract import UploadState, VerdictCode
from gradledger.chain.keys import PrivateKey
from gradledger.codec import Codec
from gradledger.errors import (
    BlobMissingError,
    CodecError,
    EnvelopeError,
    NotAReaderError,
    PaillierError,
)
from gradledger.models import Model
from gradledger.paillier import sum_payload
from gradledger.store import Store
from owner import owner as owner_module
from owner.aggregation import Expected, apply_mean, open_sum, open_update, sum_codes
from owner.owner import Owner
from owner.paillier_key import PaillierPrivateKey

ARCHITECTURE = {"kind": "mlp", "layers": [3, 2], "activation": "relu"}
CODEC = Codec(clip_e6=1_000_000, slot_bits=18, parameters=8)
SECRET = bytes(range(32))
OWNER_KEY = envelope.public_key_of(SECRET)


@pytest.fixture(scope="module")
def key() -> PaillierPrivateKey:
    return PaillierPrivateKey.generate(256, allow_insecure_size_for_tests=True)


@pytest.fixture()
def expected(key: PaillierPrivateKey) -> Expected:
    return Expected("digits", 3, CODEC, key.public.key_hash)


def header(expected: Expected, **changes) -> envelope.Header:
    fields = envelope.Header(
        kind=envelope.Kind.SUM,
        codec=envelope.PayloadCodec.PAILLIER,
        task=expected.task,
        sender="val1",
        version=expected.version,
        parameters=CODEC.parameters,
        slot_bits=CODEC.slot_bits,
        clip_e6=CODEC.clip_e6,
        examples=2,
        key_hash=expected.key_hash,
    )
    return replace(fields, **changes)


def copy_of(expected, payload: bytes, readers=None, **changes) -> bytes:
    return envelope.seal(header(expected, **changes), payload, readers or {"owner": OWNER_KEY})


def open_it(data: bytes, expected: Expected, sum_hash: bytes, updates: int = 2) -> bytes:
    return open_sum(
        data,
        expected=expected,
        updates=updates,
        sum_hash=sum_hash,
        account="owner",
        secret=SECRET,
    )


def encrypted_sum(key: PaillierPrivateKey, deltas: list[np.ndarray]) -> bytes:
    updates = [key.public.encrypt(CODEC.quantise(delta), CODEC) for delta in deltas]
    return key.public.add(updates, CODEC)


def test_a_sum_moves_the_model_by_eta_times_the_mean(key, expected):
    rng = np.random.default_rng(5)
    deltas = [rng.uniform(-0.9, 0.9, 8).astype(np.float32) for _ in range(2)]
    payload = sum_payload(3, 2, encrypted_sum(key, deltas))
    sum_hash = hashlib.sha256(payload).digest()
    ciphertexts = open_it(copy_of(expected, payload), expected, sum_hash)
    sums = key.decrypt_sums(ciphertexts, CODEC, 2)
    base = Model.random_normal(ARCHITECTURE, 1)
    moved = apply_mean(base, CODEC, sums, 2, 500_000)
    wanted = base.vector + 0.5 * np.mean(deltas, axis=0)
    assert np.abs(moved.vector - wanted).max() <= 0.5 * CODEC.clip / 65_535 + 1e-6
    assert (sums == sum_codes(CODEC, [CODEC.quantise(d) for d in deltas])).all()


def test_a_copy_that_is_not_what_was_attested_is_refused(key, expected):
    payload = sum_payload(3, 2, encrypted_sum(key, [np.zeros(8), np.ones(8)]))
    right = hashlib.sha256(payload).digest()
    other = sum_payload(3, 2, encrypted_sum(key, [np.zeros(8), np.zeros(8)]))
    with pytest.raises(EnvelopeError, match="sum: expected the attested"):
        open_it(copy_of(expected, other), expected, right)


@pytest.mark.parametrize(
    ("version", "count", "message"),
    [(2, 2, "2 updates of round 3, got 2 of round 2"), (3, 1, "got 1 of round 3")],
)
def test_version_and_count_are_part_of_what_was_attested(key, expected, version, count, message):
    payload = sum_payload(version, count, encrypted_sum(key, [np.zeros(8)] * 2))
    with pytest.raises(EnvelopeError, match=message):
        open_it(copy_of(expected, payload), expected, hashlib.sha256(payload).digest())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "other"}, "task: expected digits, got other"),
        ({"version": 2}, "version: expected 3, got 2"),
        ({"parameters": 9}, "parameters: expected 8, got 9"),
        ({"slot_bits": 19}, "slot_bits: expected 18, got 19"),
        ({"clip_e6": 1}, "clip_e6: expected 1000000, got 1"),
        ({"key_hash": b"x" * 32}, "key_hash: expected"),
        ({"kind": envelope.Kind.UPDATE}, "kind: expected sum, got update"),
    ],
)
def test_a_header_that_differs_is_refused_before_anything_is_decrypted(
    key, expected, changes, message
):
    payload = sum_payload(3, 2, encrypted_sum(key, [np.zeros(8)] * 2))
    with pytest.raises(EnvelopeError, match=message):
        open_it(copy_of(expected, payload, **changes), expected, bytes(32))


def test_a_copy_for_somebody_else_and_a_damaged_one_are_refused(key, expected):
    payload = sum_payload(3, 2, encrypted_sum(key, [np.zeros(8)] * 2))
    digest = hashlib.sha256(payload).digest()
    with pytest.raises(NotAReaderError):
        open_it(copy_of(expected, payload, readers={"val2": OWNER_KEY}), expected, digest)
    damaged = bytearray(copy_of(expected, payload))
    damaged[-1] ^= 1
    for data in (bytes(damaged), bytes(damaged[:-1]), b"", b"junk" * 100):
        with pytest.raises(EnvelopeError):
            open_it(data, expected, digest)


def test_a_sum_that_no_honest_devices_made_is_not_applied(key, expected):
    """Without range proofs a device can encrypt more than 65,535; the owner sees the sum."""
    import gmpy2

    codes = np.full(8, 65_535, dtype=np.uint16)
    payload = key.public.encrypt(codes, CODEC)
    doubled = key.public.add([payload, payload], CODEC)
    assert key.decrypt_sums(doubled, CODEC, 2).max() == 2 * 65_535
    with pytest.raises(CodecError, match="expected at most 1 x 65535"):
        key.decrypt_sums(doubled, CODEC, 1)
    width = key.public.ciphertext_bytes
    overflowing = gmpy2.mpz(1 + key.public.n * (1 << 200)) % key.public.n**2
    hostile = int(overflowing).to_bytes(width, "big") + payload[width:]
    with pytest.raises((CodecError, PaillierError)):
        key.decrypt_sums(hostile, CODEC, 1)


def update_envelope(codes: np.ndarray, **changes) -> bytes:
    fields = envelope.Header(
        kind=envelope.Kind.UPDATE,
        codec=envelope.PayloadCodec.QUANTISED,
        task="digits",
        sender="phone1",
        version=3,
        parameters=8,
        clip_e6=CODEC.clip_e6,
        examples=10,
    )
    sealed_for = {"owner": OWNER_KEY}
    return envelope.seal(replace(fields, **changes), CODEC.to_bytes(codes), sealed_for)


def test_a_sealed_update_is_checked_against_hash_and_header():
    expected = Expected("digits", 3, CODEC, bytes(32))
    codes = CODEC.quantise(np.linspace(-1, 1, 8))

    def read(data: bytes, digest: bytes | None = None) -> np.ndarray:
        return open_update(
            data,
            expected=expected,
            device="phone1",
            upload_hash=digest or hashlib.sha256(data).digest(),
            account="owner",
            secret=SECRET,
        )

    assert (read(update_envelope(codes)) == codes).all()
    with pytest.raises(EnvelopeError, match="update: expected the recorded"):
        read(update_envelope(codes), bytes(32))
    with pytest.raises(EnvelopeError, match="sender: expected phone1, got phone2"):
        read(update_envelope(codes, sender="phone2"))
    with pytest.raises(EnvelopeError, match="version: expected 3, got 4"):
        read(update_envelope(codes, version=4))


@pytest.mark.parametrize("misses", [3, None])
def test_an_update_that_is_not_found_is_asked_for_again(monkeypatch, misses):
    """`misses`: how often the store says so before it has the second update; None: for ever."""
    monkeypatch.setattr(owner_module, "STUCK_SEC", 0.0)
    monkeypatch.setattr(owner_module, "MISSING_SEC", 60.0 if misses else 0.1)
    deltas = [np.full(8, 0.5), np.full(8, -0.25)]
    blobs, asked = {}, []
    members = []
    for number, delta in enumerate(deltas):
        name, cid = f"phone{number + 1}", f"cid{number + 1}"
        blobs[cid] = update_envelope(CODEC.quantise(delta), sender=name)
        digest = hashlib.sha256(blobs[cid]).digest()
        state = {"upload_state": UploadState.PAID, "upload_reason": VerdictCode.ACCEPT}
        members.append(
            SimpleNamespace(
                account=name, upload_version=3, upload_cid=cid, upload_hash=digest, **state
            )
        )

    def get(cid: str, *, bytes_max: int) -> bytes:
        asked.append(cid)
        if cid == "cid2" and (misses is None or asked.count(cid) <= misses):
            raise BlobMissingError("cat cid2: context deadline exceeded")
        return blobs[cid]

    store = Store()
    monkeypatch.setattr(store, "get", get)
    owner = Owner(
        "owner", task="digits", key=PrivateKey.generate(), chain="http://127.0.0.1:1", store=store
    )
    monkeypatch.setattr(owner, "_secret", SECRET)
    monkeypatch.setattr(owner, "members", lambda: members)
    monkeypatch.setattr(owner, "evidence", lambda found: "ab")
    base = Model.random_normal(ARCHITECTURE, 1)
    found = SimpleNamespace(version=3, eta_e6=1_000_000)
    result = owner._aggregate_sealed(found, base, Expected("digits", 3, CODEC, bytes(32)))
    used = deltas if misses else deltas[:1]
    assert result.updates == len(used) and asked.count("cid1") == 1
    assert np.abs(result.model.vector - base.vector - np.mean(used, axis=0)).max() < 1e-3
    if misses:
        assert result.note == "" and asked.count("cid2") == misses + 1
    else:
        assert result.note.startswith("phone2 is left out: cat cid2") and asked.count("cid2") > 1


def test_the_sum_of_many_codes_does_not_wrap():
    codes = np.full(8, 65_535, dtype=np.uint16)
    assert sum_codes(CODEC, [codes] * 4).tolist() == [4 * 65_535] * 8
