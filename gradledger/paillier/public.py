"""The public key: checked, and all that needs no secret. `docs/protocol.md`, section 2.2."""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradledger.errors import ConfigError, PaillierError
from gradledger.paillier import engines
from gradledger.paillier.encrypting import ENCRYPTORS, Encryptor, check_threads, codes_of
from gradledger.paillier.gmpy import read
from gradledger.paillier.seeded import SeededRandomness

if TYPE_CHECKING:
    from gradledger.codec import Codec
    from gradledger.paillier.masks import MaskStore

BITS_DEFAULT = 3072
BITS_MIN = 2048
BITS_MAX = 8192
SMALL_FACTOR_MAX = 65_536

_BITS_MIN_INSECURE = 64
_SUM_PREFIX = struct.Struct("<II")


def key_hash(n: int) -> bytes:
    """Return the fingerprint of a public key that the chain and every header carry.

    Parameters
    ----------
    n : int
        The modulus.

    Returns
    -------
    bytes
        SHA-256 of n, big endian without leading zeros; 32 bytes.
    """
    n = int(n)
    return hashlib.sha256(n.to_bytes((n.bit_length() + 7) // 8, "big")).digest()


def sum_payload(version: int, updates: int, ciphertexts: bytes) -> bytes:
    """Return the payload of a sum's envelope.

    Parameters
    ----------
    version : int
        Round version.
    updates : int
        How many updates were added.
    ciphertexts : bytes
        Their sum, from `PaillierPublicKey.add`.

    Returns
    -------
    bytes
        8 bytes longer than the ciphertexts. Its SHA-256 is what validators attest.
    """
    return _SUM_PREFIX.pack(version, updates) + ciphertexts


def split_sum_payload(payload: bytes) -> tuple[int, int, bytes]:
    """Return version, number of updates and ciphertexts of a sum's payload.

    Parameters
    ----------
    payload : bytes
        As `sum_payload` makes it.

    Returns
    -------
    tuple of int, int, bytes
        The ciphertexts are not checked here.

    Raises
    ------
    PaillierError
        It is too short.
    """
    if len(payload) <= _SUM_PREFIX.size:
        raise PaillierError(f"expected a sum of more than 8 bytes, got {len(payload)}")
    version, updates = _SUM_PREFIX.unpack_from(payload)
    return version, updates, bytes(memoryview(payload)[_SUM_PREFIX.size :])


class PaillierPublicKey:
    """The owner's public key, checked as far as a stranger can check it.

    Parameters
    ----------
    n : int
        Modulus, 2048..8192 bits. g is n + 1.
    allow_insecure_size_for_tests : bool
        Take a modulus from 64 bits on. Never for real updates.

    Raises
    ------
    PaillierError
        n is too small or too large, even, prime, a perfect power, or has a factor below 65,536.

    Notes
    -----
    That n has exactly two prime factors cannot be seen from n alone; an owner who breaks it harms
    only the secrecy that it could break anyway by decrypting (`docs/caveats.md`).
    """

    __slots__ = ("_n", "_n_squared", "allow_insecure_size_for_tests", "key_hash", "n")

    def __init__(self, n: int, *, allow_insecure_size_for_tests: bool = False) -> None:
        import gmpy2

        self.n = int(n)
        self.allow_insecure_size_for_tests = allow_insecure_size_for_tests
        _check_modulus(self.n, _BITS_MIN_INSECURE if allow_insecure_size_for_tests else BITS_MIN)
        self._n = gmpy2.mpz(self.n)
        self._n_squared = self._n * self._n
        self.key_hash = key_hash(self.n)

    @classmethod
    def from_hex(cls, text: str) -> PaillierPublicKey:
        """Return the key of a task card's `paillier_n`.

        Parameters
        ----------
        text : str
            Hexadecimal digits, no prefix.

        Returns
        -------
        PaillierPublicKey
            The key, checked.

        Raises
        ------
        PaillierError
            Not hexadecimal, too long, or no valid modulus.
        """
        if not isinstance(text, str) or len(text) > BITS_MAX // 4:
            raise PaillierError(f"expected n as at most {BITS_MAX // 4} hexadecimal digits")
        if not text or not set(text) <= set("0123456789abcdefABCDEF"):
            raise PaillierError("expected n as hexadecimal digits")
        return cls(int(text, 16))

    def to_hex(self) -> str:
        """Return n as hexadecimal digits, for the task card.

        Returns
        -------
        str
            Lower case, no prefix.
        """
        return f"{self.n:x}"

    @classmethod
    def from_phe(cls, key: Any) -> PaillierPublicKey:
        """Return the key of a `phe.PaillierPublicKey`.

        Parameters
        ----------
        key : phe.PaillierPublicKey
            Its g is n + 1 as well.

        Returns
        -------
        PaillierPublicKey
            The same key.
        """
        return cls(key.n)

    def to_phe(self) -> Any:
        """Return the same key for python-paillier, which must be installed.

        Returns
        -------
        phe.PaillierPublicKey
            The key.
        """
        from phe import paillier

        return paillier.PaillierPublicKey(self.n)

    @property
    def bits(self) -> int:
        """Bit length of n."""
        return self.n.bit_length()

    @property
    def ciphertext_bytes(self) -> int:
        """Length of one ciphertext in a payload."""
        return (2 * self.bits + 7) // 8

    def payload_bytes(self, codec: Codec) -> int:
        """Return the length of an encrypted update.

        Parameters
        ----------
        codec : Codec
            Of the task.

        Returns
        -------
        int
            Number of plaintexts x `ciphertext_bytes`.
        """
        return codec.plaintexts(self.bits) * self.ciphertext_bytes

    def encrypt(
        self,
        update: NDArray[Any],
        codec: Codec,
        *,
        fast: bool = False,
        strict: bool = False,
        masks: MaskStore | None = None,
        seed: bytes | None = None,
        threads: int = 1,
    ) -> bytes:
        """Encrypt an update.

        Parameters
        ----------
        update : ndarray of uint16 or float, shape (parameters,)
            Codes from `codec.quantise`, or values, which are quantised here.
        codec : Codec
            Of the task.
        fast : bool
            Use a larger table and read it at addresses that depend on the secret exponents. For
            machines on which nobody else can watch caches.
        strict : bool
            Exponents of bits(n) + 128 bits in place of half of n's: no assumption on short
            exponents, and more than twice the time.
        masks : MaskStore, optional
            Blind with masks made ahead, one for each ciphertext, in place of exponents: no
            assumption but Paillier's. Each is deleted for good before it is used.
        seed : bytes, length 32, optional
            Let the base and all exponents follow from it, so that whoever has update and seed gets
            the same bytes: for tasks that audit uploads. Fresh from the operating system for each
            update, and as secret as the update itself.
        threads : int, 1..256
            How many work at once. Masks leave them nothing to do.

        Returns
        -------
        bytes
            `payload_bytes(codec)` bytes: the ciphertexts, big endian, one after the other.

        Raises
        ------
        CodecError
            The update does not fit the codec, or a value is not finite (its place is named).
        PaillierError
            `threads` is out of bounds, or `seed` is not 32 bytes.
        ConfigError
            `masks` with `fast` or `strict`, `seed` with `masks` or `strict`, or the file of masks
            cannot be used.
        KeyMismatchError, MasksShortError
            The masks are for another key, or too few are ready; none was taken.

        Notes
        -----
        Randomness comes from the operating system, and the comb table is kept for the next round;
        but with a seed it follows from that alone, and the table serves this update only.
        """
        return b"".join(
            self.encrypt_stream(
                update, codec, fast=fast, strict=strict, masks=masks, seed=seed, threads=threads
            )
        )

    def encrypt_stream(
        self,
        update: NDArray[Any],
        codec: Codec,
        *,
        fast: bool = False,
        strict: bool = False,
        masks: MaskStore | None = None,
        seed: bytes | None = None,
        threads: int = 1,
    ) -> Iterator[bytes]:
        """Encrypt an update in blocks, for vectors whose ciphertexts do not fit into memory.

        Parameters
        ----------
        update, codec, fast, strict, masks, seed, threads
            As `encrypt` takes them; `update` may be a `numpy.memmap`.

        Returns
        -------
        iterator of bytes
            256 ciphertexts each, fewer at the end; together what `encrypt` returns.

        Raises
        ------
        CodecError, PaillierError, ConfigError
            As in `encrypt`, and here, before the first block; the file of masks may fail later.
        """
        check_threads(threads)
        if masks is not None and (fast or strict):
            raise ConfigError("masks: expected neither fast nor strict beside them")
        if seed is not None and (masks is not None or strict):
            raise ConfigError(
                "seed: expected neither masks nor strict beside it: in an audit the update is "
                "encrypted again from the seed alone, with exponents of half of n's length"
            )
        codes = codes_of(update, codec)
        if seed is not None:
            return self._encrypt_seeded(codes, codec, seed, fast, threads)
        if masks is not None:
            return masks.blocks(self, codes, codec)
        encryptor = ENCRYPTORS.get(self.n, codec.plaintexts(self.bits), fast=fast, strict=strict)
        return encryptor.blocks(codes, codec, secrets.token_bytes, threads)

    def _encrypt_seeded(
        self, codes: NDArray[np.uint16], codec: Codec, seed: bytes, fast: bool, threads: int
    ) -> Iterator[bytes]:
        randomness = SeededRandomness(self.n, self.key_hash, seed, codes)
        size = engines.current().comb_size(fast, codec.plaintexts(self.bits), once=True)
        encryptor = Encryptor(self.n, randomness.unit(), fast=fast, size=size)
        exponents = randomness.exponents(encryptor.exponent_bits)
        return encryptor.blocks(codes, codec, exponents, threads)

    def add(self, payloads: Iterable[bytes], codec: Codec, *, threads: int = 1) -> bytes:
        """Return the encrypted sum of updates, taking them one by one.

        Parameters
        ----------
        payloads : iterable of bytes, 1..codec.devices_max of them
            Ciphertexts of updates under this key, each through `check_ciphertexts` before.
        codec : Codec
            Of the task.
        threads : int, 1..256
            How many work at once, where the extension is in use.

        Returns
        -------
        bytes
            The product of the ciphertexts modulo n^2, place by place. Deterministic, whatever the
            order; not re-randomised.

        Raises
        ------
        PaillierError
            None came, too many came, one has another length, or `threads` is out of bounds.

        Notes
        -----
        Exact while the number of updates x 65535 < 2**slot_bits. Paillier 1999, section 8.
        """
        check_threads(threads)
        sums = engines.current().sums(self.n, self.ciphertext_bytes, codec.plaintexts(self.bits))
        count = 0
        for payload in payloads:
            count += 1
            if count > codec.devices_max:
                raise PaillierError(
                    f"expected at most {codec.devices_max} updates in slots of "
                    f"{codec.slot_bits} bits"
                )
            self._check_length(payload, codec)
            sums.multiply(payload, threads)
        if not count:
            raise PaillierError("expected at least one update to add, got none")
        return sums.write(threads)

    def check_ciphertexts(self, payload: bytes, codec: Codec, *, threads: int = 1) -> None:
        """Refuse a payload that cannot be an encrypted update under this key.

        Parameters
        ----------
        payload : bytes
            Anything.
        codec : Codec
            Of the task.
        threads : int, 1..256
            How many work at once, where the extension is in use.

        Raises
        ------
        PaillierError
            Its length is not exact, or a ciphertext (which is named) is outside [1, n^2) or shares
            a factor with n; or `threads` is out of bounds.

        Notes
        -----
        Whether the slots hold codes in range cannot be seen here; the owner checks the sums.
        """
        import gmpy2

        check_threads(threads)
        self._check_length(payload, codec)
        width = self.ciphertext_bytes
        engine = engines.current()
        outside = engine.out_of_range(payload, width, int(self._n_squared))
        if outside is not None:
            raise PaillierError(f"ciphertext {outside}: expected a value in [1, n^2)")
        if gmpy2.gcd(engine.product(payload, width, self.n, threads), self._n) == 1:
            return
        for place, number in enumerate(read(payload, width)):
            if gmpy2.gcd(number, self._n) != 1:
                raise PaillierError(f"ciphertext {place}: expected no common factor with n")
        raise AssertionError("a product shares a factor with n, none of its factors does")

    def _check_length(self, payload: bytes, codec: Codec) -> None:
        expected = self.payload_bytes(codec)
        if len(payload) != expected:
            raise PaillierError(f"expected {expected} bytes of ciphertexts, got {len(payload)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PaillierPublicKey) and other.n == self.n

    def __hash__(self) -> int:
        return hash(self.key_hash)

    def __repr__(self) -> str:
        return f"PaillierPublicKey({self.bits} bits, key_hash={self.key_hash.hex()[:16]}...)"


def _check_modulus(n: int, bits_min: int) -> None:
    import gmpy2

    if n < 0:
        raise PaillierError("n: expected a positive number")
    if not bits_min <= n.bit_length() <= BITS_MAX:
        raise PaillierError(f"n: expected {bits_min}..{BITS_MAX} bits, got {n.bit_length()}")
    if n % 2 == 0:
        raise PaillierError("n: expected an odd number")
    if gmpy2.is_power(n):
        raise PaillierError("n: expected a product of two primes, got a perfect power")
    if gmpy2.gcd(n, _small_primes()) != 1:
        raise PaillierError(f"n: expected no prime factor below {SMALL_FACTOR_MAX}")
    if gmpy2.is_prime(n):
        raise PaillierError("n: expected a product of two primes, got a prime")


@lru_cache(maxsize=1)
def _small_primes() -> Any:
    """The product of the primes below `SMALL_FACTOR_MAX`."""
    import gmpy2

    return gmpy2.primorial(SMALL_FACTOR_MAX)
