"""Content identifiers (CIDv0) as Kubo's `add` makes them, computed here.

One profile: unixfs file, chunks of 256 KiB, dag-pb leaves, balanced tree of at most 174 links per
node, SHA-256, CIDv0. So every reader can check what it got against what it asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from gradledger.errors import ConfigError

CHUNK_BYTES = 262_144
LINKS_MAX = 174
CID_CHARS = 46

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = {char: value for value, char in enumerate(_ALPHABET)}
_MULTIHASH_PREFIX = b"\x12\x20"  # SHA-256, 32 bytes


class _Link(NamedTuple):
    """A node of the tree as its parent sees it."""

    digest: bytes
    file_bytes: int  # content under the node
    dag_bytes: int  # all encoded nodes under it, itself included


def digest_to_cid(digest: bytes) -> str:
    """Return the CIDv0 of a SHA-256 digest of a dag-pb node.

    Parameters
    ----------
    digest : bytes, length 32
        As the chain's tables hold it.

    Returns
    -------
    str
        46 characters, `Qm...`.

    Raises
    ------
    ConfigError
        The digest has another length.
    """
    if len(digest) != 32:
        raise ConfigError(f"a CID needs a digest of 32 bytes, got {len(digest)}")
    return base58_encode(_MULTIHASH_PREFIX + digest)


def cid_to_digest(cid: str) -> bytes:
    """Return the SHA-256 digest that a CIDv0 names.

    Parameters
    ----------
    cid : str
        46 characters of base58.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    ConfigError
        The text is not a CIDv0.
    """
    if not isinstance(cid, str) or len(cid) != CID_CHARS:
        raise ConfigError(f"expected a CIDv0 of {CID_CHARS} characters, got {_shown(cid)}")
    raw = base58_decode(cid)
    if len(raw) != 34 or raw[:2] != _MULTIHASH_PREFIX:
        raise ConfigError(f"expected a CIDv0 (SHA-256 multihash), got {_shown(cid)}")
    return raw[2:]


def is_cid_v0(text: str) -> bool:
    """Return whether `text` has the form of a CIDv0.

    Parameters
    ----------
    text : str
        Anything.

    Returns
    -------
    bool
        True when `cid_to_digest` would take it.
    """
    try:
        cid_to_digest(text)
    except ConfigError:
        return False
    return True


def cid_v0(data: bytes | bytearray | memoryview | BinaryIO) -> str:
    """Return the CIDv0 that Kubo gives to this content.

    Parameters
    ----------
    data : bytes-like or binary file
        A file is read to its end, chunk by chunk.

    Returns
    -------
    str
        The CID.
    """
    hasher = CidHasher()
    if isinstance(data, (bytes, bytearray, memoryview)):
        hasher.update(data)
    else:
        while block := data.read(CHUNK_BYTES):
            hasher.update(block)
    return hasher.cid()


class CidHasher:
    """A CID computed while content streams by, in memory of one chunk and 174 links per level."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._levels: list[list[_Link]] = [[]]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next part of the content.

        Parameters
        ----------
        data : bytes-like
            Any length.
        """
        view = memoryview(data).cast("B")
        if self._buffer:
            wanted = CHUNK_BYTES - len(self._buffer)
            self._buffer += view[:wanted]
            view = view[wanted:]
            if len(self._buffer) < CHUNK_BYTES:
                return
            _push(self._levels, 0, _leaf(self._buffer))
            self._buffer.clear()
        whole = len(view) - len(view) % CHUNK_BYTES
        for start in range(0, whole, CHUNK_BYTES):
            _push(self._levels, 0, _leaf(view[start : start + CHUNK_BYTES]))
        self._buffer += view[whole:]

    def cid(self) -> str:
        """Return the CID of what came so far.

        Returns
        -------
        str
            The CID; more content may follow.
        """
        levels = [list(links) for links in self._levels]
        if self._buffer or not levels[0]:
            _push(levels, 0, _leaf(self._buffer))
        level = 0
        while level < len(levels) - 1 or len(levels[level]) > 1:
            _push(levels, level + 1, _inner(levels[level]))
            level += 1
        return digest_to_cid(levels[level][0].digest)


def base58_encode(data: bytes) -> str:
    """Return `data` in base58 (Bitcoin's alphabet).

    Parameters
    ----------
    data : bytes
        Leading zero bytes become leading `1`.

    Returns
    -------
    str
        The text.
    """
    number = int.from_bytes(data, "big")
    chars = []
    while number:
        number, digit = divmod(number, 58)
        chars.append(_ALPHABET[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(chars))


def base58_decode(text: str) -> bytes:
    """Return the bytes that a base58 text stands for.

    Parameters
    ----------
    text : str
        At most 128 characters: decoding costs the square of the length.

    Returns
    -------
    bytes
        The data.

    Raises
    ------
    ConfigError
        Too long, or a character outside the alphabet.
    """
    if len(text) > 128:
        raise ConfigError(f"expected at most 128 base58 characters, got {len(text)}")
    number = 0
    for char in text:
        digit = _DIGITS.get(char)
        if digit is None:
            raise ConfigError(f"{char!r} is not a base58 character")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _push(levels: list[list[_Link]], level: int, link: _Link) -> None:
    """Append a link to a level; a full level becomes one link of the level above."""
    while True:
        if level == len(levels):
            levels.append([])
        if len(levels[level]) < LINKS_MAX:
            levels[level].append(link)
            return
        parent = _inner(levels[level])
        levels[level] = [link]
        level, link = level + 1, parent


def _leaf(chunk: bytes | bytearray | memoryview) -> _Link:
    """Encode a chunk: unixfs `File` with data and size, inside a dag-pb node."""
    size = len(chunk)
    data_head = b"\x12" + _varint(size) if size else b""
    tail = b"\x18" + _varint(size)
    unixfs_bytes = 2 + len(data_head) + size + len(tail)
    head = b"\x0a" + _varint(unixfs_bytes) + b"\x08\x02" + data_head
    hasher = hashlib.sha256(head)
    hasher.update(chunk)
    hasher.update(tail)
    return _Link(hasher.digest(), size, len(head) + size + len(tail))


def _inner(links: list[_Link]) -> _Link:
    """Encode a node over `links`: the links first, then unixfs `File` with the block sizes."""
    parts = [_encode_link(link) for link in links]
    file_bytes = sum(link.file_bytes for link in links)
    unixfs = b"\x08\x02\x18" + _varint(file_bytes)
    unixfs += b"".join(b"\x20" + _varint(link.file_bytes) for link in links)
    node = b"".join(parts) + b"\x0a" + _varint(len(unixfs)) + unixfs
    dag_bytes = len(node) + sum(link.dag_bytes for link in links)
    return _Link(hashlib.sha256(node).digest(), file_bytes, dag_bytes)


def _encode_link(link: _Link) -> bytes:
    """Encode one dag-pb link: hash, empty name, cumulative size."""
    body = b"\x0a\x22" + _MULTIHASH_PREFIX + link.digest + b"\x12\x00\x18" + _varint(link.dag_bytes)
    return b"\x12" + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    """Encode an unsigned integer in groups of seven bits, low group first."""
    return bytes(_varint_groups(value))


def _varint_groups(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _shown(cid: object) -> str:
    """A foreign value, short enough for a message."""
    return repr(cid if not isinstance(cid, str) else cid[: CID_CHARS + 4])[:64]
