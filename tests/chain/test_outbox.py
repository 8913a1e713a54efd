"""The outbox's file, and deliveries on a chain that the test plays."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradledger.chain.client import Signed
from gradledger.chain.transaction import Action, action
from gradledger.errors import (
    BudgetShortError,
    ConfigError,
    ContractError,
    IrreversibilityTimeout,
    NodeUnavailableError,
    OutboxError,
    PayerRefusedError,
    RoundClosedError,
    TransactionExpiredError,
    error_from_check,
)
from gradledger.outbox import KEEP_SEC, PENDING_MAX, Delivery, Outbox, State

WHAT = (action("fedlearning", "fedlearning", "phone1", b"data"),)
LATE = 1_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "box" / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    box = Outbox(path, holder="phone1")
    yield box
    box.close()


def add(outbox: Outbox, name: str = "one", **changes: Any) -> Any:
    given = {"give_up_at": LATE, "details": {"version": 3}, "blob": b"envelope"}
    return outbox.add(name, WHAT, **{**given, **changes})


def test_an_entry_is_as_it_was_written_down(outbox: Outbox, path: Path) -> None:
    entry = add(outbox)
    assert (entry.name, entry.state, entry.actions) == ("one", State.PENDING, WHAT)
    assert entry.details == {"version": 3} and outbox.blob(entry) == b"envelope"
    assert entry.signed is None and not entry.is_whole
    signed = Signed("ab", 7, 99, {"signatures": ["SIG"], "packed_trx": "00"})
    entry = outbox.refuse(outbox.sign(entry, signed, is_whole=True), "code: text")
    outbox.close()
    again = Outbox(path, holder="phone1")
    assert again.entries() == [entry] and entry.signed == signed and entry.is_whole
    done = again.finish(entry, 12)
    assert (done.state, done.block, again.blob(done)) == (State.DONE, 12, b"")
    other = again.abandon(add(again, "two"), "too late")
    assert (other.state, other.reason) == (State.ABANDONED, "too late")
    assert again.entries(State.PENDING) == []
    again.close()


@pytest.mark.parametrize("is_file", [True, False])
def test_what_is_kept_outlives_its_entry_until_it_is_released(path: Path, is_file: bool) -> None:
    secret = bytes(range(100, 132))
    box = Outbox(path if is_file else None, holder="phone1")
    entry = add(box, keep={"opening": secret + bytes(50_000), "envelope": b"sealed"})
    other = add(box, keep={"opening": b"another"})
    done = box.finish(entry, 12)
    assert box.blob(done) == b"" and box.kept(done, "envelope") == b"sealed"
    assert box.kept(done, "opening")[:32] == secret and box.kept(done, "nothing") == b""
    assert box.keeping() == [done, other]
    files = [path, path.with_name(path.name + "-journal")] if is_file else []
    assert any(secret in file.read_bytes() for file in files) is is_file
    box.release(done)
    assert not any(secret in file.read_bytes() for file in files)  # overwritten, not just dropped
    assert box.kept(done, "opening") == b"" and box.keeping() == [other]
    box.abandon(other, "too late")
    assert box.keeping() == []
    assert repr(box) == (f"Outbox({str(path)!r})" if is_file else "Outbox('memory')")
    box.close()


def test_a_wrong_clock_drops_nothing_that_is_still_needed(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = outbox.finish(add(outbox, keep={"opening": b"secret"}), 12)
    other = outbox.finish(add(outbox, "two"), 12)
    now = time.time()
    monkeypatch.setattr("gradledger.outbox.time.time", lambda: now + 2 * KEEP_SEC)
    monkeypatch.setattr("gradledger.outbox.KEPT_MAX", 1)
    last = add(outbox, "three")
    assert outbox.entries() == [entry, last] and outbox.kept(entry, "opening") == b"secret"
    with pytest.raises(OutboxError, match=f"expected an entry with number {other.number}, got no"):
        outbox.entry(other.number)
    outbox.release(entry)  # so they stay bounded: whoever decides releases
    newest = add(outbox, "four")
    assert outbox.entries() == [last, newest]


def test_who_may_use_it(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="another process uses this outbox"):
        Outbox(path, holder="phone1")
    outbox.close()
    with pytest.raises(ConfigError, match="an outbox of phone2 in format 1, got one of phone1"):
        Outbox(path, holder="phone2")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="expected mode 0600, got 0640"):
        Outbox(path, holder="phone1")
    path.chmod(0o600)
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="expected mode 0700, got 0755"):
        Outbox(path, holder="phone1")


def test_a_file_that_is_none_is_an_error(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"something else" * 100)
    path.chmod(0o600)
    with pytest.raises(OutboxError, match="not a database"):
        Outbox(path, holder="phone1")


def test_it_is_bounded(outbox: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(PENDING_MAX):
        add(outbox, str(number))
    with pytest.raises(OutboxError, match=f"at most {PENDING_MAX} pending entries"):
        add(outbox)
    monkeypatch.setattr("gradledger.outbox.KEPT_MAX", 5)
    for entry in outbox.entries():
        outbox.finish(entry, 1)
    last = add(outbox)
    assert [entry.number for entry in outbox.entries()] == [61, 62, 63, 64, last.number]
    monkeypatch.setattr("gradledger.outbox.KEEP_SEC", -10)
    newest = add(outbox)
    assert outbox.entries() == [last, newest]  # what is pending is never dropped
    outbox.close()
    small = Outbox(path, holder="phone1", bytes_max=80_000)
    with pytest.raises(OutboxError, match=r"disk is full\); what is not written down is not sent"):
        add(small, blob=bytes(100_000))
    assert small.entries() == [last, newest]
    small.close()


def test_a_damaged_entry_is_an_error(outbox: Outbox, path: Path) -> None:
    add(outbox)
    outbox.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE entries SET details = '{'")
    db.close()
    again = Outbox(path, holder="phone1")
    with pytest.raises(OutboxError, match="an entry is damaged"):
        again.entries()
    again.close()


class Chain:
    """Blocks with a time and transactions; what is sent is taken, refused or lost."""

    def __init__(self) -> None:
        self.time = 100
        self.block = 10
        self.executed: dict[str, int] = {}
        self.sent: list[str] = []
        self.error: Exception | None = None

    def sign(self, actions: Sequence[Action]) -> Signed:
        return Signed(f"trx{self.time}", self.block, self.time + 30, {"id": f"trx{self.time}"})

    def send(self, body: dict[str, Any]) -> dict[str, Any]:
        self.sent.append(body["id"])
        if self.error is not None:
            raise self.error
        return {}

    def find_irreversible(self, signed: Signed) -> int | None:
        if signed.trx_id in self.executed:
            return self.executed[signed.trx_id]
        if self.time > signed.expiration:
            raise TransactionExpiredError("expired and in no block")
        return None

    def get_info(self) -> Any:
        return SimpleNamespace(head_time=self.time)


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr("gradledger.outbox.RESEND_SEC", 0.0)
    monkeypatch.setattr("gradledger.outbox.POLL_SEC", 0.01)
    return Chain()


def deliver(outbox: Outbox, chain: Chain, entry: Any = None, **options: Any) -> Delivery:
    return Delivery(outbox, entry or add(outbox), chain, sign=chain.sign, **options)  # type: ignore[arg-type]


def test_the_same_bytes_are_sent_until_they_are_irreversible(outbox: Outbox, chain: Chain) -> None:
    prepared: list[int] = []
    one = deliver(outbox, chain, prepare=lambda: prepared.append(1))
    assert not one.step() and not one.step() and not one.step()
    assert chain.sent == ["trx100"] * 3 and prepared == [1]
    with pytest.raises(IrreversibilityTimeout, match=r"one is not irreversible after 0\.05 s"):
        one.wait(0.05)
    chain.executed["trx100"] = 12
    assert one.wait(1) == 12 and outbox.entry(1).state is State.DONE
    count = len(chain.sent)
    one.send()
    assert one.step() and len(chain.sent) == count


def test_it_is_signed_anew_only_when_the_old_one_can_never_happen(
    outbox: Outbox, chain: Chain
) -> None:
    one = deliver(outbox, chain)
    chain.error = TransactionExpiredError("says a node whose clock is ahead")
    one.step()
    chain.time = 130
    one.step()
    assert set(chain.sent) == {"trx100"}
    chain.time, chain.error = 131, None
    one.step()
    assert chain.sent[-1] == "trx131" and outbox.entry(1).signed == one.entry.signed
    chain.executed["trx131"] = 15
    assert one.wait(1) == 15


def test_a_new_process_goes_on_with_the_old_bytes(outbox: Outbox, chain: Chain) -> None:
    deliver(outbox, chain).step()
    chain.time = 110
    again = deliver(outbox, chain, outbox.entry(1))
    again.step()
    assert chain.sent == ["trx100", "trx100"]
    chain.executed["trx100"] = 11
    last = deliver(outbox, chain, outbox.entry(1))
    assert last.step() and chain.sent == ["trx100", "trx100"]  # it happened: nothing is sent


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (error_from_check("deadline_passed: too late"), True),
        (error_from_check("second_upload: expected one"), True),
        (error_from_check("budget_short: short by 1 TOK"), False),
        (error_from_check("future_version: the chain lost the round"), False),
        (ContractError("", "some other exception"), False),
        (PayerRefusedError("device_limit", "60 in the last hour"), False),
    ],
)
def test_what_is_refused_is_given_up_only_when_it_is_certain(
    outbox: Outbox, chain: Chain, error: Exception, is_final: bool
) -> None:
    one = deliver(outbox, chain)
    chain.error = error
    with pytest.raises(type(error)):
        one.send()
    assert not one.step() and outbox.entry(1).refusal == str(error)
    chain.time = 131
    assert one.step() is is_final
    if is_final:
        assert outbox.entry(1).reason == str(error)
        with pytest.raises(type(error)):
            one.wait(1)
        return
    chain.time = LATE + 1
    one.step()
    assert one.step() and outbox.entry(1).state is State.ABANDONED
    assert outbox.entry(1).reason == str(error)


def test_what_is_refused_can_be_given_up_once_it_can_never_happen(
    outbox: Outbox, chain: Chain
) -> None:
    one = deliver(outbox, chain)
    one.give_up()  # it was not refused
    chain.error = error_from_check("budget_short: short by 1 TOK")
    with pytest.raises(BudgetShortError):
        one.send()
    one.give_up()  # another node may have taken it
    assert outbox.entry(1).state is State.PENDING
    chain.time = 131
    one.give_up()
    assert chain.sent == ["trx100"]
    assert (outbox.entry(1).state, outbox.entry(1).reason) == (State.ABANDONED, str(chain.error))
    two = deliver(outbox, chain, add(outbox, "two"))
    with pytest.raises(BudgetShortError):
        two.send()
    chain.executed["trx131"], chain.time = 14, 200
    two.give_up()
    assert outbox.entry(2).state is State.DONE
    three = deliver(outbox, chain, add(outbox, "three"), hindered=lambda: "no_set: says the chain")
    with pytest.raises(ContractError, match="no_set"):
        three.send()
    three.give_up()  # nothing was signed
    assert outbox.entry(3).state is State.ABANDONED


def test_a_refusal_of_what_has_happened_is_none(outbox: Outbox, chain: Chain) -> None:
    one = deliver(outbox, chain, happened=lambda: True)
    chain.error = error_from_check("second_upload: expected one")
    one.send()
    assert outbox.entry(1).refusal == ""


def test_a_refusal_that_was_taken_back_is_forgotten(outbox: Outbox, chain: Chain) -> None:
    one = deliver(outbox, chain)
    chain.error = error_from_check("round_not_open: said a node that was behind")
    one.step()
    chain.error = None
    one.step()
    assert outbox.entry(1).refusal == ""
    chain.time = 131
    assert not one.step() and chain.sent[-1] == "trx131"


def test_a_node_that_is_away_is_waited_for(outbox: Outbox, chain: Chain) -> None:
    one = deliver(outbox, chain)
    chain.error = NodeUnavailableError("away")
    with pytest.raises(IrreversibilityTimeout, match="away"):
        one.wait(0.05)
    with pytest.raises(NodeUnavailableError):
        one.send()
    chain.time = LATE + 1
    one.step()
    with pytest.raises(ContractError, match="not in time: expired and in no block"):
        one.wait(1)


def test_others_sign_what_is_written_down_already(outbox: Outbox, chain: Chain) -> None:
    seen: list[bool] = []

    def cosign(signed: Signed) -> Signed:
        kept = outbox.entry(1)
        seen.append(kept.signed == signed and not kept.is_whole)
        if len(seen) == 1:
            raise RoundClosedError("round_not_open", "says the payer")
        return Signed(signed.trx_id, signed.first_block, signed.expiration, {"id": "both"})

    one = deliver(outbox, chain, cosign=cosign)
    one.step()
    assert chain.sent == [] and outbox.entry(1).refusal == "round_not_open: says the payer"
    one.step()
    one.step()
    assert seen == [True, True] and chain.sent == ["both", "both"]
    assert outbox.entry(1).is_whole
