"""Uploads that survive: devices killed at every step and at random, on a real node and Kubo."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from device_scene import ARCHITECTURE, PRICE, Scene
from outbox_child import STEPS, shift

from device_sdk import Abandoned, Device, Paid, Receipt
from gradledger.chain.contract import Member, UploadState, VerdictCode
from gradledger.errors import (
    AlreadyDoneError,
    ContractError,
    IrreversibilityTimeout,
    NodeUnavailableError,
    OutboxError,
    RoundClosedError,
    RuleNotMetError,
)
from gradledger.outbox import State

MakeScene = Callable[..., Scene]
CHILD = Path(__file__).with_name("outbox_child.py")
# After one step is before the next one.
POINTS = ["add:before", *(f"{step}:after" for step in STEPS), "finish:before"]
A = VerdictCode.ACCEPT


def joined(scene: MakeScene, count: int, **changes: Any) -> Scene:
    """Return a task with joined devices and an open round."""
    s = scene(devices_count=count, architecture=changes.pop("architecture", ARCHITECTURE))
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda number: s.device(number).join(classes=[0, 1, 2]), range(count)))
    s.issue(1)
    s.open(1, **{"budget": 60 * PRICE * count, "close_after": count, **changes})
    return s


def start(s: Scene, account: str, outbox: Path, *point: str) -> subprocess.Popen[str]:
    """Start a device's process."""
    info = s.network.info()
    command = [sys.executable, str(CHILD), account, info.accounts[account], s.task]
    command += [info.chain_url, info.store_addr, str(outbox), *point]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHILD.parents[2]
    )


def check_paid_once(s: Scene, receipts: dict[str, Receipt]) -> None:
    """Let the validators accept all uploads, and settle: each device got its pay, once."""
    for account, receipt in receipts.items():
        row = s.contract.member(s.task, account)
        assert row is not None and (row.upload_version, row.upload_hash) == (1, receipt.hash)
        s.attest(1, receipt.hash, [A] * 3)
    for account, receipt in receipts.items():
        assert isinstance(receipt.wait(timeout_sec=40), Paid)
        balance = s.contract.client.balance("eosio.token", account, "TOK")
        assert balance is not None and balance.amount == 60 * PRICE
    found = s.contract.round(s.task, 1)
    assert found is not None and (found.uploads, found.pending) == (len(receipts), 0)
    assert s.contract.escrow(s.task).conserved


def test_a_device_killed_before_and_after_each_step_goes_on(
    scene: MakeScene, tmp_path: Path
) -> None:
    s = joined(scene, len(POINTS))
    accounts = dict(zip(s.devices, POINTS, strict=True))
    children = {
        account: start(s, account, tmp_path / "boxes" / f"{account}.db", point)
        for account, point in accounts.items()
    }
    trained = {account: child.communicate(timeout=120) for account, child in children.items()}
    for account, point in accounts.items():
        assert children[account].returncode == -signal.SIGKILL, (point, trained[account])
        assert trained[account][0] == "trained\n", point

    def go_on(number: int) -> Receipt:
        account, point = list(accounts.items())[number]
        device = s.device(number, outbox=tmp_path / "boxes" / f"{account}.db")
        assert device.outbox is not None
        before = device.outbox.entries()
        found = device.resume(timeout_sec=60)
        if point == "add:before":  # nothing was written down, and nothing had left
            assert before == [] and found == []
            with device.round(wait_sec=20) as round_:
                return round_.upload(round_.train(shift, examples=60))
        if point == "finish:after":
            assert found == [] and [entry.state for entry in before] == [State.DONE]
            return device.receipt(before[0])
        assert [entry.state for entry in before] == [State.PENDING], point
        (receipt,) = found
        assert isinstance(receipt, Receipt)
        assert receipt.hash.hex() == before[0].details["hash"], point
        done = device.outbox.entry(before[0].number)
        assert done.state is State.DONE and device.outbox.blob(done) == b""
        if before[0].signed is not None:  # the same bytes were sent, not others
            assert done.signed == before[0].signed, point
        return receipt

    with ThreadPoolExecutor(len(POINTS)) as pool:
        receipts = list(pool.map(go_on, range(len(POINTS))))
    check_paid_once(s, dict(zip(accounts, receipts, strict=True)))


def test_devices_killed_at_random_points(scene: MakeScene, tmp_path: Path) -> None:
    count, rng = 4, random.Random(11)
    s = joined(scene, count)
    paths = {account: tmp_path / "boxes" / f"{account}.db" for account in s.devices}
    for _ in range(3):
        children = [start(s, account, path) for account, path in paths.items()]
        for child in children:
            time.sleep(rng.uniform(0.0, 0.8))
            child.kill()
            child.communicate(timeout=30)

    def go_on(number: int) -> Receipt:
        device = s.device(number, outbox=list(paths.values())[number])
        assert device.outbox is not None
        for found in device.resume(timeout_sec=60):
            assert isinstance(found, Receipt)
        if not device.outbox.entries():
            with device.round(wait_sec=20) as round_:
                round_.upload(round_.train(shift, examples=60))
            device.resume(timeout_sec=60)
        (entry,) = device.outbox.entries()
        assert entry.state is State.DONE
        return device.receipt(entry)

    with ThreadPoolExecutor(count) as pool:
        receipts = list(pool.map(go_on, range(count)))
    check_paid_once(s, dict(zip(paths, receipts, strict=True)))


def test_an_upload_that_comes_too_late_is_abandoned_with_a_reason(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_sdk.device.UPLOAD_SEC", 2)
    s = joined(scene, 2, close_after=1)
    device, other = s.device(0, outbox=tmp_path / "boxes" / "a.db"), s.device(1)
    send = device.chain.send
    with device.round(wait_sec=20) as round_, other.round(wait_sec=20) as theirs:
        update = round_.train(shift, examples=60)
        with monkeypatch.context() as away:
            away.setattr(device.chain, "send", lambda body: _raise(NodeUnavailableError("away")))
            away.setattr("device_sdk.rounds.UPLOAD_TRIES_MAX", 1)
            with pytest.raises(NodeUnavailableError):
                round_.upload(update)
        assert device.chain.send == send
        theirs.upload(theirs.train(shift, examples=60))
    s.push(s.contract.closeround(s.task, s.owner, 1))
    device.close()
    device = s.device(0, outbox=tmp_path / "boxes" / "a.db")
    (found,) = device.resume(timeout_sec=60)
    assert isinstance(found, Abandoned) and found.version == 1
    assert str(found).startswith("Abandoned(version=1, round_not_open: ")
    assert device.outbox is not None
    (entry,) = device.outbox.entries(State.ABANDONED)
    assert entry.reason == found.reason and device.outbox.blob(entry) == b""
    assert device.resume() == []
    with pytest.raises(RoundClosedError, match="round_not_open"):
        round_._device = device
        round_.upload(update)


def test_a_refused_update_does_not_bar_a_better_one(scene: MakeScene, tmp_path: Path) -> None:
    s = joined(scene, 1)
    device = s.device(0, outbox=tmp_path / "boxes" / "a.db")
    with device.round(wait_sec=20) as round_:
        worse = round_.train(lambda model, _: (model, [200_000, 400_000]), examples=60)
        with pytest.raises(RuleNotMetError):
            round_.upload(worse)
        better = round_.train(shift, examples=60)
        receipt = round_.upload(better)
        with pytest.raises(AlreadyDoneError, match="another update for round 1: resume that one"):
            round_.upload(round_.train(shift, examples=60))
        assert round_.upload(better).hash == receipt.hash
    with pytest.raises(RoundClosedError, match="no_round"):  # it is sent; nothing is trained again
        device.round(wait_sec=1)
    check_paid_once(s, {device.account: receipt})
    assert device.outbox is not None
    # The first one is not yet abandoned: it could still be in a block before it expires.
    states = [entry.state for entry in device.outbox.entries()]
    assert states == [State.PENDING, State.DONE]
    with pytest.raises(
        IrreversibilityTimeout, match=r"refused so far: (csves_either|second_upload): "
    ):
        device.resume(timeout_sec=0.5)


def test_refusals_do_not_pile_up_without_a_file(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_sdk.device.UPLOAD_SEC", 3)
    monkeypatch.setattr("gradledger.outbox.PENDING_MAX", 2)
    s = joined(scene, 1)
    device = s.device(0)
    with device.round(wait_sec=20) as round_:
        refused = [
            round_.train(lambda model, _: (model, [200_000, 400_000]), examples=60)
            for _ in range(3)
        ]
        for update in refused[:2]:
            with pytest.raises(RuleNotMetError):
                round_.upload(update)
        assert device.attend() == []
        with pytest.raises(
            OutboxError, match="at most 2 pending"
        ):  # both could still be in a block
            round_.upload(refused[2])

        def dropped() -> bool:
            assert device.attend() == []
            return device.box.entries(State.PENDING) == []

        s.wait_for(dropped, "the end of what was refused")
        assert [device.box.blob(entry) for entry in device.box.entries()] == [b"", b""]
        with pytest.raises(RuleNotMetError):  # whoever tries again is told again, by the chain
            round_.upload(refused[0])
        receipt = round_.upload(round_.train(shift, examples=60))
    check_paid_once(s, {device.account: receipt})


def test_a_full_disk_is_said_before_anything_is_sent(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An envelope that takes more than the page that the file has for it.
    s = joined(scene, 1, architecture={**ARCHITECTURE, "layers": [4, 200, 3]})
    device = s.device(0, outbox=tmp_path / "boxes" / "a.db")
    outbox = device.outbox
    assert outbox is not None
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    sent: list[object] = []
    put, send = device.store.put, device.chain.send
    monkeypatch.setattr(device.store, "put", lambda data: sent.append(data) or put(data))
    monkeypatch.setattr(device.chain, "send", lambda body: sent.append(body) or send(body))
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        with pytest.raises(OutboxError, match=r"disk is full.*free space on the disk"):
            round_.upload(update)
        assert sent == [] and outbox.entries() == []
        outbox._db.execute(f"PRAGMA max_page_count = {pages + 100}")
        receipt = round_.upload(update)
    assert len(sent) == 2
    check_paid_once(s, {device.account: receipt})


def test_the_chain_may_lose_an_upload_and_open_the_round_anew(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accepted transaction that no block has: sent again; signed anew once it has expired."""
    monkeypatch.setattr("device_sdk.device.UPLOAD_SEC", 2)
    monkeypatch.setattr("gradledger.outbox.RESEND_SEC", 0.1)
    s = joined(scene, 1)
    device = s.device(0, outbox=tmp_path / "boxes" / "a.db")
    send, swallowed = device.chain.send, []

    def swallow(body: dict[str, Any]) -> dict[str, Any]:
        swallowed.append(body["packed_trx"])
        return {"receipt": {}} if len(set(swallowed)) < 2 else send(body)

    monkeypatch.setattr(device.chain, "send", swallow)
    with device.round(wait_sec=20) as round_:
        receipt = round_.upload(round_.train(shift, examples=60))
    first = receipt.trx
    assert receipt.rest(timeout_sec=20) is receipt
    with pytest.raises(IrreversibilityTimeout, match="agree decide, 0 so far"):
        receipt.wait(timeout_sec=0.1)
    assert len(set(swallowed)) == 2 and swallowed.count(swallowed[0]) > 3
    (found,) = device.outbox.entries() if device.outbox else ()
    assert found.state is State.DONE and found.signed is not None
    assert found.signed.trx_id != first
    check_paid_once(s, {device.account: receipt})
    row = s.contract.member(s.task, device.account)
    assert row is not None and row.upload_state is UploadState.PAID


def test_an_upload_waits_for_a_set_that_the_nodes_forgot(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded without its set it would be refused by the validators, and not paid."""
    monkeypatch.setattr("gradledger.outbox.RESEND_SEC", 0.1)
    s = joined(scene, 1)
    device = s.device(0, outbox=tmp_path / "boxes" / "a.db")
    member, send, sent = device.contract.member, device.chain.send, []

    def forgetful(task: str, account: str) -> Member | None:
        row = member(task, account)
        return None if row is None else dataclasses.replace(row, set_version=0)

    monkeypatch.setattr(device.chain, "send", lambda body: sent.append(body) or send(body))
    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        with monkeypatch.context() as forgotten:
            forgotten.setattr(device.contract, "member", forgetful)
            with pytest.raises(ContractError, match=r"no_set: expected a validation set for rou"):
                round_.upload(update)
            with pytest.raises(IrreversibilityTimeout, match="refused so far: no_set: "):
                device.resume(timeout_sec=0.5)
        row = member(s.task, device.account)
        assert sent == [] and row is not None and row.upload_version == 0
    (receipt,) = device.resume(timeout_sec=20)
    assert isinstance(receipt, Receipt) and len(sent) >= 1
    check_paid_once(s, {device.account: receipt})


def test_one_process_at_a_time(scene: MakeScene, tmp_path: Path) -> None:
    s = scene()
    path = tmp_path / "boxes" / "a.db"
    device = s.device(outbox=path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    child = start(s, device.account, path)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and "another process uses this outbox" in errors
    device.close()
    again = s.device(outbox=path)
    assert again.resume() == []
    again.close()


def _raise(error: Exception) -> Any:
    raise error


def test_a_device_without_an_outbox_resumes_nothing(scene: MakeScene) -> None:
    device: Device = scene().device()
    assert device.resume() == [] and device.outbox is None
    device.close()
