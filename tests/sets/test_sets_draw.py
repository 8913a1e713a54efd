"""Which committed points are drawn: the vectors, and the laws of the draw."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.chain.names import name_to_int
from gradledger.errors import ConfigError, ValidationSetError
from gradledger.validation import Commitment, Draw, class_list, draw_points

VECTORS = Path(__file__).parents[1] / "vectors" / "validation_draw.json"
SEED = hashlib.sha256(b"a block").digest()
CHI_SQUARE_199 = 267.0  # 99.9 % of the distribution with 199 degrees of freedom


def name_value(name: str) -> int:
    """Return an account's name as a number, as the chain's documentation has it."""
    value = 0
    for place, letter in enumerate(name.ljust(12, ".")):
        digit = ".12345abcdefghijklmnopqrstuvwxyz".index(letter)
        value |= digit << (64 - 5 * (place + 1))
    return value


def reference(block_id: str, task: str, version: int, device: str, **rest: Any) -> list[int]:
    """Draw as docs/protocol.md says, section 4.1, by other means than the code under test."""
    counts, m = rest["counts"], rest["per_class"]
    inner = hashlib.sha256(
        b"gradledger set"
        + bytes.fromhex(block_id)
        + struct.pack("<QIQ", name_value(task), version, name_value(device))
    ).digest()
    leaves = []
    for c in range(64):
        if not rest["classes"] & (1 << c):
            continue
        found: list[int] = []
        number = 0
        while len(found) < m:
            block = hashlib.sha256(inner + struct.pack("<BI", c, number)).digest()
            for word in struct.unpack("<4Q", block):
                is_fair = word < 2**64 // counts[c] * counts[c]
                if len(found) < m and is_fair and word % counts[c] not in found:
                    found.append(word % counts[c])
            number += 1
        leaves += [sum(counts[:c]) + j for j in found]
    return sorted(leaves)


def draw(**changes: Any) -> list[int]:
    fields: dict[str, Any] = {"task": "digits", "version": 1, "device": "phone1", "classes": 0b101}
    fields |= {"counts": (40, 30, 20), "per_class": 4, **changes}
    return draw_points(fields.pop("seed", SEED), **fields)


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text()), ids=lambda v: v["device"])
def test_the_vectors(vector: dict[str, Any]) -> None:
    given_fields = {key: value for key, value in vector.items() if key != "leaves"}
    assert reference(**given_fields) == vector["leaves"]
    block_id = given_fields.pop("block_id")
    given_fields["counts"] = tuple(given_fields["counts"])
    assert draw_points(bytes.fromhex(block_id), **given_fields) == vector["leaves"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_draw_is_the_references(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    classes = data.draw(st.integers(1, 2 ** len(counts) - 1))
    most = min(counts[c] for c in class_list(classes))
    fields: dict[str, Any] = {
        "task": "digits",
        "version": data.draw(st.integers(1, 2**32 - 1)),
        "device": data.draw(st.text("abcxyz15", min_size=1, max_size=12)),
        "classes": classes,
        "counts": tuple(counts),
        "per_class": data.draw(st.integers(1, most)),
    }
    seed = data.draw(st.binary(min_size=32, max_size=32))
    leaves = draw_points(seed, **fields)
    assert leaves == reference(seed.hex(), **fields)
    assert leaves == sorted(set(leaves)), "a point twice"
    ends = list(accumulate(counts))
    of_class = Counter(next(c for c, end in enumerate(ends) if leaf < end) for leaf in leaves)
    assert of_class == dict.fromkeys(class_list(classes), fields["per_class"])


def test_names_count_as_on_chain() -> None:
    for name in ("a", "phone1", "gradledger.x"[:12], "zzzzzzzzzzzz"):
        assert name_value(name) == name_to_int(name)


def test_everything_that_is_hashed_changes_the_draw() -> None:
    other = hashlib.sha256(b"another block").digest()
    changes: list[dict[str, Any]] = [
        {},
        {"seed": other},
        {"task": "digitz"},
        {"version": 2},
        {"device": "phone2"},
    ]
    assert len({tuple(draw(**one)) for one in changes}) == len(changes)


def test_declaring_more_classes_draws_no_others_of_a_class() -> None:
    few, more = draw(classes=0b100), draw(classes=0b111)
    assert [leaf for leaf in more if leaf >= 70] == few


def test_each_point_is_drawn_equally_often() -> None:
    """Chi-square over 200 points, of which each of 2,000 devices gets 10."""
    hits: Counter[int] = Counter()
    for number in range(2000):
        device = "p" + "".join("abcdefghij"[int(digit)] for digit in f"{number:04d}")
        hits.update(draw(device=device, classes=1, counts=(200,), per_class=10))
    expected = 2000 * 10 / 200
    # Points are drawn without repetition: 199 degrees of freedom, variance (1 - 10/200) of theirs.
    statistic = sum((hits[leaf] - expected) ** 2 / expected for leaf in range(200)) / (190 / 200)
    assert statistic < CHI_SQUARE_199
    assert statistic > 130  # 0.1 %: more even than chance would be as bad


def test_all_points_of_a_class_may_be_drawn_but_not_one_more() -> None:
    assert draw(classes=0b100, per_class=20) == list(range(70, 90))
    with pytest.raises(ValidationSetError, match="class 2: expected at least 21 "):
        draw(classes=0b100, per_class=21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 0}, "declared no class"),
        ({"per_class": 0}, "expected 1 to 65536 points in a set, got 0 of each of 2 classes"),
        ({"per_class": 32769}, "expected 1 to 65536 points in a set, got 32769 of each of 2"),
        ({"classes": 1 << 63}, "class 63: expected at least 4 validation points, got 0"),
        ({"counts": (40, 30, 0)}, "class 2: expected at least 4 validation points, got 0"),
    ],
)
def test_what_cannot_be_drawn(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationSetError, match=message):
        draw(**changes)


def test_class_list_has_both_ends() -> None:
    assert class_list(0) == []
    assert class_list(1 | 1 << 63) == [0, 63]


# ---- the card's key -----------------------------------------------------------------------------

WHOLE = {"root": "ab" * 32, "counts": [3, 0, 5], "per_class": 2}


def test_a_commitment_survives_the_card() -> None:
    found = Commitment.from_dict(WHOLE)
    assert (found.root, found.counts, found.per_class) == (b"\xab" * 32, (3, 0, 5), 2)
    assert found.to_dict() == WHOLE
    assert found.points == 8
    assert [found.class_of(leaf) for leaf in range(8)] == [0, 0, 0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "ab" * 31}, "root: expected 32 bytes"),
        ({"root": "xy"}, "root: expected hexadecimal digits"),
        ({"root": 1}, "root as a text"),
        ({"counts": {}}, "counts as a list"),
        ({"counts": []}, "1 to 64 of them"),
        ({"counts": [1] * 65}, "1 to 64 of them"),
        ({"counts": [1, -1]}, "expected numbers, got -1"),
        ({"counts": [1.0]}, "expected numbers, got 1.0"),
        ({"counts": [True]}, "expected numbers, got True"),
        ({"counts": [2**31]}, "expected numbers, got 2147483648"),
        ({"counts": [2**31 - 1, 1]}, "1 to 2147483647 points in all"),
        ({"counts": [0, 0]}, "1 to 2147483647 points in all"),
        ({"per_class": 0}, "per_class: expected 1 or more, got 0"),
        ({"per_class": "2"}, "per_class: expected 1 or more, got '2'"),
        ({"colour": 1}, "nothing else"),
    ],
)
def test_a_wrong_commitment_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Commitment.from_dict({**WHOLE, **changes})


def test_a_draw_says_which_it_is() -> None:
    commitment = Commitment.from_dict(WHOLE)
    one = Draw(commitment, f"{4711:08x}" + "0" * 56, "digits", 3, "phone1", 0b101)
    assert str(one) == "the draw of block 4711 for phone1 in round 3"
    assert len(one.leaves) == 4
