"""Models as flat float32 vectors, and the safetensors files that carry them.

`docs/protocol.md`, section 3. A `Model` is an architecture and its parameter vector. Each kind of
architecture is one class with the methods of `Architecture`, registered in `ARCHITECTURES`; nothing
else in the tree knows a kind by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from gradledger.errors import ConfigError, ModelError
from gradledger.target import Target

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Mlp",
    "Model",
    "architecture_from",
    "check_points",
    "dump_arrays",
    "dump_validation_set",
    "load_arrays",
    "load_validation_set",
    "mean_micro",
    "read_metadata",
    "share_micro",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

PARAMETERS_MAX = 2**26  # 256 MiB of float32, the bound of an envelope's payload
LAYERS_MAX = 16
UNITS_MAX = 2**20
POINTS_MAX = 65_536  # rows of a validation set
HEADER_BYTES_MAX = 65_536
BATCH_ROWS = 4_096  # rows per forward pass: bounds memory
PASS_VALUES_MAX = 2**25  # numbers of an mlp's pass, a layer's inputs and outputs: 128 MiB
ERROR_SCALE = 1_000_000
DOUBT_NATS = 30  # where the logarithm of a doubt is cut off
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U8": np.dtype("u1"),
}


class Architecture(Protocol):
    """What a kind of model must know about itself."""

    kind: ClassVar[str]

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Architecture:
        """Check `value` and build the architecture; raises `ModelError`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the task card and of the model file."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of each array, in the order of the vector."""

    def features(self) -> int:
        """Return the number of columns of an input."""

    def classes(self) -> int:
        """Return the number of outputs: of classes, or 1 for a regression."""

    def regresses(self) -> bool:
        """Whether the one output is the number to be learnt, and not the score of a class."""

    def scores(self, arrays: Mapping[str, FloatArray], x: FloatArray) -> FloatArray:
        """Return the last layer's output, [rows, classes], for inputs [rows, features]."""


class Mlp:
    """A multilayer perceptron with relu between its layers.

    Parameters
    ----------
    layers : sequence of int, 2 to 16 entries
        Widths, from the inputs to the classes.
    identity : bool
        Whether the last layer, of width 1, is the number that a regression learns.
    """

    kind: ClassVar[str] = "mlp"

    def __init__(self, layers: Sequence[int], *, identity: bool = False) -> None:
        widths = tuple(layers)
        if not 2 <= len(widths) <= LAYERS_MAX:
            raise ModelError(f"an mlp has 2 to {LAYERS_MAX} layers, got {len(widths)}")
        for width in widths:
            if type(width) is not int or not 1 <= width <= UNITS_MAX:
                raise ModelError(f"a layer has 1 to {UNITS_MAX} units, got {width!r}")
        if identity and widths[-1] != 1:
            raise ModelError(f"with output identity one unit in the last layer, got {widths[-1]}")
        self.layers = widths
        self.identity = identity

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Mlp:
        """Build from `{"kind": "mlp", "layers": [...], "activation": "relu"}`.

        A regression has `"output": "identity"` as well.
        """
        found = set(value) - {"output"}
        if found != {"kind", "layers", "activation"} or value["kind"] != cls.kind:
            raise ModelError(
                "an mlp is described by kind, layers, activation and output, nothing else"
            )
        if value.get("output", "identity") != "identity":
            raise ModelError(f"output identity or none expected, got {value['output']!r:.40}")
        if value["activation"] != "relu":
            raise ModelError(f"activation relu expected, got {value['activation']!r:.40}")
        if not isinstance(value["layers"], (list, tuple)):
            raise ModelError("layers must be a list of widths")
        return cls(value["layers"], identity="output" in value)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that describes this network."""
        output = {"output": "identity"} if self.identity else {}
        return {"kind": self.kind, "layers": list(self.layers), "activation": "relu", **output}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return `w0 [in, out], b0 [out], w1, ...`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            shapes[f"w{i}"] = (fan_in, fan_out)
            shapes[f"b{i}"] = (fan_out,)
        return shapes

    def features(self) -> int:
        """Return the width of the input."""
        return self.layers[0]

    def classes(self) -> int:
        """Return the width of the last layer."""
        return self.layers[-1]

    def regresses(self) -> bool:
        """Return whether the last layer is the number to be learnt."""
        return self.identity

    def scores(self, arrays: Mapping[str, FloatArray], x: FloatArray) -> FloatArray:
        """Return the last layer before any softmax."""
        # Up to widths of 4,096 a batch is one pass: a product's last bits may hang on its rows.
        size = max(1, PASS_VALUES_MAX // (2 * max(self.layers)))
        out = np.empty((len(x), self.layers[-1]), dtype=np.float32)
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            out[part] = self._pass(arrays, x[part])
        return out

    def _pass(self, arrays: Mapping[str, FloatArray], x: FloatArray) -> FloatArray:
        last = len(self.layers) - 2
        for i in range(last + 1):
            x = x @ arrays[f"w{i}"]
            x += arrays[f"b{i}"]
            if i < last:
                np.maximum(x, 0, out=x)
        return x


def _read_onnx(value: Mapping[str, Any]) -> Architecture:
    from gradledger.onnx_models import OnnxGraph  # its packages are not everywhere

    return OnnxGraph.from_dict(value)


ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], Architecture]] = {
    Mlp.kind: Mlp.from_dict,
    "onnx": _read_onnx,
}
"""How each kind of architecture is read."""


def architecture_from(value: Mapping[str, Any] | Architecture) -> Architecture:
    """Return the checked architecture that a JSON object describes.

    Parameters
    ----------
    value : mapping or Architecture
        For instance `{"kind": "mlp", "layers": [64, 32, 10], "activation": "relu"}`.

    Raises
    ------
    ModelError
        The kind is unknown, a field is wrong, or there are too many parameters.
    """
    if not isinstance(value, Mapping):
        found = value
    else:
        kind = value.get("kind")
        read = ARCHITECTURES.get(kind) if isinstance(kind, str) else None
        if read is None:
            names = ", ".join(sorted(ARCHITECTURES))
            raise ModelError(f"architecture of a known kind ({names}) expected, got {kind!r:.40}")
        found = read(value)
    if not 1 <= _count(found) <= PARAMETERS_MAX:
        raise ModelError(f"1 to {PARAMETERS_MAX} parameters expected, got {_count(found)}")
    return found


def _count(network: Architecture) -> int:
    total = 0
    for shape in network.shapes().values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


class Model:
    """An architecture and its parameters.

    Parameters
    ----------
    architecture : mapping or Architecture
        What the parameters mean.
    vector : array of float, shape (parameters,)
        All arrays in the architecture's order, each in C order; finite.
    target : Target, optional
        What a regression is measured by: the card's. Other models have none.

    Attributes
    ----------
    network : Architecture
    vector : array of float32, shape (parameters,)
        Read-only.
    target : Target or None
    """

    def __init__(
        self,
        architecture: Mapping[str, Any] | Architecture,
        vector: npt.ArrayLike,
        target: Target | None = None,
    ) -> None:
        self.network = architecture_from(architecture)
        self.target = target
        if target is not None and not self.network.regresses():
            raise ModelError("a target is for models with output identity")
        values = np.array(vector, dtype="<f4", order="C")
        expected = _count(self.network)
        if values.shape != (expected,):
            raise ModelError(f"a vector of {expected} parameters expected, got {values.shape}")
        if not np.isfinite(values).all():
            raise ModelError("every parameter must be a finite float32")
        values.flags.writeable = False
        self.vector: FloatArray = values

    def __repr__(self) -> str:
        return f"Model({self.architecture!s:.200}, parameters={self.parameters})"

    @property
    def architecture(self) -> dict[str, Any]:
        """JSON object that describes the network."""
        return self.network.to_dict()

    @property
    def parameters(self) -> int:
        """Length of the vector."""
        return len(self.vector)

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """Read-only views on the vector, by name."""
        views: dict[str, FloatArray] = {}
        start = 0
        for name, shape in self.network.shapes().items():
            stop = start + int(np.prod(shape, dtype=np.int64))
            views[name] = self.vector[start:stop].reshape(shape)
            start = stop
        return views

    def with_vector(self, vector: npt.ArrayLike) -> Model:
        """Return a model of this architecture and target with other parameters."""
        return Model(self.network, vector, self.target)

    def with_arrays(self, arrays: Mapping[str, npt.ArrayLike]) -> Model:
        """Return a model of this architecture made of named arrays, each of its exact shape."""
        shapes = self.network.shapes()
        if set(arrays) != set(shapes):
            raise ModelError(f"arrays {', '.join(shapes)} expected, got {', '.join(arrays):.200}")
        parts = []
        for name, shape in shapes.items():
            part = np.asarray(arrays[name], dtype="<f4")
            if part.shape != shape:
                raise ModelError(f"{name} of shape {shape} expected, got {part.shape}")
            parts.append(part.reshape(-1))
        return self.with_vector(np.concatenate(parts))

    @classmethod
    def random_normal(cls, architecture: Mapping[str, Any] | Architecture, seed: int) -> Model:
        """Draw T_0 with every parameter from N(0, 1).

        Parameters
        ----------
        architecture : mapping or Architecture
        seed : int, 0 to 2**64 - 1
            The same seed gives the same model with every numpy (the legacy generator's stream is
            frozen).

        Notes
        -----
        Martinez, Francis, Hafid, section II-B.
        """
        network = architecture_from(architecture)
        return cls(network, _generator(seed).standard_normal(_count(network)))

    @classmethod
    def random_glorot(cls, architecture: Mapping[str, Any] | Architecture, seed: int) -> Model:
        """Draw weights from U(-b, b), b = sqrt(6 / (fan_in + fan_out)); biases are zero.

        Notes
        -----
        Glorot and Bengio 2010, equation 16. Arrays of one dimension count as biases.
        """
        network = architecture_from(architecture)
        generator = _generator(seed)
        parts = []
        for shape in network.shapes().values():
            if len(shape) < 2:
                parts.append(np.zeros(shape))
                continue
            bound = float(np.sqrt(6.0 / (shape[0] + shape[-1])))
            parts.append(generator.uniform(-bound, bound, size=shape).reshape(-1))
        return cls(network, np.concatenate(parts))

    def scores(self, x: npt.ArrayLike) -> FloatArray:
        """Return the output of the last layer, [rows, classes], for inputs [rows, features]."""
        rows = np.asarray(x, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.network.features():
            expected = f"[rows, {self.network.features()}]"
            raise ModelError(f"inputs of shape {expected} expected, got {list(rows.shape)}")
        arrays = self.arrays
        out = np.empty((len(rows), self.network.classes()), dtype=np.float32)
        for start in range(0, len(rows), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            with np.errstate(over="ignore", invalid="ignore"):
                out[part] = self._forward(arrays, rows[part])
        return out

    def _forward(self, arrays: Mapping[str, FloatArray], rows: FloatArray) -> FloatArray:
        return self.network.scores(arrays, rows)

    def predict(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the class of each row of `x`: the argmax of the last layer.

        Of a regression the numbers themselves, float32.
        """
        scores = self.scores(x)
        if self.network.regresses():
            return scores[:, 0]
        return scores.argmax(axis=1).astype(np.int64)

    def error_micro(self, x: npt.ArrayLike, y: npt.ArrayLike) -> int:
        """Return the share of wrong answers in 1e-6 units, rounded down.

        Of a regression how far off it is: `Target.error_micro`.
        """
        if self.network.regresses():
            return self._measured(Target.error_micro, x, y)
        labels = self._labels(x, y)
        return share_micro(self.predict(x) != labels)

    def _measured(
        self,
        measure: Callable[[Target, npt.ArrayLike, npt.ArrayLike], int],
        x: npt.ArrayLike,
        y: npt.ArrayLike,
    ) -> int:
        if self.target is None:
            raise ModelError("a regression is measured by its card's target, which is not given")
        try:
            return measure(self.target, self.predict(x), y)
        except ConfigError as error:
            raise ModelError(str(error)) from error

    def doubt_micro(self, x: npt.ArrayLike, y: npt.ArrayLike) -> int:
        """Return the model's doubt in the right answers, in 1e-6 units, rounded down.

        A smooth error: the mean of `doubts`.
        """
        return mean_micro(self.doubts(x, y))

    def doubts(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the model's doubt in the right answer to each row, 0 to 1.

        ``1 + max(ln(1 - p), -30) / 30``, p being the softmax probability of the row's label. 1
        where the label is held impossible, 0 where no doubt is left. Unlike cross-entropy and Brier
        score it still tells apart the rows that are answered rightly, which are nearly all rows of
        a trained model.
        """
        return self.wrong_and_doubts(x, y)[1]

    def wrong_and_doubts(
        self, x: npt.ArrayLike, y: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        """Return which rows are answered wrongly, and the doubt in each right answer.

        Both from one pass: `share_micro` of the first is `error_micro`, `mean_micro` of the second
        is `doubt_micro`.
        """
        if self.network.regresses():
            raise ModelError("a regression has no doubt: the rule gain is not for it")
        labels, outputs = self._labels(x, y), self.scores(x)
        scores = outputs.astype(np.float64)
        if labels.min() < 0 or labels.max() >= scores.shape[1]:
            raise ModelError(f"labels of 0 to {scores.shape[1] - 1} expected")
        with np.errstate(invalid="ignore"):
            scores -= scores.max(axis=1, keepdims=True)
        shares = np.exp(np.nan_to_num(scores, nan=0.0))
        total = shares.sum(axis=1)
        shares[np.arange(len(labels)), labels] = 0.0
        with np.errstate(divide="ignore"):
            logs = np.log(shares.sum(axis=1) / total)
        doubts: npt.NDArray[np.float64] = 1 + np.maximum(logs, -DOUBT_NATS) / DOUBT_NATS
        return outputs.argmax(axis=1) != labels, doubts

    def _labels(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[Any]:
        labels = np.asarray(y)
        if labels.ndim != 1 or not len(labels) or len(labels) != len(np.asarray(x)):
            raise ModelError("one label for each row expected, and at least one row")
        return labels

    def to_bytes(self, metadata: Mapping[str, str] | None = None) -> bytes:
        """Return the safetensors file of this model.

        Parameters
        ----------
        metadata : mapping of str to str, optional
            To stand beside the architecture; `read_metadata` gives it back.
        """
        architecture = json.dumps(self.architecture, separators=(",", ":"))
        return dump_arrays(self.arrays, {**(metadata or {}), "architecture": architecture})

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        architecture: Mapping[str, Any] | Architecture | None = None,
        target: Target | None = None,
    ) -> Model:
        """Read a safetensors file.

        Parameters
        ----------
        data : bytes
        architecture : mapping or Architecture, optional
            What the file must hold (the task card's).
        target : Target, optional
            The task card's.

        Raises
        ------
        ModelError
            The bytes are malformed, the arrays are not those of the architecture, a value is not
            finite, or the architecture is another one than asked for.
        """
        arrays, metadata = load_arrays(data)
        text = metadata.get("architecture")
        if text is None:
            raise ModelError("the file's metadata must say the architecture")
        network = architecture_from(_json_object(text, "architecture"))
        if architecture is not None:
            wanted = architecture_from(architecture).to_dict()
            if network.to_dict() != wanted:
                came = network.to_dict()
                raise ModelError(f"architecture {wanted!s:.200} expected, got {came!s:.200}")
        shapes = network.shapes()
        if set(arrays) != set(shapes):
            raise ModelError(f"arrays {', '.join(shapes)} expected, got {list(arrays)!r:.200}")
        for name, shape in shapes.items():
            found = arrays[name]
            if found.dtype != np.dtype("<f4") or found.shape != shape:
                raise ModelError(
                    f"{name}: float32 {shape} expected, got {found.dtype} {found.shape}"
                )
        vector = np.concatenate([arrays[name].reshape(-1) for name in shapes])
        return cls(network, vector, target)


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file. Raises ModelError, whatever the bytes."""
    return load_arrays(data)[1]


def _generator(seed: int) -> np.random.RandomState:
    if not 0 <= seed < 2**64:
        raise ModelError("a seed is an integer from 0 to 2**64 - 1")
    return np.random.RandomState(np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32))


def dump_validation_set(x: npt.ArrayLike, y: npt.ArrayLike) -> bytes:
    """Return the safetensors file of a validation set.

    Parameters
    ----------
    x : array of float, shape (m, features)
        Finite.
    y : array of int or float, shape (m,)
        Class of each row; floats are what a regression learns.
    """
    rows = np.ascontiguousarray(x, dtype="<f4")
    labels = np.ascontiguousarray(y, dtype="<f4" if np.asarray(y).dtype.kind == "f" else "<i8")
    check_points(rows, labels)
    return dump_arrays({"y": labels, "x": rows}, {})


def load_validation_set(
    data: bytes, *, regression: bool = False
) -> tuple[FloatArray, npt.NDArray[Any]]:
    """Read a validation set: `x` float32 (m, features) and `y` int64 (m,).

    Parameters
    ----------
    data : bytes
    regression : bool
        Whether the task learns a number: then `y` is float32.

    Raises
    ------
    ModelError
        The bytes are malformed, a value is not finite, or a label is negative.
    """
    arrays, _ = load_arrays(data)
    if set(arrays) != {"x", "y"}:
        raise ModelError(f"arrays x and y expected, got {sorted(arrays)!r:.200}")
    x, y = arrays["x"], arrays["y"]
    wanted = np.dtype("<f4" if regression else "<i8")
    if x.dtype != np.dtype("<f4") or y.dtype != wanted:
        raise ModelError(f"x float32 and y {wanted} expected, got {x.dtype} and {y.dtype}")
    check_points(x, y)
    return x, y


def check_points(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """Raise ModelError unless `x` and `y` can be a validation set's."""
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise ModelError(f"x [m, d] and y [m] expected, got {list(x.shape)} and {list(y.shape)}")
    if not 1 <= len(y) <= POINTS_MAX:
        raise ModelError(f"1 to {POINTS_MAX} points expected, got {len(y)}")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ModelError("every value of a validation set must be finite")
    if y.dtype.kind == "i" and int(y.min()) < 0:
        raise ModelError("labels are not negative")


def share_micro(wrong: npt.NDArray[np.bool_]) -> int:
    """Return the share of true ones in 1e-6 units, rounded down."""
    return int(np.count_nonzero(wrong)) * ERROR_SCALE // len(wrong)


def mean_micro(doubts: npt.NDArray[np.float64]) -> int:
    """Return the mean of numbers from 0 to 1 in 1e-6 units, rounded down."""
    return min(max(int(float(np.mean(doubts)) * ERROR_SCALE), 0), ERROR_SCALE)


# ---- safetensors: 8 bytes length, JSON header, data ---------------------------------------------


def dump_arrays(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors file of arrays of float32, int64 or uint8, none of them empty."""
    codes = {dtype: code for code, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join(
        [struct.pack("<Q", len(text)), text] + [array.tobytes() for array in arrays.values()]
    )


def load_arrays(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Read a safetensors file: read-only views and the metadata. Raises ModelError.

    Length is checked first, then ranges, then relations.
    """
    if len(data) < 8:
        raise ModelError(f"a safetensors file has at least 8 bytes, got {len(data)}")
    (header_bytes,) = struct.unpack_from("<Q", data)
    if header_bytes > HEADER_BYTES_MAX or 8 + header_bytes > len(data):
        raise ModelError(f"a header of at most {HEADER_BYTES_MAX} bytes expected")
    try:
        text = bytes(data[8 : 8 + header_bytes]).decode()
    except UnicodeDecodeError as exc:
        raise ModelError("the header is not UTF-8") from exc
    header = _json_object(text, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelError("the metadata must be an object of strings")
    body = memoryview(data)[8 + header_bytes :]
    arrays: dict[str, npt.NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(name, entry, len(body))
        spans.append((begin, end))
        arrays[name] = np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ModelError("the arrays must cover the file without gap or overlap")
        position = end
    if position != len(body):
        raise ModelError("the arrays must cover the file without gap or overlap")
    return arrays, metadata


def _check_entry(name: str, entry: Any, body_bytes: int) -> tuple[Any, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"array {name!r:.40}: dtype, shape and data_offsets expected")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ModelError(f"array {name!r:.40}: dtype F32, I64 or U8 expected")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > 4 or not all(_is_size(v) for v in shape):
        raise ModelError(f"array {name!r:.40}: a shape of at most 4 positive sizes expected")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ModelError(f"array {name!r:.40}: two data_offsets expected")
    size = dtype.itemsize
    for side in shape:
        size *= side
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin < end <= body_bytes:
        raise ModelError(f"array {name!r:.40}: data_offsets lie outside the file")
    if end - begin != size:
        raise ModelError(f"array {name!r:.40}: {size} bytes expected, got {end - begin}")
    return dtype, tuple(shape), begin, end


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _json_object(text: str, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ModelError(f"the {what} names a key twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"the {what} is not JSON") from exc
    if not isinstance(value, dict):
        raise ModelError(f"the {what} must be a JSON object")
    return value
