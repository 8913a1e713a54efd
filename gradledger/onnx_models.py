"""Models that ONNX Runtime runs: perceptrons on a validator, and the kind "onnx" everywhere.

An architecture of the kind "onnx" brings its network as an ONNX graph in the task's card, so that a
validator can run the model of an owner it knows nothing of, without running that owner's code. The
graph is hostile until it is checked. `docs/protocol.md`, section 3, says what it may hold:
operators without control flow, custom code and files, whose every output has a shape that follows
from the inputs' shapes by the arithmetic below. So time and memory are known before anything runs,
and what runs is built anew from what was checked.

`onnx` and `onnxruntime` are loaded when the first such model is read or run: a device with a
perceptron needs neither (extra `onnx`).

ModelError: the graph, its arrays or its inputs are not as they should be. ConfigError: one of the
two packages is not installed.
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from gradledger.errors import ConfigError, ModelError
from gradledger.models import BATCH_ROWS, FloatArray, Mlp, Model

__all__ = ["GRAPH_TEXT_MAX", "OnnxGraph", "RuntimeModel", "mlp_graph"]

GRAPH_TEXT_MAX = 49_152
"""Characters of base64: the graph stands in a card of 65,536 bytes and in every model's file."""

OPSETS = range(13, 21)
IR_VERSION = 8
NODES_MAX = 256
ARRAYS_MAX = 256
NAME_CHARS_MAX = 128
RANK_MAX = 5
CONSTANT_BYTES_MAX = 1_024

VALUES_MAX = 2**25
"""Numbers that one run may make, all outputs of all nodes together: 128 MiB."""

PRODUCTS_MAX = 2**33
"""Multiplications and additions of one run: seconds of a processor."""

RUN_SEC_MAX = 10.0
"""For up to `gradledger.models.BATCH_ROWS` rows; looked at between two runs."""

Shape = tuple[int, ...]


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise _missing(error) from error
    return onnx


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing(error) from error
    return onnxruntime


def _missing(error: ImportError) -> ConfigError:
    return ConfigError(f"ONNX: {error}; expected both packages: pip install 'gradledger[onnx]'")


# ---- running --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Program:
    """A graph that was checked, or made here, and how many rows one run of it may take.

    Parameters
    ----------
    graph : bytes
        ONNX ModelProto; inputs `x` and the arrays, one output.
    rows : int
    """

    graph: bytes
    rows: int

    def run(self, arrays: Mapping[str, FloatArray], x: FloatArray, classes: int) -> FloatArray:
        """Return the scores, [rows, classes]."""
        session = _session(self.graph)
        feed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        out = np.empty((len(x), classes), dtype=np.float32)
        until = time.monotonic() + RUN_SEC_MAX
        for start in range(0, len(x), self.rows):
            part = x[start : start + self.rows]
            if start and time.monotonic() > until:
                raise ModelError(f"a model of at most {RUN_SEC_MAX:g} s expected")
            try:
                (found,) = session.run(None, {**feed, "x": np.ascontiguousarray(part)})
            except Exception as error:  # the runtime's own are below Exception, and many
                raise ModelError(f"ONNX Runtime cannot run the graph: {error!s:.200}") from error
            if found.shape != (len(part), classes):
                raise ModelError(f"scores {(len(part), classes)} expected, got {found.shape}")
            out[start : start + self.rows] = found
        return out


@lru_cache(maxsize=4)
def _session(graph: bytes) -> Any:
    """Return a session: one thread, no memory kept between runs, the graph as it stands."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime does not take the graph: {error!s:.200}") from error


class RuntimeModel(Model):
    """A model whose scores come from ONNX Runtime, whatever its kind; otherwise a `Model`."""

    def _forward(self, arrays: Mapping[str, FloatArray], rows: FloatArray) -> FloatArray:
        if isinstance(self.network, Mlp):
            return _mlp_program(self.network.layers).run(arrays, rows, self.network.classes())
        return super()._forward(arrays, rows)


def mlp_graph(layers: Sequence[int]) -> bytes:
    """Return the ONNX graph of a perceptron: inputs `x`, `w0`, `b0`, `w1`, ..., output `scores`."""
    onnx = _onnx()
    last = len(layers) - 2
    inputs, nodes, current = [_value("x", [None, layers[0]])], [], "x"
    for i, (fan_in, fan_out) in enumerate(pairwise(layers)):
        inputs += [_value(f"w{i}", [fan_in, fan_out]), _value(f"b{i}", [fan_out])]
        output = "scores" if i == last else f"s{i}"
        nodes.append(onnx.helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [output]))
        if i < last:
            nodes.append(onnx.helper.make_node("Relu", [output], [f"r{i}"]))
            current = f"r{i}"
    return _model_bytes(nodes, inputs, [_value("scores", [None, layers[-1]])], [], 17)


@lru_cache(maxsize=4)
def _mlp_program(layers: tuple[int, ...]) -> _Program:
    values = 2 * sum(layers[1:])
    products = sum(a * b for a, b in pairwise(layers))
    rows = min(BATCH_ROWS, VALUES_MAX // values, PRODUCTS_MAX // products)
    return _Program(mlp_graph(layers), max(1, rows))


def _value(name: str, shape: Sequence[int | None]) -> Any:
    onnx = _onnx()
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _model_bytes(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], held: Any, opset: int
) -> bytes:
    helper = _onnx().helper
    graph = helper.make_graph(list(nodes), "gradledger", list(inputs), list(outputs), list(held))
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


# ---- the kind "onnx" ------------------------------------------------------------------------


class OnnxGraph:
    """A network given as an ONNX graph.

    Parameters
    ----------
    graph : bytes
        ONNX ModelProto. Inputs are `x` [rows, features], rows being free, and each array; the one
        output is the scores, [rows, classes].
    arrays : sequence of (name, shape)
        The parameters in the order of the vector, float32.
    identity : bool
        Whether the output, of width 1, is the number that a regression learns.

    Raises
    ------
    ModelError
        The graph is malformed, holds what it must not, or does not fit the arrays.
    """

    kind: ClassVar[str] = "onnx"

    def __init__(
        self, graph: bytes, arrays: Sequence[tuple[str, Shape]], *, identity: bool = False
    ) -> None:
        self._text = base64.b64encode(graph).decode("ascii")
        if len(self._text) > GRAPH_TEXT_MAX:
            raise ModelError(f"a graph of at most {GRAPH_TEXT_MAX} characters expected")
        self._shapes = _checked_arrays(arrays)
        checked = _Checked(graph, self._shapes)
        self._features, self._classes = checked.features, checked.classes
        if identity and self._classes != 1:
            raise ModelError(f"with output identity one column expected, got {self._classes}")
        self._identity = identity
        self._program = checked.program()

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> OnnxGraph:
        """Build from `{"kind": "onnx", "graph": BASE64, "arrays": [[NAME, [SIDE, ...]], ...]}`.

        A regression has `"output": "identity"` as well.
        """
        found = set(value) - {"output"}
        if found != {"kind", "graph", "arrays"} or value["kind"] != cls.kind:
            raise ModelError(
                "an onnx model is described by kind, graph, arrays and output, nothing else"
            )
        if value.get("output", "identity") != "identity":
            raise ModelError(f"output identity or none expected, got {value['output']!r:.40}")
        text, arrays = value["graph"], value["arrays"]
        if not isinstance(text, str) or len(text) > GRAPH_TEXT_MAX:
            raise ModelError(f"a graph of at most {GRAPH_TEXT_MAX} characters of base64 expected")
        try:
            graph = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ModelError(f"the graph is not base64: {error}") from None
        if base64.b64encode(graph).decode("ascii") != text:
            raise ModelError("the graph is not in the one form that base64 has for its bytes")
        if not isinstance(arrays, (list, tuple)) or not all(_is_pair(one) for one in arrays):
            raise ModelError("arrays must be a list of name and shape")
        named = [(name, tuple(shape)) for name, shape in arrays]
        return cls(graph, named, identity="output" in value)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that describes this network."""
        arrays = [[name, list(shape)] for name, shape in self._shapes.items()]
        output = {"output": "identity"} if self._identity else {}
        return {"kind": self.kind, "graph": self._text, "arrays": arrays, **output}

    def shapes(self) -> dict[str, Shape]:
        """Return name and shape of each array, in the order of the vector."""
        return dict(self._shapes)

    def features(self) -> int:
        """Return the width of the input."""
        return self._features

    def classes(self) -> int:
        """Return the width of the output."""
        return self._classes

    def regresses(self) -> bool:
        """Return whether the output is the number to be learnt."""
        return self._identity

    def scores(self, arrays: Mapping[str, FloatArray], x: FloatArray) -> FloatArray:
        """Run the graph on ONNX Runtime."""
        return self._program.run(arrays, x, self._classes)


def _is_pair(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], (list, tuple))


def _checked_arrays(arrays: Sequence[tuple[str, Shape]]) -> dict[str, Shape]:
    if not 1 <= len(arrays) <= ARRAYS_MAX:
        raise ModelError(f"1 to {ARRAYS_MAX} arrays expected, got {len(arrays)}")
    shapes: dict[str, Shape] = {}
    for name, shape in arrays:
        if name in shapes or name == "x" or not 1 <= len(name) <= NAME_CHARS_MAX:
            raise ModelError(f"arrays: a name of its own expected, not x, got {name!r:.40}")
        if not 1 <= len(shape) <= 4:
            raise ModelError(f"array {name!r:.40}: 1 to 4 sides expected, got {len(shape)}")
        if not all(type(side) is int and 1 <= side < 2**31 for side in shape):
            raise ModelError(f"array {name!r:.40}: positive sides expected, got {shape!r:.80}")
        shapes[name] = shape
    return shapes


# ---- checking a graph -----------------------------------------------------------------------


class _Checked:
    """A graph taken apart: every field is looked at, and nothing that has no place here is kept."""

    def __init__(self, data: bytes, arrays: Mapping[str, Shape]) -> None:
        onnx = _onnx()
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except Exception as error:  # protobuf's own error, of another class in each version
            raise ModelError(f"the graph is not an ONNX model: {error!s:.100}") from None
        if model.functions or model.training_info:
            raise ModelError("a graph without functions and training steps expected")
        opsets = [(_text(one.domain), one.version) for one in model.opset_import]
        if len(opsets) != 1 or opsets[0][0] not in ("", "ai.onnx") or opsets[0][1] not in OPSETS:
            raise ModelError(
                f"the default operator set, version {OPSETS[0]} to {OPSETS[-1]}, expected, "
                f"got {opsets!r:.100}"
            )
        self._opset = opsets[0][1]
        graph = model.graph
        if graph.sparse_initializer or graph.quantization_annotation:
            raise ModelError("a graph without sparse and quantised tensors expected")
        self._arrays = dict(arrays)
        self._constants = _constants(graph.initializer)
        self.features = self._inputs(graph.input)
        if not 1 <= len(graph.node) <= NODES_MAX:
            raise ModelError(f"1 to {NODES_MAX} nodes expected, got {len(graph.node)}")
        self._nodes = [_Node(node, self._opset) for node in graph.node]
        if len(graph.output) != 1:
            raise ModelError(f"one output expected, got {len(graph.output)}")
        self._output = _text(graph.output[0].name)
        shape = self.sizes(1)[0]
        if len(shape) != 2 or shape[0] != 1 or shape != _declared(graph.output[0], 1):
            raise ModelError(f"an output [rows, classes] expected, got {shape} for 1 row")
        self.classes = shape[1]
        for rows in (2, 3, 7):
            try:
                shape = self.sizes(rows)[0]
            except _TooLargeError:
                break
            if shape != (rows, self.classes):
                raise ModelError("an output with one row for each row of x expected")

    def _inputs(self, inputs: Sequence[Any]) -> int:
        """Check that the inputs are `x` and the arrays; return the features."""
        names = [_text(one.name) for one in inputs]
        if sorted(names) != sorted({"x", *self._arrays}):
            expected = ", ".join(["x", *self._arrays])
            raise ModelError(f"inputs {expected:.200} expected, got {', '.join(names)!r:.200}")
        features = 0
        for one in inputs:
            shape = _declared(one, 1)
            if one.name == "x":
                dims = one.type.tensor_type.shape.dim
                if len(shape) != 2 or dims[0].WhichOneof("value") == "dim_value":
                    raise ModelError("an input x [rows, features] with free rows expected")
                features = shape[1]
            elif shape != self._arrays[one.name]:
                raise ModelError(
                    f"input {one.name!r:.40}: shape {self._arrays[one.name]} expected, got {shape}"
                )
        return features

    def sizes(self, rows: int) -> tuple[Shape, int, int]:
        """Return the output's shape, the numbers made on the way, and the products."""
        shapes: dict[str, Shape] = {"x": (rows, self.features), **self._arrays}
        for name, constant in self._constants.items():
            if name in shapes:
                raise ModelError(f"tensor {name!r:.40} has two sources")
            shapes[name] = constant.shape
        values = products = 0
        for node in self._nodes:
            shape, room, work = node.size(shapes, self._constants)
            if node.output in shapes:
                raise ModelError(f"tensor {node.output!r:.40} has two sources")
            if len(shape) > RANK_MAX or not all(side >= 1 for side in shape):
                raise ModelError(f"{node.op}: 1 to {RANK_MAX} positive sides expected, got {shape}")
            shapes[node.output] = shape
            values += math.prod(shape) + room
            products += work + math.prod(shape)
            if values > VALUES_MAX or products > PRODUCTS_MAX:
                raise _TooLargeError(
                    f"a graph that makes at most {VALUES_MAX} numbers with {PRODUCTS_MAX} products "
                    f"for {rows} rows expected"
                )
        made = {node.output for node in self._nodes}
        if self._output not in made:
            raise ModelError(f"output {self._output!r:.40}: no node makes it")
        return shapes[self._output], values, products

    def program(self) -> _Program:
        """Return what runs: the largest portion of rows that is within the bounds."""
        rows = BATCH_ROWS
        while rows > 1:
            try:
                self.sizes(rows)
                break
            except _TooLargeError:
                rows //= 2
        numpy_helper = _onnx().numpy_helper
        graph = _model_bytes(
            [node.proto() for node in self._nodes],
            [_value("x", [None, self.features])]
            + [_value(name, shape) for name, shape in self._arrays.items()],
            [_value(self._output, [None, self.classes])],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
            self._opset,
        )
        _session(graph)
        return _Program(graph, rows)


def _text(value: object) -> str:
    """Return a string of the graph; protobuf gives bytes where it is not UTF-8."""
    if not isinstance(value, str) or len(value) > NAME_CHARS_MAX:
        raise ModelError(f"names of at most {NAME_CHARS_MAX} characters of UTF-8 expected")
    return value


class _TooLargeError(ModelError):
    """The graph is well formed, but makes or computes too much."""


def _constants(tensors: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the small tensors that stand in the graph, such as the shape of a Reshape."""
    onnx = _onnx()
    found: dict[str, np.ndarray] = {}
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
            raise ModelError("a graph without external data expected")
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64):
            raise ModelError("constants of float32 or int64 expected")
        if tensor.HasField("segment") or len(tensor.dims) > RANK_MAX:
            raise ModelError(f"constants of up to {RANK_MAX} sides, in one piece, expected")
        sides = tuple(tensor.dims)
        width = 4 if tensor.data_type == onnx.TensorProto.FLOAT else 8
        if not all(0 <= side <= CONSTANT_BYTES_MAX for side in sides):
            raise ModelError(f"constants of at most {CONSTANT_BYTES_MAX} bytes expected")
        if width * math.prod(sides) > CONSTANT_BYTES_MAX:
            raise ModelError(f"constants of at most {CONSTANT_BYTES_MAX} bytes expected")
        try:
            value = np.array(onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # whatever its reader makes of bytes that do not fit the shape
            raise ModelError(f"a constant is malformed: {error!s:.100}") from None
        if value.shape != sides or (value.dtype.kind == "f" and not np.isfinite(value).all()):
            raise ModelError("constants of their shape, and finite, expected")
        name = _text(tensor.name)
        if not name or name in found:
            raise ModelError(f"constants: a name of its own expected, got {name!r:.40}")
        found[name] = value
    return found


def _declared(value: Any, rows: int) -> Shape:
    """Return the shape that an input or output is declared with; a free first side is `rows`."""
    onnx = _onnx()
    tensor = value.type.tensor_type
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or tensor.elem_type != onnx.TensorProto.FLOAT:
        raise ModelError(f"{value.name!r:.40}: a float32 tensor expected")
    sides: list[int] = []
    for place, dim in enumerate(tensor.shape.dim):
        if dim.WhichOneof("value") == "dim_value":
            sides.append(dim.dim_value)
        elif place == 0:
            sides.append(rows)
        else:
            raise ModelError(f"{value.name!r:.40}: only the first side may be free")
    if not sides or not all(1 <= side < 2**31 for side in sides):
        raise ModelError(f"{value.name!r:.40}: positive sides expected, got {sides!r:.80}")
    return tuple(sides)


class _Node:
    """One operator with its attributes."""

    def __init__(self, node: Any, opset: int) -> None:
        self.op = _text(node.op_type)
        known, domain = _OPERATORS.get(self.op), _text(node.domain)
        if known is None or domain not in ("", "ai.onnx") or opset < known.since:
            names = ", ".join(sorted(_OPERATORS))
            shown = f"{domain}.{self.op}" if domain else self.op
            raise ModelError(f"one of the operators {names} expected, got {shown!r:.60}")
        self._known = known
        self.inputs = tuple(_text(name) for name in node.input)
        if len(node.output) != 1 or not node.output[0]:
            raise ModelError(f"{self.op}: one output expected, got {len(node.output)}")
        self.output = _text(node.output[0])
        if not known.inputs[0] <= len(self.inputs) <= known.inputs[1] or not all(self.inputs):
            raise ModelError(f"{self.op}: inputs {known.inputs} expected, got {self.inputs!r:.80}")
        self.attributes = _attributes(node, known.attributes)

    def size(
        self, shapes: Mapping[str, Shape], constants: Mapping[str, np.ndarray]
    ) -> tuple[Shape, int, int]:
        """Return the output's shape, the numbers that are made beside it, and the products."""
        for name in self.inputs:
            if name not in shapes:
                raise ModelError(f"{self.op}: tensor {name!r:.40} comes from nowhere, or later")
            is_whole = name in constants and constants[name].dtype.kind == "i"
            if is_whole != (self.op == "Reshape" and name == self.inputs[-1]):
                raise ModelError(f"{self.op}: tensor {name!r:.40} is of the wrong type")
        given = [shapes[name] for name in self.inputs]
        if self.op in ("Reshape", "Clip"):
            held = [constants.get(name) for name in self.inputs[1:]]
            if any(value is None for value in held):
                raise ModelError(f"{self.op}: constants behind the first input expected")
            return self._known.size(given, {**self.attributes, "held": held})
        return self._known.size(given, self.attributes)

    def proto(self) -> Any:
        """Return the node, made anew."""
        made = {name: value for name, value in self.attributes.items() if value is not None}
        return _onnx().helper.make_node(self.op, list(self.inputs), [self.output], **made)


def _attributes(node: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a node: those that are known, each of its type, the rest usual."""
    proto = _onnx().AttributeProto
    kinds = {int: (proto.INT, "i"), float: (proto.FLOAT, "f"), list: (proto.INTS, "ints")}
    found = {name: usual for name, (_, usual) in known.items()}
    seen: set[str] = set()
    for one in node.attribute:
        name = _text(one.name)
        if name not in known or name in seen or one.ref_attr_name:
            raise ModelError(f"{node.op_type}: attribute {name!r:.40} is not taken")
        seen.add(name)
        kind, field = kinds[known[name][0]]
        if one.type != kind:
            raise ModelError(f"{node.op_type}: attribute {name} is of the wrong type")
        value = getattr(one, field)
        found[name] = list(value) if field == "ints" else value
        if field == "ints" and len(value) > 2 * RANK_MAX:
            raise ModelError(f"{node.op_type}: attribute {name} is too long")
        if field == "f" and not math.isfinite(value):
            raise ModelError(f"{node.op_type}: attribute {name} must be finite")
    return found


# ---- shapes ---------------------------------------------------------------------------------

Sized = tuple[Shape, int, int]


@dataclass(frozen=True)
class _Operator:
    """What is known of an operator.

    Parameters
    ----------
    size : callable
        From the inputs' shapes and the attributes to the output's shape, the numbers made beside
        the output, and the products.
    inputs : tuple of int
        Least and largest number.
    attributes : mapping of str to (type, usual value)
        All that it may have; None: left to the operator.
    since : int
        The operator set from which on it means this.
    """

    size: Callable[[list[Shape], Mapping[str, Any]], Sized]
    inputs: tuple[int, int] = (1, 1)
    attributes: Mapping[str, tuple[type, Any]] = None  # type: ignore[assignment]
    since: int = 13

    def __post_init__(self) -> None:
        if self.attributes is None:
            object.__setattr__(self, "attributes", {})


def _expect(is_right: bool, text: str) -> None:
    if not is_right:
        raise ModelError(text)


def _axis(value: int, rank: int) -> int:
    _expect(-rank <= value < rank, f"an axis of {rank} expected, got {value}")
    return value % rank


def _same(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    if "axis" in attributes:
        _axis(attributes["axis"], len(given[0]))
    return given[0], 0, 8 * math.prod(given[0])


def _clip(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    _expect(all(shape == () for shape in given[1:]), "Clip: two scalars expected")
    return given[0], 0, 0


def _broadcast(given: list[Shape]) -> Shape:
    rank = max(len(shape) for shape in given)
    sides: list[int] = []
    for column in zip(*[(1,) * (rank - len(shape)) + shape for shape in given], strict=True):
        wide = {side for side in column if side != 1}
        _expect(len(wide) <= 1, f"shapes that go together expected, got {given!r:.100}")
        sides.append(wide.pop() if wide else 1)
    return tuple(sides)


def _binary(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    return _broadcast(given), 0, 0


def _gemm(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    a, b = given[0], given[1]
    _expect(len(a) == len(b) == 2, "Gemm: two matrices expected")
    _expect({attributes["transA"], attributes["transB"]} <= {0, 1}, "Gemm: transA, transB 0 or 1")
    (m, k), (k2, n) = (
        (a[::-1] if attributes["transA"] else a),
        (b[::-1] if attributes["transB"] else b),
    )
    _expect(k == k2, f"Gemm: matrices that go together expected, got {a} and {b}")
    if len(given) == 3:
        _expect(_broadcast([(m, n), given[2]]) == (m, n), "Gemm: a third input of its size")
    return (m, n), 0, m * n * k


def _matmul(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    a, b = given
    _expect(len(a) >= 2 and len(b) >= 2, "MatMul: at least two sides expected")
    _expect(a[-1] == b[-2], f"MatMul: matrices that go together expected, got {a} and {b}")
    shape = (*_broadcast([a[:-2] or (1,), b[:-2] or (1,)]), a[-2], b[-1])
    shape = shape[-max(len(a), len(b)) :]
    return shape, 0, math.prod(shape) * a[-1]


def _window(shape: Shape, kernel: Sequence[int], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sides behind the channels that a sliding window leaves."""
    strides = attributes["strides"] or [1, 1]
    pads = attributes["pads"] or [0, 0, 0, 0]
    steps = attributes.get("dilations") or [1, 1]
    _expect(len(shape) == 4, f"an input [rows, channels, height, width] expected, got {shape}")
    _expect(len(kernel) == len(strides) == len(steps) == 2, "a window of two sides expected")
    _expect(len(pads) == 4, "pads of four sides expected")
    _expect(all(1 <= v <= 1024 for v in (*kernel, *strides, *steps)), "a window's sides are small")
    found = []
    for i in range(2):
        reach = steps[i] * (kernel[i] - 1) + 1
        _expect(
            all(0 <= pad < max(reach, 1) for pad in (pads[i], pads[i + 2])),
            "pads smaller than the window expected",
        )
        room = shape[2 + i] + pads[i] + pads[i + 2] - reach
        _expect(room >= 0, "a window within the padded input expected")
        found.append(room // strides[i] + 1)
    return tuple(found)


def _conv(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    x, w, group = given[0], given[1], attributes["group"]
    _expect(len(w) == 4 and len(x) == 4, "Conv: input and weights of four sides expected")
    kernel = attributes["kernel_shape"] or list(w[2:])
    _expect(tuple(kernel) == w[2:], f"Conv: a kernel {w[2:]} expected, got {kernel}")
    _expect(
        group >= 1 and x[1] == group * w[1] and w[0] % group == 0,
        f"Conv: channels that go together expected, got {x[1]}, {w[:2]}, {group} groups",
    )
    if len(given) == 3:
        _expect(given[2] == (w[0],), f"Conv: a bias ({w[0]},) expected, got {given[2]}")
    sides = _window(x, kernel, attributes)
    taps = math.prod(w[1:])
    shape = (x[0], w[0], *sides)
    return shape, math.prod(sides) * taps * group, math.prod(shape) * taps


def _pool(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    kernel = attributes["kernel_shape"]
    _expect(kernel is not None, "a pool with kernel_shape expected")
    _expect(attributes.get("count_include_pad", 0) in (0, 1), "count_include_pad 0 or 1 expected")
    shape = given[0][:2] + _window(given[0], kernel, attributes)
    return shape, 0, math.prod(shape) * math.prod(kernel)


def _global_pool(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    _expect(len(given[0]) == 4, "an input [rows, channels, height, width] expected")
    return (*given[0][:2], 1, 1), 0, math.prod(given[0])


def _batch_norm(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    _expect(len(given[0]) >= 2, "BatchNormalization: at least two sides expected")
    channels = (given[0][1],)
    _expect(all(one == channels for one in given[1:]), f"BatchNormalization: {channels} expected")
    return given[0], 0, 4 * math.prod(given[0])


def _layer_norm(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    kept = given[0][_axis(attributes["axis"], len(given[0])) :]
    _expect(all(one == kept for one in given[1:]), f"LayerNormalization: {kept} expected")
    return given[0], 2 * math.prod(given[0]), 8 * math.prod(given[0])


def _flatten(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    axis = _axis(attributes["axis"], len(given[0]))
    return (math.prod(given[0][:axis]), math.prod(given[0][axis:])), 0, 0


def _reshape(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    (wanted,) = attributes["held"]
    _expect(wanted.ndim == 1 and 1 <= len(wanted) <= RANK_MAX, "Reshape: a list of sides expected")
    sides = [int(side) for side in wanted]
    for place, side in enumerate(sides):
        if side == 0:
            _expect(place < len(given[0]), "Reshape: 0 keeps a side that is there")
            sides[place] = given[0][place]
    _expect(all(1 <= side < 2**31 for side in sides if side != -1), "Reshape: positive sides")
    total, fixed = math.prod(given[0]), math.prod(side for side in sides if side != -1)
    _expect(sides.count(-1) <= 1, "Reshape: one free side at most")
    if -1 in sides:
        sides[sides.index(-1)] = total // fixed
    _expect(math.prod(sides) == total, f"Reshape: {total} numbers expected, got {sides}")
    return tuple(sides), 0, 0


def _transpose(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    order = attributes["perm"] or list(range(len(given[0])))[::-1]
    _expect(sorted(order) == list(range(len(given[0]))), f"Transpose: an order, got {order}")
    return tuple(given[0][i] for i in order), 0, 0


def _concat(given: list[Shape], attributes: Mapping[str, Any]) -> Sized:
    _expect(attributes["axis"] is not None, "Concat: an axis expected")
    axis = _axis(attributes["axis"], len(given[0]))
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in given}
    ranks = {len(shape) for shape in given}
    _expect(len(rests) == len(ranks) == 1, f"Concat: shapes that go together, got {given!r:.80}")
    side = sum(shape[axis] for shape in given)
    return (*given[0][:axis], side, *given[0][axis + 1 :]), 0, 0


_WINDOW: dict[str, tuple[type, Any]] = {
    "kernel_shape": (list, None),
    "strides": (list, None),
    "pads": (list, None),
}
_OPERATORS: dict[str, _Operator] = {
    **{op: _Operator(_same) for op in ("Identity", "Relu", "Sigmoid", "Softplus", "Tanh")},
    **{op: _Operator(_same, attributes={"alpha": (float, None)}) for op in ("Elu", "LeakyRelu")},
    **{op: _Operator(_same, attributes={"axis": (int, -1)}) for op in ("LogSoftmax", "Softmax")},
    **{op: _Operator(_binary, (2, 2)) for op in ("Add", "Div", "Mul", "Sub")},
    "AveragePool": _Operator(_pool, attributes={**_WINDOW, "count_include_pad": (int, 0)}),
    "BatchNormalization": _Operator(
        _batch_norm, (5, 5), {"epsilon": (float, None), "momentum": (float, None)}, 14
    ),
    "Clip": _Operator(_clip, (3, 3)),
    "Concat": _Operator(_concat, (1, 16), {"axis": (int, None)}),
    "Conv": _Operator(_conv, (2, 3), {**_WINDOW, "dilations": (list, None), "group": (int, 1)}),
    "Flatten": _Operator(_flatten, attributes={"axis": (int, 1)}),
    "Gemm": _Operator(
        _gemm,
        (2, 3),
        {
            "alpha": (float, None),
            "beta": (float, None),
            "transA": (int, 0),
            "transB": (int, 0),
        },
    ),
    "GlobalAveragePool": _Operator(_global_pool),
    "LayerNormalization": _Operator(
        _layer_norm, (2, 3), {"axis": (int, -1), "epsilon": (float, None)}, 17
    ),
    "MatMul": _Operator(_matmul, (2, 2)),
    "MaxPool": _Operator(_pool, attributes=_WINDOW),
    "Reshape": _Operator(_reshape, (2, 2)),
    "Transpose": _Operator(_transpose, attributes={"perm": (list, None)}),
}
