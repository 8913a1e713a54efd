"""The product of accepted uploads, on any executor, in bounded memory.

Multiplying is independent at every place of an update, and in any order: so an update is cut into
slices, and each call of the executor multiplies one slice of a group of updates, and of the product
of an earlier group.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from types import TracebackType

from gradledger.codec import Codec
from gradledger.errors import PaillierError
from gradledger.paillier import PaillierPublicKey
from producer_validation.checks import add_payloads
from producer_validation.executors import Job, Work

__all__ = ["Product"]

SLICE_BYTES = 2**18  # of one update
TASK_BYTES = 2**23  # that one call takes
GROUP_BYTES = 2**26  # of updates that wait until there are enough for a call
GROUP_MAX = 64  # updates in a call
FLYING_BYTES = 2**28  # of all the calls that are under way


@dataclass
class _Part:
    """The product of one slice in one lane, or the call that makes it."""

    product: bytes | None = None
    job: Job[bytes] | None = None


class Product:
    """The running product of updates under one key.

    Parameters
    ----------
    key : PaillierPublicKey
    codec : Codec
        The task's.
    work : Work
        Where it is multiplied.

    Notes
    -----
    Deterministic, whatever the executor and the grouping: this is why equal hashes of the
    validators prove the sum. Holds `bytes_max` at most. Use it in a ``with`` statement: what is
    under way at its end is given up.
    """

    def __init__(self, key: PaillierPublicKey, codec: Codec, work: Work) -> None:
        self._key, self._codec, self._work = key, codec, work
        self._payload_bytes = key.payload_bytes(codec)
        width, slots = key.ciphertext_bytes, codec.slots(key.bits)
        places_in_all = self._payload_bytes // width
        places = min(max(1, SLICE_BYTES // width), places_in_all)
        self._slices: list[tuple[slice, Codec]] = []
        for first in range(0, places_in_all, places):
            last = min(first + places, places_in_all)
            part = replace(codec, parameters=(last - first) * slots)
            self._slices.append((slice(first * width, last * width), part))
        fitting = min(TASK_BYTES // (places * width), GROUP_BYTES // self._payload_bytes)
        self._group_max = min(max(1, fitting), GROUP_MAX)
        call_bytes = (self._group_max + 1) * places * width
        self._flying_max = max(1, min(2 * work.width, FLYING_BYTES // call_bytes))
        self._lanes = [
            [_Part() for _ in self._slices]
            for _ in range(-(-self._flying_max // len(self._slices)))
        ]
        self._flying: deque[_Part] = deque()
        self._group: list[bytes] = []
        self._groups = 0
        self._updates = 0
        self.bytes_max = (
            self._group_max + len(self._lanes)
        ) * self._payload_bytes + self._flying_max * call_bytes

    def __enter__(self) -> Product:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._work.cancel(part.job for part in self._flying if part.job is not None)
        self._flying.clear()

    def add(self, payload: bytes) -> None:
        """Multiply with one more update.

        Parameters
        ----------
        payload : bytes
            Ciphertexts of exact length, checked.

        Raises
        ------
        PaillierError
            It has another length, or the slots could carry into each other with one update more.
        WorkersError, StoppedError
            See `Work.result`.
        """
        if len(payload) != self._payload_bytes:
            raise PaillierError(
                f"expected {self._payload_bytes} bytes of ciphertexts, got {len(payload)}"
            )
        if self._updates == self._codec.devices_max:
            raise PaillierError(
                f"expected at most {self._codec.devices_max} updates in slots of "
                f"{self._codec.slot_bits} bits"
            )
        self._updates += 1
        self._group.append(payload)
        if len(self._group) == self._group_max:
            self._send()

    def total(self) -> bytes:
        """Return the product of all the updates; they can be no more afterwards.

        Raises
        ------
        PaillierError
            There is none.
        WorkersError, StoppedError
            See `Work.result`.
        """
        if not self._updates:
            raise PaillierError("expected at least one update to add, got none")
        if self._group:
            self._send()
        last = []
        for place, (_, codec) in enumerate(self._slices):
            products = [
                found for lane in self._lanes if (found := self._product(lane[place])) is not None
            ]
            last.append((codec, products))
        # One lane is the rule for long updates; then its products are the sum already.
        jobs = [
            None if len(products) == 1 else self._fly(_Part(), codec, products)
            for codec, products in last
        ]
        return b"".join(
            products[0] if part is None else self._product(part) or b""
            for part, (_, products) in zip(jobs, last, strict=True)
        )

    def _send(self) -> None:
        """Hand the group to the executor, slice by slice."""
        lane = self._lanes[self._groups % len(self._lanes)]
        for part, (cut, codec) in zip(lane, self._slices, strict=True):
            factors = [payload[cut] for payload in self._group]
            earlier = self._product(part)
            if earlier is not None:
                factors.append(earlier)
            self._fly(part, codec, factors)
        self._groups += 1
        self._group = []

    def _fly(self, part: _Part, codec: Codec, factors: list[bytes]) -> _Part:
        """Start a call, once there is room for it."""
        while len(self._flying) >= self._flying_max:
            self._product(self._flying[0])
        part.job = self._work.submit(add_payloads, self._key, codec, factors)
        self._flying.append(part)
        return part

    def _product(self, part: _Part) -> bytes | None:
        """Wait for a part's call, if there is one; return its product so far."""
        if part.job is not None:
            part.product = self._work.result(part.job)
            part.job = None
            self._flying.remove(part)
        return part.product
