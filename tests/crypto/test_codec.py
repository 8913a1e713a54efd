"""Quantising and packing, against the formulas of the protocol in plain integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.codec import Codec
from gradledger.errors import CodecError

codecs = st.builds(
    Codec,
    clip_e6=st.integers(1, 10_000_000),
    slot_bits=st.integers(17, 32),
    parameters=st.integers(1, 700),
)


def reference_pack(codes, codec, n_bits):
    slots = (n_bits - 1) // codec.slot_bits
    return [
        sum(
            int(code) << (place * codec.slot_bits)
            for place, code in enumerate(codes[i : i + slots])
        )
        for i in range(0, len(codes), slots)
    ]


@given(
    codecs, st.sampled_from([64, 127, 128, 512, 2048, 3071, 3072]), st.integers(0, 2**32), st.data()
)
@settings(max_examples=150, deadline=None)
def test_pack_and_unpack_of_sums(codec, n_bits, seed, data):
    codes = np.random.default_rng(seed).integers(0, 65536, codec.parameters).astype(np.uint16)
    packed = list(codec.pack(codes, n_bits))
    numbers = [int.from_bytes(plaintext, "little") for plaintext in packed]
    assert numbers == reference_pack(codes, codec, n_bits)
    assert len(numbers) == codec.plaintexts(n_bits)
    assert all(number < 1 << (n_bits - 1) for number in numbers)
    times = data.draw(st.sampled_from([1, 2, codec.devices_max]))
    sums = codec.unpack(
        [(number * times).to_bytes((n_bits + 7) // 8, "little") for number in numbers], n_bits
    )
    assert sums.dtype == np.uint64
    assert (sums == codes.astype(np.uint64) * np.uint64(times)).all()


def test_blocks_join_without_a_seam():
    codec = Codec(clip_e6=500_000, slot_bits=26, parameters=200_003)
    codes = np.random.default_rng(3).integers(0, 65536, codec.parameters).astype(np.uint16)
    packed = list(codec.pack(codes, 3072))
    assert [int.from_bytes(p, "little") for p in packed] == reference_pack(codes, codec, 3072)
    assert (codec.unpack(packed, 3072) == codes).all()


@given(
    clip_e6=st.integers(1, 2**32 - 1),
    values=st.lists(st.floats(-5000, 5000, width=32), min_size=1, max_size=40),
)
@settings(deadline=None)
def test_quantise_is_within_half_a_step(clip_e6, values):
    codec = Codec(clip_e6, 17, len(values))
    codes = codec.quantise(np.array(values, dtype=np.float32))
    clip = Fraction(clip_e6, 10**6)
    for value, code in zip(values, codes, strict=True):
        clipped = min(max(Fraction(value), -clip), clip)
        restored = Fraction(int(code), 65535) * 2 * clip - clip
        # Half a step, and the rounding of float64.
        assert abs(restored - clipped) <= clip / 65535 * (1 + Fraction(1, 10**9))


@given(seed=st.integers(0, 2**32), updates=st.integers(1, 50), clip_e6=st.integers(1000, 3_000_000))
@settings(deadline=None)
def test_mean_is_within_its_bound(seed, updates, clip_e6):
    codec = Codec(clip_e6, 26, 33)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(0, codec.clip, (updates, 33))
    sums = np.zeros(33, dtype=np.uint64)
    for vector in vectors:
        sums += codec.quantise(vector)
    mean = codec.dequantise_mean(sums, updates)
    exact = np.clip(vectors, -codec.clip, codec.clip).mean(axis=0)
    assert mean.dtype == np.float32
    assert np.abs(mean - exact).max() <= codec.clip / 65535 + codec.clip * 2e-7


def test_ends_and_ties():
    codec = Codec(clip_e6=1_000_000, slot_bits=17, parameters=5)
    # The middle lies on 32767.5: a tie, and the even neighbour is 32768.
    assert codec.quantise(np.array([-1.0, 1.0, 0.0, -7.0, 7.0])).tolist() == [
        0,
        65535,
        32768,
        0,
        65535,
    ]
    ends = codec.dequantise(np.array([0, 65535, 0, 0, 0], dtype=np.uint16))
    assert ends[:2].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 99_999])
def test_not_finite_is_refused_and_named(bad, place):
    values = np.zeros(100_000, dtype=np.float32)
    values[place] = bad
    with pytest.raises(CodecError, match=f"^value {place} is not finite"):
        Codec(1, 17, 100_000).quantise(values)


@pytest.mark.parametrize(
    "values", [np.zeros(2), np.zeros(4), np.zeros((3, 1)), np.zeros(3, dtype=complex), ["a"] * 3]
)
def test_wrong_shape_or_type_is_refused(values):
    with pytest.raises(CodecError):
        Codec(1, 17, 3).quantise(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 26, 1), "clip_e6: expected 1..4294967295, got 0"),
        ((2**32, 26, 1), "clip_e6: expected 1..4294967295, got 4294967296"),
        ((1, 16, 1), "slot_bits: expected 17..32, got 16"),
        ((1, 33, 1), "slot_bits: expected 17..32, got 33"),
        ((1, 26, 0), "parameters: expected 1..2147483647, got 0"),
        ((1, 26, 2**31), "parameters: expected 1..2147483647, got 2147483648"),
        ((1.0, 26, 1), "clip_e6: expected 1..4294967295, got 1.0"),
        ((True, 26, 1), "clip_e6: expected 1..4294967295, got True"),
    ],
)
def test_fields_are_bounded(fields, message):
    with pytest.raises(CodecError) as caught:
        Codec(*fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(("slot_bits", "devices"), [(17, 2), (18, 4), (26, 1024), (32, 65537)])
def test_devices_max_is_the_last_that_cannot_carry(slot_bits, devices):
    assert Codec(1, slot_bits, 1).devices_max == devices
    assert devices * 65535 < 2**slot_bits <= (devices + 1) * 65535


def test_sum_above_its_bound_is_refused_and_named():
    codec = Codec(1_000_000, 26, 4)
    at_bound = np.array([0, 3 * 65535, 1, 2], dtype=np.uint64)
    codec.dequantise_mean(at_bound, 3)
    at_bound[2] = 3 * 65535 + 1
    message = r"^slot 2: expected at most 3 x 65535 = 196605, got 196606$"
    with pytest.raises(CodecError, match=message):
        codec.dequantise_mean(at_bound, 3)


def test_number_of_updates_is_bounded():
    codec = Codec(1_000_000, 17, 1)
    sums = np.zeros(1, dtype=np.uint64)
    codec.dequantise_mean(sums, 2)
    for updates in (0, 3):
        with pytest.raises(CodecError, match=r"updates: expected 1\.\.2"):
            codec.dequantise_mean(sums, updates)


def test_bits_outside_the_slots_are_refused():
    codec = Codec(1_000_000, 26, 5)  # 64 bits: two slots of a plaintext
    good = [plaintext.ljust(26, b"\0") for plaintext in codec.pack(np.ones(5, np.uint16), 64)]
    codec.unpack(good, 64)
    above = (1 << 52).to_bytes(26, "little")
    with pytest.raises(CodecError, match=r"^plaintext 1: bits set above its last slot$"):
        codec.unpack([good[0], above, good[2]], 64)
    far_above = (1 << 300).to_bytes(40, "little")
    with pytest.raises(CodecError, match=r"^plaintext 2: bits set above its last slot$"):
        codec.unpack([good[0], good[1], far_above], 64)
    padding = (7 << 26 | 1).to_bytes(26, "little")
    message = "^slot 5: expected zero after the last parameter, got 7$"
    with pytest.raises(CodecError, match=message):
        codec.unpack([good[0], good[1], padding], 64)
    with pytest.raises(CodecError, match="expected 3 plaintexts, got 2"):
        codec.unpack(good[:2], 64)


def test_codes_as_bytes():
    codec = Codec(1_000_000, 17, 3)
    codes = np.array([1, 256, 65535], dtype=np.uint16)
    assert codec.to_bytes(codes) == bytes.fromhex("0100 0001 ffff")
    assert codec.from_bytes(codec.to_bytes(codes)).tolist() == codes.tolist()
    for length in (5, 7):
        with pytest.raises(CodecError, match=f"expected 6 bytes of codes, got {length}"):
            codec.from_bytes(bytes(length))


def test_codes_of_another_type_are_refused():
    codec = Codec(1_000_000, 17, 3)
    for codes in (np.zeros(3), [1, 2, 3], np.zeros(4, dtype=np.uint16)):
        with pytest.raises(CodecError):
            list(codec.pack(codes, 2048))


def test_a_key_too_small_for_a_slot():
    with pytest.raises(CodecError, match="a key of 20 bits holds no slot of 26 bits"):
        Codec(1, 26, 1).slots(20)
    assert Codec(1, 26, 1).slots(27) == 1
