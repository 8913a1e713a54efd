"""The task card: what a task says about itself on IPFS (docs/protocol.md, section 4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from gradledger import envelope
from gradledger.errors import EnvelopeError, PaillierError
from gradledger.privacy import Privacy
from gradledger.target import Target
from gradledger.text import check_text
from gradledger.validation import Commitment

if TYPE_CHECKING:
    from gradledger.chain.contract import Task
    from gradledger.codec import Codec
    from gradledger.paillier import PaillierPublicKey
    from gradledger.store import Store

FORMAT = 1
# The format of a card with terms that bind devices, so that who does not know them refuses it:
FORMAT_PRIVACY = 2  # with `privacy` alone
FORMAT_OPTIONS = 3  # with any of the optional keys
OPTIONS = ("validation", "privacy", "target")
_T = TypeVar("_T")
CARD_BYTES_MAX = 2 * envelope.CARD_BYTES_MAX  # the whole envelope


@dataclass(frozen=True)
class TaskCard:
    """What the owner published with the task; covered by the hash in the task's terms.

    Attributes
    ----------
    task, owner : str
    description : str
        One line without control characters: devices print it.
    classes : tuple of str
        Names of the classes, in the order of their bits; as plain as `description`.
    architecture : mapping
        Of the model, see `gradledger.models`.
    owner_enc_key : bytes, length 32
        The owner's X25519 public key.
    paillier_n : int or None
        The owner's Paillier modulus; None in sealed mode.
    privacy : Privacy or None
        The noise that every device adds to its updates; None: none.
    validation : Commitment or None
        The owner's validation points, committed; None: the owner picks what a device gets.
    target : Target or None
        The number that the model learns; its strata are the classes. None: it learns classes.

    Raises
    ------
    ConfigError
        `description` or a class's name is no plain text.
    """

    task: str
    owner: str
    description: str
    classes: tuple[str, ...]
    architecture: Mapping[str, Any]
    owner_enc_key: bytes
    paillier_n: int | None = field(repr=False)
    privacy: Privacy | None = None
    validation: Commitment | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        check_text("description", self.description)
        for name in self.classes:
            check_text("classes", name)

    def to_bytes(self) -> bytes:
        """Return the card as an envelope in the clear."""
        document: dict[str, Any] = {
            "task": self.task,
            "owner": self.owner,
            "description": self.description,
            "classes": list(self.classes),
            "architecture": dict(self.architecture),
            "owner_enc_key": self.owner_enc_key.hex(),
            "paillier_n": None if self.paillier_n is None else f"{self.paillier_n:x}",
        }
        options = {
            name: value.to_dict() for name in OPTIONS if (value := getattr(self, name)) is not None
        }
        document |= options | {"format": _format(options)}
        header = envelope.Header(
            kind=envelope.Kind.TASK_CARD,
            codec=envelope.PayloadCodec.BYTES,
            task=self.task,
            sender=self.owner,
        )
        text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return envelope.plain(header, text.encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> TaskCard:
        """Read a card's envelope. Raises EnvelopeError, whatever the bytes."""
        found = envelope.parse(data)
        if found.header.kind is not envelope.Kind.TASK_CARD or found.header.sealed:
            raise EnvelopeError(f"expected a task card in the clear, got {found.header.kind.name}")
        try:
            document = json.loads(found.payload())
            version = document["format"]
            if version not in (FORMAT, FORMAT_PRIVACY, FORMAT_OPTIONS):
                raise EnvelopeError(
                    f"expected card format {FORMAT}, {FORMAT_PRIVACY} or {FORMAT_OPTIONS}, "
                    f"got {version!r:.40}"
                )
            if version != _format(document):
                given = ", ".join(name for name in OPTIONS if name in document) or "none"
                raise EnvelopeError(f"card format {version} does not go with the keys: {given}")
            n = document["paillier_n"]
            card = cls(
                task=_text(document["task"]),
                owner=_text(document["owner"]),
                description=_text(document["description"]),
                classes=tuple(_text(name) for name in document["classes"]),
                architecture=dict(document["architecture"]),
                owner_enc_key=bytes.fromhex(document["owner_enc_key"]),
                paillier_n=None if n is None else int(_text(n), 16),
                privacy=_option(document, "privacy", Privacy.from_dict),
                validation=_option(document, "validation", Commitment.from_dict),
                target=_option(document, "target", Target.from_dict),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EnvelopeError(f"expected a task card: {type(error).__name__}: {error}") from None
        if card.validation is not None and len(card.validation.counts) != len(card.classes):
            raise EnvelopeError(
                f"expected the numbers of points of {len(card.classes)} classes in the task card, "
                f"got {len(card.validation.counts)}"
            )
        if (card.target is not None) != ("output" in card.architecture):
            raise EnvelopeError("expected a target in the task card, or no output identity")
        if card.target is not None and card.target.strata != len(card.classes):
            raise EnvelopeError(
                f"expected the names of {card.target.strata} strata in the task card, "
                f"got {len(card.classes)}"
            )
        if len(card.owner_enc_key) != 32:
            raise EnvelopeError("expected an X25519 key of 32 bytes in the task card")
        if (card.task, card.owner) != (found.header.task, found.header.sender):
            raise EnvelopeError("the task card's text and its header name different tasks")
        return card

    def public_key(self) -> PaillierPublicKey:
        """Return the Paillier key, checked as far as a stranger can. Raises PaillierError."""
        from gradledger.paillier import PaillierPublicKey

        if self.paillier_n is None:
            raise PaillierError(f"the card of task {self.task} has no Paillier key")
        return PaillierPublicKey(self.paillier_n)


def fetch_card(store: Store, task: Task) -> TaskCard:
    """Return a task's card, checked against the hash in the task's terms.

    Raises
    ------
    StoreError
        It cannot be fetched.
    EnvelopeError
        It is not what the terms name, or contradicts them.
    """
    data = store.get(task.terms.card_cid, bytes_max=CARD_BYTES_MAX)
    if hashlib.sha256(data).digest() != task.terms.card_hash:
        raise EnvelopeError(f"task {task.id}: the card's hash is not that of the task's terms")
    card = TaskCard.from_bytes(data)
    if (card.task, card.owner) != (task.id, task.owner):
        raise EnvelopeError(f"task {task.id}: the card is of task {card.task} of {card.owner}")
    if len(card.classes) != task.terms.classes:
        raise EnvelopeError(
            f"task {task.id}: expected {task.terms.classes} class names, got {len(card.classes)}"
        )
    return card


def task_codec(task: Task) -> Codec:
    """Return the codec that a task's terms fix."""
    from gradledger.codec import Codec

    return Codec(task.terms.clip_e6, task.terms.slot_bits, task.terms.parameters)


def _format(options: Container[str]) -> int:
    """Return the card format that says which optional keys there are."""
    used = [name for name in OPTIONS if name in options]
    if not used:
        return FORMAT
    return FORMAT_PRIVACY if used == ["privacy"] else FORMAT_OPTIONS


def _option(
    document: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any]], _T]
) -> _T | None:
    return read(document[name]) if name in document else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value
