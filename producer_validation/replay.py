"""Every verdict of a task, given again: from proven blocks, IPFS, and a reader's key.

What validators judged by is on chain: the hashes of upload, model, validation set and card, the
series, the CID of an opening, the block that opened the round. So each verdict can be compared with
what the very functions that validators judge by (`producer_validation.checks`, `openings`) make of
these inputs. Three things can come out: the inputs give that verdict, they give another, or it
cannot be told any more (bytes are gone) or by these keys (`weigh`).

What validators attested of a round's sum is multiplied again.

Rounds are looked at one by one as the blocks are replayed: memory grows with the devices of one
round, time with the bytes of all.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from gradledger import envelope
from gradledger.audit.replay import RoundBook, TaskReplay, Upload
from gradledger.audit.rows import member_row, round_row, task_row
from gradledger.audit.run import Audit
from gradledger.card import TaskCard, fetch_card, task_codec
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import (
    CONTRACT_DEFAULT,
    Member,
    Mode,
    Round,
    Rule,
    Task,
    UploadState,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey
from gradledger.errors import (
    BlobCorruptError,
    BlobMissingError,
    BlobTooLargeError,
    ConfigError,
    EnvelopeError,
    StoreError,
    StoreUnavailableError,
)
from gradledger.models import Model
from gradledger.paillier import PaillierPublicKey, sum_payload
from gradledger.store import Store
from gradledger.validation import Draw
from producer_validation import checks, openings
from producer_validation.checks import Known, KnownUploads, MaterialError, Measure, Opened, Refusal
from producer_validation.validator import MODEL_BYTES_EXTRA, SET_BYTES_MAX

__all__ = ["Judged", "Outcome", "Truth", "VerdictsReport", "replay_verdicts", "weigh"]

WORKERS = 4
AHEAD_BYTES_MAX = 2**28  # of blobs under way
AWAY_MAX = 3  # answers in a row that a store may owe before it counts as gone
WRONG_MAX = 1000  # that a report names; all are counted

_MISMATCHES = frozenset(
    {VerdictCode.ERROR_MISMATCH, VerdictCode.REPLAYED_SERIES, VerdictCode.COPIED_SERIES}
)
_PUBLIC = frozenset({VerdictCode.HASH_MISMATCH, VerdictCode.HEADER_MISMATCH, VerdictCode.WRONG_KEY})
_ALWAYS = _PUBLIC | {VerdictCode.ACCEPT, VerdictCode.UNAVAILABLE, VerdictCode.MALFORMED}
_GAIN = frozenset({VerdictCode.CLASS_CLAIM, VerdictCode.NO_GAIN})

# By CID and how long it may be: a blob can be the opening of one upload, and too long for that, and
# be itself an upload.
_Blobs = Mapping[tuple[str, int], bytes | StoreError]

GONE = "its bytes are not on IPFS any more"
AWAY = "IPFS does not answer"
NOT_ASKED = "IPFS was not looked at"
NO_KEY = "it is sealed, and none of the keys given opens it"
LATER = "unavailable: the bytes are there now; whether they were then nobody can tell"
OWN_SEAL = "whether it was sealed rightly to that validator only the validator's own key tells"
COPIES = "copies: which one may be accepted depends on the moment; that validator accepted several"
NOT_ALL = "duplicate: not every other upload of the round can be opened"
NOTE_GONE = "unavailable, and not there now either"
NOTE_SERIES = "a mismatch is a mismatch: whose series it is depends on what the validator had seen"
NOTE_LONG = "an opening that is too long: by its length malformed, by what is in it a mismatch"
NOTE_COPIES = "of copies any may be accepted: which one depends on the moment"


class Outcome(Enum):
    """What became of a verdict that was given again."""

    HELD = "held"
    WRONG = "wrong"
    UNTOLD = "untold"


@dataclass(frozen=True)
class Truth:
    """What the inputs of the verdicts on one upload say, as far as the keys open them.

    Parameters
    ----------
    decided : Refusal or None
        What anybody can see that must be said, by all validators.
    also : collection of VerdictCode
        Codes that will do as well as the one decided.
    own : mapping of str to Refusal
        The same, for single validators: those who are no readers, and those of the keys given to
        whom the seal is not as it should be.
    opened_by : collection of str
        Validators with whose keys it was opened.
    is_told : bool
        Whether the inside is known: then `inner` is what is to be said of it, None: accept.
    untold : str
        Why not.
    is_missing : bool
        Its bytes cannot be had now.
    possible : collection of VerdictCode
        What may be said at all in this task and phase.
    copies : tuple of str or None
        Devices whose updates of the round are the same or nearly; None: not all could be opened.
    """

    decided: Refusal | None = None
    also: Collection[VerdictCode] = ()
    own: Mapping[str, Refusal] = field(default_factory=dict)
    opened_by: Collection[str] = ()
    is_told: bool = False
    inner: Refusal | None = None
    untold: str = NO_KEY
    is_missing: bool = False
    possible: Collection[VerdictCode] = tuple(VerdictCode)
    copies: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Weight:
    """What a verdict is worth: its outcome, what was to be said, and why."""

    outcome: Outcome
    expected: VerdictCode = VerdictCode.NONE
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """One verdict, given again.

    Attributes
    ----------
    version : int
    validator, device : str
    is_audit : bool
        Whether it was given on an opened upload.
    code : VerdictCode
        What was said.
    expected : VerdictCode
        What the inputs give; NONE where that is not known.
    reason : str
    """

    version: int
    validator: str
    device: str
    is_audit: bool
    code: VerdictCode
    expected: VerdictCode
    reason: str

    def __str__(self) -> str:
        where = "in the audit" if self.is_audit else "on the upload"
        expected = self.expected.name.lower() if self.expected else "another"
        return (
            f"round {self.version}, {self.validator} {where} of {self.device}: said "
            f"{self.code.name.lower()}, expected {expected}: {self.reason}"
        )


@dataclass(frozen=True)
class WrongSum:
    """A sum that a validator attested, and that is not the product of the accepted uploads.

    Attributes
    ----------
    version : int
    validator : str
    said, expected : bytes
        SHA-256 of the sum's payload.
    """

    version: int
    validator: str
    said: bytes
    expected: bytes

    def __str__(self) -> str:
        return (
            f"round {self.version}, {self.validator} on the sum: said {self.said.hex()}, "
            f"expected {self.expected.hex()}"
        )


@dataclass
class Tally:
    """The verdicts of one validator, or the sums of all."""

    held: int = 0
    wrong: int = 0
    untold: int = 0

    @property
    def verdicts(self) -> int:
        """All of them."""
        return self.held + self.wrong + self.untold


@dataclass
class VerdictsReport:
    """What became of all the verdicts.

    Attributes
    ----------
    task, contract, chain_id : str
    last_block : int
    last_id : str
        Id of the last block read: it covers what the verdicts and their inputs' hashes are.
    keys : tuple of str
        Accounts whose keys were given.
    rounds, uploads : int
        Looked at.
    validators : dict of str to Tally
    wrong : list of Judged
        The first `WRONG_MAX` that do not hold.
    sums : Tally
        Of what validators attested of the rounds' sums.
    wrong_sums : list of WrongSum
        The first `WRONG_MAX`.
    untold, noted : Counter of str
        Why verdicts could not be told; what is to be said of some that hold.
    """

    task: str
    contract: str
    keys: tuple[str, ...] = ()
    chain_id: str = ""
    last_block: int = 0
    last_id: str = ""
    rounds: int = 0
    uploads: int = 0
    validators: dict[str, Tally] = field(default_factory=dict)
    wrong: list[Judged] = field(default_factory=list)
    sums: Tally = field(default_factory=Tally)
    wrong_sums: list[WrongSum] = field(default_factory=list)
    untold: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)

    def count(self, name: str) -> int:
        """Return how many verdicts there are of one kind: ``held``, ``wrong``, ``untold``."""
        return sum(getattr(tally, name) for tally in self.validators.values())

    @property
    def verdict(self) -> str:
        """The result in one line."""
        held, wrong, untold = (self.count(name) for name in ("held", "wrong", "untold"))
        faults = [f"{wrong} of {held + wrong + untold} verdicts"] if wrong else []
        if self.sums.wrong:
            faults.append(f"{self.sums.wrong} of {self.sums.verdicts} sums")
        if faults:
            return f"{' and '.join(faults)} do not hold"
        if untold and not held:
            return f"none of {untold} verdicts could be judged"
        rest = f"; {untold} cannot be told" if untold else ""
        return f"{held} verdicts, all hold{rest}"

    def to_dict(self) -> dict[str, Any]:
        """Return a document for programs."""
        return {
            "format": 1,
            "task": self.task,
            "contract": self.contract,
            "chain_id": self.chain_id,
            "last_block": self.last_block,
            "last_id": self.last_id,
            "keys": list(self.keys),
            "verdict": self.verdict,
            "rounds": self.rounds,
            "uploads": self.uploads,
            **{name: self.count(name) for name in ("verdicts", "held", "wrong", "untold")},
            "validators": {
                name: {**vars(tally), "verdicts": tally.verdicts}
                for name, tally in sorted(self.validators.items())
            },
            "not_held": [
                {
                    **vars(one),
                    "code": one.code.name.lower(),
                    "expected": one.expected.name.lower(),
                }
                for one in self.wrong
            ],
            "sums": vars(self.sums),
            "sums_not_held": [
                {**vars(one), "said": one.said.hex(), "expected": one.expected.hex()}
                for one in self.wrong_sums
            ],
            "cannot_be_told": dict(self.untold),
            "noted": dict(self.noted),
        }


# ---- one verdict --------------------------------------------------------------------------------


def weigh(
    code: VerdictCode, validator: str, truth: Truth, accepted_too: Collection[str] = ()
) -> Weight:
    """Compare what a validator said with what the inputs give.

    Parameters
    ----------
    code : VerdictCode
    validator : str
    truth : Truth
    accepted_too : collection of str
        Devices of the round whose uploads this validator accepted.

    Returns
    -------
    Weight
        Pure. Codes that depend on the moment (unavailable, duplicate) or on what a validator had
        seen before (whose series it was) count for the refusal that they are.
    """
    expected = truth.decided or truth.own.get(validator)
    if truth.decided is None and truth.is_missing:
        if code is VerdictCode.UNAVAILABLE and truth.untold == GONE:
            return Weight(Outcome.HELD, code, NOTE_GONE)
        return _not_possible(code, truth) or Weight(Outcome.UNTOLD, reason=truth.untold)
    if expected is None and truth.is_told and _is_same(code, truth.inner):
        return _held(code, truth, accepted_too)
    if expected is not None and _is_same(code, expected):
        return Weight(Outcome.HELD, expected.code)
    if expected is not None and code in truth.also:
        return Weight(Outcome.HELD, expected.code, NOTE_LONG)
    if code is VerdictCode.UNAVAILABLE:
        return Weight(Outcome.UNTOLD, reason=LATER)
    if expected is not None:
        return Weight(Outcome.WRONG, expected.code, expected.reason)
    if impossible := _not_possible(code, truth):
        return impossible
    if code in _PUBLIC:
        reason = "hash, header and key are those on chain, as everybody can see"
        return Weight(Outcome.WRONG, _inner_code(truth), reason)
    is_seal = code in (VerdictCode.MALFORMED, VerdictCode.OPENING_MISMATCH)
    if is_seal and validator not in truth.opened_by:
        return Weight(Outcome.UNTOLD, reason=OWN_SEAL)
    if not truth.is_told:
        return Weight(Outcome.UNTOLD, reason=truth.untold)
    if truth.inner is not None:
        return Weight(Outcome.WRONG, truth.inner.code, truth.inner.reason)
    if code is VerdictCode.DUPLICATE:
        if truth.copies:
            return Weight(Outcome.HELD, code, NOTE_COPIES)
        if truth.copies is None:
            return Weight(Outcome.UNTOLD, reason=NOT_ALL)
        reason = "no other upload of the round has this update, or nearly"
        return Weight(Outcome.WRONG, VerdictCode.ACCEPT, reason)
    return Weight(Outcome.WRONG, VerdictCode.ACCEPT, "nothing is wrong with it")


def _held(code: VerdictCode, truth: Truth, accepted_too: Collection[str]) -> Weight:
    """Return the weight of a verdict that is what the inside gives."""
    if truth.inner is not None:
        note = NOTE_SERIES if code is not truth.inner.code else ""
        return Weight(Outcome.HELD, truth.inner.code, note)
    if not truth.copies:
        return Weight(Outcome.HELD, code)
    if any(device in accepted_too for device in truth.copies):
        return Weight(Outcome.UNTOLD, reason=COPIES)
    return Weight(Outcome.HELD, code, NOTE_COPIES)


def _is_same(code: VerdictCode, refusal: Refusal | None) -> bool:
    if refusal is None:
        return code is VerdictCode.ACCEPT
    return code is refusal.code or {code, refusal.code} <= _MISMATCHES


def _not_possible(code: VerdictCode, truth: Truth) -> Weight | None:
    if code in truth.possible:
        return None
    reason = f"in this task and phase nobody can find {code.name.lower()}"
    if code is VerdictCode.UNREVEALED:
        reason = "its CID was told in time"
    return Weight(Outcome.WRONG, _inner_code(truth), reason)


def _inner_code(truth: Truth) -> VerdictCode:
    if not truth.is_told:
        return VerdictCode.NONE
    return truth.inner.code if truth.inner else VerdictCode.ACCEPT


def possible_codes(task: Task, round_: Round, *, is_audit: bool) -> frozenset[VerdictCode]:
    """Return what can be said of an upload whose CID is known, in this task and phase."""
    found = {*_ALWAYS, VerdictCode.DUPLICATE}
    if is_audit:
        found.add(VerdictCode.OPENING_MISMATCH)
    else:
        found.add(VerdictCode.OUT_OF_RANGE)
    if is_audit or task.terms.mode is Mode.SEALED:
        found |= {*_MISMATCHES, VerdictCode.NO_UPDATE}
        found |= {VerdictCode.NORM} if round_.norm_max_e6 else set()
        found |= _GAIN if round_.rule is Rule.GAIN else set()
    return frozenset(found)


# ---- all of a task's ----------------------------------------------------------------------------


def replay_verdicts(
    client: ChainClient,
    task: str,
    *,
    store: Store | None,
    keys: Sequence[tuple[str, PrivateKey]] = (),
    contract: str = CONTRACT_DEFAULT,
    version: int | None = None,
    from_block: int = 1,
    tell: Callable[[str, int, int], None] | None = None,
) -> VerdictsReport:
    """Give every verdict of a task again, and compare.

    Parameters
    ----------
    client : ChainClient
    task : str
    store : Store or None
        None: what the chain alone decides.
    keys : sequence of (str, PrivateKey)
        Accounts that are readers: validators of the task, in sealed mode also the owner (whose key
        opens updates, but no validation sets).
    contract : str
    version : int, optional
        Of one round; None: of all.
    from_block : int
    tell : callable, optional
        Is told (what, done so far, of how many).

    Raises
    ------
    ProofError, UnexplainedError
        The blocks do not explain the task (`gradledger audit` says what).
    NodeError, ConfigError
        As for an audit.
    StoreError, EnvelopeError
        The task's card cannot be had, or is not the one on chain.
    """
    say = tell or (lambda what, done, total: None)
    report = VerdictsReport(task, contract, tuple(account for account, _ in keys))
    audit = Audit(client, task, contract=contract, from_block=from_block, tell=tell)
    replay: list[_Replay] = []

    def on_round(books: TaskReplay, book: RoundBook) -> None:
        if version in (None, book.version):
            if not replay:
                replay.append(_Replay(report, task_row(books), store, keys, say))
            replay[0].look_at(books, book)

    audit.walk(on_round)
    if version is not None and not report.rounds:
        raise ConfigError(f"round {version} of task {task} was not opened")
    read = audit.report
    report.chain_id = read.chain_id
    report.last_block, report.last_id = read.last_block, read.last_id
    return report


@dataclass(frozen=True)
class _Reader:
    account: str
    secret: bytes = field(repr=False)
    public: bytes


@dataclass
class _Case:
    """One upload of a round, and the verdicts on it."""

    row: Member
    upload: Upload
    spoken: list[tuple[str, VerdictCode, bool]]


class _Replay:
    """The verdicts of one task, round after round."""

    def __init__(
        self,
        report: VerdictsReport,
        task: Task,
        store: Store | None,
        keys: Sequence[tuple[str, PrivateKey]],
        tell: Callable[[str, int, int], None],
    ) -> None:
        self._report, self._task, self._store, self._tell = report, task, store, tell
        secrets = [(account, key.encryption_key()) for account, key in keys]
        self._readers = [_Reader(a, s, envelope.public_key_of(s)) for a, s in secrets]
        self._card: TaskCard | None = None
        self._key: PaillierPublicKey | None = None
        self._codec = task_codec(task)
        self._away = 0
        if store is not None:
            self._card = fetch_card(store, task)
            if task.terms.mode is Mode.PAILLIER:
                self._key = self._card.public_key()
                if self._key.key_hash != task.terms.key_hash:
                    raise EnvelopeError(f"task {task.id}: the card's key is not that of its terms")

    def look_at(self, books: TaskReplay, book: RoundBook) -> None:
        """Judge the verdicts of a round."""
        one = _RoundReplay(self, books, book)
        self._report.rounds += 1
        self._report.uploads += len(one.cases)
        one.judge()

    # ---- bytes ------------------------------------------------------------------------------

    def _blobs(
        self, wanted: Sequence[Sequence[tuple[str, int]]], bytes_each: int
    ) -> Iterator[_Blobs]:
        """Fetch some blobs at a time, in order; a fault stands in place of its blob."""
        store, ahead = self._store, max(1, min(2 * WORKERS, AHEAD_BYTES_MAX // bytes_each))
        under_way: deque[Future[_Blobs]] = deque()
        rest = iter(wanted)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="verdicts") as pool:
            for some in wanted:
                while len(under_way) < ahead and (following := next(rest, None)) is not None:
                    under_way.append(pool.submit(_fetch, store, following, self._is_away))
                found = under_way.popleft().result()
                is_away = any(isinstance(one, StoreUnavailableError) for one in found.values())
                self._away = self._away + 1 if is_away else 0 if some else self._away
                yield found

    def _is_away(self) -> bool:
        return self._away >= AWAY_MAX


class _Updates:
    """The sound updates of a round, or of its openings; tells which of them are the same."""

    def __init__(self) -> None:
        self.is_whole = True  # whether each that there is could be looked at
        self._known: dict[str, Known] = {}
        self._beside = KnownUploads()

    def add(self, row: Member, opened: Opened) -> None:
        """Add a device's update, as if accepted before all others: any may be a copy of it."""
        known = Known(row.account, row.upload_slot, opened.digest, True, opened.sketch)
        self._known[row.account] = known
        self._beside.add(known)

    def with_copies(self, account: str, truth: Truth) -> Truth:
        """Add whose updates are the same, now that all are known."""
        mine, copies = self._known.get(account), []
        if mine is None:
            return truth
        if self._beside.find_duplicate(mine) is not None:
            copies = [
                one.account
                for one in self._known.values()
                if checks.find_duplicate(mine, [one]) is not None
            ]
        return replace(truth, copies=tuple(copies) if copies or self.is_whole else None)


class _RoundReplay:
    """The verdicts of one round."""

    def __init__(self, replay: _Replay, books: TaskReplay, book: RoundBook) -> None:
        self._all, self._task, self._codec = replay, replay._task, replay._codec
        self._key, self._card = replay._key, replay._card
        self._round, self._opened_id = round_row(book), book.opened_id
        self._readers = replay._readers
        # A key that the account had in another round opens nothing here, and proves nothing.
        self._now = {
            one.account
            for one in self._readers
            if one.account in books.members
            and books.members[one.account].enc_key == one.public
            and one.account in book.validators
        }
        self.cases = [
            _Case(member_row(account, member), member.upload, list(_spoken(member.upload)))
            for account, member in books.members.items()
            if member.upload is not None and member.upload.version == book.version
        ]
        self._payload_bytes = 0
        if self._card is not None:
            self._payload_bytes = checks.update_payload_bytes(self._codec, self._key)
        self._upload_bytes_max = checks.update_bytes_max(self._codec, self._key)
        self._opening_bytes_max = openings.opening_bytes_max(self._codec)
        self._model: Model | Exception | None = None
        self._uploaded, self._opened = _Updates(), _Updates()
        self._sums = dict(book.sums)
        self._product, self._added = b"", 0
        self._possible = tuple(
            possible_codes(self._task, self._round, is_audit=one) for one in (False, True)
        )

    def judge(self) -> None:
        """Find out what was to be said of each upload, then compare."""
        truths = list(self._truths())
        accepted: dict[tuple[str, bool], set[str]] = {}
        for case in self.cases:
            for validator, code, is_audit in case.spoken:
                if code is VerdictCode.ACCEPT:
                    accepted.setdefault((validator, is_audit), set()).add(case.row.account)
        for case, (first, audited) in zip(self.cases, truths, strict=True):
            first = self._uploaded.with_copies(case.row.account, first)
            audited = self._opened.with_copies(case.row.account, audited)
            for validator, code, is_audit in case.spoken:
                truth = audited if is_audit else first
                weight = weigh(code, validator, truth, accepted.get((validator, is_audit), ()))
                self._count(case, validator, code, is_audit, weight)
        self._weigh_sums()

    def _weigh_sums(self) -> None:
        """Compare what was attested of the sum with the product of the accepted uploads."""
        tally = self._all._report.sums
        if self._added == 0 or self._added != sum(_is_in_sum(case) for case in self.cases):
            tally.untold += len(self._sums)
            return
        payload = sum_payload(self._round.version, self._added, self._product)
        expected = hashlib.sha256(payload).digest()
        for validator, (said, _) in self._sums.items():
            if said == expected:
                tally.held += 1
                continue
            tally.wrong += 1
            if len(self._all._report.wrong_sums) < WRONG_MAX:
                self._all._report.wrong_sums.append(
                    WrongSum(self._round.version, validator, said, expected)
                )

    def _add(self, payload: bytes) -> None:
        """Multiply an accepted upload's ciphertexts into the sum."""
        assert self._key is not None
        both = [self._product, payload] if self._product else [payload]
        self._product = self._key.add(both, self._codec)
        self._added += 1

    def _count(
        self, case: _Case, validator: str, code: VerdictCode, is_audit: bool, weight: Weight
    ) -> None:
        report = self._all._report
        tally = report.validators.setdefault(validator, Tally())
        if weight.outcome is Outcome.HELD:
            tally.held += 1
            if weight.reason:
                report.noted[weight.reason] += 1
        elif weight.outcome is Outcome.UNTOLD:
            tally.untold += 1
            report.untold[weight.reason] += 1
        else:
            tally.wrong += 1
            if len(report.wrong) < WRONG_MAX:
                report.wrong.append(
                    Judged(
                        version=self._round.version,
                        validator=validator,
                        device=case.row.account,
                        is_audit=is_audit,
                        code=code,
                        expected=weight.expected,
                        reason=weight.reason,
                    )
                )

    # ---- what was to be said ----------------------------------------------------------------

    def _truths(self) -> Iterator[tuple[Truth, Truth]]:
        """Yield of each upload what was to be said of it, and of its opening."""
        wanted = [self._wanted(case) for case in self.cases]
        bytes_each = max(1, *(sum(bound for _, bound in some) for some in wanted), 1)
        what, total = f"verdicts of round {self._round.version}", len(self.cases)
        for number, (case, blobs) in enumerate(
            zip(self.cases, self._all._blobs(wanted, bytes_each), strict=True)
        ):
            self._all._tell(what, number, total)
            yield self._truth(case, blobs)
        self._all._tell(what, total, total)

    def _wanted(self, case: _Case) -> list[tuple[str, int]]:
        """Return the blobs that an upload is judged by: CIDs, and how long each can be."""
        row, is_audited = case.row, any(audit for _, _, audit in case.spoken)
        if not row.upload_cid or self._card is None:
            return []
        wanted = [(row.upload_cid, self._upload_bytes_max)]
        if is_audited:
            wanted.append((row.opening_cid, self._opening_bytes_max))
        if row.set_cid and self._readers and (is_audited or self._key is None):
            wanted.append((row.set_cid, SET_BYTES_MAX))
        return wanted

    def _truth(self, case: _Case, blobs: _Blobs) -> tuple[Truth, Truth]:
        possible, in_audit = self._possible
        if not case.row.upload_cid:
            decided = Refusal(VerdictCode.UNREVEALED, "its CID was not revealed in time")
            return Truth(decided), Truth(decided)
        blob = blobs.get((case.row.upload_cid, self._upload_bytes_max))
        lacking = _lacking(blob, possible)
        if lacking is not None:
            self._uploaded.is_whole &= lacking.decided is not None
            self._opened.is_whole &= lacking.decided is not None
            return lacking, _lacking(blob, in_audit) or lacking
        assert isinstance(blob, bytes)
        first, payload = self._first(case, blob, blobs, possible)
        if not any(is_audit for _, _, is_audit in case.spoken):
            return first, first
        return first, self._audited(case, first, payload, blobs, in_audit)

    def _first(
        self,
        case: _Case,
        blob: bytes,
        blobs: _Blobs,
        possible: frozenset[VerdictCode],
    ) -> tuple[Truth, bytes | None]:
        """Return what was to be said of an upload, and its payload where it was opened."""
        facts: dict[str, Any] = {
            "task": self._task,
            "version": self._round.version,
            "member": case.row,
            "payload_bytes": self._payload_bytes,
        }
        parsed = checks.check_envelope(blob, **facts)
        if isinstance(parsed, Refusal):
            return Truth(parsed, possible=possible), None
        own: dict[str, Refusal] = {}
        for validator in self._round.validators:
            if refusal := checks.check_reader(parsed, validator):
                own[validator] = refusal
        opened, opened_by = None, []
        for one in self._readers:
            got = checks.open_upload(blob, account=one.account, secret=one.secret, **facts)
            if isinstance(got, Opened):
                opened = got
                opened_by.append(one.account)
            elif one.account in self._now:
                own[one.account] = got
        if opened is None:
            self._uploaded.is_whole = False
            return Truth(own=own, possible=possible), None
        told: dict[str, Any] = {"own": own, "opened_by": opened_by, "possible": possible}
        try:
            inner = self._inner(case, opened.payload, blobs)
        except MaterialError as error:
            self._uploaded.is_whole = False
            return Truth(**told, untold=str(error)), opened.payload
        if inner is None and self._key is not None and self._sums and _is_in_sum(case):
            self._add(opened.payload)
        if inner is None:
            self._uploaded.add(case.row, opened)
        return Truth(**told, is_told=True, inner=inner), opened.payload

    def _inner(self, case: _Case, payload: bytes, blobs: _Blobs) -> Refusal | None:
        """Return what is wrong with an opened payload."""
        if self._key is not None:
            return checks.check_payload(payload, self._codec, self._key, None)
        unmeasured = checks.check_set_issued(case.row, self._round.version)
        if unmeasured is not None:
            return unmeasured
        return checks.check_payload(payload, self._codec, None, self._measure(case, blobs))

    def _audited(
        self,
        case: _Case,
        first: Truth,
        ciphertexts: bytes | None,
        blobs: _Blobs,
        possible: frozenset[VerdictCode],
    ) -> Truth:
        """Return what was to be said of an opening: after all that is wrong with the upload."""
        if first.decided is not None:
            return Truth(first.decided)
        blob = blobs.get((case.row.opening_cid, self._opening_bytes_max))
        lacking = _lacking(blob, possible)
        if lacking is not None:
            self._opened.is_whole &= lacking.decided is not None
            # Who reads it in full, since it may be an upload as well, sees that it does not match.
            is_long = isinstance(blob, BlobTooLargeError)
            return replace(lacking, also=(VerdictCode.OPENING_MISMATCH,)) if is_long else lacking
        assert isinstance(blob, bytes) and self._key is not None
        facts: dict[str, Any] = {
            "task": self._task,
            "version": self._round.version,
            "member": case.row,
        }
        own = dict(first.own)
        parsed = openings.check_opening_envelope(blob, **facts)
        if isinstance(parsed, Refusal):
            return Truth(parsed, possible=possible)
        for validator in self._round.validators:
            if refusal := openings.check_opening_reader(parsed, validator):
                own.setdefault(validator, refusal)
        opening, opened_by = None, []
        for one in self._readers:
            got = openings.open_opening(blob, account=one.account, secret=one.secret, **facts)
            if isinstance(got, bytes):
                opening = got
                opened_by.append(one.account)
            elif one.account in self._now:
                own.setdefault(one.account, got)
        told: dict[str, Any] = {"own": own, "opened_by": opened_by, "possible": possible}
        if opening is None or ciphertexts is None:
            self._opened.is_whole = False
            return Truth(**told)
        try:
            inner = self._inner_of_opening(case, opening, ciphertexts, blobs)
        except MaterialError as error:
            self._opened.is_whole = False
            return Truth(**told, untold=str(error))
        if inner is None:
            self._opened.add(case.row, openings.known_by(opening, self._codec))
        return Truth(**told, is_told=True, inner=inner)

    def _inner_of_opening(
        self,
        case: _Case,
        opening: bytes,
        ciphertexts: bytes,
        blobs: _Blobs,
    ) -> Refusal | None:
        """As `openings.judge_opening`; a mismatch needs neither model nor set to be seen."""
        assert self._key is not None
        unmeasured = checks.check_set_issued(case.row, self._round.version)
        if unmeasured is not None:
            return unmeasured
        codes = openings.check_opening(opening, ciphertexts, self._codec, self._key)
        if isinstance(codes, Refusal):
            return codes
        return checks.check_update(codes, self._codec, self._measure(case, blobs))

    # ---- what the owner published -----------------------------------------------------------

    def _measure(self, case: _Case, blobs: _Blobs) -> Measure:
        """Return what an update is measured with. Raises MaterialError."""
        assert self._card is not None
        row, card = case.row, self._card
        model, blob = self._received(), blobs.get((row.set_cid, SET_BYTES_MAX))
        if not isinstance(blob, bytes):
            raise MaterialError("the validation set is not on IPFS any more")
        draw = None
        if card.validation is not None:
            draw = Draw(
                card.validation,
                self._opened_id,
                self._task.id,
                self._round.version,
                row.account,
                row.classes,
            )
        x, y = self._by_any_key(
            lambda one: checks.read_set(
                blob, self._task, row, one.account, one.secret, draw, card.target
            ),
            "the validation set",
        )
        privacy = card.privacy
        tells_update = privacy is None or privacy.update_error
        return checks.measure_of(self._round, row, model, x, y, tells_update=tells_update)

    def _received(self) -> Model:
        """Return the round's model. Raises MaterialError."""
        if self._model is None:
            try:
                self._model = self._read_model()
            except MaterialError as error:
                self._model = error
        if isinstance(self._model, Exception):
            raise self._model
        return self._model

    def _read_model(self) -> Model:
        assert self._card is not None and self._all._store is not None
        card, bytes_max = self._card, 4 * self._task.terms.parameters + MODEL_BYTES_EXTRA
        try:
            blob = self._all._store.get(self._round.model_cid, bytes_max=bytes_max)
        except StoreError as error:
            raise MaterialError(f"the model of the round cannot be had: {error}") from None
        return self._by_any_key(
            lambda one: checks.read_model(
                blob,
                self._task,
                self._round,
                card.architecture,
                one.account,
                one.secret,
                target=card.target,
            ),
            "the model",
        )

    def _by_any_key(self, read: Callable[[_Reader], Any], what: str) -> Any:
        """Return what the first key reads that can. Raises MaterialError."""
        error = MaterialError(f"{what} is sealed, and there is no key")
        for one in self._readers:
            try:
                return read(one)
            except MaterialError as exc:
                error = exc
        raise MaterialError(f"{what} cannot be read by the keys given: {error}")


def _spoken(upload: Upload) -> Iterable[tuple[str, VerdictCode, bool]]:
    """Yield the verdicts on an upload: who, what, and whether in the audit."""
    yield from ((who, VerdictCode(code), False) for who, code in upload.earlier.items())
    is_audit = any(upload.opening)
    yield from ((who, VerdictCode(code), is_audit) for who, code in upload.verdicts.items())


def _is_in_sum(case: _Case) -> bool:
    """Whether validators accepted an upload; one that was paid for silence is in no sum."""
    return case.upload.state is UploadState.PAID and case.upload.reason is VerdictCode.ACCEPT


def _lacking(blob: bytes | StoreError | None, possible: frozenset[VerdictCode]) -> Truth | None:
    """Return what can be told without the bytes, or None where they are there."""
    if isinstance(blob, bytes):
        return None
    if isinstance(blob, BlobTooLargeError):
        return Truth(Refusal(VerdictCode.MALFORMED, str(blob)), possible=possible)
    untold = NOT_ASKED if blob is None else AWAY
    if isinstance(blob, (BlobMissingError, BlobCorruptError)):
        untold = GONE
    return Truth(is_missing=True, untold=untold, possible=possible)


def _fetch(
    store: Store | None, wanted: Sequence[tuple[str, int]], is_away: Callable[[], bool]
) -> _Blobs:
    found: dict[tuple[str, int], bytes | StoreError] = {}
    for cid, bytes_max in wanted:
        try:
            if store is None or is_away():
                raise StoreUnavailableError(AWAY)
            found[cid, bytes_max] = store.get(cid, bytes_max=bytes_max)
        except StoreError as error:
            found[cid, bytes_max] = error
    return found
