"""Actions and transactions: their bytes, ids and signatures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradledger.chain.abi import Reader, pack_varuint32
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import int_to_name, name_to_int
from gradledger.errors import ConfigError

ACTIONS_MAX = 1000
TRANSACTION_BYTES_MAX = 512_000  # a node's block has 1 MiB
CPU_MS_MAX = 255


@dataclass(frozen=True)
class Action:
    """One call of a contract.

    Attributes
    ----------
    account, name : str
        Contract and action.
    authorization : sequence of (actor, permission)
    data : bytes
        The arguments, packed.
    """

    account: str
    name: str
    authorization: tuple[tuple[str, str], ...]
    data: bytes

    def pack(self) -> bytes:
        """Return the action's bytes inside a transaction."""
        out = bytearray(_name(self.account) + _name(self.name))
        out += pack_varuint32(len(self.authorization))
        for actor, permission in self.authorization:
            out += _name(actor) + _name(permission)
        return bytes(out + pack_varuint32(len(self.data)) + self.data)


def action(account: str, name: str, actor: str | Sequence[str], data: bytes) -> Action:
    """Return an action that each `actor` authorises with its active permission."""
    actors = [actor] if isinstance(actor, str) else actor
    return Action(account, name, tuple((one, "active") for one in actors), data)


@dataclass(frozen=True)
class Transaction:
    """Actions that happen together or not at all, until `expiration`.

    Attributes
    ----------
    expiration : int
        Seconds since 1970.
    ref_block_num, ref_block_prefix : int
        Low 16 bits of a block's number, and the second 64-bit word's low half of its id.
    cpu_ms_max, net_words_max : int
        It fails rather than use more CPU time, or more words of 8 bytes; 0 is no bound.
    """

    expiration: int
    ref_block_num: int
    ref_block_prefix: int
    actions: tuple[Action, ...]
    cpu_ms_max: int = 0
    net_words_max: int = 0
    _packed: list[bytes] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def refer(
        cls,
        actions: Iterable[Action],
        expiration: int,
        block_id: str,
        *,
        cpu_ms_max: int = 0,
        net_words_max: int = 0,
    ) -> Transaction:
        """Return a transaction that is valid only on the chain that has the block `block_id`."""
        raw = bytes.fromhex(block_id)
        if len(raw) != 32:
            raise ConfigError(f"expected a block id of 32 bytes, got {len(raw)}")
        number = int.from_bytes(raw[:4], "big")
        prefix = int.from_bytes(raw[8:12], "little")
        listed = tuple(actions)
        return cls(expiration, number & 0xFFFF, prefix, listed, cpu_ms_max, net_words_max)

    @classmethod
    def unpack(cls, data: bytes) -> Transaction:
        """Return the transaction that `data` is; the reverse of `pack`, and of nothing else.

        Raises
        ------
        ConfigError
            The bytes are no transaction, have a delay, context-free actions or extensions, or are
            not the shortest form, whose hash the chain would take.
        """
        reader = Reader(data)
        integers = [int.from_bytes(reader.take(size), "little") for size in (4, 2, 4)]
        net_words_max, cpu_ms_max = reader.varuint32(), reader.take(1)[0]
        for what in ("no delay", "no context-free actions"):
            if reader.varuint32():
                raise ConfigError(f"expected a transaction with {what}")
        count = reader.varuint32()
        if not 1 <= count <= ACTIONS_MAX:
            raise ConfigError(f"expected 1..{ACTIONS_MAX} actions, got {count}")
        actions = tuple(_unpack_action(reader) for _ in range(count))
        if reader.varuint32():
            raise ConfigError("expected a transaction with no extensions")
        found = cls(integers[0], integers[1], integers[2], actions, cpu_ms_max, net_words_max)
        if found.pack() != data:
            raise ConfigError("expected a transaction's shortest form and no byte more")
        return found

    def pack(self) -> bytes:
        """Return the transaction's bytes; no context-free actions, no extensions."""
        if not self._packed:
            if not 1 <= len(self.actions) <= ACTIONS_MAX:
                raise ConfigError(f"expected 1..{ACTIONS_MAX} actions, got {len(self.actions)}")
            out = bytearray(self.expiration.to_bytes(4, "little"))
            out += self.ref_block_num.to_bytes(2, "little")
            out += self.ref_block_prefix.to_bytes(4, "little")
            if not 0 <= self.cpu_ms_max <= CPU_MS_MAX:
                raise ConfigError(f"expected 0..{CPU_MS_MAX} ms of CPU, got {self.cpu_ms_max}")
            out += pack_varuint32(self.net_words_max) + bytes([self.cpu_ms_max])
            out += b"\0\0"  # no delay, no context-free actions
            out += pack_varuint32(len(self.actions))
            for one in self.actions:
                out += one.pack()
            out += b"\0"
            if len(out) > TRANSACTION_BYTES_MAX:
                raise ConfigError(
                    f"expected a transaction of at most {TRANSACTION_BYTES_MAX} bytes, "
                    f"got {len(out)}: send fewer actions at once"
                )
            self._packed.append(bytes(out))
        return self._packed[0]

    @property
    def id(self) -> str:
        """The transaction's id, hex."""
        return hashlib.sha256(self.pack()).hexdigest()

    def signing_digest(self, chain_id: str) -> bytes:
        """Return the digest that every authoriser signs."""
        return hashlib.sha256(bytes.fromhex(chain_id) + self.pack() + bytes(32)).digest()

    def sign(self, chain_id: str, keys: Iterable[PrivateKey]) -> dict[str, Any]:
        """Return the JSON body of `push`: bytes and signatures, one for each different key."""
        digest = self.signing_digest(chain_id)
        return {
            "signatures": [key.sign_digest(digest) for key in dict.fromkeys(keys)],
            "compression": 0,
            "packed_context_free_data": "",
            "packed_trx": self.pack().hex(),
        }


def _unpack_action(reader: Reader) -> Action:
    account, name = _read_name(reader), _read_name(reader)
    levels = [(_read_name(reader), _read_name(reader)) for _ in range(reader.count())]
    return Action(account, name, tuple(levels), reader.take(reader.count()))


def _read_name(reader: Reader) -> str:
    return int_to_name(int.from_bytes(reader.take(8), "little"))


def _name(text: str) -> bytes:
    return name_to_int(text).to_bytes(8, "little")
