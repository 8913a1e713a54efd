"""Encrypting vectors: the powers of a fixed base from a comb table.

A ciphertext is (1 + m n) hs^a mod n^2 with a fresh short exponent a of bits(n)/2 bits (Damgard,
Jurik, Nielsen 2010, section 4.2); the powers of the fixed base hs come from a comb table (Lim, Lee
1994). Residues modulo n^2 are held as pairs A + B n, so that a product takes three products and two
divisions of half the size. Nothing here is constant-time; see `docs/caveats.md`.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gradledger.codec import Codec

ENCRYPTORS_MAX = 2  # comb tables kept by a process, about 12 MB each at 3072 bits
COMB_SMALL = (7, 8)  # teeth, blocks: 1,024 entries
COMB_LARGE = (10, 14)  # 14,336 entries
COMB_LARGE_FROM = 48  # ciphertexts in an update from which the large table pays within 5 rounds

_BATCH = 32  # ciphertexts whose exponents are drawn at a time


class Encryptor:
    """A comb table for one key and one base, and the encryption that uses it.

    The exponent's bits stand in `teeth` rows of `blocks` x `depth` columns. Column c of block j and
    depth k is an index into block j of the table, whose entry u is the product over the rows i in u
    of hs^(2^(row_bits i + depth j)).
    """

    def __init__(self, n: int, unit: int, teeth: int, blocks: int) -> None:
        import gmpy2

        self.n = n
        self.exponent_bits = (n.bit_length() + 1) // 2
        self.teeth = teeth
        self.depth = -(-self.exponent_bits // (teeth * blocks))
        self.blocks = -(-self.exponent_bits // (teeth * self.depth))
        self._n = gmpy2.mpz(n)
        h = -gmpy2.mpz(unit) * unit % self._n
        self.hs = gmpy2.powmod(h, self._n, self._n * self._n)
        self._low: list[Any] = []
        self._high: list[Any] = []
        self._fill()

    def _fill(self) -> None:
        import gmpy2

        wanted = {
            self.depth * (self.blocks * row + block): (block, row)
            for row in range(self.teeth)
            for block in range(self.blocks)
        }
        bases: dict[tuple[int, int], tuple[Any, Any]] = {}
        high, low = gmpy2.f_divmod(self.hs, self._n)
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

    def encrypt(
        self, codes: NDArray[np.uint16], codec: Codec, random_bytes: Callable[[int], bytes]
    ) -> bytes:
        """Encrypt codes; `random_bytes(count)` must be the OS's generator but for known answers."""
        import gmpy2

        n, f_divmod = self._n, gmpy2.f_divmod
        lows, highs = self._low, self._high
        bits = self.n.bit_length()
        width = (2 * bits + 7) // 8
        count = codec.plaintexts(bits)
        payload = bytearray(count * width)
        batch: list[Any] = []
        for place, plaintext in enumerate(codec.pack(codes, bits)):
            if not batch:
                batch = self._indexes(min(_BATCH, count - place), random_bytes)
                batch.reverse()
            low, high = gmpy2.mpz(1), gmpy2.mpz(0)
            for column in batch.pop():
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
            payload[place * width : (place + 1) * width] = number.to_bytes(width, "big")
        return bytes(payload)

    def _indexes(self, count: int, random_bytes: Callable[[int], bytes]) -> list[Any]:
        """Draw `count` exponents (little endian); return their table indexes, depth by depth."""
        row_bits = self.blocks * self.depth
        width = (self.exponent_bits + 7) // 8
        raw = np.frombuffer(random_bytes(count * width), dtype=np.uint8).reshape(count, width)
        bits = np.zeros((count, self.teeth * row_bits), dtype=np.uint8)
        bits[:, : self.exponent_bits] = np.unpackbits(raw, axis=1, bitorder="little")[
            :, : self.exponent_bits
        ]
        weights = (1 << np.arange(self.teeth)).astype(np.int32)
        rows = bits.reshape(count, self.teeth, row_bits).astype(np.int32)
        columns = np.einsum("tir,i->tr", rows, weights).reshape(count, self.blocks, self.depth)
        columns += (np.arange(self.blocks, dtype=np.int32) << self.teeth)[None, :, None]
        return columns.transpose(0, 2, 1)[:, ::-1].tolist()


class EncryptorCache:
    """The newest encryptors of this process, at most `ENCRYPTORS_MAX`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[int, tuple[int, int]], Encryptor] = OrderedDict()

    def get(self, n: int, size: tuple[int, int]) -> Encryptor:
        """Return the encryptor of a key, made with a base of its own if it is new."""
        with self._lock:
            encryptor = self._entries.pop((n, size), None)
            if encryptor is None:
                while len(self._entries) >= ENCRYPTORS_MAX:
                    self._entries.popitem(last=False)
                encryptor = Encryptor(n, _random_unit(n), *size)
            self._entries[n, size] = encryptor
            return encryptor


ENCRYPTORS = EncryptorCache()


def _random_unit(n: int) -> int:
    import gmpy2

    while True:
        unit = secrets.randbelow(n)
        if gmpy2.gcd(unit, n) == 1:
            return unit
