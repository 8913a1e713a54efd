"""The validator: follows the chain, judges uploads, audits those drawn, attests, sums, pushes on.

Each `step` is one pass over what the chain says now. Nothing is remembered that the chain and IPFS
could not tell again, so that a validator may be killed and started again at any point. Which upload
is refused, and why, stands in `producer_validation.checks`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

from gradledger import envelope
from gradledger.card import TaskCard, fetch_card, task_codec
from gradledger.chain.client import ChainClient, ChainInfo
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Mode,
    Role,
    Round,
    RoundState,
    Task,
    UploadState,
    Verdict,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey, key_of
from gradledger.chain.transaction import Action
from gradledger.codec import Codec
from gradledger.errors import (
    AlreadyDoneError,
    BlobCorruptError,
    BlobMissingError,
    BlobTooLargeError,
    ContractError,
    GradledgerError,
    NodeAnswerError,
    NodeBusyError,
    RoundClosedError,
    StaleVersionError,
)
from gradledger.logs import say
from gradledger.lots import lot_commitment
from gradledger.metrics import Metrics, ValidatorMetrics
from gradledger.models import Model
from gradledger.paillier import PaillierPublicKey, sum_payload
from gradledger.phases import lots_awaited, phase_end, push_on
from gradledger.store import Store
from gradledger.validation import Draw, opening_id
from producer_validation import checks, openings
from producer_validation.checks import (
    Known,
    KnownUploads,
    MaterialError,
    Measure,
    Opened,
    Refusal,
)
from producer_validation.executors import InlineExecutor, Job, StoppedError, Work
from producer_validation.fetching import CACHE_BYTES_DEFAULT, BlobSource, Fetcher
from producer_validation.lots import lot_value
from producer_validation.seen import SeenUploads
from producer_validation.summing import Product

__all__ = ["StepReport", "Validator"]

# Verdicts in one transaction: as many as the contract takes. If each decides and pays, 500 are
# billed some 14 ms of CPU; chains that allow a transaction little allow it 30 ms. What takes too
# long all the same is sent in halves.
ATTEST_BATCH = 500
WINDOW_MAX = 64  # uploads that are fetched and judged at a time
ATTEST_WAIT_SEC = 1.0  # then verdicts are sent, however few
FETCH_WAIT_SEC = 0.5  # a step waits so long for a window's blobs; who is late waits for the next
STEP_WAIT_SEC = 2.0  # and so long for all that it judges by; then it takes what is there
SUM_WAIT_SEC = 5.0  # without any blob of a sum
PATIENCE_SHARE = 0.7  # of verdict_sec; after it a blob that nobody has is unavailable
OWNER_FIRST_SEC = 3  # after a deadline, before the first validator pushes the round on
MEMBERSHIP_SEC = 1.0  # between two looks whether a task has admitted the account
MEMBERSHIP_LOOKS = 50  # in one step, so that nobody slows it down with tasks by the thousand
SETTLE_LIMIT = 100  # members in one `settle`
FINAL_BLOCKS = 2  # what was read may lie so many blocks above the head that was asked for before
POLL_SEC_DEFAULT = 0.25
BACKOFF_SEC_FIRST = 0.5
BACKOFF_SEC_MAX = 10.0
# All members are read to find the new uploads, so that reading at each upload would grow with the
# square of their number. A row and its ballot take about a tenth of this; a few are read as often
# as need be.
REST_SEC_PER_MEMBER = 0.001
MEMBERS_FEW = 100
MODEL_BYTES_EXTRA = 2**20 + envelope.READERS_MAX * envelope.READER_BYTES
SET_BYTES_MAX = 2**26

log = logging.getLogger("gradledger.validator")

_Key = tuple[str | bytes | int, ...]


@dataclass
class StepReport:
    """What one step did.

    Parameters
    ----------
    accepted, refused : int
        Uploads judged.
    attested : int
        Verdicts that a transaction carried to the chain.
    sums : int
        Sums attested.
    lots : int
        Lots committed or revealed.
    pushed : int
        Rounds pushed on after a deadline.
    skipped : int
        Uploads left for a later step, since something of the owner's, of the executor or of the
        chain's failed with them.
    faults : int
        What else went wrong and will be tried again. The log says what it was.
    is_reachable : bool
        Whether a node answered.
    """

    accepted: int = 0
    refused: int = 0
    attested: int = 0
    sums: int = 0
    lots: int = 0
    pushed: int = 0
    skipped: int = 0
    faults: int = 0
    is_reachable: bool = True

    @property
    def busy(self) -> bool:
        """Whether anything changed on the chain."""
        return bool(self.attested or self.sums or self.lots or self.pushed)


@dataclass
class _Pause:
    """Grows with each fault, ends with the first success."""

    faults: int = 0
    until: float = 0.0

    def grow(self, now: float) -> None:
        self.until = now + min(BACKOFF_SEC_FIRST * 2 ** min(self.faults, 16), BACKOFF_SEC_MAX)
        self.faults += 1


_NO_PAUSE = _Pause()


@dataclass(frozen=True)
class _Result:
    """What the bytes of one upload say, whatever the others are.

    Not judged is what the chain had accepted already when it was opened: only its digest and sketch
    were wanted.
    """

    refusal: Refusal | None
    digest: bytes = b""
    sketch: bytes = b""
    is_judged: bool = True


@dataclass
class _RoundWork:
    """What is kept while a round lasts; at most one entry for each device."""

    version: int
    results: dict[_Key, _Result] = field(default_factory=dict)
    audits: dict[_Key, _Result] = field(default_factory=dict)
    pauses: dict[bytes, _Pause] = field(default_factory=dict)  # by upload hash
    logged: set[tuple[str, str]] = field(default_factory=set)
    model: Model | None = None
    set_bytes: int = 0  # of the largest validation set that came
    opening_id: str | None = None  # of the irreversible block that opened the round
    sum: tuple[bytes, str] | None = None  # hash and CID
    summed: list[_Key] = field(default_factory=list)  # whose sum that is
    final_block: int = 0  # once it is irreversible, so is it that uploads are over; 0: not seen yet
    push_pause: _Pause = field(default_factory=_Pause)  # there was nothing to push
    drawable_at: int = 0  # when the last lot was seen to be revealed, by the chain's time
    read_again_at: float = 0.0  # monotonic: when the members are worth reading again


@dataclass
class _TaskState:
    """What is kept of a task."""

    serves: bool = False
    look_again_at: float = 0.0
    pause: _Pause = field(default_factory=_Pause)
    material: _Material | None = None
    work: _RoundWork | None = None


@dataclass(frozen=True)
class _Material:
    """What a task fixes for its whole life, fetched once."""

    card: TaskCard
    codec: Codec
    key: PaillierPublicKey | None
    payload_bytes: int
    bytes_max: int


class Validator:
    """One validator account, for some tasks or for all that admitted it.

    Parameters
    ----------
    account : str
    key : PrivateKey or str or path
        As for `gradledger.chain.keys.key_of`. It signs transactions; the X25519 key is derived from
        it.
    chain : ChainClient or endpoints
    store : Store, address, or an object with `get` and `put` like a `Store`'s
        Every read must be verified against its CID and bounded in time, as `Store` does.
    tasks : iterable of str, optional
        Serve these. None: every task of the contract that admitted the account.
    contract : str
        Account of the contract.
    executor : concurrent.futures.Executor, optional
        Where ciphertexts are checked and multiplied and models measured; None: here. No secret is
        handed to it. See `producer_validation.executors`.
    state_dir : path, optional
        Keeps the hashes of judged uploads, so that a replay is named in the log.
    cache_bytes_max : int
        Bound of the blobs kept in memory.
    metrics : gradledger.metrics.Metrics, optional
        Where it counts; by default nowhere.

    Raises
    ------
    ConfigError
        The key file is another account's, or an address cannot be used.

    Notes
    -----
    One thread calls `step` or `run`; several validators may share a client and a store.
    """

    def __init__(
        self,
        account: str,
        key: PrivateKey | str | os.PathLike[str],
        chain: ChainClient | str | Sequence[str],
        store: BlobSource | str,
        *,
        tasks: Iterable[str] | None = None,
        contract: str = "fedlearning",
        executor: Executor | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        cache_bytes_max: int = CACHE_BYTES_DEFAULT,
        metrics: Metrics | None = None,
    ) -> None:
        self.account = account
        self.chain = chain if isinstance(chain, ChainClient) else ChainClient(chain)
        self.store: BlobSource = Store(store) if isinstance(store, str) else store
        self.contract = FedLearning(self.chain, contract)
        self._key = key_of(key, account)
        self._secret = self._key.encryption_key()
        self._public = envelope.public_key_of(self._secret)
        self._tasks = None if tasks is None else tuple(dict.fromkeys(tasks))
        self._work = Work(executor or InlineExecutor(), is_stopped=lambda: self._stop.is_set())
        self._fetcher = Fetcher(self.store, cache_bytes_max=cache_bytes_max)
        self._cache_bytes_max = cache_bytes_max
        self._seen = None if state_dir is None else SeenUploads(state_dir, account)
        self._metrics = ValidatorMetrics(metrics or Metrics())
        self._states: dict[str, _TaskState] = {}
        self._stop = threading.Event()
        self._looks = 0
        self._wait_sec = STEP_WAIT_SEC  # that this step may still wait for blobs

    def __repr__(self) -> str:
        return f"Validator({self.account!r})"

    def close(self) -> None:
        """End the reading threads; the executor is the caller's."""
        self._fetcher.close()

    # ---- the loop ---------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, poll_sec: float = POLL_SEC_DEFAULT) -> None:
        """Step until `stop` is set; faults are waited out, ever longer up to a bound.

        Parameters
        ----------
        stop : threading.Event
            May be set from another thread or a signal handler.
        poll_sec : float
            Pause between two steps when there is nothing to do.
        """
        self._stop = stop
        pause = poll_sec
        while not stop.is_set():
            report = self.step()
            pause = poll_sec if report.is_reachable else min(2 * pause, BACKOFF_SEC_MAX)
            if not report.busy:
                stop.wait(pause)
        self.close()

    def step(self) -> StepReport:
        """Do what is to be done now, once.

        Returns
        -------
        StepReport
            Faults of node, store, executor, owners and devices are counted and logged, not raised.
        """
        report = StepReport()
        try:
            info = self.chain.get_confirmed()
        except GradledgerError as error:
            report.is_reachable = False
            self._fault(report, error)
            return report
        self._looks, self._wait_sec = MEMBERSHIP_LOOKS, STEP_WAIT_SEC
        for task in self._listed(report):
            if self._stop.is_set():
                break
            state = self._states.setdefault(task.id, _TaskState())
            if time.monotonic() < state.pause.until:
                continue
            try:
                if self._is_validator(task, state):
                    self._serve(task, state, info, report)
                state.pause.faults = 0
            except StoppedError:
                break
            except Exception as error:  # one task must not stop the others
                self._fault(report, error, task=task.id)
                state.pause.grow(time.monotonic())
        return report

    def _listed(self, report: StepReport) -> list[Task]:
        """Return the tasks to look at."""
        found: list[Task] = []
        try:
            if self._tasks is None:
                found = self.contract.tasks()
                for gone in self._states.keys() - {task.id for task in found}:
                    del self._states[gone]
                    self._metrics.forget(gone)
        except GradledgerError as error:
            self._fault(report, error)
        for name in self._tasks or ():
            try:
                found.append(self.contract.task(name))
            except GradledgerError as error:
                self._fault(report, error, task=name)
        return found

    # ---- membership -------------------------------------------------------------------------

    def _is_validator(self, task: Task, state: _TaskState) -> bool:
        """Return whether the account takes part; join where it was admitted."""
        if state.serves:
            return True
        if time.monotonic() < state.look_again_at or not self._looks:
            return False
        self._looks -= 1
        state.look_again_at = time.monotonic() + MEMBERSHIP_SEC
        member = self.contract.member(task.id, self.account)
        if member is None or member.role is not Role.VALIDATOR:
            return False
        if not member.joined or member.enc_key != self._public:
            try:
                self._push(self.contract.join(task.id, self.account, self._public, 0))
            except RoundClosedError as error:
                # Uploads of this round are sealed to another key of the account: nothing to judge.
                self._say(logging.WARNING, "cannot_join", task=task.id, reason=error)
                return False
            self._say(logging.INFO, "joined", task=task.id)
        state.serves = True
        return True

    # ---- one task ---------------------------------------------------------------------------

    def _serve(self, task: Task, state: _TaskState, info: ChainInfo, report: StepReport) -> None:
        round_ = self.contract.round(task.id, task.version) if task.version else None
        if round_ is None or round_.state is RoundState.SETTLED:
            state.work = None
            return
        if self.account not in round_.validators:
            state.serves = False  # removed, or admitted after the round was opened: look again
            self._metrics.forget(task.id)
            return
        self._metrics.serve(task.id, round_.version)
        if state.work is None or state.work.version != round_.version:
            state.work = _RoundWork(round_.version)
        place, work, time_now = round_.validators.index(self.account), state.work, info.head_time
        if task.terms.lot_e6:
            self._see_to_lot(task, round_, place, work, info, report)
        if _can_judge(round_) and time.monotonic() >= work.read_again_at:
            kind = _Audit if round_.state is RoundState.AUDITING else _Pass
            one = kind(self, task, round_, work, self._material(task, state), time_now)
            work.read_again_at = time.monotonic() + one.rest_sec
            one.judge(place, report)
        elif round_.state in (RoundState.SUMMING, RoundState.SUMMED):
            self._name_dissenters(task, round_, work)
            if round_.state is RoundState.SUMMING and not any(round_.sums[place].hash):
                one = _Pass(self, task, round_, work, self._material(task, state), time_now)
                one.attest_sum(report)
        self._push_on(task, round_, work, time_now, OWNER_FIRST_SEC + place, report)

    # ---- the lot ----------------------------------------------------------------------------

    def _see_to_lot(
        self,
        task: Task,
        round_: Round,
        place: int,
        work: _RoundWork,
        info: ChainInfo,
        report: StepReport,
    ) -> None:
        """Commit to a lot while nobody has uploaded; reveal it once no upload can change."""
        make, version, lot = self.contract, round_.version, round_.lots[place]
        is_open = round_.state is RoundState.OPEN
        if round_.state is not RoundState.DRAWING:
            work.final_block = 0  # where a fork undid the end of the uploads, it is to be seen anew
        if is_open:
            is_due = not any(lot.commitment) and not round_.uploads
        else:
            is_due = any(lot.commitment) and not any(lot.value)
        if not is_due or round_.state not in (RoundState.OPEN, RoundState.DRAWING):
            return
        value = lot_value(self._secret, info.chain_id, make.account, task.id, round_)
        commitment = lot_commitment(task.id, version, self.account, value)
        if is_open:
            step = make.commitlot(task.id, version, self.account, commitment)
        elif lot.commitment != commitment:
            self._say_once(work, "lot_lost", task=task.id, version=version, sender=self.account)
            return
        elif self._is_final(round_, work, info):
            step = make.reveallot(task.id, version, self.account, value)
        else:
            return
        try:
            self._push(step)
        except (RoundClosedError, StaleVersionError, AlreadyDoneError) as error:
            self._say(logging.INFO, "too_late", task=task.id, reason=error)
            return
        report.lots += 1
        self._metrics.lots.labels("committed" if is_open else "revealed").inc()
        self._say(
            logging.INFO,
            "lot_committed" if is_open else "lot_revealed",
            task=task.id,
            version=version,
        )

    def _is_final(self, round_: Round, work: _RoundWork, info: ChainInfo) -> bool:
        """Whether no fork can bring uploads back into a round that is being drawn.

        Whoever knows a lot before that could upload again what it does not draw. On a chain that
        takes longer than most of the phase, it is revealed nonetheless: without lots nobody is
        audited at all.
        """
        if not work.final_block:
            work.final_block = self.chain.get_info().head_block + FINAL_BLOCKS
        is_late = info.head_time >= round_.audit_deadline - (1 - PATIENCE_SHARE) * round_.audit_sec
        return is_late or info.irreversible_block >= work.final_block

    def _material(self, task: Task, state: _TaskState) -> _Material:
        """Return the task's card, key and codec."""
        if state.material is None:
            source: Any = SimpleNamespace(get=partial(self._published, task.id))
            card = fetch_card(source, task)
            codec = task_codec(task)
            key = None
            if task.terms.mode is Mode.PAILLIER:
                key = card.public_key()
                if key.key_hash != task.terms.key_hash:
                    raise MaterialError("the task card's key is not the one of the task's terms")
            state.material = _Material(
                card,
                codec,
                key,
                checks.update_payload_bytes(codec, key),
                checks.update_bytes_max(codec, key),
            )
        return state.material

    def _fetch(self, task: str, wanted: Sequence[tuple[str, int]], wait_sec: float) -> None:
        """Ask for blobs; wait for them, but in a whole step no longer than `STEP_WAIT_SEC`.

        So that nobody's missing blobs hold up what others' are there for.
        """
        for cid, bytes_max in wanted:
            self._fetcher.want(cid, bytes_max, task)
        begun = time.monotonic()
        self._fetcher.wait(wanted, min(wait_sec, self._wait_sec))
        self._wait_sec = max(0.0, self._wait_sec - (time.monotonic() - begun))

    def _published(self, task: str, cid: str, bytes_max: int) -> bytes:
        """Return a blob of the owner's. Raises MaterialError: it is not here, or not yet."""
        self._fetch(task, [(cid, bytes_max)], FETCH_WAIT_SEC)
        blob = self._fetcher.blob(cid, bytes_max)
        if blob is None:
            failure = self._fetcher.failure(cid, bytes_max)
            why = failure.error if failure else "no answer yet"
            raise MaterialError(f"the owner's {cid} could not be fetched: {why}")
        return blob

    def _name_dissenters(self, task: Task, round_: Round, work: _RoundWork) -> None:
        """Log who attested another sum than this validator, or (summed) than the quorum."""
        summed = round_.state is RoundState.SUMMED and any(round_.sum_hash)
        expected = round_.sum_hash if summed else work.sum[0] if work.sum else b""
        for validator, vote in zip(round_.validators, round_.sums, strict=False):
            if expected and any(vote.hash) and vote.hash != expected:
                self._say_once(
                    work,
                    "outvoted" if summed else "other_sum",
                    task=task.id,
                    version=round_.version,
                    sender=validator,
                    expected=expected.hex(),
                    got=vote.hash.hex(),
                )

    # ---- pushing on -------------------------------------------------------------------------

    def _push_on(
        self,
        task: Task,
        round_: Round,
        work: _RoundWork,
        time_now: int,
        patience_sec: int,
        report: StepReport,
    ) -> None:
        """Do what anyone may after a deadline; the owner and smaller accounts had their chance."""
        version, state = round_.version, round_.state
        deadline = phase_end(round_)
        if state is RoundState.DRAWING and not lots_awaited(round_):
            work.drawable_at = work.drawable_at or time_now
            deadline = min(deadline, work.drawable_at)
        if time_now < deadline + patience_sec:
            return
        make, actor = self.contract, self.account
        try:
            if state is RoundState.OPEN:
                self._push(make.closeround(task.id, actor, version))
            elif state is RoundState.SUMMED:
                self._push(make.settle(task.id, actor, version, SETTLE_LIMIT))
            elif time.monotonic() < work.push_pause.until:
                return
            elif not push_on(make, task.id, round_, time_now, actor, self._push):
                work.push_pause.grow(time.monotonic())
                return
        except (RoundClosedError, StaleVersionError, AlreadyDoneError):
            return  # somebody else pushed
        work.push_pause = _Pause()
        report.pushed += 1
        self._metrics.pushed.inc()
        self._say(logging.INFO, "pushed", task=task.id, version=version, state=state.name.lower())

    def _push(self, action: Action, reference: str | None = None) -> None:
        """Send a transaction; head state is enough, since the next step looks again.

        What is said about rows is true where these rows are. `reference`, the id of a block that
        has them, makes it void on every other fork, where the next step finds it missing.
        """
        # Pushing twice within a second must not make the same transaction twice.
        expiration_sec = 30 + time.monotonic_ns() % 30
        self.chain.push([action], [self._key], expiration_sec=expiration_sec, reference=reference)

    # ---- the log ----------------------------------------------------------------------------

    def _fault(self, report: StepReport, error: Exception, **fields: object) -> None:
        report.faults += 1
        self._metrics.faults.inc()
        expected = isinstance(error, GradledgerError)
        level = logging.WARNING if expected else logging.ERROR
        self._say(level, "fault", **fields, error=type(error).__name__, reason=error)
        if not expected:
            say(log, logging.DEBUG, "traceback", validator=self.account, exc_info=error)

    def _say(self, level: int, event: str, **fields: Any) -> None:
        """Log an event of this validator."""
        say(log, level, event, validator=self.account, **fields)

    def _say_once(self, work: _RoundWork, event: str, **fields: object) -> None:
        """Log a warning about a sender once in a round."""
        if (event, str(fields["sender"])) not in work.logged:
            work.logged.add((event, str(fields["sender"])))
            self._say(logging.WARNING, event, **fields)


class _Pass:
    """One look at one round: its rows, and the work on them."""

    is_audit = False

    def __init__(
        self,
        validator: Validator,
        task: Task,
        round_: Round,
        work: _RoundWork,
        material: _Material,
        time_now: int,
    ) -> None:
        self._v = validator
        self._task = task
        self._round = round_
        self._work = work
        self._material = material
        self._time_now = time_now
        self._results = work.results
        self._row_bytes_max = material.bytes_max  # of what is fetched for a row, but its set
        rows = validator.contract.members(task.id)
        self._head_id = validator.chain.get_info().head_id  # of a block that has these rows
        self._uploads = [row for row in rows if row.upload_version == round_.version]
        self.rest_sec = REST_SEC_PER_MEMBER * len(rows) if len(rows) > MEMBERS_FEW else 0.0
        self._sound = KnownUploads()  # acceptable by themselves, and not refused by the chain

    # ---- verdicts ---------------------------------------------------------------------------

    def judge(self, place: int, report: StepReport) -> None:
        """Judge the uploads that wait for this validator, window by window; attest in batches."""
        now = time.monotonic()
        due = [
            row
            for row in self._uploads
            if self._is_due(row) and now >= self._work.pauses.get(row.upload_hash, _NO_PAUSE).until
        ]
        waiting = self._unjudged(due, place)
        if not waiting:
            return
        for row in self._uploads:
            if _key(row) in self._results:
                self._compare_with(row, self._results[_key(row)])
        self._learn(report)
        said: list[tuple[Member, Verdict]] = []
        sent_at = time.monotonic()
        for window in self._windows(waiting):
            if self._v._stop.is_set():
                break
            fresh = self._examine(window, report)
            for row in window:
                if self._has_result(row):
                    refusal = self._refusal(row)
                    if _key(row) in fresh:
                        self._say_verdict(row, refusal, report)
                    code = refusal.code if refusal else VerdictCode.ACCEPT
                    said.append(
                        (row, Verdict(slot=row.upload_slot, hash=row.upload_hash, code=code))
                    )
            if len(said) >= ATTEST_BATCH or time.monotonic() >= sent_at + ATTEST_WAIT_SEC:
                self._attest(said[:ATTEST_BATCH], report)
                said, sent_at = said[ATTEST_BATCH:], time.monotonic()
        self._attest(said, report)

    def _unjudged(self, due: Sequence[Member], place: int) -> list[Member]:
        """Return the uploads without this validator's verdict, in the order of their ballots.

        The ballots are read after the members. One that is not there, or is another upload's, says
        nothing: a fork took the upload away, or the round is over; the contract knows. Of another
        row with the same slot and hash it knows nothing: there the verdict is void, see `_push`.
        """
        if not due:
            return []
        read = self._v.contract.ballots(self._task.id, 1 + max(row.upload_slot for row in due))
        judged = {(slot, one.hash) for slot, one in enumerate(read) if one.verdicts[place]}
        waiting = [row for row in due if (row.upload_slot, row.upload_hash) not in judged]
        return sorted(waiting, key=lambda row: row.upload_slot)

    def _is_due(self, row: Member) -> bool:
        """Whether an upload takes verdicts now."""
        if row.upload_state is not UploadState.PENDING:
            return False
        is_closed = self._round.state is RoundState.VERIFYING
        return bool(row.upload_cid) or (is_closed and self._time_now >= self._round.reveal_deadline)

    def _learn(self, report: StepReport) -> None:
        """Look at the uploads that are accepted already, to tell copies of them."""
        for window in self._windows([row for row in self._uploads if self._is_won(row)]):
            if self._v._stop.is_set():
                return
            self._examine(window, report, is_decided=True)

    def _is_won(self, row: Member) -> bool:
        """Whether copies of this upload are refused for its sake."""
        return _is_accepted(row)

    def _windows(self, rows: Sequence[Member]) -> Iterator[Sequence[Member]]:
        """Yield rows in portions whose blobs fit into half of the cache.

        A validation set counts as the largest that came so far: few are near their bound.
        """
        start = 0
        while start < len(rows):
            row_bytes = self._row_bytes_max + self._work.set_bytes
            size = max(1, min(WINDOW_MAX, self._v._cache_bytes_max // (2 * row_bytes)))
            yield rows[start : start + size]
            start += size

    def _examine(
        self, window: Sequence[Member], report: StepReport, *, is_decided: bool = False
    ) -> set[_Key]:
        """Fetch and check the uploads that were not yet; return the keys that have a result now.

        Each is on its own: what one upload makes go wrong stops no other. Of an upload that the
        chain has accepted already (`is_decided`) only the payload's digest is wanted. A fork, or a
        node that is behind, may show it undecided in a later pass: then it is judged.
        """
        rows = [row for row in window if not self._has_result(row, is_decided)]
        wanted = [one for row in rows for one in self._blobs(row, is_decided)]
        self._v._fetch(self._task.id, wanted, FETCH_WAIT_SEC)
        flying: list[tuple[Member, Opened, Job[Refusal | None]]] = []
        held_bytes = 0
        for row in rows:
            if 2 * held_bytes > self._v._cache_bytes_max:
                self._land(flying, report)
                flying, held_bytes = [], 0
            try:
                begun = self._begin(row, is_decided)
                if isinstance(begun, _Result):
                    self._keep(row, begun)
                elif begun is not None:
                    opened, job = begun
                    flying.append((row, opened, job))
                    held_bytes += _held_bytes(job)
            except Exception as error:
                self._skip(row, error, report)
        self._land(flying, report)
        return {_key(row) for row in rows if self._has_result(row, is_decided)}

    def _land(
        self, flying: Sequence[tuple[Member, Opened, Job[Refusal | None]]], report: StepReport
    ) -> None:
        """Wait for the heavy work on uploads, and keep its results."""
        for place, outcome in self._v._work.results([job for _, _, job in flying]):
            row, opened, _ = flying[place]
            if isinstance(outcome, Exception):
                self._skip(row, outcome, report)
            else:
                self._keep(row, _Result(outcome, opened.digest, opened.sketch))

    def _has_result(self, row: Member, is_decided: bool = False) -> bool:
        """Whether it is known what an upload's bytes say, as far as that is wanted."""
        result = self._results.get(_key(row))
        return result is not None and (result.is_judged or is_decided)

    def _keep(self, row: Member, result: _Result) -> None:
        self._results[_key(row)] = result
        self._compare_with(row, result)

    def _compare_with(self, row: Member, result: _Result) -> None:
        """Let copies of an upload be known from now on, if it is one to be copied."""
        is_won = self._is_won(row)
        if result.refusal is None and (is_won or (self._is_due(row) and result.is_judged)):
            self._sound.add(_known(row, result, is_won))

    def _blobs(self, row: Member, is_decided: bool) -> list[tuple[str, int]]:
        """Return what is to be fetched to judge an upload: CIDs, and how long each can be."""
        wanted = [(row.upload_cid, self._material.bytes_max)]
        if not is_decided and self._material.key is None:
            wanted.append((row.set_cid, SET_BYTES_MAX))
        return [one for one in wanted if one[0]]

    def _begin(
        self, row: Member, is_decided: bool
    ) -> _Result | tuple[Opened, Job[Refusal | None]] | None:
        """Return a result, or the opened upload and the heavy work; None: bytes are missing."""
        opened = self._open(row)
        if opened is None:
            return None
        if isinstance(opened, Refusal):
            return _Result(opened)
        if is_decided:
            return _Result(None, opened.digest, opened.sketch, is_judged=False)
        if self._material.key is None:
            unmeasured = checks.check_set_issued(row, self._round.version)
            if unmeasured is not None:
                return _Result(unmeasured)
        return opened, self._submit(row, opened.payload)

    def _open(self, row: Member) -> Opened | Refusal | None:
        """Return the opened upload, its refusal, or None: its bytes are not here yet."""
        if not row.upload_cid:
            return Refusal(
                VerdictCode.UNREVEALED,
                f"expected the CID before {self._round.reveal_deadline}, got none",
            )
        blob = self._v._fetcher.blob(row.upload_cid, self._material.bytes_max)
        if blob is None:
            return self._missing(row, row.upload_cid, self._material.bytes_max)
        return checks.open_upload(
            blob,
            task=self._task,
            version=self._round.version,
            member=row,
            account=self._v.account,
            secret=self._v._secret,
            payload_bytes=self._material.payload_bytes,
        )

    def _missing(self, row: Member, cid: str, bytes_max: int) -> Refusal | None:
        """Refuse what is too large, or what the store has not when most of the time is gone."""
        failure = self._v._fetcher.failure(cid, bytes_max)
        if failure is None:
            return None
        if isinstance(failure.error, BlobTooLargeError):
            return Refusal(VerdictCode.MALFORMED, str(failure.error))
        self._v._say_once(
            self._work,
            "not_fetched",
            **self._of(row),
            error=type(failure.error).__name__,
            reason=failure.error,
        )
        # A store that does not answer at all is this validator's trouble, not the device's.
        if self._is_late() and isinstance(failure.error, (BlobMissingError, BlobCorruptError)):
            return Refusal(
                VerdictCode.UNAVAILABLE, f"{failure.error} ({failure.attempts} attempts)"
            )
        return None

    def _is_late(self) -> bool:
        """Whether most of the time for verdicts is gone."""
        round_ = self._round
        patience_end = round_.verdict_deadline - (1 - PATIENCE_SHARE) * round_.verdict_sec
        return round_.state is RoundState.VERIFYING and self._time_now >= patience_end

    def _submit(self, row: Member, payload: bytes) -> Job[Refusal | None]:
        measure = None if self._material.key is not None else self._measure(row)
        return self._v._work.submit(
            checks.check_payload, payload, self._material.codec, self._material.key, measure
        )

    def _measure(self, row: Member) -> Measure:
        """Return what the error of a device's update is measured with. Raises MaterialError."""
        round_, work, who = self._round, self._work, (self._v.account, self._v._secret)
        card = self._material.card
        if work.model is None:
            bytes_max = 4 * self._task.terms.parameters + MODEL_BYTES_EXTRA
            blob = self._v._published(self._task.id, round_.model_cid, bytes_max)
            work.model = checks.read_model(
                blob, self._task, round_, card.architecture, *who, target=card.target
            )
        blob = self._v._published(self._task.id, row.set_cid, SET_BYTES_MAX)
        work.set_bytes = max(work.set_bytes, len(blob))
        x, y = checks.read_set(blob, self._task, row, *who, self._draw(row), target=card.target)
        tells_update = card.privacy is None or card.privacy.update_error
        return checks.measure_of(round_, row, work.model, x, y, tells_update=tells_update)

    def _draw(self, row: Member) -> Draw | None:
        """Return which committed points a device must have got. Raises MaterialError."""
        commitment, version = self._material.card.validation, self._round.version
        if commitment is None:
            return None
        if self._work.opening_id is None:
            self._work.opening_id = opening_id(self._v.contract, self._task.id, self._round)
        if self._work.opening_id is None:
            raise MaterialError(f"the block that opened round {version} can still be undone")
        return Draw(
            commitment, self._work.opening_id, self._task.id, version, row.account, row.classes
        )

    def _refusal(self, row: Member) -> Refusal | None:
        """Return why an upload is refused, now that those before it are known."""
        result = self._results[_key(row)]
        if result.refusal is not None:
            return self._named(row, result.refusal)
        return self._sound.find_duplicate(_known(row, result, False))

    def _named(self, row: Member, refusal: Refusal) -> Refusal:
        """Say of a series that does not fit its update whose it is, where that is known."""
        seen, here = self._v._seen, (self._task.id, self._round.version, row.account)
        is_earlier = seen is not None and seen.had_series(*here, row.series_hash)
        return checks.name_series(refusal, row, self._uploads, is_earlier=is_earlier)

    def _skip(self, row: Member, error: Exception, report: StepReport) -> None:
        """Leave an upload for later; a later pass tries again."""
        report.skipped += 1
        self._v._metrics.skipped.inc()
        self._work.pauses.setdefault(row.upload_hash, _Pause()).grow(time.monotonic())
        is_expected = isinstance(error, GradledgerError)
        level = logging.WARNING if is_expected else logging.ERROR
        self._v._say(level, "skipped", **self._of(row), error=type(error).__name__, reason=error)

    def _say_verdict(self, row: Member, refusal: Refusal | None, report: StepReport) -> None:
        """Log a verdict with its sender and reason."""
        replay: dict[str, Any] = {}
        seen = self._v._seen
        if seen is not None:
            earlier = seen.earlier(row.upload_hash)
            here = (self._task.id, self._round.version, row.account)
            if earlier is not None and (earlier.task, earlier.version, earlier.account) != here:
                replay["replay_of"] = f"{earlier.task}/{earlier.version}/{earlier.account}"
            try:
                seen.note(row.upload_hash, *here, row.series_hash)
            except OSError as error:
                self._v._say(logging.WARNING, "state_not_kept", reason=error)
        code = refusal.code if refusal else VerdictCode.ACCEPT
        self._v._metrics.judge(code, is_audit=self.is_audit)
        if refusal is None:
            report.accepted += 1
            self._v._say(logging.INFO, "audited" if self.is_audit else "accepted", **self._of(row))
            return
        report.refused += 1
        self._v._say(
            logging.WARNING,
            "caught" if self.is_audit else "refused",
            **self._of(row),
            code=refusal.code.name.lower(),
            reason=refusal.reason,
            **replay,
        )

    def _of(self, row: Member) -> dict[str, object]:
        """Return what a log line about an upload begins with."""
        return {"task": self._task.id, "version": self._round.version, "sender": row.account}

    def _attest(self, batch: Sequence[tuple[Member, Verdict]], report: StepReport) -> None:
        """Send verdicts in one transaction; if that fails, each half in one."""
        if not batch:
            return
        verdicts = [verdict for _, verdict in batch]
        try:
            with self._v._metrics.attest_sec.time():
                self._v._push(self._attestation(verdicts), self._head_id)
            report.attested += len(batch)
            self._v._metrics.attested.inc(len(batch))
        except (RoundClosedError, StaleVersionError) as error:
            self._v._say(logging.INFO, "too_late", task=self._task.id, reason=error)
        except (ContractError, NodeAnswerError, NodeBusyError) as error:
            # A verdict of the batch is known already, or its payment cannot be delivered (it runs
            # the device's own code), or all together took too long.
            if len(batch) > 1:
                half = len(batch) // 2
                self._attest(batch[:half], report)
                self._attest(batch[half:], report)
            elif not isinstance(error, AlreadyDoneError):
                self._skip(batch[0][0], error, report)

    def _attestation(self, verdicts: Sequence[Verdict]) -> Action:
        make, account = self._v.contract, self._v.account
        return make.attest(self._task.id, self._round.version, account, verdicts)

    # ---- the sum ----------------------------------------------------------------------------

    def attest_sum(self, report: StepReport) -> None:
        """Multiply the accepted ciphertexts, seal the product to the owner, attest its hash."""
        task, round_, key = self._task, self._round, self._material.key
        accepted = [row for row in self._uploads if _is_accepted(row)]
        if key is None or len(accepted) != round_.accepted:
            return  # rows of different moments: the next step reads them again
        summed = [_key(row) for row in accepted]
        if self._work.sum is None or self._work.summed != summed:
            codec = self._material.codec
            with Product(key, codec, self._v._work) as product:
                for one in self._payloads(accepted):
                    product.add(one)
                ciphertexts = product.total()
            payload = sum_payload(round_.version, len(accepted), ciphertexts)
            header = envelope.Header(
                kind=envelope.Kind.SUM,
                codec=envelope.PayloadCodec.PAILLIER,
                task=task.id,
                sender=self._v.account,
                version=round_.version,
                parameters=codec.parameters,
                slot_bits=codec.slot_bits,
                clip_e6=codec.clip_e6,
                examples=len(accepted),
                key_hash=key.key_hash,
            )
            readers = {task.owner: self._material.card.owner_enc_key}
            cid = self._v.store.put(envelope.seal(header, payload, readers))
            self._work.sum, self._work.summed = (hashlib.sha256(payload).digest(), cid), summed
        digest, cid = self._work.sum
        try:
            make, account = self._v.contract, self._v.account
            step = make.attestsum(task.id, round_.version, account, digest, cid)
            self._v._push(step, self._head_id)
        except (AlreadyDoneError, RoundClosedError, StaleVersionError):
            return  # the quorum was faster
        report.sums += 1
        self._v._metrics.sums.inc()
        self._v._say(
            logging.INFO,
            "summed",
            task=task.id,
            version=round_.version,
            updates=len(accepted),
            hash=digest.hex(),
        )

    def _payloads(self, rows: Sequence[Member]) -> Iterator[bytes]:
        """Yield the ciphertexts of accepted uploads, fetched (again) and verified by hash.

        While one window is multiplied, the next is fetched.
        """
        windows = list(self._windows(rows))
        is_room = 2 * self._material.bytes_max <= self._v._cache_bytes_max
        for window, following in zip_longest(windows, windows[1:], fillvalue=()):
            self._gather(window, following if is_room else ())
            for row in window:
                if self._v._stop.is_set():
                    raise StoppedError("the validator is to stop")
                read = row.upload_cid, self._material.bytes_max
                blob = self._v._fetcher.blob(*read)
                opened = None if blob is None else self._open(row)
                if not isinstance(opened, Opened):
                    failure = self._v._fetcher.failure(*read)
                    why = opened.reason if opened else failure.error if failure else "no answer yet"
                    raise MaterialError(f"the sum needs {row.account}'s accepted upload: {why}")
                yield opened.payload

    def _gather(self, window: Sequence[Member], following: Sequence[Member]) -> None:
        """Wait for a window's blobs as long as they keep coming."""
        fetcher, bytes_max = self._v._fetcher, self._material.bytes_max
        missing, before = [row.upload_cid for row in window], len(window) + 1
        while missing and len(missing) < before and not self._v._stop.is_set():
            before = len(missing)
            for cid in (*missing, *(row.upload_cid for row in following)):
                fetcher.want(cid, bytes_max, self._task.id)
            fetcher.wait([(cid, bytes_max) for cid in missing], SUM_WAIT_SEC)
            missing = [cid for cid in missing if fetcher.blob(cid, bytes_max) is None]


class _Audit(_Pass):
    """As `_Pass`, on the uploads that the lots have drawn and their devices have opened."""

    is_audit = True

    def __init__(
        self,
        validator: Validator,
        task: Task,
        round_: Round,
        work: _RoundWork,
        material: _Material,
        time_now: int,
    ) -> None:
        super().__init__(validator, task, round_, work, material, time_now)
        self._results = work.audits
        self._opening_bytes_max = openings.opening_bytes_max(material.codec)
        self._row_bytes_max += self._opening_bytes_max

    def _is_due(self, row: Member) -> bool:
        return row.upload_state is UploadState.DRAWN and bool(row.opening_cid)

    def _is_won(self, row: Member) -> bool:
        return row.upload_state is UploadState.PAID and bool(row.opening_cid)

    def _blobs(self, row: Member, is_decided: bool) -> list[tuple[str, int]]:
        wanted = [
            (row.upload_cid, self._material.bytes_max),
            (row.opening_cid, self._opening_bytes_max),
            (row.set_cid, SET_BYTES_MAX),
        ]
        return [one for one in wanted if one[0]]

    def _begin(
        self, row: Member, is_decided: bool
    ) -> _Result | tuple[Opened, Job[Refusal | None]] | None:
        key, opened = self._material.key, self._open(row)
        assert key is not None  # only tasks in paillier mode have lots
        blob = self._v._fetcher.blob(row.opening_cid, self._opening_bytes_max)
        opening: bytes | Refusal | None
        if blob is None:
            opening = self._missing(row, row.opening_cid, self._opening_bytes_max)
        else:
            opening = openings.open_opening(
                blob,
                task=self._task,
                version=self._round.version,
                member=row,
                account=self._v.account,
                secret=self._v._secret,
            )
        for one in (opened, opening, checks.check_set_issued(row, self._round.version)):
            if isinstance(one, Refusal):
                return _Result(one)
        if not isinstance(opened, Opened) or not isinstance(opening, bytes):
            return None
        known = openings.known_by(opening, self._material.codec)
        if is_decided:
            return _Result(None, known.digest, known.sketch, is_judged=False)
        job = self._v._work.submit(
            openings.judge_opening,
            opening,
            opened.payload,
            self._material.codec,
            key,
            self._measure(row),
        )
        return known, job

    def _is_late(self) -> bool:
        round_ = self._round
        return self._time_now >= round_.audit_deadline + PATIENCE_SHARE * round_.audit_sec

    def _attestation(self, verdicts: Sequence[Verdict]) -> Action:
        make, account = self._v.contract, self._v.account
        return make.attestaudit(self._task.id, self._round.version, account, verdicts)


def _key(row: Member) -> _Key:
    """Return all of a row that its result hangs on; a fork may change any of it but the hash."""
    return (
        row.account,
        row.set_version,
        row.set_hash,
        row.upload_hash,
        row.upload_cid,
        row.series_hash,
        row.upload_cost,
        row.error_first,
        row.error_before,
        row.error_last,
        row.opening_cid,
    )


def _held_bytes(job: Job[Refusal | None]) -> int:
    """Return how much memory the arguments of heavy work on an upload take."""
    payloads = sum(len(one) for one in job.args if isinstance(one, bytes))
    return payloads + sum(
        one.x.nbytes + one.y.nbytes for one in job.args if isinstance(one, Measure)
    )


def _known(row: Member, result: _Result, is_won: bool) -> Known:
    return Known(row.account, row.upload_slot, result.digest, is_won, result.sketch)


def _can_judge(round_: Round) -> bool:
    """Whether there may be an upload of this round to judge now."""
    if round_.state is RoundState.AUDITING:
        return round_.drawn > 0
    if round_.state is RoundState.OPEN and round_.reveal_sec:
        return False
    return round_.state in (RoundState.OPEN, RoundState.VERIFYING) and round_.pending > 0


def _is_accepted(row: Member) -> bool:
    """Whether the validators accepted an upload; one that was paid for silence is in no sum."""
    if row.upload_state in (UploadState.ACCEPTED, UploadState.DRAWN):
        return True
    return row.upload_state is UploadState.PAID and row.upload_reason is VerdictCode.ACCEPT
