"""The error tree: every code of the contract has its class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradledger import errors
from gradledger.errors import (
    AlreadyDoneError,
    BadFieldError,
    BudgetShortError,
    ContractError,
    GradledgerError,
    NotAllowedError,
    RoundClosedError,
    RuleNotMetError,
    StaleVersionError,
    error_from_check,
)

SOURCES = Path(__file__).parents[2] / "eosio_contracts" / "fedlearning"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("stale_version: expected version 4, got 3, the current version is 4", StaleVersionError),
        ("deadline_passed: expected before 5, it is 6", RoundClosedError),
        ("csves_either: expected a falling series", RuleNotMetError),
        ("budget_short: expected 2.0000 TOK free, short by 1.5000 TOK", BudgetShortError),
        ("second_upload: expected one upload", AlreadyDoneError),
        ("not_a_member: expected a member", NotAllowedError),
        ("bad_cid: expected a CIDv0, got 'x'", BadFieldError),
        ("brand_new: something", ContractError),
        ("overdrawn balance", ContractError),
        ("", ContractError),
    ],
)
def test_the_code_picks_the_class(message: str, kind: type[ContractError]) -> None:
    error = error_from_check(message)
    assert type(error) is kind
    assert str(error) == message


def test_what_a_caller_needs_is_read_from_the_message() -> None:
    stale = error_from_check("stale_version: expected version 4, got 3, the current version is 4")
    assert isinstance(stale, StaleVersionError) and stale.current == 4
    assert StaleVersionError("stale_version", "too old").current is None
    short = error_from_check("budget_short: expected 2.0000 TOK free, short by 1.5000 TOK")
    assert isinstance(short, BudgetShortError) and short.missing == "1.5000 TOK"
    assert BudgetShortError("budget_short", "no money").missing is None


def test_every_code_in_the_contracts_sources_has_a_class() -> None:
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*.[ch]pp")))
    codes = set(re.findall(r'"([a-z]+(?:_[a-z]+)*): ', text))
    assert len(codes) > 30
    unknown = {code for code in codes if type(error_from_check(f"{code}: x")) is ContractError}
    assert unknown <= {"unknown_action"}


def test_the_tree_at_the_top_names_every_class() -> None:
    drawn = set(re.findall(r"\+- (\w+)", errors.__doc__ or ""))
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, GradledgerError)
    }
    assert found - {"GradledgerError"} == drawn
