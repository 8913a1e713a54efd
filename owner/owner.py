"""The owner's side of the protocol, step by step.

Each step is a method of `Owner`; what the chain records is said to be done only once it is
irreversible (or, with ``wait=False``, when the caller waits itself). `owner.run` strings the steps
together.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gradledger import envelope
from gradledger.card import TaskCard, fetch_card, task_codec
from gradledger.chain.client import ChainClient, PushResult, Signed
from gradledger.chain.contract import (
    Escrow,
    FedLearning,
    Member,
    Mode,
    Role,
    Round,
    RoundState,
    RoundTerms,
    Task,
    TaskTerms,
    UploadState,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey, key_of
from gradledger.chain.names import Asset, name_to_int
from gradledger.chain.transaction import Action, action
from gradledger.errors import (
    BadFieldError,
    BlobMissingError,
    CodecError,
    ConfigError,
    ContractError,
    EnvelopeError,
    IrreversibilityTimeout,
    PaillierError,
    RoundClosedError,
    StoreError,
    StoreUnavailableError,
    TransactionExpiredError,
    ValidationSetError,
)
from gradledger.logs import say
from gradledger.metrics import Metrics, OwnerMetrics
from gradledger.models import Model
from gradledger.outbox import Delivery, Entry, Outbox, State
from gradledger.phases import is_overdue, push_on
from gradledger.privacy import METADATA_KEY, Privacy
from gradledger.store import Store
from gradledger.target import Target
from gradledger.validation import Commitment, draw_points, opening_id
from owner.aggregation import (
    Aggregate,
    Expected,
    SumVotes,
    apply_mean,
    open_sum,
    open_update,
    sum_codes,
    sum_votes,
)
from owner.errors import SumUnusableError, WaitTimeoutError
from owner.evaluation import quality
from owner.paillier_key import PaillierPrivateKey
from owner.validation_sets import CommittedPoints, ValidationData

__all__ = ["Owner", "Published"]

log = logging.getLogger("gradledger.owner")

ADMIT_MAX = 100  # accounts in one `admit`, a limit of the contract
SETS_PER_TRANSACTION = 50
MEMBERS_PER_CALL = 100  # that one `settle` visits
CALLS_MAX = 1_000  # of `settle` for one round: more members than a task can have
POLL_SEC = 0.1
STUCK_SEC = 1.0  # where those are left who cannot be paid, wait for verdicts, or are not found
IRREVERSIBLE_SEC = 90.0
RESEND_SEC = 6.0
EXPIRATION_SEC = 30
SIGNATURES_MAX = 3
PENDING_BLOCKS = 2
MISSING_SEC = 120.0  # how long IPFS may take to find an accepted update, in sealed mode
BEHIND_SEC = 3.0  # how long a node that lacks a round may take to catch up
ENVELOPE_BYTES_MAX = 2**28 + 2**21

_BEFORE_AUDITING = (RoundState.OPEN, RoundState.VERIFYING, RoundState.DRAWING)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Published:
    """A model on IPFS.

    Parameters
    ----------
    version : int
        Round k that trains it; the model is T_(k-1).
    cid : str
    hash : bytes
        SHA-256 of the envelope.
    readers : tuple of str
        Who can open it; empty where the task is public.
    """

    version: int
    cid: str
    hash: bytes
    readers: tuple[str, ...]

    def to_record(self, evidence: str) -> dict[str, Any]:
        """Return the JSON object of a state directory; `evidence` names the model's origin."""
        return {
            "cid": self.cid,
            "hash": self.hash.hex(),
            "readers": list(self.readers),
            "evidence": evidence,
        }


class Owner:
    """Round control of one task.

    Parameters
    ----------
    account : str
        The owner's account.
    task : str
        Name of the task; it need not exist yet.
    key : PrivateKey or str or path
        The account's key, its text, or its key file.
    chain : ChainClient or str or sequence of str
        A client, or the endpoints of nodes.
    store : Store or str
        IPFS.
    contract : str
        The contract's account.
    paillier_key : PaillierPrivateKey or path, optional
        For tasks in paillier mode.
    workers : int
        Threads that decrypt.
    metrics : gradledger.metrics.Metrics, optional
        Where it counts; by default nowhere.

    Raises
    ------
    ConfigError
        A key file cannot be used, or belongs to another account.
    """

    def __init__(
        self,
        account: str,
        *,
        task: str,
        key: PrivateKey | str | os.PathLike[str],
        chain: ChainClient | str | Sequence[str],
        store: Store | str,
        contract: str = "fedlearning",
        paillier_key: PaillierPrivateKey | str | os.PathLike[str] | None = None,
        workers: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        self.account = account
        self.task = task
        self._key = key_of(key, account)
        self.chain = chain if isinstance(chain, ChainClient) else ChainClient(chain)
        self.store = store if isinstance(store, Store) else Store(store)
        self.contract = FedLearning(self.chain, contract)
        if paillier_key is None or isinstance(paillier_key, PaillierPrivateKey):
            self._paillier_key = paillier_key
        else:
            self._paillier_key = PaillierPrivateKey.load(paillier_key)
        self._workers = workers or min(os.cpu_count() or 1, 16)
        self._secret = self._key.encryption_key()
        self.metrics = OwnerMetrics(metrics or Metrics(), task)
        self._card: TaskCard | None = None
        self._told: set[tuple[int, str]] = set()  # version and device that gets no set

    def __repr__(self) -> str:
        return f"Owner({self.account!r}, task={self.task!r})"

    # ---- the task -----------------------------------------------------------------------------

    def create_task(
        self,
        terms: Mapping[str, Any],
        *,
        architecture: Mapping[str, Any],
        class_names: Sequence[str],
        description: str = "",
        privacy: Privacy | None = None,
        validation: Commitment | None = None,
        target: Target | None = None,
        wait: bool = True,
    ) -> Task:
        """Put the task card on IPFS and create the task.

        Parameters
        ----------
        terms : mapping
            The fields of `TaskTerms` but for those that follow from the rest: `classes`,
            `parameters`, `key_hash`, `card_cid`, `card_hash`.
        architecture : mapping
        class_names : sequence of str
        description : str
            For whoever thinks about joining.
        privacy : Privacy, optional
            The noise that every device adds to its updates, see `Privacy.calibrate`.
        validation : Commitment, optional
            The validation points, from `CommittedPoints.commitment`; devices get no others then.
        target : Target, optional
            The number that the task learns; its strata are the classes.
        wait : bool
            Wait until the new task is irreversible.

        Returns
        -------
        Task
            As the chain has it. A task of this name that is this owner's and has
            these very terms is taken as it is.

        Raises
        ------
        ConfigError
            The mode asks for a Paillier key and there is none; the task exists with other terms.
        PrivacyError
            The terms claim another epsilon than their noise gives, or the codec's clip leaves no
            room for the noise.
        """
        if privacy is not None:
            privacy.check_claim()
            privacy.check_codec(terms["clip_e6"])
        sealed = Mode(terms["mode"]) is Mode.SEALED
        if not sealed and self._paillier_key is None:
            raise ConfigError(
                "paillier mode: expected a Paillier key; `gradledger owner key` makes one"
            )
        public = None if sealed or self._paillier_key is None else self._paillier_key.public
        card = TaskCard(
            task=self.task,
            owner=self.account,
            description=description,
            classes=tuple(class_names),
            architecture=dict(architecture),
            owner_enc_key=envelope.public_key_of(self._secret),
            paillier_n=public.n if public else None,
            privacy=privacy,
            validation=validation,
            target=target,
        ).to_bytes()
        cid = self.store.put(card)
        full = TaskTerms(
            **terms,
            classes=len(class_names),
            parameters=Model.random_glorot(architecture, 0).parameters,
            key_hash=public.key_hash if public else bytes(32),
            card_cid=cid,
            card_hash=hashlib.sha256(card).digest(),
        )
        if not self.exists():
            self._push([self.contract.createtask(self.task, self.account, full)], wait=wait)
            # Another node may be asked next, which has not seen it yet.
            self.chain.wait_until(self.exists, timeout_sec=IRREVERSIBLE_SEC, what="the new task")
        found = self._task()
        if found.owner != self.account or found.terms != full:
            raise ConfigError(
                f"task {self.task} exists with other terms or another owner: take another name"
            )
        return found

    def privacy(self, task: Task | None = None) -> Privacy | None:
        """Return the task's terms of differential privacy; None where it has none."""
        return self.card(task).privacy

    def card(self, task: Task | None = None) -> TaskCard:
        """Return the task's card, fetched once."""
        if self._card is None:
            self._card = fetch_card(self.store, self._task() if task is None else task)
        return self._card

    def admit_devices(self, accounts: Iterable[str], *, wait: bool = True) -> list[str]:
        """Admit accounts as devices; returns those that were not members yet."""
        return self._admit(accounts, Role.DEVICE, wait)

    def admit_validators(self, accounts: Iterable[str], *, wait: bool = True) -> list[str]:
        """Admit accounts as validators; returns those that were not members yet."""
        return self._admit(accounts, Role.VALIDATOR, wait)

    def _admit(self, accounts: Iterable[str], role: Role, wait: bool) -> list[str]:
        members = {member.account: member.role for member in self.contract.members(self.task)}
        new: list[str] = []
        for account in dict.fromkeys(accounts):
            if account not in members:
                new.append(account)
            elif members[account] != role:
                raise ConfigError(f"{account} is a {Role(members[account]).name.lower()} already")
        batches = [new[i : i + ADMIT_MAX] for i in range(0, len(new), ADMIT_MAX)]
        for number, batch in enumerate(batches, 1):
            step = self.contract.admit(self.task, self.account, batch, role)
            self._push([step], wait=wait and number == len(batches))
        return new

    def members(self) -> list[Member]:
        """Return the members of the task."""
        return list(self.contract.members(self.task))

    # ---- money --------------------------------------------------------------------------------

    def deposit(
        self, quantity: Asset | str, *, wait: bool = True, outbox: Outbox | None = None
    ) -> str:
        """Pay into the task's escrow; returns the transaction's id.

        Parameters
        ----------
        quantity : Asset or str
        wait : bool
            Wait until it is irreversible.
        outbox : Outbox, optional
            The transaction is written down there before it is sent: whoever is killed meanwhile
            calls `finish_deposits` and knows, before paying anew, what became of it. Always waits.
        """
        terms = self._task().terms
        amount = Asset.parse(quantity) if isinstance(quantity, str) else quantity
        step = self.contract.deposit(self.task, self.account, amount, terms.token_contract)
        if outbox is None:
            return self._push([step, self._nonce()], wait=wait)
        entry = outbox.add(
            f"the deposit of {amount}",
            [step, self._nonce()],
            give_up_at=self.chain_time() + EXPIRATION_SEC,
            details={"amount": str(amount)},
        )
        delivery = self._delivery(outbox, entry)
        delivery.send()
        delivery.wait(IRREVERSIBLE_SEC)
        assert delivery.entry.signed is not None
        return delivery.entry.signed.trx_id

    def open_deposits(self, path: Path) -> Outbox:
        """Open the file where this owner's deposits are written down; the caller closes it."""
        return Outbox(path, holder=f"{self.account}, owner of {self.task}")

    def finish_deposits(self, outbox: Outbox) -> list[Entry]:
        """Wait until each deposit in the outbox has happened, or never can.

        Returns
        -------
        list of Entry
            Those that were on their way, as they stand now: done, or abandoned.

        Raises
        ------
        IrreversibilityTimeout
            Not known yet; call it again.
        """
        pending = outbox.entries(State.PENDING)
        for entry in pending:
            try:
                self._delivery(outbox, entry).wait(IRREVERSIBLE_SEC)
            except ContractError as exc:
                log.warning("%s never happened: %s", entry.name, exc)
        return [outbox.entry(entry.number) for entry in pending]

    def _delivery(self, outbox: Outbox, entry: Entry) -> Delivery:
        def sign(actions: Sequence[Action]) -> Signed:
            return self.chain.sign(actions, [self._key], expiration_sec=EXPIRATION_SEC)

        return Delivery(outbox, entry, self.chain, sign=sign)

    def withdraw(self, quantity: Asset | str, *, wait: bool = True) -> str:
        """Take back money that no open round may need; returns the transaction's id.

        Raises
        ------
        NotAllowedError
            Less is free; the message says how much.
        """
        amount = Asset.parse(quantity) if isinstance(quantity, str) else quantity
        step = self.contract.withdraw(self.task, self.account, amount)
        return self._push([step, self._nonce()], wait=wait)

    def escrow(self) -> Escrow:
        """Return the task's money as the chain's tables have it."""
        found = self.contract.escrow(self.task)
        self.metrics.see_escrow(found)
        return found

    # ---- opening a round ----------------------------------------------------------------------

    def publish_model(self, model: Model, version: int) -> Published:
        """Put T_(version-1) on IPFS for the members to train in round `version`.

        Parameters
        ----------
        model : Model
            Of the task's length.
        version : int
            The round to come.

        Returns
        -------
        Published
            Sealed to every member that has joined and to the owner, unless the task is public. A
            member whose X25519 key is none (any 32 bytes can be given on chain) is left out. Under
            differential privacy the file's metadata says what is spent once this round is over.
        """
        task = self._task()
        if model.parameters != task.terms.parameters:
            raise ConfigError(
                f"the task takes {task.terms.parameters} parameters, got {model.parameters}"
            )
        header = envelope.Header(
            kind=envelope.Kind.MODEL,
            codec=envelope.PayloadCodec.BYTES,
            task=self.task,
            sender=self.account,
            version=version,
            parameters=model.parameters,
        )
        privacy = self.privacy(task)
        metadata = {METADATA_KEY: privacy.spent(version).to_text()} if privacy else {}
        readers: dict[str, bytes] = {}
        if task.terms.is_public:
            data = envelope.plain(header, model.to_bytes(metadata))
        else:
            readers = self._model_readers()
            data = envelope.seal(header, model.to_bytes(metadata), readers)
        cid = self.store.put(data)
        return Published(version, cid, hashlib.sha256(data).digest(), tuple(sorted(readers)))

    def readers(self) -> tuple[str, ...]:
        """Return who a model published now would be sealed to."""
        if self._task().terms.is_public:
            return ()
        return tuple(sorted(self._model_readers()))

    def _model_readers(self) -> dict[str, bytes]:
        own = {self.account: envelope.public_key_of(self._secret)}
        return {**own, **_readers(self.members())}

    def issue_validation_sets(
        self,
        version: int,
        data: ValidationData,
        *,
        per_class: int | None = None,
        devices: Iterable[str] | None = None,
        wait: bool = True,
    ) -> list[str]:
        """Give each joined device points of the classes that it declared.

        In a task that commits to its points the block that opened the round draws them: this waits
        until that block is irreversible.

        Parameters
        ----------
        version : int
            The open round; the next one as well, where nothing is committed.
        data : ValidationData
            The owner's own points; those committed.
        per_class : int, optional
            m, points of each class, where nothing is committed. Each device's points follow from
            the owner's key, version and account then.
        devices : iterable of str, optional
            Only these.
        wait : bool
            Wait until the last record is irreversible.

        Returns
        -------
        list of str
            Devices that got a set now; who has one for this round already keeps it, and who has
            uploaded gets none any more.

        Raises
        ------
        ConfigError
            The points are not those that the task commits to.
        RoundClosedError
            The round is not open.
        """
        wanted = None if devices is None else set(devices)
        members = self.members()
        validators = [m for m in members if m.role == Role.VALIDATOR]
        due = [
            member
            for member in members
            if member.role == Role.DEVICE
            and member.joined
            and member.set_version != version
            # who has uploaded had one, which a killed node has forgotten
            and member.upload_version != version
            and (wanted is None or member.account in wanted)
        ]
        if not due:
            return []
        make_set = self._set_maker(version, data, per_class)
        header = envelope.Header(
            kind=envelope.Kind.VALIDATION_SET,
            codec=envelope.PayloadCodec.BYTES,
            task=self.task,
            sender=self.account,
            version=version,
        )
        issued: list[str] = []
        shared = _readers(validators)
        actions: list[Action] = []
        for number, member in enumerate(due, 1):
            payload = None
            if envelope.can_seal_to(member.enc_key):
                try:
                    payload = make_set(member)
                except ValidationSetError as exc:
                    if (version, member.account) not in self._told:
                        self._warn("no_set", version, sender=member.account, reason=exc)
                    self._told.add((version, member.account))
            if payload is not None:
                readers = {**shared, member.account: bytes(member.enc_key)}
                blob = envelope.seal(header, payload, readers)
                cid = self.store.put(blob)
                digest = hashlib.sha256(blob).digest()
                actions.append(
                    self.contract.issueset(
                        self.task, self.account, member.account, version, cid, digest
                    )
                )
                issued.append(member.account)
            if actions and (len(actions) == SETS_PER_TRANSACTION or number == len(due)):
                self._push(actions, wait=wait and number == len(due))
                actions = []
        return issued

    def committed(self, data: ValidationData, classes: int) -> CommittedPoints:
        """Return validation points as this owner commits to them in this task.

        Their salts follow from the account's key, as what opens the sums sealed to it does: a lost
        state directory costs nothing.

        Parameters
        ----------
        data : ValidationData
        classes : int
            That the task has.
        """
        return data.committed(task=self.task, classes=classes, secret=self._points_secret())

    def _points_secret(self) -> bytes:
        name = name_to_int(self.task).to_bytes(8, "little")
        return hashlib.blake2b(
            name, digest_size=32, key=self._secret, person=b"gradledger sets"
        ).digest()

    def _set_maker(
        self, version: int, data: ValidationData, per_class: int | None
    ) -> Callable[[Member], bytes]:
        """Return what makes the payload of a device's set."""
        card = self.card()
        counts, seed = data.counts(len(card.classes)), self._points_secret()
        dump: Callable[[Sequence[int]], bytes] = data.dump
        commitment = card.validation
        if commitment is not None:
            points = self.committed(data, len(card.classes))
            if (points.root, points.counts) != (commitment.root, commitment.counts):
                raise ConfigError(
                    f"task {self.task} commits to other validation points, or with another key: "
                    f"expected the root {commitment.root.hex()}, got {points.root.hex()}"
                )
            if per_class not in (None, commitment.per_class):
                raise ConfigError(
                    f"per_class: the task commits to {commitment.per_class}, got {per_class}"
                )
            per_class, dump = commitment.per_class, points.dump
            seed = bytes.fromhex(self._wait_opening(version))
        elif per_class is None:
            raise ConfigError("per_class: expected a number: the task commits to none")
        size = per_class

        def make(member: Member) -> bytes:
            drawn = draw_points(
                seed,
                task=self.task,
                version=version,
                device=member.account,
                classes=member.classes,
                counts=counts,
                per_class=size,
            )
            return dump(drawn)

        return make

    def _wait_opening(self, version: int) -> str:
        """Return the id of the block that opened a round, once that is irreversible."""

        def look() -> str | None:
            try:
                found = self.round(version)
            except RoundClosedError:
                raise RoundClosedError(
                    "not_open",
                    f"round {version} is not open: the block that opens it draws its sets",
                ) from None
            return opening_id(self.contract, self.task, found)

        what = f"the opening of round {version} to be irreversible"
        return str(self.chain.wait_until(look, timeout_sec=IRREVERSIBLE_SEC, what=what))

    def open_round(self, version: int, terms: RoundTerms, *, wait: bool = True) -> Round:
        """Open round `version`.

        Raises
        ------
        BudgetShortError
            Deposit the missing amount that the message names.
        RoundClosedError
            The round before is not settled.
        """
        step = self.contract.openround(self.task, self.account, version, terms)
        self._push([step], wait=wait)
        return self.round(version)

    # ---- bringing a round to its end ----------------------------------------------------------

    def round(self, version: int) -> Round:
        """Return a round as the chain has it now.

        Raises
        ------
        RoundClosedError
            There is none, perhaps no longer: nodes that are killed forget their newest blocks.
        """
        end = time.monotonic() + BEHIND_SEC
        while True:
            found = self.contract.round(self.task, version)
            if found is not None:
                self.metrics.see_round(found)
                return found
            # of several nodes, another one may answer than took the transaction that opened it
            if time.monotonic() >= end:
                raise RoundClosedError("no_round", f"task {self.task} has no round {version}")
            time.sleep(POLL_SEC)

    def close_round(self, version: int, *, wait: bool = True) -> None:
        """Close the round to uploads: after its deadline, or early once `close_after` are in."""
        step = self.contract.closeround(self.task, self.account, version)
        self._push([step], wait=wait)

    def can_close(self, found: Round) -> bool:
        """Whether the contract lets the owner close this round now."""
        early = found.close_after != 0 and found.uploads >= found.close_after
        return early or self.chain_time() >= found.deadline

    def wait_verdicts(self, version: int, *, timeout_sec: float | None = None) -> Round:
        """Wait until every upload of a closed round is decided.

        Once the verdict deadline has passed, `push` decides the rest as the task's `silence` says.

        Parameters
        ----------
        version : int
        timeout_sec : float, optional
            By default what the contract's deadlines allow, and a minute.

        Returns
        -------
        Round
            No longer open and not verifying.

        Raises
        ------
        WaitTimeoutError
            The bound passed.
        """
        return self._wait_phase(
            version, (RoundState.OPEN, RoundState.VERIFYING), "verdicts", timeout_sec
        )

    def wait_draw(self, version: int, *, timeout_sec: float | None = None) -> Round:
        """Wait until it is drawn who is audited, and the others are paid; see `wait_verdicts`."""
        return self._wait_phase(version, _BEFORE_AUDITING, "the lots", timeout_sec)

    def wait_audits(self, version: int, *, timeout_sec: float | None = None) -> Round:
        """Wait until every audit is over; who does not answer in time is barred."""
        states = (*_BEFORE_AUDITING, RoundState.AUDITING)
        return self._wait_phase(version, states, "the audits", timeout_sec)

    def wait_sum(self, version: int, *, timeout_sec: float | None = None) -> Round:
        """Wait until the validators have attested the sum; after the deadline give it up."""
        states = (*_BEFORE_AUDITING, RoundState.AUDITING, RoundState.SUMMING)
        return self._wait_phase(version, states, "the sum", timeout_sec)

    def _wait_phase(
        self, version: int, states: tuple[RoundState, ...], what: str, timeout_sec: float | None
    ) -> Round:
        found = self.round(version)
        if timeout_sec is None:
            phases_sec = found.reveal_sec + 2 * found.verdict_sec + 5 * found.audit_sec
            timeout_sec = phases_sec + found.sum_sec + IRREVERSIBLE_SEC
        until = time.monotonic() + timeout_sec
        while found.state in states:
            if time.monotonic() > until:
                raise WaitTimeoutError(
                    f"round {version}: no end of the wait for {what} within {timeout_sec:g} s; "
                    f"it is {found.state.name.lower()}, {found.pending} verdicts are pending, "
                    f"{found.held} wait for the lots, {found.drawn} are under audit"
                )
            now = self.chain_time()
            if found.state is not RoundState.OPEN and is_overdue(found, now):
                self._push_on(found, now)
            else:
                time.sleep(POLL_SEC)
            found = self.round(version)
        return found

    def _push_on(self, found: Round, now: int) -> None:
        def send(step: Action) -> None:
            self._push([step])

        try:
            if not push_on(self.contract, self.task, found, now, self.account, send):
                time.sleep(STUCK_SEC)
        except RoundClosedError:
            time.sleep(POLL_SEC)  # somebody else pushed, or the last verdict came

    def chain_time(self) -> int:
        """Return the time of the head block, in seconds since 1970."""
        return self.chain.get_info().head_time

    def settle(self, version: int, *, wait: bool = True) -> Round:
        """Put the round's uploads into its Merkle tree and take the transient RAM back.

        Returns
        -------
        Round
            Settled, with its root.
        """
        result: PushResult | None = None
        for _ in range(CALLS_MAX):
            found = self.round(version)
            if found.state is RoundState.SETTLED:
                break
            step = self.contract.settle(self.task, self.account, version, MEMBERS_PER_CALL)
            result = self._send([step])
        else:
            raise WaitTimeoutError(f"round {version}: not settled after {CALLS_MAX} calls")
        if wait and result is not None:
            self._await(result)
        return found

    # ---- the next model -----------------------------------------------------------------------

    def fetch_model(self, version: int) -> Model:
        """Return T_(version-1) as it was published for round `version`.

        The owner is a reader of what it publishes, so that a lost state directory costs nothing.
        """
        found = self.round(version)
        data = self.store.get(found.model_cid, bytes_max=ENVELOPE_BYTES_MAX)
        digest = hashlib.sha256(data).digest()
        if digest != bytes(found.model_hash):
            raise EnvelopeError(
                f"model of round {version}: expected {bytes(found.model_hash).hex()}, "
                f"got {digest.hex()}"
            )
        parsed = envelope.parse(data)
        return Model.from_bytes(parsed.open(self.account, self._secret))

    def aggregate(self, version: int, model: Model | None = None) -> Aggregate:
        """Make T_version from T_(version-1) and the result of round `version`.

        In paillier mode the sum is fetched from any validator that voted for the attested hash; a
        copy that is missing or wrong is logged with the validator's name and the next one is taken.
        In sealed mode the accepted uploads themselves are fetched; one that IPFS does not find is
        asked for again for `MISSING_SEC` before it is left out.

        Parameters
        ----------
        version : int
            A round that is summed or settled.
        model : Model, optional
            T_(version-1); by default it is fetched as it was published.

        Returns
        -------
        Aggregate
            With the model as it was, and a note, where the round gave no usable sum.

        Raises
        ------
        RoundClosedError
            The round has not come so far.
        SumUnusableError
            A sum is attested, but no right copy of it is to be had now. Once the round is settled,
            so that no other copy is known, the model stays as it is instead.
        StoreUnavailableError
            IPFS does not answer.
        """
        found = self.round(version)
        if found.state not in (RoundState.SUMMED, RoundState.SETTLED):
            state = found.state.name.lower()
            raise RoundClosedError(
                "not_summed", f"expected round {version} to be summed, it is {state}"
            )
        task = self._task()
        base = self.fetch_model(version) if model is None else model
        expected = Expected(
            task=self.task,
            version=version,
            codec=task_codec(task),
            key_hash=bytes(task.terms.key_hash),
        )
        if Mode(task.terms.mode) is Mode.SEALED:
            return self._aggregate_sealed(found, base, expected)
        return self._aggregate_sum(found, base, expected, task.terms)

    def evidence(self, found: Round) -> str:
        """Return the hex digest that names the result of a summed round, see `Aggregate`."""
        if Mode(self._task().terms.mode) is Mode.SEALED:
            hashes = sorted(bytes(m.upload_hash) for m in self._accepted(found.version))
            return hashlib.sha256(b"".join(hashes)).hexdigest()
        return bytes(found.sum_hash).hex()

    def _aggregate_sum(
        self, found: Round, base: Model, expected: Expected, terms: TaskTerms
    ) -> Aggregate:
        version, sum_hash = found.version, bytes(found.sum_hash)
        votes = sum_votes(found, terms)
        if not any(sum_hash):
            if found.accepted < terms.sum_min:
                note = f"{found.accepted} accepted uploads, fewer than sum_min {terms.sum_min}"
                votes = SumVotes()
            else:
                note = f"no quorum of validators attested the sum of {found.accepted} uploads"
                note += _tally(found)
            return self._unchanged(found, base, f"{note}: the model stays as it is", votes)
        for name in votes.outvoted if votes else ():
            self._warn("outvoted", version, sender=name)
        if self._paillier_key is None:
            raise ConfigError("expected the task's Paillier key, to open the sum")
        if self._paillier_key.public.key_hash != expected.key_hash:
            raise ConfigError("the Paillier key given is not the task's")
        ciphertexts, bad_copies = self._fetch_sum(found, expected)
        if ciphertexts is None:
            complaints = "; ".join(f"{who}: {why}" for who, why in bad_copies.items())
            note = f"round {version}: no right copy of the attested sum ({complaints})"
            if found.state is not RoundState.SETTLED:
                raise SumUnusableError(note)
            # `settle` leaves one copy's CID, so that nothing better can come any more.
            return self._unchanged(found, base, f"{note}; the model stays as it is", votes)
        try:
            sums = self._paillier_key.decrypt_sums(
                ciphertexts, expected.codec, found.accepted, workers=self._workers
            )
        except (CodecError, PaillierError) as exc:
            # Attested, but no honest devices' sum: some device encrypted what no codec makes.
            note = f"spoilt sum: {exc}; the model stays as it is"
            return self._unchanged(found, base, note, votes, bad_copies)
        model = apply_mean(base, expected.codec, sums, found.accepted, found.eta_e6)
        return Aggregate(
            version, model, found.accepted, sum_hash.hex(), votes=votes, bad_copies=bad_copies
        )

    def _fetch_sum(self, found: Round, expected: Expected) -> tuple[bytes | None, dict[str, str]]:
        """Return the first right copy of the attested sum, and whose copies were none."""
        bad_copies: dict[str, str] = {}
        unavailable: StoreUnavailableError | None = None
        for who, cid in _sum_copies(found):
            try:
                ciphertexts = open_sum(
                    self.store.get(cid, bytes_max=ENVELOPE_BYTES_MAX),
                    expected=expected,
                    updates=found.accepted,
                    sum_hash=bytes(found.sum_hash),
                    account=self.account,
                    secret=self._secret,
                )
                return ciphertexts, bad_copies
            except StoreUnavailableError as exc:
                unavailable = exc
            except (StoreError, EnvelopeError, PaillierError) as exc:
                self._warn("bad_copy", found.version, sender=who, reason=exc)
                bad_copies[who] = str(exc)
        if unavailable is not None:
            raise unavailable
        return None, bad_copies

    def _aggregate_sealed(self, found: Round, base: Model, expected: Expected) -> Aggregate:
        evidence = self.evidence(found)
        updates: list[npt.NDArray[np.uint16]] = []
        left_out: list[str] = []
        waiting = deque(self._accepted(found.version))
        wait_until: dict[str, float] = {}  # for those that were not found
        while waiting:
            member = waiting.popleft()
            if member.account in wait_until:
                time.sleep(STUCK_SEC)
            try:
                codes = open_update(
                    self.store.get(member.upload_cid, bytes_max=ENVELOPE_BYTES_MAX),
                    expected=expected,
                    device=member.account,
                    upload_hash=bytes(member.upload_hash),
                    account=self.account,
                    secret=self._secret,
                )
            except StoreUnavailableError:
                raise
            except (StoreError, EnvelopeError, CodecError) as exc:
                # A node says the same of what nobody has and of what it did not find in time.
                if isinstance(exc, BlobMissingError):
                    now = time.monotonic()
                    if member.account not in wait_until:
                        wait_until[member.account] = now + MISSING_SEC
                        self._warn("trying_again", found.version, sender=member.account, reason=exc)
                    if now < wait_until[member.account]:
                        waiting.append(member)
                        continue
                self._warn("left_out", found.version, sender=member.account, reason=exc)
                left_out.append(f"{member.account} is left out: {exc}")
                continue
            updates.append(codes)
        note = "; ".join(left_out)
        if not updates:
            reason = note or "no accepted update"
            note = f"{reason}: the model stays"
            return Aggregate(found.version, base, 0, evidence, note, SumVotes())
        sums = sum_codes(expected.codec, updates)
        model = apply_mean(base, expected.codec, sums, len(updates), found.eta_e6)
        return Aggregate(found.version, model, len(updates), evidence, note, SumVotes())

    def _accepted(self, version: int) -> list[Member]:
        """Return the members whose upload of the round the validators accepted."""
        return [
            member
            for member in self.members()
            if member.upload_version == version
            and member.upload_state == UploadState.PAID
            and member.upload_reason == VerdictCode.ACCEPT
        ]

    def _unchanged(
        self,
        found: Round,
        base: Model,
        note: str,
        votes: SumVotes | None,
        bad_copies: Mapping[str, str] | None = None,
    ) -> Aggregate:
        self._warn("unchanged", found.version, reason=note)
        evidence = bytes(found.sum_hash).hex()
        return Aggregate(found.version, base, 0, evidence, note, votes, bad_copies or {})

    def evaluate(self, model: Model, x: npt.ArrayLike, y: npt.ArrayLike) -> float:
        """Return the share of right answers; `owner.evaluation` has more, and regressions."""
        accuracy = quality(model, x, y).accuracy
        assert accuracy is not None
        return accuracy

    # ---- the chain ----------------------------------------------------------------------------

    def wait_irreversible(
        self, read: Callable[[], _T], *, timeout_sec: float = IRREVERSIBLE_SEC
    ) -> _T:
        """Return what `read` reads once all that it can depend on is irreversible.

        Reads, waits until the blocks that can hold what was read are irreversible, reads again;
        where the chain changed its mind meanwhile, begins anew.

        Raises
        ------
        IrreversibilityTimeout
            The bound passed.
        """
        until = time.monotonic() + timeout_sec
        before = read()
        while True:
            target = self.chain.get_confirmed().head_block + PENDING_BLOCKS
            self.chain.wait_until(
                partial(self._is_irreversible, target),
                timeout_sec=max(0.0, until - time.monotonic()),
                what=f"block {target} to be irreversible",
            )
            after = read()
            if after == before:
                return after
            before = after

    def _is_irreversible(self, block: int) -> bool:
        return self.chain.get_confirmed().irreversible_block >= block

    def exists(self) -> bool:
        """Whether the task is on chain."""
        try:
            self._task()
        except BadFieldError as exc:
            if exc.code != "unknown_task":
                raise
            return False
        return True

    def version(self) -> int:
        """Return the version of the newest round; 0 before the first."""
        return self._task().version

    def _task(self) -> Task:
        return self.contract.task(self.task)

    def _warn(self, event: str, version: int, **fields: Any) -> None:
        say(log, logging.WARNING, event, task=self.task, version=version, **fields)

    def _push(self, actions: Sequence[Action], *, wait: bool = False) -> str:
        """Send actions in one transaction; with `wait`, return when it is irreversible."""
        for left in reversed(range(SIGNATURES_MAX)):
            result = self._send(actions)
            try:
                if wait:
                    self._await(result)
                break
            except TransactionExpiredError as exc:
                if not left:
                    raise
                say(log, logging.WARNING, "expired", task=self.task, reason=exc)
        return result.trx_id

    def _nonce(self) -> Action:
        """Return an action that does nothing, so that paying twice is never one transaction."""
        return action("eosio.null", "nonce", self.account, secrets.token_bytes(8))

    def _send(self, actions: Sequence[Action]) -> PushResult:
        # The same step twice within a second is one transaction if the expiration is the same too;
        # that harms nobody, for whoever repeats a step looks at the chain first.
        expiration_sec = EXPIRATION_SEC + secrets.randbelow(EXPIRATION_SEC)
        return self.chain.push(actions, [self._key], expiration_sec=expiration_sec)

    def _await(self, result: PushResult) -> None:
        """Wait until a transaction is irreversible; send the same bytes again meanwhile.

        A node that was killed forgets what it had accepted. A transaction that it has not forgotten
        is not executed twice.
        """
        until = time.monotonic() + IRREVERSIBLE_SEC
        while True:
            try:
                self.chain.wait_irreversible(result, timeout_sec=RESEND_SEC)
                return
            except IrreversibilityTimeout:
                if time.monotonic() >= until:
                    raise
            self.chain.send(result.body)


def _readers(members: Iterable[Member]) -> dict[str, bytes]:
    """Return the encryption keys of the members who joined and gave a usable one."""
    readers: dict[str, bytes] = {}
    for member in members:
        if not member.joined:
            continue
        if envelope.can_seal_to(member.enc_key):
            readers[member.account] = bytes(member.enc_key)
        else:
            say(log, logging.WARNING, "no_reader", sender=member.account, reason="no X25519 key")
    return readers


def _tally(found: Round) -> str:
    """Say who attested what, where no quorum came about; nothing once the votes are gone."""
    by_hash: dict[bytes, list[str]] = {}
    for validator, vote in zip(found.validators, found.sums, strict=False):
        by_hash.setdefault(bytes(vote.hash), []).append(validator)
    told = [
        f"{', '.join(names)}: {digest.hex()[:16] if any(digest) else 'none'}"
        for digest, names in by_hash.items()
    ]
    return f" ({'; '.join(told)})" if told else ""


def _sum_copies(found: Round) -> list[tuple[str, str]]:
    """Return (validator, CID) of every copy of the attested sum; after `settle` one is left."""
    copies: dict[str, str] = {}
    for validator, vote in zip(found.validators, found.sums, strict=False):
        if bytes(vote.hash) == bytes(found.sum_hash):
            copies.setdefault(vote.cid, validator)
    copies.setdefault(found.sum_cid, "the round's record")
    return [(who, cid) for cid, who in copies.items()]
