"""The one form of everything on IPFS: header, readers, payload. `docs/protocol.md`, section 1.

The header and the table of readers are the associated data of the sealed payload, so that neither
can be exchanged. Decoding is total: whatever the bytes, `parse` returns or raises `EnvelopeError`.
"""

from __future__ import annotations

import bisect
import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from gradledger.chain.names import int_to_name, name_to_int
from gradledger.errors import EnvelopeError, GradledgerError, NotAReaderError

MAGIC = b"GLE"
FORMAT = 1
HEADER_BYTES = 112
READER_BYTES = 88
TAG_BYTES = 16
READERS_MAX = 16_384
PAYLOAD_BYTES_MAX = 2**28
PARAMETERS_MAX = 2**31 - 1
CARD_BYTES_MAX = 65_536
OPENING_SEED_BYTES = 32
SLOT_BITS_MIN = 17
SLOT_BITS_MAX = 32

_KEY_BYTES = 32
_BOX_BYTES = 80
_NONCE_BYTES = 24
_HEADER = struct.Struct("<4s4B2Q4I32sQH6s24s")
_READER = struct.Struct("<Q80s")
_ZERO_HASH = bytes(32)
_ZERO_NONCE = bytes(_NONCE_BYTES)
_UINT32_MAX = 2**32 - 1

_Enum = TypeVar("_Enum", bound=IntEnum)


class Kind(IntEnum):
    """What an envelope holds."""

    MODEL = 1
    VALIDATION_SET = 2
    UPDATE = 3
    SUM = 4
    TASK_CARD = 5
    OPENING = 6


class PayloadCodec(IntEnum):
    """How the payload is to be read."""

    BYTES = 0
    QUANTISED = 1
    PAILLIER = 2


_CODECS_OF_KIND = {
    Kind.MODEL: (PayloadCodec.BYTES,),
    Kind.VALIDATION_SET: (PayloadCodec.BYTES,),
    Kind.UPDATE: (PayloadCodec.QUANTISED, PayloadCodec.PAILLIER),
    Kind.SUM: (PayloadCodec.PAILLIER,),
    Kind.TASK_CARD: (PayloadCodec.BYTES,),
    Kind.OPENING: (PayloadCodec.QUANTISED,),
}
_SIZED = (Kind.MODEL, Kind.UPDATE, Kind.SUM, Kind.OPENING)  # that say how many parameters
_COUNTED = (Kind.UPDATE, Kind.SUM, Kind.OPENING)  # that say how many examples, or updates


@dataclass(frozen=True)
class Header:
    """The fields of an envelope's first 112 bytes.

    Parameters
    ----------
    kind : Kind
        What the payload is.
    codec : PayloadCodec
        How it is written.
    task, sender : str
        Account names.
    version : int
        Round version; 0 for a task card and for nothing else.
    parameters : int
        Model parameters; 0 for a validation set and a task card.
    slot_bits : int
        Of the packing, 17..32; 0 unless the codec is PAILLIER.
    clip_e6 : int
        Clipping bound x 10^6; 0 for codec BYTES.
    examples : int
        Update and its opening: the data cost. Sum: number of updates in it. Otherwise 0.
    key_hash : bytes, length 32
        Of the Paillier key; zero unless the codec is PAILLIER.
    sealed : bool
        Whether the payload is encrypted. This and what follows is filled in by `seal` and `plain`.
    payload_bytes : int
        Length of the plaintext payload.
    readers : int
        Entries in the table of readers.
    nonce : bytes, length 24
        Zero unless sealed.
    """

    kind: Kind
    codec: PayloadCodec
    task: str
    sender: str
    version: int = 0
    parameters: int = 0
    slot_bits: int = 0
    clip_e6: int = 0
    examples: int = 0
    key_hash: bytes = _ZERO_HASH
    sealed: bool = False
    payload_bytes: int = 0
    readers: int = 0
    nonce: bytes = _ZERO_NONCE


class Envelope:
    """A decoded envelope; made by `parse`.

    Attributes
    ----------
    header : Header
        All its fields are within their bounds and agree with each other.
    """

    __slots__ = ("_reader_values", "_view", "header")

    def __init__(self, header: Header, reader_values: list[int], view: memoryview) -> None:
        self.header = header
        self._reader_values = reader_values
        self._view = view

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of those who can open it, ascending by their 64-bit value."""
        return tuple(int_to_name(value) for value in self._reader_values)

    def payload(self) -> bytes:
        """Return the payload of an envelope in the clear.

        Returns
        -------
        bytes
            A copy.

        Raises
        ------
        EnvelopeError
            The envelope is sealed.
        """
        if self.header.sealed:
            raise EnvelopeError("the envelope is sealed: open it with a reader's key")
        return bytes(self._view[HEADER_BYTES:])

    def open(self, account: str, secret: bytes) -> bytes:
        """Return the payload, whether sealed or in the clear.

        Parameters
        ----------
        account : str
            The reader.
        secret : bytes, length 32
            Its X25519 secret.

        Returns
        -------
        bytes
            The payload, authenticated together with the header and the table of readers.

        Raises
        ------
        NotAReaderError
            It is sealed, and not to this account.
        EnvelopeError
            It is sealed to another key of the account, or header, readers or payload were changed.
        """
        if not self.header.sealed:
            return self.payload()
        from nacl import bindings
        from nacl.exceptions import CryptoError

        place = self._place_of(account)
        start = HEADER_BYTES + READER_BYTES * place + 8
        box = bytes(self._view[start : start + _BOX_BYTES])
        body = HEADER_BYTES + READER_BYTES * self.header.readers
        try:
            key = bindings.crypto_box_seal_open(box, public_key_of(secret), secret)
        except CryptoError:
            raise EnvelopeError(f"the envelope is sealed to another key of {account}") from None
        if len(key) != _KEY_BYTES:
            raise EnvelopeError(f"expected a content key of {_KEY_BYTES} bytes, got {len(key)}")
        try:
            return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(
                bytes(self._view[body:]), bytes(self._view[:body]), self.header.nonce, key
            )
        except CryptoError:
            raise EnvelopeError("header, readers or payload were changed after sealing") from None

    def _place_of(self, account: str) -> int:
        value = _name_value("account", account)
        place = bisect.bisect_left(self._reader_values, value)
        if place == len(self._reader_values) or self._reader_values[place] != value:
            raise NotAReaderError(
                f"{account} is none of the {len(self._reader_values)} readers of this envelope"
            )
        return place

    def __repr__(self) -> str:
        return f"Envelope({self.header!r})"


def public_key_of(secret: bytes) -> bytes:
    """Return the X25519 public key of a secret.

    Parameters
    ----------
    secret : bytes, length 32
        Any 32 bytes.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    EnvelopeError
        The secret has another length.
    """
    from nacl import bindings

    if not isinstance(secret, bytes) or len(secret) != _KEY_BYTES:
        raise EnvelopeError(f"expected an X25519 secret of {_KEY_BYTES} bytes")
    return bindings.crypto_scalarmult_base(secret)


def can_seal_to(public_key: bytes) -> bool:
    """Return whether something can be sealed to this X25519 public key.

    A member may have given any 32 bytes on chain; one bad key must not stop the other readers.
    """
    from nacl import bindings
    from nacl.exceptions import CryptoError

    try:
        bindings.crypto_box_seal(b"", bytes(public_key))
    except (CryptoError, TypeError, ValueError):
        return False
    return True


def plain(header: Header, payload: bytes) -> bytes:
    """Return an envelope in the clear.

    Parameters
    ----------
    header : Header
        Its last four fields are filled in here.
    payload : bytes
        At most 2**28 bytes.

    Returns
    -------
    bytes
        What goes to IPFS; its SHA-256 goes on chain.

    Raises
    ------
    EnvelopeError
        A field is out of bounds or disagrees with another.
    """
    header = dataclasses.replace(
        header, sealed=False, payload_bytes=len(payload), readers=0, nonce=_ZERO_NONCE
    )
    return b"".join((encode_header(header), payload))


def seal(header: Header, payload: bytes, readers: Mapping[str, bytes]) -> bytes:
    """Return an envelope that only `readers` can open.

    Parameters
    ----------
    header : Header
        Its last four fields are filled in here.
    payload : bytes
        At most 2**28 bytes.
    readers : mapping of str to bytes, 1..16384 entries
        Account name to X25519 public key (32 bytes).

    Returns
    -------
    bytes
        What goes to IPFS; its SHA-256 goes on chain. Different at every call.

    Raises
    ------
    EnvelopeError
        A field is out of bounds or disagrees with another; a reader's name or key is not valid.
    """
    from nacl.utils import random

    return _seal(header, payload, readers, random(_KEY_BYTES), random(_NONCE_BYTES))


def _seal(
    header: Header, payload: bytes, readers: Mapping[str, bytes], key: bytes, nonce: bytes
) -> bytes:
    """Seal under a given content key and nonce; both must be fresh but for golden files."""
    from nacl import bindings

    header = dataclasses.replace(
        header, sealed=True, payload_bytes=len(payload), readers=len(readers), nonce=nonce
    )
    parts = [encode_header(header)]
    for value, account in sorted((_name_value("reader", name), name) for name in readers):
        parts.append(_READER.pack(value, _box(key, account, readers[account])))
    associated = b"".join(parts)
    sealed = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(
        bytes(payload), associated, nonce, key
    )
    return associated + sealed


def _box(key: bytes, account: str, public_key: bytes) -> bytes:
    """Seal the content key to one reader."""
    from nacl import bindings
    from nacl.exceptions import CryptoError

    if len(public_key) != _KEY_BYTES:
        raise EnvelopeError(
            f"reader {account}: expected a public key of {_KEY_BYTES} bytes, got {len(public_key)}"
        )
    try:
        return bindings.crypto_box_seal(key, bytes(public_key))
    except CryptoError:
        raise EnvelopeError(f"reader {account}: not a usable X25519 public key") from None


def encode_header(header: Header) -> bytes:
    """Return a header's 112 bytes.

    Parameters
    ----------
    header : Header
        All fields set.

    Returns
    -------
    bytes
        As `docs/protocol.md`, section 1.1.

    Raises
    ------
    EnvelopeError
        A field is out of bounds or disagrees with another.
    """
    _check_ranges(header)
    _check_relations(header)
    return _HEADER.pack(
        MAGIC + bytes([FORMAT]),
        header.kind,
        header.sealed,
        header.codec,
        header.slot_bits,
        _name_value("task", header.task),
        _name_value("sender", header.sender),
        header.version,
        header.parameters,
        header.clip_e6,
        header.examples,
        header.key_hash,
        header.payload_bytes,
        header.readers,
        bytes(6),
        header.nonce,
    )


def parse(data: bytes) -> Envelope:
    """Decode an envelope; decrypts nothing.

    Parameters
    ----------
    data : bytes
        Anything.

    Returns
    -------
    Envelope
        It keeps `data` alive and does not copy the payload.

    Raises
    ------
    EnvelopeError
        Checked in this order: length, format version, range of each field, relations.
    """
    view = memoryview(data).cast("B")
    if len(view) < HEADER_BYTES:
        raise EnvelopeError(f"expected at least {HEADER_BYTES} bytes, got {len(view)}")
    (
        magic,
        kind,
        sealed,
        codec,
        slot_bits,
        task,
        sender,
        version,
        parameters,
        clip_e6,
        examples,
        hash_of_key,
        payload_bytes,
        readers,
        reserved,
        nonce,
    ) = _HEADER.unpack_from(view)
    expected = HEADER_BYTES + READER_BYTES * readers + payload_bytes + (TAG_BYTES if sealed else 0)
    if len(view) != expected:
        raise EnvelopeError(f"expected {expected} bytes in all, got {len(view)}")
    if magic[:3] != MAGIC:
        raise EnvelopeError(f"expected an envelope ({MAGIC!r}), got {magic[:3]!r}")
    if magic[3] != FORMAT:
        raise EnvelopeError(f"expected format version {FORMAT}, got {magic[3]}")
    if sealed > 1:
        raise EnvelopeError(f"sealed: expected 0 or 1, got {sealed}")
    if reserved != bytes(6):
        raise EnvelopeError("reserved bytes: expected zeros")
    header = Header(
        kind=_member(Kind, "kind", kind),
        codec=_member(PayloadCodec, "codec", codec),
        task=int_to_name(task),
        sender=int_to_name(sender),
        version=version,
        parameters=parameters,
        slot_bits=slot_bits,
        clip_e6=clip_e6,
        examples=examples,
        key_hash=hash_of_key,
        sealed=bool(sealed),
        payload_bytes=payload_bytes,
        readers=readers,
        nonce=nonce,
    )
    _check_ranges(header)
    _check_relations(header)
    table = view[HEADER_BYTES : HEADER_BYTES + READER_BYTES * readers]
    values = [value for value, _ in _READER.iter_unpack(table)]
    previous = 0
    for value in values:
        if value <= previous:
            raise EnvelopeError("readers: expected names in strictly ascending order")
        previous = value
    return Envelope(header, values, view)


def _check_ranges(header: Header) -> None:
    """Check each field on its own."""
    _member(Kind, "kind", header.kind)
    _member(PayloadCodec, "codec", header.codec)
    _name_value("task", header.task)
    _name_value("sender", header.sender)
    _check_range("version", header.version, _UINT32_MAX)
    _check_range("parameters", header.parameters, PARAMETERS_MAX)
    _check_range("slot_bits", header.slot_bits, SLOT_BITS_MAX)
    _check_range("clip_e6", header.clip_e6, _UINT32_MAX)
    _check_range("examples", header.examples, _UINT32_MAX)
    _check_range("payload_bytes", header.payload_bytes, PAYLOAD_BYTES_MAX)
    _check_range("readers", header.readers, READERS_MAX)
    if len(header.key_hash) != 32:
        raise EnvelopeError(f"key_hash: expected 32 bytes, got {len(header.key_hash)}")
    if len(header.nonce) != _NONCE_BYTES:
        raise EnvelopeError(f"nonce: expected {_NONCE_BYTES} bytes, got {len(header.nonce)}")


def _check_relations(header: Header) -> None:
    """Check the fields against each other."""
    kind, codec = header.kind, header.codec
    codecs = _CODECS_OF_KIND[kind]
    if codec not in codecs:
        names = " or ".join(str(int(each)) for each in codecs)
        raise EnvelopeError(f"codec of kind {int(kind)}: expected {names}, got {int(codec)}")
    _check_presence("readers", header.readers, header.sealed)
    if not header.sealed and header.nonce != _ZERO_NONCE:
        raise EnvelopeError("nonce: expected zeros in an envelope that is not sealed")
    _check_presence("version", header.version, kind != Kind.TASK_CARD)
    _check_presence("parameters", header.parameters, kind in _SIZED)
    _check_presence("examples", header.examples, kind in _COUNTED)
    _check_presence("clip_e6", header.clip_e6, codec != PayloadCodec.BYTES)
    _check_presence("slot_bits", header.slot_bits, codec == PayloadCodec.PAILLIER)
    if codec == PayloadCodec.PAILLIER and header.slot_bits < SLOT_BITS_MIN:
        raise EnvelopeError(
            f"slot_bits: expected {SLOT_BITS_MIN}..{SLOT_BITS_MAX}, got {header.slot_bits}"
        )
    if (header.key_hash != _ZERO_HASH) != (codec == PayloadCodec.PAILLIER):
        raise EnvelopeError("key_hash: expected one in codec 2 and zeros otherwise")
    if kind == Kind.OPENING and not header.sealed:
        raise EnvelopeError("sealed: expected 1 in an opening, got 0")
    seed_bytes = OPENING_SEED_BYTES if kind == Kind.OPENING else 0
    if (
        codec == PayloadCodec.QUANTISED
        and header.payload_bytes != seed_bytes + 2 * header.parameters
    ):
        seed = f"a seed of {seed_bytes} bytes and " if seed_bytes else ""
        raise EnvelopeError(
            f"payload_bytes: expected {seed}2 x {header.parameters} codes, "
            f"got {header.payload_bytes}"
        )
    if kind == Kind.TASK_CARD and header.payload_bytes > CARD_BYTES_MAX:
        raise EnvelopeError(
            f"payload_bytes: expected at most {CARD_BYTES_MAX} in a task card, "
            f"got {header.payload_bytes}"
        )


def _check_range(field: str, value: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise EnvelopeError(f"{field}: expected 0..{high}, got {value!r}")


def _check_presence(field: str, value: int, present: bool) -> None:
    if bool(value) != present:
        raise EnvelopeError(f"{field}: expected {'more than 0' if present else '0'}, got {value}")


def _member(enum: type[_Enum], field: str, value: int) -> _Enum:
    try:
        return enum(value)
    except ValueError:
        names = ", ".join(str(int(member)) for member in enum)
        raise EnvelopeError(f"{field}: expected one of {names}, got {value!r}") from None


def _name_value(field: str, name: str) -> int:
    """Return the 64-bit value of an account name that is not empty."""
    try:
        value = name_to_int(name)
    except (GradledgerError, ValueError, TypeError) as exc:
        raise EnvelopeError(f"{field}: {exc}") from None
    if not value:
        raise EnvelopeError(f"{field}: expected an account name, got an empty one")
    return value
