"""Encrypting from a seed: the formulas in plain integers, and what must never coincide."""

import gc
import hashlib
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger import envelope, opening, paillier
from gradledger.codec import Codec
from gradledger.errors import CodecError, ConfigError, PaillierError
from gradledger.paillier import PaillierPublicKey, encrypting, engines, seeded
from gradledger.paillier.masks import MaskStore
from gradledger.paillier.seeded import SeededRandomness
from owner.paillier_key import PaillierPrivateKey

SEED = hashlib.sha256(b"seed").digest()
EMULATED = "ifma-emulated"
KEYS = {
    bits: PaillierPrivateKey.generate(bits, allow_insecure_size_for_tests=True)
    for bits in (64, 66, 130, 338)
}
PUBLIC = KEYS[338].public
CODEC = Codec(500_000, 26, 9 * 12 + 4)  # ten plaintexts at 338 bits, the last one short


def codes_of(number, codec=CODEC):
    rng = np.random.default_rng(number)
    return rng.integers(0, 65536, codec.parameters).astype(np.uint16)


def numbers_of(payload, public=PUBLIC):
    width = public.ciphertext_bytes
    return [
        int.from_bytes(payload[start : start + width], "big")
        for start in range(0, len(payload), width)
    ]


def expected(n, seed, codes, slot_bits):
    """Section 2.2 of the protocol, in plain integers."""
    bits = n.bit_length()
    key_hash = hashlib.sha256(n.to_bytes((bits + 7) // 8, "big")).digest()
    update = hashlib.sha256(b"".join(int(code).to_bytes(2, "little") for code in codes)).digest()

    def drawn(use, counter, length):
        given = b"gradledger paillier" + key_hash + seed + update + bytes([use])
        stream = hashlib.shake_256(given + counter.to_bytes(8, "little"))
        return int.from_bytes(stream.digest((length + 7) // 8), "little") & ((1 << length) - 1)

    counter = 0
    while not (0 < (x := drawn(1, counter, bits)) < n and math.gcd(x, n) == 1):
        counter += 1
    hs = pow((-x * x) % n, n, n * n)
    slots = (bits - 1) // slot_bits
    ciphertexts = []
    for place, start in enumerate(range(0, len(codes), slots)):
        m = sum(
            int(code) << (slot * slot_bits)
            for slot, code in enumerate(codes[start : start + slots])
        )
        a = drawn(2, place, (bits + 1) // 2)
        ciphertexts.append((1 + m * n) * pow(hs, a, n * n) % (n * n))
    return ciphertexts


# ---- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", paillier.backends())
@pytest.mark.parametrize("bits", sorted(KEYS))
def test_every_backend_follows_the_protocol(bits, backend, monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, backend)
    public = KEYS[bits].public
    slots = (bits - 1) // 26
    codec = Codec(1_000_000, 26, 300 * slots - (slots > 1))  # two blocks of ciphertexts
    if backend == EMULATED:
        codec = Codec(1_000_000, 26, 17 * slots - (slots > 1))
    codes = codes_of(bits, codec)
    payload = public.encrypt(codes, codec, seed=SEED)
    assert numbers_of(payload, public) == expected(public.n, SEED, codes, 26)
    assert payload == public.encrypt(codes, codec, seed=SEED, fast=True, threads=2)
    assert payload == b"".join(public.encrypt_stream(codes, codec, seed=SEED))
    assert (KEYS[bits].decrypt_sums(payload, codec, 1) == codes).all()


@given(
    seed=st.binary(min_size=32, max_size=32),
    codes=st.lists(st.integers(0, 65535), min_size=1, max_size=40),
    slot_bits=st.integers(17, 32),
    bits=st.sampled_from(sorted(KEYS)),
)
@settings(deadline=None, max_examples=60)
def test_any_update_and_seed(seed, codes, slot_bits, bits):
    codec = Codec(1_000_000, slot_bits, len(codes))
    update = np.array(codes, dtype=np.uint16)
    public = KEYS[bits].public
    payload = public.encrypt(update, codec, seed=seed)
    assert numbers_of(payload, public) == expected(public.n, seed, codes, slot_bits)
    public.check_ciphertexts(payload, codec)


def test_values_and_their_codes_are_encrypted_alike():
    values = np.linspace(-1, 1, CODEC.parameters)
    payload = PUBLIC.encrypt(values, CODEC, seed=SEED)
    assert payload == PUBLIC.encrypt(CODEC.quantise(values), CODEC, seed=SEED)
    strided = np.repeat(CODEC.quantise(values), 2)[::2]
    assert payload == PUBLIC.encrypt(strided, CODEC, seed=SEED)


def test_nothing_is_shared_between_seeds_updates_and_keys():
    """One seed for two updates would give away their difference, if the base and exponents did
    not depend on the update."""
    other = KEYS[130].public
    codes, changed = codes_of(1), codes_of(1)
    changed[-1] ^= 1
    seeds = (SEED, bytes(32), SEED[:-1] + bytes([SEED[-1] ^ 1]))
    seen = set()
    for update in (codes, changed):
        for seed in seeds:
            randomness = SeededRandomness(PUBLIC.n, PUBLIC.key_hash, seed, update)
            exponents = randomness.exponents(169)(10 * 22)
            parts = {exponents[start : start + 22] for start in range(0, 220, 22)}
            assert len(parts) == 10
            assert not seen & (parts | {randomness.unit()})
            seen |= parts | {randomness.unit()}
            numbers = set(numbers_of(PUBLIC.encrypt(update, CODEC, seed=seed)))
            assert len(numbers) == 10 and not seen & numbers
            seen |= numbers
    one, two = (SeededRandomness(key.n, key.key_hash, SEED, codes) for key in (PUBLIC, other))
    assert one.exponents(64)(8) != two.exponents(64)(8)


def test_the_unit_is_drawn_until_it_is_one(monkeypatch):
    """Candidates of 0, of n and above, and with a factor of n are passed over."""
    p, n = int(KEYS[64]._p), KEYS[64].public.n
    answers = [0, n, (1 << 64) - 1, p, 5]
    asked = []

    def draw(self, use, counter, size):
        asked.append((use, counter, size))
        return answers[counter].to_bytes(size, "little")

    monkeypatch.setattr(SeededRandomness, "_bytes", draw)
    randomness = SeededRandomness(n, bytes(32), SEED, codes_of(1))
    assert randomness.unit() == 5
    assert asked == [(1, counter, 8) for counter in range(5)]
    monkeypatch.setattr(SeededRandomness, "_bytes", lambda self, use, counter, size: bytes(size))
    with pytest.raises(PaillierError, match=r"^expected a unit among 256 candidates, found none$"):
        randomness.unit()


def test_bits_of_a_candidate_above_those_of_n_are_cleared():
    public = KEYS[66].public
    for place in range(20):
        randomness = SeededRandomness(public.n, public.key_hash, bytes([place]) * 32, codes_of(1))
        assert 0 < randomness.unit() < public.n


def test_the_systems_generator_is_not_asked_and_nothing_is_kept(monkeypatch):
    cache = encrypting.EncryptorCache()
    monkeypatch.setattr("gradledger.paillier.public.ENCRYPTORS", cache)
    monkeypatch.setattr("secrets.token_bytes", None)
    monkeypatch.setattr("secrets.randbelow", None)
    PUBLIC.encrypt(codes_of(1), CODEC, seed=SEED)
    assert not cache._entries
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, SeededRandomness)]


def test_a_table_for_one_update_is_the_smaller_the_shorter_the_update(monkeypatch):
    for backend in paillier.backends():
        monkeypatch.setenv(engines.ENVIRONMENT, backend)
        engine = engines.current()
        for fast in (False, True):
            few, many = (engine.comb_size(fast, count, once=True) for count in (6, 1000))
            assert few in ((6, 8), (7, 8))
            assert many == engine.comb_size(fast, 1000)


# ---- refusals -------------------------------------------------------------------------------


def test_what_is_no_seed_is_refused_and_not_shown():
    secret = b"a secret that nobody should read"
    for wrong, shown in (
        (secret[:-1], "31 bytes"),
        (secret + b"!", "33 bytes"),
        (b"", "0 bytes"),
        (bytearray(secret), "bytearray"),
        (secret.decode(), "str"),
    ):
        with pytest.raises(
            PaillierError, match=f"^expected a seed of 32 bytes, got {shown}$"
        ) as caught:
            PUBLIC.encrypt(codes_of(1), CODEC, seed=wrong)
        assert "secret" not in str(caught.value)


def test_a_seed_goes_with_no_other_blinding(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    for other in ({"strict": True}, {"masks": store}):
        with pytest.raises(
            ConfigError, match=r"^seed: expected neither masks nor strict beside it"
        ):
            PUBLIC.encrypt_stream(codes_of(1), CODEC, seed=SEED, **other)


def test_an_update_that_does_not_fit_is_refused():
    with pytest.raises(CodecError):
        PUBLIC.encrypt(codes_of(1)[1:], CODEC, seed=SEED)


def test_the_seed_is_in_no_log_and_no_repr(caplog):
    caplog.set_level(logging.DEBUG)
    randomness = SeededRandomness(PUBLIC.n, PUBLIC.key_hash, SEED, codes_of(1))
    PUBLIC.encrypt(codes_of(1), CODEC, seed=SEED)
    shown = caplog.text + repr(randomness) + repr(randomness.exponents(64))
    assert SEED.hex() not in shown
    assert repr(SEED)[2:12] not in shown


# ---- openings -------------------------------------------------------------------------------


@given(seed=st.binary(min_size=32, max_size=32), codes=st.lists(st.integers(0, 65535), min_size=1))
@settings(deadline=None, max_examples=60)
def test_an_opening_and_back(seed, codes):
    codec = Codec(1, 17, len(codes))
    payload = opening.pack_opening(seed, np.array(codes, dtype=np.uint16), codec)
    assert len(payload) == opening.opening_bytes(codec) == 32 + 2 * len(codes)
    found, update = opening.split_opening(payload, codec)
    assert found == seed and update.tolist() == codes and update.dtype == np.uint16
    assert payload[32:34] == codes[0].to_bytes(2, "little")


@pytest.mark.parametrize("size", [0, 31, 32, 32 + 2 * 112 - 1, 32 + 2 * 112 + 1, 10_000])
def test_an_opening_of_another_length_is_refused(size):
    with pytest.raises(CodecError, match=f"^expected an opening of 256 bytes, got {size}$"):
        opening.split_opening(bytes(size), CODEC)


def test_only_whole_openings_are_packed():
    with pytest.raises(PaillierError, match="expected a seed of 32 bytes, got 31 bytes"):
        opening.pack_opening(SEED[1:], codes_of(1), CODEC)
    with pytest.raises(CodecError, match=r"expected 112 codes in one row, got \(111,\)"):
        opening.pack_opening(SEED, codes_of(1)[1:], CODEC)
    with pytest.raises(CodecError, match="expected an array of uint16 codes"):
        opening.pack_opening(SEED, codes_of(1).astype(np.int32), CODEC)


def test_seeds_have_one_length():
    assert envelope.OPENING_SEED_BYTES == seeded.SEED_BYTES == paillier.SEED_BYTES
    assert isinstance(PUBLIC, PaillierPublicKey)
