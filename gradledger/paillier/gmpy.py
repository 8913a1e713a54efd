"""Paillier's arithmetic on gmpy2: for machines without the extension, and what that is tested by.

Nothing here is constant-time; see `docs/caveats.md`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gradledger.codec import Codec

_COMB_SMALL = (7, 8)  # teeth, blocks: 1,024 entries
_COMB_LARGE = (10, 14)  # 14,336 entries, 12 MB at 3072 bits
_COMB_LARGE_FROM = 48  # ciphertexts in an update from which the large table pays within 5 rounds
_COMB_LARGE_ONCE_FROM = 192  # and from which it pays within one
_SHARE = 16  # ciphertexts that a thread decrypts at a time


class Gmpy2:
    """The arithmetic that needs no extension. `native.Native` has the same methods."""

    name = "gmpy2"

    def quantise(self, values: NDArray[np.floating], codec: Codec) -> NDArray[np.uint16]:
        """Return the codes of an update.

        Parameters
        ----------
        values : ndarray of float, shape (parameters,)
            The update.
        codec : Codec
            Of the task.

        Returns
        -------
        ndarray of uint16, shape (parameters,)
            As `codec.quantise` says.

        Raises
        ------
        CodecError
            The shape is another, or a value is not finite.
        """
        return codec.quantise(values)

    def comb_size(self, fast: bool, ciphertexts: int, *, once: bool = False) -> tuple[int, int]:
        """Return the size of table that suits an update.

        Parameters
        ----------
        fast : bool
            Whether look-ups may be at addresses that depend on exponents. Here they always are.
        ciphertexts : int
            In the update.
        once : bool
            Whether the table serves this update alone.

        Returns
        -------
        tuple of int, int
            Teeth and blocks, for `comb`.
        """
        pays_from = _COMB_LARGE_ONCE_FROM if once else _COMB_LARGE_FROM
        return _COMB_LARGE if ciphertexts >= pays_from else _COMB_SMALL

    def comb(
        self, n: int, hs: int, exponent_bits: int, fast: bool, size: tuple[int, int]
    ) -> GmpyComb:
        """Make a table of powers.

        Parameters
        ----------
        n : int
            Modulus of the key.
        hs : int
            The base, modulo n^2.
        exponent_bits : int
            Length of exponents.
        fast : bool
            As `comb_size` takes it.
        size : tuple of int, int
            Teeth and blocks.

        Returns
        -------
        GmpyComb
            The table.
        """
        return GmpyComb(n, hs, exponent_bits, *size)

    def sums(self, n: int, width: int, count: int) -> GmpySums:
        """Begin `count` products of ciphertexts.

        Parameters
        ----------
        n : int
            Modulus of the key.
        width : int
            Bytes of a ciphertext.
        count : int
            Ciphertexts in a payload.

        Returns
        -------
        GmpySums
            The products, all empty.
        """
        return GmpySums(n, width)

    def out_of_range(self, payload: bytes, width: int, n_squared: int) -> int | None:
        """Find a ciphertext outside [1, n^2).

        Parameters
        ----------
        payload : bytes
            Ciphertexts.
        width : int
            Bytes of each.
        n_squared : int
            The bound.

        Returns
        -------
        int or None
            The place of the first one, or None.
        """
        for place, number in enumerate(read(payload, width)):
            if not 0 < number < n_squared:
                return place
        return None

    def product(self, payload: bytes, width: int, n: int, threads: int) -> int:
        """Multiply all ciphertexts.

        Parameters
        ----------
        payload : bytes
            Ciphertexts.
        width : int
            Bytes of each.
        n : int
            The modulus.
        threads : int
            Not used: gmpy2 holds the interpreter's lock here.

        Returns
        -------
        int
            A number that shares a factor with n exactly if one of the ciphertexts does.
        """
        import gmpy2

        modulus = gmpy2.mpz(n)
        product = gmpy2.mpz(1)
        for number in read(payload, width):
            product = product * (number % modulus) % modulus
        return int(product)

    def decryptor(self, p: int, q: int, width: int) -> GmpyDecryptor:
        """Return what decrypts.

        Parameters
        ----------
        p, q : int
            The primes, p < q.
        width : int
            Bytes of a ciphertext.

        Returns
        -------
        GmpyDecryptor
            For ciphertexts that share no factor with n.
        """
        return GmpyDecryptor(p, q, width)


class GmpyComb:
    """A comb table for one base under one key.

    The exponent's bits stand in `teeth` rows of `blocks` x `depth` columns. Column c of block j and
    depth k is an index into block j of the table, whose entry u is the product over the rows i in u
    of hs^(2^(row_bits i + depth j)). Residues modulo n^2 are held as pairs A + B n, so that a
    product takes three products and two divisions of half the size.

    Parameters
    ----------
    n, hs, exponent_bits
        As `Gmpy2.comb` takes them.
    teeth, blocks : int
        Size of the table.
    """

    lanes = 1

    def __init__(self, n: int, hs: int, exponent_bits: int, teeth: int, blocks: int) -> None:
        import gmpy2

        self.exponent_bits = exponent_bits
        self.teeth = teeth
        self.depth = -(-exponent_bits // (teeth * blocks))
        self.blocks = -(-exponent_bits // (teeth * self.depth))
        self._n = gmpy2.mpz(n)
        self._low: list[Any] = []
        self._high: list[Any] = []
        self._fill(hs)

    def _fill(self, hs: int) -> None:
        import gmpy2

        wanted = {
            self.depth * (self.blocks * row + block): (block, row)
            for row in range(self.teeth)
            for block in range(self.blocks)
        }
        bases: dict[tuple[int, int], tuple[Any, Any]] = {}
        high, low = gmpy2.f_divmod(hs, self._n)
        for power in range(max(wanted) + 1):
            if power in wanted:
                bases[wanted[power]] = (low, high)
            low, high = self._multiply(low, high, low, high)
        for block in range(self.blocks):
            start = len(self._low)
            self._low.append(gmpy2.mpz(1))
            self._high.append(gmpy2.mpz(0))
            for entry in range(1, 1 << self.teeth):
                row = entry.bit_length() - 1
                rest = start + (entry ^ (1 << row))
                base = bases[block, row]
                product = self._multiply(self._low[rest], self._high[rest], *base)
                self._low.append(product[0])
                self._high.append(product[1])

    def _multiply(self, low: Any, high: Any, low2: Any, high2: Any) -> tuple[Any, Any]:
        """Multiply two residues modulo n^2, each A + B n."""
        import gmpy2

        carry, rest = gmpy2.f_divmod(low * low2, self._n)
        return rest, (low * high2 + high * low2 + carry) % self._n

    def encrypt(self, codes: NDArray[np.uint16], codec: Codec, exponents: bytes) -> bytes:
        """Encrypt codes.

        Parameters
        ----------
        codes : ndarray of uint16
            Of whole plaintexts; the last one may be short.
        codec : Codec
            Of the task.
        exponents : bytes
            One for each plaintext, little endian, in whole bytes.

        Returns
        -------
        bytes
            The ciphertexts.
        """
        import gmpy2

        n, f_divmod = self._n, gmpy2.f_divmod
        lows, highs = self._low, self._high
        bits = n.bit_length()
        width = (2 * bits + 7) // 8
        plaintexts = replace(codec, parameters=len(codes)).pack(codes, bits)
        columns = self._indexes(exponents, -(-len(codes) // codec.slots(bits)))
        parts = []
        for plaintext, indexes in zip(plaintexts, columns, strict=True):
            low, high = gmpy2.mpz(1), gmpy2.mpz(0)
            for column in indexes:
                carry, rest = f_divmod(low * low, n)
                high = (2 * low * high + carry) % n
                low = rest
                for index in column:
                    factor = lows[index]
                    carry, rest = f_divmod(low * factor, n)
                    high = (low * highs[index] + high * factor + carry) % n
                    low = rest
            message = gmpy2.mpz.from_bytes(plaintext, "little")
            number = low + (high + message * low) % n * n
            parts.append(number.to_bytes(width, "big"))
        return b"".join(parts)

    def _indexes(self, exponents: bytes, count: int) -> list[Any]:
        """Return the table indexes of `count` exponents, depth by depth."""
        row_bits = self.blocks * self.depth
        width = (self.exponent_bits + 7) // 8
        raw = np.frombuffer(exponents, dtype=np.uint8).reshape(count, width)
        bits = np.zeros((count, self.teeth * row_bits), dtype=np.uint8)
        bits[:, : self.exponent_bits] = np.unpackbits(raw, axis=1, bitorder="little")[
            :, : self.exponent_bits
        ]
        weights = (1 << np.arange(self.teeth)).astype(np.int32)
        rows = bits.reshape(count, self.teeth, row_bits).astype(np.int32)
        columns = np.einsum("tir,i->tr", rows, weights).reshape(count, self.blocks, self.depth)
        columns += (np.arange(self.blocks, dtype=np.int32) << self.teeth)[None, :, None]
        return columns.transpose(0, 2, 1)[:, ::-1].tolist()


class GmpySums:
    """Products of ciphertexts, place by place.

    Parameters
    ----------
    n, width
        As `Gmpy2.sums` takes them.
    """

    def __init__(self, n: int, width: int) -> None:
        import gmpy2

        self._modulus = gmpy2.mpz(n) ** 2
        self._width = width
        self._totals: list[Any] = []

    def multiply(self, payload: bytes, threads: int) -> None:
        """Multiply each product by the payload's ciphertext at its place.

        Parameters
        ----------
        payload : bytes
            Ciphertexts.
        threads : int
            Not used: gmpy2 holds the interpreter's lock here.
        """
        modulus, numbers = self._modulus, read(payload, self._width)
        if self._totals:
            totals = zip(self._totals, numbers, strict=True)
            self._totals = [total * number % modulus for total, number in totals]
        else:
            self._totals = [number % modulus for number in numbers]

    def write(self, threads: int) -> bytes:
        """Return the products.

        Parameters
        ----------
        threads : int
            Not used.

        Returns
        -------
        bytes
            A payload.
        """
        return b"".join(total.to_bytes(self._width, "big") for total in self._totals)


class GmpyDecryptor:
    """Decryption modulo p^2 and q^2, then the Chinese remainder theorem: Paillier 1999, section 7.

    Parameters
    ----------
    p, q, width
        As `Gmpy2.decryptor` takes them.
    """

    def __init__(self, p: int, q: int, width: int) -> None:
        import gmpy2

        self._p, self._q, self._width = gmpy2.mpz(p), gmpy2.mpz(q), width
        self._p_inverse = gmpy2.invert(self._p, self._q)
        self._plain_bytes = ((self._p * self._q).bit_length() + 7) // 8

    def decrypt(self, ciphertexts: bytes, threads: int) -> list[bytes]:
        """Decrypt ciphertexts.

        Parameters
        ----------
        ciphertexts : bytes
            Each in [1, n^2) and without a factor in common with n.
        threads : int
            gmpy2 releases the interpreter's lock while it raises to powers.

        Returns
        -------
        list of bytes
            The plaintexts, each as a little-endian integer.
        """
        width = self._width * _SHARE
        shares = [ciphertexts[start : start + width] for start in range(0, len(ciphertexts), width)]
        if threads == 1:
            parts = list(map(self._decrypt_share, shares))
        else:
            with ThreadPoolExecutor(threads) as pool:
                parts = list(pool.map(self._decrypt_share, shares))
        return [plaintext for part in parts for plaintext in part]

    def _decrypt_share(self, ciphertexts: bytes) -> list[bytes]:
        numbers = list(read(ciphertexts, self._width))
        p, q = self._p, self._q
        plaintexts = []
        for of_p, of_q in zip(
            _decrypt_modulo(numbers, p, q), _decrypt_modulo(numbers, q, p), strict=True
        ):
            plaintext = of_p + p * ((of_q - of_p) * self._p_inverse % q)
            plaintexts.append(plaintext.to_bytes(self._plain_bytes, "little"))
        return plaintexts


def _decrypt_modulo(numbers: list[Any], prime: Any, other: Any) -> list[Any]:
    """Return the plaintexts modulo `prime`: L(c^(prime-1) mod prime^2) / L(g^(prime-1)...)."""
    import gmpy2

    square = prime * prime
    scale = gmpy2.invert(-other, prime)
    powers = gmpy2.powmod_base_list([number % square for number in numbers], prime - 1, square)
    return [(power - 1) // prime * scale % prime for power in powers]


def read(payload: bytes, width: int) -> Any:
    """Yield the ciphertexts of a payload as numbers.

    Parameters
    ----------
    payload : bytes
        Big-endian numbers, one after the other.
    width : int
        Bytes of each.

    Yields
    ------
    mpz
        A number.
    """
    import gmpy2

    from_bytes = gmpy2.mpz.from_bytes
    for start in range(0, len(payload), width):
        yield from_bytes(bytes(payload[start : start + width]), "big")
