"""What is measured of an update in the clear: exact lengths, sketches, classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.codec import Codec
from gradledger.models import Mlp, Model
from producer_validation import measuring
from producer_validation.measuring import ClassView, Views

PARAMETERS = 5_000
CODEC = Codec(clip_e6=1_000_000, slot_bits=26, parameters=PARAMETERS)
FIRST_OF_SKETCH = [-130558, 261364, 130550, 0]


def codes(values: object) -> np.ndarray:
    return CODEC.quantise(np.asarray(values, dtype=np.float32))


def drawn(seed: int, size: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, PARAMETERS)


# ---- length -------------------------------------------------------------------------------------


def test_the_norm_is_that_of_the_decoded_update() -> None:
    found = codes(drawn(1))
    exact = np.linalg.norm(CODEC.dequantise(found).astype(np.float64))
    assert measuring.norm_e6(found, CODEC) == pytest.approx(1e6 * exact, rel=1e-6)


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=40), st.integers(1, 2**32 - 1))
def test_the_bound_of_the_norm_is_exact(values: list[int], clip_e6: int) -> None:
    codec = Codec(clip_e6=clip_e6, slot_bits=26, parameters=len(values))
    given_codes = np.array(values, dtype=np.uint16)
    norm = measuring.norm_e6(given_codes, codec)
    assert (
        measuring.norm_exceeds(given_codes, codec, norm)
        or norm == 0
        or (65_535**2 * norm**2 == clip_e6**2 * sum((2 * v - 65_535) ** 2 for v in values))
    )
    assert not measuring.norm_exceeds(given_codes, codec, norm + 1)
    assert not measuring.norm_exceeds(given_codes, codec, 0)


def test_next_to_nothing_is_what_rounding_makes_of_zero() -> None:
    step = 2 / 65_535
    for nothing in (np.zeros(PARAMETERS), np.full(PARAMETERS, 0.4 * step)):
        assert measuring.is_next_to_nothing(codes(nothing))
    for something in (np.full(PARAMETERS, 2 * step), [0.01] + [0] * (PARAMETERS - 1)):
        assert not measuring.is_next_to_nothing(codes(something))


# ---- sketches -----------------------------------------------------------------------------------


def test_a_sketch_is_the_same_everywhere() -> None:
    """Written down once: validators on other machines and releases must get these numbers."""
    found = np.frombuffer(measuring.update_sketch(np.arange(200, dtype=np.uint16)), dtype="<i8")
    assert len(found) == measuring.SKETCH_NUMBERS + 1 and found[-1] == 200
    assert found[:4].tolist() == FIRST_OF_SKETCH


def test_a_sketch_keeps_distances() -> None:
    a, b = drawn(1), drawn(2)
    sketches = [
        np.frombuffer(measuring.update_sketch(codes(one)), dtype="<i8")[:-1] for one in (a, b)
    ]
    apart = np.linalg.norm((sketches[0] - sketches[1]).astype(float)) / 65_535
    assert apart == pytest.approx(np.linalg.norm(a - b), rel=0.4)


@pytest.mark.parametrize(
    ("share", "near"), [(0, True), (0.002, True), (0.006, True), (0.03, False)]
)
def test_an_altered_copy_is_near_as_long_as_it_is_little(share: float, near: bool) -> None:
    original = drawn(1)
    other = drawn(2)
    altered = original + share * np.linalg.norm(original) / np.linalg.norm(other) * other
    rivals = [measuring.update_sketch(codes(one)) for one in (other, altered, drawn(3))]
    found = measuring.is_near(measuring.update_sketch(codes(original)), rivals)
    assert found == [False, near, False]


def test_a_copy_that_only_rounding_put_apart_is_near() -> None:
    """Of an update as small as this one rounding changes more than a hundredth."""
    original = drawn(1, 3e-4)
    altered = original + 0.005 * drawn(2, 3e-4)
    one, other = codes(original), codes(altered)
    apart = np.linalg.norm(one.astype(float) - other) / np.linalg.norm(one - 32_767.5)
    assert apart > 0.01
    near = measuring.is_near(measuring.update_sketch(one), [measuring.update_sketch(other)])
    assert near == [True]


def test_sketches_that_are_not_there_are_not_near() -> None:
    one = measuring.update_sketch(codes(drawn(1)))
    assert measuring.is_near(b"", [b"", one]) == [False, False]
    assert measuring.is_near(one, [b"", one, one[:8]]) == [False, True, False]
    assert measuring.is_near(one, []) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.03))
def test_near_is_mutual(seed: int, share: float) -> None:
    a = drawn(seed)
    b = a + share * drawn(seed + 1)
    one, other = (measuring.update_sketch(codes(x)) for x in (a, b))
    assert measuring.is_near(one, [other]) == measuring.is_near(other, [one])


# ---- what was learnt ----------------------------------------------------------------------------


def views_of(doubts: list[float], error: int, wrong: list[int], moved: float = 0.1) -> Views:
    classes = {i: ClassView(10, w, d) for i, (d, w) in enumerate(zip(doubts, wrong, strict=True))}
    return Views(error, int(1e6 * np.mean(doubts)), moved, classes)


def test_a_trained_model_forgets_the_class_that_nobody_trains_on() -> None:
    before = views_of([0.8] * 3, 50_000, [1, 0, 0])
    learnt = views_of([0.6, 0.6, 0.75], 0, [0, 0, 0])
    assert measuring.unknown_class(before, learnt) is None
    assert measuring.unknown_class(before, views_of([0.6, 0.79, 0.6], 0, [0, 1, 0])) == 1
    # a model that is sure already has less to learn, and may become less sure of one class
    sure = views_of([0.63] * 3, 20_000, [0, 0, 0])
    assert measuring.unknown_class(sure, views_of([0.5, 0.62, 0.5], 0, [0, 0, 0])) is None
    assert measuring.unknown_class(sure, views_of([0.5, 0.64, 0.5], 0, [0, 0, 0])) == 1


def test_a_model_that_knows_nothing_must_learn_some_of_each_class() -> None:
    before = views_of([0.2, 0.9, 0.9], 660_000, [0, 10, 10])
    after = views_of([0.7, 0.4, 0.4], 200_000, [4, 1, 1])  # a lucky guess is unlearnt
    assert measuring.unknown_class(before, after) is None
    assert measuring.unknown_class(before, views_of([0.1] * 3, 300_000, [0, 9, 0])) == 1


def test_more_classes_than_the_table_has() -> None:
    before = views_of([0.8] * 20, 50_000, [0] * 20)
    assert measuring.unknown_class(before, before) is None
    worse = views_of([0.8] * 19 + [0.87], 50_000, [0] * 20)
    assert measuring.unknown_class(before, worse) == 19


def test_gain_is_asked_for_by_the_number_of_classes() -> None:
    for count, fall in ((1, 0.065), (2, 0.025), (5, 0.001), (9, -0.0061)):
        before = views_of([0.7] * count, 50_000, [0] * count)
        for change, is_without in ((fall - 0.001, True), (fall + 0.001, False)):
            after = views_of([0.7 - change] * count, 50_000, [0] * count)
            assert measuring.without_gain(before, after) is is_without


def test_views_are_of_the_model_before_and_with_the_update() -> None:
    model = Model.random_normal(Mlp([4, 3]), 1)
    codec = Codec(clip_e6=2_000_000, slot_bits=26, parameters=15)
    update = np.random.default_rng(2).normal(0, 0.5, 15)
    x = np.random.default_rng(3).random((60, 4), dtype=np.float32)
    y = np.arange(60) % 3
    quantised = codec.quantise(update)
    before, after = measuring.views(model, quantised, codec, x, y, doubts=True)
    arrived = model.with_vector(model.vector + codec.dequantise(quantised))
    for view, one in ((before, model), (after, arrived)):
        assert view.error == one.error_micro(x, y)
        assert view.doubt == pytest.approx(one.doubt_micro(x, y), abs=5)
        assert sum(c.wrong for c in view.classes.values()) == np.sum(one.predict(x) != y)
        assert [c.points for c in view.classes.values()] == [20, 20, 20]
        mean = np.mean([c.doubt for c in view.classes.values()])
        assert mean == pytest.approx(one.doubt_micro(x, y) / 1e6, abs=1e-5)
    assert before.moved == 0
    apart = np.abs(arrived.doubts(x, y) - model.doubts(x, y)).mean()
    assert after.moved == pytest.approx(apart, abs=1e-5)
    plain = measuring.views(model, quantised, codec, x, y, doubts=False)
    assert [one.error for one in plain] == [before.error, after.error]
    assert not plain[0].classes
