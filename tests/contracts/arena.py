"""What the stateful tests act on: a node whose clock can be put forward, accounts, tokens.

Nothing here waits for a block: an action is sent, the node says what came of it and at what time of
the chain, and the tables are read as they are at its head.
"""

from __future__ import annotations

import itertools
import json
import mmap
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contracts.model import NO_AUTHORITY, Model
from contracts.world import ABI, Scene, World

from gradledger.chain.abi import parse_time
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import AMOUNT_MAX, Asset, Symbol, name_to_int
from gradledger.chain.transaction import Action, Transaction, action
from gradledger.errors import NodeError, error_from_check
from gradledger.localnet import parts, system
from gradledger.localnet.network import Network

SOURCE = Path(__file__).with_name("moved_clock.c")
TOK, BAD = Symbol(4, "TOK"), Symbol(2, "BAD")
EXPIRATION_SEC_MAX = 600
JUMP_SEC_MAX = 1800  # a transaction made for the time after a jump is valid before it as well
WAIT_SEC_MAX = 20.0
BLOCK_SEC = 0.5
OWNERS, DEVICES, VALIDATORS, BYSTANDERS = 2, 6, 4, 28
CHECK_CODES = (3050003, 3050004)
AUTHORITY_CODES = range(3090000, 3100000)
SLOW_CODES = range(3080004, 3082000)
TRIES_MAX = 5
BIG, FEW = 2**60, 1_000_000  # units that the owners have

_NO_ABI = b'{"version": "eosio::abi/1.1"}'


class Clock:
    """By how much a node is ahead, in a file that the node has mapped."""

    def __init__(self, folder: Path) -> None:
        self.library, file = folder / "moved_clock.so", folder / "moved_clock"
        system_compiler = shutil.which("cc")
        zig = [] if system_compiler else [str(parts.fetch("zig") / "ziglang" / "zig")]
        compiler = [system_compiler] if system_compiler else [*zig, "cc"]
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(self.library)], check=True)
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(self.library), "MOVED_CLOCK": str(file)}

    def now(self) -> float:
        """Return the node's time, seconds since 1970."""
        return time.time() + struct.unpack("=q", self._map[:])[0] / 1e9

    def put(self, moment: float) -> None:
        """Make it this moment for the node."""
        self._map[:] = struct.pack("=q", int((moment - time.time()) * 1e9))

    def close(self) -> None:
        self._map.close()


@dataclass(frozen=True)
class Outcome:
    """What became of an action.

    Attributes
    ----------
    now : int
        The chain's time that the contract saw, seconds since 1970.
    block : int
        Number of the block.
    code : str or None
        None: it was taken. Otherwise the first word of the refusal, "" where it has none.
    text : str
        The refusal.
    traces : list of dict
        Of the action and all that it called.
    """

    now: int
    block: int
    code: str | None
    text: str
    traces: list[dict[str, Any]]


class Arena:
    """A network with the contract, and accounts that take part in every task.

    Attributes
    ----------
    owners, devices, validators : list of str
        The last device's own contract refuses every transfer to it.
    stranger : str
        A member of nothing.
    bystanders : list of str
        Accounts that do nothing; in the table of members they come after all others.
    token, forger : str
        The token of the tasks, and a contract that notifies of transfers that never were.
    """

    def __init__(self, network: Network, clock: Clock, *, refuser: bytes, notifier: bytes) -> None:
        self.network, self.clock = network, clock
        self.world = World.on(network)
        self.client = self.world.client
        info = self.client.get_info()
        self.chain_id, self._block_id = info.chain_id, info.irreversible_id
        self._numbers, self._names = itertools.count(), itertools.count()
        accounts = self.world.accounts(OWNERS + DEVICES + VALIDATORS + 2 + BYSTANDERS)
        accounts, self.bystanders = accounts[:-BYSTANDERS], accounts[-BYSTANDERS:]
        self.owners, rest = accounts[:OWNERS], accounts[OWNERS:]
        self.devices, rest = rest[:DEVICES], rest[DEVICES:]
        self.validators, (self.stranger, self.forger) = rest[:VALIDATORS], rest[VALIDATORS:]
        self.producer = "eosio"
        self.contract = self.world.contract
        self.token, bank = self.world.new_token(str(Asset(AMOUNT_MAX, TOK)))
        self._share_tokens(bank)
        Scene.make(self.world, devices=0, validators=0, deposit=0, owner_funds=0)  # makes the table
        self.hostile = self.devices[-1]
        for account, wasm in ((self.hostile, refuser), (self.forger, notifier)):
            self.world.push(system.set_contract(account, wasm, _NO_ABI))

    def new_model(self) -> Model:
        """Return the model of what is there now."""
        known = [*self.owners, *self.devices, *self.validators, self.stranger, self.forger]
        known += self.bystanders
        kinds = [(self.token, TOK), (self.token, BAD), (self.world.token, TOK)]
        holders = [self.contract, *self.owners, *self.devices]
        return Model(
            self.contract,
            [*known, self.producer, self.token, self.world.token],
            hostile=[self.hostile],
            producers=[self.producer],
            balances={
                (token, symbol.code, holder): self._balance(token, symbol, holder)
                for token, symbol in kinds
                for holder in holders
            },
            forgers=[self.forger],
        )

    def _share_tokens(self, bank: str) -> None:
        """Give the owners tokens, in rows that they pay for themselves from the beginning."""
        token, world = self.token, self.world
        supply = str(Asset(AMOUNT_MAX, BAD))
        issue = {"to": bank, "quantity": supply, "memo": ""}
        actions = [
            system.token_action(token, "create", token, issuer=bank, maximum_supply=supply),
            system.token_action(token, "issue", bank, **issue),
            _open_row(token, self.contract, TOK, bank),
        ]
        few = str(Asset(FEW, TOK))
        for owner in self.owners:
            for symbol in (TOK, BAD):
                actions.append(_open_row(token, owner, symbol, owner))
                actions.append(world.transfer(token, bank, str(Asset(BIG, symbol)), "", to=owner))
            actions.append(world.transfer(world.token, world.creator, few, "", to=owner))
        world.push(actions)

    # ---- accounts ---------------------------------------------------------------------------

    def key(self, account: str) -> PrivateKey:
        return self.world.key if account in self.world.made else self.network.key(account)

    def new_task_name(self) -> str:
        number, text = next(self._names), ""
        for _ in range(5):
            number, digit = divmod(number, 26)
            text = chr(ord("a") + digit) + text
        return f"task{text}"

    def balance(self, account: str) -> int:
        """Return an account's balance of the tasks' token, in smallest units."""
        return self._balance(self.token, TOK, account)

    def _balance(self, token: str, symbol: Symbol, account: str) -> int:
        found = self.client.balance(token, account, symbol.code)
        return found.amount if found else 0

    # ---- acting -----------------------------------------------------------------------------

    def act(self, name: str, actor: str, data: dict[str, Any]) -> Outcome:
        """Send one action of the contract."""
        return self.send(self.world.act(name, actor, **data), actor)

    def transfer(self, token: str, sender: str, quantity: Asset, memo: str) -> Outcome:
        """Send one transfer to the contract, or (token: the forger) the notification of one."""
        return self.send(self.world.transfer(token, sender, str(quantity), memo), sender)

    def send(self, one: Action, actor: str) -> Outcome:
        """Send one action and say what became of it."""
        for _ in range(TRIES_MAX):
            # another expiration each time: two equal transactions would be one
            lifetime = 30 + next(self._numbers) % EXPIRATION_SEC_MAX
            expiration = int(self.clock.now()) + lifetime
            transaction = Transaction.refer([one], expiration, self._block_id)
            request = {
                "return_failure_trace": True,
                "retry_trx": False,
                "transaction": transaction.sign(self.chain_id, [self.key(actor)]),
            }
            answer = self.client.call("/v1/chain/send_transaction2", request)
            if answer and not _is_too_slow(answer["processed"]):  # {}: an equal one was sent before
                return _outcome(answer["processed"])
        raise AssertionError(f"not a word on the action itself in {TRIES_MAX} tries: {answer}")

    def jump(self, moment: int) -> None:
        """Put the node's clock forward until the next transaction sees `moment` or later.

        That is the block of that second, or the one half a second later.
        """
        end = time.monotonic() + WAIT_SEC_MAX
        while self._now_on_chain() < moment:
            # a block's time is the next half second
            now, goal = self.clock.now(), moment - BLOCK_SEC + 0.1
            if now < goal:
                self.clock.put(min(goal, now + JUMP_SEC_MAX))
            if time.monotonic() > end:
                raise AssertionError("the chain's time stands still")

    def _now_on_chain(self) -> int:
        """Return the time that a transaction sees now."""
        nothing = self.world.transfer(
            self.world.token, self.world.creator, "0.0001 TOK", "", to="bank"
        )
        return self.send(nothing, self.world.creator).now

    # ---- tables -----------------------------------------------------------------------------

    def row(self, table: str, scope: str, key: int) -> dict[str, Any] | None:
        return self.client.table_row(self.contract, scope, table, key, abi=ABI)

    def rows(self, table: str, scope: str, *, least: int = 0) -> list[dict[str, Any]]:
        """Return the rows whose key is at least `least`."""
        return list(
            self.client.table_rows(self.contract, scope, table, abi=ABI, lower=max(0, least))
        )


def _open_row(token: str, owner: str, symbol: Symbol, payer: str) -> Action:
    """Return eosio.token's `open`: a balance of nothing, whose RAM `payer` pays for."""
    names = (name_to_int(owner), symbol.to_int(), name_to_int(payer))
    return action(token, "open", payer, b"".join(one.to_bytes(8, "little") for one in names))


def _is_too_slow(processed: dict[str, Any]) -> bool:
    """Return whether a busy machine, and not the action, is why it failed."""
    error = processed["except"]
    return error is not None and error["code"] in SLOW_CODES


def _outcome(processed: dict[str, Any]) -> Outcome:
    now, block = parse_time(processed["block_time"]), int(processed["block_num"])
    error = processed["except"]
    if error is None:
        return Outcome(now, block, None, "", processed["action_traces"])
    text = _message(error)
    if error["code"] in CHECK_CODES:
        return Outcome(now, block, error_from_check(text).code, text, [])
    if error["code"] in AUTHORITY_CODES:
        return Outcome(now, block, NO_AUTHORITY, text, [])
    raise NodeError(f"expected a check's refusal, got {error['name']}: {text}")


def _message(error: dict[str, Any]) -> str:
    """Return the text of a failure, its first line's place holders filled in."""
    if not error["stack"]:
        return str(error["message"])
    first = error["stack"][0]
    text = str(first["format"])
    for name, value in first["data"].items():
        text = text.replace(
            "${" + name + "}", value if isinstance(value, str) else json.dumps(value)
        )
    return text.removeprefix("assertion failure with message: ")


@contextmanager
def arena(network: Network, folder: Path, *, refuser: bytes, notifier: bytes) -> Iterator[Arena]:
    """Bring a network up whose node has a movable clock, and what is needed on it."""
    clock = Clock(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in clock.environment.items():
                patch.setenv(name, value)
            network.up(validators=0)
        yield Arena(network, clock, refuser=refuser, notifier=notifier)
    finally:
        network.down(wipe=True)
        clock.close()
