"""The Merkle tree over a round's uploads (RFC 6962), by which a payment is proven later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from gradledger.chain.contract import Member, UploadState
from gradledger.chain.names import name_to_int
from gradledger.cid import cid_to_digest
from gradledger.errors import ConfigError

RECORD_BYTES = 102


def leaf_record(task: str, member: Member, price: int) -> bytes:
    """Return the 102 bytes that the tree has of a member's newest upload.

    Parameters
    ----------
    price : int
        Of the round, in smallest units per example.
    """
    paid = member.upload_cost * price if member.upload_state is UploadState.PAID else 0
    return b"".join(
        (
            name_to_int(task).to_bytes(8, "little"),
            member.upload_version.to_bytes(4, "little"),
            name_to_int(member.account).to_bytes(8, "little"),
            member.upload_hash,
            cid_to_digest(member.upload_cid),
            member.upload_cost.to_bytes(4, "little"),
            member.error_last.to_bytes(4, "little"),
            bytes([member.upload_state, member.upload_reason]),
            paid.to_bytes(8, "little"),
        )
    )


def round_records(task: str, members: Sequence[Member], version: int, price: int) -> list[bytes]:
    """Return the records of a round's uploads in the tree's order."""
    ours = [member for member in members if member.upload_version == version]
    ours.sort(key=lambda member: name_to_int(member.account))
    return [leaf_record(task, member, price) for member in ours]


def merkle_root(records: Sequence[bytes]) -> bytes:
    """Return the root over `records`; SHA-256 of nothing when there are none."""
    if not records:
        return hashlib.sha256(b"").digest()
    if len(records) == 1:
        return hashlib.sha256(b"\0" + records[0]).digest()
    cut = _split(len(records))
    return _node(merkle_root(records[:cut]), merkle_root(records[cut:]))


def merkle_path(records: Sequence[bytes], index: int) -> list[bytes]:
    """Return the hashes that lead from record `index` to the root, the lowest first."""
    if not 0 <= index < len(records):
        raise ConfigError(f"expected an index below {len(records)}, got {index}")
    if len(records) == 1:
        return []
    cut = _split(len(records))
    if index < cut:
        return [*merkle_path(records[:cut], index), merkle_root(records[cut:])]
    return [*merkle_path(records[cut:], index - cut), merkle_root(records[:cut])]


def verify_path(record: bytes, index: int, count: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether `record` is number `index` of `count` in the tree with this root."""
    if not 0 <= index < count:
        return False
    found = hashlib.sha256(b"\0" + record).digest()
    sides = _sides(index, count)
    if len(path) != len(sides):
        return False
    for sibling, is_right in zip(path, reversed(sides), strict=True):
        found = _node(sibling, found) if is_right else _node(found, sibling)
    return found == root


def path_length(index: int, count: int) -> int:
    """Return how many hashes lead from record `index` of `count` to the root."""
    return len(_sides(index, count))


def _sides(index: int, count: int) -> list[bool]:
    """Return, from the root down, whether record `index` of `count` lies on the right."""
    sides = []
    while count > 1:
        cut = _split(count)
        sides.append(index >= cut)
        index, count = (index - cut, count - cut) if index >= cut else (index, cut)
    return sides


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()
