"""Names, assets and the ABI's binary form: known answers, laws, malformed bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradledger.chain.abi import Abi, pack_varuint32, parse_time
from gradledger.chain.contract import contract_abi
from gradledger.chain.names import (
    AMOUNT_MAX,
    Asset,
    Symbol,
    check_account,
    int_to_name,
    name_to_int,
)
from gradledger.errors import ConfigError, GradledgerError

LETTERS = "abcdefghijklmnopqrstuvwxyz12345"
NAMES = st.from_regex(r"([a-z1-5.]{0,11}[a-z1-5])?", fullmatch=True)
SYMBOLS = st.builds(Symbol, st.integers(0, 18), st.text("ABCXYZ", min_size=1, max_size=7))
ASSETS = st.builds(Asset, st.integers(-AMOUNT_MAX, AMOUNT_MAX), SYMBOLS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", 0),
        ("a", 0x3000000000000000),
        ("eosio", 0x5530EA0000000000),
        ("eosio.token", 0x5530EA033482A600),
        ("zzzzzzzzzzzz", 0xFFFFFFFFFFFFFFF0),
        ("zzzzzzzzzzzzj", 0xFFFFFFFFFFFFFFFF),
    ],
)
def test_names_have_their_known_values(name: str, value: int) -> None:
    assert name_to_int(name) == value
    assert int_to_name(value) == name


@given(NAMES)
def test_a_name_survives_its_value(name: str) -> None:
    assert int_to_name(name_to_int(name)) == name


@given(st.integers(0, 2**64 - 1))
def test_a_value_survives_its_name(value: int) -> None:
    assert name_to_int(int_to_name(value)) == value


@given(NAMES, NAMES)
def test_equal_values_are_equal_names(one: str, other: str) -> None:
    assert (name_to_int(one) == name_to_int(other)) == (one == other)


@pytest.mark.parametrize("name", ["A", "a6", "a b", "a.", "zzzzzzzzzzzzz", "a" * 14, "ä", "a\n", 5])
def test_a_wrong_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="expected an account name"):
        name_to_int(name)


@pytest.mark.parametrize("name", ["", "aaaaaaaaaaaaa"])
def test_an_account_has_1_to_12_characters(name: str) -> None:
    with pytest.raises(ConfigError, match="1 to 12 characters"):
        check_account(name)
    assert check_account("a" * 12) == "a" * 12


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_value_over_64_bits_is_no_name(value: int) -> None:
    with pytest.raises(ConfigError, match="64-bit"):
        int_to_name(value)


@pytest.mark.parametrize(
    ("amount", "symbol", "text"),
    [
        (0, Symbol(4, "TOK"), "0.0000 TOK"),
        (1, Symbol(4, "TOK"), "0.0001 TOK"),
        (-1, Symbol(4, "TOK"), "-0.0001 TOK"),
        (12345, Symbol(0, "A"), "12345 A"),
        (-12345, Symbol(2, "ABCDEFG"), "-123.45 ABCDEFG"),
        (AMOUNT_MAX, Symbol(18, "X"), "4.611686018427387903 X"),
    ],
)
def test_assets_have_their_texts(amount: int, symbol: Symbol, text: str) -> None:
    assert str(Asset(amount, symbol)) == text
    assert Asset.parse(text) == Asset(amount, symbol)


@given(ASSETS)
def test_an_asset_survives_its_text(asset: Asset) -> None:
    assert Asset.parse(str(asset)) == asset


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "TOK", "1 tok", "1.TOK", "1. TOK", ".5 TOK", "1,0 TOK", "1e3 TOK", "+1 TOK"),
        *("1  TOK", "1 TOKTOKTO", "4611686018427387904 TOK", "1.0000 TOK\n", "٣ TOK"),
    ],
)
def test_a_wrong_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Asset.parse(text)


@pytest.mark.parametrize("amount", [1.0, True, AMOUNT_MAX + 1, -AMOUNT_MAX - 1])
def test_an_amount_is_an_exact_integer_in_range(amount: Any) -> None:
    with pytest.raises(ConfigError):
        Asset(amount, Symbol(4, "TOK"))


@pytest.mark.parametrize(("precision", "code"), [(-1, "A"), (19, "A"), (4, ""), (4, "ABCDEFGH")])
def test_a_wrong_symbol_is_refused(precision: int, code: str) -> None:
    with pytest.raises(ConfigError):
        Symbol(precision, code)


def test_a_symbol_has_its_known_value() -> None:
    assert Symbol(4, "EOS").to_int() == 0x534F4504
    assert Symbol.from_int(0x534F4504) == Symbol(4, "EOS")
    assert Symbol.parse("4,EOS") == Symbol(4, "EOS")
    for text in ("EOS", "4,eos", "4, EOS", "19,EOS"):
        with pytest.raises(ConfigError):
            Symbol.parse(text)


# ---- ABI --------------------------------------------------------------------------------------

ABI = Abi(
    {
        "types": [{"new_type_name": "many", "type": "inner[]"}],
        "structs": [
            {"name": "inner", "fields": [{"name": "a", "type": "uint8"}]},
            {
                "name": "outer",
                "base": "inner",
                "fields": [
                    {"name": "list", "type": "many"},
                    {"name": "maybe", "type": "string?"},
                    {"name": "late", "type": "uint16$"},
                ],
            },
        ],
        "actions": [{"name": "do", "type": "outer"}],
        "tables": [{"name": "outers", "type": "outer"}],
    }
)

BUILTINS: list[tuple[str, Any, str]] = [
    ("uint8", 255, "ff"),
    ("int8", -1, "ff"),
    ("uint16", 0x1234, "3412"),
    ("uint32", 2**32 - 1, "ffffffff"),
    ("uint64", 2**64 - 1, "ff" * 8),
    ("int64", -(2**63), "00" * 7 + "80"),
    ("uint128", 1, "01" + "00" * 15),
    ("bool", True, "01"),
    ("varuint32", 300, "ac02"),
    ("name", "eosio", "0000000000ea3055"),
    ("string", "hé", "0368c3a9"),
    ("bytes", "00ff", "0200ff"),
    ("checksum256", "ab" * 32, "ab" * 32),
    ("symbol", "4,TOK", "04544f4b00000000"),
    ("asset", "1.0000 TOK", "102700000000000004544f4b00000000"),
    ("time_point_sec", "1970-01-01T00:01:00", "3c000000"),
    ("float64", 1.5, "000000000000f83f"),
    ("uint8[]", [1, 2], "020102"),
    ("name?", None, "00"),
    ("name?", "a", "010000000000000030"),
]


@pytest.mark.parametrize(("kind", "value", "packed"), BUILTINS)
def test_builtin_types_have_their_known_bytes(kind: str, value: Any, packed: str) -> None:
    assert ABI.pack(kind, value).hex() == packed
    assert ABI.unpack(kind, bytes.fromhex(packed)) == value


def test_structs_bases_vectors_optionals_and_extensions() -> None:
    value = {"a": 7, "list": [{"a": 1}, {"a": 2}], "maybe": "x"}
    assert ABI.pack_action("do", value).hex() == "07" + "020102" + "010178"
    assert ABI.unpack("outer", bytes.fromhex("07020102010178")) == value
    longer = value | {"late": 5}
    assert ABI.unpack("outer", ABI.pack("outer", longer)) == longer


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("uint8", 256),
        ("uint8", -1),
        ("uint8", True),
        ("uint8", 1.0),
        ("uint8", "1"),
        ("int8", 128),
        ("checksum256", "ab" * 31),
        ("checksum256", "zz" * 32),
        ("name", "UPPER"),
        ("asset", "1.0 tok"),
        ("checksum256", 32),
        ("checksum256", [0] * 32),
        ("bytes", "0"),
        ("bytes", 5),
        ("string", 5),
        ("time_point_sec", "yesterday"),
        ("time_point_sec", -1),
        ("varuint32", 2**32),
        ("inner", {}),
        ("inner", {"a": 1, "b": 2}),
        ("inner", [1]),
        ("outer", {"a": 1, "maybe": None}),
        ("nothing", 1),
        ("uint8[]", 5),
    ],
)
def test_a_value_that_does_not_fit_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        ABI.pack(kind, value)


def test_bytes_come_in_every_form_of_bytes() -> None:
    for form in (bytes, bytearray, memoryview):
        assert ABI.pack("bytes", form(b"ab")) == b"\2ab"
    with pytest.raises(ConfigError, match="expected hex text or bytes, got int"):
        ABI.pack("bytes", 10**9)


def test_the_refusal_names_the_field() -> None:
    with pytest.raises(ConfigError, match=r"outer\.list\[1\]\.a"):
        ABI.pack("outer", {"a": 1, "list": [{"a": 1}, {"a": 999}], "maybe": None})


def test_an_unknown_action_is_refused() -> None:
    with pytest.raises(ConfigError, match="got action 'undo'"):
        ABI.pack_action("undo", {})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        "{}",
        '{"structs": [], "actions": [{}]}',
        '{"structs": [{"name": "s", "fields": [{"name": "f", "type": "mystery"}]}], "actions": []}',
    ],
)
def test_a_broken_abi_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Abi.from_json(text)


@given(st.integers(0, 2**32 - 1))
def test_lengths_survive(value: int) -> None:
    assert ABI.unpack("varuint32", pack_varuint32(value)) == value


@given(st.sampled_from(sorted({k for k, _, _ in BUILTINS} | {"outer"})), st.binary(max_size=120))
def test_malformed_bytes_give_a_config_error_or_a_value(kind: str, data: bytes) -> None:
    try:
        value = ABI.unpack(kind, data)
    except ConfigError:
        return
    json.dumps(value)


@given(st.sampled_from(["tasks", "members", "rounds"]), st.binary(max_size=400))
def test_no_row_crashes_the_contracts_abi(table: str, data: bytes) -> None:
    abi = contract_abi()
    try:
        abi.unpack(abi.tables[table], data)
    except GradledgerError:
        pass


def test_a_huge_announced_length_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="items"):
        ABI.unpack("uint8[]", bytes.fromhex("ffffffff0f"))
    with pytest.raises(ConfigError, match="32 bits"):
        ABI.unpack("varuint32", b"\xff" * 6)
    with pytest.raises(ConfigError, match="32 bits"):
        ABI.unpack("varuint32", b"\xff\xff\xff\xff\x1f")


@pytest.mark.parametrize("cut", range(7))
def test_a_cut_struct_is_refused(cut: int) -> None:
    with pytest.raises(ConfigError):
        ABI.unpack("outer", bytes.fromhex("07020102010178")[:cut])


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected 1 bytes"):
        ABI.unpack("uint8", b"\1\2")


def test_node_times_are_read() -> None:
    assert parse_time("2026-01-31T12:00:00.500") == parse_time("2026-01-31T12:00:00") == 1769860800
    for text in ("", "now", None, 5):
        with pytest.raises(ConfigError):
            parse_time(text)  # type: ignore[arg-type]
