"""A device's account in a task: read the terms, join, take part in rounds."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from device_sdk.budget import Budget
from device_sdk.encryption import Encryption
from device_sdk.receipts import ENVELOPE, Abandoned, Receipt
from device_sdk.rounds import Round
from gradledger import card as cards
from gradledger import envelope
from gradledger.chain.client import ChainClient, PushResult, Signed
from gradledger.chain.contract import (
    CONTRACT_DEFAULT,
    FedLearning,
    Member,
    Mode,
    Role,
    RoundState,
    Rule,
    Silence,
    Task,
    ValidatorsKind,
)
from gradledger.chain.contract import Round as RoundRow
from gradledger.chain.keys import PrivateKey, key_of
from gradledger.chain.names import Asset, Symbol, check_account
from gradledger.chain.payer import Payer
from gradledger.chain.transaction import Action
from gradledger.errors import (
    BlobMissingError,
    ChainError,
    ConfigError,
    ContractError,
    EnvelopeError,
    KeyMismatchError,
    ModelError,
    NodeError,
    NodeUnavailableError,
    NotAllowedError,
    NotAReaderError,
    PrivacyError,
    RoundClosedError,
    StoreError,
    StoreUnavailableError,
)
from gradledger.outbox import Delivery, Entry, Outbox, State
from gradledger.privacy import METADATA_KEY, Privacy, Spent
from gradledger.store import Store
from gradledger.validation import Draw, opening_id, read_issued_set

if TYPE_CHECKING:
    from gradledger.models import FloatArray, IntArray, Model
    from gradledger.target import Target

__all__ = ["Device", "Terms"]

POLL_SEC = 0.2
UPLOAD_SEC = 30  # life of an upload's transaction that the outbox has; then it is signed anew
FILE_OVERHEAD_BYTES = 65_536  # the header of a safetensors file
SET_BYTES_MAX = 2**26
VERDICT_SEC_MIN = 10

_RULES = {
    Rule.TREND: "the error must fall while you train",
    Rule.THRESHOLD: "the last error must be below {tau}",
    Rule.EITHER: "the error must fall while you train, or end below {tau}",
    Rule.BOTH: "the error must fall while you train, and end below {tau}",
    Rule.GAIN: "the model's doubt must fall while you train, without much up and down, and its "
    "wrong answers end below {tau} of what guessing among your classes leaves",
}
_SILENCE = {
    Silence.REFUND: "not paid",
    Silence.PAY: "paid, if anybody pushes the round on in time",
}


@dataclass(frozen=True)
class Terms:
    """What a device agrees to by `join`; fixed for the task's life, `price` and `rule` apart.

    Attributes
    ----------
    task, owner, description : str
    classes : tuple of str
        Names of the classes, in the order of their bits; of the strata, if `target` is there.
    mode : Mode
        `PAILLIER`: nobody sees a single update; `SEALED`: owner and validators do.
    validators : tuple of str
        Accounts that judge now.
    producers_only : bool
        Only those of them judge that are active producers, and the quorum counts all producers.
    silence : Silence
        What an upload gets that no quorum judges in time.
    cost_max : int
        Largest data cost of one upload, in examples.
    parameters : int
    symbol : Symbol
        Of the token that pays.
    price : Asset or None
        Per example, in the newest round; None before the first.
    rule, tau_e6 : Rule or None, int or None
        What the errors must meet in the newest round.
    sum_min : int
        Sums of fewer updates are not released, in `PAILLIER` mode.
    privacy : Privacy or None
        The noise that this device adds to its updates; None: none. Its figures are checked.
    epsilon, delta : float or None
        What the device's data as a whole gives away to who sees all its updates singly, over as
        many rounds as `privacy` is for; computed here, from the noise.
    epsilon_round : float or None
        In one round.
    epsilon_sum : float or None
        Over all rounds, to who sees only sums, if `sum_min` - 1 of the others in them are honest.
        None in `SEALED` mode, and where the error of the noisy update goes on chain for everybody
        to see: then `epsilon` holds and no less.
    lot_e6 : int
        Share of the accepted uploads that each validator's lot draws for an audit, 1e-6 units; 0:
        no audits. What is drawn is opened to the validators.
    bar_rounds : int
        For so many rounds after it a device may not upload that failed an audit, or did not answer.
    audit_sec : int
        How long it has to answer, in the newest round.
    reveal_sec : int
        More than 0: in the newest round the update stays with the device until the round is closed,
        and for so long it then has time to reveal where it lies.
    points_per_class : int or None
        How many validation points of each class this device gets, drawn by the block that opens a
        round out of points that the owner committed to; None: the owner picks them.
    target : Target or None
        The number that the model learns. `target.strata_of(y)` is what to `join` with. None: the
        model learns classes.
    """

    task: str
    owner: str
    description: str
    classes: tuple[str, ...]
    mode: Mode
    validators: tuple[str, ...]
    producers_only: bool
    silence: Silence
    cost_max: int
    parameters: int
    symbol: Symbol
    price: Asset | None
    rule: Rule | None
    tau_e6: int | None
    sum_min: int
    privacy: Privacy | None = None
    epsilon: float | None = None
    delta: float | None = None
    epsilon_round: float | None = None
    epsilon_sum: float | None = None
    lot_e6: int = 0
    bar_rounds: int = 0
    audit_sec: int = 0
    reveal_sec: int = 0
    points_per_class: int | None = None
    target: Target | None = None

    @property
    def audit_share(self) -> float:
        """How likely an accepted upload is audited, if all of `validators` draw; 0 to 1."""
        return float(1 - (1 - self.lot_e6 / 1e6) ** len(self.validators))

    def __str__(self) -> str:
        seen = "the owner and the validators"
        if self.mode is Mode.PAILLIER:
            seen = "nobody but you, unless the owner and a validator collude"
            if self.lot_e6:
                seen += ", or it is audited"
        judges = "active producers among " if self.producers_only else ""
        judges += ", ".join(self.validators) or "nobody yet"
        lines = [
            f"task {self.task} of {self.owner}: {self.description}",
            f"  {'strata ' if self.target else 'classes'}     {', '.join(self.classes)}",
            *self._error_lines(),
            "  measured    on "
            + (
                "points that the owner picks for you"
                if self.points_per_class is None
                else f"{self.points_per_class} points of each of yours, drawn by the block that "
                "opens the round"
            ),
            f"  model       {self.parameters} parameters",
            f"  your update is readable for {seen}",
            f"  judged by   {judges}; more than two thirds decide",
            *self._audit_lines(),
            f"  if they stay silent, an upload is {_SILENCE[self.silence]}",
            f"  pays in     {self.symbol.code}, for at most {self.cost_max} examples an upload",
        ]
        if self.privacy is None:
            lines.append("  privacy     no noise is added to your update")
        else:
            lines += self._privacy_lines(self.privacy)
        if self.price is not None and self.rule is not None and self.tau_e6 is not None:
            rule = _RULES[self.rule].format(tau=self.tau_e6 / 1e6)
            lines += [f"  price now   {self.price} an example", f"  rule now    {rule}"]
        return "\n".join(lines)

    def _audit_lines(self) -> list[str]:
        lines = []
        if self.lot_e6:
            seconds = f" within {self.audit_sec} s" if self.audit_sec else ""
            lines += [
                f"  audits      each validator draws {self.lot_e6 / 1e4:g} % of the accepted "
                f"uploads; with all {len(self.validators)} of them {100 * self.audit_share:.3g} %",
                "              are opened to the validators, who read them and measure the errors",
                f"              who does not answer{seconds}, or is caught, is not paid and may "
                f"not upload for {self.bar_rounds} rounds",
            ]
        if self.reveal_sec:
            lines.append(
                f"  reveal      your update stays with you until the round is closed; then you "
                f"have {self.reveal_sec} s to tell where it lies"
            )
        return lines

    def _error_lines(self) -> list[str]:
        if self.target is None:
            return []
        scale = f"{self.target.scale:g} {self.target.unit}".rstrip()
        return [f"  error       how far off the model is, as a share of {scale}, at most 1"]

    def _privacy_lines(self, privacy: Privacy) -> list[str]:
        lines = [
            f"  privacy     your update is cut to L2 norm {privacy.clip_norm:g} and gets Gaussian "
            f"noise of standard deviation {privacy.sigma:.4g}",
            f"              in all, over {privacy.rounds} rounds: epsilon {self.epsilon:.4g} at "
            f"delta {self.delta:g}; one round: epsilon {self.epsilon_round:.4g}",
            "              on chain stands the error of "
            + ("your noisy update" if privacy.update_error else "the model you got, not yours"),
        ]
        if self.epsilon_sum is not None:
            lines.append(
                f"              to who sees only sums with {self.sum_min - 1} more honest devices: "
                f"about epsilon {self.epsilon_sum:.4g}"
            )
        return lines


class Device:
    """One device in one task. It needs no tokens of its own.

    Parameters
    ----------
    account : str
        Of the device, on chain.
    key : PrivateKey or str or path
        The account's active key, its text (`PVT_K1_...` or `5...`), or the path of its key file;
        see `gradledger.chain.keys.key_of`.
    task : str
    chain : str, sequence of str or ChainClient
        Nodes; the next one is asked when one does not answer.
    store : str or Store
        Kubo's RPC, `/ip4/127.0.0.1/tcp/5001` or `http://...`.
    contract : str
        Account of the contract.
    payer : str or Payer, optional
        ``http://host:port`` of a payer's service, whose account pays for this one's CPU and NET.
        Without it the account needs CPU and NET of its own, where the chain counts them.
    budget_file : path, optional
        For tasks with differential privacy: keeps count of the rounds that this device drew noise
        for. Without it a restarted process takes what the chain says of its newest upload.
    outbox : path or Outbox, optional
        A file in which each upload is written down before it leaves, until it is irreversible, and
        in a task that audits or a round that reveals CIDs later, until it is decided: a process
        that was killed goes on with `resume`. One process at a time uses it. Without it uploads
        are looked after as long as the process lives.
    encryption : Encryption, optional
        What blinds updates in `PAILLIER` mode, and how many threads work; the default is safe.
    verdict_sec_min : int
        Take part only in rounds that leave the validators so many seconds for their verdicts. With
        less an owner can read an update, and be past the verdicts before anybody could judge it.

    Attributes
    ----------
    budget : Budget
        How many rounds of the task's privacy budget may be used; counted without one as well.
    outbox : Outbox or None

    Raises
    ------
    ConfigError
        An argument cannot be used. Nothing is contacted here.
    OutboxError
        Another process uses the outbox, or it cannot be written.
    """

    def __init__(
        self,
        account: str,
        *,
        key: PrivateKey | str | os.PathLike[str],
        task: str,
        chain: str | Sequence[str] | ChainClient,
        store: str | Store,
        contract: str = CONTRACT_DEFAULT,
        payer: str | Payer | None = None,
        budget_file: str | os.PathLike[str] | None = None,
        outbox: str | os.PathLike[str] | Outbox | None = None,
        encryption: Encryption | None = None,
        verdict_sec_min: int = VERDICT_SEC_MIN,
    ) -> None:
        self.account = check_account(account)
        self.task = check_account(task)
        self.key = key_of(key, self.account)
        self.chain = chain if isinstance(chain, ChainClient) else ChainClient(chain)
        self.store = store if isinstance(store, Store) else Store(store)
        self.contract = FedLearning(self.chain, contract)
        self.encryption = encryption or Encryption()
        self.verdict_sec_min = verdict_sec_min
        self.payer = Payer(payer) if isinstance(payer, str) else payer
        self._card: cards.TaskCard | None = None
        self._uploaded = 0  # newest round with an upload of ours, as far as seen
        holder = f"{self.account} in {self.task}"
        self.budget = Budget(budget_file, holder=holder)
        if outbox is None or isinstance(outbox, Outbox):
            self.outbox = outbox
        else:
            self.outbox = Outbox(outbox, holder=holder)
        self._box = self.outbox
        self._lock = threading.RLock()
        self._receipts: weakref.WeakValueDictionary[int, Receipt] = weakref.WeakValueDictionary()
        self._held: list[Receipt] = []  # of the uploads that are not over

    def __repr__(self) -> str:
        return f"Device({self.account!r}, task={self.task!r})"

    def close(self) -> None:
        """Let another process have the outbox; without one there is nothing to close."""
        if self.outbox is not None:
            self.outbox.close()

    # ---- encrypting -------------------------------------------------------------------------

    def make_masks(
        self, updates: int = 1, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Make masks ahead, until enough for `updates` updates are ready; it may be interrupted.

        Parameters
        ----------
        updates : int, 1 or more
            A mask takes some 30 ms at 3072 bits, and an update one for each ciphertext.
        progress : callable, optional
            `progress(ready, wanted)`, called at the start and after each batch.

        Raises
        ------
        ConfigError
            The device was made without `Encryption(masks=...)`, the folder cannot be used, or the
            task audits, which masks do not allow.
        ChainError, StoreError, EnvelopeError
            The task's key cannot be had.
        """
        from gradledger.paillier.masks import MaskStore

        if self.encryption.masks is None:
            raise ConfigError("make_masks: expected a device with Encryption(masks=FOLDER)")
        task = self.contract.task(self.task)
        self._check_audits(task)
        key = self.card(task).public_key()
        count = updates * cards.task_codec(task).plaintexts(key.bits)
        store = MaskStore(self.encryption.masks, key)
        store.fill(count, workers=self.encryption.threads, progress=progress)

    # ---- joining ----------------------------------------------------------------------------

    def terms(self) -> Terms:
        """Return what `join` agrees to; print it before you do.

        Raises
        ------
        BadFieldError
            There is no such task.
        EnvelopeError
            The task card is not the one that the task's hash names.
        PrivacyError
            The card's claim about privacy is not what its noise gives, or the codec cuts the noise.
        ConfigError
            The task has differential privacy, and the library that computes it is not installed.
        ChainError, StoreError
            Node or store do not answer.
        """
        task = self.contract.task(self.task)
        card = self.card(task)
        privacy = card.privacy
        row = self.contract.round(self.task, task.version) if task.version else None
        members = self.contract.members(self.task)
        terms = task.terms
        return Terms(
            task=task.id,
            owner=task.owner,
            description=card.description,
            classes=card.classes,
            mode=terms.mode,
            validators=tuple(m.account for m in members if m.role is Role.VALIDATOR and m.joined),
            producers_only=terms.validators_kind is ValidatorsKind.PRODUCERS,
            silence=terms.silence,
            cost_max=terms.cost_max,
            parameters=terms.parameters,
            symbol=terms.token_symbol,
            price=Asset(row.price, terms.token_symbol) if row else None,
            rule=row.rule if row else None,
            tau_e6=row.tau if row else None,
            sum_min=terms.sum_min,
            privacy=privacy,
            epsilon=privacy.epsilon() if privacy else None,
            delta=privacy.delta if privacy else None,
            epsilon_round=privacy.epsilon(1) if privacy else None,
            epsilon_sum=(
                privacy.epsilon(devices=terms.sum_min)
                if privacy and terms.mode is Mode.PAILLIER and not privacy.update_error
                else None
            ),
            lot_e6=terms.lot_e6,
            bar_rounds=terms.bar_rounds,
            audit_sec=row.audit_sec if row else 0,
            reveal_sec=row.reveal_sec if row else 0,
            points_per_class=card.validation.per_class if card.validation else None,
            target=card.target,
        )

    def join(
        self,
        classes: Iterable[int | str],
        *,
        epsilon_max: float | None = None,
        timeout_sec: float = 60.0,
    ) -> None:
        """Agree to the terms and say which classes this device has; repeat it to change them.

        Returns when it cannot be undone any more; at once if the chain says the same already.

        Parameters
        ----------
        classes : iterable of int or str
            Numbers or names of classes, at least one; of a regression those of strata, such as
            `terms().target.strata_of(y)`.
        epsilon_max : float, optional
            Join only if the task has differential privacy with at most this `Terms.epsilon`.
        timeout_sec : float
            Bound on the wait for irreversibility.

        Raises
        ------
        NotAllowedError
            The owner has not admitted this account as a device.
        ConfigError
            A class is unknown; or the task audits, and this device's `encryption` has masks or is
            strict.
        PrivacyError
            The task protects less than `epsilon_max` asks for, or its claim is wrong.
        ChainError, StoreError, EnvelopeError, ConfigError
            As for `terms`.
        """
        task = self.contract.task(self.task)
        card = self.card(task)
        self._check_audits(task)
        if epsilon_max is not None:
            _check_bound(card.privacy, epsilon_max)
        bits = self._class_bits(classes, card)
        member = self._member()
        public = envelope.public_key_of(self.key.encryption_key())
        if member.joined and (member.enc_key, member.classes) == (public, bits):
            return
        action = self.contract.join(self.task, self.account, public, bits)
        self.chain.wait_irreversible(self.push(action), timeout_sec=timeout_sec)

    def _class_bits(self, classes: Iterable[int | str], card: cards.TaskCard) -> int:
        names, bits = card.classes, 0
        one_of, all_of = ("class", "classes") if card.target is None else ("stratum", "strata")
        for one in classes:
            place = names.index(one) if one in names else one
            if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(names):
                known = ", ".join(names)
                raise ConfigError(
                    f"{all_of} of task {self.task}: {known} expected, got {one!r:.40}"
                )
            bits |= 1 << place
        if not bits:
            raise ConfigError(f"join: at least one {one_of} expected")
        return bits

    # ---- rounds -----------------------------------------------------------------------------

    def round(self, *, wait_sec: float = 60.0, after: int = 0) -> Round:
        """Wait for a round that this device can take part in; fetch and check what it needs.

        That is an open round without an upload of this device, with a model sealed to it, a
        validation set issued to it and time for verdicts (`verdict_sec_min`), and in a task that
        audits with the lots of a quorum. What is due for earlier uploads is done meanwhile, as by
        `attend`.

        Parameters
        ----------
        wait_sec : float
        after : int
            Only a later version than this.

        Returns
        -------
        Round
            To be used with `with`.

        Raises
        ------
        RoundClosedError
            Code `no_round`: none came within `wait_sec`; the message says what was missing.
        NotAllowedError
            This account is not admitted, or has not joined; or it failed an audit and is barred:
            the message says until which round.
        ConfigError
            As for `join`.
        EnvelopeError, ModelError
            The model or the validation set is not what the chain names.
        ValidationSetError
            The task commits to its validation points, and the set that the owner issued is not the
            one that the block which opened the round draws.
        PrivacyError
            This device may have taken part in as many rounds as the task's privacy budget is for,
            or what the model's file says about the budget is wrong.
        ChainError, StoreError
            Node or store did not answer up to the end, or nonsense.
        """
        end = time.monotonic() + wait_sec
        missing = "no round is open yet"
        looked_at = 0
        while True:
            late: Exception | None = None
            try:
                outgoing = self._outgoing(end)
                task = self.contract.task(self.task)
                if task.version > max(after, self._uploaded, outgoing):
                    looked_at = task.version
                    row = self._open_round(task)
                    if isinstance(row, RoundRow):
                        return self._fetch_round(task, row)
                    missing = row
                elif task.version > looked_at:
                    missing = f"round {task.version} is the newest; a later one is wanted"
            except _NotForUsError as error:
                missing, after = str(error), looked_at
            except (NodeUnavailableError, BlobMissingError, StoreUnavailableError) as error:
                late = error
            if time.monotonic() >= end:
                if late is not None:
                    raise late
                raise RoundClosedError(
                    "no_round",
                    f"nothing to do for {self.account} in task {self.task} within {wait_sec:g} s: "
                    + missing,
                )
            time.sleep(min(POLL_SEC, max(0.0, end - time.monotonic())))

    # ---- uploads on their way -------------------------------------------------------------------

    def resume(self, *, timeout_sec: float = 60.0) -> list[Receipt | Abandoned]:
        """Finish what is due for the uploads that are not over; nothing is trained again.

        An upload is over once it is recorded irreversibly; in a task that audits, or a round that
        reveals CIDs later, once it is decided. For what is not due yet, wait on the receipts that
        come back, or call `attend` or `round` in time.

        Parameters
        ----------
        timeout_sec : float
            Bound on the whole.

        Returns
        -------
        list of Receipt or Abandoned
            For each, the oldest first: a receipt, if it is recorded irreversibly; or why it never
            will be. Empty if there was nothing to finish.

        Raises
        ------
        IrreversibilityTimeout
            Not known within `timeout_sec`; call it again.
        OutboxError
            The outbox cannot be written.
        """
        end = time.monotonic() + timeout_sec
        return [receipt.rest(max(0.0, end - time.monotonic())) for receipt in self._outstanding()]

    def attend(self, *, timeout_sec: float = 10.0) -> list[Receipt | Abandoned]:
        """Do what is due now for the uploads that are not over, without waiting for any of it.

        For apps that cannot wait on a receipt: called now and then, it sends what was lost, reveals
        CIDs and answers audits. A round's phases must not be shorter than the time between calls.

        Parameters
        ----------
        timeout_sec : float
            Bound on reading blocks; what is not read is left to the next call.

        Returns
        -------
        list of Receipt or Abandoned
            For each that was not over at the call; `Receipt.outcome` is set once it is known.

        Raises
        ------
        NodeError, StoreError
            Node, payer or IPFS do not answer, and something may have been left undone; the others
            were attended to all the same.
        OutboxError
            The outbox cannot be written.
        """
        end = time.monotonic() + timeout_sec
        found: list[Receipt | Abandoned] = []
        fault: Exception | None = None
        for receipt in self._outstanding():
            try:
                receipt.look(end, follow=True)
                found.append(receipt)
            except ContractError:
                found.append(Abandoned.of(receipt.entry))
            except (NodeError, StoreError) as error:
                fault = error
        if fault is not None:
            raise fault
        return found

    def _outgoing(self, end: float) -> int:
        """Do what is due; return the newest round with an upload that may be recorded."""
        newest = 0
        for receipt in self._outstanding():
            try:
                receipt.look(end, follow=False)
            except (ChainError, StoreError):
                pass  # the next look tries again
            now = receipt.entry
            if now.state is State.DONE or (now.state is State.PENDING and not now.refusal):
                newest = max(newest, receipt.version)
        return newest

    def _outstanding(self) -> list[Receipt]:
        """Return the receipts of the uploads that are not over, the oldest first."""
        if self._box is None:
            return []
        entries = {
            entry.number: entry
            for entry in (*self._box.entries(State.PENDING), *self._box.keeping())
            if "hash" in entry.details  # not a step of an upload
        }
        if self.outbox is None:
            # Without a file whoever uploads is told of a refusal, and may try again.
            for entry in list(entries.values()):
                if entry.state is State.PENDING and entry.refusal:
                    self._give_up(entries.pop(entry.number))
        self._held = [self.receipt(entries[number]) for number in sorted(entries)]
        return self._held

    def _give_up(self, entry: Entry) -> None:
        """Abandon a refused upload once it can never be recorded, so that refusals do not pile up.

        Until then another node may have it in a block.
        """
        try:
            self.receipt(entry).give_up()
        except ChainError:
            pass  # the next look tries again

    @property
    def box(self) -> Outbox:
        """The outbox; without a file one in memory, made when it is first needed."""
        with self._lock:
            if self._box is None:
                self._box = Outbox(None, holder=f"{self.account} in {self.task}")
            return self._box

    def receipt(self, entry: Entry) -> Receipt:
        """Return the receipt of an upload in the outbox; the same one as long as it is in use."""
        with self._lock:
            found = self._receipts.get(entry.number)
            if found is None:
                found = self._receipts[entry.number] = Receipt(self, entry)
            return found

    def delivery(self, entry: Entry) -> Delivery:
        """Put an entry of the outbox, an upload or a step of one, on its way."""
        return Delivery(
            self.box,
            entry,
            self.chain,
            sign=self._sign,
            cosign=None if self.payer is None else self._cosign,
            prepare=lambda: self._put(entry),
            happened=lambda: self._has_happened(entry),
            hindered=lambda: self._missing(entry),
        )

    def _put(self, entry: Entry) -> None:
        """Put on IPFS what an entry's CID names, if it names one."""
        data = self.box.blob(entry)
        if entry.details.get("step") == ENVELOPE:
            data = self.box.kept(self.box.entry(entry.details["of"]), ENVELOPE)
        if data:
            self.store.put(data)

    def _missing(self, entry: Entry) -> str:
        """Say that an upload's validation set is not on chain (any more), or return "".

        Nodes that were killed forget what was not irreversible. An upload without its set would be
        recorded, and refused by the validators; the owner issues the set again as long as there is
        no upload.
        """
        if "hash" not in entry.details:
            return ""  # a step of an upload that is recorded
        row, version = self.contract.member(self.task, self.account), entry.details["version"]
        if row is None or row.upload_version >= version or row.set_version >= version:
            return ""
        return (
            f"no_set: expected a validation set for round {version} on chain, {self.account} has "
            f"that of round {row.set_version}: the owner issues it again"
        )

    def _has_happened(self, entry: Entry) -> bool:
        row, details = self.contract.member(self.task, self.account), entry.details
        if row is None or row.upload_version != details["version"]:
            return False
        if "hash" in details:
            return bool(row.upload_hash.hex() == details["hash"])
        return bool(details["cid"] in (row.upload_cid, row.opening_cid))

    def readers(self, row: RoundRow) -> dict[str, bytes]:
        """Return the X25519 keys of a round's validators. Raises EnvelopeError if there is none."""
        readers: dict[str, bytes] = {}
        for account in row.validators:
            member = self.contract.member(self.task, account)
            if member is not None and member.joined and envelope.can_seal_to(member.enc_key):
                readers[account] = member.enc_key
        if not readers:
            raise EnvelopeError(f"no validator of round {row.version} can be sealed to")
        return readers

    def _sign(self, actions: Sequence[Action]) -> Signed:
        if self.payer is None:
            return self.chain.sign(actions, [self.key], expiration_sec=UPLOAD_SEC)
        (action,) = actions
        info = self.chain.get_confirmed()
        return self.payer.sign(info, action, self.key, expiration_sec=UPLOAD_SEC)

    def _cosign(self, signed: Signed) -> Signed:
        assert self.payer is not None
        return self.payer.cosign(signed, self.chain.get_info().chain_id)

    # ---- what a round has -----------------------------------------------------------------------

    def _open_round(self, task: Task) -> RoundRow | str:
        """Return the newest round if this device can take part in it, or what is missing."""
        member = self._member()
        if not member.joined:
            raise NotAllowedError("not_joined", f"{self.account} must join task {self.task} first")
        if member.barred_until >= task.version:
            raise NotAllowedError(
                "barred",
                f"{self.account} failed an audit in task {task.id} (its last upload: "
                f"{member.upload_reason.name.lower()}) and may upload again after round "
                f"{member.barred_until}; this is round {task.version}",
            )
        self._check_audits(task)
        self._uploaded = max(self._uploaded, member.upload_version)
        self.budget.observe(member.upload_version)
        privacy = self.card(task).privacy
        if privacy is not None:
            self.budget.check(privacy)
        row = self.contract.round(self.task, task.version)
        if row is None or member.upload_version >= task.version:
            return f"round {task.version} has an upload of this device"
        if privacy is not None and self.budget.newest >= task.version:
            return f"round {task.version} has an update with noise already, which may be uploaded"
        if row.state is not RoundState.OPEN or self.chain.get_info().head_time >= row.deadline:
            return f"round {task.version} takes no uploads any more"
        if row.verdict_sec < self.verdict_sec_min:
            return (
                f"round {task.version} leaves {row.verdict_sec} s for verdicts; verdict_sec_min: "
                f"{self.verdict_sec_min} s or more expected"
            )
        lots, needed = sum(any(lot.commitment) for lot in row.lots), _quorum(row)
        if task.terms.lot_e6 and lots < needed:
            return f"round {task.version} waits for lots: {needed} expected, {lots} are there"
        if member.set_version != task.version:
            return f"round {task.version} is open; the owner has issued no validation set for it"
        if self.card(task).validation is not None and self._opening_id(row) is None:
            return f"the block that opened round {task.version} can still be undone"
        return row

    def _opening_id(self, row: RoundRow) -> str | None:
        return opening_id(self.contract, self.task, row)

    def _fetch_round(self, task: Task, row: RoundRow) -> Round:
        member = self._member()
        model = self._model(task, row)
        points = self._validation_set(task, row, member)
        return Round(self, task, self.card(task), row, model, points)

    def _model(self, task: Task, row: RoundRow) -> Model:
        from gradledger.models import Model, read_metadata

        most = 4 * task.terms.parameters + FILE_OVERHEAD_BYTES
        kind = envelope.Kind.MODEL
        try:
            payload = self._open(task, row.model_cid, row.model_hash, kind, row.version, most)
        except NotAReaderError as error:
            raise _NotForUsError(
                f"the model of round {row.version} is not sealed to {self.account}, which joined "
                "after it was published"
            ) from error
        card = self.card(task)
        model = Model.from_bytes(payload, architecture=card.architecture, target=card.target)
        if model.parameters != task.terms.parameters:
            raise ModelError(
                f"a model of {task.terms.parameters} parameters expected, got {model.parameters}"
            )
        _check_spent(card.privacy, row.version, read_metadata(payload))
        return model

    def _validation_set(
        self, task: Task, row: RoundRow, member: Member
    ) -> tuple[FloatArray, IntArray]:
        kind, version = envelope.Kind.VALIDATION_SET, member.set_version
        payload = self._open(task, member.set_cid, member.set_hash, kind, version, SET_BYTES_MAX)
        commitment, draw = self.card(task).validation, None
        if commitment is not None:
            block_id = self._opening_id(row)
            if block_id is None:  # `_open_round` saw it irreversible: another node answered now
                raise NodeUnavailableError(f"the block that opened round {version} is not known")
            draw = Draw(commitment, block_id, task.id, version, self.account, member.classes)
        return read_issued_set(payload, draw, self.card(task).target)

    def _open(
        self, task: Task, cid: str, digest: bytes, kind: envelope.Kind, version: int, most: int
    ) -> bytes:
        """Fetch an envelope of the owner's, check it against the chain, return its payload."""
        overhead = envelope.HEADER_BYTES + envelope.READERS_MAX * envelope.READER_BYTES
        blob = self.store.get(cid, bytes_max=most + overhead + envelope.TAG_BYTES)
        what = f"{kind.name.lower()} of round {version}"
        if hashlib.sha256(blob).digest() != digest:
            raise EnvelopeError(f"{what}: the hash is not that on chain")
        found = envelope.parse(blob)
        header = found.header
        expected = (kind, task.id, task.owner, version)
        got = (header.kind, header.task, header.sender, header.version)
        if got != expected:
            raise EnvelopeError(f"{what}: a header with {expected} expected, got {got}")
        return found.open(self.account, self.key.encryption_key())

    def push(self, action: Action) -> PushResult:
        """Sign and send an action of this device's; the payer pays for it, where there is one.

        Raises
        ------
        PayerRefusedError, PayerUnavailableError
            The payer pays for no such transaction now, or does not answer.
        ChainError
            As for `ChainClient.push`.
        """
        if self.payer is None:
            return self.chain.push([action], [self.key])
        return self.payer.push(self.chain, action, self.key)

    # ---- what the rounds need ---------------------------------------------------------------

    def card(self, task: Task) -> cards.TaskCard:
        """Return the task's card, fetched once and checked against the task's terms."""
        if self._card is None:
            card = cards.fetch_card(self.store, task)
            hashed = card.public_key().key_hash if task.terms.mode is Mode.PAILLIER else bytes(32)
            if hashed != task.terms.key_hash:
                raise KeyMismatchError(
                    f"task {task.id}: the card's Paillier key is not that of the task's terms"
                )
            if card.privacy is not None:
                card.privacy.check_claim()
                card.privacy.check_codec(task.terms.clip_e6)
            self._card = card
        return self._card

    def _check_audits(self, task: Task) -> None:
        if task.terms.lot_e6:
            self.encryption.check_audits()

    def _member(self) -> Member:
        member = self.contract.member(self.task, self.account)
        if member is None:
            raise NotAllowedError(
                "not_a_member",
                f"{self.account} is no member of task {self.task}: its owner must admit it",
            )
        if member.role is not Role.DEVICE:
            raise NotAllowedError("wrong_role", f"{self.account} is a validator of {self.task}")
        return member


def _quorum(row: RoundRow) -> int:
    return len(row.validators) * 2 // 3 + 1


class _NotForUsError(Exception):
    """The round cannot be taken part in, but a later one may."""


def _check_bound(privacy: Privacy | None, epsilon_max: float) -> None:
    if privacy is None:
        raise PrivacyError(
            f"epsilon of at most {epsilon_max:g} expected; the task has no differential privacy"
        )
    if not privacy.epsilon() <= epsilon_max:
        raise PrivacyError(
            f"epsilon of at most {epsilon_max:g} expected, the task has {privacy.epsilon():.6g} "
            f"(delta {privacy.delta:g}, {privacy.rounds} rounds)"
        )


def _check_spent(privacy: Privacy | None, version: int, metadata: Mapping[str, str]) -> None:
    """Compare what the model's file says was spent, this round included, with the card."""
    text = metadata.get(METADATA_KEY)
    if (text is None) != (privacy is None):
        there, wanted = ("none", "one") if text is None else ("one", "none")
        raise PrivacyError(
            f"model of round {version}: {wanted} expected about privacy in its metadata, "
            f"got {there}"
        )
    if text is not None and privacy is not None:
        privacy.check_spent(Spent.from_text(text), version)
