"""Audit of a drawn upload: open what the device handed over, encrypt it again, compare the bytes.

Pure like `checks`: all honest validators that see the same opening say the same, but for the seal,
which a device can give wrongly to some of them (`open_opening`). What can be measured of an update
in the clear is measured after this, as in sealed mode, with the codes that `check_opening` returns.

The order is length, range, relation: the bound and the envelope's own decoder, the header against
the chain, readers and seal, then the ciphertexts.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.chain.contract import Member, Task, VerdictCode
from gradledger.codec import Codec
from gradledger.envelope import HEADER_BYTES, READER_BYTES, TAG_BYTES, Header, Kind, PayloadCodec
from gradledger.errors import CodecError, EnvelopeError
from gradledger.opening import opening_bytes, split_opening
from gradledger.paillier import PaillierPublicKey
from producer_validation.checks import VALIDATORS_MAX, Measure, Opened, Refusal, check_update
from producer_validation.measuring import update_sketch

__all__ = [
    "check_opening",
    "check_opening_envelope",
    "check_opening_reader",
    "judge_opening",
    "known_by",
    "open_opening",
    "opening_bytes_max",
]


def opening_bytes_max(codec: Codec) -> int:
    """Return how long the envelope of an opening can be: the bound of its fetch.

    Parameters
    ----------
    codec : Codec
        The task's.

    Returns
    -------
    int
        Bytes. Pure. A drawn device can make a validator fetch this much, once for an upload.
    """
    return HEADER_BYTES + READER_BYTES * VALIDATORS_MAX + TAG_BYTES + opening_bytes(codec)


def open_opening(
    blob: bytes, *, task: Task, version: int, member: Member, account: str, secret: bytes
) -> bytes | Refusal:
    """Check an opening up to and including its seal.

    Parameters
    ----------
    blob : bytes
        As fetched and verified against the CID in the device's row, of any length.
    task : Task
        In paillier mode.
    version : int
        Of the round.
    member : Member
        The device's row, with the upload under audit.
    account : str
        This validator.
    secret : bytes, length 32
        Its X25519 secret; never leaves this call.

    Returns
    -------
    bytes or Refusal
        The payload for `check_opening`: the device's update and seed, which stay with validators.

    Notes
    -----
    Pure, but a Byzantine device can seal the content key wrongly to some of the validators. Then
    those refuse, and the quorum decides; where there is none, the task's `silence` does. The header
    is the associated data of the seal: nobody can put its own name on another's opening unopened,
    and opened it does not fit another upload.
    """
    parsed = check_opening_envelope(blob, task=task, version=version, member=member)
    if isinstance(parsed, Refusal):
        return parsed
    refusal = check_opening_reader(parsed, account)
    if refusal is not None:
        return refusal
    try:
        return parsed.open(account, secret)
    except EnvelopeError as error:
        return _refusal(str(error))


def check_opening_envelope(
    blob: bytes, *, task: Task, version: int, member: Member
) -> envelope.Envelope | Refusal:
    """Check all of an opening that is public: what anybody can repeat who has the bytes.

    Parameters
    ----------
    blob, task, version, member
        As `open_opening`.

    Returns
    -------
    Envelope or Refusal
        Pure; the same for everybody.
    """
    bytes_max = opening_bytes_max(task_codec(task))
    if len(blob) > bytes_max:
        return _refusal(f"expected an opening of at most {bytes_max} bytes, got {len(blob)}")
    try:
        parsed = envelope.parse(blob)
    except EnvelopeError as error:
        return _refusal(str(error))
    refusal = _check_header(parsed.header, task, version, member)
    if refusal is not None:
        return refusal
    return parsed


def check_opening_reader(parsed: envelope.Envelope, account: str) -> Refusal | None:
    """Check that an opening is sealed to a validator, as far as its table of readers shows it."""
    if account in parsed.readers:
        return None
    return _refusal(f"expected {account} among the opening's readers")


def _check_header(header: Header, task: Task, version: int, member: Member) -> Refusal | None:
    """Check each field against the chain; the decoder has checked those that follow from them."""
    wanted: dict[str, object] = {
        "kind": Kind.OPENING,
        "task": task.id,
        "sender": member.account,
        "version": version,
        "codec": PayloadCodec.QUANTISED,
        "parameters": task.terms.parameters,
        "clip_e6": task.terms.clip_e6,
        "examples": member.upload_cost,
    }
    for name, value in wanted.items():
        found = getattr(header, name)
        if found != value:
            return _refusal(
                f"opening's header field {name}: expected {_shown(value)}, got {_shown(found)}"
            )
    return None


def check_opening(
    payload: bytes,
    ciphertexts: bytes,
    codec: Codec,
    key: PaillierPublicKey,
    *,
    threads: int = 1,
) -> NDArray[np.uint16] | Refusal:
    """Encrypt an opened update again and compare it with the upload, byte for byte.

    The heavy step: it goes to the validator's executor, and its arguments hold no secret of the
    validator's. They do hold the device's update in the clear, as in sealed mode.

    Parameters
    ----------
    payload : bytes
        From `open_opening`.
    ciphertexts : bytes
        The accepted upload's payload.
    codec : Codec
        The task's.
    key : PaillierPublicKey
        The task's.
    threads : int, 1..256
        How many encrypt at once.

    Returns
    -------
    ndarray of uint16, shape (parameters,), or Refusal
        The codes that the upload holds for certain. A refusal names the first ciphertext that is
        another, and no value.

    Notes
    -----
    Pure; the same at every honest validator, whatever its arithmetic. One table of powers and one
    encryption for each opening; it ends at the first ciphertext that differs.
    """
    try:
        seed, codes = split_opening(payload, codec)
    except CodecError as error:
        return _refusal(str(error))
    width = key.ciphertext_bytes
    start = 0
    for block in key.encrypt_stream(codes, codec, seed=seed, threads=threads):
        found = ciphertexts[start : start + len(block)]
        if found != block:
            return _refusal(_first_difference(block, found, start, width))
        start += len(block)
    if len(ciphertexts) != start:
        return _refusal(f"expected {start} bytes of ciphertexts, the upload has {len(ciphertexts)}")
    return codes


def known_by(payload: bytes, codec: Codec) -> Opened:
    """Return what an opened update is told from others by; the seed, which differs, is left out.

    Parameters
    ----------
    payload : bytes
        From `open_opening`.
    codec : Codec
        The task's.
    """
    _, codes = split_opening(payload, codec)
    digest = hashlib.sha256(codec.to_bytes(codes)).digest()
    return Opened(payload, digest, update_sketch(codes))


def judge_opening(
    payload: bytes, ciphertexts: bytes, codec: Codec, key: PaillierPublicKey, measure: Measure
) -> Refusal | None:
    """Check an opened update as `check_opening`, then measure it as an update in sealed mode.

    Parameters
    ----------
    payload, ciphertexts, codec, key
        As `check_opening`.
    measure : Measure
        What to measure with.

    Returns
    -------
    Refusal or None

    Raises
    ------
    MaterialError
        The model and the validation set do not fit together, or the model takes too long.
    ConfigError
        ONNX Runtime is not installed.
    """
    codes = check_opening(payload, ciphertexts, codec, key)
    return codes if isinstance(codes, Refusal) else check_update(codes, codec, measure)


def _first_difference(block: bytes, found: bytes, start: int, width: int) -> str:
    """Say which ciphertext of the upload is not the one that follows from the opening."""
    places = range(0, len(block), width)
    place = next(at for at in places if block[at : at + width] != found[at : at + width])
    return (
        f"ciphertext {(start + place) // width}: expected what the opening gives when it is "
        "encrypted again, the upload has another"
    )


def _refusal(reason: str) -> Refusal:
    return Refusal(VerdictCode.OPENING_MISMATCH, reason)


def _shown(value: object) -> str:
    return value.name.lower() if isinstance(value, (Kind, PayloadCodec)) else str(value)
