"""Merkle trees (RFC 6962): over a round's uploads, by which a payment is proven later, and over the
owner's validation points, by which it is shown that a device got committed ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

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
            (cid_to_digest(member.upload_cid) if member.upload_cid else bytes(32)),
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


class Tree:
    """A whole tree in memory, for proofs of many records at once.

    Parameters
    ----------
    records : iterable of bytes
        At least one.

    Attributes
    ----------
    root : bytes
        That of `merkle_root`.
    """

    def __init__(self, records: Iterable[bytes]) -> None:
        level = [hashlib.sha256(b"\0" + record).digest() for record in records]
        if not level:
            raise ConfigError("expected at least one record")
        self._levels = [level]
        while len(level) > 1:
            level = [
                _node(*level[place : place + 2]) if place + 1 < len(level) else level[place]
                for place in range(0, len(level), 2)
            ]
            self._levels.append(level)
        self.root = level[0]

    def shared_path(self, indices: Sequence[int]) -> list[bytes]:
        """Return the hashes that lead from several records to the root, each once.

        Parameters
        ----------
        indices : sequence of int
            Ascending.

        Returns
        -------
        list of bytes
            Level by level, the lowest first; in a level, from the left: of each known node whose
            sibling is not known, the sibling.
        """
        known = list(indices)
        if not known or known[0] < 0 or known[-1] >= len(self._levels[0]):
            raise ConfigError(f"expected indices below {len(self._levels[0])}")
        if any(a >= b for a, b in pairwise(known)):
            raise ConfigError("expected ascending indices")
        nodes: list[bytes] = []
        for level in self._levels[:-1]:
            here = set(known)
            siblings = (index ^ 1 for index in known if index ^ 1 not in here)
            nodes += [level[index] for index in siblings if index < len(level)]
            known = sorted({index >> 1 for index in known})
        return nodes


def root_of_shared(
    records: Sequence[bytes], indices: Sequence[int], count: int, nodes: Sequence[bytes]
) -> bytes | None:
    """Return the root to which several records and their `Tree.shared_path` lead.

    Parameters
    ----------
    records : sequence of bytes
    indices : sequence of int
        Their places in the tree, ascending, below `count`.
    count : int
        Records of the whole tree.
    nodes : sequence of bytes

    Returns
    -------
    bytes or None
        None: there are too few or too many hashes.
    """
    rest = iter(nodes)
    digests = [hashlib.sha256(b"\0" + record).digest() for record in records]
    level = list(zip(indices, digests, strict=True))
    while count > 1:
        known = dict(level)
        above: list[tuple[int, bytes]] = []
        for index, digest in level:
            if index & 1 and index - 1 in known:
                continue  # done with its sibling
            found = digest
            if index ^ 1 < count:  # otherwise it is the last one, alone, and rises as it is
                sibling = known.get(index ^ 1) or next(rest, None)
                if sibling is None:
                    return None
                found = _node(sibling, digest) if index & 1 else _node(digest, sibling)
            above.append((index >> 1, found))
        level, count = above, (count + 1) // 2
    return level[0][1] if next(rest, None) is None else None


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
