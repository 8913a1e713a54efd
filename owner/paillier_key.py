"""The Paillier private key: made, kept and used by the owner alone."""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradledger.codec import Codec
from gradledger.errors import ConfigError, PaillierError
from gradledger.files import write_new
from gradledger.paillier import BITS_DEFAULT, BITS_MAX, BITS_MIN, PaillierPublicKey, engines

PRIMALITY_ROUNDS = 40
WORKERS_MAX = 256
KEY_FILE_BYTES_MAX = 65_536

_CANDIDATES_MAX = 1_000_000


class PaillierPrivateKey:
    """The two primes of a Paillier modulus.

    Parameters
    ----------
    p, q : int
        Different primes of at least half the modulus' bits each.
    allow_insecure_size_for_tests : bool
        Take a modulus from 64 bits on.

    Raises
    ------
    PaillierError
        p or q is not prime, they are equal, n is not coprime to (p-1)(q-1), or n is refused by
        `PaillierPublicKey`.
    """

    __slots__ = ("_decryptors", "_p", "_q", "public")

    def __init__(self, p: int, q: int, *, allow_insecure_size_for_tests: bool = False) -> None:
        import gmpy2

        self._p, self._q = sorted((gmpy2.mpz(p), gmpy2.mpz(q)))
        if self._p == self._q or not all(
            gmpy2.is_prime(prime, PRIMALITY_ROUNDS) for prime in (self._p, self._q)
        ):
            raise PaillierError("expected two different primes")
        n = self._p * self._q
        if gmpy2.gcd(n, (self._p - 1) * (self._q - 1)) != 1:
            raise PaillierError("expected primes with n coprime to (p-1)(q-1)")
        self.public = PaillierPublicKey(
            int(n), allow_insecure_size_for_tests=allow_insecure_size_for_tests
        )
        self._decryptors: dict[str, Any] = {}

    @classmethod
    def generate(
        cls, bits: int = BITS_DEFAULT, *, allow_insecure_size_for_tests: bool = False
    ) -> PaillierPrivateKey:
        """Make a key from the operating system's randomness.

        Parameters
        ----------
        bits : int, even, 2048..8192
            Length of n.
        allow_insecure_size_for_tests : bool
            Take `bits` from 64 on.

        Returns
        -------
        PaillierPrivateKey
            p = q = 3 mod 4 and gcd(p-1, q-1) = 2, as the short exponent asks for.

        Raises
        ------
        PaillierError
            `bits` is odd or out of bounds.

        Notes
        -----
        Damgard, Jurik, Nielsen 2010, section 4.2.
        """
        import gmpy2

        low = 64 if allow_insecure_size_for_tests else BITS_MIN
        if bits % 2 or not low <= bits <= BITS_MAX:
            raise PaillierError(f"expected an even number of {low}..{BITS_MAX} bits, got {bits}")
        while True:
            p, q = _random_prime(bits // 2), _random_prime(bits // 2)
            if gmpy2.gcd(p - 1, q - 1) == 2 and (p - q).bit_length() > bits // 2 - min(
                100, bits // 8
            ):
                return cls(
                    int(p), int(q), allow_insecure_size_for_tests=allow_insecure_size_for_tests
                )

    @classmethod
    def from_phe(cls, key: Any) -> PaillierPrivateKey:
        """Return the key of a `phe.PaillierPrivateKey`.

        Parameters
        ----------
        key : phe.PaillierPrivateKey
            Its primes need not be 3 modulo 4.

        Returns
        -------
        PaillierPrivateKey
            The same key.
        """
        return cls(key.p, key.q)

    def to_phe(self) -> Any:
        """Return the same key for python-paillier, which must be installed.

        Returns
        -------
        phe.PaillierPrivateKey
            The key.
        """
        from phe import paillier

        return paillier.PaillierPrivateKey(self.public.to_phe(), int(self._p), int(self._q))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PaillierPrivateKey:
        """Read a key file.

        Parameters
        ----------
        path : path
            As `save` wrote it.

        Returns
        -------
        PaillierPrivateKey
            The key.

        Raises
        ------
        ConfigError
            No such file, other accounts of this machine may read it, or it holds no such key.
        """
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"{path}: expected a regular file")
                if status.st_mode & 0o077:
                    mode = stat.S_IMODE(status.st_mode)
                    raise ConfigError(
                        f"{path}: expected mode 0600, got {mode:04o}; other accounts may have "
                        "read this key"
                    )
                text = file.read(KEY_FILE_BYTES_MAX + 1)
        except OSError as exc:
            raise ConfigError(f"{path}: cannot read the Paillier key: {exc.strerror}") from exc
        if len(text) > KEY_FILE_BYTES_MAX:
            raise ConfigError(f"{path}: expected at most {KEY_FILE_BYTES_MAX} bytes")
        try:
            fields = json.loads(text)
            if fields["kind"] != "paillier" or fields["format"] != 1:
                raise ValueError
            return cls(int(fields["p"], 16), int(fields["q"], 16))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f"{path}: expected a Paillier key file") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key to a new file that only this account may read.

        Parameters
        ----------
        path : path
            Must not exist: a key that is overwritten takes its sums along.

        Raises
        ------
        ConfigError
            The file exists or cannot be written.
        """
        fields = {"format": 1, "kind": "paillier", "p": f"{self._p:x}", "q": f"{self._q:x}"}
        try:
            write_new(Path(path), json.dumps(fields).encode())
        except OSError as exc:
            raise ConfigError(f"{path}: cannot write the Paillier key: {exc.strerror}") from exc

    def decrypt_sums(
        self, ciphertexts: bytes, codec: Codec, count: int, workers: int = 1
    ) -> NDArray[np.uint64]:
        """Decrypt the encrypted sum of `count` updates.

        Parameters
        ----------
        ciphertexts : bytes
            From `PaillierPublicKey.add`.
        codec : Codec
            Of the task.
        count : int, 1..codec.devices_max
            How many updates are in the sum.
        workers : int, 1..256
            Threads.

        Returns
        -------
        ndarray of uint64, shape (parameters,)
            Sum of the codes, parameter by parameter.

        Raises
        ------
        PaillierError
            `count` or the length is wrong, or a ciphertext is out of range.
        CodecError
            A slot sum exceeds count x 65535 (the slot is named), or bits are set where none belong.

        Notes
        -----
        Modulo p^2 and q^2, then the Chinese remainder theorem: Paillier 1999, section 7.
        """
        if not 1 <= count <= codec.devices_max:
            raise PaillierError(f"expected a sum of 1..{codec.devices_max} updates, got {count}")
        if not 1 <= workers <= WORKERS_MAX:
            raise PaillierError(f"expected 1..{WORKERS_MAX} workers, got {workers}")
        self.public.check_ciphertexts(ciphertexts, codec, threads=workers)
        plaintexts = self._decryptor().decrypt(ciphertexts, workers)
        sums = codec.unpack(plaintexts, self.public.bits)
        codec.check_sums(sums, count)
        return sums

    def _decryptor(self) -> Any:
        """Return what decrypts with the backend in use, kept for the next time."""
        engine = engines.current()
        if engine.name not in self._decryptors:
            self._decryptors[engine.name] = engine.decryptor(
                self._p, self._q, self.public.ciphertext_bytes
            )
        return self._decryptors[engine.name]

    def __repr__(self) -> str:
        return f"PaillierPrivateKey({self.public!r}, p=***, q=***)"

    def __reduce__(self) -> Any:
        raise TypeError("a Paillier private key is not pickled; use save and load")


def _random_prime(bits: int) -> Any:
    """Draw a prime that is 3 modulo 4 with its two highest bits set."""
    import gmpy2

    for _ in range(_CANDIDATES_MAX):
        candidate = gmpy2.mpz(secrets.randbits(bits) | 3 << (bits - 2) | 3)
        if gmpy2.is_prime(candidate, PRIMALITY_ROUNDS):
            return candidate
    raise PaillierError("found no prime: the system's randomness does not look random")
