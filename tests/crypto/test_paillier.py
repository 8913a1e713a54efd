"""Paillier: known answers, phe in both directions, each refusal, sums under encryption."""

import hashlib
import json
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger import paillier
from gradledger.codec import Codec
from gradledger.errors import CodecError, ConfigError, PaillierError
from gradledger.paillier import PaillierPublicKey, encrypting, engines
from owner.paillier_key import PaillierPrivateKey

VECTOR = json.loads((Path(__file__).parents[1] / "vectors" / "paillier.json").read_text())
P, Q = int(VECTOR["p"], 16), int(VECTOR["q"], 16)
N = P * Q
KEY = PaillierPrivateKey(P, Q)
PUBLIC = KEY.public
CODEC = Codec(clip_e6=500_000, slot_bits=26, parameters=200)  # three ciphertexts
WIDTH = 512
SMALL = PaillierPrivateKey.generate(256, allow_insecure_size_for_tests=True)


def codes_of(seed, codec=CODEC):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 65536, codec.parameters).astype(np.uint16)


def split(payload, width=WIDTH):
    return [
        int.from_bytes(payload[start : start + width], "big")
        for start in range(0, len(payload), width)
    ]


def join(numbers, width=WIDTH):
    return b"".join(number.to_bytes(width, "big") for number in numbers)


# ---- known answers --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, (4, 1), (5, 3)])
def test_known_answer(size):
    codes = (np.arange(200) * 331 % 65536).astype(np.uint16)
    unit = int.from_bytes(hashlib.shake_128(b"unit").digest(250), "big")
    stream = hashlib.shake_128(b"exponents").digest(128 * 3)
    asked = []

    def fixed(count):
        asked.append(count)
        return stream

    payload = encrypting.Encryptor(N, unit, size=size).encrypt(codes, CODEC, fixed)
    assert payload.hex() == VECTOR["ciphertexts"]
    assert asked == [len(stream)]
    # And by the formula of the protocol, in plain integers.
    hs = pow(-unit * unit % N, N, N * N)
    for place, plaintext in enumerate(CODEC.pack(codes, 2048)):
        message = int.from_bytes(plaintext, "little")
        exponent = int.from_bytes(stream[128 * place : 128 * (place + 1)], "little")
        expected = (1 + message * N) * pow(hs, exponent, N * N) % (N * N)
        assert split(payload)[place] == expected


@pytest.mark.parametrize("bits", [65, 67, 130, 255])
def test_odd_sizes_of_n(bits):
    rng = random.Random(bits)
    while True:
        p = int(gmpy2.next_prime(rng.getrandbits(bits // 2) | 1 << (bits // 2 - 1)))
        q = int(gmpy2.next_prime(rng.getrandbits(bits - bits // 2) | 1 << (bits - bits // 2 - 1)))
        if (p * q).bit_length() == bits and p != q:
            break
    key = PaillierPrivateKey(p, q, allow_insecure_size_for_tests=True)
    codec = Codec(1_000_000, 17, 50)
    one, two = codes_of(1, codec), codes_of(2, codec)
    total = key.public.add([key.public.encrypt(one, codec), key.public.encrypt(two, codec)], codec)
    assert (key.decrypt_sums(total, codec, 2) == one.astype(np.uint64) + two).all()


def test_key_hash_is_of_the_big_endian_modulus():
    assert PUBLIC.key_hash == hashlib.sha256(N.to_bytes(256, "big")).digest()
    assert PUBLIC.key_hash.hex() == VECTOR["key_hash"]
    assert paillier.key_hash(255) == hashlib.sha256(b"\xff").digest()


# ---- sums under encryption ------------------------------------------------------------------


@given(
    seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=6),
    slot_bits=st.integers(19, 32),
    parameters=st.integers(1, 60),
)
@settings(deadline=None, max_examples=40)
def test_sum_of_ciphertexts_is_the_sum_of_codes(seeds, slot_bits, parameters):
    seeds = seeds[: Codec(1, slot_bits, 1).devices_max]
    codec = Codec(1_000_000, slot_bits, parameters)
    updates = [codes_of(seed, codec) for seed in seeds]
    total = SMALL.public.add((SMALL.public.encrypt(each, codec) for each in updates), codec)
    sums = SMALL.decrypt_sums(total, codec, len(updates))
    assert (sums == np.sum(updates, axis=0, dtype=np.uint64)).all()


def test_sum_is_deterministic_in_any_order():
    payloads = [PUBLIC.encrypt(codes_of(seed), CODEC) for seed in range(4)]
    total = PUBLIC.add(payloads, CODEC)
    assert total == PUBLIC.add(reversed(payloads), CODEC)
    for place in range(3):
        product = 1
        for payload in payloads:
            product = product * split(payload)[place] % (N * N)
        assert product == split(total)[place]


def test_most_updates_that_a_slot_holds():
    codec = Codec(1_000_000, 17, 9)
    full = np.full(9, 65535, dtype=np.uint16)
    payload = SMALL.public.encrypt(full, codec)
    total = SMALL.public.add([payload, payload], codec)
    assert SMALL.decrypt_sums(total, codec, 2).tolist() == [131070] * 9
    with pytest.raises(PaillierError, match="expected at most 2 updates in slots of 17 bits"):
        SMALL.public.add([payload] * 3, codec)


def test_encrypting_twice_gives_other_ciphertexts():
    codes = codes_of(1)
    one, two = PUBLIC.encrypt(codes, CODEC), PUBLIC.encrypt(codes, CODEC)
    assert not set(split(one)) & set(split(two))


def test_gmpy2_takes_a_large_table_for_many_ciphertexts(monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, "gmpy2")
    few = encrypting.ENCRYPTORS.get(SMALL.public.n, 47)
    many = encrypting.ENCRYPTORS.get(SMALL.public.n, 48)
    assert (few.comb.teeth, many.comb.teeth) == (7, 10)
    codec = Codec(1_000_000, 26, 9 * 300)
    codes = codes_of(5, codec)
    assert (SMALL.decrypt_sums(SMALL.public.encrypt(codes, codec), codec, 1) == codes).all()


def test_encryptors_are_kept_and_bounded():
    cache = encrypting.EncryptorCache()
    keys = [PaillierPrivateKey.generate(64, allow_insecure_size_for_tests=True) for _ in range(4)]
    first = cache.get(keys[0].public.n, 2)
    assert cache.get(keys[0].public.n, 2) is first
    for key in keys:
        cache.get(key.public.n, 2)
    assert len(cache._entries) == encrypting.ENCRYPTORS_MAX
    assert cache.get(keys[0].public.n, 2) is not first


def test_threads_share_an_encryptor():
    with ThreadPoolExecutor(4) as pool:
        updates = [codes_of(seed) for seed in range(8)]
        payloads = list(pool.map(lambda codes: PUBLIC.encrypt(codes, CODEC), updates))
    sums = KEY.decrypt_sums(PUBLIC.add(payloads, CODEC), CODEC, 8, workers=3)
    assert (sums == np.sum(updates, axis=0, dtype=np.uint64)).all()


# ---- phe ------------------------------------------------------------------------------------


def test_phe_decrypts_our_ciphertexts():
    codes = codes_of(7)
    numbers = split(PUBLIC.encrypt(codes, CODEC))
    theirs = KEY.to_phe()
    for number, plaintext in zip(numbers, CODEC.pack(codes, 2048), strict=True):
        assert theirs.raw_decrypt(number) == int.from_bytes(plaintext, "little")


def test_we_decrypt_phes_ciphertexts():
    codes = codes_of(8)
    theirs = PUBLIC.to_phe()
    numbers = [
        theirs.raw_encrypt(int.from_bytes(plaintext, "little"))
        for plaintext in CODEC.pack(codes, 2048)
    ]
    payload = join(numbers)
    PUBLIC.check_ciphertexts(payload, CODEC)
    assert (KEY.decrypt_sums(payload, CODEC, 1) == codes).all()
    ours = PUBLIC.encrypt(codes, CODEC)
    sums = KEY.decrypt_sums(PUBLIC.add([payload, ours], CODEC), CODEC, 2)
    assert (sums == 2 * codes.astype(np.uint64)).all()


def test_phes_own_keys_serve_us():
    from phe import paillier as phe

    public, private = phe.generate_paillier_keypair(n_length=2048)
    key = PaillierPrivateKey.from_phe(private)
    assert key.public == PaillierPublicKey.from_phe(public)
    codes = codes_of(9)
    assert (key.decrypt_sums(key.public.encrypt(codes, CODEC), CODEC, 1) == codes).all()
    assert key.to_phe() == private
    assert key.public.to_phe() == public


# ---- the public key is checked --------------------------------------------------------------


def test_a_modulus_of_2048_bits_is_the_least():
    rng = random.Random(1)
    p, q = (int(gmpy2.next_prime(rng.getrandbits(1023) | 3 << 1021)) for _ in range(2))
    assert (p * q).bit_length() == 2046
    with pytest.raises(PaillierError, match=r"^n: expected 2048\.\.8192 bits, got 2046$"):
        PaillierPublicKey(p * q)
    PaillierPublicKey(p * q, allow_insecure_size_for_tests=True)
    assert PUBLIC.bits == 2048


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (N + 1, "n: expected an odd number"),
        (P**2, "n: expected a product of two primes, got a perfect power"),
        (int(gmpy2.next_prime(2**683)) ** 3, "n: expected a product of two primes, got a perfect"),
        (int(gmpy2.next_prime(N)), "n: expected a product of two primes, got a prime"),
        (N * 65521, "n: expected no prime factor below 65536"),
        (3 * int(gmpy2.next_prime(2**2048)), "n: expected no prime factor below 65536"),
        (0, r"n: expected 2048\.\.8192 bits, got 0"),
        (-N, "n: expected a positive number"),
        (2**8192 + 1, r"n: expected 2048\.\.8192 bits, got 8193"),
    ],
    ids=["even", "square", "cube", "prime", "factor", "factor-3", "zero", "negative", "too-long"],
)
def test_a_bad_modulus_is_refused(n, message):
    with pytest.raises(PaillierError, match=message):
        PaillierPublicKey(n)


def test_a_factor_above_the_bound_cannot_be_seen():
    # The weakness that the class documents: only small factors are found.
    PaillierPublicKey(N * 65537)


def test_key_as_text():
    assert PaillierPublicKey.from_hex(PUBLIC.to_hex()) == PUBLIC
    assert PaillierPublicKey.from_hex(PUBLIC.to_hex().upper()) == PUBLIC
    for text in ("", "0x12", "-5", "1_0", "zz", "f" * 2049, " " + PUBLIC.to_hex(), None, 5):
        with pytest.raises(PaillierError):
            PaillierPublicKey.from_hex(text)


def test_public_keys_compare_and_show_themselves():
    again = PaillierPublicKey(N)
    assert again == PUBLIC
    assert hash(again) == hash(PUBLIC)
    assert again != SMALL.public
    assert again != N
    assert repr(PUBLIC) == f"PaillierPublicKey(2048 bits, key_hash={VECTOR['key_hash'][:16]}...)"


# ---- ciphertexts are checked ----------------------------------------------------------------


def test_ciphertexts_in_range_pass():
    PUBLIC.check_ciphertexts(PUBLIC.encrypt(codes_of(1), CODEC), CODEC)
    PUBLIC.check_ciphertexts(join([1, N * N - 1, 2]), CODEC)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, r"expected a value in \[1, n\^2\)"),
        (N * N, r"expected a value in \[1, n\^2\)"),
        (2**4096 - 1, r"expected a value in \[1, n\^2\)"),
        (N, "expected no common factor with n"),
        (P, "expected no common factor with n"),
        (7 * Q, "expected no common factor with n"),
    ],
    ids=["zero", "n-squared", "largest", "n", "p", "multiple-of-q"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_ciphertext_is_refused_and_named(number, message, place):
    numbers = [5, 6, 7]
    numbers[place] = number
    with pytest.raises(PaillierError, match=f"^ciphertext {place}: {message}$"):
        PUBLIC.check_ciphertexts(join(numbers), CODEC)


@pytest.mark.parametrize("length", [0, 1, 3 * WIDTH - 1, 3 * WIDTH + 1, 2 * WIDTH, 4 * WIDTH])
def test_the_length_is_exact(length):
    message = f"^expected {3 * WIDTH} bytes of ciphertexts, got {length}$"
    with pytest.raises(PaillierError, match=message):
        PUBLIC.check_ciphertexts(bytes(length), CODEC)
    with pytest.raises(PaillierError, match=message):
        PUBLIC.add([bytes(length)], CODEC)
    with pytest.raises(PaillierError, match=message):
        KEY.decrypt_sums(bytes(length), CODEC, 1)


def test_nothing_to_add():
    with pytest.raises(PaillierError, match="expected at least one update to add, got none"):
        PUBLIC.add([], CODEC)


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(CodecError):
        PUBLIC.encrypt(np.zeros(199, dtype=np.uint16), CODEC)


# ---- sums are checked -----------------------------------------------------------------------


def encrypt_number(message):
    return KEY.to_phe().public_key.raw_encrypt(message)


def test_a_sum_above_its_bound_is_refused_and_named():
    slots = 2047 // 26
    good = [0, 65535, 0]
    payload = join([encrypt_number(number) for number in good])
    assert KEY.decrypt_sums(payload, CODEC, 1)[slots] == 65535
    bad = [0, 65536 << 26, 0]
    payload = join([encrypt_number(number) for number in bad])
    message = rf"^slot {slots + 1}: expected at most 1 x 65535 = 65535, got 65536$"
    with pytest.raises(CodecError, match=message):
        KEY.decrypt_sums(payload, CODEC, 1)
    KEY.decrypt_sums(payload, CODEC, 2)


def test_bits_outside_the_slots_are_refused():
    slots = 2047 // 26
    above = join([encrypt_number(number) for number in (0, 1 << (26 * slots), 0)])
    with pytest.raises(CodecError, match=r"^plaintext 1: bits set above its last slot$"):
        KEY.decrypt_sums(above, CODEC, 1)
    used = CODEC.parameters - 2 * slots
    padding = join([encrypt_number(number) for number in (0, 0, 1 << (26 * used))])
    with pytest.raises(CodecError, match=r"^slot 200: expected zero after the last parameter"):
        KEY.decrypt_sums(padding, CODEC, 1)


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (1025, 1), (1, 0), (1, 257)])
def test_arguments_of_decryption_are_bounded(count, workers):
    payload = PUBLIC.encrypt(codes_of(1), CODEC)
    with pytest.raises(PaillierError):
        KEY.decrypt_sums(payload, CODEC, count, workers=workers)


def test_workers_give_the_same_sums():
    codec = Codec(1_000_000, 26, 500)
    payload = SMALL.public.encrypt(codes_of(4, codec), codec)
    one = SMALL.decrypt_sums(payload, codec, 1)
    assert (one == SMALL.decrypt_sums(payload, codec, 1, workers=3)).all()


# ---- payload of a sum -----------------------------------------------------------------------


def test_sum_payload():
    payload = paillier.sum_payload(3, 4, b"ciphertexts")
    assert payload[:8].hex() == "0300000004000000"
    assert paillier.split_sum_payload(payload) == (3, 4, b"ciphertexts")
    for length in (0, 7, 8):
        with pytest.raises(PaillierError, match="more than 8 bytes"):
            paillier.split_sum_payload(bytes(length))


# ---- the private key ------------------------------------------------------------------------


def test_generated_keys_suit_the_short_exponent():
    key = PaillierPrivateKey.generate(2048)
    p, q = key._p, key._q
    assert key.public.bits == 2048
    assert p % 4 == q % 4 == 3
    assert gmpy2.gcd(p - 1, q - 1) == 2
    assert gmpy2.is_prime(p) and gmpy2.is_prime(q) and p != q
    assert abs(p - q).bit_length() > 900


@pytest.mark.parametrize("bits", [2047, 2046, 2049, 8194, 0])
def test_size_of_a_new_key_is_bounded(bits):
    with pytest.raises(PaillierError, match=r"expected an even number of 2048\.\.8192 bits"):
        PaillierPrivateKey.generate(bits)


@pytest.mark.parametrize(
    ("p", "q"), [(P, P), (P, Q + 2), (P, 1), (P + 1, Q)], ids=["equal", "q", "one", "p"]
)
def test_bad_primes_are_refused(p, q):
    with pytest.raises(PaillierError):
        PaillierPrivateKey(p, q)


def test_primes_must_be_coprime_to_each_others_order():
    p = 1_000_003
    q = next(q for k in range(2, 1000) if gmpy2.is_prime(q := k * p + 1))
    with pytest.raises(PaillierError, match=r"n coprime to \(p-1\)\(q-1\)"):
        PaillierPrivateKey(p, q, allow_insecure_size_for_tests=True)


def test_key_file(tmp_path):
    path = tmp_path / "paillier.json"
    KEY.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    again = PaillierPrivateKey.load(path)
    assert again.public == PUBLIC
    codes = codes_of(3)
    assert (again.decrypt_sums(PUBLIC.encrypt(codes, CODEC), CODEC, 1) == codes).all()
    with pytest.raises(ConfigError, match="cannot write the Paillier key: File exists"):
        KEY.save(path)


def test_key_file_ignores_a_lax_umask(tmp_path):
    old = os.umask(0)
    try:
        KEY.save(tmp_path / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_key_file_that_others_reach_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"expected mode 0600, got {mode:04o}"):
        PaillierPrivateKey.load(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1, "kind": "paillier", "p": "zz", "q": "5"}',
        b'{"format": 2, "kind": "paillier", "p": "b", "q": "d"}',
        b'{"format": 1, "kind": "paillier", "p": 11, "q": 13}',
        b" " * 65_537,
        b"[" * 60_000,
    ],
)
def test_key_file_with_something_else(tmp_path, text):
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError):
        PaillierPrivateKey.load(path)


def test_key_file_missing_or_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the Paillier key: No such file"):
        PaillierPrivateKey.load(tmp_path / "none")
    with pytest.raises(ConfigError):
        PaillierPrivateKey.load(tmp_path)


def test_the_private_key_keeps_silent():
    shown = repr(KEY) + str(KEY)
    for secret in (VECTOR["p"], VECTOR["q"], str(P), str(Q)):
        assert secret[:16] not in shown
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)
