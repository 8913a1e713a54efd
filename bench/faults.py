"""A training under fire: parties and servers killed at random points, and worse; is anything lost?

    python -m bench.faults [--kills N] [--producers 1 4] [--seed S] [--json] [--out FILE]

On a real network (nodeos, Kubo, four validators, a process each) an owner (`gradledger owner run`)
trains with three devices, each with an outbox, in many short rounds, which reveal CIDs late and
audit half of the uploads. SIGKILL meets devices, owner, validators, Kubo and nodes, on a network of
four producers also two and all four nodes at once. A killed process is started again as its user
would (`gradledger up` replays a node's blocks).
In between come faults: a full disk for the outbox (RLIMIT_FSIZE, so that every write fails), a
blob deleted or altered on Kubo's disk, a proxy before a node that answers nonsense, hangs, or calls
the newest block irreversible just before all nodes are killed; the clocks of devices and owner, and
then of the whole network, jump by an hour (a preloaded library, tests/contracts/moved_clock.c).

Afterwards everything is counted from the chain's blocks, by a reading of its own and by
`gradledger.audit`, against the devices' event files and outboxes:

    lost             uploads acknowledged as irreversible, or written down in an outbox, that the
                     blocks do not have and that were not reported as abandoned with a reason
    paid_twice       payments to a device for a version beyond the first
    escrow_mismatch  deposits that are not the plan's, money that is not conserved, balances that
                     are not the payments, an audit that does not explain them
    stuck_rounds     rounds that did not come to be settled
    not_held         faults that a device could not make, or after which something had left it;
                     an owner that does not end with exit code 0 when the training is over

ended_by_themselves counts owners and devices that nobody killed and that gave up; each is in the
notes with its exit code and last words, and is started again.

recovery_s is from a kill until the killed process was started again and a later step of the
training was irreversible; of a device, also until it acknowledged an upload; of an owner, until it
opened another round. fault_recovery_s is from when a fault begins until such a step.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import faults_proxy as proxies
from bench.chain_world import quiet_network
from bench.ending import end_cleanly, run_child
from bench.faults_device import ALTERED_BLOB, EXAMPLES, FULL_DISK, LOST_BLOB, uploads
from bench.machine import machine
from bench.record import command, record
from device_sdk import Abandoned, Device
from gradledger.audit.run import audit
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, RoundState
from gradledger.chain.names import Asset
from gradledger.errors import BadFieldError, ChainError, GradledgerError
from gradledger.localnet import parts
from gradledger.outbox import State
from owner.paillier_key import PaillierPrivateKey

TASK = "underfire"
DEVICES = ("phone1", "phone2", "phone3")
VALIDATORS = 4
PRICE = 10
ROUNDS = 20_000
DEPOSIT = "5000.0000 TOK"
OPEN_SEC, REVEAL_SEC, VERDICT_SEC, AUDIT_SEC, SUM_SEC = 15, 12, 12, 12, 12
SET_SEC = (
    45  # several producers need that long until sets can be drawn: the opening is irreversible
)
LOT = 0.15  # of each of four validators: half of the uploads are audited
POLL_SEC = 0.2
PAUSE_SEC = 1.5  # at most, between two kills
FAULT_SEC = 6.0  # how long a proxy misbehaves
STUCK_SEC = 240.0
HOUR_NS = 3600 * 10**9
SHIM = Path(__file__).parents[1] / "tests" / "contracts" / "moved_clock.c"
CLOCK_FILE, PARTIES_CLOCK = "FAULTS_CLOCK", "FAULTS_PARTIES_CLOCK"

NODE, NODES_TWO, NODES_ALL = "node", "nodes_two", "nodes_all"
DECKS = {
    1: ["device"] * 4 + ["validator"] * 2 + ["owner"] * 2 + ["kubo", NODE],
    4: ["device"] * 2 + ["validator", "owner", "kubo", NODE, NODES_TWO, NODES_ALL],
}
LIE_AND_KILL, PARTIES_JUMP, CLOCK_JUMP = "lie", "parties_clock", "clock"
FAULTS = (
    *(FULL_DISK, LOST_BLOB, ALTERED_BLOB, proxies.NONSENSE, proxies.HANG, LIE_AND_KILL),
    *(PARTIES_JUMP, CLOCK_JUMP),
)
NEEDED = {PARTIES_JUMP: PARTIES_CLOCK, CLOCK_JUMP: CLOCK_FILE}  # by a fault, in the environment


class StuckError(Exception):
    """The training makes no progress any more."""


@dataclass
class Tally:
    """What a run came to."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    fault_recoveries: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    uploads: int = 0
    acknowledged: int = 0
    abandoned: int = 0
    payments: int = 0
    rounds: int = 0
    ended_by_themselves: int = 0
    lost: int = 0
    paid_twice: int = 0
    escrow_mismatch: int = 0
    stuck_rounds: int = 0
    not_held: int = 0

    def add(self, other: Tally) -> None:
        """Take another run's figures in."""
        self.kills += other.kills
        self.faults += other.faults
        for mine, others in (
            (self.recoveries, other.recoveries),
            (self.fault_recoveries, other.fault_recoveries),
        ):
            for name, seconds in others.items():
                mine.setdefault(name, []).extend(seconds)
        self.notes += other.notes
        for name in FIGURES:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Told:
    """What a device said of its uploads, by their hashes.

    Attributes
    ----------
    acknowledged : set of str
        Irreversible.
    abandoned : set of str
        Not on chain and never to be, for a reason.
    written : set of str
        All that its outbox holds.
    """

    acknowledged: set[str]
    abandoned: set[str]
    written: set[str]

    def lost(self, on_chain: set[str]) -> set[str]:
        """Return the uploads of which something else is true; `on_chain` are this device's."""
        missing = (self.acknowledged | (self.written - self.abandoned)) - on_chain
        return missing | (self.abandoned & on_chain)


MUST_BE_ZERO = ("lost", "paid_twice", "escrow_mismatch", "stuck_rounds", "not_held")
FIGURES = (
    *("uploads", "acknowledged", "abandoned", "payments", "rounds", "ended_by_themselves"),
    *MUST_BE_ZERO,
)


@dataclass(eq=False)
class Recovery:
    """What is still expected after a kill, and where to note how long it took."""

    killed: float
    started: float
    seconds: list[float]
    also: Callable[[], bool]


class Progress:
    """Watches the training's irreversible progress, in a thread of its own."""

    def __init__(self, chain: ChainClient) -> None:
        self._contract = FedLearning(chain)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Recovery] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(timeout=60)

    def expect(
        self, killed: float, seconds: list[float], also: Callable[[], bool] = lambda: True
    ) -> None:
        """Note how long ago `killed` is, once a later step is irreversible and `also` holds."""
        with self._lock:
            self._waiting.append(Recovery(killed, time.monotonic(), seconds, also))

    @property
    def pending(self) -> int:
        """How many kills the training has not yet recovered from."""
        with self._lock:
            return len(self._waiting)

    def _watch(self) -> None:
        seen: object = None
        final = 0.0  # when the newest step was seen that is irreversible by now
        changed: list[tuple[float, int]] = []  # when a step was seen, and by which block
        while not self._stop.wait(POLL_SEC):
            try:
                now, state = time.monotonic(), self._state()
                info = self._contract.client.get_confirmed()
            except (ChainError, OSError):
                continue
            if state != seen:
                seen = state
                changed.append((now, info.head_block + 1))
            for at, block in changed:
                if block <= info.irreversible_block:
                    final = max(final, at)
            changed = [one for one in changed if one[1] > info.irreversible_block]
            with self._lock:
                over = [one for one in self._waiting if one.started < final and one.also()]
                self._waiting = [one for one in self._waiting if one not in over]
            for one in over:
                one.seconds.append(time.monotonic() - one.killed)

    def _state(self) -> object:
        try:
            found = self._contract.current_round(TASK)
        except BadFieldError:
            return None
        if found is None:
            return 0
        votes = sum(any(vote.hash) for vote in found.sums)
        return (found.version, found.state, found.uploads, found.pending, votes)


class Party:
    """An owner or a device: a process that is started again whenever it ends."""

    def __init__(self, name: str, command: Sequence[str], log: Path, clock: str | None) -> None:
        self.name, self.command, self.log = name, list(command), log
        self._environment = dict(os.environ)
        if clock:
            self._environment["MOVED_CLOCK"] = clock
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it if it does not run."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                )

    def last_words(self) -> str:
        """Return how it ended: its exit code and its log's last line."""
        assert self.process is not None
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return f"code {self.process.returncode}, {lines[-1][:300] if lines else 'no word'}"

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send a signal and wait for the end; say whether it was running."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.send_signal(number)
        self.process.wait(timeout=30)
        return True


class Scene:
    """One network and its training."""

    def __init__(self, home: Path, producers: int, seed: int, say: Any) -> None:
        self.home, self.producers = home, producers
        self.rng = random.Random(seed)
        self.say = say
        self.tally = Tally()
        self.network = quiet_network(home / "net", lambda text: None)
        self._open = contextlib.ExitStack()  # what `close` closes, the last first

    def begin(self) -> None:
        """Bring the network up and start everybody; `close` is due whatever comes of it."""
        self._open.callback(self.network.down, wipe=True)
        info = self.network.up(producers=self.producers, validators=VALIDATORS)
        self.network.create_accounts(DEVICES)
        self.chain = ChainClient(list(info.chain_urls))
        self.contract = FedLearning(self.chain)
        self.info = self.network.info()
        self.proxy = proxies.Proxy(info.chain_urls[0])
        self._open.callback(self.proxy.close)
        self.owner = self._owner()
        self._open.callback(self.owner.kill)
        self.devices = {}
        for name in DEVICES:
            self.devices[name] = self._device(name)
            self._open.callback(self.devices[name].kill)
        self.progress = Progress(ChainClient(list(info.chain_urls)))
        self._open.callback(self.progress.close)

    def close(self) -> None:
        """End everything and take it away."""
        self._open.close()

    # ---- the parties ------------------------------------------------------------------------

    def _owner(self) -> Party:
        rng = np.random.default_rng(1)
        for name in ("validation", "test"):
            x = rng.random((30, 4), dtype=np.float32)
            np.savez(self.home / f"{name}.npz", x=x, y=np.arange(30) % 3)
        key = self.home / "paillier.json"
        PaillierPrivateKey.generate(2048).save(key)
        self._write_plan(ROUNDS)
        command = [sys.executable, "-m", "gradledger.cli", "owner", "run"]
        command += ["--plan", str(self.home / "plan.json"), "--home", str(self.network.home)]
        command += ["--state", str(self.home / "owner"), "--paillier-key", str(key), "--json"]
        clock = os.environ.get(PARTIES_CLOCK)
        return Party("owner", command, self.home / "owner.log", clock)

    def _write_plan(self, rounds: int) -> None:
        plan = {
            "task": TASK,
            "rounds": rounds,
            "architecture": {"kind": "mlp", "layers": [4, 3], "activation": "relu"},
            "devices": list(DEVICES),
            "validators": list(self.info.validators),
            "deposit": DEPOSIT,
            "price": str(Asset(PRICE, Asset.parse(DEPOSIT).symbol)),
            "budget": "1.0000 TOK",
            "close_after": len(DEVICES),
            "clip": 1.0,
            "rule": "either",
            "tau": 1.000001,
            "lot": LOT,
            "bar_rounds": 0,
            "reveal_sec": REVEAL_SEC,
            "audit_sec": AUDIT_SEC,
            "points_per_class": 4,
            "devices_min": len(DEVICES),
            "open_sec": OPEN_SEC if self.producers == 1 else OPEN_SEC + SET_SEC,
            "verdict_sec": VERDICT_SEC,
            "sum_sec": SUM_SEC,
            "data": {"validation": "validation.npz", "test": "test.npz"},
        }
        (self.home / "plan.json").write_text(json.dumps(plan), encoding="ascii")

    def _device(self, name: str) -> Party:
        folder = self.home / name
        folder.mkdir(mode=0o700)
        settings = {
            "account": name,
            "key_file": self.info.accounts[name],
            "task": TASK,
            "chain": [self.proxy.url, *self.info.chain_urls],
            "store": self.info.store_addr,
            "repo": str(self.network.home / "kubo" / "repo"),
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="ascii")
        command = [sys.executable, "-m", "bench.faults_device", str(folder / "settings.json")]
        return Party(name, command, folder / "log", os.environ.get(PARTIES_CLOCK))

    # ---- under fire -------------------------------------------------------------------------

    def run(self, kills: int, faults: Sequence[str]) -> None:
        """Kill so many processes, with the faults spread between."""
        self.owner.start()
        for party in self.devices.values():
            party.start()
        self._until(lambda: self._version() >= 1, "the first round")
        deck: list[str] = []
        left = list(faults)
        every = max(1, kills // (len(left) + 1))
        due = every
        while sum(self.tally.kills.values()) < kills:
            if not deck:
                deck = list(DECKS[self.producers])
                self.rng.shuffle(deck)
            self.kill(deck.pop())
            time.sleep(self.rng.uniform(0.1, PAUSE_SEC))
            if left and sum(self.tally.kills.values()) >= due:
                due += every
                self.fault(left.pop(0))
        for kind in left:
            self.fault(kind)
        self._until(lambda: not self.progress.pending, "progress after the last kill")

    def kill(self, target: str) -> None:
        """Kill a party or a server at a random moment; start it again; expect progress."""
        killed = time.monotonic()
        party = self.owner if target == "owner" else None
        also = partial(bool, True)
        if target == "device":
            name = self.rng.choice(DEVICES)
            party = self.devices[name]
            also = partial(self._acknowledged_since, name, killed)
        elif target == "owner":
            also = partial(self._is_later, self._version())
        if party is not None:
            if party.kill():
                self.tally.kills[target] += 1
            party.start()
        else:
            names = self._servers(target)
            self.tally.kills[target] += self._kill_servers(names)
            time.sleep(self.rng.uniform(0.0, 1.0))
            self.network.up()
        self.progress.expect(killed, self.tally.recoveries.setdefault(target, []), also)
        done = sum(self.tally.kills.values())
        self.say(f"{done} kills; {target}; round {self._version()}")
        self._until(lambda: self.progress.pending < 6, "progress")

    def _servers(self, target: str) -> list[str]:
        nodes = [f"node{number + 1}" for number in range(self.producers)]
        if target == "validator":
            return [self.rng.choice(self.info.validators)]
        if target == "kubo":
            return ["kubo"]
        count = {NODE: 1, NODES_TWO: 2, NODES_ALL: self.producers}[target]
        return self.rng.sample(nodes, count)

    def _kill_servers(self, names: Sequence[str]) -> int:
        killed = 0
        for row in self.network.status()["processes"]:
            if row["name"] in names and row["pid"]:
                os.kill(row["pid"], signal.SIGKILL)
                killed += 1
        return killed

    def fault(self, kind: str) -> None:
        """Let something else go wrong; without the preloaded library no clock can."""
        if kind in NEEDED and NEEDED[kind] not in os.environ:
            self.say(f"fault: {kind} left out, for want of {SHIM.name}")
            return
        begun = time.monotonic()
        if kind in (FULL_DISK, LOST_BLOB, ALTERED_BLOB):
            name = self.rng.choice(DEVICES)
            (self.home / name / "fault").write_text(kind, encoding="ascii")
            self._until(lambda: self._told(name, kind, begun), f"{kind} at {name}")
        elif kind in (proxies.NONSENSE, proxies.HANG):
            self.proxy.mode = kind
            time.sleep(FAULT_SEC)
            self.proxy.mode = proxies.HONEST
            self.tally.faults[kind] += 1
        elif kind == LIE_AND_KILL:
            self.proxy.mode = proxies.LIE
            time.sleep(FAULT_SEC)
            self.kill(NODES_ALL if self.producers > 1 else NODE)
            self.proxy.mode = proxies.HONEST
            self.tally.faults[kind] += 1
        elif kind == PARTIES_JUMP:
            for ahead in (HOUR_NS, -HOUR_NS, 0):
                _move_clock(os.environ[PARTIES_CLOCK], ahead)
                time.sleep(FAULT_SEC / 2)
            self.tally.faults[kind] += 1
        elif kind == CLOCK_JUMP:
            _move_clock(os.environ[CLOCK_FILE], HOUR_NS)
            self.tally.faults[kind] += 1
        self.progress.expect(begun, self.tally.fault_recoveries.setdefault(kind, []))
        self.say(f"fault: {kind}; round {self._version()}")
        self._until(lambda: self.progress.pending < 6, "progress")

    def _acknowledged_since(self, name: str, moment: float) -> bool:
        events = reversed(_events(self.home / name))
        return any(one["event"] == "acknowledged" and one["at"] > moment for one in events)

    def _is_later(self, version: int) -> bool:
        return self._version() > version

    def _told(self, name: str, kind: str, since: float) -> bool:
        for event in _events(self.home / name):
            if event["event"] == "fault" and event["kind"] == kind and event["at"] > since:
                if event["held"]:
                    self.tally.faults[kind] += 1
                else:
                    self.tally.notes.append(f"{kind} at {name}: it did not hold")
                    self.tally.not_held += 1
                return True
        return False

    def _version(self) -> int:
        try:
            return self.contract.task(TASK).version
        except GradledgerError:
            return 0

    def _until(self, done: Any, what: str) -> None:
        until = time.monotonic() + STUCK_SEC
        while not done():
            if time.monotonic() > until:
                raise StuckError(f"no {what} within {STUCK_SEC:g} s")
            for party in (self.owner, *self.devices.values()):
                if party.process is not None and party.process.poll() is not None:
                    self.tally.ended_by_themselves += 1
                    self.tally.notes.append(f"{party.name} ended by itself: {party.last_words()}")
                    party.start()
            time.sleep(POLL_SEC)

    # ---- the reckoning ----------------------------------------------------------------------

    def finish(self) -> None:
        """Let the training end in good order, and the devices finish what is in their outboxes."""
        self.network.up()
        self.owner.kill(signal.SIGTERM)
        self._write_plan(max(1, self._version()))
        self.owner.start()
        assert self.owner.process is not None
        try:
            code = self.owner.process.wait(STUCK_SEC)
            said = f"the owner ended with {self.owner.last_words()}" if code else ""
        except subprocess.TimeoutExpired:
            said = f"the owner did not end within {STUCK_SEC:g} s"
        if said:
            self.tally.notes.append(said)
            self.tally.not_held += 1
        for party in self.devices.values():
            party.kill()

    def reckon(self) -> None:
        """Count from the chain what became of everything."""
        tally = self.tally
        told = {name: self._resume(name) for name in DEVICES}
        blocks = self._uploads_in_blocks()
        tally.uploads = len(blocks)
        for name in DEVICES:
            tally.acknowledged += len(told[name].acknowledged)
            tally.abandoned += len(told[name].abandoned)
            on_chain = {digest for (device, _), digest in blocks.items() if device == name}
            missing = told[name].lost(on_chain)
            tally.lost += len(missing)
            tally.notes += [f"lost: {name} {digest}" for digest in sorted(missing)]
        report = audit(self.chain, TASK, keep_payments=True)
        if not report.explained:
            tally.notes.append(report.verdict)
        paid: Counter[tuple[str, int]] = Counter()
        amounts: Counter[str] = Counter()
        for one in report.payment_list:
            paid[one.device, one.version] += 1
            amounts[one.device] += one.amount
        tally.payments = len(report.payment_list)
        tally.paid_twice = sum(count - 1 for count in paid.values())
        mismatches = [] if report.explained else ["the audit"]
        escrow = self.contract.escrow(TASK)
        if not escrow.conserved or escrow.reserved:
            mismatches.append(f"escrow {escrow}")
        if escrow.deposited != Asset.parse(DEPOSIT).amount:
            mismatches.append(f"deposited {escrow.deposited}")
        for name in DEVICES:
            balance = self.chain.balance("eosio.token", name, "TOK")
            if (balance.amount if balance else 0) != amounts[name]:
                mismatches.append(f"{name} has {balance}, was paid {amounts[name]}")
            due = EXAMPLES * PRICE * sum(device == name for device, _ in paid)
            if amounts[name] != due:
                mismatches.append(f"{name} was paid {amounts[name]}, due were {due}")
        tally.escrow_mismatch += len(mismatches)
        tally.notes += mismatches
        rounds = self.contract.rounds(TASK)
        tally.rounds = len(rounds)
        tally.stuck_rounds += sum(one.state is not RoundState.SETTLED for one in rounds)

    def _resume(self, name: str) -> Told:
        """Finish a device's outbox; return what it said of its uploads."""
        folder = self.home / name
        events = _events(folder)
        acknowledged = {one["hash"] for one in events if one["event"] == "acknowledged"}
        device = Device(
            name,
            key=self.info.accounts[name],
            task=TASK,
            chain=ChainClient(list(self.info.chain_urls)),
            store=self.info.store_addr,
            outbox=folder / "outbox.db",
        )
        with closing(device):
            assert device.outbox is not None
            for one in device.resume(timeout_sec=STUCK_SEC):
                if not isinstance(one, Abandoned):
                    acknowledged.add(one.hash.hex())
            entries = uploads(device.outbox.entries())
        abandoned = {
            entry.details["hash"]
            for entry in entries
            if entry.state is State.ABANDONED and entry.reason
        }
        acknowledged |= {e.details["hash"] for e in entries if e.state is State.DONE}
        return Told(acknowledged, abandoned, {entry.details["hash"] for entry in entries})

    def _uploads_in_blocks(self) -> dict[tuple[str, int], str]:
        """Return the hash of every upload that the irreversible blocks hold."""
        found: dict[tuple[str, int], str] = {}
        abi = self.contract.abi
        for number in range(1, self.chain.get_confirmed().irreversible_block + 1):
            block = self.chain.call("/v1/chain/get_block", {"block_num_or_id": str(number)})
            for row in block["transactions"]:
                if row["status"] != "executed" or not isinstance(row["trx"], dict):
                    continue
                for action in row["trx"]["transaction"]["actions"]:
                    if (action["account"], action["name"]) != ("fedlearning", "fedlearning"):
                        continue
                    raw = bytes.fromhex(action.get("hex_data", action["data"]))
                    data = abi.unpack(abi.actions["fedlearning"], raw)
                    key = (data["device"], data["version"])
                    if key in found:
                        self.tally.notes.append(f"two uploads of {key}")
                        self.tally.escrow_mismatch += 1
                    found[key] = data["hash"]
        return found


# ---- helpers ----------------------------------------------------------------------------------


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "events").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _move_clock(path: str, ahead_ns: int) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8) as page:
        page[:8] = bytes(ctypes.c_int64(ahead_ns))


def _with_moved_clock(folder: Path) -> dict[str, str] | None:
    """Compile the library; return the environment that preloads it, or None."""
    library = folder / "moved_clock.so"
    compiler = shutil.which("cc")
    try:
        command = [compiler] if compiler else [str(parts.fetch("zig") / "ziglang" / "zig"), "cc"]
        options = ["-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM)]
        subprocess.run([*command, *options], check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError, GradledgerError):
        return None
    files = {name: folder / name.lower() for name in (CLOCK_FILE, PARTIES_CLOCK)}
    for file in files.values():
        file.write_bytes(bytes(8))
    named = {name: str(file) for name, file in files.items()}
    return {**named, "LD_PRELOAD": str(library), "MOVED_CLOCK": named[CLOCK_FILE]}


def run_one(producers: int, kills: int, faults: Sequence[str], seed: int, say: Any) -> Tally:
    """Return what one network's training came to."""
    home = Path(tempfile.mkdtemp(prefix="gradledger-faults-"))
    scene = Scene(home, producers, seed, say)
    try:
        try:
            scene.begin()
            scene.run(kills, faults)
        except StuckError as error:
            scene.tally.notes.append(str(error))
            scene.tally.stuck_rounds += 1
        scene.finish()
        scene.reckon()
        scene.tally.notes = [f"{producers} producers: {note}" for note in scene.tally.notes]
        return scene.tally
    finally:
        scene.close()
        if any(getattr(scene.tally, name) for name in MUST_BE_ZERO):
            say(f"kept for a look: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kills, print the figures; exit code 1 where one that must be 0 is not."""
    parser = argparse.ArgumentParser(
        prog="bench.faults", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--producers", type=int, nargs="+", choices=(1, 4), default=[1, 4])
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document")
    given = parser.parse_args(argv)
    if given.kills < 0:
        parser.error(f"--kills: expected 0 or more, got {given.kills}")
    if "MOVED_CLOCK" not in os.environ and argv is None:
        folder = Path(tempfile.mkdtemp(prefix="gradledger-clock-"))
        extra = _with_moved_clock(folder)
        if extra is not None:
            again = [sys.executable, "-m", "bench.faults", *sys.argv[1:]]
            try:
                return run_child(again, {**os.environ, **extra})
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    end_cleanly()
    here, begun = machine(), time.monotonic()
    total = Tally()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:7.0f} s  {text}", file=sys.stderr, flush=True)

    shares = {1: given.kills}
    if len(given.producers) > 1:
        shares = {1: given.kills - given.kills // 4, 4: given.kills // 4}
    for producers in sorted(set(given.producers)):
        kills = shares.get(producers, given.kills)
        faults = FAULTS if kills >= 2 * len(FAULTS) else FAULTS[:1]
        total.add(run_one(producers, kills, faults, given.seed + producers, say))
    document: dict[str, Any] = {
        "command": command("bench.faults", given, argv),
        "machine": here,
        "seed": given.seed,
        "producers": sorted(set(given.producers)),
        "kills": sum(total.kills.values()),
        "kills_by_target": dict(sorted(total.kills.items())),
        "faults": dict(sorted(total.faults.items())),
        **{name: getattr(total, name) for name in FIGURES},
        "recovery_s": _spread(*total.recoveries.values()),
        "recovery_s_by_target": _spreads(total.recoveries),
        "fault_recovery_s": _spread(*total.fault_recoveries.values()),
        "fault_recovery_s_by_kind": _spreads(total.fault_recoveries),
        "seconds": round(time.monotonic() - begun),
        "notes": total.notes,
    }
    text = record(document, given.out, on_chain=True)
    print(text if given.json else _summary(document))
    return int(any(document[name] for name in MUST_BE_ZERO))


def _spreads(by_name: Mapping[str, list[float]]) -> dict[str, dict[str, float | None]]:
    return {name: _spread(seconds) for name, seconds in sorted(by_name.items())}


def _spread(*lists: list[float]) -> dict[str, float | None]:
    seconds = [one for each in lists for one in each]
    if not seconds:
        return {"median": None, "max": None}
    return {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}


def _summary(document: dict[str, Any]) -> str:
    names = ("kills", "uploads", "payments", "rounds", *MUST_BE_ZERO, "abandoned")
    names += ("ended_by_themselves", "recovery_s")
    return "\n".join(f"{name:<20}{document[name]}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
