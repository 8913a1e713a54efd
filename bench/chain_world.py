"""What the load runs against: nodes with options of our own, a task, its devices, signed uploads.

The network is brought up and provisioned as anybody would (`gradledger.localnet`), stopped, and its
nodes are started again on the same data with other options on their command lines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import chain_client
from bench.machine import peak_mb
from bench.terms import round_terms, task_terms
from gradledger.chain.client import ChainClient, PushResult
from gradledger.chain.contract import (
    FedLearning,
    Role,
    RoundState,
    Verdict,
    VerdictCode,
    transfer,
)
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset, Symbol
from gradledger.chain.permissions import authority, update_auth
from gradledger.chain.transaction import Action, Transaction
from gradledger.cid import digest_to_cid
from gradledger.errors import NodeAnswerError
from gradledger.localnet import nodeos, parts, processes, system
from gradledger.localnet.network import Network
from gradledger.localnet.processes import Process

TOKEN = Symbol(4, "TOK")
TOKEN_CONTRACT = "eosio.token"
OWNER = "benchowner"  # its account makes the others
COST, PRICE = 600, 1
MEMO = "m" * 30
ERRORS = (900_000, 700_000, 400_000, 300_000, 200_000)
EXPIRATION_SEC = 1800
ADMIT_MAX, ACCOUNTS_MAX, JOIN_MAX, ATTEST_MAX, SETTLE_MAX = 100, 100, 200, 200, 500
POLL_SEC = 0.02
BLOCKS_TO_LAND = 3
START_SEC_MAX = 60.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HZ = os.sysconf("SC_CLK_TCK")

# Documented options of nodeos. Time limits that are there to protect a public node would make a
# busy bench fail; the threads are as many as can be of use on two cores.
OPTIONS = (
    "--http-max-response-time-ms=-1",
    "--chain-threads=2",
    "--http-threads=2",
    "--cpu-effort-percent=100",
)
OC = ("--eos-vm-oc-enable",)


def name_of(prefix: str, number: int) -> str:
    """Return an account name: the prefix and four letters."""
    letters = ""
    for _ in range(4):
        number, letter = divmod(number, 26)
        letters = LETTERS[letter] + letters
    return prefix + letters


def digest(*of: object) -> bytes:
    """Return a hash that stands for something of which only the hash matters here."""
    return hashlib.sha256(repr(of).encode()).digest()


def device_key(seed: bytes, number: int) -> PrivateKey:
    """Return the key of a device; no two have the same."""
    return PrivateKey(hashlib.blake2b(number.to_bytes(8, "big"), key=seed, digest_size=32).digest())


def quiet_network(home: Path, say: Callable[[str], None]) -> Network:
    """Return a network on ports that nobody else begins his search at.

    Its nodes are stopped and started again: another network must not take their ports meanwhile.
    """
    with contextlib.ExitStack() as opened:
        found = []
        for _ in range(3):
            probe = opened.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
    return Network(home, http_port=found[0], p2p_port=found[1], kubo_port=found[2], say=say)


class Place:
    """A network that is up: where its nodes are and who talks to them.

    Attributes
    ----------
    network : Network
    urls : tuple of str
        One per node.
    client : ChainClient
    contract : str
        Account of the contract.
    """

    def __init__(self, network: Network) -> None:
        info = network.info()
        self.network = network
        self.urls = info.chain_urls
        self.client = ChainClient(self.urls)
        self.contract = info.contract


class Nodes(Place):
    """The nodes of a network under `home`; `running` starts and stops them and keeps their data."""

    def __init__(self, home: Path, producers: int, say: Callable[[str], None]) -> None:
        network = quiet_network(home, say)
        network.up(producers=producers, validators=0)
        super().__init__(network)
        network.down()
        self.ports = [urlsplit(url).port or 0 for url in self.urls]
        self._home = home
        self._running: list[Process] = []

    @contextlib.contextmanager
    def running(self, *options: str) -> Iterator[None]:
        """Run the nodes with these options; raises StartError when one does not come up."""
        try:
            for number, (url, port) in enumerate(zip(self.urls, self.ports, strict=True), 1):
                folder = self._home / f"node{number}"
                command = [str(parts.nodeos_path()), "--config-dir", str(folder)]
                command += ["--data-dir", str(folder / "data"), *OPTIONS, *options]
                log = self._home / "logs" / f"node{number}.log"
                process = processes.start(f"node{number}", command, log, ports={"http": port})
                self._running.append(process)
                processes.wait_until(
                    process, partial(_answers, process, url, port), wait_sec=START_SEC_MAX
                )
            self.client.wait_until(
                lambda: abs(time.time() - self.client.get_info().head_time) < 2,
                timeout_sec=START_SEC_MAX,
                what="a fresh block",
            )
            yield
        finally:
            processes.stop(self._running)
            self._running.clear()

    def cpu_s(self) -> float:
        """Return the CPU time that the nodes have used, seconds."""
        return sum(cpu_s(f"{one.pid}") for one in self._running)

    def main_threads_s(self) -> float:
        """Return the CPU time of the nodes' main threads, which apply transactions, seconds."""
        return sum(cpu_s(f"{one.pid}/task/{one.pid}") for one in self._running)

    def peak_mb(self) -> list[float]:
        """Return the most memory of each node, in units of 10^6 bytes."""
        return [peak_mb(one.pid) for one in self._running]


def _answers(process: Process, url: str, port: int) -> bool:
    return processes.listens(process, port) and nodeos.info(url) is not None


def cpu_s(of: str) -> float:
    """Return the CPU time that a process or thread (``PID/task/TID``) has used, seconds."""
    stat = Path(f"/proc/{of}/stat").read_text("ascii", "replace")
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / HZ


class Watch:
    """Notes when a node first showed each block, and each irreversible one, to a client."""

    def __init__(self, url: str) -> None:
        self._client = ChainClient(url)
        self._ended = threading.Event()
        self.seen: list[tuple[float, int, int]] = []  # when, head, irreversible
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._ended.wait(POLL_SEC):
            info = self._client.get_info()
            self.seen.append((time.monotonic(), info.head_block, info.irreversible_block))

    def times(self) -> tuple[dict[int, float], dict[int, float]]:
        """Return when each block was first seen, and first seen irreversible."""
        found: tuple[dict[int, float], dict[int, float]] = ({}, {})
        last = [self.seen[0][1], self.seen[0][2]]
        for when, *heads in self.seen:
            for kind, head in enumerate(heads):
                for number in range(last[kind] + 1, head + 1):
                    found[kind][number] = when
                last[kind] = max(last[kind], head)
        return found


class World:
    """Accounts on a chain, and the task that `begin` made last.

    The owner permission of every account is the bench's key, so that setting up needs few
    signatures; what is measured is signed by each device's own active key. All of these follow
    from `seed`, so that they are good for a network of the bench's own and for nothing else.
    """

    def __init__(self, place: Place, devices: int, validators: int, seed: int) -> None:
        self.place, self.client = place, place.client
        self.contract = FedLearning(self.client, place.contract)
        self.seed = digest("keys", seed)
        self.key = device_key(self.seed, devices)  # no device has that number
        self.all_devices = [name_of("bd", number) for number in range(devices)]
        self.all_validators = [name_of("bv", number) for number in range(validators)]
        self.owner, self.version = "", 0
        self.devices: list[str] = []
        self.validators: list[str] = []
        self._expiration = 0

    def send(self, actions: Sequence[Action]) -> PushResult:
        """Send one transaction of the set-up, never the same bytes twice."""
        self._expiration = (self._expiration + 1) % 500
        return self.client.push(actions, [self.key], expiration_sec=60 + self._expiration)

    def landed(self, *, stops: bool = False) -> None:
        """Wait until what was sent is in a block that all nodes have.

        The only producer sees it at once, unless it `stops` now. With several, a node sees no more
        than its head block.
        """
        if stops or len(self.place.urls) > 1:
            wanted = self.client.get_info().head_block + BLOCKS_TO_LAND
            self.client.wait_until(
                lambda: self.client.get_info().head_block >= wanted,
                timeout_sec=START_SEC_MAX,
                what=f"block {wanted}",
            )

    def create_accounts(self) -> None:
        """Create the devices and the validators."""
        maker = self.funded(OWNER)
        for group in groups(self.all_validators, ACCOUNTS_MAX):
            self.send([system.new_account(maker, one, self.key.public) for one in group])
        for start in range(0, len(self.all_devices), ACCOUNTS_MAX):
            group = self.all_devices[start : start + ACCOUNTS_MAX]
            self.send([system.new_account(maker, one, self.key.public) for one in group])
        self.landed()
        for start in range(0, len(self.all_devices), ACCOUNTS_MAX):
            group = self.all_devices[start : start + ACCOUNTS_MAX]
            keys = [device_key(self.seed, start + place).public for place in range(len(group))]
            self.send(
                [
                    update_auth(name, "active", "owner", authority(key), by="owner")
                    for name, key in zip(group, keys, strict=True)
                ]
            )
        self.landed()

    def funded(self, owner: str) -> str:
        """Make sure that there is an account with tokens; return its name."""
        if not self.client.has_account(owner):
            self.place.network.create_account(owner, self.key)
            self.landed()
            self.place.network.transfer(owner, "100000.0000 TOK")
            self.landed()
        return owner

    def begin(self, owner: str, devices: int, validators: int) -> None:
        """Create the task `owner`, admit so many, let them join, and pay the escrow in."""
        self.owner, self.version = self.funded(owner), 0
        self.devices = self.all_devices[:devices]
        self.validators = self.all_validators[:validators]
        terms = task_terms(is_public=True, devices_max=len(self.devices), slot_bits=32)
        self.send([self.contract.createtask(owner, owner, terms)])
        self.landed()
        for role, members in ((Role.DEVICE, self.devices), (Role.VALIDATOR, self.validators)):
            classes = 7 if role is Role.DEVICE else 0
            for group in groups(members, ADMIT_MAX):
                self.send([self.contract.admit(owner, owner, group, role)])
            self.landed()
            for group in groups(members, JOIN_MAX):
                joins = [self.contract.join(owner, m, digest("enc", m), classes) for m in group]
                self.send([by_owner(one) for one in joins])
        self.send([self.contract.deposit(owner, owner, Asset(4 * 10**8, TOKEN))])
        self.landed()

    # ---- a round ------------------------------------------------------------------------------

    def open_round(self) -> None:
        """Open the next round."""
        self.version += 1
        terms = round_terms(
            model_cid=digest_to_cid(digest("model", self.version)),
            model_hash=digest("model", self.version),
            price=PRICE,
            budget=COST * PRICE * len(self.devices),
        )
        self.send([self.contract.openround(self.owner, self.owner, self.version, terms)])
        self.landed()

    def upload(self, numbers: Sequence[int], *, batch: int) -> float:
        """Record uploads of these devices, many in a transaction, by their owner permissions.

        Return what one took, microseconds.
        """
        spent = 0
        for start in range(0, len(numbers), batch):
            names = [self.devices[number] for number in numbers[start : start + batch]]
            one = [upload_action(self.contract, self.owner, name, self.version) for name in names]
            spent += int(self.send([by_owner(action) for action in one]).traces["elapsed"])
        self.landed()
        return spent / len(numbers)

    def judge(self, *, batch: int = ATTEST_MAX) -> list[dict[str, Any]]:
        """Let every validator accept all uploads of the round; return what each batch cost."""
        live = self.contract.current_round(self.owner)
        assert live is not None
        ballots = self.contract.ballots(self.owner, live.uploads)
        costs = []
        for place, validator in enumerate(self.validators):
            verdicts = [
                Verdict(slot=slot, hash=ballot.hash, code=VerdictCode.ACCEPT)
                for slot, ballot in enumerate(ballots)
                if not ballot.verdicts[place]
            ]
            for start in range(0, len(verdicts), batch):
                costs += self._attest(validator, verdicts[start : start + batch])
        self.landed()
        return costs

    def _attest(self, validator: str, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
        action = self.contract.attest(self.owner, self.version, validator, verdicts)
        try:
            result = self.send([action])
        except NodeAnswerError:
            if len(verdicts) < 2:
                raise
            # The chain bounds a transaction's time by the clock, which runs on while others have
            # the processor: half as many will fit.
            half = len(verdicts) // 2
            return self._attest(validator, verdicts[:half]) + self._attest(
                validator, verdicts[half:]
            )
        return [
            {
                "validator": validator,
                "verdicts": len(verdicts),
                "billed_us": result.cpu_us,
                "elapsed_us": int(result.traces["elapsed"]),
                "actions": len(result.traces["action_traces"]),
            }
        ]

    def settle(self) -> int:
        """Close the round and settle it; return the CPU billed, microseconds."""
        who = self.owner
        billed = self.send([self.contract.closeround(who, who, self.version)]).cpu_us
        self.landed()
        live = self.contract.current_round(who)
        while live is not None and live.state is not RoundState.SETTLED:
            if live.state is RoundState.VERIFYING:
                self.judge()  # of several nodes one had uploads that came after the first look
            else:
                result = self.send([self.contract.settle(who, who, self.version, SETTLE_MAX)])
                billed += result.cpu_us
                self.landed()
            live = self.contract.current_round(who)
        return billed

    def ram(self) -> int:
        """Return the RAM of who could pay for an upload: owner, contract, devices, a validator."""
        accounts = [self.owner, self.place.contract, self.devices[0], self.devices[-1]]
        accounts += self.validators[:1]
        return sum(int(self.client.get_account(one)["ram_usage"]) for one in accounts)


def upload_action(contract: FedLearning, task: str, device: str, version: int) -> Action:
    """Return the one action that a device sends in a round."""
    cid = digest_to_cid(digest("cid", device, version))
    return contract.fedlearning(
        task, device, version, upload_hash(device, version), cid, COST, ERRORS
    )


def upload_hash(device: str, version: int) -> bytes:
    """Return the hash that a device's upload records."""
    return digest("upload", device, version)


def by_owner(one: Action) -> Action:
    """Return the action, authorised by its actor's owner permission."""
    levels = tuple((actor, "owner") for actor, _ in one.authorization)
    return dataclasses.replace(one, authorization=levels)


def groups(items: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the items, `size` at a time."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


# ---- signing ahead ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """What a signer needs to know; no key is ever written down.

    Attributes
    ----------
    kinds : tuple of str
        What the devices do in turn: ``fedlearning``, ``transfer``.
    batch : int
        Transactions in one request.
    """

    kinds: tuple[str, ...]
    owner: str
    contract: str
    version: int
    devices: int
    seed: bytes = dataclasses.field(repr=False)
    chain_id: str
    block_id: str
    expiration: int
    batch: int = 1


def sign_range(job: Job, first: int, last: int, path: Path) -> list[bytes]:
    """Sign for the devices first..last-1; write the requests' bodies, return the ids."""
    ids: list[bytes] = []

    def signed() -> Iterator[dict[str, Any]]:
        contract = FedLearning(ChainClient("http://127.0.0.1:1"), job.contract)  # packs only
        for number in range(first, last):
            device = name_of("bd", number)
            if job.kinds[number % len(job.kinds)] == "fedlearning":
                one = upload_action(contract, job.owner, device, job.version)
            else:
                to = name_of("bd", (number + 1) % job.devices)
                one = transfer(TOKEN_CONTRACT, device, to, Asset(1, TOKEN), MEMO)
            transaction = Transaction.refer([one], job.expiration, job.block_id)
            ids.append(bytes.fromhex(transaction.id))
            yield transaction.sign(job.chain_id, [device_key(job.seed, number)])

    def requests() -> Iterator[bytes]:
        group: list[dict[str, Any]] = []
        for one in signed():
            if job.batch == 1:
                document: Any = {
                    "return_failure_trace": False,
                    "retry_trx": False,
                    "transaction": one,
                }
                yield json.dumps(document, separators=(",", ":")).encode()
                continue
            group.append(one)
            if len(group) == job.batch:
                yield json.dumps(group, separators=(",", ":")).encode()
                group = []
        if group:
            yield json.dumps(group, separators=(",", ":")).encode()

    chain_client.write_bodies(path, requests())
    return ids


class Signers:
    """Sign in as many processes as there are cores; memory holds ids, the disk the bodies."""

    def __init__(self) -> None:
        self._count = os.cpu_count() or 1
        self._pool = ProcessPoolExecutor(self._count, mp_context=get_context("spawn"))

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()

    def sign(
        self,
        world: World,
        kinds: tuple[str, ...],
        count: int,
        path: Path,
        *,
        batch: int = 1,
        salt: int = 0,
    ) -> list[bytes]:
        """Write `count` signed transactions of as many devices to `path`; return their ids."""
        info = world.client.get_info()
        job = Job(
            kinds=kinds,
            owner=world.owner,
            contract=world.place.contract,
            version=world.version,
            devices=len(world.devices),
            seed=world.seed,
            chain_id=info.chain_id,
            block_id=info.irreversible_id,
            expiration=info.head_time + EXPIRATION_SEC + salt,
            batch=batch,
        )
        step = -(-count // (2 * self._count) // batch) * batch or batch
        ranges = [(first, min(first + step, count)) for first in range(0, count, step)]
        pieces = [path.with_suffix(f".{index}") for index in range(len(ranges))]
        jobs = [
            self._pool.submit(sign_range, job, first, last, piece)
            for (first, last), piece in zip(ranges, pieces, strict=True)
        ]
        ids = [one for job_ in jobs for one in job_.result()]
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece.read_bytes())
                piece.unlink()
        return ids
