"""A receipt: one upload of a settled round, and the path from it to the root that is on chain.

The file is checked without any network (docs/protocol.md, section 10). What it cannot show by
itself, that the chain has its root, `verify_on_chain` asks a node.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, Round, RoundState, UploadState, VerdictCode
from gradledger.chain.names import Asset, check_account, int_to_name, name_to_int
from gradledger.cid import cid_to_digest, digest_to_cid
from gradledger.errors import ConfigError, GradledgerError, IrreversibilityTimeout
from gradledger.merkle import (
    RECORD_BYTES,
    merkle_path,
    merkle_root,
    path_length,
    round_records,
    verify_path,
)

FORMAT = 1
FILE_BYTES_MAX = 65_536
UPLOADS_MAX = 2**16 - 1  # of a round: devices_max is a uint16
PATH_MAX = 16
POLL_SEC = 0.2
TIMEOUT_SEC = 60.0


class ReceiptError(GradledgerError):
    """The receipt does not hold. `field` is the one that shows it."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.field = field


@dataclass(frozen=True, kw_only=True)
class SettledReceipt:
    """One upload of a settled round. Made by `prove` or `parse_receipt`, which check it.

    Attributes
    ----------
    chain_id, contract, task : str
    version : int
        Of the round.
    device : str
    hash : bytes
        SHA-256 of the envelope.
    cid : str
        "": it was never revealed.
    cost : int
        Examples.
    error_last : int
        1e-6 units.
    state : UploadState
        `PAID` or `REFUSED`.
    reason : VerdictCode
    paid : Asset
    record : bytes, length 102
        The leaf that the round's tree has of it; the fields from `task` on, once more.
    index, count : int
        The leaf's place, and the number of leaves.
    path : tuple of bytes
        Hashes from the leaf to the root, the lowest first.
    root : bytes
    """

    chain_id: str
    contract: str
    task: str
    version: int
    device: str
    hash: bytes
    cid: str
    cost: int
    error_last: int
    state: UploadState
    reason: VerdictCode
    paid: Asset
    record: bytes
    index: int
    count: int
    path: tuple[bytes, ...]
    root: bytes

    def __str__(self) -> str:
        what = f"paid {self.paid}" if self.state is UploadState.PAID else "not paid"
        return (
            f"{self.device}, round {self.version} of task {self.task}: {what} "
            f"({self.reason.name.lower()}) for {self.cost} examples\n"
            f"  upload      {self.hash.hex()}, {self.cid or 'never revealed'}\n"
            f"  place       {self.index + 1} of {self.count} under the root {self.root.hex()}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the document of the file."""
        document: dict[str, Any] = {"format": FORMAT}
        for field in fields(self):
            document[field.name] = _TO_JSON.get(field.name, lambda value: value)(
                getattr(self, field.name)
            )
        return document

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all."""
        target = Path(path)
        part = target.with_name(target.name + ".part")
        part.write_text(self.to_json(), encoding="ascii")
        part.replace(target)

    def verify(self) -> None:
        """Check that fields, record, path and root belong together. Raises ReceiptError.

        The root binds `count` only as far as the path's length shows it; the chain's row says it.
        """
        if len(self.record) != RECORD_BYTES:
            raise ReceiptError("record", f"expected {RECORD_BYTES} bytes, got {len(self.record)}")
        for name, value in _read_record(self.record).items():
            stated = getattr(self, name)
            if name == "paid":
                stated = stated.amount
            if stated != value:
                raise ReceiptError(name, f"it says {stated}, the record has {value}")
        if self.state not in (UploadState.PAID, UploadState.REFUSED):
            raise ReceiptError("state", "expected paid or refused, as in a settled round")
        if not 1 <= self.count <= UPLOADS_MAX:
            raise ReceiptError("count", f"expected 1 to {UPLOADS_MAX}, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ReceiptError("index", f"expected 0 to {self.count - 1}, got {self.index}")
        length = path_length(self.index, self.count)
        if len(self.path) != length:
            raise ReceiptError("path", f"expected {length} hashes, got {len(self.path)}")
        if not verify_path(self.record, self.index, self.count, self.path, self.root):
            raise ReceiptError(
                "root",
                f"record, index, count and path do not lead to {self.root.hex()}: one of these "
                "five was altered",
            )


_TO_JSON: dict[str, Callable[[Any], Any]] = {
    "hash": bytes.hex,
    "record": bytes.hex,
    "root": bytes.hex,
    "path": lambda path: [one.hex() for one in path],
    "state": lambda state: state.name.lower(),
    "reason": lambda reason: reason.name.lower(),
    "paid": str,
}


def _read_record(record: bytes) -> dict[str, Any]:
    """Return what the 102 bytes say: docs/protocol.md, section 5."""
    number = int.from_bytes
    try:
        return {
            "task": int_to_name(number(record[:8], "little")),
            "version": number(record[8:12], "little"),
            "device": int_to_name(number(record[12:20], "little")),
            "hash": record[20:52],
            "cid": digest_to_cid(record[52:84]) if any(record[52:84]) else "",
            "cost": number(record[84:88], "little"),
            "error_last": number(record[88:92], "little"),
            "state": UploadState(record[92]),
            "reason": VerdictCode(record[93]),
            "paid": number(record[94:], "little", signed=True),
        }
    except ValueError as error:
        raise ReceiptError("record", f"it holds no upload: {error}") from None


def _hex(length: int) -> Callable[[Any], bytes]:
    def read(text: Any) -> bytes:
        raw = bytes.fromhex(text)
        if len(raw) != length or raw.hex() != text:
            raise ValueError(f"{length} bytes in small hexadecimal expected")
        return raw

    return read


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise ValueError("an integer of 0 to 2^32 - 1 expected")
    return value


def _name(value: Any) -> str:
    name_to_int(value)
    return str(value)


def _cid(value: Any) -> str:
    if value != "":
        cid_to_digest(value)
    return str(value)


def _path(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > PATH_MAX:
        raise ValueError(f"a list of at most {PATH_MAX} hashes expected")
    return tuple(_hex(32)(one) for one in value)


def _paid(value: Any) -> Asset:
    asset = Asset.parse(value)
    if str(asset) != value:
        raise ValueError(f"{asset} expected")
    return asset


_FROM_JSON: dict[str, Callable[[Any], Any]] = {
    "chain_id": lambda value: _hex(32)(value).hex(),
    "contract": check_account,
    "task": _name,
    "version": _count,
    "device": check_account,
    "hash": _hex(32),
    "cid": _cid,
    "cost": _count,
    "error_last": _count,
    "state": lambda value: UploadState[str(value).upper()],
    "reason": lambda value: VerdictCode[str(value).upper()],
    "paid": _paid,
    "record": _hex(RECORD_BYTES),
    "index": _count,
    "count": _count,
    "path": _path,
    "root": _hex(32),
}


def parse_receipt(text: str | bytes) -> SettledReceipt:
    """Read a receipt and check it.

    Raises
    ------
    ReceiptError
        A field is missing, malformed or not what the others say; `field` names it.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReceiptError("file", f"expected JSON: {error}") from None
    if not isinstance(document, dict):
        raise ReceiptError("file", "expected a JSON object")
    if document.get("format") != FORMAT:
        raise ReceiptError("format", f"expected {FORMAT}, got {str(document.get('format'))[:20]}")
    strange = sorted(document.keys() - _FROM_JSON.keys() - {"format"})
    if strange:
        raise ReceiptError(strange[0][:40], "a receipt has no such field")
    values: dict[str, Any] = {}
    for name, read in _FROM_JSON.items():
        if name not in document:
            raise ReceiptError(name, "it is missing")
        try:
            values[name] = read(document[name])
        except (ValueError, TypeError, KeyError) as error:
            raise ReceiptError(name, f"it cannot be read: {error}") from None
    receipt = SettledReceipt(**values)
    receipt.verify()
    return receipt


def load_receipt(path: str | os.PathLike[str]) -> SettledReceipt:
    """Read a receipt's file and check it; see `parse_receipt`. Raises ConfigError if unreadable."""
    try:
        with open(path, "rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {os.fspath(path)}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ReceiptError("file", f"expected at most {FILE_BYTES_MAX} bytes")
    return parse_receipt(raw)


# ---- the chain --------------------------------------------------------------------------------


def settled_round(
    contract: FedLearning, task: str, version: int, *, timeout_sec: float = TIMEOUT_SEC
) -> Round:
    """Wait until a round is settled irreversibly; return its row.

    A node's rows are those of its head: the row counts once it is the same after that head has
    become irreversible.

    Raises
    ------
    IrreversibilityTimeout
        It is not, within `timeout_sec`.
    ContractError, NodeError
        There is no such task; the node does not answer.
    """
    end = time.monotonic() + timeout_sec
    seen: tuple[bytes, int] | None = None
    while True:
        before = contract.client.get_info()
        row = contract.round(task, version)
        if row is None or row.state is not RoundState.SETTLED:
            seen, stands = None, "it is not settled yet"
            if row is None:
                contract.task(task)  # says so if there is no such task
                stands = "it was not opened yet"
        elif seen is None or seen[0] != row.root:
            # A producing node's tables are one block ahead of its head.
            seen = (row.root, contract.client.get_info().head_block + 1)
            stands = "it is settled, not yet irreversibly"
        elif before.irreversible_block >= seen[1]:
            return row
        if time.monotonic() >= end:
            raise IrreversibilityTimeout(f"round {version} of task {task}: {stands}")
        time.sleep(POLL_SEC)


def prove(
    contract: FedLearning,
    task: str,
    version: int,
    device: str,
    *,
    timeout_sec: float = TIMEOUT_SEC,
) -> SettledReceipt:
    """Make the receipt of a device's upload.

    The path is taken from the members' rows; once a later round has written over them, from the
    blocks, as an audit reads them.

    Parameters
    ----------
    timeout_sec : float
        How long to wait for the round to be settled irreversibly.

    Raises
    ------
    IrreversibilityTimeout
        It is not settled yet.
    ConfigError
        The device has no upload in the round.
    GradledgerError
        Node or blocks do not give what the root says.
    """
    row = settled_round(contract, task, version, timeout_sec=timeout_sec)
    records = round_records(task, contract.members(task), version, row.price)
    if merkle_root(records) != row.root:
        from gradledger.audit.run import Audit

        records = Audit(contract.client, task, contract=contract.account).settled_round(version)
        if merkle_root(records) != row.root:
            raise ReceiptError("root", f"the blocks do not give the root of round {version}")
    wanted = name_to_int(device).to_bytes(8, "little")
    index = next((i for i, record in enumerate(records) if record[12:20] == wanted), None)
    if index is None:
        raise ConfigError(f"{device} has no upload in round {version} of task {task}")
    found = _read_record(records[index])
    symbol = contract.task(task).terms.token_symbol
    found["paid"] = Asset(found["paid"], symbol)
    receipt = SettledReceipt(
        chain_id=contract.client.get_info().chain_id,
        contract=contract.account,
        **found,
        record=records[index],
        index=index,
        count=len(records),
        path=tuple(merkle_path(records, index)),
        root=row.root,
    )
    receipt.verify()
    return receipt


def verify_on_chain(
    receipt: SettledReceipt, client: ChainClient, *, timeout_sec: float = TIMEOUT_SEC
) -> Mapping[str, Any]:
    """Compare a receipt with the chain's irreversible row of its round.

    Returns
    -------
    mapping
        What the chain has: ``root``, ``count``, ``price``.

    Raises
    ------
    ReceiptError
        Another chain, root, count, token or price; `field` names it.
    NodeError
        The node does not answer, or the round is not settled irreversibly.
    """
    receipt.verify()
    chain_id = client.get_info().chain_id
    if chain_id != receipt.chain_id:
        raise ReceiptError("chain_id", f"the receipt is of {receipt.chain_id}, not of {chain_id}")
    contract = FedLearning(client, receipt.contract)
    symbol = contract.task(receipt.task).terms.token_symbol
    if symbol != receipt.paid.symbol:
        raise ReceiptError("paid", f"the task pays in {symbol}, not in {receipt.paid.symbol}")
    row = settled_round(contract, receipt.task, receipt.version, timeout_sec=timeout_sec)
    if row.root != receipt.root:
        raise ReceiptError("root", f"the chain has {row.root.hex()}, not {receipt.root.hex()}")
    if row.settled != receipt.count:
        raise ReceiptError("count", f"the chain's round has {row.settled} uploads")
    return {
        "root": row.root.hex(),
        "count": row.settled,
        "price": str(Asset(row.price, symbol)),
    }
