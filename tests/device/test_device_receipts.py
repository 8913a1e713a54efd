"""What a receipt concludes from blocks and rows, on a chain that the test writes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from device_sdk.receipts import REASONS, Paid, Receipt, Refused
from gradledger.chain.client import ChainInfo
from gradledger.chain.contract import UploadState, VerdictCode, contract_abi
from gradledger.chain.names import Asset, Symbol
from gradledger.errors import IrreversibilityTimeout, NodeUnavailableError

HASH = hashlib.sha256(b"update").digest()
AMOUNT = Asset(6000, Symbol(4, "TOK"))
A, X, M = VerdictCode.ACCEPT, VerdictCode.OUT_OF_RANGE, VerdictCode.MALFORMED
NAMES = ("va", "vb", "vc", "vd")


class Chain:
    """A chain of one device and four validators; block 1 is empty and irreversible."""

    account = "fedlearning"

    def __init__(self) -> None:
        self.abi = contract_abi()
        self.blocks: list[list[dict[str, Any]]] = [[]]
        self.irreversible = 1
        self.forks: dict[int, str] = {}  # what another node answers, once
        self.row = SimpleNamespace(
            upload_version=3,
            upload_hash=HASH,
            upload_state=UploadState.PENDING,
            upload_reason=VerdictCode.NONE,
            verdicts=bytes(32),
        )
        self.sent = 0
        self.chain = self.contract = self
        self.task, self.key = "digits", object()

    def get_info(self) -> ChainInfo:
        head = len(self.blocks)
        return ChainInfo("", "", head, 0, self.irreversible, f"id{self.irreversible}")

    def get_confirmed(self) -> ChainInfo:
        return self.get_info()

    def call(self, path: str, document: dict[str, str]) -> dict[str, Any]:
        assert path == "/v1/chain/get_block"
        number = int(document["block_num_or_id"])
        assert 1 <= number <= self.irreversible
        return {
            "id": self.forks.pop(number, f"id{number}"),
            "previous": f"id{number - 1}",
            "transactions": self.blocks[number - 1],
        }

    def member(self, task: str, account: str) -> Any:
        return self.row

    def push(self, action: Any) -> Any:
        self.sent += 1
        return SimpleNamespace(trx_id="upload")

    def act(self, trx: str, name: str, *, status: str = "executed", **data: Any) -> None:
        """Put an action into a new block."""
        raw = self.abi.pack_action(name, data)
        action = {"account": self.account, "name": name, "data": data, "hex_data": raw.hex()}
        body = {"id": trx, "transaction": {"actions": [action]}}
        self.blocks.append([{"status": status, "trx": body}])

    def attest(self, trx: str, who: str, code: int, **changes: Any) -> None:
        data = {"task": self.task, "version": 3, "validator": who, **changes}
        verdict = {"hash": data.pop("hash", HASH), "code": code}
        self.act(trx, "attest", verdicts=[verdict], **data)

    def decide(self, state: UploadState, reason: VerdictCode) -> None:
        self.row.upload_state, self.row.upload_reason = state, reason

    def settle(self) -> None:
        """Make everything irreversible."""
        self.irreversible = len(self.blocks)

    def receipt(self) -> Receipt:
        receipt = Receipt(self, 3, HASH, AMOUNT, 4, None)  # type: ignore[arg-type]
        receipt.send()
        return receipt


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr("device_sdk.receipts.POLL_SEC", 0.01)
    return Chain()


def waits(receipt: Receipt, message: str) -> None:
    with pytest.raises(IrreversibilityTimeout, match=message):
        receipt.wait(timeout_sec=0.3)


def test_the_verdict_that_completes_the_quorum_pays(chain: Chain) -> None:
    receipt = chain.receipt()
    for number, (who, code) in enumerate(zip(NAMES, (A, X, A, A), strict=True)):
        chain.attest(f"t{number}", who, code)
    waits(receipt, "0 verdicts so far, 3 equal ones decide")
    chain.decide(UploadState.PAID, A)
    waits(receipt, "decided, not yet irreversible")
    chain.irreversible = 4
    waits(receipt, "decided, not yet irreversible")
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "t3", 5)


def test_verdicts_on_other_things_and_failed_transactions_do_not_count(chain: Chain) -> None:
    receipt = chain.receipt()
    chain.attest("o1", "va", A, version=2)
    chain.attest("o2", "vb", A, task="other")
    chain.attest("o3", "vc", A, hash=bytes(32))
    chain.blocks[-1].append({"status": "executed", "trx": "a deferred one: an id alone"})
    chain.act(
        "o4",
        "attest",
        status="hard_fail",
        task="digits",
        version=3,
        validator="va",
        verdicts=[{"hash": HASH, "code": A}],
    )
    chain.attest("t1", "va", A)
    chain.attest("t2", "vb", A)
    chain.decide(UploadState.PAID, A)
    chain.settle()
    waits(receipt, "decided, not yet irreversible")
    chain.attest("t3", "vc", A)
    chain.attest("t4", "vd", A)
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "t3", 8)


def test_the_first_quorum_decides_and_words_say_why(chain: Chain) -> None:
    receipt = chain.receipt()
    for number, who in enumerate(NAMES):
        chain.attest(f"t{number}", who, M)
    chain.decide(UploadState.REFUSED, M)
    chain.settle()
    refused = receipt.wait(timeout_sec=1)
    assert refused == Refused(M, "t2", 4)
    assert str(refused) == f"Refused(malformed: {REASONS[M]}, trx=t2, block=4)"


def test_a_later_upload_in_the_row_leaves_the_blocks_to_tell(chain: Chain) -> None:
    receipt = chain.receipt()
    chain.row.upload_version, chain.row.upload_hash = 4, bytes(32)
    waits(receipt, "the chain's row holds a later upload")
    for who in NAMES:
        chain.attest(who, who, X)
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Refused(X, "vc", 4)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (UploadState.PAID, VerdictCode.SILENCE),
        (UploadState.REFUSED, VerdictCode.SILENCE),
        (UploadState.REFUSED, VerdictCode.UNDELIVERED),
    ],
)
def test_silence_is_decided_by_a_push(
    chain: Chain, state: UploadState, reason: VerdictCode
) -> None:
    receipt = chain.receipt()
    chain.attest("t1", "va", A)
    chain.act("p1", "push", task="digits", version=3, limit=5)
    chain.decide(state, reason)
    chain.irreversible = 3
    waits(receipt, "decided by a push, not yet final")
    for who in NAMES[1:]:  # too late: recorded, without effect
        chain.attest(who, who, A)
    chain.settle()
    outcome = receipt.wait(timeout_sec=1)
    expected = Paid(AMOUNT, "p1", 3) if state is UploadState.PAID else Refused(reason, "p1", 3)
    assert outcome == expected


def test_a_quorum_after_a_push_that_did_not_reach_the_upload(chain: Chain) -> None:
    receipt = chain.receipt()
    chain.act("p1", "push", task="digits", version=3, limit=1)
    for who in NAMES:
        chain.attest(who, who, A)
    chain.decide(UploadState.PAID, A)
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "vc", 5)


def test_of_several_pushes_none_is_named(chain: Chain) -> None:
    receipt = chain.receipt()
    chain.act("p1", "push", task="digits", version=3, limit=1)
    chain.act("p2", "push", task="digits", version=3, limit=1)
    chain.decide(UploadState.PAID, VerdictCode.SILENCE)
    chain.blocks.append([])
    chain.blocks.append([])
    chain.settle()
    chain.irreversible -= 1
    waits(receipt, "decided by a push")
    chain.blocks.append([])
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, None, 3)


def test_a_block_of_another_fork_is_read_again(chain: Chain) -> None:
    receipt = chain.receipt()
    for who in NAMES:
        chain.attest(who, who, A)
    chain.decide(UploadState.PAID, A)
    chain.forks = {3: "idfork", 5: "idfork"}
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "vc", 4)
    assert not chain.forks


def test_a_node_that_is_away_meanwhile(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    receipt = chain.receipt()
    for who in NAMES:
        chain.attest(who, who, A)
    chain.settle()
    info, failures = chain.get_info, [NodeUnavailableError("away")] * 3

    def flaky() -> ChainInfo:
        if failures:
            raise failures.pop()
        return info()

    monkeypatch.setattr(chain, "get_info", flaky)
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "vc", 4)
    failures += [NodeUnavailableError("away")] * 1000
    with pytest.raises(NodeUnavailableError):
        receipt.wait(timeout_sec=0.3)


def test_an_upload_that_vanished_is_sent_again_once_in_a_while(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = chain.receipt()
    chain.row.upload_version = 2
    waits(receipt, "it is not on chain yet")
    assert chain.sent == 1
    monkeypatch.setattr("device_sdk.receipts.RESEND_SEC", 0.1)
    waits(receipt, "it is not on chain yet")
    assert 2 <= chain.sent <= 6
