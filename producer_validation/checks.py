"""What a validator checks of an upload. Pure: bytes in, verdict out.

The order is length, version, range, relation; the first failure decides, so that honest validators
give equal codes for equal bytes. The bytes are hostile: a device chose them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from gradledger import envelope
from gradledger.chain.contract import ERROR_SCALE, Member, Mode, Round, Task, VerdictCode
from gradledger.codec import Codec
from gradledger.errors import (
    CodecError,
    ConfigError,
    EnvelopeError,
    ModelError,
    NotAReaderError,
    PaillierError,
)
from gradledger.models import Model, load_validation_set
from gradledger.paillier import PaillierPublicKey

VALIDATORS_MAX = 32
POINTS_TOLERATED = 2  # quantising may turn a near tie of the last layer


@dataclass(frozen=True)
class Evaluation:
    """What sealed mode needs to measure an error again.

    Attributes
    ----------
    model : Model
        The round's, T_(version-1).
    validation_set : bytes
        Payload of the set that the owner issued to the device.
    """

    model: Model
    validation_set: bytes


@dataclass(frozen=True)
class Facts:
    """What the chain says about an upload, and who judges it.

    Attributes
    ----------
    task, round, member : rows
        As read from the contract's tables.
    key : PaillierPublicKey or None
        The task's; None in sealed mode.
    codec : Codec
    account : str
        The validator.
    secret : bytes
        Its X25519 secret.
    evaluation : Evaluation or None
        In sealed mode.
    """

    task: Task
    round: Round
    member: Member
    key: PaillierPublicKey | None
    codec: Codec
    account: str
    secret: bytes = field(repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Judgement:
    """A verdict, its reason in words, and the opened payload of an accepted upload."""

    code: VerdictCode
    reason: str
    payload: bytes = field(default=b"", repr=False)


def blob_bytes_max(task: Task, codec: Codec, key: PaillierPublicKey | None) -> int:
    """Return the length of the longest envelope that an upload of this task can be. Pure."""
    body = 2 * codec.parameters if key is None else key.payload_bytes(codec)
    readers = VALIDATORS_MAX + 1  # and the owner
    table = readers * envelope.READER_BYTES
    return envelope.HEADER_BYTES + table + body + envelope.TAG_BYTES


def judge(facts: Facts, blob: bytes) -> Judgement:
    """Judge one upload.

    Pure; raises nothing for any `blob`. A Byzantine device can cost the time that it takes to check
    as many ciphertexts as the task's terms allow, no more.

    Parameters
    ----------
    facts : Facts
    blob : bytes
        What lies at the upload's CID.

    Returns
    -------
    Judgement
    """
    if hashlib.sha256(blob).digest() != facts.member.upload_hash:
        return Judgement(VerdictCode.HASH_MISMATCH, "the bytes are not those of the recorded hash")
    try:
        found = envelope.parse(blob)
    except EnvelopeError as error:
        return Judgement(VerdictCode.MALFORMED, str(error))
    refusal = _check_header(facts, found.header)
    if refusal:
        return refusal
    try:
        payload = found.open(facts.account, facts.secret)
    except NotAReaderError as error:
        return Judgement(VerdictCode.MALFORMED, f"not sealed to the validators: {error}")
    except EnvelopeError as error:
        return Judgement(VerdictCode.MALFORMED, str(error))
    try:
        if facts.key is not None:
            if len(payload) != facts.key.payload_bytes(facts.codec):
                expected = facts.key.payload_bytes(facts.codec)
                text = f"expected {expected} bytes of ciphertexts, got {len(payload)}"
                return Judgement(VerdictCode.MALFORMED, text)
            facts.key.check_ciphertexts(payload, facts.codec)
            return Judgement(VerdictCode.ACCEPT, "", payload)
        codes = facts.codec.from_bytes(payload)
    except (PaillierError, CodecError) as error:
        return Judgement(VerdictCode.OUT_OF_RANGE, str(error))
    if facts.evaluation is None:
        raise ValueError("sealed mode: facts without an evaluation")
    try:
        x, y = load_validation_set(facts.evaluation.validation_set)
        base = facts.evaluation.model
        trained = base.with_vector(base.vector + facts.codec.dequantise(codes))
        measured = trained.error_micro(x, y)
    except (ModelError, ConfigError) as error:
        return Judgement(VerdictCode.ERROR_MISMATCH, f"cannot be evaluated: {error}")
    tolerance = POINTS_TOLERATED * ERROR_SCALE // len(y) + 1
    if abs(measured - facts.member.error_last) > tolerance:
        text = f"reported a last error of {facts.member.error_last}e-6, measured {measured}e-6"
        return Judgement(VerdictCode.ERROR_MISMATCH, text)
    return Judgement(VerdictCode.ACCEPT, "", payload)


def _check_header(facts: Facts, header: envelope.Header) -> Judgement | None:
    """Compare the header with the chain, the version before the rest."""
    packed = facts.task.terms.mode is Mode.PAILLIER
    codec = envelope.PayloadCodec.PAILLIER if packed else envelope.PayloadCodec.QUANTISED
    wanted = {
        "version": facts.round.version,
        "kind": envelope.Kind.UPDATE,
        "codec": codec,
        "sealed": True,
        "task": facts.task.id,
        "sender": facts.member.account,
        "parameters": facts.codec.parameters,
        "slot_bits": facts.codec.slot_bits if packed else 0,
        "clip_e6": facts.codec.clip_e6,
        "examples": facts.member.upload_cost,
    }
    for name, value in wanted.items():
        found = getattr(header, name)
        if found != value:
            text = f"{name}: expected {value}, got {found}"
            return Judgement(VerdictCode.HEADER_MISMATCH, text)
    if header.key_hash != (facts.task.terms.key_hash if packed else bytes(32)):
        return Judgement(VerdictCode.WRONG_KEY, "made under another Paillier key")
    if header.readers > VALIDATORS_MAX + 1:
        text = f"readers: expected at most {VALIDATORS_MAX + 1}, got {header.readers}"
        return Judgement(VerdictCode.MALFORMED, text)
    return None
