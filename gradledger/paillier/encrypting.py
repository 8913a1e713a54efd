"""Encrypting vectors under one key: fresh exponents, and the powers of a fixed base.

A ciphertext is (1 + m n) hs^a mod n^2 with a fresh short exponent a of bits(n)/2 bits (Damgard,
Jurik, Nielsen 2010, section 4.2), or of bits(n) + 128 bits in strict mode, which makes hs^a all but
uniform in the group that hs generates, without an assumption on short exponents. The powers of hs
come from a comb table (Lim, Lee 1994).
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradledger.codec import Codec
from gradledger.errors import CodecError, PaillierError
from gradledger.paillier import engines, native

ENCRYPTORS_MAX = 2  # tables kept by a process: some MB each, fast=True up to 15 MB at 3072 bits
BLOCK = 256  # ciphertexts whose exponents are drawn at a time, on every backend alike
STRICT_EXTRA_BITS = 128
THREADS_MAX = 256


def strict_bits(n: int) -> int:
    """Return the length of exponents in strict mode.

    Parameters
    ----------
    n : int
        Modulus of the key.

    Returns
    -------
    int
        bits(n) + 128.
    """
    return n.bit_length() + STRICT_EXTRA_BITS


def check_threads(threads: int) -> None:
    """Refuse a number of threads that is out of bounds.

    Parameters
    ----------
    threads : int
        Wanted.

    Raises
    ------
    PaillierError
        It is not in 1..256.
    """
    if not 1 <= threads <= THREADS_MAX:
        raise PaillierError(f"expected 1..{THREADS_MAX} threads, got {threads}")


def codes_of(update: NDArray[Any], codec: Codec) -> NDArray[np.uint16]:
    """Return the codes of an update, quantised if it holds values.

    Parameters
    ----------
    update : ndarray of uint16 (codes) or float (values), shape (parameters,)
        The update.
    codec : Codec
        Of the task.

    Returns
    -------
    ndarray of uint16, shape (parameters,)
        The codes.

    Raises
    ------
    CodecError
        Another type or shape, or a value is not finite.
    """
    if not isinstance(update, np.ndarray) or (
        update.dtype != np.uint16 and update.dtype.kind != "f"
    ):
        raise CodecError("expected an array of uint16 codes or of floats")
    if update.dtype.kind == "f":
        return engines.current().quantise(update, codec)
    if update.shape != (codec.parameters,):
        raise CodecError(f"expected {codec.parameters} codes in one row, got {update.shape}")
    return update


class Encryptor:
    """A comb table for one key and one base, and the encryption that uses it.

    Parameters
    ----------
    n : int
        Modulus of the key.
    unit : int
        A random unit x modulo n: h = -x^2 mod n, and the base is hs = h^n mod n^2.
    exponent_bits : int, optional
        Length of exponents; by default half of n's, rounded up.
    fast : bool
        Take a large table and read it at addresses that depend on the exponents.
    size : tuple of int, int, optional
        Teeth and blocks of the table; by default the backend's choice for a long update.

    Notes
    -----
    The backend is the one in use now. What comes out does not depend on it, nor on `size`.
    """

    def __init__(
        self,
        n: int,
        unit: int,
        exponent_bits: int | None = None,
        fast: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        import gmpy2

        self.n = int(n)
        self.exponent_bits = exponent_bits or (self.n.bit_length() + 1) // 2
        h = -gmpy2.mpz(unit) * unit % self.n
        hs = int(gmpy2.powmod(h, self.n, self.n * self.n))
        engine = engines.current()
        size = size or engine.comb_size(fast, BLOCK)
        self.comb = engine.comb(self.n, hs, self.exponent_bits, fast, size)

    def blocks(
        self,
        codes: NDArray[np.uint16],
        codec: Codec,
        random_bytes: Callable[[int], bytes],
        threads: int = 1,
    ) -> Iterator[bytes]:
        """Encrypt codes, a block of ciphertexts at a time.

        Parameters
        ----------
        codes : ndarray of uint16, shape (parameters,)
            From `codes_of`.
        codec : Codec
            Of the task.
        random_bytes : callable
            Must be the operating system's generator but for known answers. Called once for each
            block; an exponent is ceil(exponent_bits / 8) bytes, little endian, in the order of the
            ciphertexts, and bits above `exponent_bits` are ignored.
        threads : int
            Parts of a block that are in work at once.

        Yields
        ------
        bytes
            256 ciphertexts, fewer at the end.
        """
        slots = codec.slots(self.n.bit_length())
        count = codec.plaintexts(self.n.bit_length())
        width = (self.exponent_bits + 7) // 8
        for start in range(0, count, BLOCK):
            of_block = min(BLOCK, count - start)
            exponents = random_bytes(of_block * width)
            values = codes[start * slots : (start + of_block) * slots]

            def share(
                first: int,
                size: int,
                values: NDArray[np.uint16] = values,
                exponents: bytes = exponents,
            ) -> bytes:
                return self.comb.encrypt(
                    values[first * slots : (first + size) * slots],
                    codec,
                    exponents[first * width : (first + size) * width],
                )

            yield b"".join(native.in_shares(of_block, self.comb.lanes, threads, share))

    def encrypt(
        self,
        codes: NDArray[np.uint16],
        codec: Codec,
        random_bytes: Callable[[int], bytes],
        threads: int = 1,
    ) -> bytes:
        """Encrypt codes.

        Parameters
        ----------
        codes, codec, random_bytes, threads
            As `blocks` takes them.

        Returns
        -------
        bytes
            All ciphertexts.
        """
        return b"".join(self.blocks(codes, codec, random_bytes, threads))


class EncryptorCache:
    """The newest encryptors of this process, at most `ENCRYPTORS_MAX`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[object, ...], Encryptor] = OrderedDict()

    def get(
        self, n: int, ciphertexts: int, *, fast: bool = False, strict: bool = False
    ) -> Encryptor:
        """Return the encryptor of a key, made with a base of its own if it is new.

        Parameters
        ----------
        n : int
            Modulus of the key.
        ciphertexts : int
            In the update: a backend may take a smaller table for a few.
        fast, strict : bool
            As `PaillierPublicKey.encrypt` takes them.

        Returns
        -------
        Encryptor
            For the backend in use.
        """
        engine = engines.current()
        size = engine.comb_size(fast, ciphertexts)
        key = (n, engine.name, size, fast, strict)
        with self._lock:
            encryptor = self._entries.pop(key, None)
            if encryptor is None:
                while len(self._entries) >= ENCRYPTORS_MAX:
                    self._entries.popitem(last=False)
                bits = strict_bits(n) if strict else None
                encryptor = Encryptor(n, random_unit(n), bits, fast, size)
            self._entries[key] = encryptor
            return encryptor


ENCRYPTORS = EncryptorCache()


def random_unit(n: int) -> int:
    """Draw a number below n that shares no factor with it.

    Parameters
    ----------
    n : int
        Modulus of the key.

    Returns
    -------
    int
        From the operating system's generator.
    """
    import gmpy2

    while True:
        unit = secrets.randbelow(n)
        if gmpy2.gcd(unit, n) == 1:
            return unit
