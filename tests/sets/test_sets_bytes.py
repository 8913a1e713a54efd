"""Sets whose bytes are malformed: one clear error each, whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger import envelope
from gradledger.card import TaskCard
from gradledger.errors import EnvelopeError, ModelError, ValidationSetError
from gradledger.models import dump_arrays, load_arrays
from gradledger.validation import Commitment, Draw, read_issued_set
from owner.validation_sets import ValidationData

POINTS = ValidationData(np.arange(120, dtype=np.float32).reshape(40, 3), np.arange(40) % 2)
COMMITTED = POINTS.committed(task="digits", classes=2, secret=b"of the owner")
DRAW = Draw(COMMITTED.commitment(4), "0000002a" + "5e" * 28, "digits", 2, "phone1", 0b11)
GOOD = COMMITTED.dump(DRAW.leaves)


def altered(name: str, change: Callable[[Any], Any]) -> bytes:
    arrays = dict(load_arrays(GOOD)[0])
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    return dump_arrays(arrays, {})


def without(name: str) -> bytes:
    return dump_arrays({key: a for key, a in load_arrays(GOOD)[0].items() if key != name}, {})


def test_the_good_one_is_good() -> None:
    assert len(read_issued_set(GOOD, DRAW)[1]) == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 8 bytes"),
        (GOOD[:-1], "outside the file"),
        (GOOD + b"\0", "without gap or overlap"),
        (without("x"), "arrays x, y, salts and leaves, and nodes, expected"),
        (without("salts"), "arrays x, y, salts and leaves, and nodes, expected"),
        (altered("y", np.float32), "y int64"),
        (altered("x", lambda x: x.astype(np.int64)), "x float32"),
        (altered("x", lambda x: x * np.float32("nan")), "finite"),
        (altered("x", lambda x: x[:, 0]), r"x \[m, d\] and y \[m\] expected"),
        (altered("y", lambda y: y - 1), "labels are not negative"),
        (altered("leaves", lambda leaves: leaves.astype(np.float32)), "leaves int64"),
        (altered("leaves", lambda leaves: leaves[:-1]), "8 leaves and salts expected"),
        (altered("leaves", lambda leaves: leaves[None]), "8 leaves and salts expected"),
        (altered("salts", lambda salts: salts[:-1]), "8 leaves and salts expected"),
        (altered("salts", lambda salts: salts[:, :15]), r"uint8 of shape \[rows, 16\] expected"),
        (altered("salts", lambda salts: salts.astype(np.int64)), "salts: uint8"),
        (altered("nodes", lambda nodes: nodes.reshape(-1)), r"nodes: uint8 of shape \[rows, 32\]"),
        (altered("nodes", lambda nodes: nodes.astype(np.int64)), "nodes: uint8"),
    ],
)
def test_malformed_sets(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_issued_set(data, DRAW)


@pytest.mark.parametrize("leaf", [-1, -(2**63), 40, 2**62])
def test_numbers_of_no_point(leaf: int) -> None:
    def change(leaves: Any) -> Any:
        return np.concatenate([leaves[:-1], [leaf]])

    with pytest.raises(ValidationSetError, match=f"in place 7, got point {leaf}$"):
        read_issued_set(altered("leaves", change), DRAW)


def test_a_draw_that_is_impossible_is_no_set() -> None:
    draw = Draw(DRAW.commitment, DRAW.block_id, "digits", 2, "phone1", 0b100)
    with pytest.raises(ValidationSetError, match="class 2: expected at least 4"):
        read_issued_set(GOOD, draw)


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(place: int, bit: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    try:
        x, y = read_issued_set(bytes(data), DRAW)
    except (ModelError, ValidationSetError):
        return
    # Only bits of the header that mean the same, such as another kind of white space, may pass.
    assert place < 8 + int.from_bytes(GOOD[:8], "little")
    good_x, good_y = read_issued_set(GOOD, DRAW)
    assert (x.tobytes(), y.tobytes()) == (good_x.tobytes(), good_y.tobytes())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_issued_set(data, DRAW)


# ---- the card -----------------------------------------------------------------------------------


def card(commitment: Commitment | None) -> TaskCard:
    return TaskCard(
        task="digits",
        owner="owner",
        description="",
        classes=("a", "b"),
        architecture={"kind": "mlp", "layers": [3, 2], "activation": "relu"},
        owner_enc_key=bytes(32),
        paillier_n=None,
        validation=commitment,
    )


def test_the_card_has_the_commitment_and_a_format_of_its_own() -> None:
    data = card(DRAW.commitment).to_bytes()
    assert TaskCard.from_bytes(data).validation == DRAW.commitment
    assert b'"format":3' in envelope.parse(data).payload()
    plain = card(None).to_bytes()
    assert TaskCard.from_bytes(plain).validation is None
    assert b'"format":1' in envelope.parse(plain).payload()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (b'"format":3', b'"format":1', "card format 1 does not go with the keys: validation"),
        (b'"format":3', b'"format":2', "card format 2 does not go with the keys: validation"),
        (b'"counts":[20,20]', b'"counts":[40]', "points of 2 classes in the task card, got 1"),
        (b'"per_class":4', b'"per_class":0', "per_class: expected 1 or more, got 0"),
    ],
)
def test_a_wrong_card_is_refused(before: bytes, after: bytes, message: str) -> None:
    found = envelope.parse(card(DRAW.commitment).to_bytes())
    payload = found.payload()
    assert before in payload
    data = envelope.plain(found.header, payload.replace(before, after))
    with pytest.raises(EnvelopeError, match=message):
        TaskCard.from_bytes(data)
