"""What a node accepted and lost is done again: a validator needs no outbox."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from judging import UPDATE
from oracle import Oracle, decided, reached, step, step_until

from gradledger.chain.contract import RoundState
from gradledger.chain.transaction import Action
from producer_validation.validator import Validator


def test_verdicts_and_sums_that_the_chain_lost_are_given_again(
    oracle: Callable[..., Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = oracle(devices=3)
    everybody = [stage.validator(number) for number in range(4)]
    step(everybody)
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE * (number + 1) / 4)
    push, swallowed = Validator._push, []

    def losing(self: Validator, action: Action) -> object:
        """Say "accepted" to the first of each, and forget it, as a node does that is killed."""
        if (self.account, action.name) not in swallowed:
            swallowed.append((self.account, action.name))
            return SimpleNamespace()
        return push(self, action)

    monkeypatch.setattr(Validator, "_push", losing)
    step(everybody)
    assert {name for _, name in swallowed} == {"attest"} and len(swallowed) == 4
    assert not any(any(stage.said(device)) for device in stage.devices)
    step_until(everybody, decided(stage, stage.devices))
    stage.close()
    step_until(everybody, reached(stage, RoundState.SUMMED))
    assert sum(name == "attestsum" for _, name in swallowed) >= 3
    stage.check_sum(stage.devices)
    stage.check_money(stage.devices)
