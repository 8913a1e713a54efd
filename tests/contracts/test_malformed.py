"""Malformed action data, sent to a real node: each ends in a check and nothing changes.

Payload `i` of a seed depends on both alone, so that a single one can be sent again. What mutation
leaves in a form that the ABI allows is no malformed payload: it is sent in one transaction with an
action that is refused in any case, and counted apart.

``make soak`` sends 100,000 and writes bench/results/malformed.json. Read from the environment:
MALFORMED_PAYLOADS, MALFORMED_SEED, MALFORMED_OUT (a file for the result).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from contracts.test_money import NOTIFIER
from contracts.world import (
    ABI,
    AUDITING,
    DRAWING,
    OPEN,
    SETTLED,
    SUMMED,
    SUMMING,
    VERIFYING,
    ZERO,
    Scene,
    World,
    cid,
    digest,
    lot_value,
    round_document,
)

from bench.machine import machine
from gradledger.chain.abi import Abi, pack_varuint32, parse_time
from gradledger.chain.transaction import Action, Transaction, action
from gradledger.errors import ConfigError, ContractError, NodeError
from gradledger.localnet import system

PAYLOADS = int(os.environ.get("MALFORMED_PAYLOADS", "3000"))
SEED = int(os.environ.get("MALFORMED_SEED", "1"))
OUT = os.environ.get("MALFORMED_OUT", "")
TRIES_MAX = 3
PIECE = 10_000  # payloads between two looks at tables and balances
BLOCK_REFRESH = 2_000  # payloads that refer to one block
SOURCES = Path(__file__).parents[2] / "eosio_contracts" / "fedlearning"
GUARD = "nosuchtask"
TOKEN_HEAD = 32  # bytes of a transfer before its memo
HUGE_BYTES = 20_000  # the contract reads no more arguments than that


def structural(document: dict[str, Any]) -> Abi:
    """Return the ABI with types that have a form and no further rules about values."""
    plain = {"string": "bytes", "symbol": "uint64", "asset": "raw_asset"}
    structs = [
        {
            **struct,
            "fields": [
                {**one, "type": plain.get(one["type"], one["type"])} for one in struct["fields"]
            ],
        }
        for struct in document["structs"]
    ]
    for name, fields in {
        "raw_asset": {"amount": "int64", "symbol": "uint64"},
        "transfer": {"from": "name", "to": "name", "quantity": "raw_asset", "memo": "bytes"},
    }.items():
        pairs = [{"name": key, "type": kind} for key, kind in fields.items()]
        structs.append({"name": name, "base": "", "fields": pairs})
    return Abi({"structs": structs, "actions": document["actions"]})


FORMS = structural(
    json.loads(resources.files("gradledger.artifacts").joinpath("fedlearning.abi").read_bytes())
)


@dataclass(frozen=True)
class Base:
    """An action that would be taken as it stands, unless only the contract itself may call it."""

    name: str
    action: Action
    fields: tuple[tuple[str, bytes], ...]  # kind and bytes of each, in order
    illegal: tuple[bytes, ...] = ()  # of the right form, with a value that is never allowed
    through: str = ""  # the other contract that gets it first

    def is_well_formed(self, data: bytes) -> bool:
        try:
            FORMS.unpack(self.name, data)
        except ConfigError:
            return False
        return True


@dataclass
class Stage:
    """Tasks in every state, the actions that fit them, and all that no payload may change."""

    world: World
    scenes: list[Scene]
    bases: list[Base]
    accounts: list[str]
    token: str

    def everything(self) -> str:
        """Return a digest of the tables, balances and RAM."""
        world = self.world
        found: list[Any] = [
            [list(world.client.table_rows(world.contract, world.contract, "tasks", abi=ABI))],
            [[scene.members(), scene.rounds(), scene.pages()] for scene in self.scenes],
            [[world.balance(one, self.token), world.ram(one)] for one in self.accounts],
            world.balance(world.contract, self.token),
        ]
        query = {"code": world.contract, "limit": 10_000}
        found.append(world.client.call("/v1/chain/get_table_by_scope", query))
        return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()


@pytest.fixture(scope="module")
def stage(world: World) -> Stage:
    # validators of other tests may still be paying for uploads: a token that is not theirs
    token, bank = world.new_token("10000.0000 TOK")
    world.push([world.transfer(token, bank, "10000.0000 TOK", "", to=world.creator)])
    opened = Scene.make(world, devices=4, token_contract=token)
    opened.do(opened.open(), opened.upload(opened.devices[0]))
    ended = []
    for state in (SUMMING, SUMMED, SETTLED):
        scene = Scene.make(world, token_contract=token)
        scene.do(scene.open(sum_sec=1), *[scene.upload(d) for d in scene.devices])
        scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()], scene.close())
        if state != SUMMING:
            scene.do(*[scene.vote_sum(v) for v in scene.quorum()])
        if state == SETTLED:
            scene.do(scene.settle())
        assert scene.round()["state"] == state
        ended.append(scene)
    audited = [audited_scene(world, token, state) for state in (OPEN, VERIFYING, DRAWING, AUDITING)]
    forger, newcomer = world.accounts(2)
    world.push(system.set_contract(forger, NOTIFIER, b'{"version": "eosio::abi/1.1"}'))
    bases = make_bases(world, opened, *ended, forger=forger, newcomer=newcomer)
    bases += audit_bases(*audited)
    scenes = [opened, *ended, *audited]
    people = [one for s in scenes for one in (s.owner, *s.devices, *s.validators)]
    accounts = [*people, forger, newcomer, token, world.creator]
    ended[0].wait(parse_time(ended[0].round()["sum_deadline"]))
    return Stage(world, scenes, bases, accounts, token)


def audited_scene(world: World, token: str, state: int) -> Scene:
    """Return a task with lots whose round is in this state; its CIDs are revealed later."""
    scene = Scene.make(world, token_contract=token, lot_e6=1_000_000, bar_rounds=1)
    scene.do(scene.open(reveal_sec=3600), *[scene.commit_lot(v) for v in scene.quorum()])
    if state != OPEN:
        scene.do(*[scene.upload(d, cid="") for d in scene.devices], scene.close())
    if state in (DRAWING, AUDITING):
        scene.do(*[scene.reveal(d) for d in scene.devices])
        scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    if state == AUDITING:
        lots = [scene.reveal_lot(v) for v in scene.quorum()]
        scene.do(*lots, scene.push_on(world.creator), scene.opening(scene.devices[0]))
    assert scene.round()["state"] == state
    return scene


def make_base(
    world: World,
    name: str,
    actor: str,
    data: dict[str, Any],
    illegal: dict[str, list[Any]] | None = None,
) -> Base:
    """Return an action with its fields, and with what these may never have."""
    one = world.act(name, actor, **data)
    fields = tuple(
        (kind, ABI.pack(kind.rstrip("$"), data[key]))
        for key, kind in ABI.fields(ABI.actions[name])
        if key in data
    )
    assert b"".join(raw for _, raw in fields) == one.data
    wrong = [
        ABI.pack_action(name, _with(data, path, value))
        for path, values in (illegal or {}).items()
        for value in values
    ]
    return Base(name, one, fields, tuple(wrong))


NO_CIDS = ["", "Qm", cid("a")[:-1], cid("a") + "1", "0" + cid("a")[1:], "z" * 46]
NO_VERSIONS = [0, 2, 2**32 - 1]
NO_SLOTS = [1, 3, 31, 32, 2**31, 2**32 - 1]  # of the first device


def no_verdicts(verdict: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return what no list of verdicts may be."""
    wrong = ({"code": 0}, {"code": 18}, {"hash": ZERO}, *[{"slot": n} for n in NO_SLOTS])
    return [[], [verdict, verdict], *[[{**verdict, **one}] for one in wrong]]


def audit_bases(opened: Scene, verifying: Scene, drawing: Scene, auditing: Scene) -> list[Base]:
    """Return one of each action of commit and reveal, lots and audits."""

    def base(
        name: str, scene: Scene, role: str, data: dict[str, Any], illegal: dict[str, list[Any]]
    ) -> Base:
        actor = {
            "device": scene.devices[1],
            "first": scene.validators[0],
            "last": scene.validators[3],
        }[role]
        who = {"device" if role == "device" else "validator": actor}
        known = {"task": scene.task, "version": 1, **who, **data}
        return make_base(scene.world, name, actor, known, {"version": NO_VERSIONS, **illegal})

    verdict = {
        "slot": 0,
        "hash": digest("upload", auditing.task, auditing.devices[0], 1),
        "code": 1,
    }
    value = lot_value(drawing.validators[0], 1)
    return [
        base("commitlot", opened, "last", {"commitment": digest("lot")}, {"commitment": [ZERO]}),
        base("reveal", verifying, "device", {"cid": cid("file")}, {"cid": NO_CIDS}),
        base("reveallot", drawing, "first", {"value": value}, {"value": [ZERO, digest("other")]}),
        base("openupload", auditing, "device", {"cid": cid("opening")}, {"cid": NO_CIDS}),
        base(
            "attestaudit",
            auditing,
            "first",
            {"verdicts": [verdict]},
            {"verdicts": no_verdicts(verdict)},
        ),
    ]


def make_bases(
    world: World,
    opened: Scene,
    summing: Scene,
    summed: Scene,
    settled: Scene,
    *,
    forger: str,
    newcomer: str,
) -> list[Base]:
    """Return one action of each kind, with values that its fields may never have."""
    contract, device = world.contract, opened.devices[1]
    upload = opened.upload_data(device)
    verdict = {"slot": 0, "hash": digest("upload", opened.task, opened.devices[0], 1), "code": 1}
    round_data = round_document(2, budget=1000)

    def base(
        name: str, actor: str, data: dict[str, Any], illegal: dict[str, list[Any]] | None = None
    ) -> Base:
        return make_base(world, name, actor, data, illegal)

    uploads = {
        "hash": ["", "00", "11" * 31, "11" * 33, ZERO],
        "cid": NO_CIDS,
        "cost": [0, 1001, 2**32 - 1],
        "errors": [[], [1_000_001], [2**32 - 1, 0], [5, 4, 3, 2, 1, 0], [0] * 64, [1, 1], [1, 2]],
        "version": NO_VERSIONS,
    }
    by_round = {
        "price": [0, -1, -(2**63), 2**62, 2**63 - 1],
        "budget": [-1, -(2**63), 2**62],
        "open_sec": [0, 30 * 86400 + 1, 2**32 - 1],
        "verdict_sec": [0, 2**32 - 1],
        "sum_sec": [0, 2**32 - 1],
        "reveal_sec": [2**32 - 1],
        "audit_sec": [1, 2**32 - 1],
        "rule": [0, 255],
        "tau": [1_000_002, 2**32 - 1],
        "model_hash": [ZERO],
        "model_cid": ["", "Qm", "1" * 46],
        "training.epochs": [0],
        "training.batch_size": [0],
        "training.measures": [0, 6],
    }
    by_task = {
        "mode": [2, 255],
        "is_public": [2],
        "validators_kind": [2],
        "silence": [2],
        "classes": [0, 65],
        "errors_max": [0, 1, 65],
        "cost_max": [0],
        "devices_max": [0],
        "sum_min": [0, 2, 1001],
        "parameters": [0, 2**31],
        "slot_bits": [0, 16, 25, 33],
        "clip_e6": [0],
        "key_hash": [ZERO],
        "card_cid": ["", "Qm", "O" * 46],
        "card_hash": [ZERO],
        "lot_e6": [1_000_001],
        "bar_rounds": [10_001],
        "token_contract": ["nosuchtoken", ""],
    }
    internal = {"version": 1, "device": device, "quantity": "0.0001 TOK"}
    quantities = ["0.0000 TOK", "-0.0001 TOK", "1.00 TOK", "1.0000 OTHER", "400000000000.0000 TOK"]
    of = {"task": opened.task}
    found = [
        base("fedlearning", device, {**of, **upload}, uploads),
        base("uploadgrad", contract, {**of, **upload}, uploads),
        base("payment", contract, {**of, **internal}),
        base(
            "createtask",
            opened.owner,
            {"task": "newtask", "owner": opened.owner, "terms": opened.terms},
            {"task": [""], **{f"terms.{key}": values for key, values in by_task.items()}},
        ),
        base(
            "admit",
            opened.owner,
            {**of, "accounts": [newcomer], "role": 1},
            {"role": [0, 3, 255], "accounts": [[], ["nosuchperson"], [""], [newcomer] * 2]},
        ),
        base(
            "remove",
            opened.owner,
            {**of, "account": opened.devices[3]},
            {"account": ["", "nosuchperson"]},
        ),
        base(
            "issueset",
            opened.owner,
            {**of, "device": device, "version": 1, "cid": cid("set"), "hash": digest("set")},
            {key: uploads[key] for key in ("hash", "cid", "version")},
        ),
        base(
            "openround",
            settled.owner,
            {"task": settled.task, "version": 2, "terms": round_data},
            {
                "version": [0, 1, 3, 2**32 - 1],
                **{f"terms.{key}": values for key, values in by_round.items()},
            },
        ),
        base("withdraw", opened.owner, {**of, "quantity": "0.0001 TOK"}, {"quantity": quantities}),
        base(
            "join",
            settled.devices[0],
            {
                "task": settled.task,
                "account": settled.devices[0],
                "enc_key": digest("key"),
                "classes": 1,
            },
            {"enc_key": [ZERO], "classes": [0, 1024, 2**64 - 1]},
        ),
        base(
            "attest",
            opened.validators[0],
            {**of, "version": 1, "validator": opened.validators[0], "verdicts": [verdict]},
            {
                "version": [0, 2, 2**32 - 1],
                "verdicts": no_verdicts(verdict),
            },
        ),
        base(
            "attestsum",
            summing.validators[0],
            {
                "task": summing.task,
                "version": 1,
                "validator": summing.validators[0],
                "hash": digest("sum"),
                "cid": cid("sum"),
            },
            {"hash": [ZERO], "cid": uploads["cid"], "version": [0, 2]},
        ),
        base(
            "closeround",
            opened.owner,
            {**of, "version": 1, "caller": opened.owner},
            {"version": [0, 2, 2**32 - 1]},
        ),
        base(
            "push",
            world.creator,
            {"task": summing.task, "version": 1, "limit": 10, "start": summing.devices[0]},
            {"version": [0, 2, 2**32 - 1]},
        ),
        base(
            "settle",
            summed.owner,
            {"task": summed.task, "version": 1, "limit": 10, "caller": summed.owner},
            {"limit": [0], "version": [0, 2, 2**32 - 1]},
        ),
    ]
    deposit = world.transfer(
        opened.terms["token_contract"], opened.owner, "0.0001 TOK", opened.task
    )
    memo = pack_varuint32(len(opened.task)) + opened.task.encode()
    fields = (
        ("name", deposit.data[:8]),
        ("name", deposit.data[8:16]),
        ("asset", deposit.data[16:32]),
        ("string", memo),
    )
    assert b"".join(raw for _, raw in fields) == deposit.data
    fake = action(forger, "transfer", opened.owner, deposit.data)
    found.append(Base("transfer", deposit, fields, through="eosio.token"))
    found.append(Base("transfer", fake, fields, (deposit.data,), through="a false token"))
    return found


def _with(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return `data` with another value at a path of names."""
    name, _, rest = path.partition(".")
    return {**data, name: _with(data[name], rest, value) if rest else value}


# ---- mutations ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Payload:
    """What is sent. `must_fail`: its form or a value in it is never allowed."""

    kind: str
    base: Base
    action: Action
    must_fail: bool


def make_payload(bases: list[Base], number: int) -> Payload:
    """Return payload `number` of the seed."""
    rng = random.Random(f"{SEED} {number}")
    base = rng.choice(bases)
    kinds = TOKEN_MUTATIONS if base.through == "eosio.token" else MUTATIONS
    kind = rng.choice(sorted(kinds))
    data = MUTATIONS[kind](rng, base, bases)
    name = base.action.name
    if kind == "unknown action":
        name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz12345", k=rng.randint(1, 12)))
        must_fail = not base.through and name not in ABI.actions
    else:
        must_fail = kind in NEVER_ALLOWED or not base.is_well_formed(data)
    sent = Action(base.action.account, name, base.action.authorization, data)
    return Payload(kind, base, sent, must_fail)


def _random_bytes(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    data = rng.randbytes(rng.choice([0, 1, 7, 8, 9, rng.randint(0, 64), rng.randint(0, 600)]))
    return data[:TOKEN_HEAD] if base.through == "eosio.token" else data


def _truncated(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    return base.action.data[: rng.randrange(len(base.action.data))]


def _extended(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    return base.action.data + rng.randbytes(rng.choice([1, 2, 8, rng.randint(1, 200)]))


def _flipped(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    """Flip some bits; half of the time until the form is broken, where that can be."""
    tries = rng.choice([1, 40])
    for _ in range(tries):
        data = bytearray(base.action.data)
        for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
            at = rng.randrange(8 * len(data))
            data[at // 8] ^= 1 << at % 8
        if not base.is_well_formed(bytes(data)):
            break
    return bytes(data)


def _absurd_length(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    """Put another number before the elements of a vector or text."""
    lengths = [
        b"\xff\xff\xff\xff\x0f",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff\xff\xff\xff\x10",
        b"\x80" * rng.randint(1, 12),
        b"\x80\x80\x80\x80\x08",
        b"\xff" * rng.randint(1, 40),
        pack_varuint32(rng.randrange(2**32)),
        pack_varuint32(rng.randrange(300)),
        b"\x80\x00",
    ]
    pieces = [raw for _, raw in base.fields]
    places = [at for at, (kind, _) in enumerate(base.fields) if _has_length(kind)]
    if not places:  # nothing in it has a length: one in front of everything
        return rng.choice(lengths) + base.action.data
    at = rng.choice(places)
    pieces[at] = rng.choice(lengths) + pieces[at][1:]
    return b"".join(pieces)


def _has_length(kind: str) -> bool:
    return kind.endswith("[]") or kind in ("string", "bytes")


def _huge_vector(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    """Fill a vector or text with more than any action takes, or send more than is read at all."""
    sizes = {"uint32[]": 4, "name[]": 8, "verdict[]": 37, "string": 1, "bytes": 1}
    most = {"uint32[]": 64, "name[]": 100, "verdict[]": 500, "string": 300, "bytes": 32}
    places = [at for at, (kind, _) in enumerate(base.fields) if kind in sizes]
    if not places:
        return base.action.data + rng.randbytes(HUGE_BYTES)
    pieces = [raw for _, raw in base.fields]
    at = rng.choice(places)
    kind = base.fields[at][0]
    count = most[kind] + rng.choice([1, 2, rng.randint(1, 400)])
    pieces[at] = pack_varuint32(count) + rng.randbytes(sizes[kind] * count)
    return b"".join(pieces)


def _of_another_action(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    return rng.choice(bases).action.data


def _wrong_types(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    """Leave fields out, repeat them, change their order, or take other actions' instead."""
    pieces = [raw for _, raw in base.fields]
    others = [raw for one in bases for _, raw in one.fields]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(pieces)) if pieces else 0
        change = rng.randrange(4)
        if change == 0 and pieces:
            del pieces[at]
        elif change == 1 and pieces:
            pieces.insert(at, pieces[at])
        elif change == 2:
            rng.shuffle(pieces)
        elif pieces:
            pieces[at] = rng.choice(others)
    return b"".join(pieces)


def _illegal_value(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    """Return a value that no field may have; truncated data for actions without one."""
    return rng.choice(base.illegal) if base.illegal else _truncated(rng, base, bases)


def _as_it_is(rng: random.Random, base: Base, bases: list[Base]) -> bytes:
    return base.action.data


MUTATIONS: dict[str, Callable[[random.Random, Base, list[Base]], bytes]] = {
    "random bytes": _random_bytes,
    "truncated": _truncated,
    "extended": _extended,
    "bits flipped": _flipped,
    "absurd length": _absurd_length,
    "huge vector": _huge_vector,
    "data of another action": _of_another_action,
    "wrong types": _wrong_types,
    "illegal value": _illegal_value,
    "unknown action": _as_it_is,
}
# An absurd length costs eosio.token itself the whole time of a transaction; it never gets here.
# So its random bytes end where the length of the memo would be.
TOKEN_MUTATIONS = {"truncated", "extended", "bits flipped", "random bytes"}
NEVER_ALLOWED = {"huge vector", "illegal value"}


# ---- sending --------------------------------------------------------------------------------


@dataclass
class Sender:
    """Sends payloads and counts what became of them."""

    stage: Stage
    codes: set[str]  # the first words of the contract's refusals
    by_kind: Counter[str] = field(default_factory=Counter)
    by_action: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    well_formed: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self.guard = self.stage.world.act(
            "push", self.stage.world.creator, task=GUARD, version=1, limit=1
        )
        self.refresh()

    @property
    def malformed(self) -> int:
        return sum(self.by_kind.values())

    def refresh(self) -> None:
        info = self.stage.world.client.get_info()
        self._chain_id, self._block_id, self._time = (
            info.chain_id,
            info.irreversible_id,
            info.head_time,
        )

    def refusal(self, *actions: Action) -> str:
        """Return the message of the check that the actions end in; another failure is raised."""
        world = self.stage.world
        actors = {actor for one in actions for actor, _ in one.authorization}
        keys = [world.key if one in world.made else world.key_of(one) for one in sorted(actors)]
        for left in reversed(range(TRIES_MAX)):
            expiration = self._time + 300 + next(self._numbers) % 3000
            transaction = Transaction.refer(actions, expiration, self._block_id)
            try:
                world.client.send(transaction.sign(self._chain_id, keys))
                break
            except ContractError as error:
                return str(error)
            except NodeError:  # perhaps the machine is busy and the time was up
                if not left:
                    raise
        raise AssertionError("it was taken")

    def send(self, payload: Payload, where: str) -> None:
        self.sent += 1
        is_token = payload.base.through == "eosio.token"
        try:
            if payload.must_fail:
                message = self.refusal(payload.action)
            else:
                message = self.refusal(payload.action, self.guard)
        except Exception as error:
            raise AssertionError(f"{where}: {payload}: {error!r}") from error
        code = message.partition(":")[0]
        if not payload.must_fail:
            undone = code == "unknown_task" and GUARD in message
            self.well_formed["would be taken" if undone else "refused"] += 1
            return
        assert code in self.codes or is_token, f"{where}: {payload} ended in {message!r}"
        self.by_kind[payload.kind] += 1
        through = payload.base.through
        self.by_action[payload.base.name + (f" through {through}" if through else "")] += 1
        self.by_code[code if code in self.codes else "refused by eosio.token"] += 1


def contract_codes() -> set[str]:
    """Return the first words of all messages in the contract's sources."""
    text = "".join(path.read_text() for path in sorted(SOURCES.iterdir()))
    return set(re.findall(r'"([a-z][a-z0-9_]+): ', text)) | set(
        re.findall(r'fail_state\("([a-z_]+)"', text)
    )


def test_each_base_would_be_taken_as_it_stands(stage: Stage) -> None:
    """Else a payload made from it might be refused for another reason than its form."""
    sender = Sender(stage, contract_codes())
    for base in stage.bases:
        message = sender.refusal(base.action, sender.guard)
        if base.name in ("uploadgrad", "payment"):
            assert message.startswith("internal_only: "), message
        elif base.through == "a false token":
            assert message.startswith("fake_token: "), message
        else:
            assert message.startswith("unknown_task: ") and GUARD in message, (base.name, message)


def test_malformed_data_ends_in_a_check_and_changes_nothing(stage: Stage) -> None:
    sender, before, begin = Sender(stage, contract_codes()), stage.everything(), time.monotonic()
    print(f"seed {SEED}")
    for number in itertools.count():
        if sender.malformed >= PAYLOADS:
            break
        if number % BLOCK_REFRESH == 0:
            sender.refresh()
        sender.send(make_payload(stage.bases, number), f"seed {SEED}, payload {number}")
        if number % PIECE == PIECE - 1:
            assert stage.everything() == before, f"a payload up to {number} changed something"
    seconds = time.monotonic() - begin
    assert stage.everything() == before
    document = {
        "command": f"make soak SEED={SEED} PAYLOADS={PAYLOADS}",
        "seed": SEED,
        "malformed": sender.malformed,
        "taken": 0,
        "changes": 0,
        "seconds": round(seconds, 1),
        "per_second": round(sender.sent / seconds),
        "by_kind": dict(sorted(sender.by_kind.items())),
        "by_action": dict(sorted(sender.by_action.items())),
        "by_outcome": dict(sorted(sender.by_code.items())),
        "well_formed_after_mutation": dict(sorted(sender.well_formed.items())),
        "contract_sha256": stage.world.contract_hash(),
        "chain": stage.world.client.get_info().server_version,
        "machine": machine(),
    }
    print(json.dumps(document, indent=2))
    if OUT:
        Path(OUT).write_text(json.dumps(document, indent=2) + "\n")
    assert set(sender.by_kind) == set(MUTATIONS)
    assert len(sender.by_action) == len(stage.bases)
