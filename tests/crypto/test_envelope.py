"""Envelopes: golden files, each refusal, and a decoder that nothing makes crash."""

import dataclasses
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gradledger import envelope
from gradledger.envelope import Envelope, Header, Kind, PayloadCodec
from gradledger.errors import EnvelopeError, NotAReaderError

VECTORS = Path(__file__).parents[1] / "vectors" / "envelope"
NAMES = sorted(path.stem for path in VECTORS.glob("*.bin"))
GOLDEN = {name: (VECTORS / f"{name}.bin").read_bytes() for name in NAMES}
TRUTH = {name: json.loads((VECTORS / f"{name}.json").read_text()) for name in NAMES}

ALICE, BOB, EVE = bytes([1] * 32), bytes([2] * 32), bytes([9] * 32)
MODEL = Header(Kind.MODEL, PayloadCodec.BYTES, "digits", "owner", version=1, parameters=7)
UPDATE = Header(
    Kind.UPDATE,
    PayloadCodec.PAILLIER,
    "digits",
    "phone1",
    version=1,
    parameters=7,
    slot_bits=26,
    clip_e6=500_000,
    examples=10,
    key_hash=bytes([7] * 32),
)
QUANTISED = dataclasses.replace(
    UPDATE, codec=PayloadCodec.QUANTISED, slot_bits=0, key_hash=bytes(32)
)

OPENING = dataclasses.replace(QUANTISED, kind=Kind.OPENING)


def readers(**secrets):
    return {name: envelope.public_key_of(secret) for name, secret in secrets.items()}


def header_of(truth):
    fields = dict(truth["header"])
    for name in ("key_hash", "nonce"):
        fields[name] = bytes.fromhex(fields[name])
    fields["kind"], fields["codec"] = Kind(fields["kind"]), PayloadCodec(fields["codec"])
    return Header(**fields)


# ---- golden files ---------------------------------------------------------------------------


def test_there_are_golden_files_of_every_kind_and_codec():
    seen = {(truth["header"]["kind"], truth["header"]["codec"]) for truth in TRUTH.values()}
    assert seen == {(1, 0), (2, 0), (3, 1), (3, 2), (4, 2), (5, 0), (6, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_golden_file_decodes(name):
    truth = TRUTH[name]
    parsed = envelope.parse(GOLDEN[name])
    assert parsed.header == header_of(truth)
    assert list(parsed.readers) == truth["readers"]
    payload = bytes.fromhex(truth["payload"])
    if not parsed.header.sealed:
        assert parsed.payload() == payload
    for account, secret in truth["secrets"].items():
        assert parsed.open(account, bytes.fromhex(secret)) == payload


@pytest.mark.parametrize("name", NAMES)
def test_golden_header_encodes(name):
    truth = TRUTH[name]
    encoded = envelope.encode_header(header_of(truth))
    assert encoded.hex() == truth["header_hex"]
    assert encoded == GOLDEN[name][:112]


def test_header_fields_lie_where_the_protocol_says():
    data = GOLDEN["update_paillier"]
    truth = TRUTH["update_paillier"]["header"]
    assert data[:4] == bytes.fromhex("474c4501")
    assert list(data[4:8]) == [3, 1, 2, 32]
    assert struct.unpack_from("<Q", data, 8)[0] == 2**64 - 1  # zzzzzzzzzzzzj
    assert struct.unpack_from("<Q", data, 16)[0] == 6 << 59  # a
    assert struct.unpack_from("<IIII", data, 24) == (
        truth["version"],
        truth["parameters"],
        truth["clip_e6"],
        truth["examples"],
    )
    assert data[40:72].hex() == truth["key_hash"]
    assert struct.unpack_from("<QH6s", data, 72) == (1024, 2, bytes(6))
    assert data[88:112].hex() == truth["nonce"]
    assert len(data) == 112 + 88 * 2 + 1024 + 16


# ---- round trips ----------------------------------------------------------------------------


@given(st.binary(max_size=300), st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_seal_and_open(payload, count):
    secrets = {f"reader{place}": bytes([place] * 32) for place in range(1, count + 1)}
    sealed = envelope.seal(MODEL, payload, readers(**secrets))
    assert len(sealed) == 112 + 88 * count + len(payload) + 16
    parsed = envelope.parse(sealed)
    assert parsed.readers == tuple(secrets)
    for name, secret in secrets.items():
        assert parsed.open(name, secret) == payload


def test_plain_envelopes_open_for_all():
    parsed = envelope.parse(envelope.plain(MODEL, b"weights"))
    assert parsed.payload() == parsed.open("anybody", EVE) == b"weights"
    assert parsed.readers == ()


def test_sealing_twice_gives_other_bytes():
    one = envelope.seal(MODEL, b"weights", readers(alice=ALICE))
    two = envelope.seal(MODEL, b"weights", readers(alice=ALICE))
    assert one[88:112] != two[88:112]
    assert one[200:] != two[200:]


def test_who_is_no_reader_is_told_so():
    sealed = envelope.parse(envelope.seal(MODEL, b"weights", readers(alice=ALICE, bob=BOB)))
    with pytest.raises(NotAReaderError, match=r"^eve is none of the 2 readers of this envelope$"):
        sealed.open("eve", EVE)
    with pytest.raises(EnvelopeError, match=r"^the envelope is sealed to another key of alice$"):
        sealed.open("alice", BOB)
    with pytest.raises(EnvelopeError, match="the envelope is sealed: open it with a reader's key"):
        sealed.payload()
    with pytest.raises(EnvelopeError, match="X25519 secret of 32 bytes"):
        sealed.open("alice", ALICE[:31])
    with pytest.raises(EnvelopeError):
        sealed.open("NOT A NAME", ALICE)


def test_every_bit_of_header_and_table_is_covered():
    sealed = envelope.seal(UPDATE, b"ciphertexts", readers(alice=ALICE, bob=BOB))
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(EnvelopeError):
            envelope.parse(bytes(changed)).open("alice", ALICE)


def test_an_unusable_reader_is_refused():
    with pytest.raises(EnvelopeError, match="reader alice: not a usable X25519 public key"):
        envelope.seal(MODEL, b"", {"alice": bytes(32)})
    with pytest.raises(EnvelopeError, match=r"reader alice: expected a public key of 32 bytes"):
        envelope.seal(MODEL, b"", {"alice": bytes(31)})
    with pytest.raises(EnvelopeError, match=r"^reader: "):
        envelope.seal(MODEL, b"", {"Alice": envelope.public_key_of(ALICE)})
    with pytest.raises(EnvelopeError, match=r"readers: expected more than 0, got 0"):
        envelope.seal(MODEL, b"", {})


def test_sealing_a_megabyte_makes_few_copies():
    payload, keys = bytes(2**20), readers(alice=ALICE)
    envelope.seal(MODEL, payload, keys)
    tracemalloc.start()
    try:
        sealed = envelope.seal(MODEL, payload, keys)
        envelope.parse(sealed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.2 * 2**20


def test_a_full_table_of_readers():
    count = envelope.READERS_MAX
    header = dataclasses.replace(MODEL, sealed=True, readers=count, payload_bytes=0)
    table = b"".join(struct.pack("<Q", (place + 1) << 20) + bytes(80) for place in range(count))
    data = envelope.encode_header(header) + table + bytes(16)
    parsed = envelope.parse(data)
    assert len(parsed.readers) == count
    with pytest.raises(EnvelopeError, match="sealed to another key"):
        parsed.open(parsed.readers[-1], ALICE)
    with pytest.raises(EnvelopeError, match=r"^readers: expected 0\.\.16384, got 16385$"):
        envelope.encode_header(dataclasses.replace(header, readers=count + 1))


# ---- refusals -------------------------------------------------------------------------------


def encoded(**changes):
    """The bytes of an update's header with some fields overwritten, and its payload."""
    layout = {
        "magic": (0, "4s"),
        "kind": (4, "B"),
        "sealed": (5, "B"),
        "codec": (6, "B"),
        "slot_bits": (7, "B"),
        "task": (8, "Q"),
        "sender": (16, "Q"),
        "version": (24, "I"),
        "parameters": (28, "I"),
        "clip_e6": (32, "I"),
        "examples": (36, "I"),
        "key_hash": (40, "32s"),
        "payload_bytes": (72, "Q"),
        "readers": (80, "H"),
        "reserved": (82, "6s"),
        "nonce": (88, "24s"),
    }
    data = bytearray(envelope.plain(UPDATE, bytes(14)))
    for field, value in changes.items():
        offset, code = layout[field]
        struct.pack_into("<" + code, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": b"GLF\1"}, "expected an envelope (b'GLE'), got b'GLF'"),
        ({"magic": b"GLE\0"}, "expected format version 1, got 0"),
        ({"magic": b"GLE\2"}, "expected format version 1, got 2"),
        ({"kind": 0}, "kind: expected one of 1, 2, 3, 4, 5, 6, got 0"),
        ({"kind": 7}, "kind: expected one of 1, 2, 3, 4, 5, 6, got 7"),
        ({"codec": 3}, "codec: expected one of 0, 1, 2, got 3"),
        ({"kind": 1}, "codec of kind 1: expected 0, got 2"),
        ({"kind": 4, "codec": 1}, "codec of kind 4: expected 2, got 1"),
        ({"kind": 6}, "codec of kind 6: expected 1, got 2"),
        ({"codec": 0}, "codec of kind 3: expected 1 or 2, got 0"),
        ({"task": 0}, "task: expected an account name, got an empty one"),
        ({"sender": 0}, "sender: expected an account name, got an empty one"),
        ({"version": 0}, "version: expected more than 0, got 0"),
        ({"parameters": 0}, "parameters: expected more than 0, got 0"),
        ({"parameters": 2**31}, "parameters: expected 0..2147483647, got 2147483648"),
        ({"examples": 0}, "examples: expected more than 0, got 0"),
        ({"clip_e6": 0}, "clip_e6: expected more than 0, got 0"),
        ({"slot_bits": 0}, "slot_bits: expected more than 0, got 0"),
        ({"slot_bits": 16}, "slot_bits: expected 17..32, got 16"),
        ({"slot_bits": 33}, "slot_bits: expected 0..32, got 33"),
        ({"key_hash": bytes(32)}, "key_hash: expected one in codec 2 and zeros otherwise"),
        ({"codec": 1}, "slot_bits: expected 0, got 26"),
        (
            {"codec": 1, "slot_bits": 0},
            "key_hash: expected one in codec 2 and zeros otherwise",
        ),
        (
            {"codec": 1, "slot_bits": 0, "key_hash": bytes(32), "parameters": 8},
            "payload_bytes: expected 2 x 8 codes, got 14",
        ),
        ({"reserved": b"\0\0\0\0\0\1"}, "reserved bytes: expected zeros"),
        ({"nonce": bytes(23) + b"\1"}, "nonce: expected zeros in an envelope that is not sealed"),
        ({"payload_bytes": 13}, "expected 125 bytes in all, got 126"),
        ({"payload_bytes": 15}, "expected 127 bytes in all, got 126"),
        ({"payload_bytes": 2**64 - 1}, f"expected {2**64 - 1 + 112} bytes in all, got 126"),
        ({"readers": 1}, "expected 214 bytes in all, got 126"),
        ({"readers": 65535}, f"expected {126 + 88 * 65535} bytes in all, got 126"),
        ({"sealed": 1}, "expected 142 bytes in all, got 126"),
        (
            {"sealed": 2, "payload_bytes": 2**64 - 1},
            f"expected {2**64 + 127} bytes in all, got 126",
        ),
    ],
)
def test_refusals(changes, message):
    envelope.parse(encoded())
    with pytest.raises(EnvelopeError) as caught:
        envelope.parse(encoded(**changes))
    assert str(caught.value) == message


def test_sealed_is_nought_or_one():
    data = bytearray(GOLDEN["model_sealed"])
    data[5] = 2
    with pytest.raises(EnvelopeError, match="sealed: expected 0 or 1, got 2"):
        envelope.parse(bytes(data))


def test_sealed_without_readers():
    data = bytearray(encoded() + bytes(16))
    data[5] = 1
    with pytest.raises(EnvelopeError, match=r"readers: expected more than 0, got 0"):
        envelope.parse(bytes(data))


def test_readers_without_seal():
    data = bytearray(encoded(readers=1) + bytes(88))
    with pytest.raises(EnvelopeError, match="readers: expected 0, got 1"):
        envelope.parse(bytes(data))


@pytest.mark.parametrize("order", [(2, 1), (1, 1), (0, 1)])
def test_readers_ascend_strictly(order):
    data = bytearray(envelope.seal(MODEL, b"", readers(alice=ALICE, bob=BOB)))
    for place, value in enumerate(order):
        struct.pack_into("<Q", data, 112 + 88 * place, value)
    with pytest.raises(EnvelopeError, match="names in strictly ascending order"):
        envelope.parse(bytes(data))


@pytest.mark.parametrize("size", [0, 1, 111])
def test_shorter_than_a_header(size):
    with pytest.raises(EnvelopeError, match=f"expected at least 112 bytes, got {size}"):
        envelope.parse(bytes(size))


def test_task_card_is_bounded():
    card = Header(Kind.TASK_CARD, PayloadCodec.BYTES, "digits", "owner")
    envelope.parse(envelope.plain(card, bytes(65_536)))
    with pytest.raises(EnvelopeError, match="at most 65536 in a task card, got 65537"):
        envelope.plain(card, bytes(65_537))
    with pytest.raises(EnvelopeError, match="version: expected 0, got 1"):
        envelope.plain(dataclasses.replace(card, version=1), b"")


def test_an_opening_is_sealed_and_has_a_seed_and_every_code():
    to = readers(bob=BOB)
    parsed = envelope.parse(envelope.seal(OPENING, bytes(range(46)), to))
    assert parsed.header.examples == 10
    assert parsed.open("bob", BOB) == bytes(range(46))
    with pytest.raises(EnvelopeError, match=r"^sealed: expected 1 in an opening, got 0$"):
        envelope.plain(OPENING, bytes(46))
    for size in (0, 14, 32, 45, 47, 48):
        with pytest.raises(
            EnvelopeError,
            match=f"^payload_bytes: expected a seed of 32 bytes and 2 x 7 codes, got {size}$",
        ):
            envelope.seal(OPENING, bytes(size), to)
    for field in ("version", "parameters", "clip_e6", "examples"):
        with pytest.raises(EnvelopeError, match=f"^{field}: expected more than 0, got 0$"):
            envelope.seal(dataclasses.replace(OPENING, **{field: 0}), bytes(46), to)
    with pytest.raises(EnvelopeError, match=r"^codec of kind 6: expected 1, got 2$"):
        envelope.seal(dataclasses.replace(UPDATE, kind=Kind.OPENING), bytes(46), to)


@pytest.mark.parametrize(
    ("header", "changes"),
    [
        (MODEL, {"task": ""}),
        (MODEL, {"task": "UPPER"}),
        (MODEL, {"sender": "fourteen.chars"}),
        (MODEL, {"version": -1}),
        (MODEL, {"version": 2**32}),
        (MODEL, {"version": 1.5}),
        (MODEL, {"kind": 9}),
        (MODEL, {"clip_e6": 1}),
        (MODEL, {"examples": 1}),
        (UPDATE, {"key_hash": bytes(31)}),
        (UPDATE, {"slot_bits": 33}),
        (QUANTISED, {"parameters": 8}),
    ],
)
def test_bad_fields_are_refused_on_writing(header, changes):
    envelope.plain(header, bytes(14))
    with pytest.raises(EnvelopeError):
        envelope.plain(dataclasses.replace(header, **changes), bytes(14))


# ---- fuzz -----------------------------------------------------------------------------------


def decode(data):
    """Parse and open as every reader; nothing but EnvelopeError may come out."""
    try:
        parsed = envelope.parse(data)
        assert isinstance(parsed, Envelope)
        for account in parsed.readers[:4]:
            parsed.open(account, ALICE)
        if not parsed.header.sealed:
            parsed.payload()
    except EnvelopeError:
        pass


@given(st.binary(max_size=400))
@example(b"")
@settings(deadline=None, max_examples=300)
def test_random_bytes(data):
    decode(data)
    decode(b"GLE\1" + data)


@given(
    st.sampled_from(NAMES),
    st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 255), st.integers(0, 2)),
        min_size=1,
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=600)
def test_mutated_golden_files(name, changes):
    data = bytearray(GOLDEN[name])
    for place, value, action in changes:
        place %= len(data) or 1
        if action == 0 and data:
            data[place] = value
        elif action == 1:
            data.insert(place, value)
        else:
            del data[place:]
    decode(bytes(data))


@given(st.sampled_from(NAMES), st.integers(0, 111), st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_mutated_headers(name, place, value):
    data = bytearray(GOLDEN[name])
    data[place] = value
    decode(bytes(data))


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation(name):
    data = GOLDEN[name]
    for size in range(len(data)):
        with pytest.raises(EnvelopeError):
            envelope.parse(data[:size])
    with pytest.raises(EnvelopeError):
        envelope.parse(data + b"\0")
