"""Random histories of the contract: every role does everything, rightly and wrongly.

Each rule is one action on the real chain, or a jump of its clock. What is drawn never depends on
the chain, so that a printed history can be played again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from contracts.arena import BAD, TOK, Arena, Outcome
from contracts.model import DEVICE, VALIDATOR, Member, Payment, Refused, Round, Task
from contracts.world import (
    ABI,
    ACCEPT,
    ACCEPTED,
    AUDITING,
    DRAWING,
    DRAWN,
    DUPLICATE,
    MALFORMED,
    OPEN,
    OPENING_MISMATCH,
    PAID,
    PENDING,
    REFUSED,
    SETTLED,
    SUMMED,
    SUMMING,
    UNAVAILABLE,
    UNREVEALED,
    VERIFYING,
    ZERO,
    cid,
    digest,
    lot_commitment,
    lot_value,
    round_document,
    task_document,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gradledger.chain.abi import parse_time
from gradledger.chain.contract import Rule
from gradledger.chain.names import AMOUNT_MAX, Asset, Symbol, int_to_name, name_to_int

TASKS = 3
LOTS = ([200_000, 1_000_000], [0, 200_000], [0])  # of each task; the first is likelier
REVEALS = ([0, 300], [300, 0], [0, 300])
PHASE_STEPS_MAX, ROUND_STEPS_MAX = 8, 30
JUMPS_MAX = 14
INDEX_MAX = 7
CLEAR_SEC = 10  # past a deadline, where it makes no difference how fast this machine is
HONEST_COST = 60
HASHES = ("fresh", "of another", "same prefix", "an account", "short", "long", "zero")
SLOTS = ("right", "next", "past the last", "far")
FALL = [900_000, 100_000, 50_000]  # meets every rule with tau = 100,000
SERIES = [
    *([1, 0], [400_000, 400_000], [1, 2, 3], [99_999], [100_000], [500_000, 400_000, 300_000]),
    *([], [0] * 6, [1_000_001, 0], [5, 4, 3, 2, 1]),
]


def mostly(good: Any, *others: Any, share: int = 6) -> st.SearchStrategy[Any]:
    """Draw the first value so many times more often; failing histories shrink towards it."""
    return st.sampled_from([good] * (share * len(others)) + list(others))


tasks = st.integers(0, TASKS - 1)
indices = st.integers(0, INDEX_MAX)
actors = mostly("self", "owner", "other owner", "device", "validator", "stranger", "contract")
version_offsets = mostly(0, -1, 1, 2**31)
cids = mostly("good", "Qm", "bad")


@dataclass(frozen=True)
class Mood:
    """How the honest participants behave for a while.

    Attributes
    ----------
    patient : bool
        They wait for deadlines.
    late : bool
        They wait until nothing can be paid any more.
    hiding : bool
        Every second device neither reveals its CID nor opens its upload.
    withholding : bool
        The first validator does not reveal its lot.
    codes, audit_codes : tuple of int
        What the validators say in turn, before and in an audit; nothing if there are none.
    """

    patient: bool = True
    late: bool = False
    hiding: bool = False
    withholding: bool = False
    codes: tuple[int, ...] = (ACCEPT,)
    audit_codes: tuple[int, ...] = (ACCEPT,)


moods = mostly(
    Mood(),
    Mood(patient=False),
    Mood(hiding=True),
    Mood(codes=()),
    Mood(codes=(), hiding=True),
    Mood(codes=(DUPLICATE, MALFORMED, UNAVAILABLE)),
    share=1,
)
# Of whole rounds, in turn: without audits, and with audits since the lots are drawn.
VERDICT_MOODS = (
    Mood(codes=(DUPLICATE, MALFORMED, UNAVAILABLE)),
    Mood(),
    Mood(codes=()),
    Mood(hiding=True),
    Mood(codes=(), late=True),
)
AUDIT_MOODS = (
    Mood(audit_codes=(OPENING_MISMATCH,)),
    Mood(audit_codes=(), late=True),
    Mood(hiding=True),
    Mood(withholding=True, audit_codes=(OPENING_MISMATCH, MALFORMED, MALFORMED)),
    Mood(audit_codes=()),
    Mood(withholding=True, late=True),
    Mood(),
)


class Book:
    """What was done and paid over all histories of a run."""

    def __init__(self) -> None:
        self.steps = self.jumps = self.histories = self.failures = 0
        self.taken: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {}
        self.states: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()  # from which state to which, and why
        self.paid_uploads = 0

    def document(self) -> dict[str, Any]:
        """Return a JSON object."""
        names = sorted({*self.taken, *self.refused})
        return {
            "steps": self.steps,
            "histories": self.histories,
            "clock_jumps": self.jumps,
            "paid_uploads": self.paid_uploads,
            "accepted": sum(self.taken.values()),
            "refused": sum(sum(codes.values()) for codes in self.refused.values()),
            "round_states": dict(sorted(self.states.items())),
            "upload_states": dict(sorted(self.uploads.items())),
            "actions": {
                name: {
                    "accepted": self.taken[name],
                    "refused": dict(sorted(self.refused.get(name, Counter()).items())),
                }
                for name in names
            },
        }


class ContractMachine(RuleBasedStateMachine):
    """Three tasks with the same accounts. `arena` and `book` are set by the subclass."""

    arena: Arena
    book: Book

    def __init__(self) -> None:
        super().__init__()
        self.model = self.arena.new_model()
        self.held_before = self.arena.balance(self.arena.contract)
        self.ram_before = {owner: self.arena.world.ram(owner) for owner in self.arena.owners}
        self.tasks: list[str] = []
        self.plain_terms: dict[str, dict[str, int]] = {}  # of the rounds that honest owners open
        self.seen: dict[tuple[str, int], int] = {}  # the last state of a round
        self.received: set[tuple[str, int, str]] = set()
        self.fresh, self.jumps_left = 0, JUMPS_MAX
        self.is_sound, self.was_refused = True, False
        self.history: list[str] = []
        self.book.histories += 1

    # ---- rules ------------------------------------------------------------------------------

    @initialize(
        modes=st.tuples(*[st.integers(0, 1)] * TASKS),
        silences=st.permutations([1, 0, 0]),
        devices_max=st.integers(4, 7),
        members=st.tuples(*[st.integers(4, 6)] * TASKS),
        validators=st.tuples(*[st.integers(1, 4)] * TASKS),
        crowded=st.tuples(*[mostly(False, True, share=3)] * TASKS),
        funds=st.tuples(*[st.sampled_from([100_000, 2_000, 700])] * TASKS),
        rules=st.tuples(*[st.sampled_from(list(Rule))] * TASKS),
        lots=st.tuples(*[st.sampled_from(shares) for shares in LOTS]),
        bars=st.permutations([1, 0, 2]),
        reveals=st.tuples(*[st.sampled_from(seconds) for seconds in REVEALS]),
        producers=st.booleans(),
        turn=st.integers(0, len(AUDIT_MOODS) - 1),
    )
    def begin(
        self,
        modes: Sequence[int],
        silences: Sequence[int],
        devices_max: int,
        members: Sequence[int],
        validators: Sequence[int],
        crowded: Sequence[bool],
        funds: Sequence[int],
        rules: Sequence[Rule],
        lots: Sequence[int],
        bars: Sequence[int],
        reveals: Sequence[int],
        producers: bool,
        turn: int,
    ) -> None:
        """Two tasks of one owner and one of another; the last may have producers judge."""
        self.turn = turn
        for at in range(TASKS):
            owner = self.arena.owners[at % 2]
            task = self.arena.new_task_name()
            self.tasks.append(task)
            self.plain_terms[task] = {
                "rule": int(rules[at]),
                "reveal_sec": reveals[at],
                "audit_sec": 300 if lots[at] else 0,
            }
            by_producers = producers and at == TASKS - 1
            terms = task_document(
                token_contract=self.arena.token,
                mode=0 if lots[at] else modes[at],
                validators_kind=int(by_producers),
                silence=silences[at],
                devices_max=devices_max + crowded[at] * len(self.arena.bystanders),
                lot_e6=lots[at],
                bar_rounds=bars[at],
            )
            self.do("createtask", owner, task=task, owner=owner, terms=terms)
            devices = self.arena.devices[-members[at] :][:devices_max]
            judges = self.arena.validators[: validators[at]]
            judges = [self.arena.producer] if by_producers else judges
            self.do("admit", owner, task=task, accounts=devices, role=DEVICE)
            if crowded[at]:
                # devices that never join: with some of the others, one page of ballots or two
                crowd = self.arena.bystanders
                self.do("admit", owner, task=task, accounts=crowd, role=DEVICE)
            self.do("admit", owner, task=task, accounts=judges, role=VALIDATOR)
            for account in (*devices, *judges):
                classes = 7 if account in devices else 0
                self.join_as(task, account, classes)
            self.send_money(task, self.arena.token, owner, Asset(funds[at], TOK), task)
            self.open_plainly(self.model.tasks[task])

    @rule(task=tasks, count=st.integers(1, 6), mood=moods)
    def take_part(self, task: int, count: int, mood: Mood) -> None:
        """Do what honest participants would do next."""
        self.go_on(self.tasks[task], mood, mood, steps=count, until=SETTLED)

    @rule(task=tasks, mood=moods)
    def finish(self, task: int, mood: Mood) -> None:
        """Do so until the round is in another state."""
        newest = self.model.tasks[self.tasks[task]].unsettled
        until = newest.state + 1 if newest else OPEN
        self.go_on(self.tasks[task], mood, mood, steps=PHASE_STEPS_MAX, until=until)

    @rule(task=tasks)
    def play_round(self, task: int) -> None:
        """Bring a round to its end; who is barred by then tries in the next one."""
        name = self.tasks[task]
        has_lots = bool(self.model.tasks[name].terms["lot_e6"])
        in_turn = AUDIT_MOODS if has_lots else VERDICT_MOODS
        mood = in_turn[self.turn % len(in_turn)]
        self.turn += 1
        first = Mood() if has_lots else mood
        self.go_on(name, first, mood, steps=ROUND_STEPS_MAX, until=SETTLED)
        found = self.model.tasks[name]
        barred = [one for one in found.of_role(DEVICE) if one.barred_until > found.version]
        if barred and found.unsettled is None:
            self.open_plainly(found)
            self.upload_of(self.model.tasks[name], barred[0].account)

    def go_on(self, task: str, mood: Mood, audit_mood: Mood, *, steps: int, until: int) -> None:
        """Take the next steps, as far as they are not refused."""
        for _ in range(steps):
            newest = self.model.tasks[task].unsettled
            is_audit = newest is not None and newest.state in (DRAWING, AUDITING)
            self.next_step(self.model.tasks[task], audit_mood if is_audit else mood)
            found = self.model.tasks[task]
            is_there = found.version and found.rounds[found.version].state >= until
            if is_there or self.was_refused:
                return

    @rule(
        task=tasks,
        device=indices,
        actor=actors,
        offset=version_offsets,
        hash_kind=mostly(*HASHES),
        cid_kind=cids,
        cost=mostly(60, 1, 1000, 0, 1001, 2**32 - 1, "all", "too much"),
        errors=st.sampled_from([FALL] * 6 + SERIES),
        internal=mostly(False, True),
    )
    def upload(
        self,
        task: int,
        device: int,
        actor: str,
        offset: int,
        hash_kind: str,
        cid_kind: str,
        cost: int | str,
        errors: list[int],
        internal: bool,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.account(self.arena.devices, device)
        if isinstance(cost, str):  # as much as the free money pays for, or one example more
            price = found.unsettled.price if found.unsettled else 1
            cost = min(found.free // price + (cost == "too much"), 2**32 - 1)
        data = {
            "device": account,
            "version": self.version(found, offset),
            "hash": self.hash_of_kind(found, account, hash_kind),
            "cid": self.upload_cid(found.unsettled, cid_kind),
            "cost": cost,
            "errors": errors,
        }
        name = "uploadgrad" if internal else "fedlearning"
        self.do(name, self.actor(found, actor, account), task=found.id, **data)

    @rule(
        task=tasks,
        codes=st.sampled_from([(ACCEPT,), (MALFORMED,), (MALFORMED, UNREVEALED, DUPLICATE)]),
        first=indices,
        count=st.integers(1, 4),
    )
    def judge_together(self, task: int, codes: Sequence[int], first: int, count: int) -> None:
        """Some validators in turn judge what each has not, be it decided or late."""
        found = self.model.tasks[self.tasks[task]]
        newest = found.unsettled
        if newest is None:
            return
        for place in range(first, first + min(count, len(newest.validators))):
            found = self.model.tasks[self.tasks[task]]
            place %= len(newest.validators)
            said = [
                _verdict(one, codes[place % len(codes)])
                for one in found.of_role(DEVICE)
                if one.upload_version == found.version
                and not found.ballot(one).verdict(place)
                and (newest.state != AUDITING or one.opening_cid != ZERO)
            ]
            if not said:
                continue
            validator = newest.validators[place]
            data = {"version": found.version, "validator": validator, "verdicts": said}
            name = "attestaudit" if newest.state == AUDITING else "attest"
            self.do(name, validator, task=found.id, **data)

    @rule(
        task=tasks,
        validator=indices,
        actor=actors,
        offset=version_offsets,
        verdicts=st.lists(st.tuples(indices, mostly(ACCEPT, 0, 2, 4, 17, 18, 255)), max_size=3),
        slot=mostly(*SLOTS, share=2),
        everything=mostly(True, False),
        code=mostly(ACCEPT, 4),
        unknown=mostly(False, True),
        mistaken=mostly(False, True),
    )
    def attest(
        self,
        task: int,
        validator: int,
        actor: str,
        offset: int,
        verdicts: list[tuple[int, int]],
        slot: str,
        everything: bool,
        code: int,
        unknown: bool,
        mistaken: bool,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.judge(found, validator)
        uploads = [one for one in found.of_role(DEVICE) if one.upload_version]
        said = [_verdict(one, code) for one in uploads] if everything else []
        if not everything and uploads:
            said = [_verdict(uploads[index % len(uploads)], code_) for index, code_ in verdicts]
        if said:
            said[-1]["slot"] = self.slot_of_kind(found, said[-1]["slot"], slot)
        if unknown:
            said.append({"slot": 0, "hash": digest("unknown"), "code": code})
        data = {"version": self.version(found, offset), "validator": account, "verdicts": said}
        audit = bool(found.unsettled and found.unsettled.state == AUDITING) != mistaken
        name = "attestaudit" if audit else "attest"
        self.do(name, self.actor(found, actor, account), task=found.id, **data)

    @rule(
        task=tasks,
        device=indices,
        actor=actors,
        offset=version_offsets,
        cid_kind=cids,
        opening=st.booleans(),
    )
    def tell_cid(
        self, task: int, device: int, actor: str, offset: int, cid_kind: str, opening: bool
    ) -> None:
        """Reveal the CID of an upload, or open an upload that may have been drawn."""
        found = self.model.tasks[self.tasks[task]]
        account = self.account(self.arena.devices, device)
        data = {
            "device": account,
            "version": self.version(found, offset),
            "cid": self.cid_of_kind(cid_kind),
        }
        name = "openupload" if opening else "reveal"
        self.do(name, self.actor(found, actor, account), task=found.id, **data)

    @rule(
        task=tasks,
        validator=indices,
        actor=actors,
        offset=version_offsets,
        revealing=st.booleans(),
        kind=mostly("right", "other", "zero"),
    )
    def draw_lot(
        self, task: int, validator: int, actor: str, offset: int, revealing: bool, kind: str
    ) -> None:
        """Commit to a value that decides who is audited, or reveal it."""
        found = self.model.tasks[self.tasks[task]]
        account, version = self.judge(found, validator), self.version(found, offset)
        who = self.actor(found, actor, account)
        data = {"task": found.id, "version": version, "validator": account}
        value = self.lot_of(found.id, version, account)
        value = lot_value("other") if kind == "other" else value
        if revealing:
            self.do("reveallot", who, value=ZERO if kind == "zero" else value, **data)
        else:
            right = lot_commitment(found.id, version, account, value)
            self.do("commitlot", who, commitment=ZERO if kind == "zero" else right, **data)

    @rule(
        task=tasks,
        validator=indices,
        actor=actors,
        offset=version_offsets,
        hash_=mostly("right", "wrong", "zero"),
        cid_kind=cids,
    )
    def attest_sum(
        self, task: int, validator: int, actor: str, offset: int, hash_: str, cid_kind: str
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.judge(found, validator)
        data = {
            "version": self.version(found, offset),
            "validator": account,
            "hash": ZERO if hash_ == "zero" else digest("sum", hash_),
            "cid": self.cid_of_kind(cid_kind),
        }
        self.do("attestsum", self.actor(found, actor, account), task=found.id, **data)

    @rule(task=tasks, caller=actors, actor=actors, offset=version_offsets)
    def close(self, task: int, caller: str, actor: str, offset: int) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.actor(found, caller, found.owner)
        data = {"version": self.version(found, offset), "caller": account}
        self.do("closeround", self.actor(found, actor, account), task=found.id, **data)

    @rule(
        task=tasks,
        actor=actors,
        offset=version_offsets,
        limit=mostly(100, 0, 1, 2),
        start=st.none() | indices,
    )
    def push(self, task: int, actor: str, offset: int, limit: int, start: int | None) -> None:
        found = self.model.tasks[self.tasks[task]]
        data: dict[str, Any] = {"version": self.version(found, offset), "limit": limit}
        if start is not None:
            data["start"] = self.account(self.arena.devices, start)
        self.do("push", self.actor(found, actor, self.arena.stranger), task=found.id, **data)

    @rule(
        task=tasks, caller=actors, actor=actors, offset=version_offsets, limit=mostly(100, 0, 1, 3)
    )
    def settle(self, task: int, caller: str, actor: str, offset: int, limit: int) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.actor(found, caller, found.owner)
        data = {"version": self.version(found, offset), "limit": limit, "caller": account}
        self.do("settle", self.actor(found, actor, account), task=found.id, **data)

    @rule(
        task=tasks,
        actor=actors,
        offset=version_offsets,
        price=mostly(10, 1, 2**40, AMOUNT_MAX // 1000, AMOUNT_MAX // 1000 + 1, 0, -1),
        budget=st.sampled_from(["some", "all", "some", "too much", "none", "negative"]),
        phases=st.tuples(*[st.sampled_from([300, 60, 900])] * 4),
        phase=mostly("good", "zero", "long"),
        reveal_sec=st.sampled_from([0, 120, 0, 2**32 - 1, 120, 0]),
        has_audits=mostly(True, False),
        close_after=st.sampled_from([1, 0, 2, 5]),
        which=st.sampled_from([*Rule, 0, max(Rule) + 1]),
        tau=mostly(100_000, 0, 1_000_001, 1_000_002),
        field=mostly("", "model_hash", "epochs", "batch_size", "measures", "model_cid"),
    )
    def open_round(
        self,
        task: int,
        actor: str,
        offset: int,
        price: int,
        budget: str,
        phases: Sequence[int],
        phase: str,
        reveal_sec: int,
        has_audits: bool,
        close_after: int,
        which: int,
        tau: int,
        field: str,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        free = found.free
        budgets = {"some": free // 2, "all": free, "too much": free + 1, "none": 0, "negative": -1}
        terms = round_document(
            price=price,
            budget=budgets[budget],
            open_sec={"good": phases[0], "zero": 0, "long": 2**32 - 1}[phase],
            verdict_sec=phases[1],
            sum_sec=phases[2],
            reveal_sec=reveal_sec,
            audit_sec=phases[3] if has_audits == bool(found.terms["lot_e6"]) else 0,
            close_after=close_after,
            rule=int(which),
            tau=tau,
        )
        if field in terms["training"]:
            terms["training"][field] = 0
        elif field:
            terms[field] = {"model_hash": ZERO, "model_cid": "Qm"}[field]
        data = {"version": max(0, found.version + 1 + offset) % 2**32, "terms": terms}
        self.do("openround", self.actor(found, actor, found.owner), task=found.id, **data)

    @rule(
        task=tasks,
        actor=st.sampled_from(["self", "other owner"]),
        token=mostly("right", "fake", "forged"),
        symbol=mostly(TOK, BAD),
        units=mostly(5_000, 1, 60_000, 0, -1, 2**50, AMOUNT_MAX),
        memo=mostly("task", "dotted", "none", "no name", "unknown", "long"),
    )
    def deposit(
        self, task: int, actor: str, token: str, symbol: Any, units: int, memo: str
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        contracts = {
            "right": self.arena.token,
            "fake": self.arena.world.token,
            "forged": self.arena.forger,
        }
        memos = {
            "task": found.id,
            "dotted": found.id + "..",
            "none": "",
            "no name": "No Name!",
            "unknown": "nosuchtask",
            "long": "a" * 14,
        }
        sender = self.actor(found, actor, found.owner)
        self.send_money(found.id, contracts[token], sender, Asset(units, symbol), memos[memo])

    @rule(
        task=tasks,
        actor=actors,
        units=st.sampled_from(["some", "all", "some", "too much", "none", "negative"]),
        symbol=mostly(TOK, BAD),
    )
    def withdraw(self, task: int, actor: str, units: str, symbol: Any) -> None:
        found = self.model.tasks[self.tasks[task]]
        most = self.model.withdrawable(found.id)
        amounts = {"some": most // 3, "all": most, "too much": most + 1, "none": 0, "negative": -1}
        self.do(
            "withdraw",
            self.actor(found, actor, found.owner),
            task=found.id,
            quantity=Asset(amounts[units], symbol),
        )

    @rule(
        task=tasks,
        actor=actors,
        accounts=st.lists(indices, min_size=0, max_size=2),
        whom=mostly("devices", "validators", "owners", "contract", "nobody"),
        role=mostly(DEVICE, VALIDATOR, 0, 3),
    )
    def admit(self, task: int, actor: str, accounts: list[int], whom: str, role: int) -> None:
        found = self.model.tasks[self.tasks[task]]
        groups = {
            "devices": self.arena.devices,
            "validators": [*self.arena.validators, self.arena.producer],
            "owners": self.arena.owners,
            "contract": [self.arena.contract],
            "nobody": ["nosuchperson"],
        }
        chosen = [self.account(groups[whom], index) for index in accounts]
        data = {"accounts": chosen, "role": role}
        self.do("admit", self.actor(found, actor, found.owner), task=found.id, **data)

    @rule(
        task=tasks,
        actor=mostly("owner", "self", "other owner", "stranger"),
        account=indices,
        validator=st.booleans(),
    )
    def remove(self, task: int, actor: str, account: int, validator: bool) -> None:
        found = self.model.tasks[self.tasks[task]]
        group = [*self.arena.validators, self.arena.producer] if validator else self.arena.devices
        whom = self.account(group, account)
        self.do("remove", self.actor(found, actor, whom), task=found.id, account=whom)

    @rule(
        task=tasks,
        actor=actors,
        account=indices,
        validator=st.booleans(),
        classes=mostly("right", "other", "none", "too many"),
        key=mostly(True, False),
    )
    def join(
        self, task: int, actor: str, account: int, validator: bool, classes: str, key: bool
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        group = [*self.arena.validators, self.arena.producer] if validator else self.arena.devices
        whom = self.account(group, account)
        member = found.members.get(whom)
        right = 0 if member and member.role == VALIDATOR else 7
        sets = {"right": right, "other": 1023, "none": 0, "too many": 1024}
        data = {"account": whom, "enc_key": digest("enc", whom) if key else ZERO}
        actor_ = self.actor(found, actor, whom)
        self.do("join", actor_, task=found.id, classes=sets[classes], **data)

    @rule(
        task=tasks,
        actor=actors,
        account=indices,
        next_round=st.booleans(),
        offset=version_offsets,
        hash_=mostly("good", "short", "zero"),
        cid_kind=cids,
    )
    def issue_set(
        self,
        task: int,
        actor: str,
        account: int,
        next_round: bool,
        offset: int,
        hash_: str,
        cid_kind: str,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        hashes = {"good": digest("set"), "short": "00", "zero": ZERO}
        data = {
            "device": self.account([*self.arena.devices, self.arena.validators[0]], account),
            "version": max(0, self.version(found, offset) + next_round) % 2**32,
            "cid": self.cid_of_kind(cid_kind),
            "hash": hashes[hash_],
        }
        self.do("issueset", self.actor(found, actor, found.owner), task=found.id, **data)

    @rule(
        task=tasks,
        device=indices,
        actor=st.sampled_from(["contract", "owner", "other owner", "self"]),
        kind=st.sampled_from(["pay", "create again", "unknown task"]),
    )
    def meddle(self, task: int, device: int, actor: str, kind: str) -> None:
        """Have money sent by hand, make a task that is there, close one that is not."""
        found = self.model.tasks[self.tasks[task]]
        account = self.account(self.arena.devices, device)
        who = self.actor(found, actor, account)
        if kind == "pay":
            data = {"version": found.version, "device": account, "quantity": Asset(1, TOK)}
            self.do("payment", who, task=found.id, **data)
        elif kind == "create again":
            self.do("createtask", who, task=found.id, owner=who, terms=found.terms)
        else:
            self.do("closeround", who, task="nosuchtask", version=1, caller=who)

    @rule(
        task=tasks,
        later=st.sampled_from([0, -1]),
        which=st.integers(0, 2),
        start=st.none() | indices,
    )
    def reach_deadline(self, task: int, later: int, which: int, start: int | None) -> None:
        """Go to a deadline or to the second before it, and do at once what it is about."""
        found = self.model.tasks[self.tasks[task]]
        newest = found.unsettled
        if newest is None or self.jumps_left < 2:
            return
        stranger, by_version = self.arena.stranger, {"task": found.id, "version": found.version}
        audits = newest.audit_deadline + which * newest.audit_sec
        closed = [newest.verdict_deadline, newest.verdicts_end, newest.reveal_deadline]
        due = {
            OPEN: newest.deadline,
            VERIFYING: closed[which] or newest.verdict_deadline,
            DRAWING: audits,
            AUDITING: audits,
        }.get(newest.state, newest.sum_deadline)
        self.wait_for(due + later)
        first = {} if start is None else {"start": self.account(self.arena.devices, start)}
        codes = (ACCEPT,) if start is None else ()
        mood = Mood(patient=False, codes=codes, audit_codes=codes)
        if newest.state == OPEN:
            self.upload_of(found, (self.waiting(found) or self.arena.devices)[0])
            self.do("closeround", stranger, caller=stranger, **by_version)
        elif newest.state == VERIFYING:
            untold = [one for one in self.uploads(found, PENDING) if one.upload_cid == ZERO]
            for one in untold[:1]:
                data = {"device": one.account, "cid": cid("file")}
                self.do("reveal", one.account, **by_version, **data)
            self.judge_or_push(found, newest, mood)
            self.do("push", stranger, limit=1, **by_version, **first)
        elif newest.state == AUDITING:
            for one in self.uploads(found, DRAWN)[:1]:
                data = {"device": one.account, "cid": cid("opening")}
                self.do("openupload", one.account, **by_version, **data)
            self.answer_or_push(self.model.tasks[found.id], newest, mood)
            self.do("push", stranger, limit=1, **by_version, **first)
        elif newest.state in (DRAWING, SUMMING):
            self.do("push", stranger, limit=1, **by_version, **first)
        else:
            self.do("settle", stranger, limit=1, caller=stranger, **by_version)
        self.wait_for(due + CLEAR_SEC)

    def teardown(self) -> None:
        if not self.is_sound:
            if not self.book.failures:
                print(
                    "the history that failed, before it is made shorter:", *self.history, sep="\n"
                )
            self.book.failures += 1
            return
        for task in self.tasks:
            self.check_task(self.model.tasks[task], all_rounds=True)
        self.check_balances()

    # ---- who and what -----------------------------------------------------------------------

    def account(self, group: Sequence[str], index: int) -> str:
        return group[index % len(group)]

    def judge(self, task: Task, index: int) -> str:
        """Return one of the round's validators; the last index is anybody's."""
        everybody = [*self.arena.validators, self.arena.producer]
        if task.unsettled is None or index == INDEX_MAX:
            return everybody[index % len(everybody)]
        return self.account(task.unsettled.validators, index)

    def actor(self, task: Task, kind: str, self_: str) -> str:
        """Return who signs; "self" is the one who should."""
        others = {
            "self": self_,
            "owner": task.owner,
            "other owner": next(one for one in self.arena.owners if one != task.owner),
            "device": self.arena.devices[0],
            "validator": self.arena.validators[0],
            "stranger": self.arena.stranger,
            "contract": self.arena.contract,
        }
        return others[kind]

    def version(self, task: Task, offset: int) -> int:
        return max(0, task.version + offset) % 2**32

    def hash_of_kind(self, task: Task, device: str, kind: str) -> str:
        self.fresh += 1
        fresh = digest("upload", task.id, self.fresh)
        hashes = [one.upload_hash for one in task.ordered() if one.upload_version]
        known = hashes[0] if hashes else fresh
        return {
            "fresh": fresh,
            "of another": known,
            "same prefix": known[:16] + fresh[16:],
            "an account": f"{name_to_int(device):016x}" + fresh[16:],
            "short": fresh[:62],
            "long": fresh + "00",
            "zero": ZERO,
        }[kind]

    def slot_of_kind(self, task: Task, right: int, kind: str) -> int:
        uploads = task.unsettled.uploads if task.unsettled else 0
        return {"right": right, "next": right + 1, "past the last": uploads, "far": 2**32 - 1}[kind]

    def upload_cid(self, newest: Round | None, kind: str) -> str:
        """Return the CID that an upload comes with: none, where it is revealed later."""
        text = self.cid_of_kind(kind)
        return "" if newest and newest.reveal_sec and kind == "good" else text

    def cid_of_kind(self, kind: str) -> str:
        good = cid("file")
        return {"good": good, "Qm": "Qm", "bad": good[:-1] + "0"}[kind]

    def next_step(self, task: Task, mood: Mood) -> None:
        newest = task.unsettled
        if newest is None:
            self.open_plainly(task)
        elif newest.state == OPEN:
            self.upload_or_close(task, newest, mood)
        elif newest.state == VERIFYING:
            self.judge_or_push(task, newest, mood)
        elif newest.state == DRAWING:
            self.draw_or_push(task, newest, mood)
        elif newest.state == AUDITING:
            self.answer_or_push(task, newest, mood)
        elif newest.state == SUMMING:
            self.vote_or_push(task, newest, mood)
        elif newest.state == SUMMED:
            limit = len(task.members) // 2
            data = {"version": task.version, "limit": limit, "caller": task.owner}
            self.do("settle", task.owner, task=task.id, **data)

    def open_plainly(self, task: Task) -> None:
        phases = dict.fromkeys(("open_sec", "verdict_sec", "sum_sec"), 300)
        terms = round_document(budget=min(task.free, 20_000), **phases, **self.plain_terms[task.id])
        data = {"version": task.version + 1, "terms": terms}
        self.do("openround", task.owner, task=task.id, **data)

    def waiting(self, task: Task) -> list[str]:
        """Return the devices that may still upload."""
        return [
            member.account
            for member in task.of_role(DEVICE)
            if member.joined
            and member.upload_version != task.version
            and member.barred_until < task.version
        ]

    def uploads(self, task: Task, state: int) -> list[Member]:
        """Return the uploads that are in this state."""
        return [one for one in task.of_role(DEVICE) if one.upload_state == state]

    def undecided(self, task: Task) -> list[str]:
        """Return the devices whose uploads wait for something."""
        states = (PENDING, ACCEPTED, DRAWN)
        return [one.account for one in task.of_role(DEVICE) if one.upload_state in states]

    def is_late(self, task: Task, mood: Mood) -> bool:
        """Return whether to wait for the last deadline; who cannot be paid leaves no choice."""
        return mood.late or self.undecided(task) == [self.arena.hostile]

    def push_limit(self, task: Task) -> int:
        return 1 if self.arena.hostile in self.undecided(task) else 2

    def hides(self, device: str, mood: Mood) -> bool:
        return mood.hiding and self.arena.devices.index(device) % 2 == 0

    def lot_of(self, task: str, version: int, validator: str) -> str:
        """Return a validator's lot: the same in each run, although accounts have other names."""
        place = [*self.arena.validators, self.arena.producer].index(validator)
        return lot_value(task, version, place)

    def is_judge(self, task: Task, account: str) -> bool:
        return account in task.members and bool(task.members[account].joined)

    def upload_of(self, task: Task, device: str) -> None:
        data = {
            "device": device,
            "version": task.version,
            "hash": self.hash_of_kind(task, device, "fresh"),
            "cid": self.upload_cid(task.unsettled, "good"),
            "cost": HONEST_COST,
            "errors": FALL,
        }
        self.do("fedlearning", device, task=task.id, **data)

    def upload_or_close(self, task: Task, newest: Round, mood: Mood) -> None:
        if task.terms["lot_e6"] and not newest.uploads:
            for place, validator in enumerate(newest.validators):
                if newest.lots[place]["commitment"] == ZERO and self.is_judge(task, validator):
                    value = self.lot_of(task.id, task.version, validator)
                    right = lot_commitment(task.id, task.version, validator, value)
                    data = {"validator": validator, "commitment": right}
                    self.do("commitlot", validator, task=task.id, version=task.version, **data)
                    return
        waiting = self.waiting(task)
        is_over = self.arena.clock.now() >= newest.deadline
        if (
            waiting
            and newest.uploads < 3
            and HONEST_COST * newest.price <= task.free
            and not is_over
        ):
            self.upload_of(task, waiting[0])
            return
        if mood.patient and not 0 < newest.close_after <= newest.uploads:
            self.wait_for(newest.deadline + CLEAR_SEC)
        data = {"version": task.version, "caller": task.owner}
        self.do("closeround", task.owner, task=task.id, **data)

    def judge_or_push(self, task: Task, newest: Round, mood: Mood) -> None:
        by_version = {"task": task.id, "version": task.version}
        pending = self.uploads(task, PENDING)
        untold = [one for one in pending if one.upload_cid == ZERO]
        telling = [one for one in untold if not self.hides(one.account, mood)]
        is_over = self.arena.clock.now() >= newest.reveal_deadline
        if telling and not is_over:
            data = {"device": telling[0].account, "cid": cid("file")}
            self.do("reveal", telling[0].account, **by_version, **data)
            return
        known = [one for one in pending if is_over or one.upload_cid != ZERO]
        if self.judge_next(task, newest, known, mood.codes, "attest"):
            return
        if mood.patient:
            waits_for_verdicts = untold and not is_over and mood.codes
            late = self.is_late(task, mood)
            due = newest.verdicts_end if late else newest.verdict_deadline
            self.wait_for((newest.reveal_deadline if waits_for_verdicts else due) + CLEAR_SEC)
            if waits_for_verdicts:
                return
        self.do("push", self.arena.stranger, limit=self.push_limit(task), **by_version)

    def draw_or_push(self, task: Task, newest: Round, mood: Mood) -> None:
        by_version = {"task": task.id, "version": task.version}
        for place, validator in enumerate(newest.validators):
            value = self.lot_of(task.id, task.version, validator)
            right = lot_commitment(task.id, task.version, validator, value)
            hidden = {"commitment": right, "value": ZERO}
            if newest.lots[place] == hidden and not (mood.withholding and place == 0):
                self.do("reveallot", validator, validator=validator, value=value, **by_version)
                return
        late = self.is_late(task, mood)
        is_stuck = len(newest.values()) < newest.committed() or self.undecided(task) == [
            self.arena.hostile
        ]
        if mood.patient and is_stuck:
            self.wait_for(newest.audit_deadline + late * newest.audit_sec + CLEAR_SEC)
        self.do("push", self.arena.stranger, limit=self.push_limit(task), **by_version)

    def answer_or_push(self, task: Task, newest: Round, mood: Mood) -> None:
        by_version = {"task": task.id, "version": task.version}
        drawn = self.uploads(task, DRAWN)
        closed = [one for one in drawn if one.opening_cid == ZERO]
        is_over = self.arena.clock.now() >= newest.audit_deadline
        for one in closed:
            if not is_over and not self.hides(one.account, mood):
                data = {"device": one.account, "cid": cid("opening")}
                self.do("openupload", one.account, **by_version, **data)
                return
        opened = [one for one in drawn if one.opening_cid != ZERO]
        if self.judge_next(task, newest, opened, mood.audit_codes, "attestaudit"):
            return
        if mood.patient:
            waits = 0 if closed and not is_over else 1 + self.is_late(task, mood)
            self.wait_for(newest.audit_deadline + waits * newest.audit_sec + CLEAR_SEC)
        self.do("push", self.arena.stranger, limit=self.push_limit(task), **by_version)

    def judge_next(
        self,
        task: Task,
        newest: Round,
        uploads: Sequence[Member],
        codes: Sequence[int],
        action: str,
    ) -> bool:
        """Let the next validator that has not judge these uploads; return whether there is one."""
        for place, validator in enumerate(newest.validators if codes else []):
            code = codes[place % len(codes)]
            said = [
                _verdict(one, UNREVEALED if one.upload_cid == ZERO else code)
                for one in uploads
                if not task.ballot(one).verdict(place) and one.account != self.arena.hostile
            ]
            if said and self.is_judge(task, validator):
                data = {"version": task.version, "validator": validator, "verdicts": said}
                self.do(action, validator, task=task.id, **data)
                return True
        return False

    def vote_or_push(self, task: Task, newest: Round, mood: Mood) -> None:
        for place, validator in enumerate(newest.validators if mood.codes else []):
            if newest.sums[place]["hash"] == ZERO and validator in task.members:
                data = {"validator": validator, "hash": digest("sum", "right"), "cid": cid("sum")}
                self.do("attestsum", validator, task=task.id, version=task.version, **data)
                return
        if mood.patient:
            self.wait_for(newest.sum_deadline + CLEAR_SEC)
        self.do("push", self.arena.stranger, task=task.id, version=task.version, limit=1)

    def wait_for(self, moment: int) -> None:
        """Put the clock forward; not more than some times a history: each takes half a block."""
        if self.jumps_left and self.arena.clock.now() < moment:
            self.jumps_left -= 1
            self.book.jumps += 1
            self.arena.jump(moment)

    def join_as(self, task: str, account: str, classes: int) -> None:
        data = {"account": account, "enc_key": digest("enc", account), "classes": classes}
        self.do("join", account, task=task, **data)

    # ---- doing and checking -----------------------------------------------------------------

    def do(self, name: str, actor: str, **data: Any) -> None:
        """Do one action on the chain and in the model, and compare."""
        self.is_sound = False
        outcome = self.arena.act(name, actor, data)
        self.note(f"{name} by {actor}: {data}", outcome)
        expected, payments = None, []
        before = self.states_of(data["task"])
        try:
            payments = self.model.act(name, actor, outcome.now, data)
        except Refused as refusal:
            expected = refusal.code
        self.compare(name, outcome, expected)
        if name == "openround" and expected is None:
            task = self.model.tasks[data["task"]]
            task.rounds[task.version].opened_block = outcome.block
        for account, (state, reason) in self.states_of(data["task"]).items():
            if account in before and before[account][0] != state:
                self.book.uploads[f"{before[account][0]} to {state}, reason {reason}"] += 1
        self.check_payments(outcome, payments)
        self.check_after(data["task"])

    def states_of(self, task: str) -> dict[str, tuple[int, int]]:
        """Return the state of each member's upload, and its reason."""
        members = self.model.tasks[task].members if task in self.model.tasks else {}
        return {
            name: (one.upload_state, one.upload_reason)
            for name, one in members.items()
            if one.role == DEVICE
        }

    def send_money(self, task: str, token: str, sender: str, quantity: Asset, memo: str) -> None:
        self.is_sound = False
        outcome = self.arena.transfer(token, sender, quantity, memo)
        self.note(f"transfer of {token} by {sender}: {quantity}, {memo!r}", outcome)
        expected = None
        try:
            self.model.transfer(token, sender, quantity, memo)
        except Refused as refusal:
            expected = refusal.code
        self.compare("deposit", outcome, expected)
        self.check_after(task)

    def note(self, what: str, outcome: Outcome) -> None:
        self.history.append(f"  at {outcome.now}: {what}: {outcome.text or 'taken'}")

    def compare(self, name: str, outcome: Outcome, expected: str | None) -> None:
        self.book.steps += 1
        self.was_refused = expected is not None
        assert outcome.code == expected, (
            f"{name}: expected {'no refusal' if expected is None else repr(expected)}, "
            f"got {outcome.code!r}: {outcome.text} (at {outcome.now})"
        )
        if expected is None:
            self.book.taken[name] += 1
        else:
            self.book.refused.setdefault(name, Counter())[expected or "another contract"] += 1

    def check_payments(self, outcome: Outcome, payments: Sequence[Payment]) -> None:
        """Compare what was sent, and that no device has had money for the round before."""
        sent = []
        for trace in outcome.traces:
            act, receiver = trace["act"], trace["receiver"]
            if receiver != act["account"]:
                continue
            if (receiver, act["name"]) == (self.arena.contract, "payment"):
                said = ABI.unpack("payment", bytes.fromhex(act["hex_data"]))
                key = said["task"], said["version"], said["device"]
                assert key not in self.received, f"{key} is paid twice"
                self.received.add(key)
                self.book.paid_uploads += 1
            elif act["name"] == "transfer" and receiver == self.arena.token:
                raw = bytes.fromhex(act["hex_data"])
                to, units, symbol = (
                    int.from_bytes(raw[at : at + 8], "little") for at in (8, 16, 24)
                )
                sent.append((int_to_name(to), units, str(Symbol.from_int(symbol))))
        expected = [(one.to, one.quantity.amount, str(one.quantity.symbol)) for one in payments]
        assert sorted(sent) == sorted(expected), f"expected to send {expected}, sent {sent}"

    def check_after(self, task: str) -> None:
        if task in self.model.tasks:
            self.check_task(self.model.tasks[task])
        held = self.arena.balance(self.arena.contract) - self.held_before
        kept = sum(one.free + one.reserved for one in self.model.tasks.values())
        assert held == kept, f"the contract holds {held}, its tasks are owed {kept}"
        for owner in self.arena.owners:
            taken = self.arena.world.ram(owner) - self.ram_before[owner]
            expected = sum(one.ram() for one in self.model.tasks.values() if one.owner == owner)
            assert taken == expected, f"{owner} pays for {taken} bytes, expected {expected}"
        self.is_sound = True

    def check_task(self, task: Task, *, all_rounds: bool = False) -> None:
        """Compare the rows with the model, and with each other."""
        row = self.arena.row("tasks", self.arena.contract, name_to_int(task.id))
        assert row == task.row()
        members = self.arena.rows("members", task.id)
        assert members == [asdict(member) for member in task.ordered()]
        pages = self.arena.rows("ballots", task.id)
        assert pages == [
            {"page": number, "ballots": [asdict(ballot) for ballot in page]}
            for number, page in enumerate(task.pages())
        ]
        # a round that was settled before the last one is looked at again in the end
        least = 0 if all_rounds else task.version - 1
        rounds = self.arena.rows("rounds", task.id, least=least)
        assert [_without_frontier(one) for one in rounds] == [
            asdict(one) for version, one in task.rounds.items() if version >= least
        ]
        check_money(row, members, rounds)
        for one in rounds:
            self.check_state(task.id, one)

    def check_state(self, task: str, row: Mapping[str, Any]) -> None:
        key = task, row["version"]
        before = self.seen.get(key, OPEN)
        assert row["state"] >= before, f"round {key} went from {before} to {row['state']}"
        if row["state"] != self.seen.get(key):
            self.book.states[f"{self.seen.get(key, 0)} to {row['state']}"] += 1
        self.seen[key] = row["state"]
        if row["state"] == SETTLED:
            assert not any(row[name] for name in ("validators", "sums", "lots", "frontier"))
            assert row["pending"] == row["held"] == row["drawn"] == row["reserved"] == 0

    def check_balances(self) -> None:
        for (token, code, account), units in self.model.balances.items():
            found = self.arena.client.balance(token, account, code)
            assert (found.amount if found else 0) == units, (token, code, account)


def check_money(
    row: Mapping[str, Any],
    members: Sequence[Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
) -> None:
    """Check the task's money by its rows alone."""
    unsettled = [one for one in rounds if one["state"] != SETTLED]
    assert len(unsettled) <= 1
    paid = row["paid"] + sum(one["paid"] for one in unsettled)
    reserved = sum(one["reserved"] for one in unsettled)
    free = row["deposited"] - paid - reserved - row["withdrawn"]
    amounts = [row["deposited"], row["withdrawn"], paid, reserved, free]
    counted = ("paid", "reserved", "pending", "refused", "held", "drawn")
    amounts += [one[name] for one in rounds for name in counted]
    assert min(amounts) >= 0, amounts
    if len(rounds) == row["version"]:  # else some were not read
        assert row["paid"] == sum(one["paid"] for one in rounds if one["state"] == SETTLED)
    for one in unsettled:
        uploads = [each for each in members if each["upload_version"] == one["version"]]
        counts, prices = Counter[int](), Counter[int]()
        for each in uploads:
            counts[each["upload_state"]] += 1
            prices[each["upload_state"]] += each["upload_cost"] * one["price"]
        assert len(uploads) == one["uploads"]
        assert counts[PENDING] == one["pending"]
        assert (counts[ACCEPTED], counts[DRAWN]) == (one["held"], one["drawn"])
        assert counts[REFUSED] == one["refused"]
        assert prices[PENDING] + prices[ACCEPTED] + prices[DRAWN] == one["reserved"]
        assert prices[PAID] == one["paid"]


def _verdict(upload: Member, code: int) -> dict[str, Any]:
    return {"slot": upload.upload_slot, "hash": upload.upload_hash, "code": code}


def _without_frontier(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's row, times in seconds; the frontier is judged by the root it leads to."""
    times = {name: parse_time(row[name]) for name in row if name.endswith("deadline")}
    return {name: value for name, value in {**row, **times}.items() if name != "frontier"}
