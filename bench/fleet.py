"""A fleet: many devices in one round, through the real chain, a real Kubo, and real validators.

``python -m bench.fleet [--json] [--devices 10,100,1000] [--out FILE]`` starts a network of its own,
with validators in processes of their own, as `gradledger up` does. For each number of devices an
owner, in a process of its own too, conducts one round of a task of its own: it opens the round,
issues the validation sets that the opening block drew from the points that the task commits to,
closes the round after the last upload, waits for the verdicts and the sum, decrypts the sum, and
settles. Who has its set uploads while others wait for theirs. The devices are those of the SDK, one
after the other in a few processes: each reads the chain, the model and its validation set,
encrypts, stores and records its update. The mean that comes out must be that of all updates.

Simulated: the training (a small step that is known beforehand) and the joining (many accounts in
one transaction). The model is public, since sealing it to 10,000 readers makes its header 800 kB
long and each of them reads that. Memory is the most that a process ever had in that round (VmHWM).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.chain_world import (
    COST,
    Place,
    World,
    by_owner,
    cpu_s,
    device_key,
    groups,
    name_of,
    quiet_network,
)
from bench.ending import end_cleanly
from bench.machine import machine, peak_mb
from bench.record import command, record
from bench.terms import round_terms, task_choices
from gradledger import envelope
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import Mode, Recipe, RoundState
from gradledger.localnet.processes import Process
from gradledger.models import Model
from gradledger.store import Store

ARCHITECTURE = {"kind": "mlp", "layers": [4, 3], "activation": "relu"}
CLASS_NAMES = ("a", "b", "c")
POINTS = 30  # of the owner's validation data
PER_CLASS = 2  # of these, in a device's set
KEY_BITS = 2048
CLIP = 1.0
SLOT_BITS = 32
DEVICES_MAX = 16_000
JOINS = 50
POLL_SEC = 0.2
ROUND_SEC_MAX = 3600
PHASES = ("issue", "upload", "judge", "sum", "settle")


@dataclass(frozen=True)
class Spec:
    """What the processes of one round need to know.

    `key_seed` makes the devices' keys, `seed` the points and the model.
    """

    task: str
    devices: int
    validators: tuple[str, ...]
    mode: Mode
    chain: str
    store: str
    contract: str
    key_file: str
    paillier_file: str
    seed: int
    key_seed: bytes = field(repr=False)


def step_of(number: int, parameters: int) -> np.ndarray:
    """Return what a device's training adds to the model: known beforehand, each another."""
    places = np.arange(parameters)
    return (0.001 * ((number * 7 + places * 13) % 101 - 50)).astype(np.float32)


# ---- the owner's process ------------------------------------------------------------------------


def _owner(spec: Spec) -> Any:
    from owner import Owner

    return Owner(
        spec.task,
        task=spec.task,
        key=spec.key_file,
        chain=spec.chain,
        store=spec.store,
        contract=spec.contract,
        paillier_key=spec.paillier_file if spec.mode is Mode.PAILLIER else None,
    )


def _points(spec: Spec) -> Any:
    from owner.validation_sets import ValidationData

    rng = np.random.default_rng(spec.seed)
    return ValidationData(rng.normal(size=(POINTS, 4)), np.arange(POINTS) % len(CLASS_NAMES))


def prepare(spec: Spec) -> None:
    """Create the task, pay in, admit everybody."""
    owner = _owner(spec)
    owner.create_task(
        task_choices(
            mode=spec.mode,
            is_public=True,
            cost_max=COST,
            devices_max=max(3, spec.devices),
            slot_bits=SLOT_BITS,
            clip_e6=round(CLIP * 1e6),
        ),
        architecture=ARCHITECTURE,
        class_names=CLASS_NAMES,
        validation=owner.committed(_points(spec), len(CLASS_NAMES)).commitment(PER_CLASS),
    )
    owner.admit_devices([name_of("bd", number) for number in range(spec.devices)])
    owner.admit_validators(spec.validators)
    owner.deposit("10000.0000 TOK")


def conduct(spec: Spec) -> dict[str, Any]:
    """Conduct the round; return how long each phase took, and what became of the uploads."""
    owner = _owner(spec)
    idle_mb = peak_mb()
    model = Model.random_glorot(ARCHITECTURE, spec.seed)
    data = _points(spec)
    cpu = time.process_time()
    clock = [time.perf_counter()]
    published = owner.publish_model(model, 1)
    owner.open_round(
        1,
        round_terms(
            model_cid=published.cid,
            model_hash=published.hash,
            budget=COST * spec.devices,
            phase_sec=ROUND_SEC_MAX,
            close_after=spec.devices,
            tau=1_000_001,
            training=Recipe(epochs=1, batch_size=8, rate_e6=1, measures=2, seed=1),
        ),
        wait=False,
    )
    issued = owner.issue_validation_sets(1, data)
    clock.append(time.perf_counter())
    wait_for_uploads(owner, spec.devices)
    owner.close_round(1)
    clock.append(time.perf_counter())
    owner.wait_verdicts(1)
    clock.append(time.perf_counter())
    owner.wait_sum(1)
    result = owner.aggregate(1, model)
    clock.append(time.perf_counter())
    settled = owner.settle(1)
    clock.append(time.perf_counter())
    parameters = model.parameters
    mean = sum(step_of(n, parameters).astype(np.float64) for n in range(spec.devices))
    wrong = float(np.abs(result.model.vector - model.vector - mean / spec.devices).max())
    seconds = [b - a for a, b in itertools.pairwise(clock)]
    return {
        "sets_issued": len(issued),
        "accepted": settled.accepted,
        "refused": settled.refused,
        "paid": settled.paid,
        "mean_wrong_by": wrong,
        "seconds": round(clock[-1] - clock[0], 3),
        "phases": {name: round(s, 3) for name, s in zip(PHASES, seconds, strict=True)},
        "owner_mb": peak_mb(),
        "owner_idle_mb": idle_mb,
        "cpu_s": time.process_time() - cpu,
    }


def wait_for_uploads(owner: Any, devices: int) -> None:
    """Wait until all uploads of round 1 are recorded.

    Raises
    ------
    RuntimeError
        The round is no longer open, or ROUND_SEC_MAX is over, and some are missing.
    """
    until = time.monotonic() + ROUND_SEC_MAX
    while (live := owner.round(1)).uploads < devices:
        missing = f"expected {devices} uploads, got {live.uploads}"
        if live.state is not RoundState.OPEN:
            raise RuntimeError(f"{missing}, and the round is {live.state.name.lower()}")
        if time.monotonic() >= until:
            raise RuntimeError(f"{missing} within {ROUND_SEC_MAX} s")
        time.sleep(POLL_SEC)


# ---- the devices' processes ---------------------------------------------------------------------


def warm_up() -> int:
    """Load what a device needs, so that a round does not wait for that."""
    import device_sdk
    import gradledger.paillier

    return len(device_sdk.__all__) + len(gradledger.paillier.__all__)


def take_part(spec: Spec, first: int, step: int) -> dict[str, Any]:
    """Be the devices first, first + step, ... one after the other."""
    from device_sdk import Device

    chain, store = ChainClient(spec.chain), Store(spec.store)
    cpu, seconds = time.process_time(), []
    for number in range(first, spec.devices, step):
        device = Device(
            name_of("bd", number),
            key=device_key(spec.key_seed, number),
            task=spec.task,
            chain=chain,
            store=store,
            contract=spec.contract,
        )

        def fit(model: Model, _: Any, number: int = number) -> tuple[Model, list[int]]:
            trained = model.with_vector(model.vector + step_of(number, model.parameters))
            return trained, [900_000, 200_000]

        with device.round(wait_sec=ROUND_SEC_MAX) as found:
            start = time.perf_counter()
            found.upload(found.train(fit, examples=COST))
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_mb": peak_mb(), "cpu_s": time.process_time() - cpu}


# ---- the bench ----------------------------------------------------------------------------------


class Fleet:
    """A network, the accounts of its largest round, and the rounds one after the other."""

    def __init__(self, home: Path, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.home, self.options, self.say = home, options, say
        self.mode = Mode[options.mode.upper()]
        self.network = quiet_network(home / "net", say)

    def run(self) -> dict[str, Any]:
        """Return the document."""
        from owner import PaillierPrivateKey

        paillier = self.home / "paillier.json"
        PaillierPrivateKey.generate(KEY_BITS).save(paillier)
        try:
            info = self.network.up(validators=self.options.validators)
            place = Place(self.network)
            world = World(place, max(self.options.devices), 0, self.options.seed)
            self.say(f"creating {len(world.all_devices)} accounts")
            world.create_accounts()
            rows = []
            for count in self.options.devices:
                task = name_of("fleet", count)
                world.funded(task)
                spec = Spec(
                    task=task,
                    devices=count,
                    validators=info.validators,
                    mode=self.mode,
                    chain=info.chain_url,
                    store=info.store_addr,
                    contract=info.contract,
                    key_file=info.accounts.get(task)
                    or str(self.home / "net" / "keys" / f"{task}.json"),
                    paillier_file=str(paillier),
                    seed=self.options.seed,
                    key_seed=world.seed,
                )
                rows.append(self._round(world, spec))
                self.say(line(rows[-1]))
            server = place.client.get_info().server_version
        finally:
            self.network.down(wipe=True)
        return {
            "seed": self.options.seed,
            "mode": self.mode.name.lower(),
            "committed_sets": True,
            "validators": self.options.validators,
            "device_processes": self.options.workers,
            "parameters": Model.random_glorot(ARCHITECTURE, 0).parameters,
            "rounds": rows,
            "fits": fits(rows),
            "machine": machine(),
            "chain": server,
        }

    def _round(self, world: World, spec: Spec) -> dict[str, Any]:
        """Play one round; every process but the network's is a new one."""
        context = get_context("spawn")
        with (
            ProcessPoolExecutor(1, mp_context=context) as owner,
            ProcessPoolExecutor(self.options.workers, mp_context=context) as devices,
        ):
            self.say(f"{spec.devices} devices join {spec.task}")
            owner.submit(prepare, spec).result()
            for group in groups([str(number) for number in range(spec.devices)], JOINS):
                world.send([by_owner(self._join(world, spec, int(n))) for n in group])
            for job in [devices.submit(warm_up) for _ in range(self.options.workers)]:
                job.result()
            before = self._cpu()
            for process in self._processes().values():
                reset_peak(process.pid)
            conducted = owner.submit(conduct, spec)
            jobs = [
                devices.submit(take_part, spec, first, self.options.workers)
                for first in range(self.options.workers)
            ]
            row, *done = results([conducted, *jobs])
        after = self._cpu()
        cpu = {kind: after[kind] - before[kind] for kind in after}
        cpu |= {"owner": row.pop("cpu_s"), "devices": sum(part["cpu_s"] for part in done)}
        times = [one for part in done for one in part["seconds"]]
        peaks = {name: peak_mb(process.pid) for name, process in self._processes().items()}
        judged = [peak for name, peak in peaks.items() if name.startswith("validator")]
        return {
            "devices": spec.devices,
            **row,
            "upload_ms": round(1000 * statistics.median(times), 1),
            "validator_mb": max(judged),
            "device_process_mb": max(part["peak_mb"] for part in done),
            "node_mb": peaks["node1"],
            "kubo_mb": peaks["kubo"],
            "cpu_ms_per_device": {
                kind: round(1000 * seconds / spec.devices, 1) for kind, seconds in cpu.items()
            },
        }

    @staticmethod
    def _join(world: World, spec: Spec, number: int) -> Any:
        public = envelope.public_key_of(device_key(spec.key_seed, number).encryption_key())
        return world.contract.join(spec.task, world.all_devices[number], public, 0b111)

    def _cpu(self) -> dict[str, float]:
        """Return the CPU time of the network's processes, seconds."""
        spent = dict.fromkeys(("validators", "node", "kubo"), 0.0)
        for name, process in self._processes().items():
            kind = "validators" if name.startswith("validator") else name.rstrip("1")
            if kind in spent:
                spent[kind] += cpu_s(str(process.pid))
        return spent

    def _processes(self) -> dict[str, Process]:
        """Return the network's processes by name."""
        document = json.loads((self.home / "net" / "network.json").read_text("utf-8"))
        found = [Process.from_dict(one) for one in document["processes"].values()]
        return {one.name: one for one in found}


def results(futures: Sequence[Future[Any]]) -> list[Any]:
    """Return what the futures come to; when one fails, end all processes of pools, and raise.

    The others would wait for it as long as a round may take.
    """
    try:
        ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
        return [one.result() for one in futures if one in ended]
    except BaseException:
        for child in active_children():
            child.terminate()
        raise


def reset_peak(pid: int) -> None:
    """Let VmHWM count anew: proc(5), clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


# ---- what follows -------------------------------------------------------------------------------


def fits(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the exponents of seconds = c x devices^a: over all rounds, and over the last two."""
    found = {}
    for name, used in (("all", rows), ("last_two", rows[-2:])):
        if len(used) > 1:
            slope, _ = _fit(used)
            found[name] = round(slope, 3)
    return found


def _fit(rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    devices = np.log([row["devices"] for row in rows])
    slope, offset = np.polyfit(devices, np.log([row["seconds"] for row in rows]), 1)
    return float(slope), float(offset)


def line(row: dict[str, Any]) -> str:
    """Return a round as text."""
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["phases"].items())
    return (
        f"{row['devices']:>6,} devices  {row['seconds']:>7.1f} s ({phases})  accepted "
        f"{row['accepted']:,}  owner {row['owner_mb']:.0f} MB, validator "
        f"{row['validator_mb']:.0f} MB"
    )


def bounds(document: dict[str, Any]) -> list[str]:
    """Say where the time of the largest round went."""
    row = document["rounds"][-1]
    spent = row["cpu_ms_per_device"]
    total = sum(spent.values())
    listed = ", ".join(f"{kind} {ms:.1f}" for kind, ms in spent.items())
    cores = document["machine"]["cpus"]
    least_s = total * row["devices"] / 1000 / cores
    return [
        f"{row['devices']:,} devices: {total:.1f} ms of CPU for each ({listed}), which this "
        f"machine's {cores} cores do in {least_s:.1f} s; the round took {row['seconds']:.1f} s.",
        f"Owner {row['owner_mb']:.0f} MB ({row['owner_idle_mb']:.0f} MB before the round), "
        f"validator {row['validator_mb']:.0f} MB; with {document['rounds'][0]['devices']} devices "
        f"{document['rounds'][0]['owner_mb']:.0f} MB and "
        f"{document['rounds'][0]['validator_mb']:.0f} MB.",
    ]


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the PNG: seconds of a round by devices with the fit, and memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = document["rounds"]
    devices = [row["devices"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    left.plot(devices, [row["seconds"] for row in rows], color="#1b2631", marker="o", label="round")
    for name, colour in zip(PHASES, _COLOURS, strict=True):
        times = [row["phases"][name] for row in rows]
        look = {"color": colour, "marker": ".", "linewidth": 1.0}
        left.plot(devices, times, label=_PHASE_NAMES[name], **look)
    for name, used, style in (("all", rows, "--"), ("last_two", rows[-2:], ":")):
        if name in document["fits"]:
            slope, offset = _fit(used)
            along = [used[0]["devices"], used[-1]["devices"]]
            which = "all" if name == "all" else "the last two"
            left.plot(
                along,
                [math.exp(offset) * count**slope for count in along],
                color="#888888",
                linestyle=style,
                label=f"fit over {which}: devices^{slope:.2f}",
            )
    left.set(xscale="log", yscale="log", xlabel="devices in the round", ylabel="seconds")
    left.set_ylim(bottom=0.05)
    for key, label, colour in (
        ("owner_mb", "owner", "#2874a6"),
        ("validator_mb", "validator, the largest", "#148f77"),
        ("device_process_mb", "a process of devices", "#ca6f1e"),
        ("node_mb", "nodeos", "#7d3c98"),
        ("kubo_mb", "Kubo", "#666666"),
    ):
        right.plot(devices, [row[key] for row in rows], color=colour, marker="o", label=label)
    right.set(xscale="log", xlabel="devices in the round", ylabel="peak memory, MB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(devices, [f"{count:,}" for count in devices])
        axes.set_xticks([], minor=True)
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"One round, {document['mode']} mode, {document['validators']} validators, "
        f"{document['parameters']} parameters: everything on one machine",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


_COLOURS = ("#2874a6", "#148f77", "#ca6f1e", "#7d3c98", "#b03a2e")
_PHASE_NAMES = {
    "issue": "model, opening, validation sets",
    "upload": "uploads",
    "judge": "verdicts still due",
    "sum": "sum and decryption",
    "settle": "settling",
}


def main(argv: Sequence[str] | None = None) -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(prog="bench.fleet", description="Many devices in one round.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, help="also write it to this file, and a PNG beside it")
    parser.add_argument("--devices", default="10,100,1000", help="of each round")
    parser.add_argument("--mode", choices=("paillier", "sealed"), default="paillier")
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1, help="of accounts' keys, points and model")
    options = parser.parse_args(argv)
    try:
        options.devices = sorted({int(text) for text in options.devices.split(",")})
    except ValueError:
        parser.error("--devices: expected numbers, separated by commas")
    if options.devices[0] < 3 or options.devices[-1] > DEVICES_MAX:
        parser.error(f"--devices: expected numbers of 3..{DEVICES_MAX}")
    if not 1 <= options.validators <= 25 or not 1 <= options.workers <= 64:
        parser.error("expected 1..25 validators and 1..64 workers")
    if options.seed < 0:
        parser.error(f"--seed: expected at least 0, got {options.seed}")
    shown = command("bench.fleet", options, argv)
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as home:
        say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
        document = {"command": shown, **Fleet(Path(home), options, say).run()}
    document["bounds"] = bounds(document)
    text = record(document, options.out, on_chain=True)
    if options.out:
        draw(document, options.out.with_suffix(".png"))
    if options.json:
        print(text)
        return 0
    for row in document["rounds"]:
        print(line(row))
    print("\n".join(document["bounds"]))
    print(f"seconds grow as devices^a: {document['fits']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
