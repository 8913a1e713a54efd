"""An outbox and a payer: the payer's signature is written down too, or asked for again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_scene import Scene

from device_sdk import Paid, Receipt
from gradledger.chain.client import Signed
from gradledger.chain.contract import VerdictCode
from gradledger.models import Model
from gradledger.outbox import Entry, Outbox, State
from owner.payer.service import PayerServer


class Killed(BaseException):
    """What the test raises in the place of a kill."""


def shift(model: Model, validation: object) -> tuple[Model, list[int]]:
    """Train by adding 0.25; the errors fall."""
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


def test_a_signature_that_was_not_written_down_is_fetched_again(
    scene: Callable[..., Scene],
    serve: Callable[..., PayerServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s = scene()
    server = serve(s.task)
    given: dict[str, Any] = {"payer": server.url, "outbox": tmp_path / "box" / "a.db"}
    device = s.device(**given)
    device.join(classes=[0])
    s.publish(1)
    sign = Outbox.sign

    def dies(self: Outbox, entry: Entry, signed: Signed, *, is_whole: bool) -> Entry:
        if is_whole:
            raise Killed
        return sign(self, entry, signed, is_whole=is_whole)

    with device.round(wait_sec=20) as round_, monkeypatch.context() as killed:
        killed.setattr(Outbox, "sign", dies)
        with pytest.raises(Killed):
            round_.upload(round_.train(shift, examples=60))
    device.close()
    device = s.device(**given)
    assert device.outbox is not None
    (before,) = device.outbox.entries()
    assert before.signed is not None and not before.is_whole
    assert len(before.signed.body["signatures"]) == 1
    (receipt,) = device.resume(timeout_sec=40)
    assert isinstance(receipt, Receipt) and receipt.trx == before.signed.trx_id
    done = device.outbox.entry(before.number)
    assert done.state is State.DONE and done.is_whole and done.signed is not None
    assert len(done.signed.body["signatures"]) == 2
    assert server.answered["signed"] == 2  # the join and the upload
    assert server.answered["replay"] == 1
    device.close()


def test_the_payer_pays_for_the_reveal_and_the_opening_too(
    scene: Callable[..., Scene], serve: Callable[..., PayerServer]
) -> None:
    s = scene(create={"lot_e6": 1_000_000, "bar_rounds": 3})
    server = serve(s.task)
    device = s.device(payer=server.url)
    device.join(classes=[0])
    s.issue(1)
    s.open(1, reveal_sec=30, audit_sec=30, tau=1_000_000)
    s.commit_lots(1)
    with device.round(wait_sec=20) as round_:
        receipt = round_.upload(round_.train(shift, examples=60))
    s.push(s.contract.closeround(s.task, s.owner, 1))
    assert device.attend() == [receipt] and s.row().upload_cid
    s.attest(1, receipt.hash, [VerdictCode.ACCEPT] * 3)
    s.draw(1)
    assert device.attend() == [receipt] and s.row().opening_cid
    s.attest(1, receipt.hash, [VerdictCode.ACCEPT] * 3, is_audit=True)
    assert isinstance(receipt.wait(timeout_sec=20), Paid)
    assert server.answered == {"terms": 1, "signed": 4}
    found = device.chain.get_account(device.account)
    assert (found["cpu_limit"]["used"], found["net_limit"]["used"]) == (0, 0)
