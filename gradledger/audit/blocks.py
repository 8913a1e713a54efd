"""Raw blocks, proven: header and id, the tree over the transactions, and who signed them.

A node's answer is taken for what its bytes prove. A block's id is the hash of its header; the
header names the block before it and the root over its transactions; that root covers every byte of
each of them. So one id, that of the last block, covers all that lies before it.

The forms are those of Antelope's blocks up to Leap 4 (``libraries/chain``: block_header.cpp,
transaction.cpp, merkle.cpp).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from gradledger.chain.abi import Abi
from gradledger.chain.keys import PublicKey, recover_key, signature_variant
from gradledger.chain.names import int_to_name
from gradledger.errors import ConfigError, GradledgerError, NodeAnswerError

UNPACKED_BYTES_MAX = 2**24  # of a compressed transaction
BLOCK_INTERVAL_MS = 500
_EPOCH_MS = int(datetime(2000, 1, 1, tzinfo=timezone.utc).timestamp()) * 1000
_STATUS = {"executed": 0, "soft_fail": 1, "hard_fail": 2, "delayed": 3, "expired": 4}
_COMPRESSION = {"none": 0, "zlib": 1}
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error)
_SCHEDULE_EXTENSION = 1  # producer_schedule_change_extension

_ABI = Abi(
    {
        "actions": [],
        "structs": [
            {"name": name, "fields": [{"name": f, "type": t} for f, t in fields]}
            for name, fields in {
                "extension": [("type", "uint16"), ("data", "bytes")],
                "producer_key": [("producer_name", "name"), ("block_signing_key", "public_key")],
                "schedule": [("version", "uint32"), ("producers", "producer_key[]")],
                "header": [
                    ("timestamp", "uint32"),
                    ("producer", "name"),
                    ("confirmed", "uint16"),
                    ("previous", "checksum256"),
                    ("transaction_mroot", "checksum256"),
                    ("action_mroot", "checksum256"),
                    ("schedule_version", "uint32"),
                    ("new_producers", "schedule?"),
                    ("header_extensions", "extension[]"),
                ],
                "weighted_key": [("key", "public_key"), ("weight", "uint16")],
                "producer_authority": [
                    ("producer_name", "name"),
                    ("kind", "varuint32"),
                    ("threshold", "uint32"),
                    ("keys", "weighted_key[]"),
                ],
                "authorities": [("version", "uint32"), ("producers", "producer_authority[]")],
            }.items()
        ],
    }
)


class ProofError(GradledgerError):
    """What a node gave is not what its own hashes say: somebody altered it."""


@dataclass(frozen=True)
class RawAction:
    """An action as it was signed; `authorization` is (actor, permission) of each authoriser."""

    account: str
    name: str
    authorization: tuple[tuple[str, str], ...]
    data: bytes


@dataclass(frozen=True)
class RawTransaction:
    """A transaction that a block executed.

    Attributes
    ----------
    id : str
        Computed from its bytes.
    packed : bytes
        Uncompressed; empty for a deferred one, of which a block has the id alone. That a node says
        so proves nothing: to the block's root any transaction can be given as a hash like that.
    signatures : tuple of str
    context_free : bytes
    """

    id: str
    packed: bytes
    signatures: tuple[str, ...]
    context_free: bytes

    def actions(self) -> list[RawAction]:
        """Return its actions. Raises NodeAnswerError when the bytes are no transaction."""
        raw = _Cursor(self.packed)
        try:
            raw.skip(4 + 2 + 4)  # expiration, the block that it refers to
            raw.varuint32()  # limit of network use
            raw.skip(1)  # limit of CPU
            raw.varuint32()  # delay
            raw.actions()  # without context: no contract of ours has any
            return raw.actions()
        except ValueError as error:
            raise NodeAnswerError(f"transaction {self.id} cannot be read: {error}") from None

    def keys(self, chain_id: str) -> tuple[list[PublicKey], int]:
        """Return the keys that signed it, and how many signatures are of another kind than K1."""
        context_free = (
            hashlib.sha256(self.context_free).digest() if self.context_free else bytes(32)
        )
        digest = hashlib.sha256(bytes.fromhex(chain_id) + self.packed + context_free).digest()
        known = [text for text in self.signatures if text.startswith("SIG_K1_")]
        return [recover_key(digest, text) for text in known], len(self.signatures) - len(known)


@dataclass(frozen=True)
class RawBlock:
    """A block whose id was computed here and whose transactions are those of its root.

    Attributes
    ----------
    number : int
    id, previous : str
    time : int
        Seconds since 1970, rounded down as contracts see it.
    action_root : str
    schedule_version : int
        Of the producers that make this block.
    new_schedules : dict of int to tuple of str
        Producers that it announces, by version.
    transactions : tuple of RawTransaction
        Those executed.
    """

    number: int
    id: str
    previous: str
    time: int
    action_root: str
    schedule_version: int
    new_schedules: dict[int, tuple[str, ...]]
    transactions: tuple[RawTransaction, ...]


def read_block(number: int, document: Any) -> RawBlock:
    """Check a node's answer to ``get_raw_block`` and return the block.

    Raises
    ------
    NodeAnswerError
        It is no block.
    ProofError
        Its transactions are not those of its `transaction_mroot`, or one is there twice.
    """
    try:
        header = {
            "timestamp": _slot(document["timestamp"]),
            "producer": document["producer"],
            "confirmed": document["confirmed"],
            "previous": document["previous"],
            "transaction_mroot": document["transaction_mroot"],
            "action_mroot": document["action_mroot"],
            "schedule_version": document["schedule_version"],
            "new_producers": document.get("new_producers"),
            "header_extensions": [
                {"type": kind, "data": data} for kind, data in document["header_extensions"]
            ],
        }
        digest = hashlib.sha256(_ABI.pack("header", header)).digest()
        receipts = [_receipt(row) for row in document["transactions"]]
        previous = str(document["previous"])
        schedules = _schedules(header)
    except _MALFORMED as error:
        raise NodeAnswerError(f"expected block {number}, got another document: {error}") from None
    root = merkle_of_digests([one for one, _ in receipts])
    if root.hex() != header["transaction_mroot"]:
        raise ProofError(
            f"block {number}: its transactions have the root {root.hex()}, its header names "
            f"{header['transaction_mroot']}: a transaction was altered, added or left out"
        )
    # The tree repeats the last of an odd level: doubled last transactions do not change the root.
    if len({one for one, _ in receipts}) < len(receipts):
        raise ProofError(f"block {number}: it has a transaction twice, which no chain executes")
    found = int(previous[:8], 16) + 1
    if found != number:
        raise NodeAnswerError(f"expected block {number}, got block {found}")
    return RawBlock(
        number,
        number.to_bytes(4, "big").hex() + digest[4:].hex(),
        previous,
        (header["timestamp"] * BLOCK_INTERVAL_MS + _EPOCH_MS) // 1000,
        str(header["action_mroot"]),
        int(header["schedule_version"]),
        schedules,
        tuple(one for _, one in receipts if one is not None),
    )


def merkle_of_digests(digests: Sequence[bytes]) -> bytes:
    """Return the root of Antelope's tree, in which a node knows which of its sides is which."""
    level = list(digests)
    if not level:
        return bytes(32)
    while len(level) > 1:
        if len(level) % 2:
            level.append(level[-1])
        level = [
            hashlib.sha256(
                bytes([left[0] & 0x7F]) + left[1:] + bytes([right[0] | 0x80]) + right[1:]
            ).digest()
            for left, right in zip(level[::2], level[1::2], strict=True)
        ]
    return level[0]


def _slot(text: str) -> int:
    moment = datetime.fromisoformat(text.rstrip("Z")).replace(tzinfo=timezone.utc)
    slot, rest = divmod(round(moment.timestamp() * 1000) - _EPOCH_MS, BLOCK_INTERVAL_MS)
    if rest:
        raise ValueError(f"the time {text} is no block's")
    return slot


def _receipt(row: Mapping[str, Any]) -> tuple[bytes, RawTransaction | None]:
    """Return a receipt's digest and, if it was executed, its transaction."""
    status, trx = row["status"], row["trx"]
    head = bytes([_STATUS[status]]) + int(row["cpu_usage_us"]).to_bytes(4, "little")
    head += _ABI.pack("varuint32", int(row["net_usage_words"]))
    if isinstance(trx, list):
        kind, trx = trx
        if kind not in (0, 1):
            raise ValueError(f"a transaction of kind {kind}")
    if isinstance(trx, str):  # a deferred one: the block has nothing but its id
        if len(raw := bytes.fromhex(trx)) != 32:  # with 64 in all it could be a node of the tree
            raise ValueError(f"a transaction id of {len(raw)} bytes, not 32")
        digest = hashlib.sha256(head + raw).digest()
        return digest, RawTransaction(trx, b"", (), b"") if status == "executed" else None
    signatures = tuple(str(text) for text in trx["signatures"])
    packed = bytes.fromhex(trx["packed_trx"])
    context_free = bytes.fromhex(trx["packed_context_free_data"])
    prunable = hashlib.sha256(
        _ABI.pack("varuint32", len(signatures))
        + b"".join(signature_variant(text) for text in signatures)
        + _ABI.pack("bytes", context_free)
    ).digest()
    compression = _COMPRESSION[trx["compression"]]
    body = bytes([compression]) + _ABI.pack("bytes", packed) + prunable
    digest = hashlib.sha256(head + hashlib.sha256(body).digest()).digest()
    if status != "executed":
        return digest, None
    if compression:
        packed, context_free = _inflate(packed), _inflate(context_free)
    return digest, RawTransaction(
        hashlib.sha256(packed).hexdigest(), packed, signatures, context_free
    )


def _inflate(data: bytes) -> bytes:
    if not data:
        return data
    plain = zlib.decompressobj()
    out = plain.decompress(data, UNPACKED_BYTES_MAX)
    if plain.unconsumed_tail:
        raise ValueError(f"a transaction of over {UNPACKED_BYTES_MAX} bytes")
    return out


def _schedules(header: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """Return the schedules that a header announces; those with keys of unknown kinds are left."""
    found: list[Mapping[str, Any]] = [header["new_producers"]] if header["new_producers"] else []
    for extension in header["header_extensions"]:
        if extension["type"] == _SCHEDULE_EXTENSION:
            try:
                found.append(_ABI.unpack("authorities", bytes.fromhex(extension["data"])))
            except ConfigError:
                continue
    return {
        int(one["version"]): tuple(str(row["producer_name"]) for row in one["producers"])
        for one in found
    }


def check_linked(block: RawBlock, expected_id: str, named_by: str) -> None:
    """Refuse a block that is not the one which its successor names. Raises ProofError."""
    if block.id != expected_id:
        raise ProofError(
            f"block {block.number}: its header gives the id {block.id}, {named_by} names "
            f"{expected_id}: the header was altered, or it is of another chain"
        )


@dataclass(frozen=True)
class Authority:
    """Who may sign for an account from now on.

    Attributes
    ----------
    account : str
    keys : tuple of str
        Compressed points of curve K1, hexadecimal.
    accounts : tuple of str
        Others whose authority will do.
    known_before : bool
        What it was before can be told: nothing, for a new account.
    """

    account: str
    keys: tuple[str, ...]
    accounts: tuple[str, ...]
    known_before: bool


def read_authorities(one: RawAction) -> list[Authority]:
    """Return what an action of the system account sets of permissions; nothing for most."""
    if one.account != "eosio" or one.name not in ("newaccount", "updateauth"):
        return []
    raw, is_new = _Cursor(one.data), one.name == "newaccount"
    try:
        if not is_new:
            account = raw.name()
            raw.skip(16)  # the permission, and the one above it
            return [Authority(account, *_authority(raw), False)]
        raw.skip(8)  # who made it
        account = raw.name()
        return [Authority(account, *_authority(raw), True) for _ in range(2)]
    except ValueError:  # keys of a kind that is not known here
        start = 8 if is_new else 0
        account = int_to_name(int.from_bytes(one.data[start : start + 8], "little"))
        return [Authority(account, (), (), False)]


def _authority(raw: _Cursor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    raw.skip(4)  # the threshold
    keys = []
    for _ in range(raw.varuint32()):
        kind, key = raw.take(1)[0], raw.take(33)
        if kind > 1:
            raise ValueError(f"a key of kind {kind}")
        keys += [key.hex()] if kind == 0 else []
        raw.skip(2)  # its weight
    accounts = []
    for _ in range(raw.varuint32()):
        accounts.append(raw.name())
        raw.skip(8 + 2)  # its permission, its weight
    for _ in range(raw.varuint32()):
        raw.skip(4 + 2)  # a wait
    return tuple(keys), tuple(accounts)


class _Cursor:
    """Reads bytes from the front. Raises ValueError where there are too few."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._data):
            raise ValueError(f"{count} bytes expected at {self.at}, of {len(self._data)}")
        piece, self.at = self._data[self.at : end], end
        return piece

    def skip(self, count: int) -> None:
        self.take(count)

    def name(self) -> str:
        return _name(self.take(8))

    def varuint32(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a length of over 32 bits")

    def actions(self) -> list[RawAction]:
        found = []
        for _ in range(self.varuint32()):
            account, name = self.name(), self.name()
            levels = tuple((self.name(), self.name()) for _ in range(self.varuint32()))
            found.append(RawAction(account, name, levels, self.take(self.varuint32())))
        return found


@lru_cache(maxsize=65_536)
def _name(raw: bytes) -> str:
    return int_to_name(int.from_bytes(raw, "little"))
