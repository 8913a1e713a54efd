"""What the contract tests stand on: accounts, one task with its members, and its tables."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from gradledger.chain.abi import Abi
from gradledger.chain.client import ChainClient, PushResult
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset, Symbol, name_to_int
from gradledger.chain.transaction import Action, action
from gradledger.cid import digest_to_cid
from gradledger.errors import ContractError
from gradledger.localnet import parts, system
from gradledger.localnet.network import Network

_COUNTER = itertools.count()
ACCEPT, UNAVAILABLE, MALFORMED, DUPLICATE, OPENING_MISMATCH, UNREVEALED = 1, 2, 4, 8, 16, 17
SILENCE, UNDELIVERED, UNANSWERED = 20, 21, 22
OPEN, VERIFYING, DRAWING, AUDITING, SUMMING, SUMMED, SETTLED = 1, 2, 3, 4, 5, 6, 7
PENDING, PAID, REFUSED, ACCEPTED, DRAWN = 1, 2, 3, 4, 5
ZERO = "00" * 32
ABI = Abi.from_json(
    resources.files("gradledger.artifacts").joinpath("fedlearning.abi").read_bytes()
)


def digest(*parts: object) -> str:
    """Return a SHA-256 that the parts determine, hexadecimal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cid(*parts: object) -> str:
    """Return the CIDv0 of that digest."""
    return digest_to_cid(bytes.fromhex(digest(*parts)))


def lot_value(*parts: object) -> str:
    """Return the value of a validator's lot."""
    return digest("lot", *parts)


def lot_commitment(task: str, version: int, validator: str, value: str) -> str:
    """Return what a validator commits to: docs/protocol.md."""
    text = (
        name_to_int(task).to_bytes(8, "little")
        + version.to_bytes(4, "little")
        + name_to_int(validator).to_bytes(8, "little")
        + bytes.fromhex(value)
    )
    return hashlib.sha256(text).hexdigest()


def is_drawn(values: Iterable[str], upload_hash: str, lot_e6: int) -> bool:
    """Return whether any of the revealed values draws an upload for an audit."""
    for value in values:
        place = hashlib.sha256(bytes.fromhex(value + upload_hash)).digest()[:8]
        if lot_e6 == 1_000_000 or int.from_bytes(place, "big") < lot_e6 * 18_446_744_073_709:
            return True
    return False


def task_document(**terms: Any) -> dict[str, Any]:
    """Return the terms of a task as the ABI names them; `token_contract` has to be given."""
    document = {
        "token_symbol": "4,TOK",
        "mode": 0,
        "is_public": 0,
        "validators_kind": 0,
        "silence": 0,
        "classes": 10,
        "errors_max": 5,
        "cost_max": 1000,
        "devices_max": 1000,
        "sum_min": 3,
        "parameters": 2410,
        "slot_bits": 26,
        "clip_e6": 1_000_000,
        "key_hash": ZERO if terms.get("mode") == 1 else digest("key"),
        "card_cid": cid("card"),
        "card_hash": digest("card"),
        "lot_e6": 0,
        "bar_rounds": 0,
    }
    return {**document, **terms}


def round_document(version: int = 1, **terms: Any) -> dict[str, Any]:
    """Return the terms of a round as the ABI names them."""
    document = {
        "model_cid": cid("model", version),
        "model_hash": digest("model", version),
        "price": 10,
        "budget": 100_000,
        "open_sec": 3600,
        "verdict_sec": 3600,
        "sum_sec": 3600,
        "reveal_sec": 0,
        "audit_sec": 0,
        "close_after": 1,
        "rule": 1,
        "tau": 100_000,
        "eta_e6": 1_000_000,
        "norm_max_e6": 0,
        "training": {"epochs": 1, "batch_size": 32, "rate_e6": 50_000, "measures": 4, "seed": 7},
    }
    return {**document, **terms}


@dataclass
class World:
    """A running chain with the contract on it. All accounts made here share `key`."""

    client: ChainClient
    contract: str
    token: str
    creator: str  # an account that has tokens and is no member of any task
    key: PrivateKey
    key_of: Callable[[str], PrivateKey]  # of accounts that were there before
    symbol: Symbol = field(default_factory=lambda: Symbol(4, "TOK"))
    made: set[str] = field(default_factory=set)

    @classmethod
    def on(cls, network: Network) -> World:
        """Return the world of a local network."""
        info, key = network.info(), PrivateKey.generate()
        creator = _fresh_names(1)[0]
        network.create_account(creator, key)
        network.transfer(creator, "100000.0000 TOK")
        client = ChainClient(info.chain_urls[0])
        world = cls(client, info.contract, info.token_contract, creator, key, network.key)
        world.made.add(creator)
        return world

    def accounts(self, count: int) -> list[str]:
        """Create fresh accounts; return their names, ascending."""
        names = _fresh_names(count)
        self.made.update(names)
        self.push([system.new_account(self.creator, name, self.key.public) for name in names])
        return names

    def new_token(self, supply: str) -> tuple[str, str]:
        """Deploy a token contract; return it and the account that holds the whole supply."""
        contract, holder = self.accounts(2)
        self.push(system.set_contract(contract, *parts.system_contract("eosio.token")))
        self.push(
            [
                system.token_action(
                    contract, "create", contract, issuer=holder, maximum_supply=supply
                ),
                system.token_action(contract, "issue", holder, to=holder, quantity=supply, memo=""),
            ]
        )
        return contract, holder

    def act(self, name: str, actor: str | Sequence[str], **data: Any) -> Action:
        """Build one action of the contract."""
        return action(self.contract, name, actor, ABI.pack_action(name, data))

    def transfer(
        self, token: str, sender: str, quantity: str, memo: str, *, to: str | None = None
    ) -> Action:
        """Build a transfer, to the contract unless `to` says otherwise."""
        return system.token_action(
            token,
            "transfer",
            sender,
            from_=sender,
            to=to or self.contract,
            quantity=quantity,
            memo=memo,
        )

    def push(self, actions: Iterable[Action]) -> PushResult:
        """Send actions in one transaction, signed with the keys that they need."""
        actions = list(actions)
        actors = {actor for one in actions for actor, _ in one.authorization}
        keys = {self.key: None} if actors & self.made else {}
        keys |= {self.key_of(actor): None for actor in sorted(actors - self.made)}
        # another expiration each time: two equal transactions would be one
        return self.client.push(actions, list(keys), expiration_sec=60 + next(_COUNTER) % 600)

    def refusal(self, *actions: Action) -> str:
        """Return the message with which the actions are refused."""
        try:
            self.push(actions)
        except ContractError as error:
            return str(error)
        raise AssertionError("expected a refusal, the actions were taken")

    def balance(self, account: str, token: str = "") -> int:
        """Return an account's balance in smallest units."""
        found = self.client.balance(token or self.token, account, self.symbol.code)
        return found.amount if found else 0

    def ram(self, account: str) -> int:
        """Return the RAM that is billed to an account, bytes."""
        return int(self.client.get_account(account)["ram_usage"])

    def contract_hash(self) -> str:
        """Return the SHA-256 of the wasm that the chain runs."""
        query = {"account_name": self.contract}
        return str(self.client.call("/v1/chain/get_code_hash", query)["code_hash"])


def _fresh_names(count: int) -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz12345"
    stem = "".join(random.choices(letters, k=9))
    names = [f"x{stem}{letters[i // 26]}{letters[i % 26]}" for i in range(count)]
    return sorted(names, key=name_to_int)


@dataclass
class Scene:
    """One task with its members, on a `World`."""

    world: World
    task: str
    owner: str
    devices: list[str]
    validators: list[str]
    terms: dict[str, Any]
    funds: int

    @classmethod
    def make(
        cls,
        world: World,
        *,
        devices: int = 3,
        validators: int = 4,
        deposit: int = 1_000_000,
        owner_funds: int = 2_000_000,
        **terms: Any,
    ) -> Scene:
        """Create the accounts and a funded task whose members have joined."""
        names = world.accounts(1 + devices + validators)
        owner, names = names[0], names[1:]
        all_terms = task_document(
            **{"token_contract": world.token, "token_symbol": str(world.symbol), **terms}
        )
        scene = cls(world, owner, owner, names[:devices], names[devices:], all_terms, owner_funds)
        actions = [world.act("createtask", owner, task=owner, owner=owner, terms=all_terms)]
        if devices:
            actions.append(scene.act("admit", owner, accounts=scene.devices, role=1))
        if validators:
            actions.append(scene.act("admit", owner, accounts=scene.validators, role=2))
        actions += [scene.join(d) for d in scene.devices]
        actions += [scene.join(v, classes=0) for v in scene.validators]
        if owner_funds:
            actions.append(
                world.transfer(
                    all_terms["token_contract"],
                    world.creator,
                    scene.asset(owner_funds),
                    "",
                    to=owner,
                )
            )
        if deposit:
            actions.append(scene.deposit(deposit))
        world.push(actions)
        return scene

    # ---- actions ----------------------------------------------------------------------------

    def act(self, name: str, actor: str, **data: Any) -> Action:
        return self.world.act(name, actor, **{"task": self.task, **data})

    def asset(self, units: int) -> str:
        return str(Asset(units, self.world.symbol))

    def join(self, account: str, *, classes: int = 0b111) -> Action:
        enc_key = digest("enc", account)
        return self.act("join", account, account=account, enc_key=enc_key, classes=classes)

    def deposit(self, units: int) -> Action:
        return self.world.transfer(
            self.terms["token_contract"], self.owner, self.asset(units), self.task
        )

    def open(self, version: int = 1, **terms: Any) -> Action:
        if self.terms["lot_e6"]:
            terms = {"audit_sec": 3600, **terms}
        document = round_document(version, **terms)
        return self.act("openround", self.owner, version=version, terms=document)

    def upload_data(self, device: str, version: int = 1, **fields: Any) -> dict[str, Any]:
        return {
            "device": device,
            "version": version,
            "hash": digest("upload", self.task, device, version),
            "cid": cid("upload", device, version),
            "cost": 60,
            "errors": [500_000, 400_000, 300_000],
            **fields,
        }

    def upload(self, device: str, version: int = 1, **fields: Any) -> Action:
        return self.act("fedlearning", device, **self.upload_data(device, version, **fields))

    def verdict(
        self, validator: str, devices: Iterable[str], version: int = 1, code: int = ACCEPT
    ) -> Action:
        """Return a verdict on these devices' uploads, in the slots that their rows say."""
        rows = {row["account"]: row for row in self.members()}
        verdicts = []
        for device in devices:
            row = rows.get(device, {"upload_slot": 0, "upload_version": 0})
            is_known = row["upload_version"] == version
            hash_ = row["upload_hash"] if is_known else digest("upload", self.task, device, version)
            verdicts.append({"slot": row["upload_slot"], "hash": hash_, "code": code})
        return self.attest(validator, verdicts, version)

    def attest(
        self, validator: str, verdicts: Sequence[dict[str, Any]], version: int = 1
    ) -> Action:
        """Return these verdicts, whatever they are about."""
        data = {"version": version, "validator": validator, "verdicts": verdicts}
        return self.act("attest", validator, **data)

    def audit_verdict(
        self, validator: str, devices: Iterable[str], version: int = 1, code: int = ACCEPT
    ) -> Action:
        """Return a verdict on what the devices opened."""
        one = self.verdict(validator, devices, version, code)
        return Action(one.account, "attestaudit", one.authorization, one.data)

    def reveal(self, device: str, version: int = 1, cid_: str | None = None) -> Action:
        """Tell the CID of an upload."""
        text = cid("upload", device, version) if cid_ is None else cid_
        return self.act("reveal", device, device=device, version=version, cid=text)

    def opening(self, device: str, version: int = 1, cid_: str | None = None) -> Action:
        """Open a drawn upload."""
        text = cid("opening", device, version) if cid_ is None else cid_
        return self.act("openupload", device, device=device, version=version, cid=text)

    def commit_lot(self, validator: str, version: int = 1, value: str | None = None) -> Action:
        value = lot_value(validator, version) if value is None else value
        commitment = lot_commitment(self.task, version, validator, value)
        data = {"version": version, "validator": validator, "commitment": commitment}
        return self.act("commitlot", validator, **data)

    def reveal_lot(self, validator: str, version: int = 1, value: str | None = None) -> Action:
        value = lot_value(validator, version) if value is None else value
        data = {"version": version, "validator": validator, "value": value}
        return self.act("reveallot", validator, **data)

    def close(self, version: int = 1, caller: str | None = None) -> Action:
        caller = caller or self.owner
        return self.act("closeround", caller, version=version, caller=caller)

    def push_on(self, caller: str, version: int = 1, limit: int = 100, **start: str) -> Action:
        return self.act("push", caller, version=version, limit=limit, **start)

    def vote_sum(self, validator: str, version: int = 1, **fields: Any) -> Action:
        data = {"hash": digest("sum"), "cid": cid("sum", validator), **fields}
        return self.act("attestsum", validator, version=version, validator=validator, **data)

    def settle(self, version: int = 1, limit: int = 1000, caller: str | None = None) -> Action:
        caller = caller or self.owner
        return self.act("settle", caller, version=version, limit=limit, caller=caller)

    def withdraw(self, units: int) -> Action:
        return self.act("withdraw", self.owner, quantity=self.asset(units))

    def do(self, *actions: Action) -> PushResult:
        return self.world.push(actions)

    # ---- tables -----------------------------------------------------------------------------

    def task_row(self) -> dict[str, Any]:
        contract = self.world.contract
        row = self.world.client.table_row(
            contract, contract, "tasks", name_to_int(self.task), abi=ABI
        )
        assert row is not None
        return row

    def member(self, account: str) -> dict[str, Any]:
        row = self.world.client.table_row(
            self.world.contract, self.task, "members", name_to_int(account), abi=ABI
        )
        assert row is not None
        return row

    def members(self) -> list[dict[str, Any]]:
        return list(
            self.world.client.table_rows(self.world.contract, self.task, "members", abi=ABI)
        )

    def round(self, version: int = 1) -> dict[str, Any]:
        row = self.world.client.table_row(
            self.world.contract, self.task, "rounds", version, abi=ABI
        )
        assert row is not None
        return row

    def rounds(self) -> list[dict[str, Any]]:
        return list(self.world.client.table_rows(self.world.contract, self.task, "rounds", abi=ABI))

    def pages(self) -> list[dict[str, Any]]:
        """Return the rows of `ballots`."""
        found = self.world.client.table_rows(self.world.contract, self.task, "ballots", abi=ABI)
        return list(found)

    def ballots(self) -> list[dict[str, Any]]:
        """Return what lies in the slots, an earlier round's ballots among it."""
        return [one for page in self.pages() for one in page["ballots"]]

    def ballot(self, device: str) -> dict[str, Any]:
        """Return the ballot on a device's newest upload."""
        return self.ballots()[self.member(device)["upload_slot"]]

    def everything(self) -> str:
        """Return all that a refused action must leave as it is, as one text."""
        world, token = self.world, self.terms["token_contract"]
        holders = [self.owner, world.contract, *self.devices]
        return json.dumps(
            [
                self.task_row(),
                self.members(),
                self.rounds(),
                self.pages(),
                [world.balance(one, token) for one in holders],
                [world.ram(one) for one in holders],
            ],
            default=str,
        )

    def money(self) -> dict[str, int]:
        """Return the task's money from its rows, and check that it adds up."""
        row = self.task_row()
        open_rounds = [r for r in self.rounds() if r["state"] != SETTLED]
        found = {
            "deposited": row["deposited"],
            "paid": row["paid"] + sum(r["paid"] for r in open_rounds),
            "reserved": sum(r["reserved"] for r in open_rounds),
            "withdrawn": row["withdrawn"],
        }
        found["free"] = found["deposited"] - found["paid"] - found["reserved"] - found["withdrawn"]
        assert all(units >= 0 for units in found.values()), found
        return found

    def quorum(self) -> list[str]:
        """Return just as many validators as decide."""
        return self.validators[: len(self.validators) * 2 // 3 + 1]

    def wait(self, seconds: int, *, timeout_sec: float = 20.0) -> None:
        """Wait until the chain's time reaches `seconds` since 1970."""
        end = time.monotonic() + timeout_sec
        # a transaction sees the time of the block it will be in, half a second past the head
        while self.world.client.get_info().head_time < seconds:
            if time.monotonic() > end:
                raise AssertionError("the chain's time stands still")
            time.sleep(0.05)
