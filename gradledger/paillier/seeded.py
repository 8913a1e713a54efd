"""All randomness of an update's encryption, from one seed: whoever has it encrypts again, alike.

An update that may be audited is encrypted so (`docs/protocol.md`, section 2.2). The unit x is
derived too, not told: a base that a device chose itself could hide a factor (1 + n)^k, and with it
another plaintext than the one that it shows.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from gradledger.errors import PaillierError

SEED_BYTES = 32

_LABEL = b"gradledger paillier"
_UNIT, _EXPONENT = 1, 2
_COUNTER = struct.Struct("<BQ")
_UNITS_MAX = 256  # a candidate is below n with a probability of one half or more


def check_seed(seed: bytes) -> None:
    """Refuse what is no seed; the message does not show it.

    Parameters
    ----------
    seed : bytes
        Anything.

    Raises
    ------
    PaillierError
        It is not 32 bytes.
    """
    if not isinstance(seed, bytes):
        raise PaillierError(f"expected a seed of {SEED_BYTES} bytes, got {type(seed).__name__}")
    if len(seed) != SEED_BYTES:
        raise PaillierError(f"expected a seed of {SEED_BYTES} bytes, got {len(seed)} bytes")


class SeededRandomness:
    """The unit and the exponents that follow from a seed, a key and an update.

    Parameters
    ----------
    n : int
        Modulus of the key.
    key_hash : bytes, length 32
        Of the key.
    seed : bytes, length 32
        Fresh from the operating system for each update, and as secret as the update.
    codes : ndarray of uint16, shape (parameters,)
        The update. Their hash is mixed in, so that two updates under one seed, which ought not to
        be, still have nothing in common.

    Raises
    ------
    PaillierError
        The seed is none.

    Notes
    -----
    SHAKE-256 (FIPS 202) of a prefix of fixed length, what it is for, and a counter.
    """

    __slots__ = ("_n", "_prefix")

    def __init__(self, n: int, key_hash: bytes, seed: bytes, codes: NDArray[np.uint16]) -> None:
        check_seed(seed)
        update = hashlib.sha256(np.ascontiguousarray(codes, dtype="<u2").data).digest()
        self._n = n
        self._prefix = _LABEL + key_hash + seed + update

    def _bytes(self, use: int, counter: int, size: int) -> bytes:
        return hashlib.shake_256(self._prefix + _COUNTER.pack(use, counter)).digest(size)

    def unit(self) -> int:
        """Return the unit x.

        Returns
        -------
        int
            The first candidate in [1, n) that shares no factor with n.

        Raises
        ------
        PaillierError
            There is none among 256, which no key of a real size will show.
        """
        import gmpy2

        bits = self._n.bit_length()
        for counter in range(_UNITS_MAX):
            drawn = int.from_bytes(self._bytes(_UNIT, counter, -(-bits // 8)), "little")
            candidate = drawn & ((1 << bits) - 1)
            if 0 < candidate < self._n and gmpy2.gcd(candidate, self._n) == 1:
                return candidate
        raise PaillierError(f"expected a unit among {_UNITS_MAX} candidates, found none")

    def exponents(self, bits: int) -> SeededExponents:
        """Return the stream of exponents, from the first ciphertext's on.

        Parameters
        ----------
        bits : int
            Length of an exponent.

        Returns
        -------
        SeededExponents
            For `Encryptor.blocks`.
        """
        return SeededExponents(self, -(-bits // 8))


class SeededExponents:
    """A stream of exponents; called for random bytes, it gives those of the next ciphertexts.

    Parameters
    ----------
    randomness : SeededRandomness
        Where they come from.
    width : int
        Bytes of each.
    """

    __slots__ = ("_next", "_randomness", "_width")

    def __init__(self, randomness: SeededRandomness, width: int) -> None:
        self._randomness, self._width, self._next = randomness, width, 0

    def __call__(self, size: int) -> bytes:
        """Return the next `size` bytes, whole exponents."""
        first = self._next
        self._next += size // self._width
        return b"".join(
            self._randomness._bytes(_EXPONENT, place, self._width)
            for place in range(first, self._next)
        )
