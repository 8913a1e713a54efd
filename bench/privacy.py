"""What differential privacy on the device costs in accuracy, for few devices and for many.

    python -m bench.privacy [--json] [--out bench/results/privacy.json]

Simulated without a network, with the project's own mechanism and codec: softmax regression on
scikit-learn's digits (8 x 8 pixels, 10 classes, 650 parameters), 10 rounds in which every device
takes part. A device's data are 20 rows drawn with replacement from 1,297, so that with 1,000
devices many hold the same rows; what is protected is a device's data as a whole. The accuracy is
that of the last model on 500 other rows. Data and training follow from --seed; the noise comes from
the system's CSPRNG and differs in each run: each figure is the mean of --repeats trainings, with
the least and the largest beside it.

epsilon is against who sees a device's single updates (the noise is calibrated for it); epsilon_sum
is what the same noise means against who sees only the sum of all (and no errors of single updates),
when all the others are honest.
With --out FILE.json a plot is drawn beside it, FILE.png.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.machine import machine
from bench.record import command, record
from gradledger.codec import Codec
from gradledger.models import Model
from gradledger.privacy import Privacy

SEED = 2026
ARCHITECTURE = {"kind": "mlp", "layers": [64, 10], "activation": "relu"}
DEVICES = (10, 1000)
EPSILONS = (1, 2, 4, 8, 16, 32, 64, 128)
DELTA = 1e-5
ROUNDS = 10
CLIP_NORM = 1.0
EXAMPLES = 20
STEPS = 5
RATE = 1.0
TEST_ROWS = 500
REPEATS = 3
SLOT_BITS = 26
CLIP_WITHOUT_NOISE = 1.0

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, draw; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.privacy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, nargs="+", default=list(DEVICES))
    parser.add_argument("--epsilon", type=float, nargs="+", default=list(EPSILONS))
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="trainings of each row (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of data and training")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--out", type=Path, help="write that list to a file, and a plot beside it")
    options = parser.parse_args(arguments)
    about = {
        "seed": options.seed,
        "command": command("bench.privacy", options, arguments),
        "machine": machine(),
    }
    started = time.monotonic()
    rows = []
    for row in measure(options.devices, options.epsilon, options.repeats, options.seed):
        rows.append({**row, **about})
        if not options.json:
            print(_line(row), flush=True)
    if not options.json:
        print(f"{time.monotonic() - started:.0f} s")
    document = record(rows, options.out, indent=1)
    if options.json:
        print(document)
    if options.out:
        options.out.with_suffix(".png").write_bytes(draw(rows))
    return 0


def measure(
    devices: Sequence[int], epsilons: Sequence[float], repeats: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield one row for each number of devices and epsilon; an epsilon of None is without noise.

    Parameters
    ----------
    devices : sequence of int
    epsilons : sequence of float
        Over all rounds, against who sees single updates.
    repeats : int
        Trainings for each row.
    seed : int

    Yields
    ------
    dict
    """
    x, y, test_x, test_y = load(seed)
    for count in devices:
        for epsilon in (*epsilons, None):
            terms = None
            if epsilon is not None:
                terms = Privacy.calibrate(
                    clip_norm=CLIP_NORM, delta=DELTA, rounds=ROUNDS, epsilon=epsilon
                )
            found = []
            for repeat in range(repeats):
                rng = np.random.default_rng([seed, count, repeat])
                picks = rng.integers(0, len(x), (count, EXAMPLES))
                model = train(x[picks], y[picks], terms)
                found.append(float(np.mean(model.predict(test_x) == test_y)))
            yield {
                "devices": count,
                "epsilon": epsilon,
                "epsilon_sum": terms and round(terms.epsilon(devices=count), 4),
                "epsilon_round": terms and round(terms.epsilon(1), 4),
                "delta": terms and DELTA,
                "rounds": ROUNDS,
                "parameters": model.parameters,
                "clip_norm": terms and CLIP_NORM,
                "sigma": terms and round(terms.sigma, 4),
                "sigma_of_mean": terms and round(terms.sigma / math.sqrt(count), 4),
                "accuracy": round(statistics.mean(found), 4),
                "accuracy_least": min(found),
                "accuracy_largest": max(found),
                "repeats": repeats,
            }


def load(seed: int) -> tuple[Floats, Ints, npt.NDArray[np.float32], Ints]:
    """Return training rows and labels, test rows and labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order] / 16, y[order].astype(np.int64)
    cut = len(x) - TEST_ROWS
    return x[:cut], y[:cut], x[cut:].astype(np.float32), y[cut:]


def train(x: Floats, y: Ints, terms: Privacy | None) -> Model:
    """Return the model after all rounds.

    Parameters
    ----------
    x : array of float, shape (devices, examples, features)
    y : array of int, shape (devices, examples)
    terms : Privacy or None

    Returns
    -------
    Model
    """
    model = Model.random_glorot(ARCHITECTURE, 0)
    clip = CLIP_WITHOUT_NOISE if terms is None else max(CLIP_NORM, 4 * terms.sigma)
    codec = Codec(math.ceil(clip * 1e6), SLOT_BITS, model.parameters)
    if terms is not None:
        terms.check_codec(codec.clip_e6)
    for _ in range(ROUNDS):
        sums = np.zeros(model.parameters, dtype=np.uint64)
        for delta in deltas(model, x, y):
            sums += codec.quantise(delta if terms is None else terms.protect(delta))
        model = model.with_vector(model.vector + codec.dequantise_mean(sums, len(x)))
    return model


def deltas(model: Model, x: Floats, y: Ints) -> Floats:
    """Return what each device's training adds to the model: `STEPS` steps on all its rows.

    Returns
    -------
    array of float, shape (devices, parameters)
    """
    devices, examples, _ = x.shape
    weights = np.repeat(model.arrays["w0"][None].astype(np.float64), devices, axis=0)
    bias = np.repeat(model.arrays["b0"][None, None].astype(np.float64), devices, axis=0)
    right = np.eye(bias.shape[-1])[y]
    for _ in range(STEPS):
        scores = x @ weights + bias
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares = shares / shares.sum(axis=2, keepdims=True) - right
        weights -= RATE / examples * (x.transpose(0, 2, 1) @ shares)
        bias -= RATE * shares.mean(axis=1, keepdims=True)
    flat = np.concatenate([weights.reshape(devices, -1), bias.reshape(devices, -1)], axis=1)
    changed: Floats = flat - model.vector
    return changed


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw accuracy against epsilon; return a PNG file."""
    from io import BytesIO

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ("#c8741a", "#1f5fa8", "#3b8a5a", "#8a5aa8")
    for number, count in enumerate(dict.fromkeys(row["devices"] for row in rows)):
        colour = colours[number % len(colours)]
        noisy = [r for r in rows if r["devices"] == count and r["epsilon"] is not None]
        shown = [100 * row["accuracy"] for row in noisy]
        below = [100 * (row["accuracy"] - row["accuracy_least"]) for row in noisy]
        above = [100 * (row["accuracy_largest"] - row["accuracy"]) for row in noisy]
        axes.errorbar(
            [row["epsilon"] for row in noisy],
            shown,
            yerr=[below, above],
            color=colour,
            marker="o",
            capsize=3,
            label=f"{count:,} devices",
        )
        for row in rows:
            if row["devices"] == count and row["epsilon"] is None:
                axes.axhline(
                    100 * row["accuracy"],
                    color=colour,
                    linestyle="--",
                    linewidth=1,
                    label=f"{count:,} devices, no noise: {row['accuracy']:.1%}",
                )
    axes.axhline(10, color="#999999", linestyle=":", linewidth=1, label="guessing")
    axes.set_xscale("log", base=2)
    ticks = sorted({row["epsilon"] for row in rows if row["epsilon"] is not None})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(
        f"epsilon of all {ROUNDS} rounds against who sees single updates, delta {DELTA:g}"
    )
    axes.set_ylabel("accuracy on 500 test rows (%)")
    axes.set_ylim(0, 100)
    axes.set_title("Noise on the device: digits, softmax regression, 650 parameters", loc="left")
    axes.grid(color="#dddddd")
    axes.legend(loc="upper left", bbox_to_anchor=(0.44, 0.75), fontsize=8.5, frameon=False)
    figure.tight_layout()
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _line(row: dict[str, Any]) -> str:
    what = "no noise"
    if row["epsilon"] is not None:
        what = (
            f"epsilon {row['epsilon']:g} (sum of all: {row['epsilon_sum']:g}), "
            f"sigma {row['sigma']:g}, of the mean {row['sigma_of_mean']:g}"
        )
    spread = f"{row['accuracy_least']:.1%} to {row['accuracy_largest']:.1%}"
    return f"{row['devices']:5} devices, {what}: accuracy {row['accuracy']:.1%} ({spread})"


if __name__ == "__main__":
    sys.exit(main())
