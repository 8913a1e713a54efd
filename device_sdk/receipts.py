"""What became of an upload, told only when it cannot be undone any more."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradledger.chain.client import ChainInfo
from gradledger.chain.contract import Member, UploadState, VerdictCode
from gradledger.chain.names import Asset, Symbol
from gradledger.chain.transaction import Action
from gradledger.errors import (
    AlreadyDoneError,
    ChainError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeError,
    error_from_check,
)
from gradledger.outbox import Delivery, Entry, State

if TYPE_CHECKING:
    from device_sdk.device import Device
    from gradledger.receipt import SettledReceipt

__all__ = ["REASONS", "Abandoned", "Paid", "Receipt", "Refused"]

POLL_SEC = 0.2
RESEND_SEC = 3.0

REASONS = {
    VerdictCode.UNAVAILABLE: "the validators could not fetch the bytes in time",
    VerdictCode.HASH_MISMATCH: "the bytes do not have the recorded hash",
    VerdictCode.MALFORMED: "the envelope or its payload has a wrong length or form",
    VerdictCode.HEADER_MISMATCH: "the header disagrees with the task or the round",
    VerdictCode.WRONG_KEY: "it was made under another Paillier key",
    VerdictCode.OUT_OF_RANGE: "a ciphertext or code is outside its range",
    VerdictCode.DUPLICATE: "its payload is another device's",
    VerdictCode.ERROR_MISMATCH: "the measured error is not the reported one",
    VerdictCode.SILENCE: "nobody judged it in time, and the task refunds silence",
    VerdictCode.UNDELIVERED: "nobody pushed the payment before the last deadline",
}

_BY_PUSH = (VerdictCode.SILENCE, VerdictCode.UNDELIVERED)


@dataclass(frozen=True, repr=False)
class Paid:
    """The upload was accepted and paid, irreversibly.

    Attributes
    ----------
    amount : Asset
    trx : str or None
        The transaction that paid: the verdict that completed the quorum, or the push after a
        silence. None when several pushes came at once and none of them is known to be the one.
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
    trx, block : str or None, int
        As for `Paid`.
    """

    reason: VerdictCode
    trx: str | None
    block: int

    def __repr__(self) -> str:
        words = f"{self.reason.name.lower()}: {REASONS[self.reason]}"
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


class Receipt:
    """A recorded upload. Made by `Round.upload` and `Device.resume`.

    Attributes
    ----------
    version : int
    hash : bytes
        SHA-256 of the envelope, as on chain.
    amount : Asset
        What it earns if it is accepted.
    trx : str or None
        The transaction that recorded it; None when only the chain's tables told so.
    """

    def __init__(
        self,
        device: Device,
        version: int,
        digest: bytes,
        amount: Asset,
        validators: int,
        action: Action,
        delivery: Delivery | None = None,
    ) -> None:
        self.version = version
        self.hash = digest
        self.amount = amount
        self.trx: str | None = None
        self._device = device
        self._quorum = validators * 2 // 3 + 1
        self._action = action
        self._delivery = delivery  # of the outbox, where there is one
        self._sent_at = 0.0
        self._first = 0  # the first irreversible block that can hold the upload
        self._following = 0  # the next one to look at
        self._last_id: str | None = None  # of the one before
        self._pending_at = 0  # a block at which the upload was still undecided
        self._said: dict[str, int] = {}  # validator -> its verdict
        self._pushes: list[tuple[str, int]] = []
        self._quorum_at: tuple[VerdictCode, str, int] | None = None
        self._decided_at = 0  # a block at which a push was seen to have decided it

    @classmethod
    def resumed(cls, device: Device, delivery: Delivery) -> Receipt:
        """Return the receipt of an upload that was in the outbox and is recorded."""
        details = delivery.entry.details
        receipt = cls(
            device,
            details["version"],
            bytes.fromhex(details["hash"]),
            Asset(details["amount"], Symbol.parse(details["symbol"])),
            details["validators"],
            delivery.entry.actions[0],
            delivery,
        )
        receipt._note_sent()
        return receipt

    def __repr__(self) -> str:
        return f"Receipt(version={self.version}, hash={self.hash.hex()}, amount={self.amount})"

    def send(self) -> None:
        """Record the upload, unless the chain has it already. Raises ChainError."""
        if self._delivery is not None:
            self._delivery.send()
            self._note_sent()
            return
        device = self._device
        if not self._first:
            self._first = self._following = device.chain.get_info().irreversible_block + 1
        try:
            result = device.push(self._action)
            self.trx = result.trx_id
        except ChainError:
            row = device.contract.member(device.task, device.account)
            if row is None or not self._is_ours(row):
                raise
        self._sent_at = time.monotonic()

    def _note_sent(self) -> None:
        assert self._delivery is not None
        signed = self._delivery.entry.signed
        if signed is not None:
            self.trx = signed.trx_id
            if not self._first:
                self._first = self._following = signed.first_block

    def wait(self, timeout_sec: float = 60.0) -> Paid | Refused:
        """Wait until the validators' decision is irreversible.

        Should the chain have lost the upload meanwhile, it is sent again; with an outbox it is
        struck off there once it is irreversible.

        Parameters
        ----------
        timeout_sec : float

        Returns
        -------
        Paid or Refused

        Raises
        ------
        IrreversibilityTimeout
            Not known within `timeout_sec`; wait again.
        ContractError, PayerRefusedError
            The chain lost the upload, and takes it no more, or the payer does not pay for it again.
        """
        end = time.monotonic() + timeout_sec
        while True:
            state = "the node does not answer"
            try:
                outcome, state = self._look(end)
                if outcome is not None and (self._delivery is None or self._delivery.step()):
                    return outcome
            except NodeError:
                if time.monotonic() >= end:
                    raise
            if time.monotonic() >= end:
                raise IrreversibilityTimeout(
                    f"round {self.version}: no irreversible decision on the upload of "
                    f"{self._device.account} within {timeout_sec:g} s: {state}"
                )
            time.sleep(min(POLL_SEC, max(0.0, end - time.monotonic())))

    def to_json(self, *, timeout_sec: float = 60.0) -> str:
        """Return the receipt as a document that anybody can check without this device.

        It has the path from the upload to the root which the settled round has on chain:
        docs/protocol.md, section 9. ``gradledger receipt check`` reads it.

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

    def _look(self, end: float) -> tuple[Paid | Refused | None, str]:
        """Look once at the tables and at the new irreversible blocks; say how it stands."""
        device = self._device
        if self._delivery is not None and self._delivery.step():
            entry = self._delivery.entry
            if entry.state is State.ABANDONED:
                raise error_from_check(entry.reason)
        before = device.chain.get_confirmed()
        row = device.contract.member(device.task, device.account)
        ours = row is not None and self._is_ours(row)
        if ours and row is not None and row.upload_state is UploadState.PENDING:
            self._pending_at = before.head_block
            said = sum(map(bool, row.verdicts))
            state = f"{said} verdicts so far, {self._quorum} equal ones decide"
        elif ours and row is not None and row.upload_reason in _BY_PUSH:
            state = "decided by a push, not yet final"
        else:
            state = "decided, not yet irreversible" if ours else "it is not on chain yet"
        if not self._scan(before, end):
            return None, state
        if self._quorum_at is not None:
            code, trx, block = self._quorum_at
            pushed = any(at <= block for _, at in self._pushes)
            if not pushed or (ours and row is not None and row.upload_reason is code):
                paid = code is VerdictCode.ACCEPT
                return Paid(self.amount, trx, block) if paid else Refused(code, trx, block), ""
        if row is None or row.upload_version > self.version:
            return None, "the chain's row holds a later upload by now"
        if not ours:
            if self._delivery is None and time.monotonic() - self._sent_at >= RESEND_SEC:
                self.send()
        elif row.upload_reason in _BY_PUSH:
            return self._pushed(row, before.irreversible_block), state
        return None, state

    def _pushed(self, row: Member, irreversible: int) -> Paid | Refused | None:
        """Return the outcome of a decision by `push`, once such a push is final."""
        if not self._decided_at:
            # A producing node's tables are one block ahead of its head.
            self._decided_at = self._device.chain.get_info().head_block + 1
        if irreversible < self._decided_at:
            return None
        pushes = [entry for entry in self._pushes if entry[1] > self._pending_at]
        pushes = [entry for entry in pushes if entry[1] <= self._decided_at] or pushes
        if not pushes:
            return None
        trx = pushes[0][0] if len(pushes) == 1 else None
        block = pushes[-1][1]
        if row.upload_state is UploadState.PAID:
            return Paid(self.amount, trx, block)
        return Refused(row.upload_reason, trx, block)

    def _scan(self, info: ChainInfo, end: float) -> bool:
        """Note verdicts on this upload, and pushes of its round, in the new irreversible blocks.

        Return whether all of them were read. Another node may answer with another block of the same
        number: so each must follow from the one before, and the last be the one that `info` names.
        """
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
                    raise NodeAnswerError(f"block {block['id']} is not on the irreversible chain")
                for entry in block["transactions"]:
                    trx = entry["trx"]
                    if entry["status"] == "executed" and isinstance(trx, dict):
                        for action in trx["transaction"]["actions"]:
                            self._note(action, trx["id"], self._following)
            except (KeyError, TypeError, ValueError) as error:
                raise NodeAnswerError(f"expected block {self._following}, got {error!r}") from None
            self._last_id = block["id"]
            self._following += 1
        return True

    def _forget(self) -> None:
        """Read the blocks again, from the first that can hold the upload."""
        self._following, self._last_id, self._quorum_at = self._first, None, None
        self._said.clear()
        self._pushes.clear()

    def _note(self, action: dict[str, Any], trx: str, block: int) -> None:
        contract = self._device.contract
        if action["account"] != contract.account or action["name"] not in ("attest", "push"):
            return
        raw = bytes.fromhex(action.get("hex_data", action["data"]))
        data = contract.abi.unpack(contract.abi.actions[action["name"]], raw)
        if (data["task"], data["version"]) != (self._device.task, self.version):
            return
        if action["name"] == "push":
            self._pushes.append((trx, block))
            return
        for verdict in data["verdicts"]:
            if bytes.fromhex(verdict["hash"]) == self.hash:
                self._said[data["validator"]] = verdict["code"]
                equal = sum(code == verdict["code"] for code in self._said.values())
                if equal >= self._quorum and self._quorum_at is None:
                    self._quorum_at = (VerdictCode(verdict["code"]), trx, block)

    def _is_ours(self, row: Member) -> bool:
        return (row.upload_version, row.upload_hash) == (self.version, self.hash)
