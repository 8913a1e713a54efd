"""A task's bookkeeping, done again: every upload, verdict and payment from the signed actions.

This follows the rules of ``eosio_contracts/fedlearning`` and shares no code with them. An action
that the rules would have refused, or that pays what they do not owe, stops the replay: it is the
first thing that is not explained.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gradledger.audit.blocks import RawAction
from gradledger.audit.reader import Step
from gradledger.chain.abi import Abi
from gradledger.chain.contract import (
    BALLOTS_PER_ROW,
    ERROR_SCALE,
    TOKEN_ABI,
    BallotStage,
    Member,
    Mode,
    Role,
    RoundState,
    Rule,
    Silence,
    UploadState,
    ValidatorsKind,
    VerdictCode,
)
from gradledger.chain.names import AMOUNT_MAX, Asset, Symbol, name_to_int
from gradledger.cid import cid_to_digest, digest_to_cid
from gradledger.csves import meets
from gradledger.errors import ConfigError, GradledgerError
from gradledger.lots import is_drawn, lot_commitment
from gradledger.merkle import leaf_record, merkle_root

VALIDATORS_MAX = 32
ADMIT_MAX = 100
ATTEST_MAX = 500
VERDICT_LAST = VerdictCode.UNREVEALED
_NO_HASH = bytes(32)


class UnexplainedError(GradledgerError):
    """The blocks have something that the contract's rules do not explain."""


@dataclass(frozen=True)
class Payment:
    """One payment, and where it was made."""

    version: int
    device: str
    amount: int
    reason: VerdictCode
    trx: str
    block: int


@dataclass
class Upload:
    """A device's upload in a round, and its ballot."""

    version: int
    slot: int
    hash: bytes
    cid: bytes  # zero until it is revealed
    cost: int
    errors: tuple[int, ...]
    state: UploadState = UploadState.PENDING
    reason: VerdictCode = VerdictCode.NONE
    verdicts: dict[str, int] = field(default_factory=dict)  # of the audit, once it is drawn
    earlier: dict[str, int] = field(default_factory=dict)  # those before the audit
    opening: bytes = _NO_HASH

    @property
    def series_hash(self) -> bytes:
        """SHA-256 of the errors, four bytes each, little endian."""
        packed = b"".join(error.to_bytes(4, "little") for error in self.errors)
        return hashlib.sha256(packed).digest()

    @property
    def stage(self) -> BallotStage:
        """What the validators may say about it."""
        is_opened = any(self.opening)
        if self.state is UploadState.PENDING:
            return BallotStage.OPEN if any(self.cid) else BallotStage.HIDDEN
        if self.state is UploadState.DRAWN:
            return BallotStage.OPENED if is_opened else BallotStage.DRAWN
        if self.reason is VerdictCode.UNANSWERED:
            return BallotStage.DRAWN
        return BallotStage.AUDITED if is_opened else BallotStage.DECIDED


@dataclass
class MemberBook:
    """A member, as the replay has it."""

    role: Role
    joined: bool = False
    enc_key: bytes = _NO_HASH
    classes: int = 0
    set_version: int = 0
    set_cid: bytes = _NO_HASH
    set_hash: bytes = _NO_HASH
    upload: Upload | None = None
    barred_until: int = 0


@dataclass
class RoundBook:
    """A round, as the replay has it; money in smallest units, times in seconds since 1970."""

    version: int
    terms: Mapping[str, Any]
    model_cid: bytes
    deadline: int
    opened_block: int
    opened_id: str  # of that block
    validators: tuple[str, ...]
    state: RoundState = RoundState.OPEN
    reveal_deadline: int = 0
    verdict_deadline: int = 0
    audit_deadline: int = 0
    sum_deadline: int = 0
    uploads: int = 0
    pending: int = 0
    held: int = 0
    drawn: int = 0
    accepted: int = 0
    refused: int = 0
    silent: int = 0  # of those paid or refused: for want of verdicts
    audited: int = 0  # drawn so far
    caught: int = 0  # of those drawn: refused and barred
    reserved: int = 0
    paid: int = 0
    lots: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    sums: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    sum_hash: bytes = _NO_HASH
    sum_cid: bytes = _NO_HASH
    records: list[bytes] = field(default_factory=list, repr=False)
    settled: int = 0
    root: bytes = _NO_HASH
    cursor: str = ""

    @property
    def quorum(self) -> int:
        """Verdicts that decide."""
        return len(self.validators) * 2 // 3 + 1

    @property
    def is_drawn_up(self) -> bool:
        """Whether every lot that was committed to is revealed."""
        return all(any(value) for _, value in self.lots.values())

    def decided_by(self, verdicts: Mapping[str, int]) -> VerdictCode:
        """Return what verdicts come to: the reason of a decision, or NONE."""
        codes = list(verdicts.values())
        refusals = [code for code in codes if code != VerdictCode.ACCEPT]
        if len(codes) - len(refusals) >= self.quorum:
            return VerdictCode.ACCEPT
        if len(refusals) < self.quorum:
            return VerdictCode.NONE
        return VerdictCode(min(set(refusals), key=lambda code: (-refusals.count(code), code)))


class TaskReplay:
    """One task's books.

    Parameters
    ----------
    task, contract : str
    abi : Abi
        Of the contract.
    schedules : mapping of int to tuple of str
        Producers by version of their schedule, as far as it is known.
    keep_uploads : callable, optional
        Is given (version, device, upload) of each upload that was accepted by the validators.
    keep_records : callable, optional
        Is given each settled round with its records, before they are dropped.
    """

    def __init__(
        self,
        task: str,
        contract: str,
        abi: Abi,
        *,
        schedules: Mapping[int, tuple[str, ...]],
        keep_uploads: Callable[[int, str, Upload], None] | None = None,
        keep_records: Callable[[RoundBook], None] | None = None,
    ) -> None:
        self.task = task
        self.contract = contract
        self.schedules = dict(schedules)
        self.owner = ""
        self.terms: dict[str, Any] = {}
        self.version = 0
        self.deposited = self.paid = self.withdrawn = 0
        self.members: dict[str, MemberBook] = {}
        self.rounds: dict[int, RoundBook] = {}
        # By slot, in whole rows: those of the newest round, then what earlier rounds left; None
        # where no upload ever was.
        self.ballots: list[tuple[str, Upload] | None] = []
        self.payments = self.uploads = self.verdicts = self.transactions = 0
        self.first_block = 0
        self._abi = abi
        self._keep_uploads = keep_uploads or (lambda version, device, upload: None)
        self._keep_records = keep_records or (lambda book: None)
        self._order: list[tuple[int, str]] = []  # the members' names, ascending by value
        self._hashes: dict[bytes, str] = {}  # of every device's newest upload
        self._expected: list[tuple[str, str, bytes]] = []  # what the contract must have sent
        self._paid: list[Payment] = []
        self._step: Step | None = None
        self._acting = ""  # the action of the step that is looked at

    # ---- one transaction --------------------------------------------------------------------

    def apply(self, step: Step) -> list[Payment]:
        """Enter a transaction; return the payments that it made.

        Raises
        ------
        UnexplainedError
            The rules do not explain it. The books are of no use afterwards.
        """
        self._step, self._expected, self._paid = step, [], []
        if not step.inputs and not step.effects:
            return []
        self.transactions += 1
        for one in step.inputs:
            self._acting = one.name
            if (one.account, one.name) == (self.terms.get("token_contract", ""), "transfer"):
                self._transfer(one)
            elif one.account == self.contract:
                self._act(one)
            else:
                self._fail("a transfer before the task was made")
        self._acting = ""
        if step.effects is not None:
            self._compare_effects(step.effects)
        self.payments += len(self._paid)
        return self._paid

    def _act(self, one: RawAction) -> None:
        kind = self._abi.actions.get(one.name)
        entry = _ACTIONS.get(one.name)
        if kind is None or entry is None:
            self._fail(f"{one.name}: an action that nobody may sign")
        try:
            data = self._abi.unpack(kind, one.data)
        except ConfigError as error:
            self._fail(f"{one.name}: its arguments cannot be read: {error}")
        if not self.owner and one.name != "createtask":
            self._fail(f"{one.name} of a task that was not made yet")
        self._actors = {actor for actor, _ in one.authorization}
        try:
            entry(self, data)
        except ValueError as error:
            self._fail(f"{one.name}: {error}")

    def _compare_effects(self, effects: Iterable[RawAction]) -> None:
        """Compare what the contract sent, as traced, with what the books say it owed."""
        found = [(one.account, one.name, one.data) for one in effects]
        for expected, got in zip(self._expected, found, strict=False):
            if expected != got:
                self._fail(f"the trace shows {self._words(got)}, expected {self._words(expected)}")
        if len(found) > len(self._expected):
            self._fail(f"the trace shows {self._words(found[len(self._expected)])}, owed to nobody")
        if len(found) < len(self._expected):
            self._fail(f"the trace lacks {self._words(self._expected[len(found)])}")

    def _words(self, sent: tuple[str, str, bytes]) -> str:
        account, name, data = sent
        try:
            if name == "transfer":
                return f"transfer of {_transfer(data)['quantity']} to {_transfer(data)['to']}"
            document = self._abi.unpack(self._abi.actions[name], data)
            if name == "payment":
                return f"payment of {document['quantity']} to {document['device']}"
            return f"{name} of {document['device']}"
        except (ConfigError, KeyError):
            return f"{account}::{name} with {data[:16].hex()}..."

    # ---- money ------------------------------------------------------------------------------

    @property
    def symbol(self) -> Symbol:
        """Of the task's token."""
        return Symbol.parse(self.terms["token_symbol"])

    def money(self, amount: int) -> str:
        """Return an amount as text."""
        return str(Asset(amount, self.symbol))

    @property
    def live(self) -> RoundBook | None:
        """The round that is not settled yet, or None."""
        book = self.rounds.get(self.version)
        return book if book is not None and book.state is not RoundState.SETTLED else None

    @property
    def reserved(self) -> int:
        """For uploads that are not decided."""
        return self.live.reserved if self.live else 0

    @property
    def paid_so_far(self) -> int:
        """By all rounds, the unsettled one included."""
        return self.paid + (self.live.paid if self.live else 0)

    @property
    def free(self) -> int:
        """What is neither paid, nor withdrawn, nor reserved."""
        return self.deposited - self.paid_so_far - self.withdrawn - self.reserved

    def _transfer(self, one: RawAction) -> None:
        try:
            data = _transfer(one.data)
            quantity = Asset.parse(data["quantity"])
        except ConfigError as error:
            self._fail(f"a transfer that cannot be read: {error}")
        if data["from"] == self.contract:
            self._fail(
                f"a signed transfer took {data['quantity']} out of the contract's account, to "
                f"{data['to']}: no action of the contract did that"
            )
        self._check(quantity.symbol == self.symbol, "a deposit in another token")
        self._check(quantity.amount > 0, "a deposit that is not positive")
        self.deposited += quantity.amount

    def _decide(self, book: RoundBook, device: str, reason: VerdictCode, *, pays: bool) -> None:
        member, upload = self._member(device), self._upload(device)
        amount = upload.cost * int(book.terms["price"])
        book.reserved -= amount
        is_audit = upload.state is UploadState.DRAWN
        if is_audit:
            book.drawn -= 1
        elif upload.state is UploadState.ACCEPTED:
            book.held -= 1
        else:
            book.pending -= 1
        upload.reason = reason
        upload.state = UploadState.PAID if pays else UploadState.REFUSED
        is_silent = reason in (VerdictCode.SILENCE, VerdictCode.UNDELIVERED)
        book.silent += is_silent
        if not pays:
            book.refused += 1
            if is_audit and not is_silent:
                book.caught += 1
                member.barred_until = book.version + self.terms["bar_rounds"]
            return
        if reason is VerdictCode.ACCEPT:
            book.accepted += 1
            self._keep_uploads(book.version, device, upload)
        book.paid += amount
        assert self._step is not None
        self._paid.append(
            Payment(book.version, device, amount, reason, self._step.trx, self._step.block)
        )
        quantity = Asset(amount, self.symbol)
        data = {"task": self.task, "version": book.version, "device": device, "quantity": quantity}
        self._expect(self.contract, "payment", self._abi.pack_action("payment", data))
        self._expect_transfer(device, quantity, f"paid by {self.task}")

    def _expect(self, account: str, name: str, data: bytes) -> None:
        self._expected.append((account, name, data))

    def _expect_transfer(self, to: str, quantity: Asset, memo: str) -> None:
        data = {"from": self.contract, "to": to, "quantity": quantity, "memo": memo}
        self._expect(
            self.terms["token_contract"], "transfer", TOKEN_ABI.pack_action("transfer", data)
        )

    def _withdraw(self, data: Mapping[str, Any]) -> None:
        self._needs(self.owner)
        quantity = Asset.parse(data["quantity"])
        self._check(quantity.symbol == self.symbol, "another token")
        self._check(quantity.amount > 0, "an amount that is not positive")
        available, live = self.free, self.live
        if live is not None and live.state is RoundState.OPEN:
            unused = int(live.terms["budget"]) - live.paid - live.reserved
            available = max(0, available - max(0, unused))
        self._check(
            quantity.amount <= available,
            f"withdraw: {quantity} were taken, {self.money(available)} were free",
        )
        self.withdrawn += quantity.amount
        self._expect_transfer(self.owner, quantity, f"withdrawn from {self.task}")

    # ---- tasks and members ------------------------------------------------------------------

    def _createtask(self, data: Mapping[str, Any]) -> None:
        self._check(not self.owner, "the task was made a second time")
        self._needs(data["owner"])
        assert self._step is not None
        self.owner, self.terms = data["owner"], data["terms"]
        self.first_block = self._step.block

    def _admit(self, data: Mapping[str, Any]) -> None:
        self._needs(self.owner)
        self._check(1 <= len(data["accounts"]) <= ADMIT_MAX, "a wrong number of accounts")
        role = Role(data["role"])
        for account in data["accounts"]:
            self._check(account not in self.members, f"{account} was a member already")
            self._check(account not in (self.owner, self.contract), f"{account} may be no member")
            self.members[account] = MemberBook(role)
            bisect.insort(self._order, (name_to_int(account), account))
        limit = self.terms["devices_max"] if role is Role.DEVICE else VALIDATORS_MAX
        self._check(self.count(role) <= limit, f"more than {limit} members of one kind")
        self._fit_ballots()

    def _fit_ballots(self) -> None:
        """Keep as many rows of ballots as those of all devices need."""
        fitting = -(-self.count(Role.DEVICE) // BALLOTS_PER_ROW) * BALLOTS_PER_ROW
        del self.ballots[fitting:]
        self.ballots += [None] * (fitting - len(self.ballots))

    def count(self, role: Role) -> int:
        """Return how many members have a role."""
        return sum(member.role is role for member in self.members.values())

    def _remove(self, data: Mapping[str, Any]) -> None:
        account, live = data["account"], self.live
        self._check(account in self._actors or self.owner in self._actors, "by somebody else")
        member = self._member(account)
        if live is not None and member.role is Role.DEVICE and member.upload is not None:
            self._check(member.upload.version != live.version, "it has an upload in the round")
        if live is not None and member.role is Role.VALIDATOR:
            self._check(account not in live.validators, "it is a validator of the round")
        if member.upload is not None and self._hashes.get(member.upload.hash) == account:
            del self._hashes[member.upload.hash]
        del self.members[account]
        self._order.remove((name_to_int(account), account))
        self._fit_ballots()

    def _issueset(self, data: Mapping[str, Any]) -> None:
        self._needs(self.owner)
        member = self._member(data["device"])
        self._check(member.role is Role.DEVICE and member.joined, "it is no joined device")
        is_next = data["version"] == self.version + 1 and self.live is None
        live = self.live
        is_now = live is not None and live.state is RoundState.OPEN
        is_now = is_now and data["version"] == self.version
        self._check(is_next or is_now, "of a round that is neither open nor the next")
        used = member.upload is not None and member.upload.version == data["version"]
        self._check(not used, "after the device's upload")
        member.set_version = data["version"]
        member.set_cid = _cid(data["cid"])
        member.set_hash = _hash(data["hash"])

    def _join(self, data: Mapping[str, Any]) -> None:
        self._needs(data["account"])
        member = self._member(data["account"])
        self._check(not member.joined or self.live is None, "again, while a round is unsettled")
        enc_key = bytes.fromhex(data["enc_key"])
        self._check(any(enc_key), "without a key")
        mask = (1 << self.terms["classes"]) - 1
        if member.role is Role.DEVICE:
            self._check(0 < data["classes"] <= mask, "with classes that the task does not have")
        else:
            self._check(data["classes"] == 0, "a validator with classes")
        member.joined, member.enc_key, member.classes = True, enc_key, data["classes"]

    # ---- rounds -----------------------------------------------------------------------------

    def _openround(self, data: Mapping[str, Any]) -> None:
        self._needs(self.owner)
        terms = data["terms"]
        self._check(data["version"] == self.version + 1, f"version {data['version']}")
        self._check(self.live is None, "while the round before was not settled")
        self._check(1 <= terms["price"] <= AMOUNT_MAX, f"a price of {terms['price']}")
        self._check(0 <= terms["budget"] <= self.free, "a budget that was not free")
        Rule(terms["rule"])
        validators = self._choose_validators()
        self._check(bool(validators), "without a validator")
        has_lots = self.terms["lot_e6"] > 0
        self._check(has_lots == (terms["audit_sec"] > 0), f"audits of {terms['audit_sec']} s")
        self.version = data["version"]
        self.rounds[self.version] = RoundBook(
            self.version,
            terms,
            _cid(terms["model_cid"]),
            self._now + terms["open_sec"],
            self._block,
            self._block_id,
            validators,
        )

    def _choose_validators(self) -> tuple[str, ...]:
        joined = [
            name
            for _, name in self._order
            if self.members[name].role is Role.VALIDATOR and self.members[name].joined
        ]
        if self.terms["validators_kind"] == ValidatorsKind.NAMED:
            return tuple(joined)
        assert self._step is not None
        producers = self.schedules.get(self._step.schedule_version)
        if producers is None:
            self._fail(
                f"the round's validators are the producers of schedule "
                f"{self._step.schedule_version}, which no block read here announces"
            )
        self._check(any(name in producers for name in joined), "no producer had joined")
        return tuple(sorted(producers, key=name_to_int))

    def _closeround(self, data: Mapping[str, Any]) -> None:
        self._needs(data["caller"])
        book = self._round(data["version"], RoundState.OPEN)
        enough = 0 < book.terms["close_after"] <= book.uploads
        early = data["caller"] == self.owner and enough
        self._check(self._now >= book.deadline or early, "before the deadline")
        book.state = RoundState.VERIFYING
        reveal_sec = book.terms["reveal_sec"]
        book.reveal_deadline = self._now + reveal_sec if reveal_sec else 0
        book.verdict_deadline = self._now + reveal_sec + book.terms["verdict_sec"]
        self._advance(book)

    def _advance(self, book: RoundBook) -> None:
        """Go on to the next phase where this one has nothing left; past those not due."""
        left = {
            RoundState.VERIFYING: book.pending,
            RoundState.DRAWING: book.held,
            RoundState.AUDITING: book.drawn,
        }
        if left.get(book.state, 1):
            return
        book.cursor = ""
        if book.state is RoundState.VERIFYING and book.held:
            book.state = RoundState.DRAWING
            book.audit_deadline = self._now + book.terms["audit_sec"]
        elif book.state is RoundState.DRAWING and book.drawn:
            book.state = RoundState.AUDITING
            book.audit_deadline = self._now + book.terms["audit_sec"]
        else:
            is_packed = self.terms["mode"] == Mode.PAILLIER
            sum_due = is_packed and book.accepted >= self.terms["sum_min"]
            book.state = RoundState.SUMMING if sum_due else RoundState.SUMMED
            book.sum_deadline = self._now + book.terms["sum_sec"]

    def _fedlearning(self, data: Mapping[str, Any]) -> None:
        device = data["device"]
        self._needs(device)
        self._check(device != self.owner, "an upload of the task's owner")
        member = self._member(device)
        self._check(member.role is Role.DEVICE and member.joined, "by no joined device")
        self._expect(self.contract, "uploadgrad", self._abi.pack_action("uploadgrad", data))
        book = self._round(data["version"], RoundState.OPEN)
        self._check(self._now < book.deadline, "after the deadline")
        second = member.upload is not None and member.upload.version == book.version
        self._check(not second, f"a second upload of {device} in round {book.version}")
        barred = book.version <= member.barred_until
        self._check(not barred, f"{device} is barred up to round {member.barred_until}")
        has_lots = not self.terms["lot_e6"] or len(book.lots) >= book.quorum
        self._check(has_lots, f"before the lots of {book.quorum} validators")
        cost, price = data["cost"], int(book.terms["price"])
        self._check(1 <= cost <= self.terms["cost_max"], f"a data cost of {cost}")
        digest, errors = _hash(data["hash"]), data["errors"]
        self._check(digest not in self._hashes, "a hash that was used before")
        self._check(1 <= len(errors) <= self.terms["errors_max"], f"{len(errors)} errors")
        self._check(max(errors) <= ERROR_SCALE, "an error over 1")
        rule, held = Rule(book.terms["rule"]), member.classes.bit_count()
        self._check(meets(rule, errors, book.terms["tau"], held), "CSVES not met")
        amount = cost * price
        self._check(amount <= self.free, "more than what was free")
        is_told = not book.terms["reveal_sec"]
        self._check(is_told or not data["cid"], "its CID, which was to be revealed later")
        cid = _cid(data["cid"]) if is_told else _NO_HASH
        if member.upload is not None:
            self._hashes.pop(member.upload.hash, None)
        self._hashes[digest] = device
        member.upload = Upload(book.version, book.uploads, digest, cid, cost, tuple(errors))
        self.ballots[book.uploads] = (device, member.upload)
        book.uploads += 1
        book.pending += 1
        book.reserved += amount
        self.uploads += 1

    def _reveal(self, data: Mapping[str, Any]) -> None:
        book, upload = self._uploaded(data, RoundState.VERIFYING)
        self._check(self._now < book.reveal_deadline, "after the deadline")
        self._check(not any(upload.cid), "a second CID")
        upload.cid = _cid(data["cid"])

    def _openupload(self, data: Mapping[str, Any]) -> None:
        book, upload = self._uploaded(data, RoundState.AUDITING)
        self._check(upload.state is UploadState.DRAWN, "of an upload that is not under audit")
        self._check(self._now < book.audit_deadline, "after the deadline")
        self._check(not any(upload.opening), "a second opening")
        upload.opening = _cid(data["cid"])

    def _uploaded(self, data: Mapping[str, Any], state: RoundState) -> tuple[RoundBook, Upload]:
        """Return the newest round and a device's upload in it."""
        self._needs(data["device"])
        book = self._round(data["version"], state)
        upload = self._member(data["device"]).upload
        if upload is None or upload.version != book.version:
            self._fail(f"{data['device']} has no upload in round {book.version}")
        return book, upload

    def _commitlot(self, data: Mapping[str, Any]) -> None:
        validator, book = data["validator"], self._judged(data)
        self._check(self.terms["lot_e6"] > 0, "in a task without audits")
        self._check(book.state is RoundState.OPEN, "after the round was closed")
        self._check(not book.uploads, "after the first upload")
        self._check(validator not in book.lots, f"{validator} committed to a second lot")
        book.lots[validator] = (_hash(data["commitment"]), _NO_HASH)

    def _reveallot(self, data: Mapping[str, Any]) -> None:
        validator, book = data["validator"], self._judged(data)
        self._check(book.state is RoundState.DRAWING, "while nothing was drawn")
        commitment, before = book.lots.get(validator, (_NO_HASH, _NO_HASH))
        self._check(not any(before), f"{validator} revealed its lot twice")
        value = _hash(data["value"])
        expected = lot_commitment(self.task, book.version, validator, value)
        self._check(expected == commitment, f"not the lot that {validator} had committed to")
        book.lots[validator] = (commitment, value)

    def _attest(self, data: Mapping[str, Any]) -> None:
        self._judge(data, is_audit=False)

    def _attestaudit(self, data: Mapping[str, Any]) -> None:
        self._judge(data, is_audit=True)

    def _judge(self, data: Mapping[str, Any], *, is_audit: bool) -> None:
        validator, book = data["validator"], self._judged(data)
        self._check(1 <= len(data["verdicts"]) <= ATTEST_MAX, "a wrong number of verdicts")
        before = (book.pending, book.held, book.drawn)
        last = (
            book.audit_deadline + 2 * book.terms["audit_sec"]
            if is_audit
            else book.verdict_deadline + book.terms["verdict_sec"]
        )
        late = book.state is not RoundState.OPEN and self._now >= last
        unrevealed = book.state is RoundState.OPEN or self._now < book.reveal_deadline
        for said in data["verdicts"]:
            code = said["code"]
            self._check(1 <= code <= VERDICT_LAST, f"verdict {code}")
            device, upload = self._ballot(book, said["slot"], bytes.fromhex(said["hash"]))
            stage = upload.stage
            is_opened = stage >= BallotStage.OPENED
            self._check(is_opened or not is_audit, f"{device} had not opened its upload")
            if not is_audit and stage >= BallotStage.DRAWN:
                continue  # it came too late, and is none in the audit
            self._check(validator not in upload.verdicts, f"{validator} judged {device} twice")
            upload.verdicts[validator] = code
            self.verdicts += 1
            if stage in (BallotStage.DECIDED, BallotStage.AUDITED):
                continue
            is_hidden = stage is BallotStage.HIDDEN
            early = is_hidden and (unrevealed or code == VerdictCode.ACCEPT)
            self._check(not early, f"the CID of {device} was not revealed")
            self._check(not late, "after the last deadline")
            reason = book.decided_by(upload.verdicts)
            if reason is VerdictCode.ACCEPT and not is_audit and self.terms["lot_e6"]:
                upload.state = UploadState.ACCEPTED
                book.pending -= 1
                book.held += 1
            elif reason is not VerdictCode.NONE:
                self._decide(book, device, reason, pays=reason is VerdictCode.ACCEPT)
        if (book.pending, book.held, book.drawn) != before:
            self._advance(book)

    def _ballot(self, book: RoundBook, slot: int, digest: bytes) -> tuple[str, Upload]:
        """Return the device and the upload that a verdict names by slot and hash."""
        if slot >= book.uploads:
            self._fail(
                f"a verdict on slot {slot} of round {book.version}, which had {book.uploads} "
                "uploads then"
            )
        found = self.ballots[slot]
        assert found is not None
        device, upload = found
        self._check(
            upload.hash == digest,
            f"a verdict on slot {slot} of round {book.version} with the hash {digest.hex()}, "
            f"while {device} had uploaded {upload.hash.hex()} there",
        )
        return device, upload

    def _attestsum(self, data: Mapping[str, Any]) -> None:
        validator, book = data["validator"], self._judged(data)
        self._check(book.state is RoundState.SUMMING, "while no sum was due")
        digest, cid = bytes.fromhex(data["hash"]), _cid(data["cid"])
        self._check(any(digest), "without a hash")
        self._check(validator not in book.sums, f"{validator} attested the sum twice")
        book.sums[validator] = (digest, cid)
        if sum(other == digest for other, _ in book.sums.values()) >= book.quorum:
            book.state = RoundState.SUMMED
            book.sum_hash, book.sum_cid = digest, cid

    def _judged(self, data: Mapping[str, Any]) -> RoundBook:
        validator = data["validator"]
        self._needs(validator)
        member = self._member(validator)
        self._check(member.role is Role.VALIDATOR and member.joined, "by no joined validator")
        book = self._round(data["version"], None)
        self._check(validator in book.validators, f"{validator} does not judge this round")
        return book

    def _push(self, data: Mapping[str, Any]) -> None:
        book = self._round(data["version"], None)
        deadline, length = {
            RoundState.VERIFYING: (book.verdict_deadline, book.terms["verdict_sec"]),
            RoundState.DRAWING: (book.audit_deadline, book.terms["audit_sec"]),
            RoundState.AUDITING: (book.audit_deadline, book.terms["audit_sec"]),
            RoundState.SUMMING: (book.sum_deadline, 0),
        }.get(book.state, (0, 0))
        self._check(deadline > 0, f"while the round was {book.state.name.lower()}")
        is_ready = book.state is RoundState.DRAWING and book.is_drawn_up
        self._check(self._now >= deadline or is_ready, "before the deadline")
        if book.state is RoundState.SUMMING:
            book.state = RoundState.SUMMED
            return
        is_last = self._now >= deadline + length
        cursor, start = book.cursor, data.get("start", "")
        if start:
            book.cursor = start
        for account in self._visit(book, data["limit"]):
            upload = self.members[account].upload
            if upload is not None and upload.version == book.version:
                self._push_upload(book, account, upload, is_last=is_last)
        if start:
            book.cursor = cursor
        self._advance(book)

    def _push_upload(self, book: RoundBook, account: str, upload: Upload, *, is_last: bool) -> None:
        """Do what a push does with one upload of the round."""
        awaited = {
            RoundState.VERIFYING: UploadState.PENDING,
            RoundState.DRAWING: UploadState.ACCEPTED,
            RoundState.AUDITING: UploadState.DRAWN,
        }[book.state]
        if upload.state is not awaited:
            return
        if book.state is RoundState.AUDITING:
            if not any(upload.opening):
                self._decide(book, account, VerdictCode.UNANSWERED, pays=False)
                return
            if not is_last:
                return  # what was opened at the last moment has to be judged as well
            is_last = self._now >= book.audit_deadline + 2 * book.terms["audit_sec"]
        if not any(upload.cid):
            self._decide(book, account, VerdictCode.UNREVEALED, pays=False)
        elif is_last:
            self._decide(book, account, VerdictCode.UNDELIVERED, pays=False)
        elif book.state is not RoundState.DRAWING:
            pays = self.terms["silence"] == Silence.PAY
            self._decide(book, account, VerdictCode.SILENCE, pays=pays)
        elif self._is_drawn(book, upload):
            upload.earlier, upload.verdicts = upload.verdicts, {}
            upload.state = UploadState.DRAWN
            book.held -= 1
            book.drawn += 1
            book.audited += 1
        else:
            self._decide(book, account, VerdictCode.ACCEPT, pays=True)

    def _is_drawn(self, book: RoundBook, upload: Upload) -> bool:
        values = [value for _, value in book.lots.values() if any(value)]
        return any(is_drawn(value, upload.hash, self.terms["lot_e6"]) for value in values)

    def _settle(self, data: Mapping[str, Any]) -> None:
        self._needs(data["caller"])
        book = self._round(data["version"], RoundState.SUMMED)
        by_owner = data["caller"] == self.owner
        self._check(by_owner or self._now >= book.sum_deadline, "before the deadline")
        for account in self._visit(book, data["limit"]):
            upload = self.members[account].upload
            if upload is not None and upload.version == book.version:
                book.records.append(self.record(book, account, upload))
        book.settled = len(book.records)
        if book.cursor:
            return
        book.root = merkle_root(book.records)
        book.state = RoundState.SETTLED
        self.paid += book.paid
        self._keep_records(book)
        book.records, book.lots = [], {}

    def record(self, book: RoundBook, account: str, upload: Upload) -> bytes:
        """Return what the round's tree has of an upload."""
        return leaf_record(self.task, as_member(account, upload), int(book.terms["price"]))

    def _visit(self, book: RoundBook, limit: int) -> list[str]:
        """Return up to `limit` members from the cursor on, and move it."""
        self._check(limit >= 1, "a limit of 0")
        at = bisect.bisect_left(self._order, (name_to_int(book.cursor), ""))
        found = [name for _, name in self._order[at : at + limit]]
        rest = self._order[at + limit : at + limit + 1]
        book.cursor = rest[0][1] if rest else ""
        return found

    # ---- checks -----------------------------------------------------------------------------

    @property
    def _now(self) -> int:
        assert self._step is not None
        return self._step.time

    @property
    def _block(self) -> int:
        assert self._step is not None
        return self._step.block

    @property
    def _block_id(self) -> str:
        assert self._step is not None
        return self._step.block_id

    def _needs(self, account: str) -> None:
        self._check(account in self._actors, f"without the authority of {account}")

    def _member(self, account: str) -> MemberBook:
        if account not in self.members:
            self._fail(f"{account} was no member of the task")
        return self.members[account]

    def _upload(self, device: str) -> Upload:
        upload = self._member(device).upload
        assert upload is not None
        return upload

    def _round(self, version: int, state: RoundState | None) -> RoundBook:
        """Return the newest round, which must have this version and state."""
        book = self.rounds.get(self.version)
        if book is None or version != self.version:
            self._fail(f"for round {version}, while round {self.version} was the newest")
        if state is None:
            self._check(book.state is not RoundState.SETTLED, f"round {version} was settled")
        elif book.state is not state:
            self._fail(
                f"round {version} was {book.state.name.lower()}, expected {state.name.lower()}"
            )
        return book

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._fail(otherwise)

    def _fail(self, text: str) -> NoReturn:
        assert self._step is not None
        all_names = dict.fromkeys(one.name for one in self._step.inputs)
        names = self._acting or " and ".join(all_names) or "it"
        raise UnexplainedError(
            f"block {self._step.block}, transaction {self._step.trx} ({names}): {text}"
        )


def as_member(account: str, upload: Upload) -> Member:
    """Return a row of `members` that has this upload and nothing else."""
    return Member(
        account=account,
        role=Role.DEVICE,
        joined=True,
        enc_key=_NO_HASH,
        classes=0,
        set_version=0,
        set_cid="",
        set_hash=_NO_HASH,
        upload_version=upload.version,
        upload_slot=upload.slot,
        upload_hash=upload.hash,
        upload_cid=digest_to_cid(upload.cid) if any(upload.cid) else "",
        series_hash=upload.series_hash,
        upload_cost=upload.cost,
        error_first=upload.errors[0],
        error_before=upload.errors[-2:][0],
        error_last=upload.errors[-1],
        upload_state=upload.state,
        upload_reason=upload.reason,
        barred_until=0,
        opening_cid=digest_to_cid(upload.opening) if any(upload.opening) else "",
    )


def _cid(text: str) -> bytes:
    digest = cid_to_digest(text)
    if not any(digest):
        raise ConfigError("expected a CID, got one of zeros")
    return digest


def _hash(text: str) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != 32 or not any(raw):
        raise ConfigError(f"expected a SHA-256, got {len(raw)} bytes")
    return raw


def _transfer(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = TOKEN_ABI.unpack("transfer", data)
    return document


_ACTIONS: dict[str, Callable[[TaskReplay, Mapping[str, Any]], None]] = {
    "createtask": TaskReplay._createtask,
    "admit": TaskReplay._admit,
    "remove": TaskReplay._remove,
    "issueset": TaskReplay._issueset,
    "join": TaskReplay._join,
    "openround": TaskReplay._openround,
    "closeround": TaskReplay._closeround,
    "fedlearning": TaskReplay._fedlearning,
    "reveal": TaskReplay._reveal,
    "openupload": TaskReplay._openupload,
    "attest": TaskReplay._attest,
    "attestaudit": TaskReplay._attestaudit,
    "commitlot": TaskReplay._commitlot,
    "reveallot": TaskReplay._reveallot,
    "attestsum": TaskReplay._attestsum,
    "push": TaskReplay._push,
    "settle": TaskReplay._settle,
    "withdraw": TaskReplay._withdraw,
}
