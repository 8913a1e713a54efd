"""Which points a device gets."""

from __future__ import annotations

import numpy as np
import pytest

from gradledger.errors import ConfigError
from owner.validation_sets import ValidationData, class_list, generator_for


def data(per_class: int = 5, classes: int = 4) -> ValidationData:
    y = np.repeat(np.arange(classes), per_class)
    return ValidationData(np.arange(len(y) * 2, dtype=np.float32).reshape(-1, 2), y)


def test_a_device_gets_m_points_of_each_declared_class_and_no_other():
    points = data()
    x, y = points.sample(0b1010, 3, generator_for(1, 1, 7))
    assert sorted(y.tolist()) == [1, 1, 1, 3, 3, 3]
    for row, label in zip(x, y, strict=True):
        assert points.y[int(row[0]) // 2] == label
    assert len({row.tobytes() for row in x}) == 6


def test_seed_version_and_account_decide_the_points():
    points = data(per_class=50)

    def draw(*where: int) -> bytes:
        return points.sample(0b1111, 5, generator_for(*where))[0].tobytes()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4


def test_all_points_of_a_class_may_be_drawn_but_not_one_more():
    points = data(per_class=5)
    assert len(points.sample(1, 5, generator_for(0, 1, 1))[1]) == 5
    with pytest.raises(ConfigError, match="class 0: expected at least 6 validation points, got 5"):
        points.sample(1, 6, generator_for(0, 1, 1))


@pytest.mark.parametrize(
    ("classes", "per_class", "message"),
    [
        (0, 1, "declared no class"),
        (1, 0, "at least 1 point of each class, got 0"),
        (1 << 63, 1, "class 63: expected at least 1 validation points, got 0"),
    ],
)
def test_refused_samples(classes: int, per_class: int, message: str):
    with pytest.raises(ConfigError, match=message):
        data().sample(classes, per_class, generator_for(0, 1, 1))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((0, 2)), np.zeros(0)),
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros(3), np.zeros(3)),
        (np.zeros((1, 2)), [-1]),
        (np.zeros((1, 2)), [64]),
    ],
)
def test_refused_data(x, y):
    with pytest.raises(ConfigError, match="validation data"):
        ValidationData(x, y)


def test_class_list_has_both_ends():
    assert class_list(0) == []
    assert class_list(1 | 1 << 63) == [0, 63]
    with pytest.raises(ConfigError, match="bits"):
        generator_for(-1, 1, 1)
