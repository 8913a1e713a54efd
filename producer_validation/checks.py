"""From the bytes of an upload to a verdict: which update is refused, and why.

Every function here is pure: no network, no clock, no state, so that all honest validators that see
the same bytes and the same rows of the chain say the same. Two inputs are a validator's own, its
name and X25519 secret; a device can use them to split the validators (see `open_upload`).

The order is length, version, range, relation:

1. length: `check_blob` (the bound, then the recorded hash), then the envelope's own decoder;
2. version, range: `check_header`, field by field against the chain (all of this and who the readers
   are: `check_envelope`);
3. relation: `open_upload` (seal), `check_payload` (ciphertexts under the key, or the model
   measured again), `find_duplicate` (against the round's other uploads).

What can be said of an update in the clear, `check_update` says: in sealed mode of every upload, in
paillier mode of those that were drawn for an audit and opened. Codes may differ among honest
validators, since one may know an earlier series that another never saw (`name_series`); whether an
upload is refused does not.

The bytes of an upload are hostile throughout. What the owner publishes (model, validation set)
is hostile as well, but it is not the device that must answer for it: there `MaterialError` is
raised and no verdict given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.chain.contract import Member, Mode, Round, Rule, Task, VerdictCode
from gradledger.codec import Codec
from gradledger.envelope import HEADER_BYTES, READER_BYTES, TAG_BYTES, Header, Kind, PayloadCodec
from gradledger.errors import (
    CodecError,
    EnvelopeError,
    GradledgerError,
    ModelError,
    PaillierError,
    ValidationSetError,
)
from gradledger.models import Model
from gradledger.paillier import PaillierPublicKey
from gradledger.target import Target
from gradledger.validation import Draw, read_issued_set
from producer_validation import measuring
from producer_validation.measuring import Views

__all__ = [
    "VALIDATORS_MAX",
    "Known",
    "KnownUploads",
    "MaterialError",
    "Measure",
    "Opened",
    "Refusal",
    "add_payloads",
    "check_blob",
    "check_envelope",
    "check_header",
    "check_payload",
    "check_reader",
    "check_update",
    "find_duplicate",
    "judge",
    "measure_of",
    "name_series",
    "open_upload",
    "read_model",
    "read_set",
    "update_bytes_max",
    "update_payload_bytes",
]

VALIDATORS_MAX = 32
"""Of a task, a limit of the contract."""

_READERS_MAX = VALIDATORS_MAX + 1  # and, in sealed mode, the owner
_OVERHEAD_BYTES_MAX = HEADER_BYTES + READER_BYTES * _READERS_MAX + TAG_BYTES
_ZERO_HASH = bytes(32)
_ROOM_FIRST = 64  # sketches
_PENDING = 2**32  # above every slot


class MaterialError(GradledgerError):
    """What the owner published cannot be used, so that nothing can be judged by it."""


@dataclass(frozen=True)
class Refusal:
    """Why an upload is refused.

    Parameters
    ----------
    code : VerdictCode
        Goes on chain.
    reason : str
        What was expected and what came; goes to the log. Holds no text of the upload but names.
    """

    code: VerdictCode
    reason: str


@dataclass(frozen=True)
class Measure:
    """What an update in the clear is measured with. Made by `measure_of`.

    Parameters
    ----------
    model : Model
        The round's, T_(version-1).
    x : array of float32, shape (m, features)
    y : array of int64, shape (m,); of a regression float32
        The set issued to the device.
    error_last : int or None
        End of the device's series, 1e-6 units; None: it says nothing about the update.
    error_first : int or None
        Its beginning; None: the series has no error of the received model.
    error_before : int or None
        Its last but one, under the rule gain.
    rule : Rule
        Of the round. Under gain the first error and the last but one are doubts.
    norm_max_e6 : int
        Largest L2 norm of an update, 1e-6 units; 0: any.
    """

    model: Model
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    error_last: int | None
    error_first: int | None = None
    error_before: int | None = None
    rule: Rule = Rule.TREND
    norm_max_e6: int = 0


@dataclass(frozen=True)
class Opened:
    """An upload whose bytes, header and seal are as they should be.

    Parameters
    ----------
    payload : bytes
        In the clear (paillier mode: the ciphertexts), of its exact length.
    digest : bytes, length 32
        SHA-256 of the payload.
    sketch : bytes
        Of the update (`measuring.update_sketch`); empty in paillier mode.
    """

    payload: bytes = field(repr=False)
    digest: bytes
    sketch: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Known:
    """Another upload of the round that passed `open_upload` and `check_payload`.

    Parameters
    ----------
    account : str
        Its device.
    slot : int
        Its place in the order in which the round's uploads were recorded.
    digest : bytes
        Of its payload.
    accepted : bool
        Whether the chain has accepted it already.
    sketch : bytes
        Of its update, where that is known.
    """

    account: str
    slot: int
    digest: bytes
    accepted: bool
    sketch: bytes = field(default=b"", repr=False)


# ---- lengths ------------------------------------------------------------------------------------


def update_payload_bytes(codec: Codec, key: PaillierPublicKey | None) -> int:
    """Return the exact length of an update's payload.

    Parameters
    ----------
    codec : Codec
        The task's.
    key : PaillierPublicKey or None
        The task's; None in sealed mode.

    Returns
    -------
    int
        Bytes. Pure; follows from the chain and the card alone.
    """
    return 2 * codec.parameters if key is None else key.payload_bytes(codec)


def update_bytes_max(codec: Codec, key: PaillierPublicKey | None) -> int:
    """Return how long an update's envelope can be: the bound of every fetch.

    Parameters
    ----------
    codec, key
        As `update_payload_bytes`.

    Returns
    -------
    int
        Bytes. Pure. A Byzantine device can make a validator fetch this much once per round.
    """
    return _OVERHEAD_BYTES_MAX + update_payload_bytes(codec, key)


# ---- the upload, step by step -------------------------------------------------------------------


def check_blob(blob: bytes, recorded_hash: bytes, bytes_max: int) -> Refusal | None:
    """Check the length, then the hash that the device recorded.

    Parameters
    ----------
    blob : bytes
        As fetched and verified against the recorded CID: another blob under this CID cannot be
        made, so that a wrong hash is the device's doing and not the IPFS node's.
    recorded_hash : bytes
    bytes_max : int

    Returns
    -------
    Refusal or None
        None: go on. Pure; the same at every honest validator.
    """
    if len(blob) > bytes_max:
        return Refusal(
            VerdictCode.MALFORMED, f"expected at most {bytes_max} bytes, got {len(blob)}"
        )
    found = hashlib.sha256(blob).digest()
    if found != recorded_hash:
        return Refusal(
            VerdictCode.HASH_MISMATCH,
            f"expected the recorded hash {recorded_hash.hex()}, got {found.hex()}",
        )
    return None


def check_header(header: Header, task: Task, version: int, member: Member) -> Refusal | None:
    """Check every field of an update's header against the chain.

    Parameters
    ----------
    header : Header
        As decoded: each field is within its bounds, and they agree with each other.
    task : Task
    version : int
        Of the round.
    member : Member
        The device's row.

    Returns
    -------
    Refusal or None
        None: go on. Pure; the same at every honest validator. The header is the associated data of
        the seal, so that a device cannot put its own name on another's envelope without opening it.
    """
    terms = task.terms
    is_packed = terms.mode is Mode.PAILLIER
    wanted: dict[str, object] = {
        "version": version,
        "kind": Kind.UPDATE,
        "task": task.id,
        "sender": member.account,
        "sealed": True,
        "codec": PayloadCodec.PAILLIER if is_packed else PayloadCodec.QUANTISED,
        "parameters": terms.parameters,
        "slot_bits": terms.slot_bits if is_packed else 0,
        "clip_e6": terms.clip_e6,
        "examples": member.upload_cost,
    }
    for name, value in wanted.items():
        found = getattr(header, name)
        if found != value:
            return Refusal(
                VerdictCode.HEADER_MISMATCH,
                f"header field {name}: expected {_shown(value)}, got {_shown(found)}",
            )
    key_hash = terms.key_hash if is_packed else _ZERO_HASH
    if header.key_hash != key_hash:
        return Refusal(
            VerdictCode.WRONG_KEY,
            f"expected an update under key {key_hash.hex()}, got one under {header.key_hash.hex()}",
        )
    return None


def check_envelope(
    blob: bytes, *, task: Task, version: int, member: Member, payload_bytes: int
) -> envelope.Envelope | Refusal:
    """Check all of an upload that is public: what anybody can repeat who has the bytes.

    Parameters
    ----------
    blob, task, version, member, payload_bytes
        As `open_upload`.

    Returns
    -------
    Envelope or Refusal
        Pure; the same for everybody.
    """
    bytes_max = _OVERHEAD_BYTES_MAX + payload_bytes
    refusal = check_blob(blob, member.upload_hash, bytes_max)
    if refusal is not None:
        return refusal
    try:
        parsed = envelope.parse(blob)
    except EnvelopeError as error:
        return Refusal(VerdictCode.MALFORMED, str(error))
    refusal = check_header(parsed.header, task, version, member)
    if refusal is not None:
        return refusal
    if parsed.header.payload_bytes != payload_bytes:
        return Refusal(
            VerdictCode.MALFORMED,
            f"expected a payload of {payload_bytes} bytes, got {parsed.header.payload_bytes}",
        )
    if task.terms.mode is Mode.SEALED and task.owner not in parsed.readers:
        return Refusal(VerdictCode.MALFORMED, f"expected the owner {task.owner} among the readers")
    return parsed


def check_reader(parsed: envelope.Envelope, account: str) -> Refusal | None:
    """Check that an upload is sealed to a validator, as far as its table of readers shows it."""
    if account in parsed.readers:
        return None
    return Refusal(VerdictCode.MALFORMED, f"expected {account} among the readers")


def open_upload(
    blob: bytes,
    *,
    task: Task,
    version: int,
    member: Member,
    account: str,
    secret: bytes,
    payload_bytes: int,
) -> Opened | Refusal:
    """Check an upload up to and including its seal and its payload's length.

    Parameters
    ----------
    blob : bytes
        As fetched.
    task : Task
    version : int
        Of the round.
    member : Member
        The device's row, with the upload of this round.
    account : str
        This validator.
    secret : bytes, length 32
        Its X25519 secret; never leaves this call.
    payload_bytes : int
        From `update_payload_bytes`.

    Returns
    -------
    Opened or Refusal

    Notes
    -----
    Pure, but the one step whose result may differ among honest validators: a Byzantine device can
    seal the content key wrongly to some of them. Then those say "malformed" and the quorum decides.
    Of an upload that was accepted nonetheless, they cannot add up the sum.
    """
    parsed = check_envelope(
        blob, task=task, version=version, member=member, payload_bytes=payload_bytes
    )
    if isinstance(parsed, Refusal):
        return parsed
    refusal = check_reader(parsed, account)
    if refusal is not None:
        return refusal
    try:
        payload = parsed.open(account, secret)
    except EnvelopeError as error:
        return Refusal(VerdictCode.MALFORMED, str(error))
    if len(payload) != payload_bytes:
        return Refusal(
            VerdictCode.MALFORMED,
            f"expected a payload of {payload_bytes} bytes, got {len(payload)}",
        )
    sketch = b""
    if task.terms.mode is Mode.SEALED:
        sketch = measuring.update_sketch(task_codec(task).from_bytes(payload))
    return Opened(payload, hashlib.sha256(payload).digest(), sketch)


def check_set_issued(member: Member, version: int) -> Refusal | None:
    """Refuse an upload whose device was issued no validation set: its errors are of none.

    For updates that are measured. A set cannot be issued any more once the upload is recorded, so
    that this is the same at every honest validator; `device_sdk` does not train without a set.
    """
    if member.set_version == version:
        return None
    return Refusal(
        VerdictCode.ERROR_MISMATCH, f"no validation set was issued to it for round {version}"
    )


def check_payload(
    payload: bytes, codec: Codec, key: PaillierPublicKey | None, measure: Measure | None
) -> Refusal | None:
    """Check ciphertexts under the task's key, or measure the error of an update again.

    The heavy step: it goes to the validator's executor, and its arguments hold no secret.

    Parameters
    ----------
    payload : bytes
        From `open_upload`.
    codec : Codec
        The task's.
    key : PaillierPublicKey or None
        Paillier mode: each ciphertext must lie in [1, n^2) and be coprime to n.
    measure : Measure or None
        Sealed mode: what to measure with.

    Returns
    -------
    Refusal or None

    Raises
    ------
    MaterialError
        The model and the validation set do not fit together, or the model takes too long.
    ConfigError
        ONNX Runtime is not installed.

    Notes
    -----
    Pure; the same at every honest validator, but for float32 sums on another machine, which the
    tolerances of `producer_validation.measuring` absorb. A Byzantine device can encrypt slots out
    of range, which no validator sees (the owner checks the sums), and, in paillier mode, report any
    errors unless it is drawn for an audit.
    """
    if key is not None:
        try:
            key.check_ciphertexts(payload, codec)
        except PaillierError as error:
            return Refusal(VerdictCode.OUT_OF_RANGE, str(error))
    if measure is not None:
        try:
            codes = codec.from_bytes(payload)
        except CodecError as error:
            return Refusal(VerdictCode.OUT_OF_RANGE, str(error))
        return check_update(codes, codec, measure)
    return None


# ---- an update in the clear ---------------------------------------------------------------------


def measure_of(
    round_: Round,
    member: Member,
    model: Model,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    *,
    tells_update: bool = True,
) -> Measure:
    """Return what a device's update is measured with.

    Parameters
    ----------
    round_ : Round
    member : Member
        The device's row, with the upload of this round.
    model : Model
        From `read_model`.
    x, y : arrays
        From `read_set`.
    tells_update : bool
        False in a task with differential privacy whose series is the received model's error alone
        (`Privacy.update_error`).

    Returns
    -------
    Measure
        Pure.
    """
    rule = round_.rule
    last, first = member.error_last, member.error_first
    alone = hashlib.sha256(last.to_bytes(4, "little")).digest()
    return Measure(
        model,
        x,
        y,
        error_last=last if tells_update else None,
        # A series of one error has none of the received model but where it has only that.
        error_first=None if tells_update and member.series_hash == alone else first,
        error_before=member.error_before if rule is Rule.GAIN else None,
        rule=rule,
        norm_max_e6=round_.norm_max_e6,
    )


def check_update(codes: npt.NDArray[np.uint16], codec: Codec, measure: Measure) -> Refusal | None:
    """Check an update in the clear: its norm, the device's series, and under gain what it learnt.

    Parameters
    ----------
    codes : array of uint16, shape (parameters,)
        The update: of a sealed upload, or from the opening of a drawn one.
    codec : Codec
        The task's.
    measure : Measure

    Returns
    -------
    Refusal or None
        Codes in this order: `NORM`, `NO_UPDATE`, `ERROR_MISMATCH`; under the rule gain `NO_GAIN`
        where no doubt moved, `CLASS_CLAIM`, and `NO_GAIN` where doubts moved but did not fall.

    Raises
    ------
    MaterialError, ConfigError
        As `check_payload`.

    Notes
    -----
    Pure; norm and emptiness are exact. For the rest see `check_payload`.
    """
    if measuring.norm_exceeds(codes, codec, measure.norm_max_e6):
        found = measuring.norm_e6(codes, codec)
        return Refusal(
            VerdictCode.NORM, f"expected a norm of at most {measure.norm_max_e6}, got {found}"
        )
    if measuring.is_next_to_nothing(codes):
        return Refusal(VerdictCode.NO_UPDATE, "expected an update, got none but rounding")
    is_gain = measure.rule is Rule.GAIN
    try:
        before, after = measuring.views(
            measure.model, codes, codec, measure.x, measure.y, doubts=is_gain
        )
    except ModelError as error:
        raise MaterialError(f"the error cannot be measured: {error}") from error
    refusal = _check_series(measure, before, after)
    if refusal is None and is_gain:
        refusal = _check_gain(before, after)
    return refusal


def _check_series(measure: Measure, before: Views, after: Views) -> Refusal | None:
    """Compare the numbers of a series that the chain keeps with the measured ones."""
    errors = measuring.error_tolerance(len(measure.y))
    if measure.model.network.regresses():
        errors = measuring.DOUBT_TOLERANCE
    is_gain = measure.rule is Rule.GAIN
    doubts = measuring.DOUBT_TOLERANCE if is_gain else errors
    rows = (
        ("first", measure.error_first, before.doubt if is_gain else before.error, doubts),
        ("last but one", measure.error_before, after.doubt, doubts),
        ("last", measure.error_last, after.error, errors),
    )
    for name, reported, found, tolerance in rows:
        if reported is not None and abs(found - reported) > tolerance:
            return Refusal(
                VerdictCode.ERROR_MISMATCH,
                f"expected a {name} error of {found} +- {tolerance} (measured), "
                f"{reported} was reported",
            )
    return None


def _check_gain(before: Views, after: Views) -> Refusal | None:
    """Ask what an update under the rule gain must have learnt."""
    if measuring.moved_nothing(after):
        return Refusal(
            VerdictCode.NO_GAIN,
            f"expected doubts to move by {measuring.MOVED_LEAST} in the mean, "
            f"they moved by {after.moved:.4f}",
        )
    unknown = measuring.unknown_class(before, after)
    if unknown is not None:
        was, is_now = before.classes[unknown], after.classes[unknown]
        return Refusal(
            VerdictCode.CLASS_CLAIM,
            f"expected an update that knows class {unknown}: doubt {was.doubt:.4f} before it, "
            f"{is_now.doubt:.4f} with it, {is_now.wrong} of {is_now.points} answered wrongly",
        )
    if measuring.without_gain(before, after):
        return Refusal(
            VerdictCode.NO_GAIN,
            f"expected the doubt to fall further than from {before.doubt} to {after.doubt}",
        )
    return None


def name_series(
    refusal: Refusal, member: Member, rows: Iterable[Member], *, is_earlier: bool
) -> Refusal:
    """Say of a series that does not fit its update where it comes from, if that is known.

    Parameters
    ----------
    refusal : Refusal
        Returned as it is unless its code is `ERROR_MISMATCH`.
    member : Member
        The device's row.
    rows : iterable of Member
        Rows with uploads of the same round.
    is_earlier : bool
        Whether this validator knows the series as one that the device reported in an earlier round
        (`SeenUploads.had_series`).

    Returns
    -------
    Refusal
        `REPLAYED_SERIES`, `COPIED_SERIES`, or what was given.
    """
    if refusal.code is not VerdictCode.ERROR_MISMATCH:
        return refusal
    if is_earlier:
        return Refusal(
            VerdictCode.REPLAYED_SERIES, f"{refusal.reason}; it is the series of an earlier round"
        )
    for row in rows:
        is_other = row.account != member.account and row.upload_version == member.upload_version
        if is_other and row.series_hash == member.series_hash:
            return Refusal(
                VerdictCode.COPIED_SERIES,
                f"{refusal.reason}; {row.account} reported the same series",
            )
    return refusal


# ---- beside the round's other uploads -----------------------------------------------------------


class KnownUploads:
    """Sound uploads of one round, among which copies are looked for. It grows.

    One look is one product of an array that all sketches are in: what is compared one by one does
    not grow with the round. Notes and rules: `find_duplicate`.

    Parameters
    ----------
    known : iterable of Known
        To begin with. Each device once.
    """

    def __init__(self, known: Iterable[Known] = ()) -> None:
        self._first: dict[bytes, list[Known]] = {}  # by digest, the two that come first
        self._sketched: list[Known] = []  # row by row of the arrays, which have room for more
        self._sums = np.empty((0, measuring.SKETCH_NUMBERS))
        self._squares = np.empty(0)
        self._ranks = np.empty(0, dtype=np.int64)
        for one in known:
            self.add(one)

    def add(self, one: Known) -> None:
        """Let copies of an upload be known from now on."""
        same = [*self._first.get(one.digest, ()), one]
        self._first[one.digest] = sorted(same, key=_rank)[:2]
        if not one.sketch:
            return
        place = len(self._sketched)
        if place == len(self._ranks):
            room = max(_ROOM_FIRST, 2 * place)
            self._sums = np.resize(self._sums, (room, measuring.SKETCH_NUMBERS))
            self._squares = np.resize(self._squares, room)
            self._ranks = np.resize(self._ranks, room)
        sums, square, _ = _numbers(one.sketch)
        self._sums[place], self._squares[place], self._ranks[place] = sums, square, _rank(one)
        self._sketched.append(one)

    def find_duplicate(self, mine: Known) -> Refusal | None:
        """Return what `find_duplicate` does, beside the uploads known so far."""
        same = [one for one in self._first.get(mine.digest, ()) if one.account != mine.account]
        near = self._first_near(mine)
        found = [*same[:1], *([near] if near else [])]
        first = min(found, key=_rank, default=None)
        if first is None or _rank(first) >= _PENDING + mine.slot:
            return None
        what = "the one" if first.digest == mine.digest else "nearly the one"
        return Refusal(
            VerdictCode.DUPLICATE, f"expected an update of its own, got {what} of {first.account}"
        )

    def _first_near(self, mine: Known) -> Known | None:
        """Return the first in the order of who stays whose update is nearly this one."""
        if not mine.sketch or not self._sketched:
            return None
        own, square, parameters = _numbers(mine.sketch)
        rows = slice(len(self._sketched))
        squares = self._squares[rows]
        apart = squares + square - 2 * (self._sums[rows] @ own)
        limit = (measuring.NEAR_PERCENT / 100) ** 2 * np.maximum(squares, square)
        limit += measuring.ROUNDING * parameters
        # float64 errs by far less, so that only who is very near the limit is compared in vain
        places = np.flatnonzero(apart < limit * 1.000001)
        for place in places[np.argsort(self._ranks[places])]:
            one = self._sketched[place]
            if one.account != mine.account and measuring.is_near(mine.sketch, [one.sketch])[0]:
                return one
        return None


def _rank(one: Known) -> int:
    """Return the place of an upload in the order of who stays: the accepted first, then by slot."""
    return one.slot if one.accepted else _PENDING + one.slot


def _numbers(sketch: bytes) -> tuple[npt.NDArray[np.float64], float, float]:
    """Return a sketch's sums, their squared length, and the number of parameters."""
    numbers = np.frombuffer(sketch, dtype="<i8").astype(np.float64)
    sums = numbers[:-1]
    return sums, float(sums @ sums), float(numbers[-1])


def find_duplicate(mine: Known, others: Iterable[Known]) -> Refusal | None:
    """Refuse a payload, or an update, that another device of the round sent as well.

    The same are two equal payloads, and two updates that are less than a hundredth of the longer
    one apart, by their sketches. Of several one is accepted: the one that the chain has accepted
    already; while none is, the one that was recorded first. Who copies must have opened the
    original before, and that takes a validator's key (sealed mode: or the owner's). In a round that
    commits before it reveals nobody has the bytes before the last upload is recorded.

    Parameters
    ----------
    mine : Known
        The upload; whether it is accepted does not matter.
    others : iterable of Known
        Uploads of the same round; only those that are acceptable otherwise, so that nobody can
        have an honest upload refused with a copy that would be refused itself. This one may be
        among them.

    Returns
    -------
    Refusal or None

    Notes
    -----
    Pure, and the same at validators that see the same rows. Two that see a copy appear at
    different moments may vote differently; then neither copy gets a quorum, or one does. A copy
    that was altered by more, or (paillier mode) encrypted again, is not seen here. Who looks for
    copies of many keeps `KnownUploads`.
    """
    return KnownUploads(others).find_duplicate(mine)


def judge(
    blob: bytes,
    *,
    task: Task,
    version: int,
    member: Member,
    account: str,
    secret: bytes,
    key: PaillierPublicKey | None = None,
    measure: Measure | None = None,
    others: Iterable[Known] = (),
    rows: Iterable[Member] = (),
    is_earlier: bool = False,
) -> tuple[VerdictCode, str]:
    """Return the verdict on an upload and the reason: all the steps in their order.

    Parameters
    ----------
    blob, task, version, member, account, secret
        As `open_upload`.
    key, measure
        As `check_payload`.
    others
        As `find_duplicate`.
    rows, is_earlier
        As `name_series`.

    Returns
    -------
    tuple of VerdictCode, str
        The reason is empty for `ACCEPT`. Whatever the bytes, nothing is raised but `MaterialError`.
    """
    codec = task_codec(task)
    opened = open_upload(
        blob,
        task=task,
        version=version,
        member=member,
        account=account,
        secret=secret,
        payload_bytes=update_payload_bytes(codec, key),
    )
    if isinstance(opened, Refusal):
        return opened.code, opened.reason
    refusal = check_payload(opened.payload, codec, key, measure)
    if refusal is None:
        mine = Known(member.account, member.upload_slot, opened.digest, False, opened.sketch)
        refusal = find_duplicate(mine, others)
    else:
        refusal = name_series(refusal, member, rows, is_earlier=is_earlier)
    return (refusal.code, refusal.reason) if refusal else (VerdictCode.ACCEPT, "")


def add_payloads(key: PaillierPublicKey, codec: Codec, payloads: list[bytes]) -> bytes:
    """Return the product of updates modulo n^2, place by place; work for an executor.

    Parameters
    ----------
    key : PaillierPublicKey
    codec : Codec
    payloads : list of bytes
        Updates or products of updates.

    Returns
    -------
    bytes
        Pure and deterministic, whatever the order and the grouping: this is why equal hashes of
        the validators prove the sum.
    """
    return key.add(payloads, codec)


# ---- what the owner published -------------------------------------------------------------------


def read_model(
    blob: bytes,
    task: Task,
    round_: Round,
    architecture: Mapping[str, Any],
    me: str,
    secret: bytes,
    target: Target | None = None,
) -> Model:
    """Read the model of a round and check it against chain and card.

    Parameters
    ----------
    blob : bytes
        As fetched.
    task : Task
    round_ : Round
    architecture : mapping
        Of the task card.
    me : str
        This validator.
    secret : bytes
        Its X25519 secret.
    target : Target, optional
        Of the task card, where the task learns a number.

    Returns
    -------
    Model
        Pure.

    Raises
    ------
    MaterialError
        It is not the recorded one, malformed, not for this validator, or not the task's model.
    """
    parsed = _material(blob, "model", task, Kind.MODEL, round_.version, round_.model_hash)
    try:
        model = Model.from_bytes(parsed.open(me, secret), architecture=architecture, target=target)
    except (EnvelopeError, ModelError) as error:
        raise MaterialError(f"model of round {round_.version}: {error}") from None
    if model.parameters != task.terms.parameters:
        raise MaterialError(
            f"model of round {round_.version}: expected {task.terms.parameters} parameters, "
            f"got {model.parameters}"
        )
    return model


def read_set(
    blob: bytes,
    task: Task,
    member: Member,
    me: str,
    secret: bytes,
    draw: Draw | None = None,
    target: Target | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Read the validation set issued to a device.

    Parameters
    ----------
    blob : bytes
        As fetched.
    task : Task
    member : Member
        The device.
    me : str
        This validator.
    secret : bytes
        Its X25519 secret.
    draw : Draw, optional
        Which committed points the device must have got; None: the task commits to none.
    target : Target, optional
        Of the task card, where the task learns a number.

    Returns
    -------
    x : array of float32, shape (m, features)
    y : array of int64, or of float32 where the task learns a number, shape (m,)
        Pure.

    Raises
    ------
    MaterialError
        It is not the recorded one, malformed, not for this validator, or not the one drawn: then
        the owner gave the device other points than it should.
    """
    what = f"validation set of {member.account}"
    parsed = _material(blob, what, task, Kind.VALIDATION_SET, member.set_version, member.set_hash)
    try:
        return read_issued_set(parsed.open(me, secret), draw, target)
    except (EnvelopeError, ModelError, ValidationSetError) as error:
        raise MaterialError(f"{what}: {error}") from None


def _material(
    blob: bytes, what: str, task: Task, kind: Kind, version: int, recorded_hash: bytes
) -> envelope.Envelope:
    """Decode something of the owner's and check its hash and header."""
    if hashlib.sha256(blob).digest() != recorded_hash:
        raise MaterialError(f"{what}: its hash is not the one on chain")
    try:
        parsed = envelope.parse(blob)
    except EnvelopeError as error:
        raise MaterialError(f"{what}: {error}") from None
    header = parsed.header
    found = (header.kind, header.task, header.sender, header.version)
    expected = (kind, task.id, task.owner, version)
    if found != expected:
        raise MaterialError(f"{what}: expected kind, task, sender, version {expected}, got {found}")
    return parsed


def _shown(value: object) -> str:
    return value.name.lower() if isinstance(value, (Kind, PayloadCodec)) else str(value)
