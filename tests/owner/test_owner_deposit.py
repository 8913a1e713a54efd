"""A deposit happens once, whoever is killed while it is on its way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from played import Training, points

from gradledger.chain.client import ChainClient
from gradledger.chain.transaction import Transaction
from gradledger.errors import ContractError
from gradledger.outbox import Outbox, State
from owner.run import Progress, run
from owner.state import StateDir

MakeTraining = Callable[..., Training]


class Stopped(Exception):
    """What the tests raise in the place of a kill."""


def prepare(training: Training, state: Path) -> None:
    """Start a training and stop it before the members are waited for."""

    def stop(progress: Progress) -> None:
        if progress.step == "join":
            raise Stopped

    with pytest.raises(Stopped):
        next(
            run(
                training.plan,
                owner=training.make_owner(),
                state=state,
                validation=points(100, 90),
                test=points(200, 300),
                progress=stop,
            )
        )


def is_deposit(body: dict[str, Any]) -> bool:
    found = Transaction.unpack(bytes.fromhex(body["packed_trx"]))
    return found.actions[0].name == "transfer"


def test_a_deposit_that_arrives_late_is_not_paid_a_second_time(
    make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node takes it and dies, the owner is killed; both come back, and so does the deposit."""
    training = make_training()
    send, held = ChainClient.send, []

    def dying(self: ChainClient, body: dict[str, Any]) -> dict[str, Any]:
        if is_deposit(body):
            held.append(body)
            raise Stopped
        return send(self, body)

    with monkeypatch.context() as patched:
        patched.setattr(ChainClient, "send", dying)
        prepare(training, tmp_path)
    owner = training.make_owner()
    assert len(held) == 1 and owner.escrow().deposited == 0
    with closing(Outbox(StateDir(tmp_path).outbox_path, holder=holder(training))) as outbox:
        (entry,) = outbox.entries()
        assert entry.state is State.PENDING and entry.signed is not None
        assert entry.signed.body == held[0]  # written down before it was sent
    prepare(training, tmp_path)
    owner.chain.send(held[0])  # what was lost on the way arrives after all
    prepare(training, tmp_path)
    wanted = training.plan.amount("deposit").amount
    assert owner.wait_irreversible(lambda: owner.escrow().deposited) == wanted
    with closing(Outbox(StateDir(tmp_path).outbox_path, holder=holder(training))) as outbox:
        (entry,) = outbox.entries()
        assert entry.state is State.DONE


def holder(training: Training) -> str:
    owner = training.make_owner()
    return f"{owner.account}, owner of {owner.task}"


def test_a_deposit_that_was_refused_is_an_error_and_can_be_made_later(
    make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owner.owner.EXPIRATION_SEC", 2)
    training = make_training(deposit="1000.0001 TOK")
    for _ in range(2):  # refused, given up once it can never happen, refused again
        with pytest.raises(ContractError, match="overdrawn balance"):
            prepare(training, tmp_path)
    training.network.transfer(training.make_owner().account, "0.0001 TOK")
    prepare(training, tmp_path)
    assert training.make_owner().escrow().deposited == 10_000_001
