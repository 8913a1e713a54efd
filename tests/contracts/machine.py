"""Random histories of the contract: every role does everything, rightly and wrongly.

Each rule is one action on the real chain, or a jump of its clock. What is drawn never depends on
the chain, so that a printed history can be played again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from contracts.arena import BAD, TOK, Arena, Outcome
from contracts.model import DEVICE, VALIDATOR, Payment, Refused, Round, Task
from contracts.world import (
    ABI,
    ACCEPT,
    OPEN,
    PENDING,
    SETTLED,
    SUMMED,
    SUMMING,
    VERIFYING,
    ZERO,
    cid,
    digest,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from gradledger.chain.abi import parse_time
from gradledger.chain.contract import Rule
from gradledger.chain.names import AMOUNT_MAX, Asset, Symbol, int_to_name, name_to_int

TASKS = 3
PHASE_STEPS_MAX = 6
JUMPS_MAX = 8
INDEX_MAX = 7
CLEAR_SEC = 10  # past a deadline, where it makes no difference how fast this machine is
HONEST_COST = 60
HASHES = ("fresh", "of another", "same prefix", "an account", "short", "long", "zero")
FALL = [900_000, 100_000, 50_000]  # meets every rule with tau = 100,000
SERIES = [
    *([1, 0], [400_000, 400_000], [1, 2, 3], [99_999], [100_000], [500_000, 400_000, 300_000]),
    *([], [0] * 6, [1_000_001, 0], [5, 4, 3, 2, 1]),
]


def mostly(good: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Draw the first value six times out of seven; failing histories shrink towards it."""
    return st.sampled_from([good] * (6 * len(others)) + list(others))


tasks = st.integers(0, TASKS - 1)
indices = st.integers(0, INDEX_MAX)
actors = mostly("self", "owner", "other owner", "device", "validator", "stranger", "contract")
version_offsets = mostly(0, -1, 1, 2**31)
cids = mostly("good", "Qm", "bad")


class Book:
    """What was done and paid over all histories of a run."""

    def __init__(self) -> None:
        self.steps = self.jumps = self.histories = self.failures = 0
        self.taken: Counter[str] = Counter()
        self.refused: dict[str, Counter[str]] = {}
        self.states: Counter[str] = Counter()
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
        self.plain_rule: dict[str, Rule] = {}  # of the rounds that honest owners open
        self.seen: dict[tuple[str, int], int] = {}  # the last state of a round
        self.received: set[tuple[str, int, str]] = set()
        self.fresh, self.jumps_left = 0, JUMPS_MAX
        self.is_sound = True
        self.history: list[str] = []
        self.book.histories += 1

    # ---- rules ------------------------------------------------------------------------------

    @initialize(
        modes=st.tuples(*[st.integers(0, 1)] * TASKS),
        silences=st.tuples(*[st.integers(0, 1)] * TASKS),
        devices_max=st.integers(4, 7),
        members=st.tuples(*[st.integers(4, 6)] * TASKS),
        validators=st.tuples(*[st.integers(1, 4)] * TASKS),
        funds=st.tuples(*[st.sampled_from([100_000, 2_000, 700])] * TASKS),
        rules=st.tuples(*[st.sampled_from(list(Rule))] * TASKS),
        producers=st.booleans(),
    )
    def begin(
        self,
        modes: Sequence[int],
        silences: Sequence[int],
        devices_max: int,
        members: Sequence[int],
        validators: Sequence[int],
        funds: Sequence[int],
        rules: Sequence[Rule],
        producers: bool,
    ) -> None:
        """Two tasks of one owner and one of another; the last may have producers judge."""
        for at in range(TASKS):
            owner = self.arena.owners[at % 2]
            task = self.arena.new_task_name()
            self.tasks.append(task)
            self.plain_rule[task] = rules[at]
            by_producers = producers and at == TASKS - 1
            terms = {
                "token_contract": self.arena.token,
                "token_symbol": str(TOK),
                "mode": modes[at],
                "is_public": 0,
                "validators_kind": int(by_producers),
                "silence": silences[at],
                "classes": 10,
                "errors_max": 5,
                "cost_max": 1000,
                "devices_max": devices_max,
                "sum_min": 3,
                "parameters": 2410,
                "slot_bits": 26,
                "clip_e6": 1_000_000,
                "key_hash": ZERO if modes[at] else digest("key"),
                "card_cid": cid("card"),
                "card_hash": digest("card"),
            }
            self.do("createtask", owner, task=task, owner=owner, terms=terms)
            devices = self.arena.devices[-members[at] :][:devices_max]
            judges = self.arena.validators[: validators[at]]
            judges = [self.arena.producer] if by_producers else judges
            self.do("admit", owner, task=task, accounts=devices, role=DEVICE)
            self.do("admit", owner, task=task, accounts=judges, role=VALIDATOR)
            for account in (*devices, *judges):
                classes = 7 if account in devices else 0
                self.join_as(task, account, classes)
            self.send_money(task, self.arena.token, owner, Asset(funds[at], TOK), task)
            self.open_plainly(self.model.tasks[task])

    @rule(task=tasks, count=st.integers(1, 6), patient=st.booleans())
    def take_part(self, task: int, count: int, patient: bool) -> None:
        """Do what honest participants would do next; patient ones wait for deadlines."""
        for _ in range(count):
            self.next_step(self.model.tasks[self.tasks[task]], patient)

    @rule(
        task=tasks,
        patient=mostly(True, False),
        silent=st.sampled_from([False, False, True]),
        whole=st.booleans(),
    )
    def finish(self, task: int, patient: bool, silent: bool, whole: bool) -> None:
        """Do so until the round is in another state, or settled; silent validators say nothing."""
        newest = self.model.tasks[self.tasks[task]].unsettled
        self.go_on(
            task, patient, silent, until=newest.state + 1 if newest and not whole else SETTLED
        )

    def go_on(self, task: int, patient: bool, silent: bool, until: int) -> None:
        for _ in range(PHASE_STEPS_MAX):
            self.next_step(self.model.tasks[self.tasks[task]], patient, silent)
            found = self.model.tasks[self.tasks[task]]
            if found.version and found.rounds[found.version].state >= until:
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
            "cid": self.cid_of_kind(cid_kind),
            "cost": cost,
            "errors": errors,
        }
        name = "uploadgrad" if internal else "fedlearning"
        self.do(name, self.actor(found, actor, account), task=found.id, **data)

    @rule(task=tasks, code=st.sampled_from([ACCEPT, 4]), first=indices, count=st.integers(1, 4))
    def judge_together(self, task: int, code: int, first: int, count: int) -> None:
        """Some validators in turn judge what each has not, be it decided or late."""
        found = self.model.tasks[self.tasks[task]]
        newest = found.unsettled
        if newest is None:
            return
        for place in range(first, first + min(count, len(newest.validators))):
            found = self.model.tasks[self.tasks[task]]
            place %= len(newest.validators)
            said = [
                {"hash": one.upload_hash, "code": code}
                for one in found.of_role(DEVICE)
                if one.upload_version == found.version and not one.verdict(place)
            ]
            if not said:
                continue
            validator = newest.validators[place]
            data = {"version": found.version, "validator": validator, "verdicts": said}
            self.do("attest", validator, task=found.id, **data)

    @rule(
        task=tasks,
        validator=indices,
        actor=actors,
        offset=version_offsets,
        verdicts=st.lists(st.tuples(indices, mostly(ACCEPT, 0, 2, 4, 9, 10, 255)), max_size=3),
        everything=mostly(True, False),
        code=mostly(ACCEPT, 4),
        unknown=mostly(False, True),
    )
    def attest(
        self,
        task: int,
        validator: int,
        actor: str,
        offset: int,
        verdicts: list[tuple[int, int]],
        everything: bool,
        code: int,
        unknown: bool,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        account = self.judge(found, validator)
        uploads = [one for one in found.of_role(DEVICE) if one.upload_version]
        said = [{"hash": one.upload_hash, "code": code} for one in uploads] if everything else []
        if not everything and uploads:
            said = [
                {"hash": uploads[index % len(uploads)].upload_hash, "code": code_}
                for index, code_ in verdicts
            ]
        if unknown:
            said.append({"hash": digest("unknown"), "code": code})
        data = {"version": self.version(found, offset), "validator": account, "verdicts": said}
        self.do("attest", self.actor(found, actor, account), task=found.id, **data)

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
        phases=st.tuples(*[st.sampled_from([300, 60, 900])] * 3),
        phase=mostly("good", "zero", "long"),
        close_after=st.sampled_from([1, 0, 2, 5]),
        which=st.sampled_from([*Rule, 0, max(Rule) + 1]),
        tau=mostly(100_000, 0, 1_000_001, 1_000_002),
        field=mostly("", "model_hash", "epochs", "batch_size", "measures", "cid"),
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
        close_after: int,
        which: int,
        tau: int,
        field: str,
    ) -> None:
        found = self.model.tasks[self.tasks[task]]
        free = found.free
        budgets = {"some": free // 2, "all": free, "too much": free + 1, "none": 0, "negative": -1}
        training = {"epochs": 1, "batch_size": 32, "rate_e6": 50_000, "measures": 4, "seed": 7}
        if field in training:
            training[field] = 0
        terms = {
            "model_cid": "Qm" if field == "cid" else cid("model"),
            "model_hash": ZERO if field == "model_hash" else digest("model"),
            "price": price,
            "budget": budgets[budget],
            "open_sec": {"good": phases[0], "zero": 0, "long": 2**32 - 1}[phase],
            "verdict_sec": phases[1],
            "sum_sec": phases[2],
            "close_after": close_after,
            "rule": int(which),
            "tau": tau,
            "eta_e6": 1_000_000,
            "training": training,
        }
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
        second=st.booleans(),
        start=st.none() | indices,
    )
    def reach_deadline(self, task: int, later: int, second: bool, start: int | None) -> None:
        """Go to a deadline or to the second before it, and do at once what it is about."""
        found = self.model.tasks[self.tasks[task]]
        newest = found.unsettled
        if newest is None or self.jumps_left < 2:
            return
        stranger, by_version = self.arena.stranger, {"task": found.id, "version": found.version}
        due = {
            OPEN: newest.deadline,
            VERIFYING: newest.verdict_deadline + second * newest.verdict_sec,
        }.get(newest.state, newest.sum_deadline)
        self.wait_for(due + later)
        if newest.state == OPEN:
            self.upload_of(found, (self.waiting(found) or self.arena.devices)[0])
            self.do("closeround", stranger, caller=stranger, **by_version)
        elif newest.state == VERIFYING:
            self.judge_or_push(found, newest, patient=False, silent=start is not None)
            first = {} if start is None else {"start": self.account(self.arena.devices, start)}
            self.do("push", stranger, limit=1, **by_version, **first)
        elif newest.state == SUMMING:
            self.do("push", stranger, limit=1, **by_version)
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

    def cid_of_kind(self, kind: str) -> str:
        good = cid("file")
        return {"good": good, "Qm": "Qm", "bad": good[:-1] + "0"}[kind]

    def next_step(self, task: Task, patient: bool, silent: bool = False) -> None:
        newest = task.unsettled
        if newest is None:
            self.open_plainly(task)
        elif newest.state == OPEN:
            self.upload_or_close(task, newest, patient)
        elif newest.state == VERIFYING:
            self.judge_or_push(task, newest, patient, silent)
        elif newest.state == SUMMING:
            self.vote_or_push(task, newest, patient, silent)
        elif newest.state == SUMMED:
            data = {"version": task.version, "limit": 4, "caller": task.owner}
            self.do("settle", task.owner, task=task.id, **data)

    def open_plainly(self, task: Task) -> None:
        training = {"epochs": 1, "batch_size": 32, "rate_e6": 50_000, "measures": 4, "seed": 7}
        terms = {
            "model_cid": cid("model"),
            "model_hash": digest("model"),
            "price": 10,
            "budget": min(task.free, 20_000),
            "open_sec": 300,
            "verdict_sec": 300,
            "sum_sec": 300,
            "close_after": 1,
            "rule": int(self.plain_rule[task.id]),
            "tau": 100_000,
            "eta_e6": 1_000_000,
            "training": training,
        }
        data = {"version": task.version + 1, "terms": terms}
        self.do("openround", task.owner, task=task.id, **data)

    def waiting(self, task: Task) -> list[str]:
        """Return the devices that may still upload."""
        return [
            member.account
            for member in task.of_role(DEVICE)
            if member.joined and member.upload_version != task.version
        ]

    def upload_of(self, task: Task, device: str) -> None:
        data = {
            "device": device,
            "version": task.version,
            "hash": self.hash_of_kind(task, device, "fresh"),
            "cid": cid("file"),
            "cost": HONEST_COST,
            "errors": FALL,
        }
        self.do("fedlearning", device, task=task.id, **data)

    def upload_or_close(self, task: Task, newest: Round, patient: bool) -> None:
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
        if patient and not 0 < newest.close_after <= newest.uploads:
            self.wait_for(newest.deadline + CLEAR_SEC)
        data = {"version": task.version, "caller": task.owner}
        self.do("closeround", task.owner, task=task.id, **data)

    def judge_or_push(self, task: Task, newest: Round, patient: bool, silent: bool) -> None:
        pending = [one for one in task.of_role(DEVICE) if one.upload_state == PENDING]
        for place, validator in enumerate([] if silent else newest.validators):
            said = [
                {"hash": one.upload_hash, "code": ACCEPT}
                for one in pending
                if not one.verdict(place) and one.account != self.arena.hostile
            ]
            if said and validator in task.members and task.members[validator].joined:
                data = {"version": task.version, "validator": validator, "verdicts": said}
                self.do("attest", validator, task=task.id, **data)
                return
        if patient:
            self.wait_for(newest.verdict_deadline + CLEAR_SEC)
        data = {"version": task.version, "limit": 2}
        self.do("push", self.arena.stranger, task=task.id, **data)

    def vote_or_push(self, task: Task, newest: Round, patient: bool, silent: bool) -> None:
        for place, validator in enumerate([] if silent else newest.validators):
            if newest.sums[place]["hash"] == ZERO and validator in task.members:
                data = {"validator": validator, "hash": digest("sum", "right"), "cid": cid("sum")}
                self.do("attestsum", validator, task=task.id, version=task.version, **data)
                return
        if patient:
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
        try:
            payments = self.model.act(name, actor, outcome.now, data)
        except Refused as refusal:
            expected = refusal.code
        self.compare(name, outcome, expected)
        self.check_payments(outcome, payments)
        self.check_after(data["task"])

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
            assert not row["validators"] and not row["sums"] and not row["frontier"]
            assert row["pending"] == row["reserved"] == 0

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
    amounts += [one[name] for one in rounds for name in ("paid", "reserved", "pending", "refused")]
    assert min(amounts) >= 0, amounts
    if len(rounds) == row["version"]:  # else some were not read
        assert row["paid"] == sum(one["paid"] for one in rounds if one["state"] == SETTLED)
    for one in unsettled:
        uploads = [each for each in members if each["upload_version"] == one["version"]]
        prices = dict.fromkeys((1, 2, 3), 0)
        for each in uploads:
            prices[each["upload_state"]] += each["upload_cost"] * one["price"]
        assert len(uploads) == one["uploads"]
        assert prices[1] == one["reserved"] and prices[2] == one["paid"]


def _without_frontier(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's row, times in seconds; the frontier is judged by the root it leads to."""
    times = {
        name: parse_time(row[name]) for name in ("deadline", "verdict_deadline", "sum_deadline")
    }
    return {name: value for name, value in {**row, **times}.items() if name != "frontier"}
