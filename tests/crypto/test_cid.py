"""CIDs computed here are the ones that Kubo gives."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradledger import cid
from gradledger.errors import ConfigError
from gradledger.store import Store

# Made by the embedded Kubo 0.22.0: size -> CID of shake_128(b"gradledger").digest(size).
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cid.json").read_text())


def content(size):
    return hashlib.shake_128(b"gradledger").digest(size)


@pytest.mark.parametrize("size", sorted(map(int, VECTORS)))
def test_cid_is_kubos(size):
    assert cid.cid_v0(content(size)) == VECTORS[str(size)]


def test_kubo_itself_agrees(kubo):
    store = Store(kubo.address)
    for size in (0, 1, 262_144, 262_145, 10_000_000, 46_000_000):
        assert store.put(content(size)) == VECTORS[str(size)]


def test_file_and_bytes_give_the_same_cid():
    data = content(600_000)
    assert cid.cid_v0(io.BytesIO(data)) == cid.cid_v0(bytearray(data)) == cid.cid_v0(data)


@pytest.mark.parametrize("step", [1 + 262_144 // 3, 262_144, 262_145, 900_001])
def test_parts_of_any_size_give_the_same_cid(step):
    data = content(2_000_003)
    hasher = cid.CidHasher()
    for start in range(0, len(data), step):
        hasher.update(data[start : start + step])
    assert hasher.cid() == cid.cid_v0(data)


def test_hasher_goes_on_after_cid():
    data = content(300_000)
    hasher = cid.CidHasher()
    hasher.update(data[:1000])
    assert hasher.cid() == cid.cid_v0(data[:1000])
    hasher.update(data[1000:])
    assert hasher.cid() == hasher.cid() == cid.cid_v0(data)


@given(st.binary(min_size=32, max_size=32))
def test_digest_round_trip(digest):
    text = cid.digest_to_cid(digest)
    assert len(text) == 46 and text.startswith("Qm")
    assert cid.is_cid_v0(text)
    assert cid.cid_to_digest(text) == digest


@given(st.binary(max_size=64))
def test_base58_round_trip(data):
    assert cid.base58_decode(cid.base58_encode(data)) == data


def test_base58_known_answers():
    assert cid.base58_encode(b"hello world") == "StV1DL6CwTryKyV"
    assert cid.base58_encode(b"\0\0\x01") == "112"
    assert cid.base58_decode("") == b""


GOOD = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"


@pytest.mark.parametrize(
    "text",
    [
        "",
        GOOD[:-1],
        GOOD + "1",
        GOOD[:-1] + "0",
        GOOD[:-1] + "é",
        "1" * 46,
        "z" * 46,
        "Qn" + GOOD[2:],
        "bafybeihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "Q" * 10_000,
        None,
        5,
    ],
)
def test_not_a_cid(text):
    assert not cid.is_cid_v0(text)
    with pytest.raises(ConfigError):
        cid.cid_to_digest(text)


@given(st.text(alphabet="Qm123456789ABCabcz0OIl", min_size=46, max_size=46))
def test_form_check_is_total(text):
    if cid.is_cid_v0(text):
        assert cid.digest_to_cid(cid.cid_to_digest(text)) == text


def test_digest_of_another_length():
    with pytest.raises(ConfigError, match="a CID needs a digest of 32 bytes, got 31"):
        cid.digest_to_cid(bytes(31))


def test_base58_is_bounded():
    with pytest.raises(ConfigError, match="at most 128 base58 characters, got 129"):
        cid.base58_decode("2" * 129)
