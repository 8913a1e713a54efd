"""The chain under load: uploads per second, time to irreversibility, CPU and RAM, next to others.

``python -m bench.chain [--json] [--out FILE]`` starts networks of its own and loads them with
transactions that were signed before, each by another device's key. In the same run the same client
sends `eosio.token` transfers to the same node, and PostgreSQL, where it is installed, does equal
work. ``--parts`` chooses among ``jit``, ``oc``, ``producers``, ``validators`` and ``postgres``;
with ``--out FILE.json`` a plot is written to FILE.png.

Machines are noisy, so that `ratio_to_postgres` comes from uploads to the node and to PostgreSQL in
turn: the median of TURNS ratios to the script of equal work, with fsync. The ratio to a function on
the server, which does the script's statements in one call, stands beside it.

`per_s` counts transactions that are in irreversible blocks. `elapsed_us` is what the node measured
for a transaction's actions, `billed_us` what the chain bills (at least 100), `main_thread_us_each`
the CPU time of the node's one thread that applies transactions: a million by it is as fast as this
node can be. Node and client share the machine; `cores_others` is what anybody else took meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import chain_postgres
from bench.chain_runs import Run
from bench.chain_world import OC, OPTIONS, Nodes, Signers, World
from bench.ending import end_cleanly
from bench.machine import machine
from bench.record import command, record
from producer_validation.validator import ATTEST_BATCH

PARTS = ("jit", "oc", "producers", "validators", "postgres")
UPLOAD, TRANSFER = ("fedlearning",), ("transfer",)
BATCH = 50  # transactions in one request, where several go together
PRODUCERS = 4
DEVICES_OF_MANY = 3000  # with several producers, which are slower
VALIDATORS = (4, 7, 13, 21)
VALIDATED = 1000  # uploads that they judge
TURNS = 5  # of the node's and of PostgreSQL's, side by side
CLIENTS = 8  # of PostgreSQL then: with these it does most
TRANSACTIONS_PER_MODEL = 15
FABRIC = {
    "what": "a marketplace for models on Hyperledger Fabric, as its paper reports",
    "source": "Somy, Kannan, Arya, Hans, Singh, Lohia, Mehta: Ownership preserving AI Market "
    "Places using Blockchain, IEEE Blockchain 2019 (arXiv:2001.09011)",
    "transactions_per_s": 950,
    "models_per_s": [65, 70],
    "transactions_per_model": TRANSACTIONS_PER_MODEL,
}
TARGETS = {
    "uploads_per_s": ("at least", 1500),
    "cpu_ratio_to_transfer": ("at most", 2.0),
    "ram_bytes_open": ("at most", 240),
    "ram_bytes_settled": ("at most", 0),
    "ratio_to_postgres": ("at least", 1.0),
}


class Bench:
    """Collects the document; each part adds to it."""

    def __init__(self, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self.document: dict[str, Any] = {
            "runs": [],
            "node_options": list(OPTIONS),
            "devices": options.devices,
            "seed": options.seed,
            "fabric_marketplace": FABRIC,
        }

    # ---- load -------------------------------------------------------------------------------

    def load(self, home: Path, signers: Signers, runtimes: Sequence[str], producers: int) -> None:
        """Load one network with every runtime and number of connections."""
        options = self.options
        nodes = Nodes(home / f"{producers}-nodes", producers, self.say)
        validators = max(VALIDATORS) if self._scales(producers) else VALIDATORS[0]
        count = options.devices if producers == 1 else min(options.devices, DEVICES_OF_MANY)
        world = World(nodes, count, validators, options.seed)
        run = Run(nodes, world, signers, home)
        try:
            with nodes.running():
                self.say(f"{count} devices, {validators} validators")
                world.create_accounts()
                self.document["chain"] = nodes.client.get_info().server_version
                world.begin("benchtask", count, VALIDATORS[0])
                self._warm_up(world)
                world.landed(stops=True)
            for runtime in runtimes:
                with nodes.running(*(OC if runtime == "oc" else ())):
                    for connections, batch in self._shapes(runtime, producers):
                        self._pair(world, run, runtime, connections, batch)
                    if runtime == "jit" and producers == 1:
                        self._side_by_side(world, run)
                    if runtime == "oc" and "postgres" in options.parts:
                        self._in_turn(world, run)
                    world.landed(stops=True)
                    peaks = self.document.setdefault("node_peak_mb", {})
                    peaks[f"{producers} {runtime}"] = nodes.peak_mb()
            if self._scales(producers):
                with nodes.running():
                    self._validators(world)
        finally:
            nodes.network.down(wipe=True)

    def _scales(self, producers: int) -> bool:
        return producers == 1 and "validators" in self.options.parts

    def _shapes(self, runtime: str, producers: int) -> list[tuple[int, int]]:
        """Return (connections, transactions per request) of each run."""
        every = self.options.connections
        if producers > 1:
            return [(count, 1) for count in every[-2:]]
        singles = [(count, 1) for count in (every if runtime == "jit" else every[1:])]
        return [*singles, (min(8, every[-1]), BATCH)]

    def _warm_up(self, world: World) -> None:
        """Pay every device once: the first payment takes a balance's row, for good."""
        before = world.ram()
        world.open_round()
        numbers = range(len(world.devices))
        world.upload(numbers, batch=100)
        world.judge()
        world.settle()
        rows = (world.ram() - before) / len(world.devices)
        self.document["ram_bytes_first_payment"] = round(rows, 1)

    def _pair(self, world: World, run: Run, runtime: str, connections: int, batch: int) -> None:
        """Load with uploads of one round, settle it, and load with as many transfers."""
        what = {"connections": connections, "batch": batch, "seconds": self.options.seconds}
        before = world.ram()
        world.open_round()
        figures, numbers = run.load(UPLOAD, count=len(world.devices), **what)
        opened = world.ram() - before
        costs = world.judge()
        figures |= {"runtime": runtime, "settle_billed_us": world.settle()}
        figures |= {
            "ram_bytes_open": round(opened / len(numbers), 2),
            "ram_bytes_settled": world.ram() - before,  # of the whole round
            "attest_us_each": round(sum(c["elapsed_us"] for c in costs) / len(numbers), 1),
        }
        self._note(figures)
        if len(run.nodes.ports) > 1 and connections < max(self.options.connections):
            return  # with several producers it takes half a minute until all is irreversible
        figures, _ = run.load(TRANSFER, count=len(world.devices), **what)
        self._note(figures | {"runtime": runtime})

    def _side_by_side(self, world: World, run: Run) -> None:
        """Send uploads and transfers in turn: both see the same machine."""
        world.open_round()
        figures, _ = run.load(
            (*UPLOAD, *TRANSFER),
            connections=self.options.connections[0],
            seconds=self.options.seconds,
            count=min(2000, len(world.devices)),
        )
        self._note(figures | {"runtime": "jit"})
        world.judge()
        world.settle()

    def _in_turn(self, world: World, run: Run) -> None:
        """Send uploads to the node and to PostgreSQL, in turn."""
        seconds, connections = self.options.seconds, self.options.connections[-1]
        turns = []
        try:
            with chain_postgres.cluster() as postgres, postgres.running(fsync=True):
                for _ in range(TURNS):
                    world.open_round()
                    figures, _numbers = run.load(
                        UPLOAD, connections=connections, seconds=seconds, count=len(world.devices)
                    )
                    turn = {"node": figures["per_s"]}
                    for form in chain_postgres.FORMS:
                        turn[form] = postgres.bench(form, CLIENTS, seconds)["per_s"]
                    world.judge()
                    world.settle()
                    turns.append(turn)
                    self.say(f"uploads/s in turn: {turn}")
        except chain_postgres.PostgresError as error:
            self.say(f"PostgreSQL: {error}")
            return
        self.document["in_turn"] = {
            "connections": connections,
            "clients": CLIENTS,
            "fsync": True,
            "per_s": turns,
            "ratios": {
                form: round(statistics.median(turn["node"] / turn[form] for turn in turns), 3)
                for form in chain_postgres.FORMS
            },
        }

    def _note(self, figures: dict[str, Any]) -> None:
        self.document["runs"].append(figures)
        self.say(line(figures))

    # ---- validators -------------------------------------------------------------------------

    def _validators(self, world: World) -> None:
        """Let 4 to 21 validators judge as many uploads, in batches and one by one."""
        count = min(VALIDATED, self.options.devices)
        rows = []
        for validators in VALIDATORS:
            world.begin(f"benchval{'abcd'[VALIDATORS.index(validators)]}", count, validators)
            for batch in (ATTEST_BATCH, 200, 50, 1):
                judged = min(20, count) if batch == 1 else count
                world.open_round()
                recorded = world.upload(range(judged), batch=100)
                costs = world.judge(batch=batch)
                quorum = validators * 2 // 3 + 1
                by_place = {
                    place: statistics.median(
                        cost["elapsed_us"] / cost["verdicts"]
                        for cost in costs
                        if cost["validator"] == world.validators[place]
                    )
                    for place in range(validators)
                }
                deciding = by_place.pop(quorum - 1)
                others = statistics.median(by_place.values())
                row = {
                    "validators": validators,
                    "verdicts_per_transaction": max(cost["verdicts"] for cost in costs),
                    "uploads": judged,
                    "record_us_in_batches": round(recorded, 2),
                    "verdict_us": round(others, 2),
                    "deciding_verdict_us": round(deciding, 2),
                    "attest_us_per_upload": round(others * (validators - 1) + deciding, 1),
                    "transactions_per_upload": round(len(costs) / judged, 4),
                    "settle_us_per_upload": round(world.settle() / judged, 2),
                }
                rows.append(row)
                self.say(
                    f"{validators} validators, {row['verdicts_per_transaction']} verdicts in a "
                    f"transaction: {row['attest_us_per_upload']} us per upload"
                )
        self.document["validators"] = rows

    # ---- PostgreSQL -------------------------------------------------------------------------

    def postgres(self) -> None:
        """Measure equal work in PostgreSQL."""
        found = chain_postgres.measure(
            clients=self.options.connections, seconds=self.options.seconds, say=self.say
        )
        self.document["postgres"] = found
        if isinstance(found, str):
            self.say(f"PostgreSQL: {found}")


# ---- what follows -------------------------------------------------------------------------------


def summarise(document: dict[str, Any]) -> dict[str, Any]:
    """Return the summary; None for what was not measured."""
    uploads = [row for row in document["runs"] if row["actions"] == UPLOAD[0]]
    one = [row for row in uploads if row["producers"] == 1]
    both = [row for row in document["runs"] if "and" in row["actions"]]
    best = max((row["per_s"] for row in one), default=None)
    in_turn = document.get("in_turn")
    ratio = None
    if both:
        spent = both[0]["elapsed_us"]
        ratio = round(spent[UPLOAD[0]] / spent[TRANSFER[0]], 3)
    return {
        "uploads_per_s": best,
        "cpu_ratio_to_transfer": ratio,
        "ram_bytes_open": max((row["ram_bytes_open"] for row in uploads), default=None),
        "ram_bytes_settled": _settled_each(uploads),
        "ratio_to_postgres": in_turn["ratios"]["script"] if in_turn else None,
        "models_per_s": round(best / TRANSACTIONS_PER_MODEL, 1) if best else None,
    }


def _settled_each(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the RAM that stays for each upload, over the round's own row of constant size.

    It is the slope over rounds with more and with fewer uploads; None where all had equally many.
    """
    uploads = [row["transactions"] for row in rows]
    if len(set(uploads)) < 2:
        return None
    kept = [row["ram_bytes_settled"] for row in rows]
    return round(statistics.linear_regression(uploads, kept).slope, 2)


def per_upload(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Add up what one upload costs the chain: recorded, judged, settled, by validators."""
    both = [row for row in document["runs"] if "and" in row["actions"]]
    rows = []
    for judged in document.get("validators", []) if both else []:
        recorded = both[0]["elapsed_us"][UPLOAD[0]]
        spent = recorded + judged["attest_us_per_upload"] + judged["settle_us_per_upload"]
        rows.append(
            {
                "validators": judged["validators"],
                "verdicts_per_transaction": judged["verdicts_per_transaction"],
                "us": round(spent, 1),
            }
        )
    return rows


def judge(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the summary against what is to be reached, and say what bounds the rate."""
    rows = []
    for name, (bound, wanted) in TARGETS.items():
        found = document["summary"][name]
        met = None
        if found is not None:
            met = found >= wanted if bound == "at least" else found <= wanted
        rows.append({"name": name, "target": f"{bound} {wanted}", "measured": found, "met": met})
    return rows


def bounds(document: dict[str, Any]) -> list[str]:
    """Say what bounds one node, from its fastest run of single uploads."""
    rows = [
        row for row in document["runs"] if row["actions"] == UPLOAD[0] and row["producers"] == 1
    ]
    if not rows:
        return []
    best = max(rows, key=lambda row: row["per_s"])
    told = [
        f"The fastest run had {best['connections']} connections, "
        f"{best['transactions_per_request']} transactions in a request, {best['runtime']}: "
        f"{best['per_s']:.0f} uploads/s with {best['cores_nodes']:.2f} cores for the node, "
        f"{best['cores_client']:.2f} for the client and {best['cores_others']:.2f} for others.",
        f"The node's main thread takes {best['main_thread_us_each']:.0f} us for each, the whole "
        f"node {best['node_us_each']:.0f} us: one main thread that has a core to itself does at "
        f"most {1e6 / best['main_thread_us_each']:.0f} uploads/s.",
    ]
    if "in_turn" in document:
        found = document["in_turn"]
        told.append(
            f"In turn, {found['connections']} connections to the node and {found['clients']} "
            "clients of PostgreSQL with fsync: "
            + ", ".join(f"{ratio:.2f} times its {form}" for form, ratio in found["ratios"].items())
            + f" (medians of {len(found['per_s'])})."
        )
    kept = sorted(
        {row["ram_bytes_settled"] for row in document["runs"] if UPLOAD[0] == row["actions"]}
    )
    told.append(
        f"A settled round keeps {', '.join(map(str, kept))} bytes of RAM, however many uploads it "
        f"had; a device's first payment takes {document['ram_bytes_first_payment']:.0f} bytes for "
        "its balance, once, of the contract's."
    )
    for batch in sorted({row["verdicts_per_transaction"] for row in document["us_per_upload"]}):
        spent = [
            row for row in document["us_per_upload"] if row["verdicts_per_transaction"] == batch
        ]
        few, many = spent[0], spent[-1]
        told.append(
            f"Recording, judging and settling an upload takes {few['us']:.0f} us with "
            f"{few['validators']} validators and {many['us']:.0f} us with {many['validators']} "
            f"({many['us'] / few['us']:.2f} times), {batch} verdicts in a transaction."
        )
    return told


def line(row: dict[str, Any]) -> str:
    """Return a run as text."""
    spent = ", ".join(f"{value:.0f}" for value in row["elapsed_us"].values())
    return (
        f"{row['actions']:<24} {row['producers']} prod. {row.get('runtime', 'jit'):<3} "
        f"{row['connections']:>3} conn. x{row['transactions_per_request']:<3}"
        f"{row['per_s']:>8.1f}/s  in block {row['inclusion_ms']['median']:.0f} ms, irreversible "
        f"{row['irreversible_ms']['median']:.0f} ms (p99 {row['irreversible_ms']['p99']:.0f})  "
        f"{spent} us"
    )


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the PNG: rate by connections, time to irreversibility, work by validators."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    for (runtime, producers, action), (label, colour, style, marker) in _LOOKS.items():
        rows = [
            row
            for row in document["runs"]
            if row["actions"] == action
            and (row["runtime"], row["producers"]) == (runtime, producers)
            and row["transactions_per_request"] == 1
        ]
        rows.sort(key=lambda row: row["connections"])
        if rows:
            look = {"color": colour, "linestyle": style, "marker": marker, "markersize": 5}
            along = [row["connections"] for row in rows]
            left.plot(along, [row["per_s"] for row in rows], label=label, **look)
            times = [row["irreversible_ms"]["median"] for row in rows]
            middle.plot(along, times, label=label, **look)
    postgres = document.get("postgres")
    if isinstance(postgres, list):
        for fsync, style in ((True, "-"), (False, ":")):
            best: dict[int, float] = {}
            for row in postgres:
                if row["fsync"] is fsync:
                    best[row["clients"]] = max(row["per_s"], best.get(row["clients"], 0.0))
            label = f"PostgreSQL, fsync {'on' if fsync else 'off'}, better form"
            look = {"color": "#666666", "linestyle": style, "marker": "x", "markersize": 5}
            left.plot(list(best), list(best.values()), label=label, **look)
    for axes, label in ((left, "transactions per second"), (middle, "ms until irreversible")):
        axes.set(xscale="log", xlabel="connections", ylabel=label)
        ticks = sorted({row["connections"] for row in document["runs"]})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
    left.set_ylim(0, 1.45 * left.get_ylim()[1])  # room for the legend
    middle.set(yscale="log", ylim=(100, 100_000))
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    rows = document["us_per_upload"]
    batches = sorted({row["verdicts_per_transaction"] for row in rows})
    for batch, colour in zip(batches, _COLOURS, strict=False):
        shown = [row for row in rows if row["verdicts_per_transaction"] == batch]
        label = "one verdict in a transaction" if batch == 1 else f"{batch} verdicts"
        if shown:
            along = [row["validators"] for row in shown]
            spent = [row["us"] for row in shown]
            right.plot(along, spent, color=colour, marker="o", markersize=5, label=label)
    if rows:
        right.set(
            xlabel="validators", ylabel="us per upload: recorded, judged, settled", yscale="log"
        )
        right.set_xticks(VALIDATORS, [str(count) for count in VALIDATORS])
        right.legend(frameon=False, fontsize=8)
    for axes in (left, middle, right):
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    figure.suptitle("The chain under load: node, client and database on one machine", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


_COLOURS = ("#ca6f1e", "#148f77", "#2874a6", "#7d3c98")
_LOOKS = {
    ("jit", 1, "fedlearning"): ("upload, jit", "#2874a6", "-", "o"),
    ("oc", 1, "fedlearning"): ("upload, OC", "#148f77", "-", "s"),
    ("jit", 1, "transfer"): ("transfer, jit", "#2874a6", "--", "o"),
    ("oc", 1, "transfer"): ("transfer, OC", "#148f77", "--", "s"),
    ("jit", PRODUCERS, "fedlearning"): ("upload, 4 producers", "#7d3c98", "-", "^"),
    ("jit", PRODUCERS, "transfer"): ("transfer, 4 producers", "#7d3c98", "--", "^"),
}


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the parts and return the document."""
    bench = Bench(options, say)
    runtimes = [name for name in ("jit", "oc") if name in options.parts]
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as name:
        signers = Signers()
        try:
            if runtimes or "validators" in options.parts:
                bench.load(Path(name), signers, runtimes, 1)
            if "producers" in options.parts:
                bench.load(Path(name), signers, ["jit"], PRODUCERS)
        finally:
            signers.close()
    if "postgres" in options.parts:
        bench.postgres()
    document = bench.document
    document["summary"] = summarise(document)
    document["us_per_upload"] = per_upload(document)
    document["targets"] = judge(document)
    document["bounds"] = bounds(document)
    document["machine"] = machine()
    return document


def main(argv: Sequence[str] | None = None) -> int:
    end_cleanly()
    parser = argparse.ArgumentParser(prog="bench.chain", description="The chain under load.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, help="also write it to this file, and a PNG beside it")
    parser.add_argument("--devices", type=int, default=8000, help="with keys of their own")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one run, at most")
    parser.add_argument("--connections", default="1,8,16,64")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seed", type=int, default=1, help="of the accounts' keys")
    options = parser.parse_args(argv)
    options.parts = options.parts.split(",")
    if set(options.parts) - set(PARTS):
        parser.error(f"--parts: expected some of {','.join(PARTS)}")
    try:
        options.connections = sorted({int(text) for text in options.connections.split(",")})
    except ValueError:
        parser.error("--connections: expected numbers, separated by commas")
    if options.connections[0] < 1 or options.connections[-1] > 500:
        parser.error("--connections: expected numbers of 1..500")
    if not 100 <= options.devices <= 40_000:
        parser.error("--devices: expected 100..40000")
    shown = command("bench.chain", options, argv)
    measured = measure(options, lambda text: print(text, file=sys.stderr, flush=True))
    document = {"command": shown, **measured}
    text = record(document, options.out, on_chain=True)
    if options.out:
        draw(document, options.out.with_suffix(".png"))
    if options.json:
        print(text)
        return 0
    for row in document["runs"]:
        print(line(row))
    if isinstance(document.get("postgres"), list):
        for row in document["postgres"]:
            fsync = "on" if row["fsync"] else "off"
            print(
                f"PostgreSQL, {row['form']}, fsync {fsync}, {row['clients']} clients: "
                f"{row['per_s']:.1f}/s, {row['latency_ms']:.1f} ms"
            )
    elif "postgres" in document:
        print(f"PostgreSQL: {document['postgres']}")
    print("\n".join(document["bounds"]))
    for row in document["targets"]:
        said = {None: "not measured", True: "met", False: "NOT met"}[row["met"]]
        print(f"{row['name']}: {row['measured']} ({row['target']}: {said})")
    print(f"models_per_s: {document['summary']['models_per_s']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
