"""The owner's points: sorted by class, committed to, and handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradledger.errors import ConfigError, ModelError, ValidationSetError
from gradledger.models import load_validation_set
from gradledger.target import Target
from gradledger.validation import Draw, draw_points, read_issued_set
from owner.validation_sets import ValidationData

SECRET = b"of the owner"
BLOCK_ID = "0000002a" + "5e" * 28


def data(per_class: int = 5, classes: int = 4) -> ValidationData:
    y = np.tile(np.arange(classes), per_class)
    return ValidationData(np.arange(len(y) * 2, dtype=np.float32).reshape(-1, 2), y)


def test_points_are_sorted_by_class_and_keep_their_order() -> None:
    points = data(per_class=3, classes=2)
    assert points.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert points.x[:, 0].tolist() == [0, 4, 8, 2, 6, 10]
    assert points.counts(2) == (3, 3)
    assert points.counts(4) == (3, 3, 0, 0)
    with pytest.raises(ConfigError, match="expected classes 0 to 0, got 1"):
        points.counts(1)


def test_a_number_to_be_learned_stands_beside_its_class() -> None:
    points = ValidationData(np.eye(3), [0.5, -2.25, 7.0], classes=[1, 0, 1])
    assert points.y.dtype == np.float32
    assert points.y.tolist() == [-2.25, 0.5, 7.0]
    assert points.classes.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("x", "y", "classes"),
    [
        (np.zeros((0, 2)), np.zeros(0), None),
        (np.zeros((3, 2)), np.zeros(2), None),
        (np.zeros(3), np.zeros(3), None),
        (np.zeros((1, 2)), [-1], None),
        (np.zeros((1, 2)), [64], None),
        (np.zeros((1, 2)), [0.5], [64]),
        (np.zeros((2, 2)), [0.5, 0.5], [1]),
    ],
)
def test_refused_data(x: Any, y: Any, classes: Any) -> None:
    with pytest.raises(ConfigError, match="validation data"):
        ValidationData(x, y, classes)


# ---- committed points ---------------------------------------------------------------------------


def draw_of(points: ValidationData, **changes: Any) -> Draw:
    committed = points.committed(task="digits", classes=4, secret=SECRET)
    fields: dict[str, Any] = {
        "commitment": committed.commitment(3),
        "block_id": BLOCK_ID,
        "task": "digits",
        "version": 2,
        "device": "phone1",
        "classes": 0b1010,
    }
    return Draw(**{**fields, **changes})


@pytest.mark.parametrize("is_number", [False, True], ids=["classes", "numbers"])
def test_what_is_drawn_is_read_back(is_number: bool) -> None:
    points = data()
    if is_number:
        points = ValidationData(points.x, points.y + 0.5, classes=points.classes)
    draw = draw_of(points)
    payload = points.committed(task="digits", classes=4, secret=SECRET).dump(draw.leaves)
    target = Target((1.0, 2.0, 3.0), scale=1.0, tolerance=0.1) if is_number else None
    x, y = read_issued_set(payload, draw, target)
    np.testing.assert_array_equal(x, points.x[draw.leaves])
    np.testing.assert_array_equal(y, points.y[draw.leaves])
    assert y.dtype == points.y.dtype
    assert points.classes[draw.leaves].tolist() == [1, 1, 1, 3, 3, 3]


def test_numbers_committed_to_under_another_stratum_are_refused() -> None:
    points = data()
    numbers = ValidationData(points.x, points.y + 0.5, classes=points.classes)
    draw = draw_of(numbers)
    payload = numbers.committed(task="digits", classes=4, secret=SECRET).dump(draw.leaves)
    moved = Target((1.0, 2.0, 4.0), scale=1.0, tolerance=0.1)
    with pytest.raises(ValidationSetError, match="expected one of class 3, got 2"):
        read_issued_set(payload, draw, moved)
    with pytest.raises(ModelError, match="y int64"):
        read_issued_set(payload, draw)
    whole = points.committed(task="digits", classes=4, secret=SECRET).dump(draw.leaves)
    with pytest.raises(ModelError, match="y float32"):
        read_issued_set(whole, draw_of(points), moved)


def test_the_whole_data_need_no_hashes() -> None:
    points = data(per_class=3, classes=4)
    draw = draw_of(points, classes=0b1111)
    assert draw.leaves == list(range(12))
    committed = points.committed(task="digits", classes=4, secret=SECRET)
    read_issued_set(committed.dump(draw.leaves), draw)


def test_root_and_salts_follow_from_points_task_and_secret() -> None:
    points, other = data(), data()
    other.x[3, 0] += 1
    roots = {
        points.committed(task="digits", classes=4, secret=SECRET).root,
        points.committed(task="digits", classes=4, secret=b"another").root,
        points.committed(task="digitz", classes=4, secret=SECRET).root,
        other.committed(task="digits", classes=4, secret=SECRET).root,
    }
    assert len(roots) == 4
    assert data().committed(task="digits", classes=4, secret=SECRET).root in roots
    again = points.committed(task="digits", classes=4, secret=SECRET)
    assert again is points.committed(task="digits", classes=4, secret=SECRET)


def test_a_class_with_too_few_points_is_not_committed_to() -> None:
    committed = data(per_class=5).committed(task="digits", classes=5, secret=SECRET)
    with pytest.raises(ConfigError, match="class 4: expected at least 1 points to commit to, got"):
        committed.commitment(1)
    committed = data(per_class=5).committed(task="digits", classes=4, secret=SECRET)
    assert committed.commitment(5).counts == (5, 5, 5, 5)
    with pytest.raises(ConfigError, match="class 0: expected at least 6 points to commit to, got"):
        committed.commitment(6)


def test_where_nothing_is_committed_a_secret_draws() -> None:
    points = data(per_class=50)

    def drawn(seed: int, version: int, device: str) -> bytes:
        rest = {"task": "digits", "classes": 0b110, "counts": points.counts(4), "per_class": 5}
        return points.dump(draw_points(bytes([seed] * 32), version=version, device=device, **rest))

    assert drawn(1, 2, "phone1") == drawn(1, 2, "phone1")
    choices = {
        drawn(1, 2, "phone1"),
        drawn(2, 2, "phone1"),
        drawn(1, 3, "phone1"),
        drawn(1, 2, "phone2"),
    }
    assert len(choices) == 4
    x, y = load_validation_set(drawn(1, 2, "phone1"))
    assert y.tolist() == [1] * 5 + [2] * 5
    assert len({row.tobytes() for row in x}) == 10


def test_sets_of_both_kinds_are_told_apart() -> None:
    points = data()
    draw = draw_of(points)
    plain = points.dump(draw.leaves)
    read_issued_set(plain, None)
    with pytest.raises(ModelError, match=r"salts and leaves, and nodes, expected in .*, got x, y"):
        read_issued_set(plain, draw)
    proven = points.committed(task="digits", classes=4, secret=SECRET).dump(draw.leaves)
    with pytest.raises(ModelError, match="arrays x and y expected"):
        read_issued_set(proven, None)


def test_another_devices_set_is_refused() -> None:
    points = data()
    payload = points.committed(task="digits", classes=4, secret=SECRET).dump(draw_of(points).leaves)
    with pytest.raises(ValidationSetError, match="the draw of block 42 for phone2 in round 2"):
        read_issued_set(payload, draw_of(points, device="phone2"))
