"""Antelope K1 keys: text forms, canonical signatures, key files.

A party keeps one secret; its X25519 key, to which envelopes are sealed, is derived from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradledger.chain.names import check_account
from gradledger.errors import ConfigError
from gradledger.files import write_new

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUE = {character: value for value, character in enumerate(_BASE58)}
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_NONCES_MAX = 1000  # each is canonical with a chance of one in two
_KEY_FILE_BYTES_MAX = 4096
_PERSON = b"gradledger-x255"
_KEY_TEXT = re.compile(rf"PVT_.*|[{_BASE58}]{{51,52}}", re.DOTALL)
_SECRET_INSIDE = re.compile(rf"PVT_|[{_BASE58}]{{45}}")  # with a slip of the hand, or in quotes


def _base58_encode(data: bytes) -> str:
    value, text = int.from_bytes(data, "big"), ""
    while value:
        value, digit = divmod(value, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def _base58_decode(text: str, what: str) -> bytes:
    value = 0
    if len(text) > 128:
        raise ConfigError(f"expected {what} in base58, got {len(text)} characters")
    for character in text:
        if character not in _BASE58_VALUE:
            raise ConfigError(f"expected {what} in base58, got another character")
        value = value * 58 + _BASE58_VALUE[character]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + value.to_bytes((value.bit_length() + 7) // 8, "big")


def _ripemd160(data: bytes) -> bytes:
    from Crypto.Hash import RIPEMD160  # hashlib lacks it where OpenSSL keeps it as legacy

    return RIPEMD160.new(data).digest()


def _with_checksum(data: bytes, suffix: bytes) -> str:
    return _base58_encode(data + _ripemd160(data + suffix)[:4])


def _without_checksum(text: str, suffix: bytes, what: str) -> bytes:
    raw = _base58_decode(text, what)
    data, check = raw[:-4], raw[-4:]
    if len(raw) < 5 or _ripemd160(data + suffix)[:4] != check:
        raise ConfigError(f"expected {what}, got text with a wrong checksum")
    return data


@dataclass(frozen=True)
class PublicKey:
    """A compressed secp256k1 point."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 33 or self.raw[0] not in (2, 3):
            raise ConfigError(f"expected a compressed point of 33 bytes, got {len(self.raw)}")

    def __str__(self) -> str:
        return "PUB_K1_" + _with_checksum(self.raw, b"K1")

    @property
    def legacy(self) -> str:
        """The older text form, ``EOS...``."""
        return "EOS" + _with_checksum(self.raw, b"")

    @classmethod
    def from_string(cls, text: str) -> PublicKey:
        """Read ``PUB_K1_...`` or ``EOS...``. Raises ConfigError."""
        if text.startswith("PUB_K1_"):
            return cls(_without_checksum(text[7:], b"K1", "a public key"))
        if text.startswith("EOS"):
            return cls(_without_checksum(text[3:], b"", "a public key"))
        raise ConfigError("expected a public key, PUB_K1_... or EOS...")


class PrivateKey:
    """A secp256k1 private key. Its text forms are given out by `to_string` alone."""

    __slots__ = ("_public", "_secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise ConfigError("expected a private key of 32 bytes within the group's order")
        self._secret = secret
        self._public: PublicKey | None = None

    def __repr__(self) -> str:
        return f"PrivateKey(public={self.public}, secret=***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and self._secret == other._secret

    def __hash__(self) -> int:
        return hash(self.public)

    def __reduce__(self) -> Any:
        raise TypeError("a private key is not serialised: give the path of its key file")

    @classmethod
    def generate(cls) -> PrivateKey:
        """Make a key with the OS's random generator."""
        while True:
            secret = os.urandom(32)
            if 0 < int.from_bytes(secret, "big") < _ORDER:
                return cls(secret)

    @classmethod
    def from_string(cls, text: str) -> PrivateKey:
        """Read ``PVT_K1_...`` or the older WIF, ``5...``. Raises ConfigError."""
        if text.startswith("PVT_K1_"):
            return cls(_without_checksum(text[7:], b"K1", "a private key"))
        raw = _base58_decode(text, "a private key")
        check = hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4]
        if len(raw) != 37 or raw[0] != 0x80 or raw[-4:] != check:
            raise ConfigError("expected a private key, PVT_K1_... or WIF with a right checksum")
        return cls(raw[1:33])

    def to_string(self) -> str:
        """Return ``PVT_K1_...``: the secret itself. Never log it."""
        return "PVT_K1_" + _with_checksum(self._secret, b"K1")

    def to_wif(self) -> str:
        """Return the secret in the older text form, for tools that know no other."""
        data = b"\x80" + self._secret
        check = hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
        return _base58_encode(data + check)

    @property
    def public(self) -> PublicKey:
        """The public key."""
        if self._public is None:
            import coincurve

            self._public = PublicKey(coincurve.PublicKey.from_secret(self._secret).format())
        return self._public

    def encryption_key(self) -> bytes:
        """Return the X25519 secret of this account, 32 bytes, derived from the key."""
        return hashlib.blake2b(key=self._secret, person=_PERSON, digest_size=32).digest()

    def sign_digest(self, digest: bytes) -> str:
        """Return the canonical signature of a SHA-256 digest, ``SIG_K1_...``.

        Parameters
        ----------
        digest : bytes, length 32
            The output of SHA-256 over what is signed, computed by the caller itself. Never sign a
            value that somebody else chose: see Notes.

        Notes
        -----
        A node refuses signatures whose r or s has its top bit set or a superfluous zero byte. The
        nonce is that of RFC 6979 for the digest; while the signature is not canonical, for the
        digest plus 1, plus 2 and so on, read as a big-endian integer. pyntelope does the same, so
        that equal transactions get equal signatures. Two signatures share a nonce only if their
        digests are neighbours, which no two outputs of SHA-256 are known to be.
        """
        if len(digest) != 32:
            raise ConfigError(f"expected a digest of 32 bytes, got {len(digest)}")
        from coincurve._libsecp256k1 import ffi, lib
        from coincurve.context import GLOBAL_CONTEXT

        context = GLOBAL_CONTEXT.ctx
        signature = ffi.new("secp256k1_ecdsa_recoverable_signature *")
        compact, recovery = ffi.new("unsigned char [64]"), ffi.new("int *")
        for counter in range(_NONCES_MAX):
            nonce, data = ffi.NULL, ffi.NULL  # the library's default is RFC 6979
            if counter:
                nonce, data = _shifted_nonce(), ffi.cast("void *", counter)
            if not lib.secp256k1_ecdsa_sign_recoverable(
                context, signature, digest, self._secret, nonce, data
            ):
                continue
            lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(
                context, compact, recovery, signature
            )
            raw = bytes(ffi.buffer(compact, 64))
            if _is_canonical(raw):
                return "SIG_K1_" + _with_checksum(bytes([27 + recovery[0]]) + raw, b"K1")
        raise AssertionError("no canonical signature found")


@lru_cache(maxsize=1)
def _shifted_nonce() -> Any:
    """Return libsecp256k1's RFC 6979 function for the digest plus a counter.

    The secret stays in the library's memory: only pointers pass through here.
    """
    from coincurve._libsecp256k1 import ffi, lib

    @ffi.callback(  # type: ignore[untyped-decorator]
        "int(unsigned char *, const unsigned char *, const unsigned char *,"
        " const unsigned char *, void *, unsigned int)"
    )
    def nonce(out: Any, digest: Any, secret: Any, algorithm: Any, data: Any, attempt: int) -> int:
        counter = int(ffi.cast("uintptr_t", data))
        value = int.from_bytes(ffi.buffer(digest, 32), "big") + counter
        shifted = ffi.new("unsigned char [32]", (value % 2**256).to_bytes(32, "big"))
        found: int = lib.secp256k1_nonce_function_rfc6979(
            out, shifted, secret, algorithm, ffi.NULL, attempt
        )
        return found

    return nonce


def _is_canonical(raw: bytes) -> bool:
    return all(
        not half[0] & 0x80 and not (half[0] == 0 and not half[1] & 0x80)
        for half in (raw[:32], raw[32:])
    )


def signature_bytes(text: str) -> bytes:
    """Return the 65 bytes of a ``SIG_K1_...`` text. Raises ConfigError."""
    if not text.startswith("SIG_K1_"):
        raise ConfigError("expected a signature, SIG_K1_...")
    return _without_checksum(text[7:], b"K1", "a signature")


def signature_variant(text: str) -> bytes:
    """Return a signature of any kind as it lies inside a block. Raises ConfigError."""
    for index, kind in enumerate(("K1", "R1", "WA")):
        prefix = f"SIG_{kind}_"
        if text.startswith(prefix):
            raw = _without_checksum(text[len(prefix) :], kind.encode(), "a signature")
            return bytes([index]) + raw
    raise ConfigError("expected a signature, SIG_K1_..., SIG_R1_... or SIG_WA_...")


def recover_key(digest: bytes, signature: str) -> PublicKey:
    """Return the public key that made a ``SIG_K1_...`` over a digest.

    Raises
    ------
    ConfigError
        It is no canonical signature, and so none that a node takes.
    """
    raw = signature_bytes(signature)
    if len(raw) != 65 or not 27 <= raw[0] < 35 or not _is_canonical(raw[1:]):
        raise ConfigError("expected a canonical signature")
    import coincurve

    try:
        compact = raw[1:] + bytes([raw[0] - 27 & 3])
        found = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except Exception as error:  # the library has no class of its own
        raise ConfigError(f"expected a signature of a key: {error}") from None
    return PublicKey(found.format())


def save_key_file(path: str | os.PathLike[str], account: str, key: PrivateKey) -> None:
    """Write an account's key file, mode 0600; an existing file is not overwritten.

    Raises
    ------
    ConfigError
        The file exists already, or cannot be written.
    """
    text = json.dumps({"account": check_account(account), "private_key": key.to_string()})
    try:
        write_new(Path(path), f"{text}\n".encode("ascii"))
    except FileExistsError:
        raise ConfigError(f"expected no key file at {os.fspath(path)}, one exists") from None
    except OSError as error:
        where = os.fspath(path)
        raise ConfigError(f"cannot write the key file {where}: {error.strerror}") from error


def key_of(key: PrivateKey | str | os.PathLike[str], account: str) -> PrivateKey:
    """Return an account's private key, however it is given.

    Parameters
    ----------
    key : PrivateKey or str or path
        The key, its text (``PVT_K1_...`` or ``5...``, with white space around it or not), or the
        path of its key file. A file whose name looks like a key is given as ``./NAME``.
    account : str
        Whose key it must be; only a key file tells.

    Raises
    ------
    ConfigError
        It is none of these, or another account's. No secret is repeated.
    """
    if isinstance(key, PrivateKey):
        return key
    if isinstance(key, str) and _KEY_TEXT.fullmatch(key.strip()):
        return PrivateKey.from_string(key.strip())
    holder, found = load_key_file(key)
    if holder != account:
        raise ConfigError(f"{_shown(key)}: expected the key file of {account}, it is {holder}'s")
    return found


def _shown(path: str | os.PathLike[str]) -> str:
    """Return a path for a message; whoever gave a key for a path does not read it there."""
    text = os.fspath(path)
    return "(a path that looks like a key)" if _SECRET_INSIDE.search(text) else text


def load_key_file(path: str | os.PathLike[str]) -> tuple[str, PrivateKey]:
    """Return (account, key) of a key file.

    Raises
    ------
    ConfigError
        There is no such file, others may read it, or it is no key file.
    """
    where = _shown(path)
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"expected mode 0600 on {where}, it is {mode:04o}: chmod 600 it")
            raw = file.read(_KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        # The cause has the path: leave it out.
        raise ConfigError(f"cannot read the key file {where}: {error.strerror}") from None
    try:
        document = json.loads(raw)
        account, text = document["account"], document["private_key"]
        if not isinstance(text, str):
            raise TypeError
        return check_account(account), PrivateKey.from_string(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        # The cause may carry the secret: leave it out.
        raise ConfigError(
            f'expected a key file, {{"account": NAME, "private_key": "PVT_K1_..."}}, at {where}'
        ) from None
