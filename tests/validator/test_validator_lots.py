"""A validator's lots: what they follow from, and when they may be seen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from judging import UPDATE, make_round
from oracle import Oracle, reached, step, step_until

from gradledger.chain.contract import RoundState
from gradledger.chain.keys import PrivateKey
from producer_validation.lots import lot_value
from producer_validation.validator import Validator, _RoundWork

SECRET, CHAIN = b"\7" * 32, "cf" * 32


def value(secret: bytes = SECRET, chain: str = CHAIN, **changes: Any) -> bytes:
    named = {name: changes.pop(name, name) for name in ("contract", "task")}
    return lot_value(secret, chain, named["contract"], named["task"], make_round(**changes))


def test_a_lot_is_another_in_every_place() -> None:
    others = [
        value(b"\6" * 32),
        value(chain="ce" * 32),
        value(contract="contracu"),
        value(task="tasj"),
        value(version=4),
        value(opened_block=2),
        value(model_hash=b"\1" * 32),
    ]
    assert len({value(), *others}) == 1 + len(others)
    assert all(len(one) == 32 for one in others)


def test_a_lot_is_the_same_after_a_restart() -> None:
    later = {"state": RoundState.DRAWING, "uploads": 5, "held": 5, "verdict_deadline": 9}
    assert value() == value(**later, audit_deadline=20)
    # Fixed once: a release that derived another would lose the lots of rounds under way.
    assert value().hex() == "39d4ccfa1ea9743b742881a251184d4720cca7e5619261cb2ce68c4d86e547ac"


@pytest.fixture
def at_block() -> Callable[[int, int, int], bool]:
    """Whether a validator reveals: the head was at block 100 when it first looked."""
    chain: Any = SimpleNamespace(endpoints=("x",), get_info=lambda: SimpleNamespace(head_block=100))
    validator = Validator(
        "val1", PrivateKey.generate(), "http://127.0.0.1:9", "/ip4/127.0.0.1/tcp/9"
    )
    validator.chain = chain
    round_, work = make_round(audit_deadline=1100, audit_sec=100), _RoundWork(3)

    def is_final(head: int, irreversible: int, time_now: int) -> bool:
        info: Any = SimpleNamespace(
            head_block=head, irreversible_block=irreversible, head_time=time_now
        )
        return validator._is_final(round_, work, info)

    return is_final


def test_a_lot_is_revealed_when_no_fork_can_bring_uploads_back(
    at_block: Callable[[int, int, int], bool],
) -> None:
    assert not at_block(100, 99, 1001)
    assert not at_block(110, 101, 1005)
    assert at_block(111, 102, 1006)


def test_on_a_slow_chain_a_lot_is_revealed_before_the_phase_ends(
    at_block: Callable[[int, int, int], bool],
) -> None:
    assert not at_block(200, 20, 1069)
    assert at_block(201, 20, 1070)


def test_a_lot_of_another_key_is_lost_and_said_to_be(
    oracle: Callable[..., Oracle],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others' lots draw without it, once its time is over."""
    stage = oracle(devices=3, lot_e6=1)
    validators = stage.validators()
    stage.open(audit_sec=3)
    step(validators)
    assert all(any(lot.commitment) for lot in stage.round().lots)
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    stage.close()
    step_until(validators, reached(stage, RoundState.DRAWING))
    monkeypatch.setattr("producer_validation.validator.OWNER_FIRST_SEC", 0)
    validators[0]._secret = SECRET
    step_until(validators, lambda: stage.round().state > RoundState.AUDITING)
    assert f"event=lot_lost validator={validators[0].account}" in caplog.text
    assert [any(lot.value) for lot in stage.round().lots] == [False, True, True, True]
    stage.check_money(stage.devices)
