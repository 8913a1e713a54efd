"""How summing grows with devices and with parameters, and where one machine ends.

    python -m bench.summing [--devices 10 100 ...] [--parameters 7850 ...] [--json] [--out FILE]

Measured is `producer_validation.summing.Product`, which a validator multiplies accepted uploads
with: here (inline), in 1 and 2 processes of its own, and on 2 workers of a Dask cluster on this
machine. Beside it, what a validator does with each upload before: fetch it from a real Kubo
(`fetching.Fetcher`), verify and open it, check its ciphertexts.

Each executor and number of parameters has a process of its own, whose peak memory (VmHWM) is read
after each number of devices, and its workers'; with Dask, the scheduler is in that process too. The
payloads repeat three encrypted updates: multiplying costs the same whatever the numbers. An update
longer than 101,770 parameters repeats the ciphertexts of one of that length. All executors must
give the same bytes. What would take longer than --seconds-max, going by the rate before, is left
out, and its row says what is to be expected; short measurements are repeated, and the least counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.ending import end_cleanly
from bench.machine import machine, peak_mb
from bench.record import command, record

ROOT = Path(__file__).resolve().parents[1]
PLOT = ROOT / "docs" / "img" / "summing.png"
SEED = 2026
CLIP_E6 = 1_000_000
DISTINCT = 3
ENCRYPTED_MAX = 101_770  # parameters that are really encrypted, once for each distinct update
FETCHED_BYTES = 24_000_000  # that are put on IPFS and fetched, for each number of parameters
FETCHED_MAX = 200
REPEAT_SEC = 1.0  # what takes less is measured three times
FIT_SEC = 0.2  # what takes less is not part of a fit: starting a call is not what grows
EXECUTORS = ("inline", "1 process", "2 processes", "dask, 2 workers")
OWNER, TASK, DEVICE, VALIDATOR = "benchowner", "benchsum", "phone", "judge"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw; return the exit code."""
    end_cleanly()
    parser = argparse.ArgumentParser(
        prog="python -m bench.summing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--parameters", type=int, nargs="+", default=[7_850, 101_770, 1_000_000])
    parser.add_argument("--bits", type=int, default=3072, help="of the owner's key")
    parser.add_argument("--slot-bits", type=int, default=30, help="30: 16,384 devices at most")
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    parser.add_argument("--seconds-max", type=float, default=20, help="for one sum (default 20)")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("--out", type=Path, help="write it to a file as well")
    parser.add_argument("--plot", type=Path, default=PLOT, help="PNG (default docs/img)")
    commands = parser.add_subparsers(dest="part")
    child = commands.add_parser("measure", help="be the process that is measured")
    child.add_argument("executor", choices=EXECUTORS)
    child.add_argument("material", type=Path)
    given = parser.parse_args(arguments)
    if given.part == "measure":
        for row in sums(given.executor, given.material, given.devices, given.seconds_max):
            print(json.dumps(row), flush=True)
        return 0
    document = {"command": command("bench.summing", given, arguments), **measure(given)}
    text = record(document, given.out, indent=1)
    draw(document, given.plot)
    print(text if given.json else table(document))
    return 0


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the document: rows of sums, what comes before them, and what follows from both."""
    from gradledger.codec import Codec
    from gradledger.paillier import backend
    from owner.paillier_key import PaillierPrivateKey

    about = {"machine": machine(), "backend": backend()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as folder:
        key = PaillierPrivateKey.generate(given.bits).public
        materials = []
        for parameters in given.parameters:
            codec = Codec(CLIP_E6, given.slot_bits, parameters)
            material = Path(folder, f"{parameters}.pickle")
            payloads = updates(key, codec)
            material.write_bytes(pickle.dumps((key.n, codec, payloads)))
            materials.append(material)
            for executor in given.executors:
                options = ["--devices", *map(str, sorted(given.devices))]
                options += ["--seconds-max", str(given.seconds_max)]
                child = [sys.executable, "-m", "bench.summing", *options]
                child += ["measure", executor, str(material)]
                done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{executor}, {parameters:,} parameters:\n{done.stderr}")
                rows += [json.loads(line) for line in done.stdout.splitlines()]
                if not given.json:
                    print("\n".join(line(row) for row in rows[-len(given.devices) :]), flush=True)
        before = list(uploads(Path(folder, "net"), materials))
    check_equal(rows)
    document = {
        "seed": SEED,
        **about,
        "bits": given.bits,
        "slot_bits": given.slot_bits,
        "sums": rows,
        "uploads": before,
        "exponents": exponents(rows),
    }
    return {**document, "one_machine": one_machine(document)}


def updates(key: Any, codec: Any) -> list[bytes]:
    """Return a few different encrypted updates."""
    from dataclasses import replace

    import numpy as np

    draw = np.random.default_rng(SEED)
    short = replace(codec, parameters=min(codec.parameters, ENCRYPTED_MAX))
    payload_bytes = key.payload_bytes(codec)
    made = []
    for _ in range(DISTINCT):
        values = draw.normal(0, 0.1, short.parameters)
        one = key.encrypt(short.quantise(values), short)
        made.append((one * -(-payload_bytes // len(one)))[:payload_bytes])
    return made


# ---- the process that is measured ---------------------------------------------------------------


def sums(
    name: str, material: Path, counts: Sequence[int], seconds_max: float
) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of devices."""
    from dataclasses import replace

    from gradledger.paillier import PaillierPublicKey
    from producer_validation import checks
    from producer_validation.executors import (
        DaskWorkers,
        InlineExecutor,
        ProcessWorkers,
        Work,
    )
    from producer_validation.summing import Product

    n, codec, payloads = pickle.loads(material.read_bytes())  # this bench's own file
    key = PaillierPublicKey(n)
    cluster = None
    executor: Any = InlineExecutor()
    if name.startswith("dask"):
        from distributed import LocalCluster

        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
        executor = DaskWorkers(cluster.scheduler_address)
    elif name != "inline":
        executor = ProcessWorkers(int(name.split()[0]))
    work = Work(executor, result_sec=600)
    one = replace(codec, parameters=1)  # so that all is started and imported, and little is held
    first = payloads[0][: key.ciphertext_bytes]
    for job in [work.submit(checks.add_payloads, key, one, [first]) for _ in range(8)]:
        work.result(job)
    before_mb, rate = peak_mb(), 0.0
    payload_bytes = len(payloads[0])
    for devices in counts:
        expected_s = devices / rate if rate else 0.0
        row = {
            "executor": name,
            "parameters": codec.parameters,
            "devices": devices,
            "payload_bytes": payload_bytes,
        }
        if expected_s > seconds_max:
            yield row | {"seconds": None, "expected_s": float(f"{expected_s:.3g}")}
            continue
        times: list[float] = []
        while not times or (len(times) < 3 and sum(times) < REPEAT_SEC):
            start = time.perf_counter()
            with Product(key, codec, work) as product:
                for number in range(devices):
                    product.add(payloads[number % DISTINCT])
                total = product.total()
            times.append(time.perf_counter() - start)
        seconds = min(times)
        rate = devices / seconds
        yield row | {
            "seconds": float(f"{seconds:.4g}"),
            "mb_per_s": round(devices * payload_bytes / seconds / 1e6, 1),
            "peak_mb": peak_mb(),
            "peak_mb_before": before_mb,
            "product_mb_max": round(product.bytes_max / 1e6, 1),
            "workers_peak_mb": workers_peak_mb(),
            "sha256": hashlib.sha256(total).hexdigest(),
        }
    executor.shutdown(wait=False)
    if cluster is not None:
        cluster.close()


def workers_peak_mb() -> list[float]:
    """Return the peaks of the processes below this one that compute."""
    import psutil

    peaks = []
    for child in psutil.Process().children(recursive=True):
        if "resource_tracker" not in " ".join(child.cmdline()):
            peaks.append(peak_mb(child.pid))
    return sorted(peaks)


# ---- what comes before the sum ------------------------------------------------------------------


def uploads(home: Path, materials: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield, for each number of parameters, what an upload takes before it is added."""
    from gradledger import envelope
    from gradledger.chain.contract import Mode
    from gradledger.envelope import Header, Kind, PayloadCodec
    from gradledger.localnet.network import Network
    from gradledger.paillier import PaillierPublicKey
    from gradledger.store import Store
    from producer_validation import checks
    from producer_validation.fetching import Fetcher

    secret = bytes(range(32))
    network = Network(home)
    try:
        store = Store(network.up(validators=0).store_addr)
        for material in materials:
            n, codec, payloads = pickle.loads(material.read_bytes())
            key = PaillierPublicKey(n)
            header = Header(
                kind=Kind.UPDATE,
                codec=PayloadCodec.PAILLIER,
                task=TASK,
                sender=DEVICE,
                version=1,
                parameters=codec.parameters,
                slot_bits=codec.slot_bits,
                clip_e6=codec.clip_e6,
                examples=1,
                key_hash=key.key_hash,
            )
            count = max(3, min(FETCHED_MAX, FETCHED_BYTES // len(payloads[0])))
            readers = {VALIDATOR: envelope.public_key_of(secret)}
            blobs = [
                envelope.seal(header, payloads[number % DISTINCT], readers)
                for number in range(count)
            ]
            cids = [store.put(blob) for blob in blobs]
            bytes_max = checks.update_bytes_max(codec, key)

            fetch_s = math.inf
            for _ in range(2):
                fetcher = Fetcher(store, cache_bytes_max=2**31)
                start = time.perf_counter()
                for cid in cids:
                    fetcher.want(cid, bytes_max)
                fetcher.wait([(cid, bytes_max) for cid in cids], 300)
                fetch_s = min(fetch_s, time.perf_counter() - start)
                for cid, blob in zip(cids, blobs, strict=True):
                    assert fetcher.blob(cid, bytes_max) == blob
                fetcher.close()

            terms = SimpleNamespace(
                mode=Mode.PAILLIER,
                parameters=codec.parameters,
                slot_bits=codec.slot_bits,
                clip_e6=codec.clip_e6,
                key_hash=key.key_hash,
            )
            task: Any = SimpleNamespace(id=TASK, owner=OWNER, terms=terms)
            rows: list[Any] = [
                SimpleNamespace(
                    account=DEVICE, upload_cost=1, upload_hash=hashlib.sha256(blob).digest()
                )
                for blob in blobs
            ]
            start = time.perf_counter()
            for blob, row in zip(blobs, rows, strict=True):
                opened = checks.open_upload(
                    blob,
                    task=task,
                    version=1,
                    member=row,
                    account=VALIDATOR,
                    secret=secret,
                    payload_bytes=len(payloads[0]),
                )
                assert isinstance(opened, checks.Opened), opened
            open_s = time.perf_counter() - start

            check_s = math.inf
            for _ in range(3):
                start = time.perf_counter()
                assert checks.check_payload(payloads[0], codec, key, None) is None
                check_s = min(check_s, time.perf_counter() - start)
            yield {
                "parameters": codec.parameters,
                "uploads": count,
                "envelope_bytes": len(blobs[0]),
                "fetch_s": float(f"{fetch_s / count:.3g}"),
                "fetch_mb_per_s": round(count * len(blobs[0]) / fetch_s / 1e6, 1),
                "open_s": float(f"{open_s / count:.3g}"),
                "open_mb_per_s": round(count * len(blobs[0]) / open_s / 1e6, 1),
                "check_s": float(f"{check_s:.3g}"),
                "check_mb_per_s": round(len(payloads[0]) / check_s / 1e6, 1),
            }
    finally:
        network.down(wipe=True)


# ---- what follows -------------------------------------------------------------------------------


def check_equal(rows: Sequence[dict[str, Any]]) -> None:
    """Stop unless all executors gave the same bytes."""
    found: dict[tuple[int, int], str] = {}
    for row in rows:
        if row["seconds"] is not None:
            same = found.setdefault((row["parameters"], row["devices"]), row["sha256"])
            if same != row["sha256"]:
                raise SystemExit(f"another sum: {row}")


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fit seconds = c x devices^a for each executor and number of parameters, and the other way."""
    fits = []
    for along, across in (("devices", "parameters"), ("parameters", "devices")):
        groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for row in rows:
            if row["seconds"] is not None and row["seconds"] >= FIT_SEC:
                place = groups.setdefault((row["executor"], row[across]), [])
                place.append((math.log(row[along]), math.log(row["seconds"])))
        for (executor, value), points in groups.items():
            if len(points) < 2:
                continue
            mean_x = sum(x for x, _ in points) / len(points)
            mean_y = sum(y for _, y in points) / len(points)
            slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
                (x - mean_x) ** 2 for x, _ in points
            )
            fits.append(
                {
                    "executor": executor,
                    across: value,
                    "along": along,
                    "exponent": round(slope, 3),
                    "points": len(points),
                }
            )
    return fits


def one_machine(document: dict[str, Any]) -> list[str]:
    """Say where one machine ends and what bounds it, from the figures alone."""
    told = []
    best = _best_rows(document["sums"])
    for before in document["uploads"]:
        parameters = before["parameters"]
        rows = {name: row for (name, of), row in best.items() if of == parameters}
        if not rows:
            continue
        name, fastest = max(rows.items(), key=lambda item: item[1]["mb_per_s"])
        rates = {
            "fetching from one Kubo": before["fetch_mb_per_s"],
            "opening, in the validator's own process": before["open_mb_per_s"],
            f"multiplying ({name})": fastest["mb_per_s"],
        }
        bound = min(rates, key=lambda stage: rates[stage])
        megabytes = fastest["payload_bytes"] / 1e6
        listed = "; ".join(f"{stage} {rate:.0f} MB/s" for stage, rate in rates.items())
        told.append(
            f"{parameters:,} parameters, {megabytes:.3g} MB encrypted: {listed}. Bound by "
            f"{bound}: 10,000 devices take {10_000 * megabytes / rates[bound]:,.0f} s"
            + (
                ", and more workers make it no faster."
                if bound != f"multiplying ({name})"
                else f", and more workers help up to {sorted(rates.values())[1]:.0f} MB/s."
            )
        )
    flat = [row for row in document["sums"] if row["seconds"] is not None]
    for name in EXECUTORS:
        rows_of = [row for row in flat if row["executor"] == name]
        if rows_of:
            grown = max(row["peak_mb"] - row["peak_mb_before"] for row in rows_of)
            workers = max((max(r["workers_peak_mb"], default=0.0) for r in rows_of), default=0.0)
            told.append(
                f"Memory, {name}: multiplying adds at most {grown:.0f} MB to the validator's "
                "process, whatever the number of devices"
                + (f"; a worker peaks at {workers:.0f} MB." if workers else ".")
            )
    return told


def _best_rows(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the row with the most devices of each executor and number of parameters."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        if row["seconds"] is not None:
            best[row["executor"], row["parameters"]] = row
    return best


def line(row: dict[str, Any]) -> str:
    """Return a row of sums as text."""
    head = (
        f"{row['parameters']:>9,} parameters  {row['devices']:>6,} devices  {row['executor']:<16}"
    )
    if row["seconds"] is None:
        return f"{head}not measured: {row['expected_s']:g} s expected"
    workers = "".join(f" {peak:.0f}" for peak in row["workers_peak_mb"])
    return (
        f"{head}{row['seconds']:>8.3f} s  {row['mb_per_s']:>6.1f} MB/s  "
        f"peak {row['peak_mb']:.0f} MB{f', workers{workers} MB' if workers else ''}"
    )


def table(document: dict[str, Any]) -> str:
    """Return what `line` did not print yet."""
    told = [""]
    for row in document["uploads"]:
        told.append(
            f"{row['parameters']:>9,} parameters: an upload is fetched in {row['fetch_s']:.3g} s "
            f"({row['fetch_mb_per_s']:.0f} MB/s), opened in {row['open_s']:.3g} s, checked in "
            f"{row['check_s']:.3g} s"
        )
    for fit in document["exponents"]:
        other = "parameters" if fit["along"] == "devices" else "devices"
        told.append(
            f"seconds grow as {fit['along']}^{fit['exponent']} ({fit['executor']}, "
            f"{fit[other]:,} {other}, {fit['points']} points)"
        )
    return "\n".join([*told, "", *document["one_machine"]])


def draw(document: dict[str, Any], path: Path) -> None:
    """Write the PNG: seconds, and peak memory, by devices."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = dict(zip(sorted({r["parameters"] for r in document["sums"]}), _COLOURS, strict=False))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    fits = {
        (fit["executor"], fit["parameters"]): fit["exponent"]
        for fit in document["exponents"]
        if fit["along"] == "devices"
    }
    for parameters, colour in colours.items():
        for executor in EXECUTORS:
            rows = [
                row
                for row in document["sums"]
                if (row["parameters"], row["executor"]) == (parameters, executor)
                and row["seconds"] is not None
            ]
            if not rows:
                continue
            style, marker = _STYLES[executor]
            devices = [row["devices"] for row in rows]
            look = {"color": colour, "linestyle": style, "marker": marker, "markersize": 4}
            left.plot(devices, [row["seconds"] for row in rows], linewidth=1.3, **look)
            peaks = [row["peak_mb"] for row in rows]
            right.plot(devices, peaks, linewidth=1.3, **look)
        exponent = fits.get(("inline", parameters))
        named = f"{parameters:,} parameters"
        named += "" if exponent is None else f" (inline: devices^{exponent:.2f})"
        left.plot([], [], color=colour, linewidth=3, label=named)
    for executor, (style, marker) in _STYLES.items():
        right.plot(
            [], [], color="#444444", linestyle=style, marker=marker, markersize=4, label=executor
        )
    left.set(xscale="log", yscale="log", xlabel="devices", ylabel="seconds to multiply all updates")
    right.set(xscale="log", xlabel="devices", ylabel="peak memory of the validator's process, MB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"Summing encrypted updates: {document['bits']}-bit key, slots of "
        f"{document['slot_bits']} bits, {document['backend']}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


_COLOURS = ("#2874a6", "#148f77", "#ca6f1e", "#7d3c98")
_STYLES = {
    "inline": ("-", "o"),
    "1 process": ("--", "s"),
    "2 processes": ("-.", "^"),
    "dask, 2 workers": (":", "D"),
}


if __name__ == "__main__":
    sys.exit(main())
