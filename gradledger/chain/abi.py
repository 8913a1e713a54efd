"""Binary form of action data and table rows, as a contract's ABI describes it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from gradledger.chain.names import Asset, Symbol, int_to_name, name_to_int
from gradledger.errors import ConfigError

ABI_BYTES_MAX = 1_000_000
ITEMS_MAX = 1_000_000  # elements of one vector, bytes of one string
_DEPTH_MAX = 32

_INTEGERS = {f"{sign}int{bits}": (bits, not sign) for sign in ("u", "") for bits in (8, 16, 32, 64)}
_INTEGERS |= {"uint128": (128, False), "int128": (128, True)}
_FLOATS = {"float32": "<f", "float64": "<d"}
_CHECKSUMS = {"checksum160": 20, "checksum256": 32, "checksum512": 64}
BUILTIN_TYPES = frozenset(
    {*_INTEGERS, *_FLOATS, *_CHECKSUMS, "bool", "varuint32", "name", "string", "bytes"}
    | {"symbol", "asset", "time_point_sec", "public_key"}
)


def pack_varuint32(value: int) -> bytes:
    """Return an unsigned integer below 2^32 in 7-bit groups, the lowest first."""
    if not 0 <= value < 2**32:
        raise ConfigError(f"expected an integer below 2^32, got {value}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parse_time(text: str) -> int:
    """Return the seconds since 1970 of a node's time text (UTC, no zone)."""
    try:
        moment = datetime.fromisoformat(text.split(".")[0].rstrip("Z"))
    except (ValueError, AttributeError):
        raise ConfigError(f"expected a time like 2026-01-31T12:00:00, got {text!r}") from None
    return int(moment.replace(tzinfo=timezone.utc).timestamp())


class Reader:
    """Bytes that are read from the front. Every method raises ConfigError where they end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if count > len(self.data) - self.at:
            raise ConfigError(
                f"expected {count} bytes at offset {self.at}, {len(self.data) - self.at} are left"
            )
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def varuint32(self) -> int:
        """Return the next integer, in 7-bit groups, the lowest first."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if value >= 2**32:
                    break
                return value
        raise ConfigError("expected a length of at most 32 bits")

    def count(self) -> int:
        """Return the next integer as the length of what follows; at most `ITEMS_MAX`."""
        value = self.varuint32()
        if value > ITEMS_MAX:
            raise ConfigError(f"expected at most {ITEMS_MAX} items, got {value}")
        return value


class Abi:
    """The types of one contract.

    Parameters
    ----------
    document : mapping
        The ABI's JSON document. Structs, aliases, vectors (``T[]``), optionals (``T?``) and binary
        extensions (``T$``) are known; variants are not.

    Raises
    ------
    ConfigError
        The document is no ABI, or uses a type that is not known.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        try:
            self._aliases = {t["new_type_name"]: t["type"] for t in document.get("types", [])}
            self._structs = {
                s["name"]: (s.get("base", ""), [(f["name"], f["type"]) for f in s["fields"]])
                for s in document["structs"]
            }
            self.actions = {a["name"]: a["type"] for a in document["actions"]}
            self.tables = {t["name"]: t["type"] for t in document.get("tables", [])}
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"expected an ABI document, it lacks {error}") from None
        for base, fields in self._structs.values():
            for kind in [*([base] if base else []), *(kind for _, kind in fields)]:
                self._check_known(kind)

    @classmethod
    def from_json(cls, text: str | bytes) -> Abi:
        """Read an ABI's JSON text."""
        if len(text) > ABI_BYTES_MAX:
            raise ConfigError(f"expected an ABI of at most {ABI_BYTES_MAX} bytes, got {len(text)}")
        try:
            return cls(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"expected an ABI in JSON: {error}") from None

    def fields(self, kind: str) -> list[tuple[str, str]]:
        """Return (name, type) of a struct's fields, those of its base first."""
        base, fields = self._structs[kind]
        return (self.fields(base) if base else []) + fields

    def pack_action(self, action: str, data: Mapping[str, Any]) -> bytes:
        """Return an action's data in binary. Raises ConfigError, naming the field."""
        if action not in self.actions:
            raise ConfigError(f"expected one of {sorted(self.actions)}, got action {action!r}")
        return self.pack(self.actions[action], data)

    def pack(self, kind: str, value: Any) -> bytes:
        """Return `value` in binary as a `kind`. Raises ConfigError."""
        self._check_known(kind)
        out = bytearray()
        self._pack(kind, value, out, kind, 0)
        return bytes(out)

    def unpack(self, kind: str, data: bytes) -> Any:
        """Return the value that `data` is as a `kind`; every byte must be used.

        Raises ConfigError and nothing else, whatever the bytes.
        """
        self._check_known(kind)
        reader = Reader(bytes(data))
        value = self._unpack(kind, reader, 0)
        if reader.at != len(reader.data):
            raise ConfigError(f"expected {reader.at} bytes of {kind}, got {len(reader.data)}")
        return value

    def _check_known(self, kind: str) -> None:
        plain = kind.rstrip("$")
        while plain.endswith(("[]", "?")):
            plain = plain[:-2] if plain.endswith("[]") else plain[:-1]
        if plain not in BUILTIN_TYPES and plain not in self._structs and plain not in self._aliases:
            raise ConfigError(f"expected a known ABI type, got {kind!r}")

    def _pack(self, kind: str, value: Any, out: bytearray, where: str, depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise ConfigError(f"expected types nested at most {_DEPTH_MAX} deep at {where}")
        kind = self._aliases.get(kind, kind)
        if kind.endswith("[]"):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise ConfigError(f"expected a list for {where}, got {type(value).__name__}")
            if len(value) > ITEMS_MAX:
                raise ConfigError(f"expected at most {ITEMS_MAX} items in {where}")
            out += pack_varuint32(len(value))
            for index, item in enumerate(value):
                self._pack(kind[:-2], item, out, f"{where}[{index}]", depth + 1)
        elif kind.endswith("?"):
            out.append(value is not None)
            if value is not None:
                self._pack(kind[:-1], value, out, where, depth + 1)
        elif kind.endswith("$"):
            self._pack(kind[:-1], value, out, where, depth + 1)
        elif kind in self._structs:
            fields = self.fields(kind)
            names = {name for name, _ in fields}
            if not isinstance(value, Mapping) or not set(value) <= names:
                raise ConfigError(f"expected the fields {sorted(names)} in {where}, got {value!r}")
            for name, field_kind in fields:
                if name in value:
                    self._pack(field_kind, value[name], out, f"{where}.{name}", depth + 1)
                elif not field_kind.endswith("$"):
                    raise ConfigError(f"expected a field {name!r} in {where}")
        else:
            try:
                out += _pack_builtin(kind, value)
            except (ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
                raise ConfigError(f"expected {kind} for {where}: {error}") from None

    def _unpack(self, kind: str, reader: Reader, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            raise ConfigError(f"expected types nested at most {_DEPTH_MAX} deep")
        kind = self._aliases.get(kind, kind)
        if kind.endswith("[]"):
            return [self._unpack(kind[:-2], reader, depth + 1) for _ in range(reader.count())]
        if kind.endswith("?"):
            return self._unpack(kind[:-1], reader, depth + 1) if reader.take(1)[0] else None
        if kind.endswith("$"):
            return self._unpack(kind[:-1], reader, depth + 1)
        if kind in self._structs:
            value = {}
            for name, field_kind in self.fields(kind):
                if field_kind.endswith("$") and reader.at == len(reader.data):
                    break
                value[name] = self._unpack(field_kind, reader, depth + 1)
            return value
        return _unpack_builtin(kind, reader)


def _pack_builtin(kind: str, value: Any) -> bytes:
    if kind in _INTEGERS:
        bits, signed = _INTEGERS[kind]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"got {type(value).__name__}")
        return value.to_bytes(bits // 8, "little", signed=signed)
    if kind in _CHECKSUMS:
        raw = _raw(value)
        if len(raw) != _CHECKSUMS[kind]:
            raise ConfigError(f"got {len(raw)} bytes")
        return raw
    if kind == "name":
        return name_to_int(value).to_bytes(8, "little")
    if kind in ("string", "bytes"):
        raw = value.encode() if kind == "string" else _raw(value)
        return pack_varuint32(len(raw)) + raw
    if kind == "asset":
        amount = value if isinstance(value, Asset) else Asset.parse(value)
        return amount.amount.to_bytes(8, "little", signed=True) + _pack_builtin(
            "symbol", amount.symbol
        )
    if kind == "symbol":
        symbol = value if isinstance(value, Symbol) else Symbol.parse(value)
        return symbol.to_int().to_bytes(8, "little")
    if kind == "time_point_sec":
        seconds = value if isinstance(value, int) else parse_time(value)
        return seconds.to_bytes(4, "little")
    if kind == "bool":
        return b"\1" if value else b"\0"
    if kind == "varuint32":
        return pack_varuint32(value)
    if kind == "public_key":
        from gradledger.chain.keys import PublicKey

        key = value if isinstance(value, PublicKey) else PublicKey.from_string(value)
        return b"\0" + key.raw
    return struct.pack(_FLOATS[kind], value)


def _raw(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes.fromhex(value)
    if not isinstance(value, (bytes, bytearray, memoryview)):  # an integer would be so many zeros
        raise ConfigError(f"expected hex text or bytes, got {type(value).__name__}")
    return bytes(value)


def _unpack_builtin(kind: str, reader: Reader) -> Any:
    if kind in _INTEGERS:
        bits, signed = _INTEGERS[kind]
        return int.from_bytes(reader.take(bits // 8), "little", signed=signed)
    if kind in _CHECKSUMS:
        return reader.take(_CHECKSUMS[kind]).hex()
    if kind == "name":
        return int_to_name(int.from_bytes(reader.take(8), "little"))
    if kind == "bytes":
        return reader.take(reader.count()).hex()
    if kind == "string":
        try:
            return reader.take(reader.count()).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"expected UTF-8 in a string: {error}") from None
    if kind == "asset":
        amount = int.from_bytes(reader.take(8), "little", signed=True)
        return str(Asset(amount, Symbol.from_int(int.from_bytes(reader.take(8), "little"))))
    if kind == "symbol":
        return str(Symbol.from_int(int.from_bytes(reader.take(8), "little")))
    if kind == "time_point_sec":
        seconds = int.from_bytes(reader.take(4), "little")
        return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    if kind == "bool":
        return reader.take(1) != b"\0"
    if kind == "varuint32":
        return reader.varuint32()
    if kind == "public_key":
        from gradledger.chain.keys import PublicKey

        if reader.take(1) != b"\0":
            raise ConfigError("expected a K1 key")
        return str(PublicKey(reader.take(33)))
    return struct.unpack(_FLOATS[kind], reader.take(struct.calcsize(_FLOATS[kind])))[0]
