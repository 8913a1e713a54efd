"""What a receipt concludes from blocks and rows, on a chain that the test writes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from device_sdk.receipts import OPENING, REASONS, Paid, Receipt, Refused
from gradledger.chain.client import ChainInfo, Signed
from gradledger.chain.contract import RoundState, UploadState, VerdictCode, contract_abi
from gradledger.chain.names import Asset, Symbol
from gradledger.chain.transaction import action
from gradledger.errors import IrreversibilityTimeout, NodeUnavailableError
from gradledger.outbox import Delivery, Entry, Outbox

HASH = hashlib.sha256(b"update").digest()
AMOUNT = Asset(6000, Symbol(4, "TOK"))
A, X, M = VerdictCode.ACCEPT, VerdictCode.OUT_OF_RANGE, VerdictCode.MALFORMED
E = VerdictCode.ERROR_MISMATCH
NAMES = ("va", "vb", "vc", "vd")
WHAT = [action("fedlearning", "fedlearning", "phone1", b"data")]


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
            upload_slot=7,
            upload_hash=HASH,
            upload_state=UploadState.PENDING,
            upload_reason=VerdictCode.NONE,
            upload_cid="Qm",
            opening_cid="",
            barred_until=0,
        )
        self.ballots = {7: SimpleNamespace(hash=HASH, verdicts=bytes(32))}
        self.ballots_read = 0
        self.sent = 0
        self.chain = self.contract = self
        self.task = "digits"
        self.box = Outbox(None, holder="phone1")

    def get_info(self) -> ChainInfo:
        head = len(self.blocks)
        return ChainInfo("", "", head, 0, self.irreversible, f"id{self.irreversible}", "")

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

    def ballot(self, task: str, slot: int) -> Any:
        self.ballots_read += 1
        return self.ballots.get(slot)

    def round(self, task: str, version: int) -> Any:
        return SimpleNamespace(state=RoundState.DRAWING)

    def delivery(self, entry: Entry) -> Delivery:
        return Delivery(self.box, entry, self, sign=self.sign)  # type: ignore[arg-type]

    def sign(self, actions: Any) -> Signed:
        return Signed("upload", 2, 10**9, {})

    def send(self, body: Any) -> None:
        self.sent += 1

    def find_irreversible(self, signed: Signed) -> int | None:
        return 2 if self.row.upload_version >= 3 else None

    def act(self, trx: str, name: str, *, status: str = "executed", **data: Any) -> None:
        """Put an action into a new block."""
        raw = self.abi.pack_action(name, data)
        action = {"account": self.account, "name": name, "data": data, "hex_data": raw.hex()}
        body = {"id": trx, "transaction": {"actions": [action]}}
        self.blocks.append([{"status": status, "trx": body}])

    def attest(self, trx: str, who: str, code: int, name: str = "attest", **changes: Any) -> None:
        data = {"task": self.task, "version": 3, "validator": who, **changes}
        verdict = {"slot": 7, "hash": data.pop("hash", HASH), "code": code}
        self.act(trx, name, verdicts=[verdict], **data)

    def push(self, trx: str) -> None:
        self.act(trx, "push", task="digits", version=3, limit=1, start="")

    def decide(self, state: UploadState, reason: VerdictCode) -> None:
        self.row.upload_state, self.row.upload_reason = state, reason

    def settle(self) -> None:
        """Make everything irreversible."""
        self.irreversible = len(self.blocks)

    def receipt(self, *, lots: bool = False) -> Receipt:
        details = {
            "version": 3,
            "hash": HASH.hex(),
            "amount": AMOUNT.amount,
            "symbol": str(AMOUNT.symbol),
            "validators": 4,
            "lots": lots,
        }
        keep = {OPENING: b"seed and codes"} if lots else {}
        entry = self.box.add("the upload", WHAT, give_up_at=10**9, details=details, keep=keep)
        receipt = Receipt(self, entry)  # type: ignore[arg-type]
        receipt.send()
        return receipt


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr("device_sdk.receipts.POLL_SEC", 0.01)
    return Chain()


def waits(receipt: Receipt, message: str, timeout_sec: float = 0.05) -> None:
    with pytest.raises(IrreversibilityTimeout, match=message):
        receipt.wait(timeout_sec)


def test_the_verdict_that_completes_the_quorum_pays(chain: Chain) -> None:
    receipt = chain.receipt()
    for number, (who, code) in enumerate(zip(NAMES, (A, X, A, A), strict=True)):
        chain.attest(f"t{number}", who, code)
    chain.ballots[7].verdicts = bytes([A, X]).ljust(32, b"\0")
    waits(receipt, "3 verdicts that agree decide, 2 so far$")
    chain.decide(UploadState.PAID, A)
    waits(receipt, "decided, not yet irreversible")
    chain.irreversible = 4
    waits(receipt, "decided, not yet irreversible")
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "t3", 5)


def test_verdicts_are_counted_once_and_on_the_uploads_own_ballot(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = chain.receipt()
    waits(receipt, "agree decide, 0 so far$")
    assert chain.ballots_read == 1  # by several looks
    chain.ballots[7] = SimpleNamespace(hash=bytes(32), verdicts=bytes([A] * 32))
    waits(receipt, "3 verdicts that agree decide$")
    chain.ballots.clear()
    waits(receipt, "3 verdicts that agree decide$")

    def away(task: str, slot: int) -> Any:
        raise NodeUnavailableError("away")

    monkeypatch.setattr(chain, "ballot", away)
    waits(receipt, "3 verdicts that agree decide$")


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
        verdicts=[{"slot": 7, "hash": HASH, "code": A}],
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


@pytest.mark.parametrize(
    ("codes", "reason"),
    [((X, M, M), M), ((E, A, M, X), M), ((X, A, X, M), X), ((E, M, E), E)],
)
def test_refusals_count_together_and_the_most_frequent_reason_is_told(
    chain: Chain, codes: tuple[VerdictCode, ...], reason: VerdictCode
) -> None:
    receipt = chain.receipt()
    for number, (who, code) in enumerate(zip(NAMES, codes, strict=False)):
        chain.attest(f"t{number}", who, code)
    chain.decide(UploadState.REFUSED, reason)
    chain.settle()
    block = len(codes) + 1
    assert receipt.wait(timeout_sec=1) == Refused(reason, f"t{len(codes) - 1}", block)


def test_an_accepted_upload_that_no_lot_draws_is_paid_by_a_push(chain: Chain) -> None:
    receipt = chain.receipt(lots=True)
    for who in NAMES[:3]:
        chain.attest(who, who, A)
    chain.decide(UploadState.ACCEPTED, VerdictCode.NONE)
    chain.settle()
    waits(receipt, "accepted; the lots say whether it is audited")
    chain.push("p1")
    chain.decide(UploadState.PAID, A)
    waits(receipt, "decided, not yet irreversible")
    assert chain.box.kept(receipt.entry, OPENING)
    chain.settle()
    waits(receipt, "decided, not yet irreversible")  # a node's tables are ahead of its head
    chain.blocks.append([])
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "p1", 5)
    assert receipt.outcome == receipt.wait(timeout_sec=0)
    assert not chain.box.kept(receipt.entry, OPENING)  # nobody asks for it any more


@pytest.mark.parametrize("codes", [(A, A, A), (E, A, A, A), (X, E, E)])
def test_a_drawn_upload_gets_new_verdicts(chain: Chain, codes: tuple[VerdictCode, ...]) -> None:
    receipt = chain.receipt(lots=True)
    for who in NAMES:
        chain.attest(who, who, A)
    chain.push("p1")
    chain.decide(UploadState.DRAWN, VerdictCode.NONE)
    waits(receipt, "it was drawn for an audit: opened once the round is auditing")
    chain.row.opening_cid = "Qm"
    waits(receipt, "opened for the audit, 3 verdicts that agree decide, 0 so far")
    for number, (who, code) in enumerate(zip(NAMES, codes, strict=False)):
        chain.attest(f"a{number}", who, code, "attestaudit")
    trx, block = f"a{len(codes) - 1}", 6 + len(codes)
    if codes[-1] is A:
        chain.decide(UploadState.PAID, A)
        expected: Paid | Refused = Paid(AMOUNT, trx, block)
    else:
        chain.row.barred_until = 13
        chain.decide(UploadState.REFUSED, E)
        expected = Refused(E, trx, block, 13)
        assert "; barred up to round 13, trx=" in str(expected)
    chain.settle()
    assert receipt.wait(timeout_sec=1) == expected


@pytest.mark.parametrize("is_seen", [True, False])
def test_who_does_not_open_is_refused_by_a_push_and_barred(chain: Chain, is_seen: bool) -> None:
    receipt = chain.receipt(lots=True)
    for who in NAMES[:3]:
        chain.attest(who, who, A)
    chain.push("p1")
    if is_seen:
        chain.decide(UploadState.DRAWN, VerdictCode.NONE)
        waits(receipt, "drawn for an audit")
    chain.push("p2")
    chain.row.barred_until = 5
    chain.decide(UploadState.REFUSED, VerdictCode.UNANSWERED)
    waits(receipt, "decided by a push")
    chain.blocks.append([])
    chain.settle()
    # Who was away meanwhile cannot tell the one that drew from the one that decided.
    trx = "p2" if is_seen else None
    assert receipt.wait(timeout_sec=1) == Refused(VerdictCode.UNANSWERED, trx, 6, 5)


def test_what_the_row_said_is_remembered_when_a_later_upload_takes_it(chain: Chain) -> None:
    receipt = chain.receipt(lots=True)
    for who in NAMES[:3]:
        chain.attest(who, who, A)
    chain.push("p1")
    chain.decide(UploadState.PAID, A)
    waits(receipt, "decided")
    chain.row = SimpleNamespace(
        **{**vars(chain.row), "upload_version": 4, "upload_hash": bytes(32)}
    )
    chain.blocks.append([])
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "p1", 5)
    missed = chain.receipt(lots=True)
    chain.blocks.append([])
    chain.settle()
    waits(missed, "a later upload")
    chain.blocks.append([])
    chain.settle()
    waits(missed, "a later upload")
    assert chain.box.keeping() == []  # it is over, even if nobody saw how


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
    chain.push("p1")
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
    chain.push("p1")
    for who in NAMES:
        chain.attest(who, who, A)
    chain.decide(UploadState.PAID, A)
    chain.settle()
    assert receipt.wait(timeout_sec=1) == Paid(AMOUNT, "vc", 5)


def test_of_several_pushes_none_is_named(chain: Chain) -> None:
    receipt = chain.receipt()
    chain.push("p1")
    chain.push("p2")
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
    assert receipt.wait(timeout_sec=0) == Paid(AMOUNT, "vc", 4)  # it is known by now
    with pytest.raises(NodeUnavailableError):
        chain.receipt().wait(timeout_sec=0.3)


def test_an_upload_that_vanished_is_sent_again_once_in_a_while(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = chain.receipt()
    chain.row.upload_version = 2
    waits(receipt, "it is not on chain yet")
    assert chain.sent == 1
    monkeypatch.setattr("gradledger.outbox.RESEND_SEC", 0.1)
    waits(receipt, "it is not on chain yet", 0.3)
    assert 2 <= chain.sent <= 6
