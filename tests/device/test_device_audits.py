"""CIDs that are revealed later, and audits by lot: what a device does, on a real node and Kubo."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_scene import CLIP_E6, PARAMETERS, PRICE, SLOT_BITS, Scene
from outbox_child import shift

from device_sdk import Device, Encryption, Paid, Receipt, Refused
from gradledger import envelope
from gradledger.chain.contract import RoundState, Rule, UploadState, VerdictCode
from gradledger.codec import Codec
from gradledger.errors import (
    ConfigError,
    IrreversibilityTimeout,
    NotAllowedError,
    RoundClosedError,
)
from gradledger.opening import pack_opening, split_opening
from producer_validation.checks import Refusal
from producer_validation.openings import check_opening, open_opening

MakeScene = Callable[..., Scene]
CHILD = Path(__file__).with_name("outbox_child.py")
CODEC = Codec(CLIP_E6, SLOT_BITS, PARAMETERS)
A = VerdictCode.ACCEPT
AUDITED = {"lot_e6": 1_000_000, "bar_rounds": 7}


def joined(scene: MakeScene, count: int, *, create: Any = None, **terms: Any) -> Scene:
    """Return a task with joined devices and an open round."""
    s = scene(devices_count=count, create=create)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda number: s.device(number).join(classes=[0, 1, 2]), range(count)))
    s.issue(1)
    s.open(1, **{"budget": 60 * PRICE * count, "close_after": count, "tau": 1_000_000, **terms})
    if create:
        s.commit_lots(1)
    return s


def upload(device: Device) -> Receipt:
    with device.round(wait_sec=20) as round_:
        return round_.upload(round_.train(shift, examples=60))


def close(s: Scene) -> None:
    s.push(s.contract.closeround(s.task, s.owner, 1))


def test_a_cid_is_revealed_when_the_round_is_closed_and_not_before(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = joined(scene, 2, reveal_sec=3)
    device, late = s.device(0), s.device(1)
    assert "you have 3 s to tell where it lies" in str(device.terms())
    put: list[bytes] = []
    store = s.store.put
    monkeypatch.setattr(s.store, "put", lambda data: put.append(data) or store(data))
    upload(device)
    (receipt,) = device.attend()  # the app kept none, and there is no file
    other = upload(late)
    assert isinstance(receipt, Receipt)
    assert device.attend() == [receipt] and late.attend() == [other]
    with pytest.raises(IrreversibilityTimeout, match="its CID is revealed once the round is verif"):
        receipt.wait(timeout_sec=0.1)
    assert put == [] and s.row().upload_cid == "" and s.row().upload_hash == receipt.hash
    close(s)
    assert device.attend() == [receipt]
    (blob,) = put
    assert hashlib.sha256(blob).digest() == receipt.hash
    assert s.store.get(s.row().upload_cid) == blob
    row = s.contract.round(s.task, 1)
    assert row is not None and s.row(1).upload_cid == ""
    clock = s.contract.client.get_info
    s.wait_for(lambda: clock().head_time >= row.reveal_deadline, "the reveal's deadline")
    with pytest.raises(IrreversibilityTimeout, match=r"its CID is revealed before .*: too late"):
        other.wait(timeout_sec=0.1)
    assert len(put) == 1
    s.attest(1, receipt.hash, [A] * 3)
    s.attest(1, other.hash, [VerdictCode.UNREVEALED] * 3)
    assert isinstance(receipt.wait(timeout_sec=20), Paid)
    refused = other.wait(timeout_sec=20)
    assert isinstance(refused, Refused) and refused.reason is VerdictCode.UNREVEALED
    assert "its CID was not revealed in time" in str(refused) and not refused.barred_until
    assert device.attend() == [] == late.attend()


POINTS = (
    "add:after:2",  # the reveal is written down
    "put:after:1",
    "send:after:2",
    "finish:before:2",
    "release:before:1",
    "sign:after:3",  # the opening is signed
    "finish:before:3",
)


def test_a_device_killed_while_it_reveals_or_opens_goes_on(
    scene: MakeScene, tmp_path: Path
) -> None:
    s = joined(scene, len(POINTS), create=AUDITED, reveal_sec=60, audit_sec=60)
    info = s.network.info()

    def live(number: int) -> list[str]:
        """Be a device that is killed once, and started again."""
        account = list(s.devices)[number]
        path = tmp_path / "boxes" / f"{account}.db"
        command = [sys.executable, str(CHILD), account, info.accounts[account], s.task]
        command += [info.chain_url, info.store_addr, str(path)]
        said = []
        for point, code in (([POINTS[number]], -signal.SIGKILL), ([], 0)):
            child = subprocess.run(
                [*command, *point], capture_output=True, text=True, cwd=CHILD.parents[2], timeout=90
            )
            assert child.returncode == code, (POINTS[number], child.stderr)
            said.append(child.stdout)
        return said

    def rows() -> list[Any]:
        return [s.row(number) for number in range(len(POINTS))]

    with ThreadPoolExecutor(len(POINTS)) as pool:
        lives = [pool.submit(live, number) for number in range(len(POINTS))]
        s.wait_for(lambda: all(row.upload_version for row in rows()), "the uploads")
        close(s)
        s.wait_for(lambda: all(row.upload_cid for row in rows()), "the CIDs")
        for row in rows():
            s.attest(1, row.upload_hash, [A] * 3)
        s.draw(1)
        s.wait_for(lambda: all(row.opening_cid for row in rows()), "the openings")
        for row in rows():
            s.attest(1, row.upload_hash, [A] * 3, is_audit=True)
        for point, said in zip(POINTS, [one.result() for one in lives], strict=True):
            assert said[0].startswith("trained\n") and "trained" not in said[1], point
            assert said[1].startswith("Paid(0.0600 TOK, trx="), point
    for row in rows():
        assert row.upload_state is UploadState.PAID
        assert hashlib.sha256(s.store.get(row.upload_cid)).digest() == row.upload_hash
    assert s.contract.escrow(s.task).conserved


def test_drawn_uploads_are_opened_or_their_devices_barred(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = joined(scene, 3, create=AUDITED, audit_sec=5)
    honest, forger = s.device(0, outbox=tmp_path / "boxes" / "a.db"), s.device(1)
    silent = s.device(2)
    receipts = [upload(device) for device in (honest, forger, silent)]
    assert honest.outbox is not None
    kept = honest.outbox.kept(receipts[0].entry, "opening")
    seed, codes = split_opening(kept, CODEC)
    for number, receipt in enumerate(receipts):
        s.attest(1, receipt.hash, [A] * 3)
        with pytest.raises(IrreversibilityTimeout, match="the lots say whether it is audited"):
            receipt.wait(timeout_sec=0.1)
        assert s.row(number).upload_state is UploadState.ACCEPTED
    close(s)
    s.draw(1)
    assert s.row().upload_state is UploadState.DRAWN
    honest.attend()
    # The forger opens other codes than it encrypted; the SDK has nothing that does so.
    task = s.contract.task(s.task)
    forged = pack_opening(bytes(32), np.zeros(PARAMETERS, dtype=np.uint16), CODEC)
    found = s.contract.round(s.task, 1)
    assert found is not None and found.state is RoundState.AUDITING
    header = envelope.Header(
        kind=envelope.Kind.OPENING,
        codec=envelope.PayloadCodec.QUANTISED,
        task=s.task,
        sender=forger.account,
        version=1,
        parameters=PARAMETERS,
        clip_e6=CLIP_E6,
        examples=60,
    )
    cid = s.store.put(envelope.seal(header, forged, forger.readers(found)))
    forger.push(s.contract.openupload(s.task, forger.account, 1, cid))
    judge, key = next(iter(s.validators.items()))
    secret, verdicts = key.encryption_key(), []
    for number in (0, 1):
        row = s.row(number)
        payload = open_opening(
            s.store.get(row.opening_cid),
            task=task,
            version=1,
            member=row,
            account=judge,
            secret=secret,
        )
        assert isinstance(payload, bytes)
        ciphertexts = envelope.parse(s.store.get(row.upload_cid)).open(judge, secret)
        verdicts.append(check_opening(payload, ciphertexts, CODEC, s.paillier.public))
        if not number:
            assert payload == kept and set(
                envelope.parse(s.store.get(row.opening_cid)).readers
            ) == (set(s.validators))
    np.testing.assert_array_equal(verdicts[0], codes)
    assert isinstance(verdicts[1], Refusal)
    assert verdicts[1].code is VerdictCode.OPENING_MISMATCH
    ids = s.attest(1, receipts[0].hash, [A] * 3, is_audit=True)
    s.attest(1, receipts[1].hash, [verdicts[1].code] * 3, is_audit=True)
    paid = receipts[0].wait(timeout_sec=20)
    assert isinstance(paid, Paid) and paid.trx == ids[2]
    assert honest.outbox.kept(receipts[0].entry, "opening") == b""
    assert seed not in (tmp_path / "boxes" / "a.db").read_bytes()
    caught = receipts[1].wait(timeout_sec=20)
    assert isinstance(caught, Refused)
    assert (caught.reason, caught.barred_until) == (VerdictCode.OPENING_MISMATCH, 8)
    # Whoever does not answer is found out by anybody's push, and waits in vain for the next round.
    clock = s.contract.client.get_info
    s.wait_for(lambda: clock().head_time >= found.audit_deadline, "the audit's deadline")
    s.push(s.contract.push(s.task, s.owner, 1))
    missed = receipts[2].wait(timeout_sec=20)
    assert isinstance(missed, Refused) and missed.reason is VerdictCode.UNANSWERED
    assert missed.trx is None  # there was another push, the one that drew
    assert "not opened in time; barred up to round 8, trx=" in str(missed)
    s.push(s.contract.settle(s.task, s.owner, 1))
    s.issue(2)
    s.open(2, audit_sec=8)
    with pytest.raises(
        NotAllowedError, match=r"barred: .* \(its last upload: unanswered\) and may"
    ):
        silent.round(wait_sec=5)
    s.commit_lots(2, slice(2))
    with pytest.raises(RoundClosedError, match="waits for lots: 3 expected, 2 are there"):
        honest.round(wait_sec=0.5)
    s.commit_lots(2, slice(2, 4))
    assert honest.round(wait_sec=5).version == 2
    assert s.contract.escrow(s.task).conserved


@pytest.mark.parametrize("is_late", [False, True])
def test_an_upload_whose_hash_another_recorded_first_is_sealed_anew(
    scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """The copy is made before the upload is sent; or the node takes that, and it is in no block."""
    monkeypatch.setattr("device_sdk.device.UPLOAD_SEC", 2 if is_late else 30)
    s = joined(scene, 2, create=AUDITED, audit_sec=60)
    device, thief = s.device(0, outbox=tmp_path / "boxes" / "a.db"), s.device(1)
    send = device.chain.send

    def copy(body: dict[str, Any]) -> dict[str, Any]:
        monkeypatch.setattr(device.chain, "send", send)
        digest = bytes.fromhex(device.box.entries()[0].details["hash"])
        thief.push(
            s.contract.fedlearning(
                s.task, thief.account, 1, digest, s.store.put(b"its own"), 1, [500_000, 0]
            )
        )
        return {} if is_late else send(body)

    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        monkeypatch.setattr(device.chain, "send", copy)
        receipt = round_.upload(update)
        if is_late:
            assert str(receipt.rest(timeout_sec=40)).startswith("Abandoned(version=1, repeated_ha")
            receipt = round_.upload(update)
    old, new = device.box.entries()
    reason = old.reason if is_late else old.refusal
    assert reason.startswith(f"repeated_hash: expected a hash not used before, {thief.account} use")
    assert new.details["hash"] == receipt.hash.hex() != old.details["hash"]
    assert s.row(0).upload_hash == receipt.hash
    opened = device.box.kept(new, "opening")
    assert split_opening(opened, CODEC)[1].tolist() == CODEC.quantise(update.delta).tolist()
    if not is_late:  # it is kept as long as the old one may be in a block
        first = device.box.kept(old, "opening")
        assert opened[:32] != first[:32] and opened[32:] == first[32:]


def test_what_a_task_with_audits_says_and_does_not_take(scene: MakeScene, tmp_path: Path) -> None:
    s = joined(scene, 1, create={"lot_e6": 50_000, "bar_rounds": 10}, rule=Rule.GAIN, audit_sec=30)
    device = s.device()
    terms = device.terms()
    assert (terms.lot_e6, terms.bar_rounds, terms.audit_sec) == (50_000, 10, 30)
    assert terms.audit_share == pytest.approx(1 - 0.95**4)
    text = str(terms)
    assert "unless the owner and a validator collude, or it is audited" in text
    assert "each validator draws 5 % of the accepted uploads; with all 4 of them 18.5 %" in text
    assert (
        "does not answer within 30 s, or is caught, is not paid and may not upload for 10" in text
    )
    for choice in (Encryption(strict=True), Encryption(masks=tmp_path / "masks")):
        other = s.device(encryption=choice)
        with pytest.raises(ConfigError, match=r"encryption: no (strict|masks) expected: .* by lot"):
            other.round(wait_sec=1)
        with pytest.raises(ConfigError, match=r"encryption: no (strict|masks) expected: .* by lot"):
            other.join(classes=[0])
    with device.round(wait_sec=20) as round_:
        points = round_.validation

        def far(model: Any, _: Any) -> Any:
            return model.with_vector(model.vector + 5.0 * np.arange(PARAMETERS)), [1, 2, 3, 4]

        update = round_.train(far, examples=60)
        # As an audit measures them: the received model, and the update clipped and quantised.
        arrived = round_.model.with_vector(
            round_.model.vector + CODEC.dequantise(CODEC.quantise(update.delta))
        )
        doubt = round_.model.doubt_micro(*points)
        ending = (arrived.doubt_micro(*points), arrived.error_micro(*points))
        assert update.errors == (doubt, 2, *ending)
        round_.seal(update)
        first, second = round_._seal(update)[1], round_._seal(update)[1]
    assert first[:32] != second[:32] and first[32:] == second[32:]
    assert "opening" not in repr(update) and first[:32].hex() not in repr(vars(round_))
