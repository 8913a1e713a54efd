"""What the owner does when a node forgets, is late, or lets a transaction expire."""

from __future__ import annotations

from typing import Any

import pytest

from gradledger.chain.client import ChainClient, ChainInfo, PushResult
from gradledger.chain.keys import PrivateKey
from gradledger.errors import IrreversibilityTimeout, TransactionExpiredError
from gradledger.store import Store
from owner import owner as owner_module
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
        return ChainInfo("", "", self.blocks, 0, self.blocks - 1, "")


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
