"""What an upload still asks of its device, and what became of it, told only when that is final."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gradledger import envelope
from gradledger.chain.client import ChainInfo
from gradledger.chain.contract import Member, RoundState, UploadState, VerdictCode
from gradledger.chain.contract import Round as RoundRow
from gradledger.chain.names import Asset, Symbol
from gradledger.cid import cid_v0
from gradledger.errors import (
    AlreadyDoneError,
    ContractError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeError,
    StoreError,
    error_from_check,
)
from gradledger.outbox import Delivery, Entry, State

if TYPE_CHECKING:
    from device_sdk.device import Device
    from gradledger.receipt import SettledReceipt

__all__ = ["ENVELOPE", "OPENING", "REASONS", "Abandoned", "Paid", "Receipt", "Refused"]

POLL_SEC = 0.2

# What the outbox keeps with an upload, under these names, until the upload is decided.
ENVELOPE = "envelope"  # not on IPFS before its CID is revealed
OPENING = "opening"  # the seed and the codes, for an audit

REASONS = {
    VerdictCode.UNAVAILABLE: "the validators could not fetch the bytes in time",
    VerdictCode.HASH_MISMATCH: "the bytes do not have the recorded hash",
    VerdictCode.MALFORMED: "the envelope or its payload has a wrong length or form",
    VerdictCode.HEADER_MISMATCH: "the header disagrees with the task or the round",
    VerdictCode.WRONG_KEY: "it was made under another Paillier key",
    VerdictCode.OUT_OF_RANGE: "a ciphertext or code is outside its range",
    VerdictCode.DUPLICATE: "its payload is another device's",
    VerdictCode.ERROR_MISMATCH: "a measured error is not the reported one",
    VerdictCode.REPLAYED_SERIES: "the errors are those of an earlier upload of this device",
    VerdictCode.COPIED_SERIES: "the errors are those of another device's upload",
    VerdictCode.CLASS_CLAIM: "the update knows nothing of a class that the device declared",
    VerdictCode.NO_UPDATE: "it changes nothing in the model",
    VerdictCode.NORM: "it is longer than the round allows",
    VerdictCode.NO_GAIN: "the model's measured doubt did not fall",
    VerdictCode.OPENING_MISMATCH: "what was opened for the audit is not what was uploaded",
    VerdictCode.UNREVEALED: "its CID was not revealed in time",
    VerdictCode.SILENCE: "nobody judged it in time, and the task refunds silence",
    VerdictCode.UNDELIVERED: "nobody pushed the payment before the last deadline",
    VerdictCode.UNANSWERED: "it was drawn for an audit and not opened in time",
}

_BY_PUSH = (VerdictCode.SILENCE, VerdictCode.UNDELIVERED, VerdictCode.UNANSWERED)
_FINAL = (UploadState.PAID, UploadState.REFUSED)
_DECIDED = "the upload is decided"


@dataclass(frozen=True, repr=False)
class Paid:
    """The upload was accepted and paid, irreversibly.

    Attributes
    ----------
    amount : Asset
    trx : str or None
        The transaction that paid: the verdict that completed the quorum, or a push, after a silence
        or when the lots spared the upload. None when there were several pushes and none of them is
        known to be the one.
    block : int
        It is in this block, or not after it when `trx` is None.
    """

    amount: Asset
    trx: str | None
    block: int

    def __repr__(self) -> str:
        return f"Paid({self.amount}, trx={self.trx}, block={self.block})"


@dataclass(frozen=True, repr=False)
class Refused:
    """The upload was refused, irreversibly.

    Attributes
    ----------
    reason : VerdictCode
        As recorded: of the validators' reasons the most frequent one.
    trx, block : str or None, int
        As for `Paid`.
    barred_until : int
        The last round in which this device may not upload, since it failed an audit; 0: none.
    """

    reason: VerdictCode
    trx: str | None
    block: int
    barred_until: int = 0

    def __repr__(self) -> str:
        words = f"{self.reason.name.lower()}: {REASONS[self.reason]}"
        if self.barred_until:
            words += f"; barred up to round {self.barred_until}"
        return f"Refused({words}, trx={self.trx}, block={self.block})"


@dataclass(frozen=True, repr=False)
class Abandoned:
    """An upload that was in the outbox, is not on chain and never will be.

    Attributes
    ----------
    version : int
    hash : bytes
        SHA-256 of its envelope.
    reason : str
        Why the chain did not take it, for instance that the round was closed.
    """

    version: int
    hash: bytes
    reason: str

    @classmethod
    def of(cls, entry: Entry) -> Abandoned:
        """Return what an abandoned entry of a device's outbox says."""
        return cls(entry.details["version"], bytes.fromhex(entry.details["hash"]), entry.reason)

    def __repr__(self) -> str:
        return f"Abandoned(version={self.version}, {self.reason})"


@dataclass
class _Tally:
    """Verdicts on an upload, before an audit or in it, counted as the contract counts them."""

    quorum: int
    said: dict[str, int] = field(default_factory=dict)  # validator -> its verdict
    decided: tuple[VerdictCode, str, int] | None = None  # with the transaction and its block

    def add(self, validator: str, code: int, trx: str, block: int) -> None:
        """Count a verdict; note which one completes a quorum."""
        if self.decided is not None:
            return
        self.said[validator] = code
        votes = Counter(self.said.values())
        accepted = votes.pop(int(VerdictCode.ACCEPT), 0)
        if accepted >= self.quorum:
            self.decided = (VerdictCode.ACCEPT, trx, block)
        elif sum(votes.values()) >= self.quorum:
            reason = min(votes, key=lambda code: (-votes[code], code))
            self.decided = (VerdictCode(reason), trx, block)


class Receipt:
    """A recorded upload. Made by `Round.upload`, `Device.resume` and `Device.attend`.

    Attributes
    ----------
    version : int
    hash : bytes
        SHA-256 of the envelope, as on chain.
    amount : Asset
        What it earns if it is accepted.
    outcome : Paid or Refused or None
        None as long as it is not known.
    """

    def __init__(self, device: Device, entry: Entry) -> None:
        details = entry.details
        self.version: int = details["version"]
        self.hash = bytes.fromhex(details["hash"])
        self.amount = Asset(details["amount"], Symbol.parse(details["symbol"]))
        self.outcome: Paid | Refused | None = None
        self._device = device
        self._delivery = device.delivery(entry)
        self._steps: dict[int, Delivery] = {}  # entries of the outbox: the reveal, the opening
        self._is_due = False  # something is to be done, or not yet irreversible
        self._quorum: int = details["validators"] * 2 // 3 + 1
        self._has_lots: bool = details.get("lots", False)
        self._lock = threading.RLock()
        self._seen: Member | None = None  # the row, when it last held this upload
        self._awaiting: Member | None = None  # the row, while verdicts are what is missing
        self._undecided_at = 0  # a block at which the upload was still undecided
        self._decided_at = 0  # a block at which the row was seen to say what became of it
        self._left_at = 0  # a block at which the row held another upload, or was gone
        self._first = 0  # the first irreversible block that can hold the upload
        self._following = 0  # the next one to look at
        self._last_id: str | None = None  # of the one before
        self._forget()

    def __repr__(self) -> str:
        return f"Receipt(version={self.version}, hash={self.hash.hex()}, amount={self.amount})"

    @property
    def trx(self) -> str | None:
        """The transaction that records it; None before the first one is signed."""
        signed = self._delivery.entry.signed
        return None if signed is None else signed.trx_id

    @property
    def entry(self) -> Entry:
        """The upload in the device's outbox."""
        return self._delivery.entry

    def send(self) -> None:
        """Record the upload, unless the chain has it already. Raises as `Round.upload`."""
        self._delivery.send()

    def give_up(self) -> None:
        """Abandon a refused upload that can never be recorded. Raises NodeError, OutboxError."""
        self._delivery.give_up()

    def wait(self, timeout_sec: float = 60.0) -> Paid | Refused:
        """Do what the chain asks for until the decision on the upload is irreversible.

        Should the chain have lost the upload meanwhile, it is sent again. In a round that reveals
        CIDs later, the update is put on IPFS and its CID revealed once the round is closed; if the
        upload is drawn for an audit, it is opened to the validators.

        Parameters
        ----------
        timeout_sec : float

        Returns
        -------
        Paid or Refused

        Raises
        ------
        IrreversibilityTimeout
            Not known within `timeout_sec`; the message says what is missing. Wait again.
        ContractError, PayerRefusedError
            The chain takes the upload no more, for certain.
        NodeError, StoreError
            Node or IPFS did not answer up to the end.
        """
        end = time.monotonic() + timeout_sec
        while True:
            state = self._try(end, follow=True)
            if self.outcome is not None:
                return self.outcome
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(
                    f"round {self.version}: no irreversible decision on the upload of "
                    f"{self._device.account} within {timeout_sec:g} s: {state}{self._so_far()}"
                )
            time.sleep(min(POLL_SEC, max(0.0, end - time.monotonic())))

    def rest(self, timeout_sec: float = 60.0) -> Receipt | Abandoned:
        """Wait until the upload is recorded, and what is due now is done, irreversibly.

        Raises
        ------
        IrreversibilityTimeout
            It is not within `timeout_sec`.
        """
        end = time.monotonic() + timeout_sec
        while True:
            try:
                state = self._try(end, follow=False)
            except (NodeError, StoreError) as error:
                state = str(error)
            except ContractError:
                if self.entry.state is not State.ABANDONED:
                    raise
                return Abandoned.of(self.entry)
            else:
                if self.entry.state is State.DONE and not self._is_due:
                    return self
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(
                    f"{self.entry.name} is not irreversible after {timeout_sec:g} s: {state}"
                )
            time.sleep(min(POLL_SEC, max(0.0, end - time.monotonic())))

    def _try(self, end: float, *, follow: bool) -> str:
        """`look`; what node or IPFS do not answer is tried again until the end."""
        try:
            return self.look(end, follow=follow)
        except (NodeError, StoreError):
            if time.monotonic() >= end:
                raise
            return "node or IPFS do not answer"

    def to_json(self, *, timeout_sec: float = 60.0) -> str:
        """Return the receipt as a document that anybody can check without this device.

        It has the path from the upload to the root which the settled round has on chain:
        docs/protocol.md, section 10. ``gradledger receipt check`` reads it.

        Parameters
        ----------
        timeout_sec : float
            How long to wait until the round is settled, irreversibly.

        Raises
        ------
        IrreversibilityTimeout
            It is not settled within `timeout_sec`: the owner does that at the end of the round.
        AlreadyDoneError
            The round has another upload of this device.
        NodeError
            The node does not answer, or answers nonsense.
        """
        return self._proof(timeout_sec).to_json()

    def save(self, path: str | os.PathLike[str], *, timeout_sec: float = 60.0) -> None:
        """Write `to_json` to a file, whole or not at all. Raises as `to_json`, and OSError."""
        self._proof(timeout_sec).save(path)

    def _proof(self, timeout_sec: float) -> SettledReceipt:
        from gradledger.receipt import prove  # most uploads are never proven to anybody

        device = self._device
        proof = prove(
            device.contract, device.task, self.version, device.account, timeout_sec=timeout_sec
        )
        if proof.hash != self.hash:
            raise AlreadyDoneError(
                "second_upload", f"round {self.version} has another upload of {device.account}"
            )
        return proof

    # ---- one look -----------------------------------------------------------------------------

    def look(self, end: float, *, follow: bool) -> str:
        """Do what is due, without waiting; say how the upload stands.

        Parameters
        ----------
        end : float
            Of `time.monotonic`: when to leave off reading blocks.
        follow : bool
            Read the blocks as they come, and not only once the tables say that it is decided.

        Raises
        ------
        ContractError
            The upload was abandoned; the message is the reason.
        NodeError, StoreError, OutboxError
            As for `wait`.
        """
        with self._lock:
            if self.outcome is not None:
                return ""
            recorded = self._delivery.step()
            if self.entry.state is State.ABANDONED:
                raise error_from_check(self.entry.reason)
            device = self._device
            before = device.chain.get_confirmed()
            row = device.contract.member(device.task, device.account)
            ours = row if row is not None and self._is_ours(row) else None
            self._note(before, row, ours)
            fault, state, self._awaiting = None, "it is not on chain yet", None
            try:
                asked = self._answer(ours, before)
            except (NodeError, StoreError) as error:
                fault, asked = error, ""
            if ours is not None:
                state = asked or self._standing(ours)
            elif row is None or row.upload_version > self.version:
                state = "the chain's row holds a later upload by now"
            if follow or self._decided_at or self._left_at:
                scanned = self._scan(before, end)
                if scanned and recorded:
                    self._conclude(before)
            if fault is not None and self.outcome is None:
                raise fault
            return state + "".join(
                f"; refused so far: {each.entry.refusal}"
                for each in (self._delivery, *self._steps.values())
                if each.entry.refusal and each.entry.state is State.PENDING
            )

    def _note(self, before: ChainInfo, row: Member | None, ours: Member | None) -> None:
        """Note which blocks the row's word depends on.

        A producing node's tables are one block ahead of its head.
        """
        if ours is None:
            is_later = row is None or row.upload_version > self.version
            if not is_later:
                self._decided_at = self._left_at = 0
            elif not self._left_at:
                self._left_at = self._device.chain.get_info().head_block + 1
            return
        self._seen, self._left_at = ours, 0
        if ours.upload_state not in _FINAL:
            self._undecided_at, self._decided_at = before.head_block, 0
        elif not self._decided_at:
            self._decided_at = self._device.chain.get_info().head_block + 1

    def _standing(self, row: Member) -> str:
        """Say how an upload stands, by its row."""
        verdicts = f"{self._quorum} verdicts that agree decide"
        if row.upload_state is UploadState.PENDING:
            self._awaiting = row
            return verdicts
        if row.upload_state is UploadState.ACCEPTED:
            return "accepted; the lots say whether it is audited"
        if row.upload_state is UploadState.DRAWN:
            self._awaiting = row
            return f"opened for the audit, {verdicts}"
        if row.upload_reason in _BY_PUSH:
            return "decided by a push, not yet final"
        return "decided, not yet irreversible"

    def _so_far(self) -> str:
        """Say how many verdicts there are where some are awaited: asked for once, at the end."""
        row = self._awaiting
        if row is None:
            return ""
        try:
            ballot = self._device.contract.ballot(self._device.task, row.upload_slot)
        except NodeError:
            return ""
        # a fork, or the next round, may have given the slot to another upload since the last look
        if ballot is None or ballot.hash != self.hash:
            return ""
        return f", {sum(map(bool, ballot.verdicts))} so far"

    # ---- what the chain asks for ----------------------------------------------------------------

    def _answer(self, row: Member | None, info: ChainInfo) -> str:
        """Reveal the CID, or open the upload, when it is time; say what is missing."""
        box = self._device.box
        self._is_due = False
        pending = {
            entry.details["step"]: entry
            for entry in box.entries(State.PENDING)
            if entry.details.get("of") == self.entry.number
        }
        for entry in pending.values():
            if entry.number not in self._steps:
                self._steps[entry.number] = self._device.delivery(entry)
            self._is_due |= not self._steps[entry.number].step()
        self._steps = {
            number: each
            for number, each in self._steps.items()
            if each.entry.state is State.PENDING
        }
        kept = "" if row is None else _asked(row)
        if not kept or row is None:
            return ""
        data = box.kept(self.entry, kept)
        if not data:
            return ""
        found = self._device.contract.round(self._device.task, self.version)
        words = "its CID is revealed" if kept == ENVELOPE else "it was drawn for an audit: opened"
        phase = RoundState.VERIFYING if kept == ENVELOPE else RoundState.AUDITING
        if found is None or found.state is not phase:
            return f"{words} once the round is {phase.name.lower()}"
        deadline = found.reveal_deadline if kept == ENVELOPE else found.audit_deadline
        if info.head_time >= deadline:
            return f"{words} before {deadline}, the time is {info.head_time}: too late"
        if kept not in pending:
            entry = self._write_down(kept, data, found, deadline)
            self._is_due = True
            self._steps[entry.number] = self._device.delivery(entry)
            self._steps[entry.number].step()
        return f"{words} now"

    def _write_down(self, kept: str, data: bytes, found: RoundRow, deadline: int) -> Entry:
        """Put the next step into the outbox."""
        device, blob = self._device, b""
        task, account, version = device.task, device.account, self.version
        if kept == ENVELOPE:
            what, cid = "CID", cid_v0(data)
            action = device.contract.reveal(task, account, version, cid)
        else:
            blob = self._seal_opening(data, found)
            what, cid = "opening", cid_v0(blob)
            action = device.contract.openupload(task, account, version, cid)
        return device.box.add(
            f"the {what} of the upload of {account} for round {version}",
            [action],
            give_up_at=deadline,
            blob=blob,
            details={"of": self.entry.number, "step": kept, "version": version, "cid": cid},
        )

    def _seal_opening(self, payload: bytes, found: RoundRow) -> bytes:
        device = self._device
        terms = device.contract.task(device.task).terms
        header = envelope.Header(
            kind=envelope.Kind.OPENING,
            codec=envelope.PayloadCodec.QUANTISED,
            task=device.task,
            sender=device.account,
            version=self.version,
            parameters=terms.parameters,
            clip_e6=terms.clip_e6,
            examples=self.entry.details["examples"],
        )
        return envelope.seal(header, payload, device.readers(found))

    def _finish(self, outcome: Paid | Refused | None) -> None:
        """The upload is over: nothing of it is needed any more."""
        box = self._device.box
        for delivery in self._steps.values():
            if not delivery.step():
                box.abandon(delivery.entry, _DECIDED)
        self._steps.clear()
        box.release(self.entry)
        self._is_due = False
        self.outcome = outcome

    # ---- what became of it ----------------------------------------------------------------------

    def _conclude(self, before: ChainInfo) -> None:
        """Say what became of the upload, if the irreversible blocks and the row tell.

        Verdicts tell by themselves; what a push did only the row knows.
        """
        row = self._seen if self._decided_at else None
        decided = self._judged.decided
        if self._has_lots and decided is not None and decided[0] is VerdictCode.ACCEPT:
            decided = self._audited.decided
        if decided is not None:
            code, trx, block = decided
            pushed = any(at <= block for _, at in self._pushes)
            if not pushed or (row is not None and row.upload_reason is code):
                is_paid = code is VerdictCode.ACCEPT
                barred = _barred_until(self._seen, self.version)
                self._finish(
                    Paid(self.amount, trx, block) if is_paid else Refused(code, trx, block, barred)
                )
                return
        is_final = before.irreversible_block >= self._decided_at
        if row is not None and is_final:
            by_lots = self._has_lots and row.upload_reason is VerdictCode.ACCEPT
            if by_lots or row.upload_reason in _BY_PUSH:
                self._conclude_push(row)
        if self.outcome is None and self._left_at and before.irreversible_block >= self._left_at:
            self._finish(None)  # a later round has begun: this one asks for nothing any more

    def _conclude_push(self, row: Member) -> None:
        """A push decided, and the row that says so is final."""
        pushes = [entry for entry in self._pushes if entry[1] > self._undecided_at]
        pushes = [entry for entry in pushes if entry[1] <= self._decided_at] or pushes
        if not pushes:
            return
        trx = pushes[0][0] if len(pushes) == 1 else None
        block = pushes[-1][1]
        if row.upload_state is UploadState.PAID:
            self._finish(Paid(self.amount, trx, block))
        else:
            barred = _barred_until(row, self.version)
            self._finish(Refused(row.upload_reason, trx, block, barred))

    def _scan(self, info: ChainInfo, end: float) -> bool:
        """Note verdicts on this upload, and pushes of its round, in the new irreversible blocks.

        Return whether all of them were read. Another node may answer with another block of the same
        number: so each must follow from the one before, and the last be the one that `info` names.
        """
        signed = self.entry.signed
        if not self._following:
            if signed is None:
                return False
            self._first = self._following = signed.first_block
        while self._following <= info.irreversible_block:
            if time.monotonic() >= end:
                return False
            query = {"block_num_or_id": str(self._following)}
            block = self._device.chain.call("/v1/chain/get_block", query)
            try:
                last = self._following == info.irreversible_block
                if self._last_id not in (None, block["previous"]) or (
                    last and block["id"] != info.irreversible_id
                ):
                    self._forget()
                    self._following = self._first
                    raise NodeAnswerError(f"block {block['id']} is not on the irreversible chain")
                for entry in block["transactions"]:
                    trx = entry["trx"]
                    if entry["status"] == "executed" and isinstance(trx, dict):
                        for action in trx["transaction"]["actions"]:
                            self._note_action(action, trx["id"], self._following)
            except (KeyError, TypeError, ValueError) as error:
                raise NodeAnswerError(f"expected block {self._following}, got {error!r}") from None
            self._last_id = block["id"]
            self._following += 1
        return True

    def _forget(self) -> None:
        """Know nothing of the blocks yet."""
        self._last_id = None
        self._judged, self._audited = _Tally(self._quorum), _Tally(self._quorum)
        self._pushes: list[tuple[str, int]] = []

    def _note_action(self, action: dict[str, Any], trx: str, block: int) -> None:
        contract, name = self._device.contract, action["name"]
        tallies = {"attest": self._judged, "attestaudit": self._audited}
        if action["account"] != contract.account or (name != "push" and name not in tallies):
            return
        raw = bytes.fromhex(action.get("hex_data", action["data"]))
        data = contract.abi.unpack(contract.abi.actions[name], raw)
        if (data["task"], data["version"]) != (self._device.task, self.version):
            return
        if name == "push":
            self._pushes.append((trx, block))
            return
        for verdict in data["verdicts"]:
            # The contract took it, so the hash is that of the slot; no two uploads share one.
            if bytes.fromhex(verdict["hash"]) == self.hash:
                tallies[name].add(data["validator"], verdict["code"], trx, block)

    def _is_ours(self, row: Member) -> bool:
        return (row.upload_version, row.upload_hash) == (self.version, self.hash)


def _asked(row: Member) -> str:
    """Return what of the outbox the chain asks for, by an upload's row; "" for nothing."""
    if row.upload_state is UploadState.PENDING and not row.upload_cid:
        return ENVELOPE
    if row.upload_state is UploadState.DRAWN and not row.opening_cid:
        return OPENING
    return ""


def _barred_until(row: Member | None, version: int) -> int:
    """Return until when a device is barred for its upload of this round; 0: it is not."""
    return row.barred_until if row is not None and row.barred_until > version else 0
