"""Models that ONNX Runtime runs: the same scores as numpy's, and no graph that could do harm."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gradledger import onnx_models
from gradledger.errors import ModelError
from gradledger.models import ARCHITECTURES, Mlp, Model, architecture_from
from gradledger.onnx_models import OnnxGraph, RuntimeModel, mlp_graph

MLP = Mlp([6, 5, 3])
ARRAYS = [[name, list(shape)] for name, shape in MLP.shapes().items()]
NET = [("w", (6, 3)), ("b", (3,))]


def described(graph: Any, arrays: Sequence[Any] = ARRAYS, **more: Any) -> dict[str, Any]:
    """Return the JSON object of a graph."""
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    text = base64.b64encode(data).decode()
    return {"kind": "onnx", "graph": text, "arrays": [[n, list(s)] for n, s in arrays], **more}


def value(name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def network(
    nodes: Sequence[Any],
    *,
    features: Any = 6,
    arrays: Sequence[Any] = NET,
    output: Any = None,
    held: Sequence[Any] = (),
    opset: int = 17,
    rows: Any = None,
    **more: Any,
) -> Any:
    """Return a ModelProto with input x, the arrays, and output `out` [rows, 3]."""
    inputs = [value("x", rows, features), *(value(n, *s) for n, s in arrays)]
    out = output or value("out", None, 3)
    graph = helper.make_graph(list(nodes), "g", inputs, [out], list(held), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, output: str = "out", **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


def whole(name: str, *sides: int) -> Any:
    return numpy_helper.from_array(np.array(sides, dtype=np.int64), name)


LINEAR = node("Gemm", "x w b", "s")


# ---- the same scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(6, 3), (6, 5, 3), (784, 128, 10), (3, 2, 2, 2, 1)])
def test_a_perceptron_scores_alike_on_numpy_and_on_the_runtime(layers: tuple[int, ...]) -> None:
    model = Model.random_normal(Mlp(layers), 3)
    x = np.random.default_rng(1).random((300, layers[0]), dtype=np.float32)
    y = np.arange(300) % layers[-1]
    other = RuntimeModel(model.network, model.vector)
    scale = np.abs(model.scores(x)).max()
    np.testing.assert_allclose(other.scores(x), model.scores(x), rtol=0, atol=3e-6 * scale)
    assert other.error_micro(x, y) == pytest.approx(model.error_micro(x, y), abs=2 * 1e6 / 300)
    if layers[-1] > 1:
        assert other.doubt_micro(x, y) == pytest.approx(model.doubt_micro(x, y), abs=100)


def test_more_rows_than_one_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "VALUES_MAX", 2 * 11 * 7)
    model = Model.random_normal(Mlp([6, 8, 3]), 3)
    x = np.random.default_rng(1).random((100, 6), dtype=np.float32)
    assert onnx_models._mlp_program((6, 8, 3)).rows == 7
    found = RuntimeModel(model.network, model.vector).scores(x)
    np.testing.assert_allclose(found, model.scores(x), rtol=0, atol=1e-4)
    graph = Model(described(mlp_graph([6, 5, 3])), np.zeros(53))
    assert graph.network._program.rows == 8  # type: ignore[attr-defined]
    assert graph.scores(x).shape == (100, 3)


def test_both_kinds_are_the_same_model() -> None:
    by_numpy = Model.random_glorot(MLP, 4)
    card = described(mlp_graph([6, 5, 3]))
    by_graph = Model(card, by_numpy.vector)
    assert by_graph.architecture == card
    assert (by_graph.network.features(), by_graph.network.classes()) == (6, 3)
    assert not by_graph.network.regresses()
    x = np.random.default_rng(1).random((50, 6), dtype=np.float32)
    np.testing.assert_allclose(by_graph.scores(x), by_numpy.scores(x), rtol=0, atol=1e-5)
    again = Model.from_bytes(by_graph.to_bytes(), architecture=card)
    np.testing.assert_array_equal(again.scores(x), by_graph.scores(x))
    travelled = pickle.loads(pickle.dumps(by_graph))  # as a pool does
    np.testing.assert_array_equal(travelled.scores(x), by_graph.scores(x))
    runtime = RuntimeModel(by_graph.network, by_graph.vector)
    np.testing.assert_array_equal(runtime.scores(x), by_graph.scores(x))
    assert len(repr(by_graph)) < 300
    with pytest.raises(ModelError, match=r"architecture .* expected, got"):
        Model.from_bytes(by_numpy.to_bytes(), architecture=card)


def test_a_convolutional_network_is_taken() -> None:
    arrays = [("k", (4, 1, 3, 3)), ("c", (4,)), ("g", (4,)), ("h", (4,)), ("w", (16, 3))]
    nodes = [
        node("Reshape", "x sides", "image"),
        node("Conv", "image k c", "a", pads=[1, 1, 1, 1], strides=[1, 1]),
        node("BatchNormalization", "a g h c g", "n", epsilon=0.1),
        node("Clip", "n low high", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "p", "q", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1]),
        node("Flatten", "q", "f"),
        node("MatMul", "f w", "s"),
        node("LogSoftmax", "s", "out", axis=1),
    ]
    scalars = [numpy_helper.from_array(np.float32(v), n) for n, v in (("low", 0), ("high", 6))]
    held = [whole("sides", -1, 1, 4, 4), *scalars]
    model = network(nodes, features=16, arrays=arrays, held=held)
    sizes = sum(int(np.prod(shape)) for _, shape in arrays)
    vector = np.random.default_rng(0).random(sizes)
    found = Model(described(model, arrays), vector)
    x = np.random.default_rng(1).random((5, 16), dtype=np.float32)
    scores = found.scores(x)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
    reference = onnx.reference.ReferenceEvaluator(model)
    (expected,) = reference.run(None, {"x": x, **found.arrays})
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_other_operators_have_the_shapes_that_the_runtime_gives_them() -> None:
    arrays = [("w", (6, 3)), ("b", (3,)), ("t", (3, 3)), ("g", (6,))]
    nodes = [
        node("Gemm", "x w b", "s", alpha=0.5),
        node("LayerNormalization", "s b b", "l"),
        node("Elu", "l", "e", alpha=2.0),
        node("Gemm", "e t", "u", transB=1),
        node("Concat", "e u", "v", axis=-1),
        node("Mul", "v g", "m"),
        node("Transpose", "m", "y", perm=[1, 0]),
        node("Transpose", "y", "z"),
        node("Reshape", "z four", "i"),
        node("GlobalAveragePool", "i", "q"),
        node("Flatten", "q", "f"),
        node("Tanh", "f", "out"),
    ]
    model = network(nodes, arrays=arrays, held=[whole("four", 0, 3, 1, -1)], opset=18)
    found = Model(described(model, arrays), np.linspace(-1, 1, 36))
    assert found.scores(np.ones((9, 6), dtype=np.float32)).shape == (9, 3)


def test_a_regression_says_so() -> None:
    model = network(
        [node("Gemm", "x w", "out")], arrays=[("w", (6, 1))], output=value("out", None, 1)
    )
    card = described(model, [("w", (6, 1))], output="identity")
    found = architecture_from(card)
    assert found.regresses() and found.to_dict() == card
    with pytest.raises(ModelError, match="one column expected, got 3"):
        architecture_from(described(mlp_graph([6, 5, 3]), output="identity"))


# ---- what is refused ----------------------------------------------------------------------------

HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {}


def hostile(text: str) -> Callable[[Any], Any]:
    """Add a graph that must be refused with this text."""

    def add(make: Any) -> Any:
        HOSTILE[make.__name__] = (make, text)
        return make

    return add


def body(name: str) -> Any:
    return helper.make_graph([node("Relu", "s", "inner")], name, [], [value("inner", None, 3)])


@hostile("one of the operators .* expected, got 'Loop'")
def a_loop() -> Any:
    return network([LINEAR, node("Loop", "n c s", body=body("b"))])


@hostile("expected, got 'If'")
def a_branch() -> Any:
    return network([LINEAR, node("If", "c", then_branch=body("a"), else_branch=body("b"))])


@hostile("expected, got 'Scan'")
def a_scan() -> Any:
    return network([LINEAR, node("Scan", "s", body=body("b"), num_scan_inputs=1)])


@hostile("expected, got 'ConstantOfShape'")
def a_huge_constant() -> Any:
    held = [whole("shape", 2**31, 2**20)]
    return network(
        [LINEAR, node("ConstantOfShape", "shape", "big"), node("Add", "s big")], held=held
    )


@hostile("expected, got 'Expand'")
def a_huge_expand() -> Any:
    return network([LINEAR, node("Expand", "s shape")], held=[whole("shape", 2**40, 3)])


@hostile("expected, got 'Tile'")
def a_huge_tile() -> Any:
    return network([LINEAR, node("Tile", "s times")], held=[whole("times", 2**30, 1)])


@hostile("expected, got 'com.evil.Run'")
def another_domain() -> Any:
    return network([helper.make_node("Run", ["x"], ["out"], domain="com.evil")])


@hostile("the default operator set, version 13 to 20, expected, got")
def another_operator_set() -> Any:
    model = network([node("Gemm", "x w b")])
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return model


@hostile("version 13 to 20, expected, got")
def a_later_operator_set() -> Any:
    return network([node("Gemm", "x w b")], opset=90)


@hostile("without functions and training steps")
def a_function() -> Any:
    model = network([node("Gemm", "x w b")])
    opsets = [helper.make_opsetid("", 17)]
    f = helper.make_function("", "Relu", ["a"], ["b"], [node("Exp", "a", "b")], opsets)
    model.functions.append(f)
    return model


@hostile("without external data")
def external_data() -> Any:
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32), "held")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return network([LINEAR, node("Add", "s held")], held=[tensor])


@hostile("without sparse and quantised")
def a_sparse_tensor() -> Any:
    model = network([node("Gemm", "x w b")])
    model.graph.sparse_initializer.add().dims.append(2**40)
    return model


@hostile("constants of at most 1024 bytes")
def a_large_constant() -> Any:
    tensor = numpy_helper.from_array(np.ones((300, 3), dtype=np.float32), "held")
    return network([LINEAR, node("Add", "s held")], held=[tensor])


@hostile("constants of at most 1024 bytes")
def a_constant_that_claims_to_be_large() -> Any:
    tensor = TensorProto(name="held", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=b"0000")
    return network([LINEAR, node("Add", "s held")], held=[tensor])


@hostile("a constant is malformed")
def a_constant_that_is_too_short() -> Any:
    tensor = TensorProto(name="held", data_type=TensorProto.FLOAT, dims=[3], raw_data=b"0000")
    return network([LINEAR, node("Add", "s held")], held=[tensor])


@hostile("constants of float32 or int64")
def a_constant_of_texts() -> Any:
    tensor = helper.make_tensor("held", TensorProto.STRING, [1], [b"text"])
    return network([LINEAR, node("Add", "s held")], held=[tensor])


@hostile("attribute 'value' is not taken|one of the operators")
def a_constant_node() -> Any:
    tensor = numpy_helper.from_array(np.ones(3, dtype=np.float32))
    return network([LINEAR, node("Constant", "", "c", value=tensor), node("Add", "s c")])


@hostile("attribute 'auto_pad' is not taken")
def an_attribute_that_is_not_known() -> Any:
    arrays = [("k", (3, 1, 3, 3))]
    nodes = [node("Reshape", "x sides", "i"), node("Conv", "i k", auto_pad="SAME_UPPER")]
    return network(nodes, arrays=arrays, held=[whole("sides", -1, 1, 2, 3)])


@hostile("attribute alpha is of the wrong type")
def an_attribute_of_another_type() -> Any:
    return network([LINEAR, node("LeakyRelu", "s", alpha=3)])


@hostile("makes at most .* numbers")
def a_row_that_grows() -> Any:
    """[rows, 2**13] x [2**13, rows] and so on: one row is small, its square is not."""
    nodes = [node("Reshape", "x tall", "t0"), node("Reshape", "x wide", "w0")]
    nodes += [node("MatMul", "t0 w0", "big"), node("Reshape", "big flat", "out")]
    held = [whole("tall", -1, 8192, 1), whole("wide", -1, 1, 8192), whole("flat", 0, 67108864)]
    return network(nodes, features=8192, held=held, output=value("out", None, 2**26))


@hostile("makes at most .* numbers")
def doublings() -> Any:
    nodes = [node("Concat", "x x", "c0", axis=1)]
    nodes += [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=1) for i in range(40)]
    return network([*nodes, node("Relu", "c40")], output=value("out", None, 6 * 2**41))


@hostile("with .* products")
def products_without_end() -> Any:
    arrays = [("w", (2048, 2048)), ("b", (3,))]
    nodes = [node("MatMul", "w w", "p0")]
    nodes += [node("MatMul", f"p{i} w", f"p{i + 1}") for i in range(5)]
    return network([*nodes, node("Gemm", "x p5")], arrays=arrays, features=2048)


@hostile("an output \\[rows, classes\\] expected, got \\(1, 3\\)")
def an_output_that_is_declared_otherwise() -> Any:
    return network([node("Gemm", "x w b")], output=value("out", None, 4))


@hostile("an output \\[rows, classes\\] expected")
def an_output_without_rows() -> Any:
    return network([node("Transpose", "w", "out")])


@hostile("an output with one row for each row of x expected|numbers expected")
def two_rows_only() -> Any:
    return network([LINEAR, node("Reshape", "s sides")], held=[whole("sides", 2, 3)])


@hostile("float32 tensor expected")
def an_output_of_integers() -> Any:
    return network([LINEAR], output=value("s", None, 3, kind=TensorProto.INT64))


@hostile("free rows expected")
def fixed_rows() -> Any:
    return network([node("Gemm", "x w b")], rows=4)


@hostile("only the first side may be free")
def free_features() -> Any:
    return network([node("Gemm", "x w b")], features="d")


@hostile("shape \\(3,\\) expected, got \\(4,\\)")
def an_array_of_another_shape() -> Any:
    model = network([node("Gemm", "x w b")])
    model.graph.input[2].type.tensor_type.shape.dim[0].dim_value = 4
    return model


@hostile("inputs x, w, b expected, got 'x, w, b, z'")
def an_input_too_many() -> Any:
    return network([node("Gemm", "x w b")], arrays=[*NET, ("z", (3,))])


@hostile("one output expected, got 2")
def two_outputs() -> Any:
    model = network([node("Gemm", "x w b")])
    model.graph.output.append(value("w", 6, 3))
    return model


@hostile("no node makes it")
def an_output_that_is_an_input() -> Any:
    return network([LINEAR], output=value("x", None, 6))


@hostile("comes from nowhere, or later")
def nodes_in_the_wrong_order() -> Any:
    return network([node("Relu", "s"), LINEAR])


@hostile("has two sources")
def the_same_tensor_twice() -> Any:
    return network([LINEAR, node("Relu", "x", "s"), node("Relu", "s")])


@hostile("has two sources")
def a_constant_over_an_array() -> Any:
    return network([node("Gemm", "x w b")], held=[numpy_helper.from_array(np.float32(1), "w")])


@hostile("matrices that go together")
def matrices_that_do_not_fit() -> Any:
    return network([node("Gemm", "x b w")], arrays=[("w", (6, 3)), ("b", (5, 3))])


@hostile("is of the wrong type")
def integers_among_numbers() -> Any:
    return network([LINEAR, node("Add", "s sides")], held=[whole("sides", 1, 1, 1)])


@hostile("constants behind the first input expected|wrong type")
def a_shape_from_the_data() -> Any:
    return network([LINEAR, node("Reshape", "s b")])


@hostile("pads smaller than the window")
def pads_without_end() -> Any:
    arrays = [("k", (3, 1, 1, 1))]
    nodes = [node("Reshape", "x sides", "i"), node("Conv", "i k", "c", pads=[2**40] * 4)]
    return network(
        [*nodes, node("GlobalAveragePool", "c", "p"), node("Flatten", "p")],
        arrays=arrays,
        held=[whole("sides", -1, 1, 2, 3)],
    )


@hostile("1 to 256 nodes")
def nodes_without_end() -> Any:
    nodes = [
        LINEAR,
        *(node("Relu", f"{'s' if not i else f'r{i - 1}'}", f"r{i}") for i in range(300)),
    ]
    return network(nodes, output=value("r299", None, 3))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_at_once(name: str) -> None:
    make, text = HOSTILE[name]
    model = make()
    arrays = [
        (one.name, [d.dim_value for d in one.type.tensor_type.shape.dim])
        for one in model.graph.input
        if one.name not in ("x", "z")
    ]
    if name == "an_array_of_another_shape":
        arrays = [(n, list(s)) for n, s in NET]
    with pytest.raises(ModelError, match=text):  # before the hours that some of them ask for
        architecture_from(described(model, arrays))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"graph": 7}, "a graph of at most"),
        ({"graph": "AAAA" * 20_000}, "a graph of at most 49152 characters"),
        ({"graph": "not base64!"}, "not base64"),
        ({"graph": "AB=="}, "the one form"),
        ({"graph": ""}, "operator set"),
        ({"arrays": 3}, "a list of name and shape"),
        ({"arrays": [["w"]]}, "a list of name and shape"),
        ({"arrays": []}, "1 to 256 arrays"),
        ({"arrays": [["x", [3]]]}, "a name of its own"),
        ({"arrays": [["w", [3]], ["w", [3]]]}, "a name of its own"),
        ({"arrays": [["w", []]]}, "1 to 4 sides"),
        ({"arrays": [["w", [0]]]}, "positive sides"),
        ({"arrays": [["w", [True]]]}, "positive sides"),
        ({"arrays": [["w", [2.0]]]}, "positive sides"),
        ({"output": "softmax"}, "output identity or none"),
        ({"code": "import os"}, "nothing else"),
    ],
)
def test_a_description_that_is_malformed(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        architecture_from({**described(mlp_graph([6, 5, 3])), **change})


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_a_graph_does_more_than_a_refusal(data: st.DataObject) -> None:
    graph = bytearray(mlp_graph([6, 5, 3]))
    if data.draw(st.booleans()):
        del graph[data.draw(st.integers(0, len(graph) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if graph:
            graph[data.draw(st.integers(0, len(graph) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = architecture_from(described(bytes(graph)))
    except ModelError:
        return
    scores = Model(found, np.zeros(53)).scores(np.zeros((4, 6), dtype=np.float32))
    assert scores.shape == (4, 3)


def test_what_runs_is_made_from_what_was_checked() -> None:
    model = network([node("Gemm", "x w b")])
    model.doc_string = model.graph.doc_string = "read me"
    model.metadata_props.add(key="a", value="b")
    model.graph.value_info.append(value("ghost", 2**40))
    found = OnnxGraph(model.SerializeToString(), NET)
    kept = onnx.ModelProto.FromString(found._program.graph)
    assert not kept.doc_string and not kept.metadata_props and not kept.graph.value_info
    assert [one.op_type for one in kept.graph.node] == ["Gemm"]


def test_a_slow_model_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_models, "RUN_SEC_MAX", 0.0)
    monkeypatch.setattr(onnx_models, "VALUES_MAX", 32)
    model = Model(described(mlp_graph([6, 5, 3])), np.zeros(53))
    with pytest.raises(ModelError, match="a model of at most 0 s expected"):
        model.scores(np.zeros((100, 6), dtype=np.float32))


def test_every_kind_is_read_by_its_name() -> None:
    assert sorted(ARCHITECTURES) == ["mlp", "onnx"]
    with pytest.raises(ModelError, match=r"\(mlp, onnx\) expected, got 'pickle'"):
        architecture_from({"kind": "pickle"})
