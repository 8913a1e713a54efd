"""The paper's Figures 4 and 7 again: what training costs, and what decentralising it costs.

    python -m bench.csves_figures [--data DIR] [--devices N] [--versions N] [--out DIR]

Figure 4: devices with 320 to 60,000 training points, drawn evenly, each of which trains one epoch;
the time that each took against its number of points (the data cost), with the least-squares line
and its R^2. Time is processor time of the training process, so that a busy machine matters little.
The perceptron is narrow (784-32-10) to bound the bench: 500 devices train 15 million points.

Figure 7: ten devices with uneven, overlapping shares of a tenth to a half of the training set; each
version is the mean of their updates (eta = 1) from one epoch. Beside it the same number of epochs
on the whole training set in one place.

Writes DIR/csves-figure4.{json,png} and DIR/csves-figure7.{json,png}.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bench.csves_lab import BATCH_SIZE, LAYERS, RATE_E6, SEED, train
from bench.csves_pool import bar, workers
from bench.machine import machine
from bench.record import command, record
from device_sdk.training import TrainingRecipe
from gradledger.demo.data import Dataset, Samples, load_mnist, shares
from gradledger.errors import GradledgerError
from gradledger.models import FloatArray, Mlp, Model

DEVICES = 500
COST_MIN, COST_MAX = 320, 60_000
LAYERS_NARROW = (784, 32, 10)
VERSIONS = 15
SHARES = 10  # devices of Figure 7

_BLUE, _ORANGE = "#1f5fa8", "#c8741a"

_dataset: Dataset  # of a worker process
_everything: Samples


def main(argv: Sequence[str] | None = None) -> int:
    """Train, draw, write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.csves_figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path("../shared/data/mnist")
    parser.add_argument("--data", type=Path, default=default, metavar="DIR", help="MNIST")
    parser.add_argument("--devices", type=int, default=DEVICES, metavar="N", help="of Figure 4")
    parser.add_argument("--versions", type=int, default=VERSIONS, metavar="N", help="of Figure 7")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR")
    given = parser.parse_args(argv)
    if given.devices < 2 or given.versions < 1:
        parser.error("--devices: at least 2, and --versions: at least 1 expected")
    try:
        dataset = load_mnist(given.data, given.seed)
    except GradledgerError as exc:
        print(f"bench.csves_figures: {exc}", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    about = {
        "command": command("bench.csves_figures", given, argv),
        "machine": machine(),
        "seed": given.seed,
    }
    with workers(given.workers, _begin, given.data, given.seed) as pool:
        costs = data_costs(given.devices, given.seed)
        timed = list(bar(pool.map(_seconds, costs, chunksize=1), len(costs), "devices"))
        cost = cost_document(costs, timed)
        _write(given.out / "csves-figure4", {**about, **cost}, cost_png(cost))
        found = list(
            bar(
                accuracies(pool, dataset, given.versions, given.seed),
                given.versions + 1,
                "versions",
            )
        )
    accuracy: dict[str, Any] = {
        "layers": list(LAYERS),
        "shares": [len(rows) for rows in shares(dataset.train, SHARES, given.seed)],
        "training_points": len(dataset.train),
        "decentralised": [round(pair[0], 6) for pair in found],
        "centralised": [round(pair[1], 6) for pair in found],
    }
    drawn = accuracy_png(accuracy)
    _write(given.out / "csves-figure7", {**about, **accuracy}, drawn)
    print(
        f"Figure 4: {cost['devices']} devices, {cost['slope_us_per_point']:.2f} us per point, "
        f"R^2 = {cost['r_squared']:.4f}"
    )
    print(
        f"Figure 7: after {given.versions} versions {accuracy['decentralised'][-1]:.2%} "
        f"decentralised, {accuracy['centralised'][-1]:.2%} centralised"
    )
    return 0


def _write(stem: Path, document: Mapping[str, Any], png: bytes) -> None:
    record(document, stem.with_suffix(".json"), indent=1)
    stem.with_suffix(".png").write_bytes(png)


def _begin(directory: Path, seed: int) -> None:
    global _dataset, _everything
    _dataset = load_mnist(directory, seed)
    parts = (_dataset.train, _dataset.validation, _dataset.test)
    _everything = Samples(
        np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    )


def _recipe(version: int, seed: int) -> TrainingRecipe:
    return TrainingRecipe(version, 1, BATCH_SIZE, RATE_E6, 1, seed)


# ---- Figure 4 ----------------------------------------------------------------------------------


def data_costs(devices: int, seed: int) -> list[int]:
    """Draw the numbers of training points."""
    rng = np.random.default_rng([seed, 4])
    return rng.integers(COST_MIN, COST_MAX, size=devices, endpoint=True).tolist()


def _seconds(cost: int) -> float:
    """Train one epoch on the first `cost` points; return what the processor took."""
    model = Model.random_glorot(Mlp(LAYERS_NARROW), 0)
    points = Samples(_everything.x[:cost], _everything.y[:cost])
    start = time.process_time()
    train(model, points, _recipe(1, 0))
    return time.process_time() - start


def cost_document(costs: Sequence[int], seconds: Sequence[float]) -> dict[str, Any]:
    """Return Figure 4's line and points.

    Parameters
    ----------
    costs : sequence of int
    seconds : sequence of float, of the same length
    """
    x, y = np.array(costs, float), np.array(seconds)
    slope, start = np.polyfit(x, y, 1)
    left = y - (slope * x + start)
    return {
        "devices": len(costs),
        "layers": list(LAYERS_NARROW),
        "slope_us_per_point": round(1e6 * float(slope), 4),
        "intercept_ms": round(1e3 * float(start), 3),
        "r_squared": round(1 - float(left @ left) / float(((y - y.mean()) ** 2).sum()), 5),
        "points": [[cost, round(took, 5)] for cost, took in zip(costs, seconds, strict=True)],
    }


def cost_png(document: Mapping[str, Any]) -> bytes:
    """Draw Figure 4."""
    costs, seconds = zip(*document["points"], strict=True)
    slope, start = document["slope_us_per_point"], document["intercept_ms"]
    figure, axes = _figure(f"One epoch on {document['devices']} devices")
    axes.scatter(costs, seconds, s=10, color=_BLUE, alpha=0.6, linewidths=0, label="a device")
    axes.plot(
        [0, COST_MAX],
        [start / 1e3 + slope / 1e6 * cost for cost in (0, COST_MAX)],
        color=_ORANGE,
        label=f"{slope:.2f} \u00b5s per point, R\u00b2 = {document['r_squared']:.4f}",
    )
    axes.set_xlabel("data cost: training points")
    axes.set_ylabel("training time (s of processor)")
    axes.set_xlim(0, COST_MAX * 1.02)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", frameon=False)
    return _png(figure)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


# ---- Figure 7 ----------------------------------------------------------------------------------


def accuracies(
    pool: Executor, dataset: Dataset, versions: int, seed: int
) -> Iterator[tuple[float, float]]:
    """Yield the test accuracy, decentralised and centralised, of versions 0, 1, ..."""
    model = central = Model.random_glorot(Mlp(LAYERS), seed)
    for version in range(versions + 1):
        if version:
            parts: list[int | None] = [None, *range(SHARES)]
            vectors = [central.vector] + [model.vector] * SHARES
            recipes = [_recipe(version, seed)] * len(parts)
            trained = list(pool.map(_trained, parts, vectors, recipes))
            central = central.with_vector(trained[0])
            model = model.with_vector(np.mean(trained[1:], axis=0))
        wrong = [each.error_micro(dataset.test.x, dataset.test.y) for each in (model, central)]
        yield 1 - wrong[0] / 1e6, 1 - wrong[1] / 1e6


def accuracy_png(document: Mapping[str, Any]) -> bytes:
    """Draw Figure 7, from version 1 on: the untrained model's accuracy is in the legend."""
    figure, axes = _figure(f"Accuracy over {len(document['decentralised']) - 1} versions")
    for name, label, style in (
        ("centralised", "centralised, the whole training set", {"color": _ORANGE, "ls": "--"}),
        ("decentralised", f"decentralised, {SHARES} devices", {"color": _BLUE}),
    ):
        first, *later = [100 * value for value in document[name]]
        axes.plot(
            range(1, len(later) + 1),
            later,
            marker="o",
            label=f"{label}: {first:.1f} % untrained, {later[-1]:.1f} % at the end",
            **style,
        )
    axes.set_xlabel("version")
    axes.set_ylabel("accuracy on the test set (%)")
    axes.set_xticks(range(1, len(document["decentralised"])))
    axes.legend(loc="lower right", frameon=False)
    return _png(figure)


def _trained(share: int | None, vector: FloatArray, recipe: TrainingRecipe) -> FloatArray:
    """Train on one device's share, or on the whole training set."""
    points = _dataset.train
    if share is not None:
        points = points.take(shares(points, SHARES, recipe.seed)[share])
    model = Model(Mlp(LAYERS), vector)
    return model.with_arrays(train(model, points, recipe)[0]).vector


if __name__ == "__main__":
    sys.exit(main())
