"""The audit: true ledgers pass, and each way to lose or double money is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradledger.chain.contract import Escrow
from gradledger.chain.names import Symbol
from gradledger.demo.audit import RoundLedger, check

ROUNDS = [
    RoundLedger(1, 3, 2, 70, {"phonea": 30, "phoneb": 40}, {"phonec": "duplicate"}, True),
    RoundLedger(2, 1, 1, 30, {"phonea": 30}, {}, True),
]
ESCROW = Escrow(
    symbol=Symbol(4, "TOK"),
    deposited=200,
    paid=100,
    reserved=0,
    withdrawn=90,
    kept=0,
    rounds_paid=100,
    holdings=10,
)
RECEIVED = {"phonea": 60, "phoneb": 40, "phonec": 0}


def failures(
    rounds: list[RoundLedger] = ROUNDS,
    escrow: Escrow = ESCROW,
    owed: int = 10,
    received: dict[str, int] = RECEIVED,
) -> list[str]:
    return [text for text, passed in check(rounds, escrow, owed, received).items() if not passed]


def test_true_ledgers() -> None:
    assert failures() == []


@pytest.mark.parametrize(
    ("received", "start"),
    [
        ({**RECEIVED, "phonea": 90}, "every device's token balance"),  # paid twice
        ({**RECEIVED, "phoneb": 0}, "every device's token balance"),  # not paid
        ({**RECEIVED, "phonec": 1}, "every device's token balance"),  # refused, but paid
        ({"phonea": 60, "phonec": 0}, "every device's token balance"),  # a stranger was paid
    ],
)
def test_balances_that_differ(received: dict[str, int], start: str) -> None:
    (found,) = failures(received=received)
    assert found.startswith(start)


@pytest.mark.parametrize(
    "changed",
    [
        replace(ROUNDS[1], accepted=2),  # accepted, but in nobody's row
        replace(ROUNDS[1], paid=60),  # the round paid more than its uploads earned
    ],
)
def test_rounds_that_differ(changed: RoundLedger) -> None:
    assert any(text.startswith("every accepted") for text in failures([ROUNDS[0], changed]))


def test_missing_round() -> None:
    found = failures(ROUNDS[:1])
    assert any(text.startswith("every accepted upload was paid once") for text in found)


def test_unproven_round() -> None:
    (found,) = failures([ROUNDS[0], replace(ROUNDS[1], proven=False)])
    assert found == "every round's Merkle root proves its payments"


def test_tokens_that_are_not_there() -> None:
    found = failures(escrow=replace(ESCROW, holdings=9))
    assert found == [
        "deposited = paid + reserved + withdrawn + balance",
        "the contract's token balance is what its tasks have left",
    ]
    assert failures(escrow=replace(ESCROW, holdings=11)) == found[1:]


def test_more_withdrawn_than_was_left() -> None:
    found = failures(escrow=replace(ESCROW, withdrawn=101, holdings=0), owed=0)
    assert found == ["deposited = paid + reserved + withdrawn + balance"]
