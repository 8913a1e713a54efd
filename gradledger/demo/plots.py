"""The demo's two plots, drawn with matplotlib's Agg canvas (no display)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gradledger.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEDERATED = "#1f5fa8"
_CENTRALISED = "#c8741a"
_REFUSED = "#a33b3b"
_GRID = "#dddddd"
_INK = "#222222"


def accuracy_png(title: str, federated: Sequence[float], centralised: Sequence[float]) -> bytes:
    """Draw the test accuracy of each version.

    Parameters
    ----------
    title : str
        Above the plot.
    federated : sequence of float, length versions + 1
        Entry 0 is the untrained model T_0's.
    centralised : sequence of float, length versions + 1
        The same for training on all the honest data in one place.

    Returns
    -------
    bytes
        A PNG file.
    """
    figure, axes = _figure(title)
    versions = range(len(federated))
    axes.plot(
        range(len(centralised)),
        [100 * value for value in centralised],
        color=_CENTRALISED,
        linestyle="--",
        marker="s",
        markersize=4.5,
        label=f"centralised, same data: {centralised[-1]:.1%}",
    )
    axes.plot(
        versions,
        [100 * value for value in federated],
        color=_FEDERATED,
        marker="o",
        markersize=5.5,
        linewidth=2,
        label=f"federated: {federated[-1]:.1%}",
    )
    axes.set_xlabel("model version (0: untrained)")
    axes.set_ylabel("accuracy on the test set (%)")
    axes.set_ylim(0, 102)
    axes.set_xlim(-0.3, len(federated) - 0.7)
    step = max(1, math.ceil(len(federated) / 16))
    axes.set_xticks(list(versions)[::step])
    axes.legend(loc="lower right", frameon=False)
    return _png(figure)


def pay_png(title: str, devices: Sequence[Mapping[str, Any]], symbol: str, precision: int) -> bytes:
    """Draw what each device was paid, with its accepted and refused uploads.

    Parameters
    ----------
    title : str
        Above the plot.
    devices : sequence of mapping
        ``account``, ``role`` (shown under the name), ``paid`` (smallest units), ``accepted`` and
        ``refused`` (counts).
    symbol : str
        Code of the token.
    precision : int
        Decimals of the token.

    Returns
    -------
    bytes
        A PNG file.
    """
    width = max(9.0, 0.85 * len(devices) + 1.5)
    figure, axes = _figure(title, width)
    paid = [device["paid"] / 10**precision for device in devices]
    plain = [device["role"] == "honest" for device in devices]
    colours = [_FEDERATED if honest else _REFUSED for honest in plain]
    bars = axes.bar(range(len(devices)), paid, color=colours, width=0.7)
    for bar, device in zip(bars, devices, strict=True):
        axes.annotate(
            f"{device['accepted']} accepted\n{device['refused']} refused",
            (bar.get_x() + bar.get_width() / 2, bar.get_height()),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=_INK,
        )
    axes.set_xticks(range(len(devices)))
    axes.set_xticklabels(
        [
            device["account"] if honest else f"{device['account']}\n({device['role']})"
            for device, honest in zip(devices, plain, strict=True)
        ],
        fontsize=9,
    )
    axes.set_ylabel(f"paid ({symbol})")
    axes.set_ylim(0, max(paid, default=0) * 1.18 or 1)
    axes.grid(axis="x", visible=False)
    return _png(figure)


def _figure(title: str, width: float = 9.0) -> tuple[Figure, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError(
            "the plots need matplotlib: install gradledger with the extra 'localnet'"
        ) from exc
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=_INK, fontsize=12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
