"""Whether what lies on IPFS is what the validators accepted."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from gradledger import envelope
from gradledger.audit.replay import Upload
from gradledger.chain.names import int_to_name, name_to_int
from gradledger.cid import digest_to_cid
from gradledger.errors import (
    BlobCorruptError,
    BlobMissingError,
    BlobTooLargeError,
    EnvelopeError,
    StoreUnavailableError,
)
from gradledger.store import Store

WORKERS = 4
AWAY_MAX = 3  # answers in a row that a store may owe before it counts as gone


@dataclass
class AcceptedUploads:
    """Every upload that the validators accepted, 84 bytes each."""

    _numbers: array[int] = field(default_factory=lambda: array("Q"), repr=False)
    _hashes: bytearray = field(default_factory=bytearray, repr=False)

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def add(self, version: int, device: str, upload: Upload) -> None:
        """Keep one."""
        self._numbers.extend((version, name_to_int(device), upload.cost))
        self._hashes += upload.hash + upload.cid

    def __iter__(self) -> Iterator[AcceptedUpload]:
        for index in range(len(self)):
            version, device, cost = self._numbers[3 * index : 3 * index + 3]
            pair = bytes(self._hashes[64 * index : 64 * index + 64])
            yield AcceptedUpload(
                version, int_to_name(device), cost, pair[:32], digest_to_cid(pair[32:])
            )


@dataclass(frozen=True)
class AcceptedUpload:
    """What the chain says of an upload's blob."""

    version: int
    device: str
    cost: int
    hash: bytes
    cid: str

    def __str__(self) -> str:
        return f"upload of {self.device} in round {self.version} ({self.cid})"


@dataclass
class BlobFindings:
    """What became of the blobs: how many agree, the first that does not, those not to be had."""

    good: int = 0
    wrong: str = ""
    missing: list[AcceptedUpload] = field(default_factory=list)
    away: str = ""


def check_blobs(
    store: Store,
    uploads: AcceptedUploads,
    *,
    task: str,
    terms: Mapping[str, Any],
    tell: Callable[[int], None],
) -> BlobFindings:
    """Fetch each blob and compare it with the chain; stop when the store is gone."""
    found = BlobFindings()
    away = 0
    under_way: deque[tuple[AcceptedUpload, Future[str]]] = deque()
    waiting = iter(uploads)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="blobs") as pool:
        while not found.wrong and not found.away:
            while len(under_way) < WORKERS and (one := next(waiting, None)) is not None:
                under_way.append((one, pool.submit(_check, store, one, task, terms)))
            if not under_way:
                break
            upload, future = under_way.popleft()
            tell(1)
            try:
                fault, away = future.result(), 0
                if fault:
                    found.wrong = f"{upload}: the validators accepted it, but {fault}"
                else:
                    found.good += 1
            except (BlobMissingError, BlobCorruptError):
                found.missing.append(upload)
            except StoreUnavailableError as error:
                away += 1
                found.missing.append(upload)
                if away == AWAY_MAX:
                    found.away = str(error)
        for _, future in under_way:
            future.cancel()
    return found


def _check(store: Store, upload: AcceptedUpload, task: str, terms: Mapping[str, Any]) -> str:
    """Return what is wrong with an upload's blob; "" when nothing is."""
    try:
        blob = store.get(upload.cid)
    except BlobTooLargeError:
        return f"its blob has over {store.bytes_max} bytes"
    digest = hashlib.sha256(blob).digest()
    if digest != upload.hash:
        return f"its blob has the hash {digest.hex()}, the chain has {upload.hash.hex()}"
    try:
        header = envelope.parse(blob).header
    except EnvelopeError as error:
        return f"its blob is no envelope: {error}"
    expected = {
        "kind": envelope.Kind.UPDATE,
        "task": task,
        "sender": upload.device,
        "version": upload.version,
        "examples": upload.cost,
        "parameters": terms["parameters"],
    }
    for name, value in expected.items():
        if getattr(header, name) != value:
            return f"its envelope says {name} {getattr(header, name)}, expected {value}"
    return ""
