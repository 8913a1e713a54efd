"""The contract in Python: what every action must do or refuse, and what it must cost.

`Model.act` takes the same names and arguments as the contract. It knows no chain: the caller says
what time it is. It is written from `fedlearning.hpp` and docs/protocol.md; rules and Merkle trees
are those of the package.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from contracts.world import (
    ACCEPT,
    ACCEPTED,
    AUDITING,
    DRAWING,
    DRAWN,
    OPEN,
    PAID,
    PENDING,
    REFUSED,
    SETTLED,
    SILENCE,
    SUMMED,
    SUMMING,
    UNANSWERED,
    UNDELIVERED,
    UNREVEALED,
    VERIFYING,
    ZERO,
    is_drawn,
    lot_commitment,
)

from gradledger import csves
from gradledger.chain.contract import BALLOTS_PER_ROW, ERROR_SCALE, BallotStage, Rule
from gradledger.chain.names import AMOUNT_MAX, Asset, Symbol, name_to_int
from gradledger.cid import cid_to_digest
from gradledger.errors import ConfigError
from gradledger.merkle import merkle_root

INT64_MAX = 2**63 - 1
DEVICE, VALIDATOR = 1, 2
PAILLIER = 0
NAMED = 0
SILENCE_PAYS = 1
VERDICT_LAST = 17
PHASE_SEC_MAX = 30 * 86400
NO_AUTHORITY = "missing_authority"
FOREIGN = ""  # a check of another contract, whose messages have no code

# RAM that nodeos bills: a row's bytes and what the database adds to it.
ROW_EXTRA = 112
INDEX_EXTRA = 128
TABLE_EXTRA = 112
TASK_ROW = 205
MEMBER_ROW = 276
PAGE_ROW = 4 + 1 + BALLOTS_PER_ROW * (8 + 32 + 1 + 32)
ROUND_ROW = 306 + 4  # with four empty vectors
ROUND_PER_VALIDATOR = 8 + 64
ROUND_PER_LOT = 64
ROUND_FRONTIER = 16 * 32


class Refused(Exception):
    """The action ends in a check; `code` is the first word of its message."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def refuse_if(condition: object, code: str) -> None:
    if condition:
        raise Refused(code)


@dataclass
class Member:
    """A row of `members`, as the ABI names its fields."""

    account: str
    role: int
    joined: int = 0
    enc_key: str = ZERO
    classes: int = 0
    set_version: int = 0
    set_cid: str = ZERO
    set_hash: str = ZERO
    upload_version: int = 0
    upload_slot: int = 0
    upload_hash: str = ZERO
    upload_cid: str = ZERO
    series_hash: str = ZERO
    upload_cost: int = 0
    error_first: int = 0
    error_before: int = 0
    error_last: int = 0
    upload_state: int = 0
    upload_reason: int = 0
    barred_until: int = 0
    opening_cid: str = ZERO

    @property
    def index_key(self) -> int:
        """Key of a device in the index `byhash`."""
        if self.upload_version == 0:
            return name_to_int(self.account)
        return int(self.upload_hash[:16], 16)


@dataclass
class Ballot:
    """What lies in one slot of `ballots`."""

    device: str = ""
    hash: str = ZERO
    stage: int = 0
    verdicts: str = ZERO

    def verdict(self, place: int) -> int:
        return bytes.fromhex(self.verdicts)[place]

    def judge(self, place: int, code: int) -> None:
        verdicts = bytearray.fromhex(self.verdicts)
        verdicts[place] = code
        self.verdicts = verdicts.hex()


@dataclass
class Round:
    """A row of `rounds`; times in seconds since 1970."""

    version: int
    state: int
    model_cid: str
    model_hash: str
    price: int
    budget: int
    deadline: int
    verdict_sec: int
    sum_sec: int
    reveal_sec: int
    audit_sec: int
    close_after: int
    rule: int
    tau: int
    eta_e6: int
    norm_max_e6: int
    training: dict[str, int]
    validators: list[str]
    verdict_deadline: int = 0
    sum_deadline: int = 0
    reveal_deadline: int = 0
    audit_deadline: int = 0
    opened_block: int = 0
    uploads: int = 0
    pending: int = 0
    accepted: int = 0
    refused: int = 0
    held: int = 0
    drawn: int = 0
    reserved: int = 0
    paid: int = 0
    sum_hash: str = ZERO
    sum_cid: str = ZERO
    root: str = ZERO
    settled: int = 0
    cursor: str = ""
    sums: list[dict[str, str]] = field(default_factory=list)
    lots: list[dict[str, str]] = field(default_factory=list)

    @property
    def quorum(self) -> int:
        return len(self.validators) * 2 // 3 + 1

    @property
    def verdicts_end(self) -> int:
        """When the last verdict on an upload counts, in the phase that the round is in."""
        if self.state == AUDITING:
            return self.audit_deadline + 2 * self.audit_sec
        return self.verdict_deadline + self.verdict_sec

    def committed(self) -> int:
        """Return how many validators have committed to a lot."""
        return sum(lot["commitment"] != ZERO for lot in self.lots)

    def values(self) -> list[str]:
        """Return the lots that are revealed."""
        return [lot["value"] for lot in self.lots if lot["value"] != ZERO]


@dataclass(frozen=True)
class Payment:
    """Money that an action sends out of the contract."""

    task: str
    token: str
    to: str
    quantity: Asset
    version: int = 0  # 0: a withdrawal


@dataclass
class Task:
    """A row of `tasks` with its members and rounds."""

    id: str
    owner: str
    terms: dict[str, Any]
    version: int = 0
    deposited: int = 0
    paid: int = 0
    withdrawn: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    slots: list[Ballot] = field(default_factory=list)  # whole pages of them

    def copy(self) -> Task:
        """Return a copy that shares what no action changes any more."""
        rounds = dict(self.rounds)
        if self.unsettled:
            rounds[self.version] = copy.deepcopy(self.unsettled)
        members = {account: replace(member) for account, member in self.members.items()}
        slots = [replace(ballot) for ballot in self.slots]
        return replace(self, members=members, rounds=rounds, slots=slots)

    @property
    def unsettled(self) -> Round | None:
        newest = self.rounds.get(self.version)
        return newest if newest and newest.state != SETTLED else None

    @property
    def free(self) -> int:
        newest = self.unsettled
        kept = newest.paid + newest.reserved if newest else 0
        return self.deposited - self.paid - self.withdrawn - kept

    @property
    def reserved(self) -> int:
        return self.unsettled.reserved if self.unsettled else 0

    def ordered(self) -> list[Member]:
        """Return the members in the table's order."""
        return sorted(self.members.values(), key=lambda member: name_to_int(member.account))

    def of_role(self, role: int) -> list[Member]:
        return [member for member in self.ordered() if member.role == role]

    def ballot(self, upload: Member) -> Ballot:
        """Return the ballot on an upload of the unsettled round."""
        return self.slots[upload.upload_slot]

    def make_room(self) -> None:
        """Have as many slots, in whole pages, as there are devices."""
        pages = -(-len(self.of_role(DEVICE)) // BALLOTS_PER_ROW)
        del self.slots[pages * BALLOTS_PER_ROW :]
        self.slots += [Ballot() for _ in range(pages * BALLOTS_PER_ROW - len(self.slots))]

    def pages(self) -> list[list[Ballot]]:
        """Return the ballots of each row of `ballots`."""
        starts = range(0, len(self.slots), BALLOTS_PER_ROW)
        return [self.slots[start : start + BALLOTS_PER_ROW] for start in starts]

    def row(self) -> dict[str, Any]:
        """Return the row of `tasks`."""
        return {
            "id": self.id,
            "owner": self.owner,
            "terms": self.terms,
            "version": self.version,
            "devices": len(self.of_role(DEVICE)),
            "validators": len(self.of_role(VALIDATOR)),
            "deposited": self.deposited,
            "paid": self.paid,
            "withdrawn": self.withdrawn,
        }

    def ram(self) -> int:
        """Return the bytes that the owner pays for."""
        total = TASK_ROW + ROW_EXTRA
        total += (MEMBER_ROW + ROW_EXTRA + INDEX_EXTRA) * len(self.members)
        # `byhash` shares the table of the rows, `validators` is one of its own
        total += TABLE_EXTRA * (bool(self.members) + bool(self.of_role(VALIDATOR)))
        total += TABLE_EXTRA * bool(self.rounds) + (ROUND_ROW + ROW_EXTRA) * len(self.rounds)
        total += TABLE_EXTRA * bool(self.slots) + (PAGE_ROW + ROW_EXTRA) * len(self.pages())
        if self.unsettled:
            total += ROUND_PER_VALIDATOR * len(self.unsettled.validators) + ROUND_FRONTIER
            total += ROUND_PER_LOT * len(self.unsettled.lots)
        return total


class Model:
    """All tasks and balances.

    Parameters
    ----------
    contract : str
    accounts : collection of str
        Those that exist.
    hostile : collection of str
        Accounts whose own contract refuses every transfer to them.
    producers : sequence of str
        The active schedule.
    balances : mapping of (token contract, symbol code, account) to units
        Of all who hold tokens.
    forgers : collection of str
        Accounts whose contract notifies of transfers that never were.
    """

    def __init__(
        self,
        contract: str,
        accounts: Sequence[str],
        *,
        hostile: Sequence[str],
        producers: Sequence[str],
        balances: Mapping[tuple[str, str, str], int],
        forgers: Sequence[str],
    ) -> None:
        self.contract = contract
        self.accounts = {contract, *accounts}
        self.hostile = set(hostile)
        self.producers = sorted(producers, key=name_to_int)
        self.balances = dict(balances)
        self.forgers = set(forgers)
        self.tasks: dict[str, Task] = {}

    def act(self, name: str, actor: str, now: int, data: Mapping[str, Any]) -> list[Payment]:
        """Do one action; return what it pays out. Raises Refused, and then nothing changed."""
        task = self.tasks.get(data["task"])
        before = task.copy() if task else None
        handler: Callable[..., list[Payment] | None] = getattr(self, f"_{name}")
        arguments = {key: value for key, value in data.items() if key != "task"}
        try:
            payments = handler(data["task"], actor, now, **arguments) or []
            refuse_if(any(one.to in self.hostile for one in payments), FOREIGN)
        except Refused:
            if before is not None:
                self.tasks[before.id] = before
            raise
        for one in payments:
            self._move(one.token, self.contract, one.to, one.quantity)
        return payments

    def transfer(self, token: str, sender: str, quantity: Asset, memo: str) -> None:
        """Send tokens to the contract. Raises Refused."""
        if token not in self.forgers:
            held = self.balances.get((token, quantity.symbol.code, sender), 0)
            refuse_if(not 0 < quantity.amount <= held, FOREIGN)
        task = self.tasks.get(memo.rstrip("."))
        if task is None:
            raise Refused("unknown_task")
        refuse_if(token != task.terms["token_contract"], "fake_token")
        refuse_if(str(quantity.symbol) != task.terms["token_symbol"], "wrong_symbol")
        refuse_if(task.deposited + quantity.amount > INT64_MAX, "overflow")
        task.deposited += quantity.amount
        self._move(token, sender, self.contract, quantity)

    def _move(self, token: str, sender: str, to: str, quantity: Asset) -> None:
        source, target = ((token, quantity.symbol.code, one) for one in (sender, to))
        self.balances[source] -= quantity.amount
        self.balances[target] = self.balances.get(target, 0) + quantity.amount
        assert self.balances[source] >= 0, f"{sender} has less than nothing"

    def _task(self, task_id: str) -> Task:
        refuse_if(task_id not in self.tasks, "unknown_task")
        return self.tasks[task_id]

    # ---- owner ------------------------------------------------------------------------------

    def _createtask(
        self, task_id: str, actor: str, now: int, *, owner: str, terms: dict[str, Any]
    ) -> None:
        refuse_if(actor != owner, NO_AUTHORITY)
        refuse_if(task_id in self.tasks, "task_exists")
        refuse_if(terms["token_contract"] not in self.accounts, "bad_parameter")
        self.tasks[task_id] = Task(task_id, owner, terms)

    def _admit(
        self, task_id: str, actor: str, now: int, *, accounts: Sequence[str], role: int
    ) -> None:
        task = self._task(task_id)
        refuse_if(actor != task.owner, NO_AUTHORITY)
        refuse_if(len(accounts) > 100, "limit_exceeded")
        refuse_if(not accounts, "bad_parameter")
        refuse_if(role not in (DEVICE, VALIDATOR), "wrong_role")
        most = task.terms["devices_max"] if role == DEVICE else 32
        refuse_if(len(task.of_role(role)) + len(accounts) > most, "limit_exceeded")
        for account in accounts:
            refuse_if(account not in self.accounts, "bad_parameter")
            refuse_if(account == task.owner, "owner_cannot_upload")
            refuse_if(account == self.contract, "bad_parameter")
            refuse_if(account in task.members, "already_member")
            task.members[account] = Member(account, role)
            task.make_room()

    def _remove(self, task_id: str, actor: str, now: int, *, account: str) -> None:
        task = self._task(task_id)
        refuse_if(actor not in (account, task.owner), NO_AUTHORITY)
        refuse_if(account not in task.members, "not_a_member")
        member, newest = task.members[account], task.unsettled
        if newest and member.role == DEVICE:
            refuse_if(member.upload_version == task.version, "round_open")
        if newest and member.role == VALIDATOR:
            refuse_if(account in newest.validators, "round_open")
        del task.members[account]
        task.make_room()

    def _issueset(
        self, task_id: str, actor: str, now: int, *, device: str, version: int, cid: str, hash: str
    ) -> None:
        task = self._task(task_id)
        refuse_if(actor != task.owner, NO_AUTHORITY)
        newest = task.unsettled
        if version != task.version + 1:
            self._check_version(task, version)
            refuse_if(newest is None or newest.state != OPEN, "round_not_open")
        else:
            refuse_if(newest, "round_open")
        refuse_if(device not in task.members, "not_a_member")
        member = task.members[device]
        refuse_if(member.role != DEVICE, "wrong_role")
        refuse_if(not member.joined, "not_joined")
        refuse_if(member.upload_version == version, "already_uploaded")
        member.set_version, member.set_cid = version, _cid(cid)
        member.set_hash = _hash(hash)

    def _openround(
        self, task_id: str, actor: str, now: int, *, version: int, terms: Mapping[str, Any]
    ) -> None:
        task = self._task(task_id)
        refuse_if(actor != task.owner, NO_AUTHORITY)
        refuse_if(version <= task.version, "stale_version")
        refuse_if(version > task.version + 1, "future_version")
        refuse_if(task.unsettled, "round_open")
        refuse_if(terms["model_hash"] == ZERO, "empty_hash")
        refuse_if(not 1 <= terms["price"] <= AMOUNT_MAX, "bad_parameter")
        refuse_if(not 0 <= terms["budget"] <= AMOUNT_MAX, "bad_parameter")
        for phase in ("open_sec", "verdict_sec", "sum_sec"):
            refuse_if(not 1 <= terms[phase] <= PHASE_SEC_MAX, "bad_parameter")
        refuse_if(not 0 <= terms["reveal_sec"] <= PHASE_SEC_MAX, "bad_parameter")
        lots = task.terms["lot_e6"] > 0
        refuse_if(not lots <= terms["audit_sec"] <= lots * PHASE_SEC_MAX, "bad_parameter")
        refuse_if(terms["rule"] not in set(Rule), "bad_parameter")
        refuse_if(terms["tau"] > ERROR_SCALE + 1, "bad_parameter")
        training = terms["training"]
        refuse_if(not training["epochs"] or not training["batch_size"], "bad_parameter")
        more = terms["rule"] == Rule.GAIN
        most = task.terms["errors_max"] - more
        refuse_if(not 1 + more <= training["measures"] <= most, "bad_parameter")
        refuse_if(task.terms["cost_max"] * terms["price"] > AMOUNT_MAX, "overflow")
        refuse_if(terms["budget"] > task.free, "budget_short")
        validators = [member.account for member in task.of_role(VALIDATOR) if member.joined]
        if task.terms["validators_kind"] != NAMED:
            refuse_if(not set(validators) & set(self.producers), "not_a_validator")
            validators = list(self.producers)
        refuse_if(not validators, "not_a_validator")
        copied = ("price", "budget", "verdict_sec", "sum_sec", "reveal_sec", "audit_sec")
        copied += ("close_after", "rule", "tau", "eta_e6", "norm_max_e6")
        task.version = version
        task.rounds[version] = Round(
            version=version,
            state=OPEN,
            model_cid=_cid(terms["model_cid"]),
            model_hash=terms["model_hash"],
            deadline=now + terms["open_sec"],
            training=dict(training),
            validators=validators,
            sums=[{"hash": ZERO, "cid": ZERO} for _ in validators],
            lots=[{"commitment": ZERO, "value": ZERO} for _ in validators] if lots else [],
            **{name: terms[name] for name in copied},
        )

    def _withdraw(self, task_id: str, actor: str, now: int, *, quantity: Asset) -> list[Payment]:
        task = self._task(task_id)
        refuse_if(actor != task.owner, NO_AUTHORITY)
        refuse_if(str(quantity.symbol) != task.terms["token_symbol"], "wrong_symbol")
        refuse_if(quantity.amount <= 0, "not_positive")
        refuse_if(quantity.amount > self.withdrawable(task_id), "reserved_money")
        refuse_if(task.withdrawn + quantity.amount > INT64_MAX, "overflow")
        task.withdrawn += quantity.amount
        return [Payment(task.id, task.terms["token_contract"], task.owner, quantity)]

    def withdrawable(self, task_id: str) -> int:
        """Return what the owner may take: the free money less what an open round may need."""
        task = self.tasks[task_id]
        newest = task.unsettled
        kept = 0
        if newest and newest.state == OPEN:
            kept = max(0, newest.budget - newest.paid - newest.reserved)
        return max(0, task.free - kept)

    # ---- members ----------------------------------------------------------------------------

    def _join(
        self, task_id: str, actor: str, now: int, *, account: str, enc_key: str, classes: int
    ) -> None:
        refuse_if(actor != account, NO_AUTHORITY)
        task = self._task(task_id)
        refuse_if(account not in task.members, "not_a_member")
        member = task.members[account]
        refuse_if(member.joined and task.unsettled, "round_open")
        refuse_if(enc_key == ZERO, "bad_parameter")
        if member.role == DEVICE:
            refuse_if(not 0 < classes < 1 << task.terms["classes"], "bad_parameter")
        else:
            refuse_if(classes, "bad_parameter")
        member.joined, member.enc_key, member.classes = 1, enc_key, classes

    def _fedlearning(
        self, task_id: str, actor: str, now: int, *, device: str, **upload: Any
    ) -> None:
        refuse_if(actor != device, NO_AUTHORITY)
        task = self._task(task_id)
        refuse_if(device == task.owner, "owner_cannot_upload")
        refuse_if(device not in task.members, "not_a_member")
        member = task.members[device]
        refuse_if(member.role != DEVICE, "wrong_role")
        refuse_if(not member.joined, "not_joined")
        self._record(task, member, now, **upload)

    def _record(
        self,
        task: Task,
        member: Member,
        now: int,
        *,
        version: int,
        hash: str,
        cid: str,
        cost: int,
        errors: Sequence[int],
    ) -> None:
        self._check_version(task, version)
        newest = task.rounds[version]
        refuse_if(newest.state != OPEN, "round_not_open")
        refuse_if(now >= newest.deadline, "deadline_passed")
        refuse_if(member.upload_version == version, "second_upload")
        refuse_if(version <= member.barred_until, "barred")
        if task.terms["lot_e6"]:
            refuse_if(newest.committed() < newest.quorum, "lots_missing")
        refuse_if(not 1 <= cost <= task.terms["cost_max"], "bad_cost")
        hash = _hash(hash)
        same = [one for one in task.of_role(DEVICE) if one.index_key == int(hash[:16], 16)]
        refuse_if(len(same) >= 16, "repeated_hash")
        refuse_if(
            any(one.upload_version and one.upload_hash == hash for one in same), "repeated_hash"
        )
        refuse_if(newest.reveal_sec and cid, "bad_cid")
        digest = ZERO if newest.reveal_sec else _cid(cid)
        refuse_if(not errors, "no_errors")
        refuse_if(len(errors) > task.terms["errors_max"], "too_many_errors")
        refuse_if(max(errors) > ERROR_SCALE, "error_out_of_range")
        rule, held = Rule(newest.rule), member.classes.bit_count()
        refuse_if(not csves.meets(rule, errors, newest.tau, held), f"csves_{rule.name.lower()}")
        amount = cost * newest.price
        refuse_if(amount > task.free, "budget_short")
        member.upload_version, member.upload_slot = version, newest.uploads
        member.upload_hash, member.upload_cid = hash, digest
        packed = b"".join(error.to_bytes(4, "little") for error in errors)
        member.series_hash = hashlib.sha256(packed).hexdigest()
        member.upload_cost = cost
        member.error_first, member.error_last = errors[0], errors[-1]
        member.error_before = errors[-2:][0]
        member.upload_state, member.upload_reason, member.opening_cid = PENDING, 0, ZERO
        stage = BallotStage.HIDDEN if digest == ZERO else BallotStage.OPEN
        task.slots[newest.uploads] = Ballot(member.account, hash, stage)
        newest.uploads += 1
        newest.pending += 1
        newest.reserved += amount

    def _uploadgrad(self, task_id: str, actor: str, now: int, **arguments: Any) -> None:
        raise Refused("internal_only")

    def _payment(self, task_id: str, actor: str, now: int, **arguments: Any) -> None:
        raise Refused("internal_only")

    def _reveal(
        self, task_id: str, actor: str, now: int, *, device: str, version: int, cid: str
    ) -> None:
        newest, upload = self._upload(task_id, actor, device, version)
        refuse_if(newest.state != VERIFYING, "round_not_closed")
        refuse_if(now >= newest.reveal_deadline, "deadline_passed")
        refuse_if(upload.upload_cid != ZERO, "already_revealed")
        upload.upload_cid = _cid(cid)
        self.tasks[task_id].ballot(upload).stage = BallotStage.OPEN

    def _openupload(
        self, task_id: str, actor: str, now: int, *, device: str, version: int, cid: str
    ) -> None:
        newest, upload = self._upload(task_id, actor, device, version)
        refuse_if(newest.state != AUDITING, "not_auditing")
        refuse_if(upload.upload_state != DRAWN, "not_drawn")
        refuse_if(now >= newest.audit_deadline, "deadline_passed")
        refuse_if(upload.opening_cid != ZERO, "already_opened")
        upload.opening_cid = _cid(cid)
        self.tasks[task_id].ballot(upload).stage = BallotStage.OPENED

    def _upload(self, task_id: str, actor: str, device: str, version: int) -> tuple[Round, Member]:
        """Return the newest round and the upload that the device has in it."""
        refuse_if(actor != device, NO_AUTHORITY)
        task = self._task(task_id)
        self._check_version(task, version)
        refuse_if(device not in task.members, "not_a_member")
        member = task.members[device]
        refuse_if(member.upload_version != version, "unknown_upload")
        return task.rounds[version], member

    # ---- validators -------------------------------------------------------------------------

    def _attest(self, task_id: str, actor: str, now: int, **said: Any) -> list[Payment]:
        return self._judge(task_id, actor, now, False, **said)

    def _attestaudit(self, task_id: str, actor: str, now: int, **said: Any) -> list[Payment]:
        return self._judge(task_id, actor, now, True, **said)

    def _judge(
        self,
        task_id: str,
        actor: str,
        now: int,
        audit: bool,
        *,
        version: int,
        validator: str,
        verdicts: Sequence[Mapping[str, Any]],
    ) -> list[Payment]:
        refuse_if(actor != validator, NO_AUTHORITY)
        task = self._task(task_id)
        newest, place = self._judged(task, version, validator)
        refuse_if(len(verdicts) > 500, "limit_exceeded")
        refuse_if(not verdicts, "bad_parameter")
        payments, decided = [], False
        for said in verdicts:
            code = said["code"]
            refuse_if(not 1 <= code <= VERDICT_LAST, "bad_verdict")
            refuse_if(said["slot"] >= newest.uploads, "unknown_upload")
            ballot = task.slots[said["slot"]]
            refuse_if(ballot.hash != said["hash"], "unknown_upload")
            upload = task.members[ballot.device]
            refuse_if(audit and ballot.stage < BallotStage.OPENED, "not_opened")
            if not audit and ballot.stage >= BallotStage.DRAWN:
                continue
            refuse_if(ballot.verdict(place), "already_attested")
            ballot.judge(place, code)
            if upload.upload_state != (DRAWN if audit else PENDING):
                continue
            if upload.upload_cid == ZERO:
                early = newest.state == OPEN or now < newest.reveal_deadline
                refuse_if(code == ACCEPT or early, "not_revealed")
            refuse_if(newest.state != OPEN and now >= newest.verdicts_end, "deadline_passed")
            reason = _decision(ballot, newest)
            if not reason:
                continue
            decided, ballot.stage = True, BallotStage.AUDITED if audit else BallotStage.DECIDED
            if reason == ACCEPT and not audit and task.terms["lot_e6"]:
                upload.upload_state = ACCEPTED
                newest.pending -= 1
                newest.held += 1
            else:
                payments += _decide(task, newest, upload, reason, reason == ACCEPT)
        if decided:
            _advance(task, newest, now)
        return payments

    def _commitlot(
        self, task_id: str, actor: str, now: int, *, version: int, validator: str, commitment: str
    ) -> None:
        refuse_if(actor != validator, NO_AUTHORITY)
        task = self._task(task_id)
        newest, place = self._judged(task, version, validator)
        refuse_if(not task.terms["lot_e6"], "no_lots")
        refuse_if(newest.state != OPEN, "round_not_open")
        refuse_if(newest.uploads, "uploads_begun")
        refuse_if(commitment == ZERO, "empty_hash")
        refuse_if(newest.lots[place]["commitment"] != ZERO, "already_committed")
        newest.lots[place]["commitment"] = commitment

    def _reveallot(
        self, task_id: str, actor: str, now: int, *, version: int, validator: str, value: str
    ) -> None:
        refuse_if(actor != validator, NO_AUTHORITY)
        task = self._task(task_id)
        newest, place = self._judged(task, version, validator)
        refuse_if(newest.state != DRAWING, "not_drawing")
        refuse_if(value == ZERO, "empty_hash")
        lot = newest.lots[place]
        refuse_if(lot["value"] != ZERO, "already_revealed")
        right = lot_commitment(task_id, version, validator, value)
        refuse_if(lot["commitment"] != right, "wrong_lot")
        lot["value"] = value

    def _attestsum(
        self,
        task_id: str,
        actor: str,
        now: int,
        *,
        version: int,
        validator: str,
        hash: str,
        cid: str,
    ) -> None:
        refuse_if(actor != validator, NO_AUTHORITY)
        task = self._task(task_id)
        newest, place = self._judged(task, version, validator)
        refuse_if(newest.state != SUMMING, "not_summing")
        refuse_if(hash == ZERO, "empty_hash")
        refuse_if(newest.sums[place]["hash"] != ZERO, "already_attested")
        newest.sums[place] = {"hash": hash, "cid": _cid(cid)}
        if sum(vote["hash"] == hash for vote in newest.sums) >= newest.quorum:
            newest.state = SUMMED
            newest.sum_hash, newest.sum_cid = hash, newest.sums[place]["cid"]

    def _judged(self, task: Task, version: int, validator: str) -> tuple[Round, int]:
        """Return the round that a validator may speak about, and its place there."""
        member = task.members.get(validator)
        refuse_if(
            member is None or member.role != VALIDATOR or not member.joined, "not_a_validator"
        )
        refuse_if(version != task.version or version == 0, "wrong_version")
        newest = task.rounds[version]
        refuse_if(newest.state == SETTLED, "round_not_open")
        refuse_if(validator not in newest.validators, "not_a_validator")
        return newest, newest.validators.index(validator)

    # ---- pushing a round on -----------------------------------------------------------------

    def _closeround(self, task_id: str, actor: str, now: int, *, version: int, caller: str) -> None:
        refuse_if(actor != caller, NO_AUTHORITY)
        task = self._task(task_id)
        self._check_version(task, version)
        newest = task.rounds[version]
        refuse_if(newest.state != OPEN, "round_not_open")
        early = caller == task.owner and 0 < newest.close_after <= newest.uploads
        refuse_if(now < newest.deadline and not early, "deadline_not_passed")
        newest.state = VERIFYING
        if newest.reveal_sec:
            newest.reveal_deadline = now + newest.reveal_sec
        newest.verdict_deadline = now + newest.reveal_sec + newest.verdict_sec
        _advance(task, newest, now)

    def _push(
        self, task_id: str, actor: str, now: int, *, version: int, limit: int, start: str = ""
    ) -> list[Payment]:
        task = self._task(task_id)
        self._check_version(task, version)
        newest = task.rounds[version]
        refuse_if(newest.state == OPEN, "round_not_closed")
        refuse_if(newest.state > SUMMING, "not_summing")
        due, more = {
            VERIFYING: (newest.verdict_deadline, newest.verdict_sec),
            SUMMING: (newest.sum_deadline, 0),
        }.get(newest.state, (newest.audit_deadline, newest.audit_sec))
        told = newest.state == DRAWING and len(newest.values()) == newest.committed()
        refuse_if(now < due and not told, "deadline_not_passed")
        if newest.state == SUMMING:
            newest.state = SUMMED
            return []
        phase, last = newest.state, now >= due + more
        kept = newest.cursor
        newest.cursor = start or kept
        payments = []
        for member in _visit(task, newest, limit):
            if member.upload_version == version:
                payments += _push_upload(task, newest, member, now, phase, last)
        if start:
            newest.cursor = kept
        _advance(task, newest, now)
        return payments

    def _settle(
        self, task_id: str, actor: str, now: int, *, version: int, limit: int, caller: str
    ) -> None:
        refuse_if(actor != caller, NO_AUTHORITY)
        task = self._task(task_id)
        self._check_version(task, version)
        newest = task.rounds[version]
        refuse_if(newest.state != SUMMED, "not_summed")
        refuse_if(caller != task.owner and now < newest.sum_deadline, "deadline_not_passed")
        for member in _visit(task, newest, limit):
            newest.settled += member.upload_version == version
        if newest.cursor:
            return
        uploads = [one for one in task.ordered() if one.upload_version == version]
        newest.root = merkle_root([_record(task, newest, one) for one in uploads]).hex()
        newest.state = SETTLED
        newest.validators, newest.sums, newest.lots = [], [], []
        task.paid += newest.paid

    @staticmethod
    def _check_version(task: Task, version: int) -> None:
        refuse_if(task.version == 0, "round_not_open")
        refuse_if(version < task.version, "stale_version")
        refuse_if(version > task.version, "future_version")


def _visit(task: Task, newest: Round, limit: int) -> Iterator[Member]:
    """Yield up to `limit` members from the cursor on, which is moved first."""
    refuse_if(limit == 0, "bad_parameter")
    begin = name_to_int(newest.cursor)
    left = [member for member in task.ordered() if name_to_int(member.account) >= begin]
    newest.cursor = left[limit].account if len(left) > limit else ""
    yield from left[:limit]


def _decision(ballot: Ballot, newest: Round) -> int:
    """Return the reason of what the verdicts on an upload decide, 0 while they do not."""
    codes = [ballot.verdict(place) for place in range(len(newest.validators))]
    refusals = [code for code in codes if code > ACCEPT]
    if codes.count(ACCEPT) >= newest.quorum:
        return ACCEPT
    if len(refusals) < newest.quorum:
        return 0
    return min(set(refusals), key=lambda code: (-refusals.count(code), code))


def _push_upload(
    task: Task, newest: Round, upload: Member, now: int, phase: int, last: bool
) -> list[Payment]:
    """Do what `push` does with an upload once the time of the phase is up."""
    silence_pays = task.terms["silence"] == SILENCE_PAYS
    ballot = task.ballot(upload)
    if (phase, upload.upload_state) == (VERIFYING, PENDING):
        ballot.stage = BallotStage.DECIDED
        if upload.upload_cid == ZERO:
            return _decide(task, newest, upload, UNREVEALED, False)
        reason = UNDELIVERED if last else SILENCE
        return _decide(task, newest, upload, reason, silence_pays and not last)
    if (phase, upload.upload_state) == (AUDITING, DRAWN):
        if upload.opening_cid == ZERO:
            return _decide(task, newest, upload, UNANSWERED, False)
        if not last:  # a last opening has time for verdicts
            return []
        gone, ballot.stage = now >= newest.verdicts_end, BallotStage.AUDITED
        reason = UNDELIVERED if gone else SILENCE
        return _decide(task, newest, upload, reason, silence_pays and not gone)
    if (phase, upload.upload_state) != (DRAWING, ACCEPTED):
        return []
    if last:
        return _decide(task, newest, upload, UNDELIVERED, False)
    if not is_drawn(newest.values(), upload.upload_hash, task.terms["lot_e6"]):
        return _decide(task, newest, upload, ACCEPT, True)
    upload.upload_state, ballot.stage, ballot.verdicts = DRAWN, BallotStage.DRAWN, ZERO
    newest.held -= 1
    newest.drawn += 1
    return []


def _decide(task: Task, newest: Round, upload: Member, reason: int, pays: bool) -> list[Payment]:
    amount = upload.upload_cost * newest.price
    newest.reserved -= amount
    audited = upload.upload_state == DRAWN
    newest.drawn -= audited
    newest.held -= upload.upload_state == ACCEPTED
    newest.pending -= upload.upload_state == PENDING
    upload.upload_reason = reason
    upload.upload_state = PAID if pays else REFUSED
    if not pays:
        newest.refused += 1
        if audited and reason not in (SILENCE, UNDELIVERED):
            upload.barred_until = newest.version + task.terms["bar_rounds"]
        return []
    newest.accepted += reason == ACCEPT
    newest.paid += amount
    quantity = Asset(amount, Symbol.parse(task.terms["token_symbol"]))
    return [
        Payment(task.id, task.terms["token_contract"], upload.account, quantity, newest.version)
    ]


def _advance(task: Task, newest: Round, now: int) -> None:
    """Go on to the next phase that is due, where nothing is left to do in this one."""
    left = {VERIFYING: newest.pending, DRAWING: newest.held, AUDITING: newest.drawn}
    if left.get(newest.state, 1):
        return
    newest.cursor = ""
    if newest.held:
        newest.state = DRAWING
    elif newest.drawn:
        newest.state = AUDITING
    else:
        due = task.terms["mode"] == PAILLIER and newest.accepted >= task.terms["sum_min"]
        newest.state = SUMMING if due else SUMMED
        newest.sum_deadline = now + newest.sum_sec
        return
    newest.audit_deadline = now + newest.audit_sec


def _hash(text: str) -> str:
    refuse_if(len(text) != 64, "short_hash")
    refuse_if(text == ZERO, "empty_hash")
    return text


def _cid(text: str) -> str:
    try:
        return cid_to_digest(text).hex()
    except ConfigError:
        raise Refused("bad_cid") from None


def _record(task: Task, newest: Round, upload: Member) -> bytes:
    """Return the Merkle tree's record of an upload: docs/protocol.md, section 5."""
    paid = upload.upload_cost * newest.price if upload.upload_state == PAID else 0
    return b"".join(
        (
            name_to_int(task.id).to_bytes(8, "little"),
            newest.version.to_bytes(4, "little"),
            name_to_int(upload.account).to_bytes(8, "little"),
            bytes.fromhex(upload.upload_hash + upload.upload_cid),
            upload.upload_cost.to_bytes(4, "little"),
            upload.error_last.to_bytes(4, "little"),
            bytes([upload.upload_state, upload.upload_reason]),
            paid.to_bytes(8, "little"),
        )
    )
