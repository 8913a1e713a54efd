"""Openings of drawn uploads: what is found out, and that honest ones are not refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gmpy2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import (
    ARCHITECTURE,
    CLIP_E6,
    PARAMETERS,
    POINTS_X,
    POINTS_Y,
    PUBLIC,
    SECRETS,
    UPDATE,
    VERSION,
)

from gradledger import envelope, paillier
from gradledger.chain.contract import VerdictCode
from gradledger.codec import Codec
from gradledger.envelope import Header, Kind, PayloadCodec
from gradledger.errors import PaillierError
from gradledger.models import Model
from gradledger.opening import opening_bytes, pack_opening
from gradledger.paillier import PaillierPublicKey, engines
from gradledger.paillier.encrypting import Encryptor
from gradledger.paillier.seeded import SeededRandomness
from owner.paillier_key import PaillierPrivateKey
from producer_validation.checks import Measure, Refusal
from producer_validation.openings import (
    check_opening,
    judge_opening,
    open_opening,
    opening_bytes_max,
)

CODE = VerdictCode.OPENING_MISMATCH
SEED, OTHER_SEED = (hashlib.sha256(text).digest() for text in (b"seed", b"another"))
PRIVATE = PaillierPrivateKey.generate(338, allow_insecure_size_for_tests=True)
KEY = PRIVATE.public
SLOTS = 12
CODEC = Codec(CLIP_E6, 26, 9 * SLOTS + 5)  # ten ciphertexts, the last one short
HEADER = Header(
    kind=Kind.OPENING,
    codec=PayloadCodec.QUANTISED,
    task="digits",
    sender="phone1",
    version=VERSION,
    parameters=PARAMETERS,
    clip_e6=CLIP_E6,
    examples=60,
)
SHORT = Codec(CLIP_E6, 26, PARAMETERS)
PAYLOAD = pack_opening(SEED, np.arange(PARAMETERS, dtype=np.uint16), SHORT)
# of the rows on chain, what is looked at
TERMS = SimpleNamespace(parameters=PARAMETERS, slot_bits=26, clip_e6=CLIP_E6)
TASK = SimpleNamespace(id="digits", terms=TERMS)
MEMBER = SimpleNamespace(account="phone1", upload_cost=60)


def codes_of(number: int) -> np.ndarray:
    """Return an update."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 65536, CODEC.parameters).astype(np.uint16)


CODES = codes_of(1)
UPLOAD = KEY.encrypt(CODES, CODEC, seed=SEED)


def checked(
    seed: bytes, codes: np.ndarray, upload: bytes, key: PaillierPublicKey = KEY
) -> np.ndarray | Refusal:
    """Return what is found of an opening."""
    return check_opening(pack_opening(seed, codes, CODEC), upload, CODEC, key)


def assert_differs(found: np.ndarray | Refusal, place: int) -> None:
    """It is refused, at a place, and no value is shown."""
    assert isinstance(found, Refusal), found
    assert found.code is CODE
    assert found.reason == (
        f"ciphertext {place}: expected what the opening gives when it is encrypted again, the "
        "upload has another"
    )


def times(upload: bytes, place: int, factor: int) -> bytes:
    """Multiply one ciphertext of an upload."""
    width, square = KEY.ciphertext_bytes, KEY.n * KEY.n
    start = place * width
    number = int.from_bytes(upload[start : start + width], "big") * factor % square
    return upload[:start] + number.to_bytes(width, "big") + upload[start + width :]


# ---- honest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", paillier.backends())
def test_an_honest_opening_gives_the_codes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.ENVIRONMENT, backend)
    for threads in (1, 3):
        payload = pack_opening(SEED, CODES, CODEC)
        found = check_opening(payload, UPLOAD, CODEC, KEY, threads=threads)
        assert not isinstance(found, Refusal)
        assert found.dtype == np.uint16 and (found == CODES).all()


@given(
    seed=st.binary(min_size=32, max_size=32),
    codes=st.lists(st.integers(0, 65535), min_size=1, max_size=60),
    place=st.integers(0, 10**6),
    bit=st.integers(0, 7),
)
@settings(deadline=None, max_examples=80)
def test_any_honest_opening_passes_and_no_changed_bit_does(
    seed: bytes, codes: list[int], place: int, bit: int
) -> None:
    codec = Codec(1_000_000, 26, len(codes))
    update = np.array(codes, dtype=np.uint16)
    upload = KEY.encrypt(update, codec, seed=seed)
    payload = pack_opening(seed, update, codec)
    found = check_opening(payload, upload, codec, KEY)
    assert not isinstance(found, Refusal) and found.tolist() == codes
    for changed_payload, changed_upload in (
        (flipped(payload, place, bit), upload),
        (payload, flipped(upload, place, bit)),
    ):
        refusal = check_opening(changed_payload, changed_upload, codec, KEY)
        assert isinstance(refusal, Refusal) and refusal.code is CODE


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """Change one bit."""
    changed = bytearray(data)
    changed[place % len(data)] ^= 1 << bit
    return bytes(changed)


@given(payload=st.binary(max_size=400), upload=st.binary(max_size=1000))
@settings(deadline=None, max_examples=100)
def test_any_bytes_give_a_refusal_and_nothing_else(payload: bytes, upload: bytes) -> None:
    codec = Codec(1_000_000, 26, 20)
    for each in (payload, payload[:72].ljust(72, b"\0")):
        found = check_opening(each, upload, codec, KEY)
        assert isinstance(found, Refusal) and found.code is CODE


# ---- cheats -------------------------------------------------------------------------------------


def test_another_update_or_seed_is_found() -> None:
    assert_differs(checked(SEED, codes_of(2), UPLOAD), 0)
    assert_differs(checked(OTHER_SEED, CODES, UPLOAD), 0)
    assert_differs(checked(OTHER_SEED, codes_of(2), UPLOAD), 0)


@pytest.mark.parametrize("place", [0, 50, CODEC.parameters - 1])
def test_a_code_changed_by_one_is_found(place: int) -> None:
    changed = CODES.copy()
    changed[place] ^= 1
    assert_differs(checked(SEED, changed, UPLOAD), 0)  # all the randomness is another's
    upload = times(UPLOAD, place // SLOTS, 1 + KEY.n * (1 << 26 * (place % SLOTS)))
    PRIVATE.decrypt_sums(upload, CODEC, 2)
    assert_differs(checked(SEED, CODES, upload), place // SLOTS)


@pytest.mark.parametrize("place", [0, 7, 9])
def test_a_hidden_plaintext_is_found(place: int) -> None:
    """A factor (1 + n)^k changes what the owner decrypts, and nothing that a stranger can see."""
    upload = times(UPLOAD, place, (1 + KEY.n) ** 5)
    KEY.check_ciphertexts(upload, CODEC)
    sums = PRIVATE.decrypt_sums(upload, CODEC, 2)
    assert sums[place * SLOTS] == int(CODES[place * SLOTS]) + 5
    assert_differs(checked(SEED, CODES, upload), place)


def test_a_base_that_hides_a_plaintext_is_found() -> None:
    """The cheat's exponents are the seed's, but its base is hs (1 + n)^k: k a is added to each."""
    randomness = SeededRandomness(KEY.n, KEY.key_hash, SEED, CODES)
    n, square = gmpy2.mpz(KEY.n), gmpy2.mpz(KEY.n) ** 2
    exponents = randomness.exponents(169)(10 * 22)
    hidden = [
        int.from_bytes(exponents[start : start + 22], "little") & ((1 << 169) - 1)
        for start in range(0, len(exponents), 22)
    ]
    upload = UPLOAD
    for place, exponent in enumerate(hidden):
        upload = times(upload, place, int(gmpy2.powmod(1 + n, 3 * exponent, square)))
    KEY.check_ciphertexts(upload, CODEC)
    assert_differs(checked(SEED, CODES, upload), 0)


def test_a_base_that_is_not_derived_is_found() -> None:
    randomness = SeededRandomness(KEY.n, KEY.key_hash, SEED, CODES)
    encryptor = Encryptor(KEY.n, randomness.unit() + 1)
    upload = encryptor.encrypt(CODES, CODEC, randomness.exponents(169))
    assert (PRIVATE.decrypt_sums(upload, CODEC, 1) == CODES).all()
    assert_differs(checked(SEED, CODES, upload), 0)


def test_exponents_that_are_not_derived_are_found() -> None:
    randomness = SeededRandomness(KEY.n, KEY.key_hash, SEED, CODES)
    encryptor = Encryptor(KEY.n, randomness.unit())
    exponents = randomness.exponents(169)(10 * 22)
    swapped = exponents[:-44] + exponents[-22:] + exponents[-44:-22]
    upload = encryptor.encrypt(CODES, CODEC, lambda size: swapped)
    assert (PRIVATE.decrypt_sums(upload, CODEC, 1) == CODES).all()
    assert_differs(checked(SEED, CODES, upload), 8)


def test_bits_of_an_exponent_that_are_dropped_change_nothing() -> None:
    """169 bits in 22 bytes: what is above them is not in the ciphertext, so it cannot differ."""
    randomness = SeededRandomness(KEY.n, KEY.key_hash, SEED, CODES)
    exponents = bytearray(randomness.exponents(169)(10 * 22))
    exponents[21] ^= 0x80
    upload = Encryptor(KEY.n, randomness.unit()).encrypt(
        CODES, CODEC, lambda size: bytes(exponents)
    )
    assert upload == UPLOAD


@pytest.mark.parametrize("slot", [0, 4])
def test_a_slot_above_its_range_cannot_be_opened(slot: int) -> None:
    """Codes have 16 bits: no opening says 65535 + 10, nor what it carries into."""
    codes = CODES.copy()
    codes[9 * SLOTS + slot] = 65535
    upload = KEY.encrypt(codes, CODEC, seed=SEED)
    spoilt = times(upload, 9, 1 + KEY.n * (10 << 26 * slot))
    assert PRIVATE.decrypt_sums(spoilt, CODEC, 2)[9 * SLOTS + slot] == 65545
    assert_differs(checked(SEED, codes, spoilt), 9)
    codes[9 * SLOTS + slot] = 65545 - 65536
    assert_differs(checked(SEED, codes, spoilt), 0)


def test_a_slot_behind_the_last_parameter_is_found() -> None:
    assert_differs(checked(SEED, CODES, times(UPLOAD, 9, 1 + KEY.n * (1 << 26 * 5))), 9)


def test_an_upload_that_was_not_made_from_a_seed_is_found() -> None:
    for upload in (KEY.encrypt(CODES, CODEC), KEY.encrypt(CODES, CODEC, strict=True)):
        assert_differs(checked(SEED, CODES, upload), 0)


def test_the_same_under_another_key_is_found() -> None:
    other = PaillierPrivateKey.generate(338, allow_insecure_size_for_tests=True).public
    assert_differs(checked(SEED, CODES, other.encrypt(CODES, CODEC, seed=SEED)), 0)
    assert_differs(checked(SEED, CODES, UPLOAD, other), 0)


def test_the_opening_of_another_device_does_not_fit() -> None:
    theirs = pack_opening(OTHER_SEED, codes_of(3), CODEC)
    assert_differs(check_opening(theirs, UPLOAD, CODEC, KEY), 0)


@pytest.mark.parametrize("size", [0, 31, 32, 33, 2 * 113 + 31, 2 * 113 + 33])
def test_an_opening_of_another_length_is_refused(size: int) -> None:
    found = check_opening(bytes(size), UPLOAD, CODEC, KEY)
    assert found == Refusal(CODE, f"expected an opening of 258 bytes, got {size}")


def test_uploads_of_another_length_are_refused() -> None:
    width = KEY.ciphertext_bytes
    found = checked(SEED, CODES, UPLOAD + bytes(width))
    assert found == Refusal(
        CODE, f"expected {10 * width} bytes of ciphertexts, the upload has {11 * width}"
    )
    assert_differs(checked(SEED, CODES, UPLOAD[:-1]), 9)
    assert_differs(checked(SEED, CODES, b""), 0)


def test_only_the_first_block_is_encrypted_if_it_differs() -> None:
    codec = Codec(CLIP_E6, 26, 1000 * SLOTS)
    payload = pack_opening(SEED, np.zeros(codec.parameters, dtype=np.uint16), codec)
    asked: list[int] = []

    class Counting(PaillierPublicKey):
        def encrypt_stream(self, *args: Any, **kwargs: Any) -> Any:
            for block in super().encrypt_stream(*args, **kwargs):
                asked.append(len(block))
                yield block

    key = Counting(KEY.n, allow_insecure_size_for_tests=True)
    assert_differs(check_opening(payload, b"", codec, key), 0)
    assert asked == [256 * KEY.ciphertext_bytes]


def test_threads_are_bounded() -> None:
    with pytest.raises(PaillierError, match=r"expected 1\.\.256 threads"):
        check_opening(pack_opening(SEED, CODES, CODEC), UPLOAD, CODEC, KEY, threads=0)


def test_the_work_and_its_result_can_travel() -> None:
    work, arguments = pickle.loads(
        pickle.dumps((check_opening, (pack_opening(SEED, CODES, CODEC), UPLOAD, CODEC)))
    )
    found = work(*arguments, KEY)
    assert (pickle.loads(pickle.dumps(found)) == CODES).all()


# ---- the envelope -------------------------------------------------------------------------------


def sealed(payload: bytes = PAYLOAD, names: tuple[str, ...] = ("val1", "val2"), **changes: Any):
    """Seal an opening with some header fields changed."""
    return envelope.seal(
        replace(HEADER, **changes), payload, {name: PUBLIC[name] for name in names}
    )


def opened(blob: bytes, account: str = "val1") -> bytes | Refusal:
    """Open it as a validator."""
    rows: Any = {"task": TASK, "member": MEMBER}
    return open_opening(blob, **rows, version=VERSION, account=account, secret=SECRETS[account])


@pytest.mark.parametrize("account", ["val1", "val2"])
def test_every_validator_opens_an_honest_opening(account: str) -> None:
    assert opened(sealed(), account) == PAYLOAD


ROWS: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "expected at least 112 bytes, got 0"),
    ("cut_off", lambda: sealed()[:-1], "bytes in all, got "),
    ("too_long", lambda: bytes(2989), "expected an opening of at most 2988 bytes, got 2989"),
    ("longest", lambda: bytes(2988), "expected 112 bytes in all, got 2988"),
    ("stale", lambda: sealed(version=2), "field version: expected 3, got 2"),
    ("of_another_task", lambda: sealed(task="letters"), "field task: expected digits, got letters"),
    ("of_another", lambda: sealed(sender="phone2"), "field sender: expected phone1, got phone2"),
    ("another_cost", lambda: sealed(examples=61), "field examples: expected 60, got 61"),
    ("another_clip", lambda: sealed(clip_e6=1), "field clip_e6: expected 2000000, got 1"),
    (
        "another_length",
        lambda: sealed(PAYLOAD + bytes(2), parameters=7),
        "field parameters: expected 6, got 7",
    ),
    (
        "an_update",
        lambda: sealed(PAYLOAD[32:], kind=Kind.UPDATE),
        "field kind: expected opening, got update",
    ),
    ("left_out", lambda: sealed(names=("val2",)), "expected val1 among the opening's readers"),
    ("flipped", lambda: flipped(sealed(), -1, 0), "changed after sealing"),
    ("name_put_over", lambda: name_put_over(), "changed after sealing"),
    ("badly_sealed", lambda: badly_sealed(), "sealed to another key of val1"),
]


def name_put_over() -> bytes:
    """Another device's opening with the cheat's own name: the header is under the seal."""
    blob = bytearray(sealed(sender="phone2"))
    blob[16:24] = sealed()[16:24]
    return bytes(blob)


def badly_sealed() -> bytes:
    """The content key is not for val1, though its name is there."""
    return envelope.seal(HEADER, PAYLOAD, {"val1": PUBLIC["val2"], "val2": PUBLIC["val2"]})


@pytest.mark.parametrize(("make", "text"), [one[1:] for one in ROWS], ids=[one[0] for one in ROWS])
def test_each_refusal_says_what_was_expected(make: Callable[[], bytes], text: str) -> None:
    found = opened(make())
    assert isinstance(found, Refusal), found
    assert found.code is CODE
    assert text in found.reason


@given(data=st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_any_blob_gives_a_refusal(data: bytes) -> None:
    for blob in (data, sealed()[:112] + data):
        found = opened(blob)
        assert isinstance(found, Refusal) and found.code is CODE


def test_the_longest_opening_is_as_long_as_the_bound() -> None:
    names = [f"r{a}{b}" for a in "abcdefg" for b in "12345"][:31]
    readers = dict.fromkeys(names, PUBLIC["val2"])
    blob = envelope.seal(HEADER, PAYLOAD, {**readers, "val1": PUBLIC["val1"]})
    assert len(blob) == opening_bytes_max(SHORT)
    assert opened(blob) == PAYLOAD
    assert opening_bytes(SHORT) == 44


def test_a_whole_audit(key: PaillierPublicKey) -> None:
    """Device, envelope, validator; a real key size."""
    codes = SHORT.quantise(np.linspace(-1, 1, PARAMETERS))
    upload = key.encrypt(codes, SHORT, seed=SEED)
    payload = opened(sealed(pack_opening(SEED, codes, SHORT)))
    assert isinstance(payload, bytes)
    found = check_opening(payload, upload, SHORT, key)
    assert not isinstance(found, Refusal)
    assert (found == codes).all()
    assert np.abs(SHORT.dequantise(found) - np.linspace(-1, 1, PARAMETERS)).max() < 1e-4


@pytest.mark.parametrize(
    ("values", "reported", "norm_max_e6", "code"),
    [
        (UPDATE, 0, 0, None),
        (UPDATE, 0, 2_100_000, None),
        (UPDATE, 500_000, 0, VerdictCode.ERROR_MISMATCH),  # the zero model becomes perfect
        (-UPDATE, 0, 0, VerdictCode.ERROR_MISMATCH),
        (UPDATE * 0, 500_000, 0, VerdictCode.NO_UPDATE),
        (UPDATE, 0, 1_900_000, VerdictCode.NORM),
    ],
)
def test_what_was_opened_is_measured(
    values: np.ndarray, reported: int, norm_max_e6: int, code: VerdictCode | None
) -> None:
    """A forged series, a free rider, a norm: what encryption hid, found in the opening."""
    codes = SHORT.quantise(values)
    upload = KEY.encrypt(codes, SHORT, seed=SEED)
    model = Model(ARCHITECTURE, np.zeros(PARAMETERS))
    measure = Measure(model, POINTS_X, POINTS_Y, reported, norm_max_e6=norm_max_e6)
    payload = pack_opening(SEED, codes, SHORT)
    found = judge_opening(payload, upload, SHORT, KEY, measure)
    assert (found.code if found else None) is code
    other = judge_opening(flipped(payload, 0, 0), upload, SHORT, KEY, measure)
    assert other is not None and other.code is CODE
