"""How often validators refuse a cheat, and with which reason, beside how often sound updates pass.

    python -m bench.refusals [--data DIR] [--instances N] [--attacks N] [--json] [--out FILE]

The devices are those of `bench.csves` (`bench/csves_lab.py`), in a round with the rule gain: 1 to 9
classes, three stages of the global model. Each upload passes what a real one does: the rule on the
series, as the contract computes it (`gradledger.csves.meets`), then a validator's checks on the
update in the clear (`producer_validation.checks`), as in sealed mode or in an audit.

Who cheats does what pays best under its attack: the numbers that validators measure again are the
true ones, unless the attack is to lie about them, and those between are the ones that the rule
likes best (`best_series`). With --out FILE.json, a heat map is drawn beside it.

The bounds of the checks were chosen on other instances than those of the default seed.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bench.csves import GAIN_TAU_E6, wilson
from bench.csves_lab import (
    BATCH_SIZE,
    DATA,
    EPOCHS,
    LAYERS,
    PER_EPOCH,
    RATE_E6,
    SEED,
    STAGES,
    TRAINING_POINTS,
    Instance,
    Lab,
    draw,
    global_models,
    spoil,
    train,
)
from bench.csves_pool import bar, workers
from bench.machine import machine
from bench.record import command, record
from device_sdk.training import TrainingRecipe
from gradledger import csves
from gradledger.chain.contract import Member, Role, Rule, UploadState, VerdictCode
from gradledger.codec import Codec
from gradledger.demo.data import Samples, load_mnist
from gradledger.errors import GradledgerError
from gradledger.models import FloatArray, Mlp, Model, mean_micro, share_micro
from gradledger.onnx_models import RuntimeModel
from producer_validation import checks, measuring
from producer_validation.checks import Known, Measure

INSTANCES = 100
ATTACKED = 20
CLASS_COUNTS = tuple(range(1, 10))
MEASURES = EPOCHS * PER_EPOCH + 1
CLIP_E6 = 1_000_000
NORM_MAX_E6 = {"random": 130_000_000, "one_pass": 6_200_000, "converged": 4_200_000}
"""Of a round: twice the longest sound update that was seen when the bounds were chosen."""

COPIES = 1_000  # devices in a round whose updates are compared, each with each

ATTACKS: dict[str, str] = {
    "sound": "a sound update",
    "forged": "labels shuffled, an invented series",
    "replayed": "noise, series of an earlier round",
    "copied": "noise, series of another device",
    "claim_one": "no data of one of the declared classes",
    "claim_half": "no data of half of the declared classes",
    "claim_all": "no data of any declared class",
    "zero": "a zero update",
    "noise_small": "noise, 1/100 of a sound update's norm",
    "noise": "noise of a sound update's norm",
    "noise_large": "noise, 10 times a sound update's norm",
    "tenfold_true": "a sound update x 10, series of the sound one",
    "tenfold": "a sound update x 10, its own series",
    "copy": "another device's update",
    "copy_altered": "another device's update, altered by 0.5 %",
    "copy_changed": "another device's update, altered by 5 %",
    "issued_half": "half of the classes, and the issued points, to train on",
    "issued": "no data but the issued validation points",
}
"""Name and what it is; the last three are beyond what the checks can tell."""

_lab: Lab  # of a worker process


@dataclass(frozen=True)
class Outcome:
    """What became of one upload.

    Parameters
    ----------
    attack, stage : str
    classes : int
        Declared.
    code : str
        `accept`, `rule` (the contract refuses the series), or a verdict's name.
    """

    attack: str
    stage: str
    classes: int
    code: str


def main(argv: Sequence[str] | None = None) -> int:
    """Train all devices, judge all uploads, print and draw.

    Returns
    -------
    int
        Exit code: 2 for a wrong argument.
    """
    given = _arguments(argv)
    began = time.monotonic()
    try:
        load_mnist(given.data, given.seed)
    except GradledgerError as exc:
        print(f"bench.refusals: {exc}", file=sys.stderr)
        return 2
    jobs = list(_jobs(given))
    with workers(1, _begin, given.data, given.seed, {}) as pool:
        models = pool.submit(_models, given.seed).result()
    with workers(given.workers, _begin, given.data, given.seed, models) as pool:
        done = list(bar(pool.map(_uploads, *zip(*jobs, strict=True)), len(jobs), "devices"))
    outcomes = [one for found, _ in done for one in found]
    document = {
        "command": command("bench.refusals", given, argv),
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
        "seed": given.seed,
        "settings": {
            "rule": "gain",
            "tau_e6": GAIN_TAU_E6,
            "clip_e6": CLIP_E6,
            "norm_max_e6": NORM_MAX_E6,
            "layers": list(LAYERS),
            "epochs": EPOCHS,
            "measures": MEASURES,
            "training_points": TRAINING_POINTS,
        },
        "attacks": ATTACKS,
        "rows": rows_of(outcomes),
        "stages": rows_of([Outcome(o.attack, o.stage, 0, o.code) for o in outcomes]),
        "sides": sides([side for _, side in done]),
        "copies": copies_cost(Model(Mlp(LAYERS), models["converged"]).parameters),
    }
    text = record(document, given.out, indent=1)
    if given.out:
        given.out.with_suffix(".png").write_bytes(heat_map(document))
    if given.json:
        print(text)
    else:
        show(document)
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.refusals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path("../shared/data/mnist")
    parser.add_argument("--data", type=Path, default=default, metavar="DIR", help="MNIST")
    parser.add_argument(
        "--instances", type=int, default=INSTANCES, metavar="N", help="sound updates in a cell"
    )
    parser.add_argument(
        "--attacks", type=int, default=ATTACKED, metavar="N", help="of these with all attacks"
    )
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASS_COUNTS), metavar="N")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document and a PNG")
    given = parser.parse_args(argv)
    for name, least in (("instances", 1), ("attacks", 0), ("workers", 1), ("seed", 0)):
        if getattr(given, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(given, name)}")
    if not set(given.classes) <= set(CLASS_COUNTS):
        parser.error(f"--classes: expected numbers of 1 to 9, got {given.classes}")
    return given


def _jobs(given: argparse.Namespace) -> Iterator[tuple[str, int, int, bool]]:
    """Yield stage, number of classes, seed and whether to attack; a seed is one device's."""
    rng = np.random.default_rng([given.seed, 4])
    for number in range(given.instances):
        for count in sorted(set(given.classes)):
            seed = int(rng.integers(2**63))
            for stage in STAGES:
                yield stage, count, seed, number < given.attacks


def _begin(directory: Path, seed: int, models: Mapping[str, FloatArray]) -> None:
    global _lab
    _lab = Lab(load_mnist(directory, seed), LAYERS, models)


def _models(seed: int) -> dict[str, FloatArray]:
    return global_models(_lab.dataset.train, LAYERS, seed)


def _uploads(
    stage: str, count: int, seed: int, attacked: bool
) -> tuple[list[Outcome], dict[str, float]]:
    return uploads(_lab, stage, count, seed, attacked=attacked)


# ---- a device and its uploads -------------------------------------------------------------------


class Device:
    """One device in one round: what it holds, and how its uploads are judged.

    Parameters
    ----------
    lab : Lab
    stage : str
    count : int
        Classes that it declares.
    seed : int
    """

    def __init__(self, lab: Lab, stage: str, count: int, seed: int) -> None:
        self.lab, self.stage, self.count = lab, stage, count
        self.instance: Instance = draw(lab, count, seed)
        self.model = lab.model(stage, seed)
        self.rng = np.random.default_rng([seed, 5])
        self.codec = Codec(clip_e6=CLIP_E6, slot_bits=26, parameters=self.model.parameters)
        self.recipe = TrainingRecipe(1, EPOCHS, BATCH_SIZE, RATE_E6, MEASURES, seed)

    # ---- making updates ---------------------------------------------------------------------

    def trained(self, points: Samples, *, measured: bool = False) -> tuple[FloatArray, list[int]]:
        """Train on points; return the update, and the doubts on the way where wanted."""
        x, y = self.instance.validation.x, self.instance.validation.y
        if measured:
            found, doubts = train(
                self.model,
                points,
                self.recipe,
                lambda arrays: (self.model.with_arrays(arrays).doubt_micro(x, y),),
            )
        else:
            found, doubts = train(self.model, points, self.recipe)
        update = self.model.with_arrays(found).vector - self.model.vector
        return update, [one for (one,) in doubts] if measured else []

    def points_of(self, classes: Sequence[int]) -> Samples:
        """Draw as many training points as a sound device has, of other classes."""
        points = self.lab.dataset.train
        pool = np.flatnonzero(np.isin(points.y, classes))
        rows = self.rng.choice(pool, min(TRAINING_POINTS, len(pool)), replace=False)
        return points.take(rows)

    def neighbour(self) -> Device:
        """Return a sound device of the same round and classes: other points, another set."""
        found = copy(self)
        owned, classes = self.lab.dataset.validation, self.instance.classes
        pool = np.flatnonzero(np.isin(owned.y, classes))
        issued = owned.take(self.rng.choice(pool, len(self.instance.validation), replace=False))
        found.instance = replace(
            self.instance, points=self.points_of(classes.tolist()), validation=issued
        )
        return found

    def noise(self, norm: float) -> FloatArray:
        """Draw a direction, of this length."""
        found = self.rng.standard_normal(self.model.parameters)
        return (norm / np.linalg.norm(found) * found).astype(np.float32)

    # ---- series -----------------------------------------------------------------------------

    def arrived(self, update: FloatArray) -> Model:
        """Return the received model plus an update as validators get it."""
        update = self.codec.dequantise(self.codec.quantise(update))
        return self.model.with_vector(self.model.vector + update)

    def ends(self, update: FloatArray) -> tuple[int, int, int]:
        """Return the true doubts before and after, and the share of wrong answers, by numpy."""
        x, y = self.instance.validation.x, self.instance.validation.y
        wrong, doubts = self.arrived(update).wrong_and_doubts(x, y)
        return self.model.doubt_micro(x, y), mean_micro(doubts), share_micro(wrong)

    # ---- judging ----------------------------------------------------------------------------

    def verdict(
        self,
        update: FloatArray,
        series: Sequence[int],
        *,
        earlier: Sequence[int] = (),
        others: Sequence[Member] = (),
        known: Sequence[Known] = (),
    ) -> str:
        """Return what contract and validators say of an upload: see `Outcome`."""
        if not csves.meets(Rule.GAIN, series, GAIN_TAU_E6, self.count):
            return "rule"
        codes = self.codec.quantise(update)
        payload = self.codec.to_bytes(codes)
        measure = Measure(
            self.model,
            self.instance.validation.x,
            self.instance.validation.y,
            error_last=series[-1],
            error_first=series[0],
            error_before=series[-2],
            rule=Rule.GAIN,
            norm_max_e6=NORM_MAX_E6[self.stage],
        )
        refusal = checks.check_payload(payload, self.codec, None, measure)
        if refusal is not None:
            row = member("phone2", series)
            is_earlier = tuple(series) == tuple(earlier)
            return _name(checks.name_series(refusal, row, others, is_earlier=is_earlier).code)
        digest = hashlib.sha256(payload).digest()
        mine = Known("phone2", 1, digest, False, measuring.update_sketch(codes))
        refusal = checks.find_duplicate(mine, known)
        return _name(refusal.code if refusal else VerdictCode.ACCEPT)

    def known(self, account: str, update: FloatArray) -> Known:
        """Return an accepted upload of another device."""
        codes = self.codec.quantise(update)
        digest = hashlib.sha256(self.codec.to_bytes(codes)).digest()
        return Known(account, 0, digest, True, measuring.update_sketch(codes))


def _name(code: VerdictCode) -> str:
    return code.name.lower()


def best_series(first: int, before: int, last: int) -> list[int]:
    """Return the series with these ends that the rule gain likes best.

    Doubts that fall at once to the lower end and stay there: any lower one would have to rise again
    (`gradledger.csves.gain_excess` counts each rise for the whole series).
    """
    return [first, *[min(first, before)] * (MEASURES - 2), before, last]


def member(account: str, series: Sequence[int]) -> Member:
    """Return a row with an upload."""
    packed = struct.pack(f"<{len(series)}I", *series)
    return Member(
        account=account,
        role=Role.DEVICE,
        joined=True,
        enc_key=bytes(32),
        classes=0,
        set_version=1,
        set_cid="",
        set_hash=bytes(32),
        upload_version=1,
        upload_slot=0,
        upload_hash=bytes(32),
        upload_cid="",
        series_hash=hashlib.sha256(packed).digest(),
        upload_cost=TRAINING_POINTS,
        error_first=series[0],
        error_before=series[-2],
        error_last=series[-1],
        upload_state=UploadState.PENDING,
        upload_reason=VerdictCode.NONE,
        barred_until=0,
        opening_cid="",
    )


def uploads(
    lab: Lab, stage: str, count: int, seed: int, *, attacked: bool
) -> tuple[list[Outcome], dict[str, float]]:
    """Judge a device's sound update and, where wanted, every attack by it.

    Parameters
    ----------
    lab : Lab
    stage : str
    count : int
        Declared classes.
    seed : int
    attacked : bool

    Returns
    -------
    outcomes : list of Outcome
    side : dict of str to float
        What `sides` sums up.
    """
    device = Device(lab, stage, count, seed)
    sound, doubts = device.trained(device.instance.points, measured=True)
    first, before, last = device.ends(sound)
    series = [first, *doubts[1:-1], before, last]
    codes = {"sound": device.verdict(sound, series)}
    x, y = device.instance.validation.x, device.instance.validation.y
    arrived = device.arrived(sound)
    runtime = RuntimeModel(arrived.network, arrived.vector)
    side = {
        "doubt_apart": abs(runtime.doubt_micro(x, y) - before),
        "answers_apart": abs(runtime.error_micro(x, y) - last) * len(y) / 1e6,
    }
    if attacked:
        other = device.neighbour()
        theirs = other.trained(other.instance.points)[0]
        longer = max(np.linalg.norm(sound), np.linalg.norm(theirs))
        side["distance"] = float(np.linalg.norm(sound - theirs) / longer)
        codes |= _attacks(device, sound, series, theirs, best_series(*other.ends(theirs)))
    return [Outcome(name, stage, count, code) for name, code in codes.items()], side


def _attacks(
    device: Device,
    sound: FloatArray,
    series: Sequence[int],
    theirs: FloatArray,
    their_series: Sequence[int],
) -> dict[str, str]:
    """Return what becomes of each attack; `theirs` is another device's update."""
    noise = device.noise(float(np.linalg.norm(sound)))
    true_first = series[0]

    def with_own_series(update: FloatArray, **more: Any) -> str:
        return device.verdict(update, best_series(*device.ends(update)), **more)

    codes = {}
    spoilt = device.trained(spoil(device.lab, device.instance, DATA[1]))[0]
    within = 0.9e-6 * NORM_MAX_E6[device.stage] / float(np.linalg.norm(spoilt))
    spoilt *= np.float32(min(1.0, within))
    codes["forged"] = device.verdict(spoilt, best_series(true_first, true_first // 2, 0))
    # A true series, on another set: of another device, or of this one in a round before.
    codes["replayed"] = device.verdict(noise, their_series, earlier=their_series)
    rows = [member("phone1", their_series), member("phone2", their_series)]
    codes["copied"] = device.verdict(noise, their_series, others=rows)

    declared = device.rng.permutation(device.instance.classes)
    foreign = np.setdiff1d(np.arange(device.lab.dataset.classes), declared)
    if device.count > 1:
        codes["claim_one"] = with_own_series(device.trained(device.points_of(declared[1:]))[0])
        mine = device.points_of(declared[: device.count // 2])
        codes["claim_half"] = with_own_series(device.trained(mine)[0])
        codes["issued_half"] = with_own_series(
            device.trained(_joined(mine, device.instance.validation))[0]
        )
    strangers = device.points_of(foreign[: device.count])
    codes["claim_all"] = with_own_series(device.trained(strangers)[0])
    codes["issued"] = with_own_series(device.trained(device.instance.validation)[0])

    codes["zero"] = with_own_series(np.zeros_like(sound))
    for name, factor in (("noise_small", 0.01), ("noise", 1.0), ("noise_large", 10.0)):
        codes[name] = with_own_series(np.float32(factor) * noise)
    tenfold = np.float32(10) * sound
    codes["tenfold_true"] = device.verdict(tenfold, series)
    codes["tenfold"] = with_own_series(tenfold)

    known = [device.known("phone1", theirs)]
    length = float(np.linalg.norm(theirs))
    for name, share in (("copy", 0.0), ("copy_altered", 0.005), ("copy_changed", 0.05)):
        altered = theirs + np.float32(share) * device.noise(length)
        codes[name] = with_own_series(altered, known=known)
    return codes


def _joined(a: Samples, b: Samples) -> Samples:
    return Samples(np.concatenate([a.x, b.x]), np.concatenate([a.y, b.y]))


# ---- summing up ---------------------------------------------------------------------------------


def rows_of(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return one row for each attack, stage and number of classes, in a fixed order."""
    cells: dict[tuple[str, str, int], Counter[str]] = {}
    for one in outcomes:
        cells.setdefault((one.attack, one.stage, one.classes), Counter())[one.code] += 1
    order = {name: place for place, name in enumerate([*ATTACKS, *STAGES])}
    rows = []
    for attack, stage, classes in sorted(cells, key=lambda c: (order[c[0]], order[c[1]], c[2])):
        codes = cells[attack, stage, classes]
        total, accepted = sum(codes.values()), codes["accept"]
        low, high = wilson(accepted, total)
        rows.append(
            {
                "attack": attack,
                "stage": stage,
                "classes": classes,
                "instances": total,
                "accepted": accepted,
                "accepted_percent": round(100 * accepted / total, 2),
                "interval": [round(low, 2), round(high, 2)],
                "codes": dict(sorted(codes.items(), key=lambda item: (-item[1], item[0]))),
            }
        )
    return rows


def sides(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return how far numpy and ONNX Runtime were apart, and how near two sound updates came."""
    distances = [one["distance"] for one in found if "distance" in one]
    return {
        "updates": len(found),
        "doubt_apart_most_e6": max(one["doubt_apart"] for one in found),
        "answers_apart_most": round(max(one["answers_apart"] for one in found), 3),
        "sound_pairs": len(distances),
        "sound_pair_nearest": round(min(distances), 4) if distances else 0.0,
    }


def copies_cost(parameters: int, devices: int = COPIES) -> dict[str, float]:
    """Compare so many updates, each with each; return what the processor took."""
    rng = np.random.default_rng(1)
    codes = [rng.integers(65_536, size=parameters, dtype=np.uint16) for _ in range(8)]
    measuring.update_sketch(codes[0])
    began = time.process_time()
    for one in codes:
        measuring.update_sketch(one)
    sketching = (time.process_time() - began) / len(codes)
    names = [_account(number) for number in range(devices)]
    sums = rng.integers(-(2**22), 2**22, (devices, measuring.SKETCH_NUMBERS))
    known = [
        Known(name, slot, rng.bytes(32), False, np.append(row, parameters).astype("<i8").tobytes())
        for slot, (name, row) in enumerate(zip(names, sums, strict=True))
    ]
    began = time.process_time()
    uploads = checks.KnownUploads(known)
    for one in known:
        uploads.find_duplicate(one)
    return {
        "devices": devices,
        "parameters": parameters,
        "sketch_ms": round(1e3 * sketching, 3),
        "all_pairs_sec": round(time.process_time() - began, 2),
    }


def _account(number: int) -> str:
    letters = "abcdefghijklmnopqrst"
    return "d" + "".join(letters[number // 20**place % 20] for place in range(3))


# ---- showing ------------------------------------------------------------------------------------


def show(document: Mapping[str, Any]) -> None:
    """Print the tables that a reader gets."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    stages = {(row["attack"], row["stage"]): row for row in document["stages"]}
    found = [name for name in ATTACKS if any(key[0] == name for key in stages)]
    table = Table(title="accepted in % [95 % interval], over all numbers of classes; refused with")
    table.add_column("upload")
    for stage in STAGES:
        table.add_column(stage, justify="right")
    table.add_column("refused with")
    for name in found:
        rows = [stages[name, stage] for stage in STAGES if (name, stage) in stages]
        table.add_row(ATTACKS[name], *[_share(row) for row in rows], _reasons(rows))
    console.print(table)
    for name in found:
        if name in ("sound", "claim_one", "claim_half", "claim_all", "noise_large", "tenfold"):
            console.print(_by_classes(document["rows"], name))
    side, copies = document["sides"], document["copies"]
    console.print(
        f"numpy and ONNX Runtime, {side['updates']} updates: doubts at most "
        f"{side['doubt_apart_most_e6']:g}e-6 apart, {side['answers_apart_most']:g} answers. "
        f"The two nearest of {side['sound_pairs']} pairs of sound updates: "
        f"{100 * side['sound_pair_nearest']:.0f} % of the longer one apart."
    )
    console.print(
        f"{copies['devices']} updates of {copies['parameters']} parameters: "
        f"{copies['sketch_ms']} ms for a sketch, {copies['all_pairs_sec']} s to compare each with "
        "each (processor time)."
    )


def _by_classes(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    from rich.table import Table

    counts = sorted({row["classes"] for row in rows})
    table = Table(title=f"{ATTACKS[name]}: accepted in %, by declared classes")
    table.add_column("stage")
    for count in counts:
        table.add_column(str(count), justify="right")
    cells = {(r["stage"], r["classes"]): r for r in rows if r["attack"] == name}
    for stage in STAGES:
        shown = [cells.get((stage, count)) for count in counts]
        table.add_row(stage, *[f"{r['accepted_percent']:.1f}" if r else "" for r in shown])
    return table


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accepted_percent']:.1f} [{low:.1f}, {high:.1f}]"


def _reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row["codes"])
    refused = sum(total.values()) - total.pop("accept", 0)
    return ", ".join(f"{code} {100 * n / refused:.0f} %" for code, n in total.most_common(4))


def heat_map(document: Mapping[str, Any]) -> bytes:
    """Draw what is accepted, attack by attack, stage by stage, by number of classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = document["rows"]
    names = [name for name in ATTACKS if any(row["attack"] == name for row in rows)]
    counts = sorted({row["classes"] for row in rows})
    figure = Figure(figsize=(13.0, 0.42 * len(names) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(STAGES), sharey=True)
    for panel, stage in zip(axes, STAGES, strict=True):
        shares = np.full((len(names), len(counts)), np.nan)
        for row in rows:
            if row["stage"] == stage:
                place = names.index(row["attack"]), counts.index(row["classes"])
                shares[place] = row["accepted_percent"]
        image = panel.imshow(shares, vmin=0, vmax=100, cmap="Blues", aspect="auto")
        for (i, j), share in np.ndenumerate(shares):
            if np.isfinite(share):
                colour = "white" if share > 55 else "#333333"
                panel.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        panel.set_title(stage.replace("_", " "), fontsize=11)
        panel.set_xticks(range(len(counts)), [str(count) for count in counts])
        panel.set_xlabel("declared classes")
        panel.set_yticks(range(len(names)), [ATTACKS[name] for name in names])
        panel.tick_params(length=0)
        for side in panel.spines.values():
            side.set_visible(False)
    figure.colorbar(image, ax=axes, label="accepted (%)", fraction=0.02, pad=0.01)
    figure.suptitle("Uploads accepted, rule gain and the validators' checks", fontsize=12)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
