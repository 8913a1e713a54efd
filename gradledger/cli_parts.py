"""What commands share: types for argparse, which refuse before anything is asked or made; codes."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from gradledger.chain.names import Asset, check_account, name_to_int
from gradledger.errors import ConfigError, GradledgerError, NodeError, StoreError

__all__ = [
    "CHECK_CODES",
    "account_name",
    "account_names",
    "positive_amount",
    "readable",
    "task_name",
    "whole_number",
]

USAGE, UNREACHED = 2, 3

# Of commands that say by 1 that something is wrong: an error of use, or of a server, must not.
CHECK_CODES: Mapping[type[GradledgerError], int] = {
    ConfigError: USAGE,
    NodeError: UNREACHED,
    StoreError: UNREACHED,
}

_T = TypeVar("_T")


def _told(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """Let argparse show what a ConfigError says."""

    @functools.wraps(read)
    def told(text: str) -> _T:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return told


@_told
def account_name(text: str) -> str:
    """Read an account's name."""
    return check_account(text)


@_told
def account_names(text: str) -> list[str]:
    """Read names of accounts, separated by commas."""
    return [check_account(name.strip()) for name in text.split(",") if name.strip()]


@_told
def task_name(text: str) -> str:
    """Read a task's name."""
    if not name_to_int(text):
        raise ConfigError("expected the name of a task, got none")
    return text


@_told
def positive_amount(text: str) -> str:
    """Read an amount above zero, such as ``1.0000 TOK``."""
    if Asset.parse(text).amount <= 0:
        raise ConfigError(f"expected an amount above zero, got {text!r}")
    return text


@_told
def readable(text: str) -> Path:
    """Read the path of a file that must be there."""
    if not os.path.exists(text) or os.path.isdir(text):
        raise ConfigError(f"expected a file, there is none at {text}")
    return Path(text)


def whole_number(least: int) -> Callable[[str], int]:
    """Return a type for whole numbers of `least` to 2^32 - 1."""

    @_told
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if not least <= value < 2**32:
            raise ConfigError(f"expected a whole number of {least} to 2^32 - 1, got {text!r}")
        return value

    return read
