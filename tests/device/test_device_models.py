"""Models and validation sets: bytes both ways, and every way they can be wrong."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from gradledger.errors import ModelError
from gradledger.models import (
    BATCH_ROWS,
    PARAMETERS_MAX,
    POINTS_MAX,
    Mlp,
    Model,
    architecture_from,
    dump_validation_set,
    load_validation_set,
)

ARCHITECTURE = {"kind": "mlp", "layers": [4, 3, 2], "activation": "relu"}
SHAPES = {"w0": (4, 3), "b0": (3,), "w1": (3, 2), "b1": (2,)}


def model() -> Model:
    return Model(ARCHITECTURE, np.arange(23, dtype=np.float32))


def file_of(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def test_the_vector_is_the_arrays_in_their_order() -> None:
    arrays = model().arrays
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    np.testing.assert_array_equal(arrays["w0"], np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(arrays["b1"], [21, 22])
    assert not model().vector.flags.writeable
    np.testing.assert_array_equal(model().with_arrays(arrays).vector, model().vector)


def test_forward_is_relu_then_argmax() -> None:
    net = Model(
        {"kind": "mlp", "layers": [1, 2, 2], "activation": "relu"},
        # hidden: relu(x), relu(-x); scores: hidden, with class 1 ahead by 0.5 at zero
        [1, -1, 0, 0, 1, 0, 0, 1, 0, 0.5],
    )
    x = np.array([[2.0], [-2.0], [0.0]])
    np.testing.assert_array_equal(net.scores(x), [[2, 0.5], [0, 2.5], [0, 0.5]])
    np.testing.assert_array_equal(net.predict(x), [0, 1, 1])
    assert net.error_micro(x, [0, 0, 1]) == 333_333
    assert net.error_micro(x, [0, 1, 1]) == 0
    assert net.error_micro(x, [1, 0, 0]) == 1_000_000


def test_doubt_is_the_clipped_logarithm_of_what_is_left_to_the_others() -> None:
    two = {"kind": "mlp", "layers": [1, 2], "activation": "relu"}
    net = Model(two, [0, 1, 0, 0])  # scores 0 and x: p = 1 / (1 + exp(x)) and the rest
    assert net.doubt_micro([[0.0]], [0]) == int(1e6 * (1 + np.log(0.5) / 30))
    assert net.doubt_micro([[3.0]], [1]) == int(1e6 * (1 - np.log(1 + np.exp(3)) / 30))
    assert net.doubt_micro([[29.0]], [1]) == pytest.approx(1e6 / 30, abs=1)
    assert net.doubt_micro([[31.0]], [1]) == 0  # cut off at 30 nats
    assert net.doubt_micro([[31.0]], [0]) == pytest.approx(1e6, abs=1)
    assert net.doubt_micro([[31.0], [31.0], [31.0]], [0, 1, 1]) == 333_333
    big = Model(two, [3e38, -3e38, 0, 0])
    assert big.doubt_micro([[2.0]], [0]) == 0  # scores beyond float32
    assert big.doubt_micro([[2.0]], [1]) == 1_000_000
    for x, y in (([[1.0]], [2]), ([[1.0]], [-1]), ([[1.0]], []), ([[1.0]], [0, 0])):
        with pytest.raises(ModelError):
            net.doubt_micro(x, y)


def test_rows_beyond_one_batch_are_predicted_alike() -> None:
    net, x = model(), np.random.RandomState(0).rand(5000, 4).astype(np.float32)
    np.testing.assert_array_equal(net.predict(x)[-7:], net.predict(x[-7:]))


def test_a_wide_model_takes_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    width, rows = 512, 2_048
    architecture = {"kind": "mlp", "layers": [2, width, 2], "activation": "relu"}
    net, x = Model.random_normal(architecture, 1), np.random.RandomState(0).rand(rows, 2)
    whole = net.scores(x)
    monkeypatch.setattr("gradledger.models.PASS_VALUES_MAX", 32 * 2 * width)
    tracemalloc.start()
    parts = net.scores(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * rows * width // 8  # float32 numbers of the wide layer, were it one pass
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_up_to_a_width_of_4096_a_batch_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a product's last bits are those of the whole batch."""
    rows, whole = [], Mlp._pass
    monkeypatch.setattr(Mlp, "_pass", lambda *given: rows.append(len(given[2])) or whole(*given))
    x = np.random.RandomState(0).rand(BATCH_ROWS, 3).astype(np.float32)
    net = Model.random_glorot({"kind": "mlp", "layers": [3, 4_096, 5], "activation": "relu"}, 1)
    w0, b0, w1, b1 = net.arrays.values()
    expected = np.maximum(x @ w0 + b0, 0) @ w1 + b1
    np.testing.assert_array_equal(net.scores(x), expected)
    assert rows == [BATCH_ROWS]


def test_names_out_of_a_hostile_file_are_quoted() -> None:
    text = json.dumps(ARCHITECTURE)
    data = save({"x\x1b[8m": np.zeros(1, np.float32)}, metadata={"architecture": text})
    for read in (load_validation_set, Model.from_bytes):
        with pytest.raises(ModelError, match=r"expected, got \['x\\x1b\[8m'\]"):
            read(data)


def test_safetensors_reads_ours_and_we_read_safetensors() -> None:
    data = model().to_bytes()
    assert len(data) % 4 == 0
    for name, array in load(data).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, model().arrays[name])
    theirs = save(
        {name: np.array(array) for name, array in model().arrays.items()},
        metadata={"architecture": json.dumps(ARCHITECTURE)},
    )
    found = Model.from_bytes(theirs, architecture=ARCHITECTURE)
    np.testing.assert_array_equal(found.vector, model().vector)
    x, y = np.ones((3, 4), dtype=np.float32), np.array([0, 1, 1])
    assert set(load(dump_validation_set(x, y))) == {"x", "y"}
    np.testing.assert_array_equal(load_validation_set(save({"x": x, "y": y}))[1], y)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=23, max_size=23)
)
def test_bytes_and_back(values: list[float]) -> None:
    original = Model(ARCHITECTURE, values)
    again = Model.from_bytes(original.to_bytes())
    assert again.vector.tobytes() == original.vector.tobytes()
    assert again.architecture == ARCHITECTURE


def test_random_models_follow_from_the_seed() -> None:
    wide = {"kind": "mlp", "layers": [100, 50, 10], "activation": "relu"}
    normal = Model.random_normal(wide, 2**64 - 1).vector
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    np.testing.assert_array_equal(Model.random_normal(wide, 2**64 - 1).vector, normal)
    assert not np.array_equal(Model.random_normal(wide, 2**32 - 1).vector, normal)
    # the legacy generator's stream is frozen: the same for every numpy
    np.testing.assert_allclose(
        Model.random_normal(ARCHITECTURE, 1).vector[:3],
        np.random.RandomState(np.array([1, 0], dtype=np.uint32)).standard_normal(3),
        rtol=1e-6,
    )
    arrays = Model.random_glorot(wide, 3).arrays
    bound = (6 / 150) ** 0.5
    assert not arrays["b0"].any()
    assert 0.95 * bound < np.abs(arrays["w0"]).max() <= bound
    for seed in (-1, 2**64):
        with pytest.raises(ModelError, match="seed"):
            Model.random_normal(wide, seed)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": "cnn"},
        {"kind": ["mlp"]},
        {"kind": "mlp", "layers": [4, 2]},
        {"kind": "mlp", "layers": [4, 2], "activation": "relu", "more": 1},
        {"kind": "mlp", "layers": [4, 2], "activation": "tanh"},
        {"kind": "mlp", "layers": "42", "activation": "relu"},
        {"kind": "mlp", "layers": [4], "activation": "relu"},
        {"kind": "mlp", "layers": [4] * 17, "activation": "relu"},
        {"kind": "mlp", "layers": [4, 0], "activation": "relu"},
        {"kind": "mlp", "layers": [4, True], "activation": "relu"},
        {"kind": "mlp", "layers": [4, 2.0], "activation": "relu"},
        {"kind": "mlp", "layers": [4, 2**20 + 1], "activation": "relu"},
        {"kind": "mlp", "layers": [2**13, 2**13], "activation": "relu"},
    ],
)
def test_architectures_that_are_none(value: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        architecture_from(value)


def test_the_largest_network_is_accepted() -> None:
    assert isinstance(architecture_from(Mlp([2**13 - 1, 2**13])), Mlp)
    assert PARAMETERS_MAX == (2**13 - 1) * 2**13 + 2**13


@pytest.mark.parametrize(
    "vector", [np.zeros(22), np.zeros(24), np.zeros((1, 23)), [np.nan] + [0] * 22, [np.inf] * 23]
)
def test_vectors_that_do_not_fit(vector: Any) -> None:
    with pytest.raises(ModelError):
        Model(ARCHITECTURE, vector)


def test_arrays_and_inputs_that_do_not_fit() -> None:
    good = dict(model().arrays)
    for arrays in ({}, {**good, "w2": good["w1"]}, {**good, "w1": good["w1"].T}):
        with pytest.raises(ModelError, match="expected"):
            model().with_arrays(arrays)
    for x in (np.zeros(4), np.zeros((2, 5))):
        with pytest.raises(ModelError, match="inputs of shape"):
            model().predict(x)
    for y in ([], [0], [[0, 1]]):
        with pytest.raises(ModelError, match="one label"):
            model().error_micro(np.zeros((2, 4)), y)


def entry(begin: int = 0, end: int = 4, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "at least 8 bytes"),
        (bytes(7), "at least 8 bytes"),
        (file_of({}, length=3), "a header of at most|not JSON"),
        (file_of(b"{}", length=2**40), "a header of at most"),
        (file_of(b" " * 65_537), "a header of at most"),
        (file_of(b"\xff\xff"), "not UTF-8"),
        (file_of(b"[]"), "a JSON object"),
        (file_of(b"[" * 60_000), "not JSON"),
        (file_of(b'{"a": 1, "a": 2}'), "a key twice"),
        (file_of({"__metadata__": {"a": 1}}), "object of strings"),
        (file_of({"__metadata__": []}), "object of strings"),
        (file_of({"a": 1}), "dtype, shape and data_offsets"),
        (file_of({"a": {**entry(), "more": 1}}), "dtype, shape and data_offsets"),
        (file_of({"a": entry(dtype="F16")}, bytes(4)), "F32, I64 or U8"),
        (file_of({"a": entry(dtype=["F32"])}, bytes(4)), "F32, I64 or U8"),
        (file_of({"a": entry(shape=[0])}, bytes(4)), "positive sizes"),
        (file_of({"a": entry(shape=[-1])}, bytes(4)), "positive sizes"),
        (file_of({"a": entry(shape=[1] * 5)}, bytes(4)), "positive sizes"),
        (file_of({"a": entry(shape=[True])}, bytes(4)), "positive sizes"),
        (file_of({"a": entry(shape=[2])}, bytes(4)), "8 bytes expected, got 4"),
        (file_of({"a": entry(shape=[2**30] * 4)}, bytes(4)), "bytes expected, got 4"),
        (file_of({"a": entry(0, 5)}, bytes(4)), "outside the file"),
        (file_of({"a": entry(-4, 0)}, bytes(4)), "outside the file"),
        (file_of({"a": entry(4, 0)}, bytes(4)), "outside the file"),
        (file_of({"a": {**entry(), "data_offsets": [0]}}, bytes(4)), "two data_offsets"),
        (file_of({"a": entry()}, bytes(5)), "without gap or overlap"),
        (file_of({"a": entry(4, 8)}, bytes(8)), "without gap or overlap"),
        (file_of({"a": entry(), "b": entry()}, bytes(4)), "without gap or overlap"),
        (file_of({"a": entry()}, bytes(4)), "architecture"),
    ],
)
def test_malformed_files(data: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Model.from_bytes(data)


def test_files_of_another_model() -> None:
    other = {"kind": "mlp", "layers": [4, 2], "activation": "relu"}
    with pytest.raises(ModelError, match=r"architecture .* expected"):
        Model.from_bytes(model().to_bytes(), architecture=other)
    arrays = {name: np.array(array) for name, array in model().arrays.items()}
    metadata = {"architecture": json.dumps(ARCHITECTURE)}
    for change in (
        {"w0": arrays["w0"].T.copy()},
        {"w0": np.zeros((4, 3), np.int64)},
        {"w2": arrays["w0"]},
    ):
        with pytest.raises(ModelError):
            Model.from_bytes(save({**arrays, **change}, metadata=metadata))
    arrays["b1"][0] = np.nan
    with pytest.raises(ModelError, match="finite"):
        Model.from_bytes(save(arrays, metadata=metadata))
    with pytest.raises(ModelError):
        Model.from_bytes(save(arrays, metadata={"architecture": "{"}))


@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_no_bytes_crash_the_reader(noise: bytes, place: int, at_start: bool) -> None:
    data = model().to_bytes()
    mutated = noise if at_start else data[:place] + noise + data[place + len(noise) :]
    for read in (Model.from_bytes, load_validation_set):
        try:
            read(mutated)
        except ModelError:
            pass


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros(4), [0, 0, 0, 0]),
        (np.zeros((2, 4)), [0]),
        (np.zeros((2, 4)), [[0], [0]]),
        (np.zeros((0, 4)), []),
        (np.full((1, 4), np.nan), [0]),
        (np.zeros((1, 4)), [-1]),
        (np.zeros((POINTS_MAX + 1, 1)), np.zeros(POINTS_MAX + 1)),
    ],
)
def test_validation_sets_that_are_none(x: Any, y: Any) -> None:
    with pytest.raises(ModelError):
        dump_validation_set(x, y)
    with pytest.raises(ModelError):
        load_validation_set(save({"x": np.asarray(x, np.float32), "y": np.asarray(y, np.int64)}))


def test_validation_sets_of_other_types() -> None:
    x, y = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ModelError, match="x and y"):
        load_validation_set(save({"x": x}))
    with pytest.raises(ModelError, match="float32"):
        load_validation_set(save({"x": x, "y": y.astype(np.float32)}))
    found = load_validation_set(dump_validation_set(x, y))
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64
