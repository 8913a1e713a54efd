"""Antelope names, symbols and assets: exact conversions between text and integers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gradledger.errors import ConfigError

_ALPHABET = ".12345abcdefghijklmnopqrstuvwxyz"
_VALUE = {character: value for value, character in enumerate(_ALPHABET)}
_NAME = re.compile(r"[.1-5a-z]{0,12}[.1-5a-j]?")
AMOUNT_MAX = 2**62 - 1
PRECISION_MAX = 18


def name_to_int(name: str) -> int:
    """Return the 64-bit value of a name.

    Raises
    ------
    ConfigError
        The text is no name: at most 13 characters out of ``.1-5a-z`` (the 13th out of ``.1-5a-j``),
        not ending in a dot.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(f"expected an account name of a-z, 1-5 and dots, got {name!r}")
    value = 0
    for character in name[:12].ljust(12, "."):
        value = value << 5 | _VALUE[character]
    return value << 4 | (_VALUE[name[12]] if len(name) == 13 else 0)


def int_to_name(value: int) -> str:
    """Return the name with this 64-bit value."""
    if not 0 <= value < 2**64:
        raise ConfigError(f"expected a 64-bit name value, got {value}")
    characters = [_ALPHABET[value >> shift & 31] for shift in range(59, 0, -5)]
    return ("".join(characters) + _ALPHABET[value & 15]).rstrip(".")


def check_account(name: str) -> str:
    """Return `name` if it can be an account's: 1 to 12 characters. Raises ConfigError otherwise."""
    name_to_int(name)
    if not 1 <= len(name) <= 12:
        raise ConfigError(f"expected an account name of 1 to 12 characters, got {name!r}")
    return name


@dataclass(frozen=True)
class Symbol:
    """A token's symbol: decimal places and up to seven capital letters."""

    precision: int
    code: str

    def __post_init__(self) -> None:
        if not 0 <= self.precision <= PRECISION_MAX:
            raise ConfigError(f"expected a precision of 0..{PRECISION_MAX}, got {self.precision}")
        if not re.fullmatch(r"[A-Z]{1,7}", self.code):
            raise ConfigError(f"expected 1 to 7 capital letters, got {self.code!r}")

    def __str__(self) -> str:
        return f"{self.precision},{self.code}"

    @classmethod
    def parse(cls, text: str) -> Symbol:
        """Read ``precision,CODE``, for instance ``4,TOK``."""
        found = re.fullmatch(r"([0-9]{1,2}),([A-Z]{1,7})", text)
        if not found:
            raise ConfigError(f"expected a symbol like '4,TOK', got {text!r}")
        return cls(int(found.group(1)), found.group(2))

    def to_int(self) -> int:
        """Return the 64-bit value: the code's letters above the precision's byte."""
        return int.from_bytes(bytes([self.precision]) + self.code.encode(), "little")

    @classmethod
    def from_int(cls, value: int) -> Symbol:
        """Return the symbol with this 64-bit value."""
        raw = value.to_bytes(8, "little")
        return cls(raw[0], raw[1:].rstrip(b"\0").decode("ascii", "replace"))


@dataclass(frozen=True, order=False)
class Asset:
    """An exact amount of a token, in its smallest units."""

    amount: int
    symbol: Symbol

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int):
            raise ConfigError(f"expected an integer amount, got {type(self.amount).__name__}")
        if abs(self.amount) > AMOUNT_MAX:
            raise ConfigError(f"expected an amount of at most {AMOUNT_MAX}, got {self.amount}")

    def __str__(self) -> str:
        digits = f"{abs(self.amount):0{self.symbol.precision + 1}d}"
        whole = digits[: len(digits) - self.symbol.precision]
        fraction = digits[len(whole) :]
        sign = "-" if self.amount < 0 else ""
        return f"{sign}{whole}{'.' if fraction else ''}{fraction} {self.symbol.code}"

    @classmethod
    def parse(cls, text: str) -> Asset:
        """Read ``1.0000 TOK``: the decimal places are the precision."""
        found = re.fullmatch(r"(-?)([0-9]{1,19})(?:\.([0-9]{1,18}))? ([A-Z]{1,7})", text)
        if not found:
            raise ConfigError(f"expected an amount like '1.0000 TOK', got {text!r}")
        sign, whole, fraction, code = found.groups()
        amount = int(whole + (fraction or ""))
        return cls(-amount if sign else amount, Symbol(len(fraction or ""), code))
