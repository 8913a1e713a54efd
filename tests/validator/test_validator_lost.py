"""What a node accepted and lost, or a fork undid, is done again: a validator needs no outbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
from judging import UPDATE
from oracle import Oracle, decided, reached, step, step_until

from gradledger.chain.client import ChainClient, ChainInfo
from gradledger.chain.contract import RoundState
from gradledger.chain.transaction import Action
from gradledger.errors import NodeUnavailableError
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

    def losing(self: Validator, action: Action, reference: str | None = None) -> object:
        """Say "accepted" to the first of each, and forget it, as a node does that is killed."""
        if (self.account, action.name) not in swallowed:
            swallowed.append((self.account, action.name))
            return SimpleNamespace()
        return push(self, action, reference)

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


def test_what_a_validator_says_is_void_on_a_fork_without_the_rows_that_it_read(
    oracle: Callable[..., Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node names a head that is on no fork, as one does that then changes forks."""
    stage = oracle(devices=3)
    everybody = stage.validators()
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE * (number + 1) / 4)
    get_info, push = ChainClient.get_info, Validator._push
    void: set[tuple[str, str]] = set()

    def undone(self: ChainClient) -> ChainInfo:
        info = get_info(self)
        return replace(info, head_id=info.head_id[:8] + "66" * 28)

    def noting(self: Validator, action: Action, reference: str | None = None) -> None:
        try:
            push(self, action, reference)
        except NodeUnavailableError:
            void.add((self.account, action.name))
            raise

    def try_all(name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ChainClient, "get_info", undone)
            patch.setattr(Validator, "_push", noting)
            step_until(everybody, lambda: void >= {(judge, name) for judge in stage.judges})

    try_all("attest")
    assert not any(any(stage.said(device)) for device in stage.devices)
    step_until(everybody, decided(stage, stage.devices))
    stage.close()
    try_all("attestsum")
    assert not any(any(vote.hash) for vote in stage.round().sums)
    step_until(everybody, reached(stage, RoundState.SUMMED))
    stage.check_sum(stage.devices)
    stage.check_money(stage.devices)
