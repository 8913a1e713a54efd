"""Each arithmetic that runs here against gmpy2: same bytes, same refusals; how one is chosen."""

import importlib.util
import os
import random
import shutil
import sys
import threading

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger import paillier
from gradledger.codec import Codec
from gradledger.errors import CodecError, ConfigError, PaillierError
from gradledger.paillier import PaillierPublicKey, encrypting, engines, native
from gradledger.paillier.encrypting import Encryptor
from gradledger.paillier.gmpy import Gmpy2
from owner.paillier_key import PaillierPrivateKey

KERNELS = {kernel.name: kernel for kernel in native.load()}
GMPY2 = Gmpy2()


def key_of(bits):
    rng = random.Random(bits)
    while True:
        p, q = (
            int(gmpy2.next_prime(rng.getrandbits(size) | 1 << (size - 1)))
            for size in (bits // 2, bits - bits // 2)
        )
        if p != q and (p * q).bit_length() == bits and gmpy2.gcd(p * q, (p - 1) * (q - 1)) == 1:
            return PaillierPrivateKey(p, q, allow_insecure_size_for_tests=True)


KEYS = {bits: key_of(bits) for bits in (64, 65, 97, 130, 255, 337, 520, 2048)}
REAL = {bits: key_of(bits) for bits in (3072, 4096)}


def join(numbers, width):
    return b"".join(int(number).to_bytes(width, "big") for number in numbers)


def fixed(seed):
    return random.Random(seed).randbytes


@pytest.fixture(params=sorted(KERNELS))
def kernel(request, monkeypatch):
    monkeypatch.setenv(engines.ENVIRONMENT, request.param)
    return KERNELS[request.param]


def with_backend(monkeypatch, name, call):
    monkeypatch.setenv(engines.ENVIRONMENT, name)
    return call()


# ---- same bytes -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", sorted(KEYS))
def test_encrypt_add_check_and_decrypt_as_gmpy2(kernel, bits, monkeypatch):
    key = KEYS[bits]
    slots = (bits - 1) // 26
    codec = Codec(1_000_000, 26, 9 * slots + 1)  # ten ciphertexts: groups of lanes and a rest
    rng = np.random.default_rng(bits)
    updates = [
        np.zeros(codec.parameters, dtype=np.uint16),
        np.full(codec.parameters, 65535, dtype=np.uint16),
        rng.integers(0, 65536, codec.parameters).astype(np.uint16),
    ]

    lengths = (None, encrypting.strict_bits(key.public.n)) if bits < 1000 else (300,)

    def results():
        payloads = [
            Encryptor(key.public.n, 77, exponent_bits, fast, (4, 3)).encrypt(
                update, codec, fixed(3)
            )
            for update in updates
            for exponent_bits in lengths
            for fast in (False, True)
        ]
        for payload in payloads:
            key.public.check_ciphertexts(payload, codec)
        total = key.public.add(payloads, codec)
        return payloads, total, key.decrypt_sums(total, codec, len(payloads)).tolist()

    ours = results()
    assert ours == with_backend(monkeypatch, "gmpy2", results)
    times = 2 * len(lengths)
    assert ours[2] == (times * np.sum(updates, axis=0, dtype=np.uint64)).tolist()


@pytest.mark.parametrize("bits", sorted(REAL))
def test_long_keys_as_gmpy2(kernel, bits, monkeypatch):
    key = REAL[bits]
    codec = Codec(1_000_000, 26, 100)
    codes = np.arange(100, dtype=np.uint16) * 655

    def results():
        payload = Encryptor(key.public.n, 5, 300, size=(4, 4)).encrypt(codes, codec, fixed(1))
        key.public.check_ciphertexts(payload, codec)
        return payload, key.public.add([payload] * 3, codec)

    ours = results()
    assert ours == with_backend(monkeypatch, "gmpy2", results)
    assert (key.decrypt_sums(ours[1], codec, 3) == 3 * codes.astype(np.uint64)).all()


@pytest.mark.parametrize("bits", [64, 130, 520, 2048])
def test_edge_values_as_gmpy2(kernel, bits):
    n = KEYS[bits].public.n
    width = (2 * bits + 7) // 8
    rng = random.Random(bits)
    numbers = [1, 2, n - 1, n + 1, n * n - 1, n * n - 2, (1 << (2 * bits - 2)) + 1]
    numbers = [number for number in numbers if gmpy2.gcd(number, n) == 1]
    numbers += [rng.randrange(n * n) | 1 for _ in range(3)]
    payload = join(numbers, width)
    ours, theirs = (engine.sums(n, width, len(numbers)) for engine in (kernel, GMPY2))
    for _ in range(4):
        ours.multiply(payload, 1)
        theirs.multiply(payload, 1)
    assert ours.write(1) == theirs.write(1)
    p, q = sorted((int(KEYS[bits]._p), int(KEYS[bits]._q)))
    coprime = join([number for number in numbers if gmpy2.gcd(number, n) == 1], width)
    plain = [engine.decryptor(p, q, width).decrypt(coprime, 1) for engine in (kernel, GMPY2)]
    assert plain[0] == plain[1]


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_limbs_of_any_length(data):
    """Products of random numbers under random moduli: the arithmetic under everything else."""
    kernel = KERNELS[data.draw(st.sampled_from(sorted(KERNELS)))] if KERNELS else GMPY2
    bits = data.draw(st.integers(64, 700))
    n = data.draw(st.integers(1 << (bits - 1), (1 << bits) - 1)) | 1
    width = (2 * bits + 7) // 8
    numbers = data.draw(st.lists(st.integers(0, n * n - 1), min_size=1, max_size=9))
    payload = join(numbers, width)
    sums = kernel.sums(n, width, len(numbers))
    for _ in range(2):
        sums.multiply(payload, 1)
    assert sums.write(1) == join([number * number % (n * n) for number in numbers], width)
    shared = gmpy2.gcd(kernel.product(payload, width, n, 1), n)
    assert (shared == 1) == all(gmpy2.gcd(number, n) == 1 for number in numbers)


def test_threads_give_the_same_bytes(kernel):
    key = KEYS[130].public
    codec = Codec(1_000_000, 26, 5 * 300)
    codes = np.arange(1500, dtype=np.uint16)
    encryptor = Encryptor(key.n, 3)
    payload = encryptor.encrypt(codes, codec, fixed(2))
    assert payload == encryptor.encrypt(codes, codec, fixed(2), threads=3)
    assert key.add([payload] * 2, codec) == key.add([payload] * 2, codec, threads=3)
    key.check_ciphertexts(payload, codec, threads=3)


def test_a_stream_is_the_payload_in_blocks(kernel):
    key = KEYS[130]
    codec = Codec(1_000_000, 26, 4 * 519 + 1)
    values = np.linspace(-2, 2, codec.parameters)
    blocks = list(key.public.encrypt_stream(values, codec))
    width = key.public.ciphertext_bytes
    assert [len(block) // width for block in blocks] == [256, 256, 8]
    sums = key.decrypt_sums(b"".join(blocks), codec, 1)
    assert (sums == codec.quantise(values)).all()


def test_fast_and_strict_are_decrypted_alike(kernel):
    key = KEYS[130]
    codec = Codec(1_000_000, 26, 12)
    codes = np.arange(12, dtype=np.uint16)
    for fast in (False, True):
        for strict in (False, True):
            payload = key.public.encrypt(codes, codec, fast=fast, strict=strict)
            assert (key.decrypt_sums(payload, codec, 1) == codes).all()


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 7, 8, 10])
def test_bad_ciphertexts_are_refused_and_named(kernel, place):
    private = KEYS[255]
    public, codec = private.public, Codec(1_000_000, 26, 9 * 11)
    p, n = int(private._p), public.n
    for number, message in (
        (0, r"expected a value in \[1, n\^2\)"),
        (n * n, r"expected a value in \[1, n\^2\)"),
        (p, "expected no common factor with n"),
        (n * n - p, "expected no common factor with n"),
        (n, "expected no common factor with n"),
    ):
        numbers = [5] * 11
        numbers[place] = number
        with pytest.raises(PaillierError, match=f"^ciphertext {place}: {message}$"):
            public.check_ciphertexts(join(numbers, public.ciphertext_bytes), codec)
    with pytest.raises(PaillierError, match="expected 704 bytes of ciphertexts, got 703"):
        public.add([bytes(703)], codec)


def test_a_decryptor_does_not_answer_for_a_factor_of_n(kernel):
    key = KEYS[255]
    p, q = sorted((int(key._p), int(key._q)))
    width = key.public.ciphertext_bytes
    with pytest.raises(PaillierError, match="shares a factor with n"):
        kernel.decryptor(p, q, width).decrypt(join([p], width), 1)


def test_too_few_random_bytes_are_refused(kernel):
    codec = Codec(1_000_000, 26, 9)
    with pytest.raises(PaillierError, match="expected 32 random bytes, got 5"):
        Encryptor(KEYS[255].public.n, 3, 256).encrypt(
            np.zeros(9, dtype=np.uint16), codec, lambda count: bytes(5)
        )


def test_impossible_tables_are_refused(kernel):
    with pytest.raises(MemoryError):
        Encryptor(KEYS[255].public.n, 3, size=(17, 1))


def test_threads_are_bounded():
    codec = Codec(1_000_000, 26, 9)
    for threads in (0, 257):
        with pytest.raises(PaillierError, match=r"expected 1\.\.256 threads"):
            KEYS[255].public.encrypt(np.zeros(9, dtype=np.uint16), codec, threads=threads)


# ---- quantising and packing -----------------------------------------------------------------

FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e308, -1e308, 0.5, 1.5, 2.5, -1.0, 1.0]),
)


@given(
    values=st.lists(FLOATS, min_size=1, max_size=40),
    clip_e6=st.integers(1, 2**32 - 1),
    single=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_quantise_bit_by_bit(values, clip_e6, single):
    codec = Codec(clip_e6, 26, len(values))
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=np.float32 if single else np.float64)
    array = array[np.isfinite(array)]
    codec = Codec(clip_e6, 26, max(1, len(array)))
    for kernel in KERNELS.values():
        if len(array):
            assert (kernel.quantise(array, codec) == codec.quantise(array)).all()


def test_ties_go_to_even(kernel):
    # clip 32767.5 / 65535 x 65535: a step is 1, and codes.5 are exact ties.
    codec = Codec(32_767_500_000 // 8, 26, 2000)
    ties = (np.arange(2000) - 1000) * (codec.clip / 65535)
    assert (kernel.quantise(ties, codec) == codec.quantise(ties)).all()
    assert (kernel.quantise(ties[::-1], codec) == codec.quantise(ties[::-1])).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_is_refused_and_named(kernel, bad, dtype):
    codec = Codec(1_000_000, 26, 100)
    values = np.zeros(100, dtype=dtype)
    values[[63, 99]] = bad
    with pytest.raises(CodecError, match=r"^value 63 is not finite: "):
        KEYS[255].public.encrypt(values, codec)
    with pytest.raises(CodecError, match=r"^value 63 is not finite: "):
        KEYS[255].public.encrypt_stream(values, codec)


@pytest.mark.parametrize("slot_bits", range(17, 33))
def test_values_and_their_codes_give_the_same_bytes(kernel, slot_bits, monkeypatch):
    key = KEYS[337].public
    codec = Codec(1_000_000, slot_bits, 31)
    for values in (np.linspace(-2, 2, 31), np.linspace(-2, 2, 31, dtype=np.float32)):
        encryptor = Encryptor(key.n, 9, size=(4, 2))
        codes = encrypting.codes_of(values, codec)
        payload = encryptor.encrypt(codes, codec, fixed(1))
        monkeypatch.setenv(engines.ENVIRONMENT, "gmpy2")
        same = Encryptor(key.n, 9, size=(4, 2))
        assert payload == same.encrypt(codec.quantise(values), codec, fixed(1))
        monkeypatch.setenv(engines.ENVIRONMENT, kernel.name)


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(8, dtype=np.uint16),
        np.zeros(9, dtype=np.int64),
        np.zeros((3, 3), dtype=np.float32),
        np.zeros(9, dtype=complex),
        [0.0] * 9,
    ],
    ids=["short", "int64", "matrix", "complex", "list"],
)
def test_other_updates_are_refused(update):
    with pytest.raises(CodecError):
        KEYS[255].public.encrypt(update, Codec(1_000_000, 26, 9))


def test_half_precision_and_strides(kernel):
    codec = Codec(1_000_000, 26, 50)
    wide = np.linspace(-1, 1, 100)
    assert (kernel.quantise(wide[::2], codec) == codec.quantise(wide[::2])).all()
    half = wide[:50].astype(np.float16)
    assert (kernel.quantise(half, codec) == codec.quantise(half)).all()


# ---- the choice -----------------------------------------------------------------------------


def test_the_choice(monkeypatch):
    monkeypatch.delenv(engines.ENVIRONMENT, raising=False)
    names = paillier.backends()
    assert paillier.backend() == names[0]
    assert "gmpy2" in names
    for name in names:
        assert with_backend(monkeypatch, name, paillier.backend) == name
    assert with_backend(monkeypatch, "auto", paillier.backend) == names[0]
    assert with_backend(monkeypatch, "", paillier.backend) == names[0]
    for name in ("openssl", "GMPY2", *({"avx2", "ifma", "portable"} - set(names))):
        with pytest.raises(
            ConfigError, match=r"^GRADLEDGER_PAILLIER: expected auto or one of .*gmp"
        ):
            with_backend(monkeypatch, name, paillier.backend)


def test_without_the_extension_gmpy2_does_it(monkeypatch):
    monkeypatch.setattr(native, "load", tuple)
    monkeypatch.delenv(engines.ENVIRONMENT, raising=False)
    assert paillier.backends() == ("gmpy2",)
    codec = Codec(1_000_000, 26, 20)
    key = KEYS[255]
    payload = key.public.encrypt(np.linspace(-1, 1, 20), codec)
    sums = key.decrypt_sums(key.public.add([payload, payload], codec), codec, 2)
    assert (sums == 2 * codec.quantise(np.linspace(-1, 1, 20)).astype(np.uint64)).all()
    with pytest.raises(ConfigError, match="expected auto or one of gmpy2, got 'portable'"):
        with_backend(monkeypatch, "portable", paillier.backend)


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_file_that_is_no_library_is_passed_over(monkeypatch, tmp_path, content):
    (tmp_path / "file.so").write_bytes(content)
    spec = importlib.util.spec_from_file_location("x", tmp_path / "file.so")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert native.load.__wrapped__() == ()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_extension_is_there_where_a_compiler_is():
    assert set(KERNELS) >= {"portable", "ifma-emulated"}


def test_encryptors_of_backends_are_kept_apart(monkeypatch):
    cache = encrypting.EncryptorCache()
    n = KEYS[130].public.n
    one = with_backend(monkeypatch, "gmpy2", lambda: cache.get(n, 3))
    assert with_backend(monkeypatch, "gmpy2", lambda: cache.get(n, 3)) is one
    assert with_backend(monkeypatch, "gmpy2", lambda: cache.get(n, 3, strict=True)) is not one
    for name in KERNELS:
        other = with_backend(monkeypatch, name, lambda: cache.get(n, 3))
        assert type(other.comb) is not type(one.comb)


def test_calls_release_the_interpreter(kernel):
    """Another thread runs while a kernel works: a counter moves during one long call."""
    encryptor = Encryptor(KEYS[2048].public.n, 3)
    codec = Codec(1_000_000, 26, 78 * 16)
    moved, done = [0], threading.Event()

    def count():
        while not done.is_set():
            moved[0] += 1
            done.wait(0.0001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = moved[0]
        encryptor.encrypt(np.zeros(codec.parameters, dtype=np.uint16), codec, os.urandom)
        after = moved[0]
    finally:
        done.set()
        thread.join()
    assert after > before


def test_one_key_of_each_kind_fits_a_public_key():
    assert PaillierPublicKey(REAL[3072].public.n) == REAL[3072].public
    assert sys.byteorder == "little" or not KERNELS
