"""Regression: strata of the target, its error, and the models and sets that have one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradledger import card, envelope
from gradledger.card import TaskCard
from gradledger.errors import ConfigError, EnvelopeError, ModelError
from gradledger.models import (
    Mlp,
    Model,
    architecture_from,
    dump_validation_set,
    load_validation_set,
)
from gradledger.target import Target

TARGET = Target((1.0, 2.5), scale=2.0, tolerance=0.5, unit="km")
LINE = {"kind": "mlp", "layers": [1, 1], "activation": "relu", "output": "identity"}

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
pairs = st.lists(st.tuples(st.floats(width=32), numbers), min_size=1, max_size=40)


def test_a_stratum_has_its_lower_edge_and_not_its_upper() -> None:
    y = [-9.0, 0.99, 1.0, 2.49, 2.5, 1e9]
    assert TARGET.stratum_of(y).tolist() == [0, 0, 1, 1, 2, 2]
    assert TARGET.strata_of([2.6, 0.0, 0.1]) == [0, 2]
    assert TARGET.names == ("below 1 km", "1 to 2.5 km", "2.5 km and more")
    assert Target((), 1, 1).names == ("all",) and Target((), 1, 1).strata == 1
    assert len(set(Target((1.0, 1.00000001), 1, 1).names)) == 3


def test_edges_are_compared_with_the_float32_that_the_set_has() -> None:
    edge = float(np.float32(0.1))  # above 0.1
    assert Target((edge,), 1, 1).stratum_of([0.1]).tolist() == [1]
    assert Target((0.1,), 1, 1).stratum_of([np.nextafter(np.float32(0.1), np.float32(0))]) == [0]


def test_quantiles_give_equal_shares() -> None:
    y = np.random.default_rng(1).normal(size=1000)
    target = Target.by_quantiles(y, 5, scale=1, tolerance=0.1)
    assert np.bincount(target.stratum_of(y)).tolist() == [200] * 5
    assert all(float(f"{edge:.6g}") == edge for edge in target.edges)
    assert Target.by_quantiles(y, 1, scale=1, tolerance=0.1).edges == ()
    for strata, values in ((3, [1.0, 1.0, 1.0, 2.0]), (2, [5.0]), (0, y), (65, y), (True, y)):
        with pytest.raises(ConfigError, match="strata"):
            Target.by_quantiles(values, strata, scale=1, tolerance=1)


def test_the_error_is_the_mean_share_of_the_scale() -> None:
    assert TARGET.error_micro([1, 1, 1], [1, 2, 9]) == 500_000  # 0, 1/2, and 1 for 4 scales off
    assert TARGET.error_micro([0, 0, 0], [0, 0, 9]) == 333_333
    assert TARGET.error_micro([0, 0, 0], [9, 0, -9]) == 666_666  # rounded down
    assert TARGET.error_micro([math.nan, math.inf, -math.inf], [0, 0, 0]) == 1_000_000
    assert TARGET.wrong_micro([0, 0, 0], [0.5, -0.5, 0.51]) == 333_333
    assert TARGET.wrong_micro([math.nan], [0]) == 1_000_000


@given(pairs)
def test_errors_stay_in_their_range_whatever_is_predicted(rows: list[tuple[float, float]]) -> None:
    predicted, y = (np.array(column) for column in zip(*rows, strict=True))
    error, wrong = TARGET.error_micro(predicted, y), TARGET.wrong_micro(predicted, y)
    assert 0 <= error <= 1_000_000 and 0 <= wrong <= 1_000_000
    assert TARGET.error_micro(y, y) == 0 == TARGET.wrong_micro(y, y)
    order = np.random.default_rng(0).permutation(len(y))
    assert TARGET.error_micro(predicted[order], y[order]) == error
    exact = sum(
        min(1.0, abs(p - t) / 2) if math.isfinite(p) else 1.0
        for p, t in zip(predicted.tolist(), y.tolist(), strict=True)
    )
    assert error == pytest.approx(1e6 * exact / len(y), abs=1.001)
    assert error <= 1e6 * exact / len(y) + 1e-3  # never up
    wider = Target((), 4.0, 1.0)
    assert wider.error_micro(predicted, y) <= error
    assert wider.wrong_micro(predicted, y) <= wrong


@pytest.mark.parametrize("y", [[], [[1.0]], [math.nan], [math.inf], [1e39]])
def test_targets_that_are_no_numbers_are_refused(y: list[Any]) -> None:
    for measure in (TARGET.error_micro, TARGET.wrong_micro):
        with pytest.raises(ConfigError):
            measure(np.zeros(np.shape(y)), y)
    with pytest.raises(ConfigError):
        TARGET.stratum_of(y)
    with pytest.raises(ConfigError, match="predictions"):
        TARGET.error_micro([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("edges", v) for v in ([2, 1], [1, 1], "12", 3, [math.nan], [True], ["1"], [1e39])),
        ("edges", list(range(64))),
        *((name, v) for name in ("scale", "tolerance") for v in (0, -1, math.inf, "1", 10**400)),
        ("unit", 5),
        ("unit", "x" * 33),
        ("kind", "classification"),
    ],
)
def test_targets_that_are_none(field: str, value: Any) -> None:
    good = TARGET.to_dict()
    assert Target.from_dict(json.loads(json.dumps(good))) == TARGET
    with pytest.raises(ConfigError, match=f"target: {field}"):
        Target.from_dict({**good, field: value})
    for bad in ({**good, "more": 1}, {k: v for k, v in good.items() if k != field}, [], None):
        with pytest.raises(ConfigError, match="expected exactly"):
            Target.from_dict(bad)  # type: ignore[arg-type]


def test_a_regression_tells_numbers_and_is_measured_by_its_target() -> None:
    net = Model(LINE, [2, 1], TARGET)  # 2 x + 1
    x, y = [[0.0], [1.0], [2.0]], np.array([1.0, 4.0, 0.0], np.float32)
    np.testing.assert_array_equal(net.predict(x), [1, 3, 5])
    assert net.error_micro(x, y) == 500_000
    moved = Model.from_bytes(net.to_bytes(), architecture=LINE, target=TARGET)
    assert moved.with_vector([2, 2]).error_micro(x, y) == TARGET.error_micro([2, 4, 6], y)
    assert moved.with_arrays(moved.arrays).target == TARGET
    assert architecture_from(LINE).to_dict() == LINE and architecture_from(LINE).regresses()
    huge = Model(LINE, [3e38, 3e38], TARGET)
    assert huge.error_micro([[-2.0]], [0.0]) == 1_000_000  # beyond float32


def test_regressions_that_are_none() -> None:
    with pytest.raises(ModelError, match="not given"):
        Model(LINE, [2, 1]).error_micro([[1.0]], [1.0])
    with pytest.raises(ModelError, match="doubt"):
        Model(LINE, [2, 1], TARGET).doubt_micro([[1.0]], [1])
    for x, y in (([[1.0]], [math.nan]), ([[1.0]], [1.0, 2.0]), ([[1.0]], [])):
        with pytest.raises(ModelError):
            Model(LINE, [2, 1], TARGET).error_micro(x, y)
    with pytest.raises(ModelError, match="output identity"):
        Model(Mlp([1, 1]), [2, 1], TARGET)
    with pytest.raises(ModelError, match="one unit"):
        architecture_from({**LINE, "layers": [1, 2]})
    for output in ("softmax", None, 1):
        with pytest.raises(ModelError, match="output"):
            architecture_from({**LINE, "output": output})
    with pytest.raises(ModelError, match="expected"):  # another architecture than the card's
        Model.from_bytes(Model(Mlp([1, 1]), [1, 1]).to_bytes(), architecture=LINE)


def test_validation_sets_of_a_regression_hold_float32() -> None:
    x, y = np.zeros((2, 1), np.float32), np.array([-1.5, 2.0])
    data = dump_validation_set(x, y)
    found = load_validation_set(data, regression=True)[1]
    assert found.dtype == np.float32 and found.tolist() == [-1.5, 2.0]
    with pytest.raises(ModelError, match="int64"):
        load_validation_set(data)
    with pytest.raises(ModelError, match="float32"):
        load_validation_set(dump_validation_set(x, [0, 1]), regression=True)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ModelError, match="finite"):
            dump_validation_set(x, [0.0, bad])
        raw = data[:-16] + np.array([0, bad], "<f4").tobytes() + data[-8:]
        with pytest.raises(ModelError, match="finite"):
            load_validation_set(raw, regression=True)


def make_card(**changes: Any) -> TaskCard:
    return TaskCard(
        **{
            "task": "walks",
            "owner": "owner",
            "description": "How far",
            "classes": TARGET.names,
            "architecture": LINE,
            "owner_enc_key": bytes(32),
            "paillier_n": None,
            "target": TARGET,
            **changes,
        }
    )


def test_a_card_says_the_target() -> None:
    data = make_card().to_bytes()
    assert TaskCard.from_bytes(data) == make_card()
    document = json.loads(envelope.parse(data).payload())
    assert document["format"] == card.FORMAT_OPTIONS
    assert document["target"] == {
        "kind": "regression",
        "edges": [1.0, 2.5],
        "scale": 2.0,
        "tolerance": 0.5,
        "unit": "km",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", "a task\x1b[8m"),
        ("description", "a task\n  judged by   your friends"),
        ("description", "a task\r"),
        ("description", "\u202ea task"),
        ("description", "\u2067a task"),
        ("description", "a\u2028task"),
        ("description", "\ud800"),
        ("classes", ["a", "b\x9b28m", "c"]),
        ("target", {**TARGET.to_dict(), "unit": "km\u200f"}),
    ],
)
def test_a_card_with_text_that_forges_what_is_printed_is_refused(field: str, value: Any) -> None:
    found = envelope.parse(make_card().to_bytes())
    document = json.loads(found.payload()) | {field: value}
    header = replace(found.header, payload_bytes=0)
    with pytest.raises(EnvelopeError, match=f"{field}: .*one line without control characters, got"):
        TaskCard.from_bytes(envelope.plain(header, json.dumps(document).encode()))


def test_a_card_with_the_texts_of_many_languages_is_taken() -> None:
    text = "\u0645\u06cc\u200c\u0634\u0648\u062f \u00e9t\u00e9\u00a0 \U0001f469\u200d\U0001f52c"
    assert TaskCard.from_bytes(make_card(description=text).to_bytes()).description == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "expected a target"),
        ({"architecture": {k: v for k, v in LINE.items() if k != "output"}}, "no output identity"),
        ({"classes": ("a", "b")}, "names of 3 strata in the task card, got 2"),
    ],
)
def test_a_card_whose_target_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvelopeError, match=message):
        TaskCard.from_bytes(make_card(**changes).to_bytes())
