"""Clip, quantise, pack: floats to codes of 16 bits, codes to slots of a plaintext, and back.

Byte for byte in `docs/protocol.md`, section 2. Pure: numpy in, numpy out, no keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradledger.errors import CodecError

CODE_MAX = 65_535
CLIP_SCALE = 1_000_000
CLIP_E6_MAX = 2**32 - 1
SLOT_BITS_MIN = 17
SLOT_BITS_MAX = 32
PARAMETERS_MAX = 2**31 - 1

_BLOCK_VALUES = 65_536  # floats in work at a time, so that float64 copies stay small


@dataclass(frozen=True)
class Codec:
    """How a vector of floats becomes codes and slots; all devices of a task use the same.

    Parameters
    ----------
    clip_e6 : int, 1..2**32-1
        Values are clipped to +-clip_e6 / 1e6.
    slot_bits : int, 17..32
        Bits of a slot in a plaintext. Without carry at most `devices_max` updates can be added.
    parameters : int, 1..2**31-1
        Length of an update.

    Raises
    ------
    CodecError
        A field is outside its range.
    """

    clip_e6: int
    slot_bits: int
    parameters: int

    def __post_init__(self) -> None:
        _check_range("clip_e6", self.clip_e6, 1, CLIP_E6_MAX)
        _check_range("slot_bits", self.slot_bits, SLOT_BITS_MIN, SLOT_BITS_MAX)
        _check_range("parameters", self.parameters, 1, PARAMETERS_MAX)

    @property
    def clip(self) -> float:
        """The clipping bound."""
        return self.clip_e6 / CLIP_SCALE

    @property
    def devices_max(self) -> int:
        """Largest number of updates whose slots cannot carry into each other."""
        return ((1 << self.slot_bits) - 1) // CODE_MAX

    def slots(self, n_bits: int) -> int:
        """Return how many slots a plaintext under a key of `n_bits` holds.

        Parameters
        ----------
        n_bits : int
            Bit length of the Paillier modulus.

        Returns
        -------
        int
            floor((n_bits - 1) / slot_bits), so that every plaintext is below n.

        Raises
        ------
        CodecError
            Not even one slot fits.
        """
        slots = (n_bits - 1) // self.slot_bits
        if slots < 1:
            raise CodecError(f"a key of {n_bits} bits holds no slot of {self.slot_bits} bits")
        return slots

    def plaintexts(self, n_bits: int) -> int:
        """Return how many plaintexts an update takes under a key of `n_bits`.

        Parameters
        ----------
        n_bits : int
            Bit length of the Paillier modulus.

        Returns
        -------
        int
            ceil(parameters / slots).
        """
        return -(-self.parameters // self.slots(n_bits))

    def quantise(self, values: ArrayLike) -> NDArray[np.uint16]:
        """Return the codes of an update.

        Parameters
        ----------
        values : array-like of float, shape (parameters,)
            Clipped to the bound; ties round to even.

        Returns
        -------
        ndarray of uint16, shape (parameters,)
            The codes.

        Raises
        ------
        CodecError
            The shape is another, or a value is not finite (its place is named).
        """
        array = np.asarray(values)
        if array.shape != (self.parameters,):
            raise CodecError(f"expected {self.parameters} values in one row, got {array.shape}")
        if array.dtype.kind not in "fiu":
            raise CodecError(f"expected real numbers, got {array.dtype}")
        clip = self.clip
        codes = np.empty(self.parameters, dtype=np.uint16)
        for start in range(0, self.parameters, _BLOCK_VALUES):
            block = array[start : start + _BLOCK_VALUES].astype(np.float64)
            finite = np.isfinite(block)
            if not finite.all():
                place = start + int(np.argmin(finite))
                raise CodecError(f"value {place} is not finite: {array[place]!r}")
            np.clip(block, -clip, clip, out=block)
            block += clip
            block /= 2 * clip
            block *= CODE_MAX
            codes[start : start + _BLOCK_VALUES] = np.rint(block)
        return codes

    def dequantise(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Return the values that codes stand for.

        Parameters
        ----------
        codes : array-like of uint16, shape (parameters,)
            As `quantise` returns them.

        Returns
        -------
        ndarray of float32, shape (parameters,)
            Each within clip / 65535 of the clipped value.
        """
        return self.dequantise_mean(codes, 1)

    def dequantise_mean(self, sums: ArrayLike, updates: int) -> NDArray[np.float32]:
        """Return the mean of `updates` updates from the sums of their codes.

        Parameters
        ----------
        sums : array-like of unsigned int, shape (parameters,)
            Slot sums.
        updates : int, 1..devices_max
            How many updates are in the sums.

        Returns
        -------
        ndarray of float32, shape (parameters,)
            The mean; its error is at most clip / 65535, plus float32's own rounding.

        Raises
        ------
        CodecError
            The shape or `updates` is out of bounds, or a sum exceeds updates x 65535 (its place is
            named).
        """
        _check_range("updates", updates, 1, self.devices_max)
        array = np.asarray(sums)
        if array.shape != (self.parameters,):
            raise CodecError(f"expected {self.parameters} sums in one row, got {array.shape}")
        if array.dtype.kind != "u":
            raise CodecError(f"expected unsigned integers, got {array.dtype}")
        self.check_sums(array, updates)
        clip = self.clip
        means = np.empty(self.parameters, dtype=np.float32)
        for start in range(0, self.parameters, _BLOCK_VALUES):
            block = array[start : start + _BLOCK_VALUES].astype(np.float64)
            block /= updates
            block /= CODE_MAX
            block *= 2 * clip
            block -= clip
            means[start : start + _BLOCK_VALUES] = block
        return means

    def check_sums(self, sums: NDArray[np.unsignedinteger], updates: int) -> None:
        """Refuse a slot sum that `updates` honest devices cannot have made.

        Parameters
        ----------
        sums : ndarray of unsigned int
            Slot sums, parameter by parameter.
        updates : int
            How many updates are in them.

        Raises
        ------
        CodecError
            A sum exceeds updates x 65535; the message names its slot.
        """
        bound = updates * CODE_MAX
        if sums.size and int(sums.max()) > bound:
            slot = int(np.argmax(sums > bound))
            raise CodecError(
                f"slot {slot}: expected at most {updates} x {CODE_MAX} = {bound}, got {sums[slot]}"
            )

    def to_bytes(self, codes: NDArray[np.uint16]) -> bytes:
        """Return codes as the payload of codec 1: little-endian uint16 each.

        Parameters
        ----------
        codes : ndarray of uint16, shape (parameters,)
            As `quantise` returns them.

        Returns
        -------
        bytes
            2 x parameters bytes.
        """
        return self._checked(codes).astype("<u2", copy=False).tobytes()

    def from_bytes(self, payload: bytes | memoryview) -> NDArray[np.uint16]:
        """Return the codes of a payload of codec 1.

        Parameters
        ----------
        payload : bytes-like
            2 x parameters bytes.

        Returns
        -------
        ndarray of uint16, shape (parameters,)
            The codes.

        Raises
        ------
        CodecError
            The length is another.
        """
        if len(payload) != 2 * self.parameters:
            raise CodecError(f"expected {2 * self.parameters} bytes of codes, got {len(payload)}")
        return np.frombuffer(payload, dtype="<u2").astype(np.uint16)

    def pack(self, codes: NDArray[np.uint16], n_bits: int) -> Iterator[bytes]:
        """Yield the plaintexts of an update, each as a little-endian integer.

        Parameters
        ----------
        codes : ndarray of uint16, shape (parameters,)
            As `quantise` returns them.
        n_bits : int
            Bit length of the Paillier modulus.

        Yields
        ------
        bytes
            Slot j holds bits j x slot_bits and up; unused slots are zero. All of one length.
        """
        codes = self._checked(codes)
        slots = self.slots(n_bits)
        per_block = max(1, _BLOCK_VALUES // slots)
        for start in range(0, self.parameters, per_block * slots):
            block = codes[start : start + per_block * slots]
            rows = self._pack_rows(block, slots)
            for row in rows:
                yield row.tobytes()

    def unpack(self, plaintexts: list[bytes], n_bits: int) -> NDArray[np.uint64]:
        """Return the slot sums of decrypted plaintexts.

        Parameters
        ----------
        plaintexts : list of bytes
            `plaintexts(n_bits)` little-endian integers of one length, at least `slots` slots long.
        n_bits : int
            Bit length of the Paillier modulus.

        Returns
        -------
        ndarray of uint64, shape (parameters,)
            One sum per parameter.

        Raises
        ------
        CodecError
            A number of plaintexts other than expected, or bits set outside the used slots.
        """
        slots = self.slots(n_bits)
        expected = self.plaintexts(n_bits)
        if len(plaintexts) != expected:
            raise CodecError(f"expected {expected} plaintexts, got {len(plaintexts)}")
        sums = np.empty(expected * slots, dtype=np.uint64)
        per_block = max(1, _BLOCK_VALUES // slots)
        for start in range(0, expected, per_block):
            rows = self._unpack_rows(plaintexts[start : start + per_block], start, slots)
            sums[start * slots : start * slots + rows.size] = rows.reshape(-1)
        if sums[self.parameters :].any():
            slot = self.parameters + int(np.argmax(sums[self.parameters :] != 0))
            raise CodecError(
                f"slot {slot}: expected zero after the last parameter, got {sums[slot]}"
            )
        return sums[: self.parameters].copy()

    def _checked(self, codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16:
            raise CodecError("expected an array of uint16 codes")
        if codes.shape != (self.parameters,):
            raise CodecError(f"expected {self.parameters} codes in one row, got {codes.shape}")
        return codes

    def _pack_rows(self, codes: NDArray[np.uint16], slots: int) -> NDArray[np.uint8]:
        """Pack consecutive plaintexts: eight slots always fill `slot_bits` whole bytes."""
        rows = -(-len(codes) // slots)
        groups = -(-slots // 8)
        flat = np.zeros((rows, groups * 8), dtype=np.uint32)
        padded = np.zeros(rows * slots, dtype=np.uint32)
        padded[: len(codes)] = codes
        flat[:, :slots] = padded.reshape(rows, slots)
        table = flat.reshape(rows, groups, 8)
        packed = np.zeros((rows, groups, self.slot_bits), dtype=np.uint8)
        for place in range(8):
            byte, shift = divmod(place * self.slot_bits, 8)
            value = table[:, :, place] << np.uint32(shift)  # 16 + 7 bits: three bytes
            for index in range(3):
                if byte + index < self.slot_bits:
                    packed[:, :, byte + index] |= (value >> np.uint32(8 * index)).astype(np.uint8)
        return packed.reshape(rows, groups * self.slot_bits)

    def _unpack_rows(self, plaintexts: list[bytes], first: int, slots: int) -> NDArray[np.uint64]:
        """Read the slots of plaintexts `first` and following; bits above them must be zero."""
        groups = -(-slots // 8)
        width = groups * self.slot_bits
        table = np.zeros((len(plaintexts), width), dtype=np.uint8)
        for index, plaintext in enumerate(plaintexts):
            if any(plaintext[width:]):
                raise CodecError(f"plaintext {first + index}: bits set above its last slot")
            row = np.frombuffer(plaintext[:width], dtype=np.uint8)
            table[index, : len(row)] = row
        grouped = table.reshape(len(plaintexts), groups, self.slot_bits)
        values = np.zeros((len(plaintexts), groups, 8), dtype=np.uint64)
        mask = np.uint64((1 << self.slot_bits) - 1)
        for place in range(8):
            byte, shift = divmod(place * self.slot_bits, 8)
            value = np.zeros(grouped.shape[:2], dtype=np.uint64)
            for index in range(min(5, self.slot_bits - byte)):  # 32 + 7 bits: five bytes
                value |= grouped[:, :, byte + index].astype(np.uint64) << np.uint64(8 * index)
            values[:, :, place] = (value >> np.uint64(shift)) & mask
        rows = values.reshape(len(plaintexts), groups * 8)
        outside = rows[:, slots:].any(axis=1)
        if outside.any():
            place = first + int(np.argmax(outside))
            raise CodecError(f"plaintext {place}: bits set above its last slot")
        return rows[:, :slots]


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CodecError(f"{field}: expected {low}..{high}, got {value!r}")
