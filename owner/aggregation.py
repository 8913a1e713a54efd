"""From a round's result to the next model: check the sum, decrypt, mean, w <- w + eta mean.

Pure: the bytes come in from outside, nothing here talks to the chain or to IPFS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from gradledger import envelope
from gradledger.chain.contract import Mode, Round, RoundState, TaskTerms
from gradledger.codec import Codec
from gradledger.errors import EnvelopeError
from gradledger.models import Model
from gradledger.paillier import split_sum_payload

__all__ = [
    "Aggregate",
    "Expected",
    "SumVotes",
    "apply_mean",
    "open_sum",
    "open_update",
    "sum_codes",
    "sum_votes",
]

ETA_SCALE = 1_000_000


@dataclass(frozen=True)
class SumVotes:
    """Which validators do not stand by a round's sum.

    Parameters
    ----------
    outvoted : tuple of str
        They attested another product than the quorum. All honest ones attest the same.
    silent : tuple of str
        They have attested none. The chain takes no vote after the quorum's, so that an honest one
        that was slow is among them.
    """

    outvoted: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


def sum_votes(found: Round, terms: TaskTerms) -> SumVotes | None:
    """Return how the validators of a round stand to its sum.

    Parameters
    ----------
    found : Round
        As the chain has it.
    terms : TaskTerms
        Of its task.

    Returns
    -------
    SumVotes or None
        Without names where no sum is due (yet). None: the round is settled, and its votes are gone.
    """
    if found.state is RoundState.SETTLED:
        return None
    is_due = terms.mode is Mode.PAILLIER and found.accepted >= terms.sum_min
    if not is_due or found.state not in (RoundState.SUMMING, RoundState.SUMMED):
        return SumVotes()
    attested = bytes(found.sum_hash)
    votes = [
        (validator, bytes(vote.hash))
        for validator, vote in zip(found.validators, found.sums, strict=True)
    ]
    return SumVotes(
        outvoted=tuple(v for v, vote in votes if any(attested) and any(vote) and vote != attested),
        silent=tuple(v for v, vote in votes if not any(vote)),
    )


@dataclass(frozen=True)
class Aggregate:
    """What a round did to the model.

    Parameters
    ----------
    version : int
        Round k.
    model : Model
        T_k; T_(k-1) where nothing could be aggregated.
    updates : int
        Updates in the mean; 0 where the model stays as it was.
    evidence : str
        Hex SHA-256 that names the chain's result from which the model was made: the attested
        hash of the sum, or (sealed mode) the hash over the accepted uploads' hashes.
    note : str
        Why the model stays, or what was left out; empty where there is nothing to say.
    votes : SumVotes or None
        The validators that do not stand by the sum; None: nobody looked before the votes were gone.
    bad_copies : mapping of str to str
        Validators that attested the sum and handed out no right copy of it, and what was wrong with
        theirs; those that were met before a right one.
    """

    version: int
    model: Model
    updates: int
    evidence: str
    note: str = ""
    votes: SumVotes | None = None
    bad_copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether an update went into the model."""
        return self.updates > 0

    def to_record(self) -> dict[str, Any]:
        """Return the JSON object that goes beside the model into a state directory."""
        return {
            "evidence": self.evidence,
            "updates": self.updates,
            "note": self.note,
            "outvoted": None if self.votes is None else list(self.votes.outvoted),
            "silent": None if self.votes is None else list(self.votes.silent),
            "bad_copies": dict(self.bad_copies),
        }


@dataclass(frozen=True)
class Expected:
    """What the header of a sum or of an update must say; taken from the chain.

    Parameters
    ----------
    task : str
    version : int
    codec : Codec
        Of the task.
    key_hash : bytes
        Of the task; zero in sealed mode.
    """

    task: str
    version: int
    codec: Codec
    key_hash: bytes

    def check(
        self, header: envelope.Header, kind: envelope.Kind, codec: envelope.PayloadCodec
    ) -> None:
        """Refuse a header that differs; raises `EnvelopeError` naming the field."""
        packed = codec is envelope.PayloadCodec.PAILLIER
        wanted = {
            "kind": kind,
            "codec": codec,
            "task": self.task,
            "version": self.version,
            "parameters": self.codec.parameters,
            "slot_bits": self.codec.slot_bits if packed else 0,
            "clip_e6": self.codec.clip_e6,
            "key_hash": self.key_hash if packed else bytes(32),
        }
        for name, value in wanted.items():
            found = getattr(header, name)
            if found != value:
                raise EnvelopeError(f"{name}: expected {_show(value)}, got {_show(found)}")


def _show(value: object) -> str:
    if isinstance(value, IntEnum):
        return value.name.lower()
    return value.hex() if isinstance(value, bytes) else str(value)


def open_sum(
    data: bytes,
    *,
    expected: Expected,
    updates: int,
    sum_hash: bytes,
    account: str,
    secret: bytes,
) -> bytes:
    """Open one validator's copy of the sum and check it against what the quorum attested.

    Parameters
    ----------
    data : bytes
        The envelope; hostile.
    expected : Expected
    updates : int
        Accepted uploads of the round.
    sum_hash : bytes
        SHA-256 that the quorum attested.
    account : str
        The owner.
    secret : bytes
        Its X25519 secret.

    Returns
    -------
    bytes
        The ciphertexts.

    Raises
    ------
    EnvelopeError
        The copy is malformed, not for the owner, or not what was attested.
    """
    parsed = envelope.parse(data)
    expected.check(parsed.header, envelope.Kind.SUM, envelope.PayloadCodec.PAILLIER)
    payload = parsed.open(account, secret)
    found = hashlib.sha256(payload).digest()
    if found != sum_hash:
        raise EnvelopeError(f"sum: expected the attested {sum_hash.hex()}, got {found.hex()}")
    version, count, ciphertexts = split_sum_payload(payload)
    if (version, count) != (expected.version, updates):
        raise EnvelopeError(
            f"sum: expected {updates} updates of round {expected.version}, "
            f"got {count} of round {version}"
        )
    return ciphertexts


def open_update(
    data: bytes,
    *,
    expected: Expected,
    device: str,
    upload_hash: bytes,
    account: str,
    secret: bytes,
) -> npt.NDArray[np.uint16]:
    """Open one accepted upload of sealed mode.

    Parameters
    ----------
    data : bytes
        The envelope.
    expected : Expected
    device : str
        Who recorded it.
    upload_hash : bytes
        SHA-256 on chain.
    account, secret
        The owner and its X25519 secret.

    Returns
    -------
    array of uint16, shape (parameters,)
        The codes.

    Raises
    ------
    EnvelopeError, CodecError
        The bytes are not what the chain recorded, or are malformed.
    """
    found = hashlib.sha256(data).digest()
    if found != upload_hash:
        raise EnvelopeError(f"update: expected the recorded {upload_hash.hex()}, got {found.hex()}")
    parsed = envelope.parse(data)
    expected.check(parsed.header, envelope.Kind.UPDATE, envelope.PayloadCodec.QUANTISED)
    if parsed.header.sender != device:
        raise EnvelopeError(f"sender: expected {device}, got {parsed.header.sender}")
    return expected.codec.from_bytes(parsed.open(account, secret))


def sum_codes(codec: Codec, updates: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.uint64]:
    """Return the sums of the updates' codes, parameter by parameter."""
    sums = np.zeros(codec.parameters, dtype=np.uint64)
    for codes in updates:
        sums += codes
    return sums


def apply_mean(
    model: Model, codec: Codec, sums: npt.NDArray[np.uint64], updates: int, eta_e6: int
) -> Model:
    """Return T_k = T_(k-1) + eta x mean of the updates.

    Parameters
    ----------
    model : Model
        T_(k-1).
    codec : Codec
        Of the task.
    sums : array of uint64, shape (parameters,)
        Sums of the codes of all updates.
    updates : int
        How many updates are in them.
    eta_e6 : int
        Aggregation rate, 1e-6 units.

    Notes
    -----
    In float64, rounded to float32 once. McMahan et al. 2017, algorithm 1, with equal weights: the
    owner cannot see a single update, so that it cannot weigh them.
    """
    mean = codec.dequantise_mean(sums, updates).astype(np.float64)
    moved = model.vector.astype(np.float64) + eta_e6 / ETA_SCALE * mean
    return model.with_vector(moved.astype(np.float32))
