"""What each action of the contract costs: CPU, RAM, bytes; next to eosio.token's transfer.

``python -m bench.contract [--json] [--samples N] [--out FILE]`` starts a local network of its own.

Each action is sent alone in a transaction, in turn with a transfer to another account, so that both
see the same machine. `billed_us` is what the chain bills (it bills at least 100 us), `elapsed_us`
what the node measured for the actions of the transaction, inline ones included; medians. In a batch
15 actions share one transaction and its signature. RAM is what the transaction adds to any account.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bench.chain_world import groups
from bench.ending import end_cleanly
from bench.machine import machine
from bench.record import command, record
from bench.terms import round_terms, task_terms
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, Mode
from gradledger.chain.keys import PrivateKey
from gradledger.chain.transaction import Action, action
from gradledger.cid import digest_to_cid
from gradledger.localnet import parts, system
from gradledger.localnet.network import Network
from gradledger.lots import lot_commitment

VALIDATORS = 4
BATCH = 15
DEVICES_MAX = 700
AUDITED = "benchaudit"  # the task whose uploads are audited
WARM_UP = 5
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Bench:
    """A task with `devices` devices on a fresh network; `costs` collects the measurements."""

    def __init__(self, network: Network, devices: int) -> None:
        info = network.info()
        self.client = ChainClient(info.chain_urls[0])
        self.contract, self.token = info.contract, info.token_contract
        self.fedlearning = FedLearning(self.client, info.contract)
        self.key = PrivateKey.generate()
        self.owner = self.task = "benchowner"
        self.devices = [f"bd{LETTERS[i // 26]}{LETTERS[i % 26]}" for i in range(devices)]
        self.slots = {one: slot for slot, one in enumerate(self.devices)}  # they upload in turn
        self.validators = [f"benchval{LETTERS[i]}" for i in range(VALIDATORS)]
        self.receivers = [f"br{LETTERS[i // 26]}{LETTERS[i % 26]}" for i in range(devices)]
        self.costs: dict[str, list[dict[str, int]]] = {}
        self._expiration = 60
        network.create_account(self.owner, self.key)
        network.transfer(self.owner, "100000.0000 TOK")
        everyone = self.devices + self.validators + self.receivers
        for group in groups(everyone, 50):
            self.send([system.new_account(self.owner, one, self.key.public) for one in group])

    def act(self, name: str, actor: str, **data: Any) -> Action:
        packed = self.fedlearning.abi.pack_action(name, {"task": self.task, **data})
        return action(self.contract, name, actor, packed)

    def send(self, actions: Sequence[Action], label: str = "") -> None:
        """Send one transaction; keep what it cost under `label`."""
        self._expiration = 60 + (self._expiration - 59) % 500
        result = self.client.push(actions, [self.key], expiration_sec=self._expiration)
        if not label:
            return
        traces = result.traces
        ram = sum(
            change["delta"]
            for trace in traces["action_traces"]
            for change in trace.get("account_ram_deltas", [])
        )
        self.costs.setdefault(label, []).append(
            {
                "billed_us": result.cpu_us,
                "elapsed_us": int(traces["elapsed"]),
                "net_bytes": result.net_bytes,
                "ram_bytes": ram,
                "actions": len(traces["action_traces"]),
                "sent": len(actions),
            }
        )

    def transfer(self, to: str, memo: str) -> Action:
        return system.token_action(
            self.token,
            "transfer",
            self.owner,
            from_=self.owner,
            to=to,
            quantity="0.0600 TOK",
            memo=memo,
        )

    def upload(self, device: str, version: int, *, cid: str | None = None) -> Action:
        if cid is None:
            cid = _cid("cid", device, version)
        return self.act(
            "fedlearning",
            device,
            device=device,
            version=version,
            hash=_digest("upload", device, version),
            cid=cid,
            cost=600,
            errors=[900_000, 700_000, 400_000, 300_000, 200_000],
        )

    def attest(
        self, validator: str, devices: Iterable[str], version: int, name: str = "attest"
    ) -> Action:
        verdicts = [
            {"slot": self.slots[d], "hash": _digest("upload", d, version), "code": 1}
            for d in devices
        ]
        return self.act(name, validator, version=version, validator=validator, verdicts=verdicts)

    def ram_of_owner(self) -> int:
        return int(self.client.get_account(self.owner)["ram_usage"])

    # ---- the rounds -------------------------------------------------------------------------

    def prepare(self) -> None:
        terms = task_terms(
            token_contract=self.token, mode=Mode.PAILLIER, key_hash=bytes.fromhex(_digest("key"))
        )
        create = self.fedlearning.createtask(self.owner, self.owner, terms)
        self.send([create], "createtask")
        labels = ("admit (1), takes a page of ballots", "admit (1)")
        for one, label in zip(self.devices, labels, strict=False):
            self.send([self.act("admit", self.owner, accounts=[one], role=1)], label)
        for group in groups(self.devices[2:], 50):
            self.send([self.act("admit", self.owner, accounts=group, role=1)])
        self.send([self.act("admit", self.owner, accounts=self.validators, role=2)])
        for one in self.devices + self.validators:
            classes = 7 if one in set(self.devices) else 0
            data = {"account": one, "enc_key": _digest("enc", one), "classes": classes}
            self.send([self.act("join", one, **data)], "join")
        for index in range(WARM_UP):
            memo = self.transfer(self.contract, self.owner)
            self.send([memo], "deposit (transfer with notification)" if index else "")
        big = system.token_action(
            self.token,
            "transfer",
            self.owner,
            from_=self.owner,
            to=self.contract,
            quantity="50000.0000 TOK",
            memo=self.owner,
        )
        self.send([big])
        for one in self.receivers:  # the second transfer finds the balance's row
            self.send([self.transfer(one, "x")], "transfer (first, takes a row)")

    def round(self, version: int, samples: int) -> None:
        """One round in which the first `samples` devices upload singly."""
        terms = round_terms(
            model_cid=_cid("model", version),
            model_hash=bytes.fromhex(_digest("model", version)),
        )
        measured = version > 1  # the first round pays into new balance rows
        before = self.ram_of_owner()
        step = self.fedlearning.openround(self.owner, self.owner, version, terms)
        self.send([step], "openround")
        singles, batched = self.devices[:samples], self.devices[samples:]
        memo = "m" * 30
        for device, receiver in zip(singles, self.receivers, strict=False):
            self.send([self.upload(device, version)], "fedlearning" if measured else "")
            self.send([self.transfer(receiver, memo)], "transfer" if measured else "")
        for group in groups(batched, BATCH):
            actions = [self.upload(d, version) for d in group]
            self.send(actions, f"fedlearning x {BATCH}" if measured else "")
            transfers = [self.transfer(r, memo) for r in self.receivers[: len(group)]]
            self.send(transfers, f"transfer x {BATCH}" if measured else "")
        self.ram_open = self.ram_of_owner() - before
        quorum = VALIDATORS * 2 // 3 + 1
        for index, validator in enumerate(self.validators):
            decides = index == quorum - 1
            label = ("attest, last of the quorum: pays", "attest, one verdict")[not decides]
            many = ("attest x 15, pays 15", "attest x 15")[not decides]
            for device in singles:
                self.send([self.attest(validator, [device], version)], label if measured else "")
            for group in groups(batched, BATCH):
                self.send([self.attest(validator, group, version)], many if measured else "")
        data = {"version": version, "caller": self.owner}
        self.send([self.act("closeround", self.owner, **data)], "closeround")
        for validator in self.validators[:quorum]:
            vote = {"hash": _digest("sum"), "cid": terms.model_cid, "validator": validator}
            self.send([self.act("attestsum", validator, version=version, **vote)], "attestsum")
        self.send([self.act("settle", self.owner, limit=100, **data)], "settle, 100 members")
        self.send([self.act("settle", self.owner, limit=1000, **data)])
        self.ram_settled = self.ram_of_owner() - before
        self.send([self.act("withdraw", self.owner, quantity="0.0001 TOK")], "withdraw")

    def audited_round(self, samples: int) -> None:
        """One round of a task that reveals CIDs later and audits every upload."""
        self.task = AUDITED
        devices, quorum = self.devices[:samples], self.validators[: VALIDATORS * 2 // 3 + 1]
        key = bytes.fromhex(_digest("key"))
        terms = task_terms(
            token_contract=self.token, mode=Mode.PAILLIER, key_hash=key, lot_e6=1_000_000
        )
        self.send([self.fedlearning.createtask(self.task, self.owner, terms)])
        for group in groups(devices, 50):
            self.send([self.act("admit", self.owner, accounts=group, role=1)])
        self.send([self.act("admit", self.owner, accounts=self.validators, role=2)])
        for one in devices + self.validators:
            data = {"account": one, "enc_key": _digest("enc", one)}
            self.send([self.act("join", one, classes=7 if one in devices else 0, **data)])
        for _ in range(len(devices) + 1):
            self.send([self.transfer(self.contract, self.task)])
        round_ = round_terms(model_cid=_cid("model"), reveal_sec=3600, audit_sec=3600)
        self.send([self.fedlearning.openround(self.task, self.owner, 1, round_)])
        for one in self.validators:
            value = _digest("lot", one)
            commitment = lot_commitment(self.task, 1, one, bytes.fromhex(value)).hex()
            lot: dict[str, Any] = {"version": 1, "validator": one, "commitment": commitment}
            self.send([self.act("commitlot", one, **lot)], "commitlot")
        for one in devices:
            self.send([self.upload(one, 1, cid="")], "fedlearning, CID revealed later")
        closing = {"version": 1, "caller": self.owner}
        self.send([self.act("closeround", self.owner, **closing)])
        self._each(devices, "reveal", cid=_cid("file"))
        self._verdicts(devices, quorum, "attest", "attest, last of the quorum: awaits the draw")
        for one in self.validators:
            lot = {"version": 1, "validator": one, "value": _digest("lot", one)}
            self.send([self.act("reveallot", one, **lot)], "reveallot")
        push = self.act("push", self.owner, version=1, limit=len(devices))
        self.send([push], f"push, draws {len(devices)}")
        self._each(devices, "openupload", cid=_cid("opening"))
        self._verdicts(devices, quorum, "attestaudit", "attestaudit, last of the quorum: pays")

    def _each(self, devices: Sequence[str], name: str, **data: str) -> None:
        for one in devices:
            self.send([self.act(name, one, device=one, version=1, **data)], name)

    def _verdicts(
        self, devices: Sequence[str], quorum: Sequence[str], name: str, last: str
    ) -> None:
        for validator in quorum:
            label = last if validator == quorum[-1] else f"{name}, one verdict of an audited task"
            for one in devices:
                self.send([self.attest(validator, [one], 1, name)], label)


def _digest(*parts_of_it: object) -> str:
    return hashlib.sha256(repr(parts_of_it).encode()).hexdigest()


def _cid(*parts_of_it: object) -> str:
    return digest_to_cid(bytes.fromhex(_digest(*parts_of_it)))


def summarise(costs: dict[str, list[dict[str, int]]]) -> dict[str, dict[str, float]]:
    """Return the medians by action."""
    found: dict[str, dict[str, float]] = {}
    for label, samples in costs.items():
        full = [s for s in samples if s["sent"] == max(one["sent"] for one in samples)]
        sent = full[0]["sent"]
        found[label] = {
            "billed_us": statistics.median(s["billed_us"] for s in full),
            "elapsed_us": statistics.median(s["elapsed_us"] for s in full),
            "elapsed_us_per_action": statistics.median(s["elapsed_us"] for s in full) / sent,
            "net_bytes": statistics.median(s["net_bytes"] for s in full),
            "ram_bytes": statistics.median(s["ram_bytes"] for s in full),
            "samples": len(full),
        }
    return found


def measure(samples: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the bench on a network of its own and return its document."""
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as home:
        network = Network(Path(home) / "net", say=say)
        try:
            network.up(validators=0)
            bench = Bench(network, samples + 4 * BATCH)
            say("preparing the task")
            bench.prepare()
            for version in (1, 2, 3):
                say(f"round {version}")
                bench.round(version, samples)
            say("a round with audits")
            bench.audited_round(samples)
            server = bench.client.get_info().server_version
        finally:
            network.down(wipe=True)
    folder = resources.files("gradledger.artifacts")
    actions = summarise(bench.costs)
    uploads = len(bench.devices)
    batch = f"fedlearning x {BATCH}", f"transfer x {BATCH}"
    return {
        "wasm_bytes": len(folder.joinpath("fedlearning.wasm").read_bytes()),
        "token_wasm_bytes": len(parts.system_contract("eosio.token")[0]),
        "validators": VALIDATORS,
        "devices": uploads,
        "actions": actions,
        "cpu_ratio_to_transfer": round(
            actions["fedlearning"]["elapsed_us"] / actions["transfer"]["elapsed_us"], 3
        ),
        "cpu_ratio_to_transfer_in_batches": round(
            actions[batch[0]]["elapsed_us"] / actions[batch[1]]["elapsed_us"], 3
        ),
        "ram_bytes_open_per_upload": round(bench.ram_open / uploads, 1),
        "ram_bytes_settled_per_round": bench.ram_settled,
        "machine": machine(),
        "chain": server,
    }


def main(argv: Sequence[str] | None = None) -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(prog="bench.contract", description="Cost of each action.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--samples", type=int, default=100, help="devices that upload singly")
    parser.add_argument("--out", type=Path, help="also write the document to this file")
    options = parser.parse_args(argv)
    if not 40 <= options.samples <= DEVICES_MAX - 4 * BATCH:
        parser.error(f"--samples: expected 40 to {DEVICES_MAX - 4 * BATCH}")
    shown = command("bench.contract", options, argv)
    measured = measure(options.samples, lambda text: print(text, file=sys.stderr))
    document = {"command": shown, **measured}
    text = record(document, options.out, on_chain=True)
    if options.json:
        print(text)
        return 0
    print(f"{'action':44}{'billed us':>10}{'elapsed us':>11}{'each us':>9}{'net B':>7}{'RAM B':>7}")
    for label, cost in document["actions"].items():
        print(
            f"{label:44}{cost['billed_us']:10.0f}{cost['elapsed_us']:11.0f}"
            f"{cost['elapsed_us_per_action']:9.1f}{cost['net_bytes']:7.0f}{cost['ram_bytes']:7.0f}"
        )
    for name in ("wasm_bytes", "cpu_ratio_to_transfer", "cpu_ratio_to_transfer_in_batches"):
        print(f"{name}: {document[name]}")
    for name in ("ram_bytes_open_per_upload", "ram_bytes_settled_per_round"):
        print(f"{name}: {document[name]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
