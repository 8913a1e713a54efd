"""What the owner does when a node forgets, is late, or lets a transaction expire."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gradledger.chain.client import ChainClient, ChainInfo, PushResult
from gradledger.chain.contract import RoundState, UploadState
from gradledger.chain.keys import PrivateKey
from gradledger.errors import (
    ContractError,
    IrreversibilityTimeout,
    NodeAnswerError,
    TransactionExpiredError,
)
from gradledger.store import Store
from owner import owner as owner_module
from owner.errors import WaitTimeoutError
from owner.owner import SIGNATURES_MAX, Owner


class Script(ChainClient):
    """A client that answers as it was told, and counts what it was asked."""

    def __init__(self, *answers: Any) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answers = list(answers)
        self.pushed: list[int] = []
        self.sent: list[Any] = []
        self.blocks = 100

    def push(self, actions: Any, keys: Any, *, expiration_sec: int = 60) -> PushResult:
        self.pushed.append(expiration_sec)
        number = len(self.pushed)
        return PushResult(f"trx{number}", 1, 2, {"body": number}, 3, 4, {})

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(body)
        return {}

    def wait_irreversible(self, result: PushResult, **bounds: float) -> int:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    def get_info(self) -> ChainInfo:
        self.blocks += 1
        return ChainInfo("", "", self.blocks, 0, self.blocks - 1, "", "")

    get_confirmed = get_info


def make_owner(client: ChainClient) -> Owner:
    key = PrivateKey.generate()
    return Owner("alice", task="digits", key=key, chain=client, store=Store())


LATE = IrreversibilityTimeout("not yet")
EXPIRED = TransactionExpiredError("gone")


def test_a_transaction_that_is_late_is_sent_again_as_it_is():
    client = Script(LATE, LATE, 7)
    assert make_owner(client)._push([], wait=True) == "trx1"
    assert client.sent == [{"body": 1}, {"body": 1}]
    assert len(client.pushed) == 1


def test_a_transaction_that_expired_is_signed_anew_a_few_times():
    client = Script(LATE, EXPIRED, 7)
    assert make_owner(client)._push([], wait=True) == "trx2"
    client = Script(*[EXPIRED] * SIGNATURES_MAX)
    with pytest.raises(TransactionExpiredError):
        make_owner(client)._push([], wait=True)
    assert len(client.pushed) == SIGNATURES_MAX


def test_the_wait_for_a_block_is_bounded(monkeypatch):
    monkeypatch.setattr(owner_module, "IRREVERSIBLE_SEC", 0.0)
    client = Script(LATE)
    with pytest.raises(IrreversibilityTimeout):
        make_owner(client)._push([], wait=True)
    assert client.sent == []


def test_what_was_read_is_read_again_until_it_stays():
    owner = make_owner(Script())
    values = iter([1, 2, 2, 3])
    assert owner.wait_irreversible(lambda: next(values)) == 2
    with pytest.raises(IrreversibilityTimeout):
        owner.wait_irreversible(lambda: next(values), timeout_sec=0)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (ContractError("no_thanks", "the device refuses the money"), WaitTimeoutError),
        (NodeAnswerError("tx_net_usage_exceeded: no NET left"), NodeAnswerError),
    ],
)
def test_the_wait_for_a_phase_is_bounded_once_it_is_overdue(monkeypatch, fault, raised):
    monkeypatch.setattr(owner_module, "STUCK_SEC", 0.02)
    owner = make_owner(Script())
    ends = {"deadline": 40, "verdict_deadline": 50, "audit_deadline": 0, "sum_deadline": 0}
    counts = {"pending": 1, "held": 0, "drawn": 0}
    found = SimpleNamespace(version=1, state=RoundState.VERIFYING, **ends, **counts)
    row = SimpleNamespace(
        account="phone1", upload_version=1, upload_state=UploadState.PENDING, opening_cid=""
    )
    pushed = []

    def push(actions: Any) -> None:
        pushed.append(actions)
        assert len(pushed) < 500, "it never ends"
        raise fault

    monkeypatch.setattr(owner, "round", lambda version: found)
    monkeypatch.setattr(owner, "chain_time", lambda: 100)
    monkeypatch.setattr(owner, "_push", push)
    monkeypatch.setattr(owner.contract, "members", lambda task: iter([row]))
    monkeypatch.setattr(owner.contract, "push", lambda *_, **__: "push")
    with pytest.raises(raised):
        owner.wait_verdicts(1, timeout_sec=0.5)
    assert pushed
