"""Draw what `bench.paillier` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.paillier import (
    CKKS,
    FAST,
    MAKING,
    MASKED,
    PHE_PACKED,
    PHE_VALUES,
    SHORT,
    STRICT,
)

Row = dict[str, Any]

PARAMETERS = 101_770  # of the bars, if measured
COLOURS = {
    "ifma": "#0b5345",
    "avx2": "#148f77",
    "portable": "#45b39d",
    "gmpy2": "#2874a6",
    "phe": "#7b7d7d",
    "tenseal": "#ca6f1e",
}
NAMES = {
    SHORT: "short exponent (default)",
    FAST: "short exponent, fast",
    STRICT: "strict exponent",
    MASKED: "masks made ahead",
    MAKING: "(making those masks, before)",
    PHE_VALUES: "one ciphertext per value",
    PHE_PACKED: "packed",
    CKKS: "8192 [40, 40]",
}


def draw(rows: list[Row], path: Path) -> None:
    """Write a PNG: time and size per parameter for each scheme, seconds by parameters.

    Parameters
    ----------
    rows : list of dict
        As `bench.paillier` writes them.
    path : Path
        Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["us_per_parameter"] and row["scheme"] in NAMES]
    sizes = sorted({row["bits"] for row in rows if row["bits"]})
    counts = sorted({row["parameters"] for row in rows})
    count = PARAMETERS if PARAMETERS in counts else counts[len(counts) // 2]
    tallest = max(len(_bars(rows, bits, count)) for bits in sizes)
    figure, panels = pyplot.subplots(
        2,
        len(sizes),
        squeeze=False,
        figsize=(7.6 * len(sizes), 2.2 + 0.27 * tallest + 4.2),
        height_ratios=[0.6 + 0.27 * tallest, 4.2],
        layout="constrained",
    )
    most = max(row["us_per_parameter"] for row in rows)
    least = min(row["us_per_parameter"] for row in rows if row["parameters"] == count)
    for place, bits in enumerate(sizes):
        _draw_bars(panels[0][place], _bars(rows, bits, count), bits, count)
        panels[0][place].set_xlim(least / 2, most * 60)
        panels[0][place].set_xticks(
            [10.0**power for power in range(-2, 6) if least / 2 < 10.0**power <= most]
        )
        _draw_lines(panels[1][place], rows, bits)
    figure.suptitle(
        f"Encrypting an update, from floats to bytes: {_place(rows)}; logarithmic scales",
        fontsize=13,
    )
    handles, labels = panels[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _place(rows: list[Row]) -> str:
    """Say where it was measured."""
    threads = max(row.get("threads", 1) for row in rows)
    return f"{rows[0]['machine']['cpu']}, {threads} thread{'s' if threads > 1 else ''}"


def _bars(rows: list[Row], bits: int, count: int) -> list[Row]:
    """Return the rows of one panel, fastest first."""
    chosen = [row for row in rows if row["parameters"] == count and row["bits"] in (bits, None)]
    return sorted(chosen, key=lambda row: float(row["us_per_parameter"]))


def _family(row: Row) -> str:
    return str(row["backend"]).split()[0]


def _name(row: Row) -> str:
    if row["scheme"] in (MASKED, MAKING):  # alike on every backend
        return NAMES[row["scheme"]]
    family = _family(row)
    return f"{'CKKS' if family == 'tenseal' else family}: {NAMES[row['scheme']]}"


def _short(value: float) -> str:
    """Write a figure with three digits, and without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_bars(panel: Any, rows: list[Row], bits: int, count: int) -> None:
    places = range(len(rows))
    by_value = next((row for row in rows if row["scheme"] == PHE_VALUES), None)
    panel.barh(
        places,
        [row["us_per_parameter"] for row in rows],
        color=[COLOURS.get(_family(row), "black") for row in rows],
    )
    for bar, row in zip(panel.patches, rows, strict=True):
        if row["scheme"] == MAKING:
            bar.set_alpha(0.4)
        text = f" {_short(row['us_per_parameter'])} µs"
        if row["scheme"] != MAKING:
            text += f",  {_short(row['bytes_per_parameter'])} B"
        if by_value and row["scheme"] not in (PHE_VALUES, MAKING):
            # CKKS has no bits: its own ratio is to one size of key alone
            text += f",  {_short(by_value['us_per_parameter'] / row['us_per_parameter'])} x faster"
        panel.text(row["us_per_parameter"], bar.get_y() + bar.get_height() / 2, text, va="center")
    panel.set_yticks(places, [_name(row) for row in rows])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(lambda value, place: _short(value))
    panel.margins(y=0.02)
    panel.set_title(f"n of {bits} bits: per parameter, in an update of {count:,}")
    panel.set_xlabel("microseconds per parameter (and bytes; times faster than value by value)")
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_lines(panel: Any, rows: list[Row], bits: int) -> None:
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["bits"] in (bits, None) and row["scheme"] in (SHORT, PHE_VALUES, PHE_PACKED, CKKS):
            lines.setdefault((row["backend"], row["scheme"]), []).append(row)
    for line in lines.values():
        line.sort(key=lambda row: int(row["parameters"]))
        panel.plot(
            [row["parameters"] for row in line],
            [row["encrypt_s"] for row in line],
            marker="o",
            linestyle="--" if line[0]["scheme"] == PHE_PACKED else "-",
            color=COLOURS.get(_family(line[0]), "black"),
            label=_name(line[0]),
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, place: _short(value))
    panel.set_title(f"n of {bits} bits: a whole update")
    panel.set_xlabel("parameters")
    panel.set_ylabel("seconds to encrypt")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
