"""A whole training, which can be stopped at any point and started again.

There is no journal of steps. `run` looks at the chain, does the one step that the chain shows to be
next, and looks again: a step that has happened is not done twice, and one that the chain forgot
(a node that was killed) is done again. What the chain cannot give back, the plan and the models,
lies in the state directory, written before the step that needs it. The deposit alone could happen
twice and has an outbox there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gradledger.chain.contract import (
    Mode,
    Recipe,
    Role,
    Round,
    RoundState,
    RoundTerms,
    Rule,
    Silence,
    Task,
    UploadState,
    ValidatorsKind,
    VerdictCode,
)
from gradledger.chain.names import Asset
from gradledger.errors import (
    AlreadyDoneError,
    ConfigError,
    GradledgerError,
    NodeError,
    RoundClosedError,
    StaleVersionError,
    StoreUnavailableError,
)
from gradledger.logs import say
from gradledger.models import Model
from gradledger.phases import barred
from owner.errors import SumUnusableError, WaitTimeoutError
from owner.evaluation import quality
from owner.owner import Owner, Published
from owner.plan import Plan, scaled, slot_bits_for
from owner.state import StateDir
from owner.validation_sets import ValidationData

__all__ = ["STEPS", "Progress", "RoundReport", "run"]

log = logging.getLogger("gradledger.owner")

STEPS = (
    "create",
    "admit",
    "deposit",
    "join",
    "publish",
    "issue",
    "open",
    "close",
    "verdicts",
    "draw",
    "audit",
    "sum",
    "aggregate",
    "settle",
    "report",
)
_UNDECIDED = (VerdictCode.SILENCE, VerdictCode.UNDELIVERED)  # reasons that say nothing of an update
POLL_SEC = 0.15
RETRY_SEC = 1.0
RETRY_SEC_MAX = 10.0
RETRY_SHARE = 20  # where things fail for long, so much of that time is between two tries
TURNS_MAX = 1_000  # steps of one round, repetitions included
PATIENCE_SEC = 1800.0  # for a node or IPFS to come back
PATIENCE_SEC_MAX = 30 * 86_400.0
NOTICE_SEC = 5.0  # who fails for longer says so
ATTEMPT_SEC_MAX = 600.0  # a try that gets nowhere is over by then: another one has got on
BEHIND_SEC = 120.0  # how far the chain's clock may be behind at a round's deadline
LATE_SEC = 2.0  # between two looks for devices that joined while the round is open,
LATE_SHARE = 20  # and so many times what a look takes: it reads all members

Points = tuple[npt.ArrayLike, npt.ArrayLike]
_T = TypeVar("_T")


@dataclass(frozen=True)
class RoundReport:
    """What a round came to, from the chain's tables.

    Parameters
    ----------
    version : int
        Round k.
    accuracy : float or None
        Of T_k on the owner's test data; None where the task learns a number.
    uploads, accepted, refused : int
        Recorded uploads, and the validators' decisions on them. An upload that the contract itself
        refused was never recorded.
    paid : int
        Smallest units of the task's token.
    reasons : dict of str to int
        Why uploads were refused, and how many.
    drawn, caught, unanswered : int
        Uploads that the lots drew for an audit; of these, refused for what was found, and never
        opened.
    barred : list of str
        Devices that may not upload in the next round, since they failed an audit in this one or
        before.
    updates : int
        Updates that went into T_k; 0: T_k is T_(k-1).
    note : str
        Why, or what was left out.
    epsilon, delta : float or None
        What a device has given away that took part in all rounds up to this one, to who sees single
        updates; None without differential privacy.
    outvoted : list of str or None
        Validators that attested another sum than the quorum; None: the votes were gone before this
        owner looked, as they are once the round is settled.
    silent : list of str or None
        Validators that had attested none when the quorum was there, or when the sum was given up;
        slow ones are among them.
    bad_copies : dict of str to str
        Validators that attested the sum and handed out no right copy of it, and what was wrong.
    mean_absolute_error, r2, within_tolerance : float or None
        Where the task learns a number: see `owner.evaluation.Quality`.
    """

    version: int
    accuracy: float | None
    uploads: int
    accepted: int
    refused: int
    paid: int
    reasons: dict[str, int] = field(default_factory=dict)
    drawn: int = 0
    caught: int = 0
    unanswered: int = 0
    barred: list[str] = field(default_factory=list)
    updates: int = 0
    note: str = ""
    epsilon: float | None = None
    delta: float | None = None
    outvoted: list[str] | None = None
    silent: list[str] | None = None
    bad_copies: dict[str, str] = field(default_factory=dict)
    mean_absolute_error: float | None = None
    r2: float | None = None
    within_tolerance: float | None = None


@dataclass(frozen=True)
class Progress:
    """A step that begins or is over; handed to `progress`.

    Parameters
    ----------
    step : str
        One of `STEPS`.
    version : int
        Round; 0 before the first.
    done : bool
        Whether the step is over; what it recorded may still be reversible.
    round : Round or None
        The round as last read.
    """

    step: str
    version: int
    done: bool
    round: Round | None = None


def run(
    plan: Plan,
    *,
    owner: Owner,
    state: StateDir | str | Path,
    validation: Points,
    test: Points,
    initial: Model | None = None,
    progress: Callable[[Progress], None] | None = None,
    may_close: Callable[[Round], bool] | None = None,
    patience_sec: float = PATIENCE_SEC,
) -> Iterator[RoundReport]:
    """Carry a training through, from wherever it stands.

    While nodes or IPFS are away, or the chain stands still, it waits; event `waiting` says so once.

    Parameters
    ----------
    plan : Plan
        The same at every start of one training; only `rounds`, `deposit`, `devices`, `validators`
        and what a round fixes anew (price, phases, recipe, ...) may change in between.
    owner : Owner
        Of the plan's task.
    state : StateDir or path
        The state directory; one process at a time works in it.
    validation, test : pair of arrays (x, y)
        The owner's own points: the first are handed out to devices, the second measure the model.
    initial : Model, optional
        T_0; by default drawn as the plan says.
    progress : callable, optional
        Called before and after every step. What it raises ends the run, as a signal would.
    may_close : callable, optional
        Asked, with the open round, before a round is closed early; by default always yes.
    patience_sec : float
        How long a step may fail, or the chain stand still, before this gives up.

    Yields
    ------
    RoundReport
        Of every round, from the first on: those of earlier starts come from the state directory.
        A report comes only when the round is settled irreversibly.

    Raises
    ------
    ConfigError
        The plan does not fit the task, the state directory or the data.
    WaitTimeoutError
        No progress within `patience_sec`, or too few members joined within the plan's `join_sec`;
        start again once the cause is gone.
    """
    if not 0 <= patience_sec <= PATIENCE_SEC_MAX:
        raise ConfigError(f"patience: expected 0..{PATIENCE_SEC_MAX:g} s, got {patience_sec:g}")
    if plan.task != owner.task:
        raise ConfigError(f"plan: expected task {owner.task}, got {plan.task}")
    directory = state if isinstance(state, StateDir) else StateDir(state)
    with directory.locked():
        training = _Training(
            plan, owner, directory, validation, test, initial, progress, may_close, patience_sec
        )
        training.prepare()
        for version in range(1, plan.rounds + 1):
            yield training.carry_through(version)


_FIXED = (
    *("task", "architecture", "class_names", "description", "token_contract", "mode", "public"),
    *("silence", "validators_kind", "errors_max", "cost_max", "devices_max", "sum_min", "clip"),
    *("initial", "initial_seed", "target", "privacy", "committed_sets", "lot", "bar_rounds"),
)


class _Training:
    def __init__(
        self,
        plan: Plan,
        owner: Owner,
        state: StateDir,
        validation: Points,
        test: Points,
        initial: Model | None,
        progress: Callable[[Progress], None] | None,
        may_close: Callable[[Round], bool] | None,
        patience_sec: float,
    ) -> None:
        self._plan = plan
        self._owner = owner
        self._state = state
        self._target = plan.target_terms()
        self._validation = ValidationData.of(*validation, self._target)
        kind = np.int64 if self._target is None else np.float32
        self._test = (np.asarray(test[0], np.float32), np.asarray(test[1], kind))
        self._initial = initial
        self._progress = progress
        self._may_close = may_close
        self._patience_sec = patience_sec
        self._final: set[int] = set()  # rounds that this process saw settled irreversibly

    # ---- before the first round ---------------------------------------------------------------

    def prepare(self) -> None:
        """Record the plan; see to task, members, deposit and T_0."""
        self._check_plan()
        self._patiently(0, lambda: self._step("create", 0, self._create))
        self._patiently(0, lambda: self._step("admit", 0, self._admit))
        self._patiently(0, lambda: self._step("deposit", 0, self._deposit))
        if self._patiently(0, self._owner.version) < self._plan.rounds:
            self._step("join", 0, self._await_members)
        if self._state.model_record(0) is None:
            self._state.save_model(0, self._first_model(), {"evidence": ""})

    def _check_plan(self) -> None:
        now, before = self._plan.to_dict(), self._state.plan()
        if before is not None:
            fixed = [*_FIXED, "points_per_class"] if self._plan.committed_sets else _FIXED
            changed = [name for name in fixed if before.get(name) != now[name]]
            if changed:
                raise ConfigError(
                    f"{self._state.path}: this training was started with another "
                    f"{', '.join(changed)}; take another state directory, or the plan it has"
                )
        if before != now:
            self._state.save_plan(now)

    def _first_model(self) -> Model:
        if self._initial is None:
            return first_model(self._plan)
        wanted, found = self._plan.architecture, self._initial.architecture
        if found != wanted:
            raise ConfigError(f"T_0: expected {wanted}, got {found}")
        return self._initial

    def _create(self) -> None:
        create_task(self._owner, self._plan, validation=self._validation, wait=False)

    def _admit(self) -> None:
        self._owner.admit_devices(self._plan.devices, wait=False)
        self._owner.admit_validators(self._plan.validators, wait=False)

    def _deposit(self) -> None:
        """Pay in what is missing; what is on its way must be settled before it is counted.

        A transaction that a killed node or process left behind could still happen before it
        expires, and a second one would pay twice: so this step alone has an outbox.
        """
        wanted = self._plan.amount("deposit")

        def deposited() -> int:
            return self._owner.escrow().deposited

        with closing(self._owner.open_deposits(self._state.outbox_path)) as outbox:
            self._owner.finish_deposits(outbox)
            if deposited() >= wanted.amount:
                return
            missing = wanted.amount - self._owner.wait_irreversible(deposited)
            if missing > 0:
                self._owner.deposit(Asset(missing, wanted.symbol), outbox=outbox)

    def _await_members(self) -> None:
        """Wait for a validator and for enough devices."""
        plan = self._plan
        until = time.monotonic() + plan.join_sec
        while True:
            joined = [m for m in self._patiently(0, self._owner.members) if m.joined]
            devices = sum(m.role == Role.DEVICE for m in joined)
            validators = len(joined) - devices
            wanted = len(plan.validators)
            if devices >= plan.devices_min and validators >= wanted:
                return
            if time.monotonic() >= until:
                if devices >= plan.devices_min and validators:
                    return  # a validator that is away must not stop the task
                raise WaitTimeoutError(
                    f"task {plan.task}: after {plan.join_sec} s {devices} of at least "
                    f"{plan.devices_min} devices and {validators} of {wanted} validators have "
                    "joined; start again when they have"
                )
            time.sleep(POLL_SEC)

    # ---- a round ------------------------------------------------------------------------------

    def carry_through(self, version: int) -> RoundReport:
        """Do, again and again, what the chain shows to be next, until the round is settled."""
        saved = self._state.report(version)
        if saved is not None:
            return _report_from(saved)
        for _ in range(TURNS_MAX):
            report = self._patiently(version, lambda: self._turn(version))
            if report is not None:
                return report
        raise WaitTimeoutError(f"round {version}: not settled after {TURNS_MAX} steps")

    def _turn(self, version: int) -> RoundReport | None:
        owner = self._owner
        self._measure()
        if owner.version() < version:
            self._open(version)
            return None
        found = owner.round(version)
        self._base(found)
        if found.state is RoundState.OPEN:
            self._step("issue", version, lambda: self._issue(version), found)
            self._step("close", version, lambda: self._close(version), found)
        elif found.state is RoundState.VERIFYING:
            self._step("verdicts", version, lambda: owner.wait_verdicts(version), found)
        elif found.state is RoundState.DRAWING:
            self._step("draw", version, lambda: owner.wait_draw(version), found)
        elif found.state is RoundState.AUDITING:
            self._step("audit", version, lambda: owner.wait_audits(version), found)
        elif found.state is RoundState.SUMMING:
            self._step("sum", version, lambda: owner.wait_sum(version), found)
        elif found.state is RoundState.SUMMED:
            self._step("aggregate", version, lambda: self._aggregate(version), found)
            self._step("settle", version, lambda: self._settle(version), found)
        else:
            return self._finish(version)
        return None

    def _open(self, version: int) -> None:
        """Publish, issue, open, so that a device finds all it needs in the round.

        Committed points are issued when the round is open: the block that opens it draws them.
        """
        if version > 1:
            self._aggregate(version - 1)
        model = self._state.model(version - 1)
        if model is None:
            raise ConfigError(f"{self._state.path}: the model T_{version - 1} is missing")
        record = self._step("publish", version, lambda: self._publish(version, model))
        if not self._plan.committed_sets:
            self._step("issue", version, lambda: self._issue(version))
        terms = round_terms(self._plan, version, record["cid"], bytes.fromhex(record["hash"]))
        self._step("open", version, lambda: self._owner.open_round(version, terms, wait=False))

    def _publish(self, version: int, model: Model) -> Mapping[str, Any]:
        """Put the model on IPFS, unless an earlier start did for the same readers."""
        record = self._state.published(version)
        evidence = (self._state.model_record(version - 1) or {}).get("evidence")
        readers = list(self._owner.readers())
        if record and record["readers"] == readers and record["evidence"] == evidence:
            return record
        published = self._owner.publish_model(model, version)
        record = published.to_record(evidence or "")
        self._state.save_published(version, record)
        return record

    def _issue(self, version: int) -> None:
        self._owner.issue_validation_sets(
            version,
            self._validation,
            per_class=self._plan.points_per_class,
            wait=False,
        )

    def _close(self, version: int) -> None:
        """Wait for the deadline, or until the round may be closed early; close it.

        Devices that join meanwhile get their sets.
        """
        owner = self._owner
        until = time.monotonic() + self._plan.open_sec + BEHIND_SEC
        look_at = time.monotonic() + LATE_SEC
        found = owner.round(version)
        while found.state is RoundState.OPEN:
            over = owner.chain_time() >= found.deadline
            early = found.close_after != 0 and found.uploads >= found.close_after
            if over or (early and (self._may_close is None or self._may_close(found))):
                owner.close_round(version, wait=False)
                return
            if time.monotonic() > until:
                raise WaitTimeoutError(f"round {version}: the chain does not reach its deadline")
            self._tell("close", version, False, found)
            if time.monotonic() >= look_at:
                began = time.monotonic()
                self._issue(version)
                took = time.monotonic() - began
                look_at = time.monotonic() + max(LATE_SEC, LATE_SHARE * took)
            time.sleep(POLL_SEC)
            found = owner.round(version)

    def _base(self, found: Round) -> Model:
        """Return T_(version-1), from IPFS where the state directory has another or none."""
        version = found.version
        record = self._state.published(version)
        model = self._state.model(version - 1)
        published = bytes(found.model_hash).hex()
        if model is None or record is None or record["hash"] != published:
            model = self._owner.fetch_model(version)
            self._say(logging.WARNING, "model_from_ipfs", version)
            origin: dict[str, Any] = {"evidence": ""}
            if version > 1:
                before = self._owner.round(version - 1)
                origin = {
                    "evidence": self._owner.evidence(before),
                    "updates": before.accepted,
                    "note": "taken from IPFS",
                }
            self._state.save_model(version - 1, model, origin)
            taken = Published(version, found.model_cid, bytes(found.model_hash), ())
            self._state.save_published(version, taken.to_record(origin["evidence"]))
        return model

    def _aggregate(self, version: int) -> None:
        """Make T_version, unless it is there and was made from this very result of the chain."""
        owner = self._owner
        if owner.version() > version:
            self._base(owner.round(version + 1))
            return
        found = owner.round(version)
        record = self._state.model_record(version)
        if (
            record is not None
            and record["evidence"] == owner.evidence(found)
            and self._state.model(version) is not None
        ):
            return
        result = owner.aggregate(version, self._base(found))
        self._state.save_model(version, result.model, result.to_record())

    def _settle(self, version: int) -> None:
        self._owner.settle(version, wait=True)
        self._final.add(version)

    def _finish(self, version: int) -> RoundReport:
        """Wait until the settled round is irreversible; report it."""
        owner = self._owner
        if version in self._final:
            found = owner.round(version)
        else:
            found = owner.wait_irreversible(lambda: owner.round(version))
        if found.state is not RoundState.SETTLED:
            raise RoundClosedError("not_settled", f"round {version} is no longer settled")
        self._aggregate(version)
        return self._step("report", version, lambda: self._report(found), found)

    def _report(self, found: Round) -> RoundReport:
        version = found.version
        record = self._state.model_record(version)
        model = self._state.model(version)
        if record is None or model is None:
            raise ConfigError(f"{self._state.path}: the model T_{version} is missing")
        members = self._owner.members()
        uploads = [member for member in members if member.upload_version == version]
        refused = [member for member in uploads if member.upload_state == UploadState.REFUSED]
        reasons = Counter(VerdictCode(member.upload_reason).name.lower() for member in refused)
        unanswered = reasons.get(VerdictCode.UNANSWERED.name.lower(), 0)
        privacy = self._owner.privacy()
        spent = privacy.spent(version) if privacy is not None else None
        report = RoundReport(
            version=version,
            **asdict(quality(model, *self._test, self._target)),
            uploads=found.uploads,
            accepted=found.accepted,
            refused=found.refused,
            paid=found.paid,
            reasons=dict(sorted(reasons.items())),
            drawn=unanswered + sum(bool(member.opening_cid) for member in uploads),
            caught=sum(
                bool(member.opening_cid) and member.upload_reason not in _UNDECIDED
                for member in refused
            ),
            unanswered=unanswered,
            barred=barred(version + 1, members),
            updates=record.get("updates", 0),
            note=record.get("note", ""),
            epsilon=spent.epsilon if spent is not None else None,
            delta=spent.delta if spent is not None else None,
            outvoted=record.get("outvoted"),
            silent=record.get("silent"),
            bad_copies=record.get("bad_copies", {}),
        )
        self._state.save_report(version, asdict(report))
        self._measure()
        self._owner.metrics.settled.inc()
        names = ("uploads", "accepted", "refused", "paid", "updates")
        facts = {name: getattr(report, name) for name in names}
        self._say(logging.INFO, "settled", version, **facts)
        return report

    # ---- patience -----------------------------------------------------------------------------

    def _step(
        self, step: str, version: int, action: Callable[[], Any], found: Round | None = None
    ) -> Any:
        self._tell(step, version, False, found)
        self._say(logging.INFO, "step", version, step=step)
        with self._owner.metrics.step_sec.labels(step).time():
            result = action()
        self._tell(step, version, True, found)
        return result

    def _say(self, level: int, event: str, version: int, **fields: Any) -> None:
        say(log, level, event, task=self._plan.task, version=version, **fields)

    def _measure(self) -> None:
        """Read the money for the metrics, if there are any; no training fails for them."""
        if self._owner.metrics.is_on:
            try:
                self._owner.escrow()
            except GradledgerError as exc:
                say(log, logging.WARNING, "not_measured", task=self._plan.task, reason=exc)

    def _tell(self, step: str, version: int, done: bool, found: Round | None) -> None:
        if self._progress is not None:
            self._progress(Progress(step, version, done, found))

    def _patiently(self, version: int, action: Callable[[], _T]) -> _T:
        """Do it again while nodes are away or the chain moved on meanwhile; within a bound."""
        failing_since: float | None = None
        is_told = False
        while True:
            began = time.monotonic()
            try:
                return action()
            except (
                NodeError,
                StoreUnavailableError,
                SumUnusableError,
                RoundClosedError,
                StaleVersionError,
                AlreadyDoneError,
                WaitTimeoutError,
            ) as exc:
                error: GradledgerError = exc
            now = time.monotonic()
            has_got_on = now - began > ATTEMPT_SEC_MAX and not isinstance(error, WaitTimeoutError)
            if failing_since is None or has_got_on:
                failing_since, is_told = now, False
            failing_sec = now - failing_since
            if failing_sec >= self._patience_sec:
                raise WaitTimeoutError(
                    f"task {self._plan.task}, round {version}: "
                    f"waited {failing_sec:.0f} s in vain: {error}"
                ) from error
            self._owner.metrics.retries.inc()
            facts = {"error": type(error).__name__, "reason": error}
            left_sec = self._patience_sec - failing_sec
            if not is_told and now - min(began, failing_since) >= NOTICE_SEC:
                is_told = True
                self._say(logging.ERROR, "waiting", version, **facts, gives_up_sec=round(left_sec))
            self._say(logging.WARNING, "trying_again", version, **facts)
            pause = min(max(RETRY_SEC, failing_sec / RETRY_SHARE), RETRY_SEC_MAX)
            time.sleep(min(pause, left_sec))


def create_task(
    owner: Owner,
    plan: Plan,
    *,
    validation: ValidationData | None = None,
    wait: bool = True,
) -> Task:
    """Create the task that a plan describes; one that is there with the same terms is taken.

    Parameters
    ----------
    owner : Owner
    plan : Plan
    validation : ValidationData, optional
        The points that the plan's `committed_sets` commits to.
    wait : bool
        Wait until the new task is irreversible.

    Raises
    ------
    ConfigError
        Points are to be committed and there are none, or too few of a class; else as
        `Owner.create_task`.
    """
    commitment = None
    if plan.committed_sets:
        if validation is None:
            raise ConfigError(
                "plan: committed_sets: expected the owner's validation points when the task is "
                "created, or false"
            )
        points = owner.committed(validation, len(plan.class_names))
        commitment = points.commitment(plan.points_per_class)
    terms: dict[str, Any] = {
        "token_contract": plan.token_contract,
        "token_symbol": plan.amount("deposit").symbol,
        "mode": Mode[plan.mode.upper()],
        "is_public": plan.public,
        "validators_kind": ValidatorsKind[plan.validators_kind.upper()],
        "silence": Silence[plan.silence.upper()],
        "errors_max": plan.errors_max,
        "cost_max": plan.cost_max,
        "devices_max": plan.devices_max,
        "sum_min": plan.sum_min,
        "slot_bits": slot_bits_for(plan.devices_max),
        "clip_e6": scaled("clip", plan.clip),
        "lot_e6": scaled("lot", plan.lot),
        "bar_rounds": plan.bar_rounds,
    }
    return owner.create_task(
        terms,
        architecture=plan.architecture,
        class_names=plan.class_names,
        description=plan.description,
        privacy=plan.privacy_terms(),
        validation=commitment,
        target=plan.target_terms(),
        wait=wait,
    )


def first_model(plan: Plan) -> Model:
    """Draw T_0 as a plan says."""
    draw = Model.random_glorot if plan.initial == "glorot" else Model.random_normal
    return draw(plan.architecture, plan.initial_seed)


def round_terms(plan: Plan, version: int, cid: str, digest: bytes) -> RoundTerms:
    """Return the terms of round `version` with the model that was published for it."""
    return RoundTerms(
        model_cid=cid,
        model_hash=digest,
        price=plan.amount("price").amount,
        budget=plan.amount("budget").amount,
        open_sec=plan.open_sec,
        verdict_sec=plan.verdict_sec,
        sum_sec=plan.sum_sec,
        reveal_sec=plan.reveal_sec,
        audit_sec=plan.audit_sec if plan.lot else 0,
        close_after=plan.close_after,
        rule=Rule[plan.rule.upper()],
        tau=scaled("tau", plan.tau),
        eta_e6=scaled("eta", plan.eta),
        norm_max_e6=scaled("norm_max", plan.norm_max),
        training=Recipe(
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            rate_e6=scaled("rate", plan.rate),
            measures=plan.measures,
            seed=(plan.seed + version) % 2**64,
        ),
    )


def _report_from(saved: Mapping[str, Any]) -> RoundReport:
    try:
        return RoundReport(**saved)
    except TypeError as exc:
        raise ConfigError(f"the saved report is none: {exc}; remove its file") from exc
