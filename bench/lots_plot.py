"""Draw what `bench.lots` simulated and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.lots import ALL_E6, BEST, WORKS, chance, faulty, least_bar, quorum

Row = dict[str, Any]

OF_VALIDATORS = {4: "#1f5fa8", 13: "#c8741a"}
OF_ATTACK = {
    "alone": ("-", "o", "a cheat alone"),
    "friends withhold": ("--", "s", "f validators withhold for it"),
    "friends tell, it grinds": ("--", "D", "f tell it their values, it grinds"),
    "rushes, friends withhold": (":", "^", "it rushes as well: f + 1 lots"),
}
OF_STRATEGY = {
    "always": "#922b21",
    "every other round": "#c8741a",
    "one round in ten": "#1f5fa8",
    "until caught": "#6c3483",
    "in the last 5 rounds": "#148f77",
    BEST: "#17202a",
}
OF_WORK = dict(zip(WORKS, ("#148f77", "#1f5fa8", "#6c3483"), strict=True))
OF_TIME = {
    "encrypt_ms": ("#85929e", "no seed, table kept"),
    "encrypt_seeded_ms": ("#1f5fa8", "from a seed"),
    "check_ms": ("#c8741a", "a validator's check"),
}


def draw(rows: list[Row], path: Path) -> None:
    """Write a PNG: the chance of an audit, what strategies earn, the bar needed, what it costs.

    Parameters
    ----------
    rows : list of dict
        As `bench.lots` writes them.
    path : Path
        Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {
        kind: [row for row in rows if row["kind"] == kind] for kind in ("chance", "pay", "opening")
    }
    figure, panels = pyplot.subplots(2, 2, figsize=(14, 10.5), layout="constrained")
    _draw_chance(panels[0][0], kinds["chance"])
    _draw_pay(panels[0][1], kinds["pay"])
    _draw_bar(panels[1][0], kinds["pay"])
    _draw_opening(panels[1][1], kinds["opening"])
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Audits by lot: lines are the formulas of docs/lots.md, marks simulated, 95 % intervals",
        fontsize=13,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_chance(panel: Any, rows: list[Row]) -> None:
    from matplotlib.lines import Line2D

    shares = np.linspace(0, 0.27, 200)
    for validators, colour in OF_VALIDATORS.items():
        f = faulty(validators)
        for lots, attack in (
            (validators, "alone"),
            (validators - f, "friends withhold"),
            (quorum(validators) - f, "rushes, friends withhold"),
        ):
            line = [100 * chance(share, lots) for share in shares]
            panel.plot(100 * shares, line, color=colour, linestyle=OF_ATTACK[attack][0], lw=1.4)
    for row in rows:
        if row["validators"] in OF_VALIDATORS:
            _mark(
                panel,
                row["lot_e6"] / ALL_E6 * 100,
                row,
                OF_VALIDATORS[row["validators"]],
                OF_ATTACK[row["attack"]][1],
                100,
            )
    panel.legend(
        handles=[
            *(
                Line2D([], [], color=colour, lw=3, label=f"{validators} validators")
                for validators, colour in OF_VALIDATORS.items()
            ),
            *(
                Line2D([], [], color="black", linestyle=line, marker=mark, ms=5, label=name)
                for line, mark, name in OF_ATTACK.values()
            ),
        ],
        frameon=False,
        loc="upper left",
        fontsize=9,
    )
    panel.set_title("What colluding validators can do: take away their own lots, no more")
    panel.set_xlabel("share that each validator's lot draws (%)")
    panel.set_ylabel("a cheat's upload is audited (%)")
    panel.set_xlim(0, 27)
    panel.set_ylim(0, 119)
    panel.set_yticks(range(0, 101, 20))


def _draw_pay(panel: Any, rows: list[Row]) -> None:
    if not rows:
        return
    for name, colour in OF_STRATEGY.items():
        line = sorted(
            (row for row in rows if row["strategy"] == name), key=lambda row: int(row["bar_rounds"])
        )
        panel.plot(
            [row["bar_rounds"] for row in line],
            [row["expected"] for row in line],
            color=colour,
            lw=2.2 if name == BEST else 1.4,
            linestyle="--" if name == BEST else "-",
            label=name,
        )
        for row in line:
            _mark(panel, row["bar_rounds"], row, colour, "o", 1)
    one = rows[0]
    panel.axhline(one["honest"], color="black", lw=1)
    panel.text(one["bar_rounds"] + 0.4, one["honest"] - 1.6, "honest", fontsize=9)
    bar = least_bar(one["audited"], one["work"])
    if bar is not None:
        panel.axvline(bar, color="black", lw=1, linestyle=":")
        panel.text(bar + 0.4, 27, f"{bar}: long enough, but\nfor the last rounds", fontsize=9)
    panel.set_title(
        f"What cheating earns in {one['rounds']} rounds: {one['audited']:.0%} audited, "
        f"work {one['work']:.0%} of the pay"
    )
    panel.set_xlabel("rounds that a caught device is barred")
    panel.set_ylabel("profit (pays for one round)")
    panel.set_ylim(0, None)
    panel.legend(frameon=False, fontsize=9, title="it cheats")


def _draw_bar(panel: Any, rows: list[Row]) -> None:
    bars = np.geomspace(0.5, 300, 300)
    for work, colour in OF_WORK.items():
        needed = 100 * work / (1 + bars * (1 - work))
        panel.plot(needed, bars, color=colour, lw=1.8, label=f"work costs {work:.0%} of the pay")
        panel.fill_betweenx(bars, needed, 100, color=colour, alpha=0.05)
    if rows:
        one = rows[0]
        panel.axvline(100 * one["audited"], color="black", lw=1, linestyle=":")
        panel.text(100 * one["audited"] * 1.04, 0.56, "the panel above", fontsize=9)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(0.5, 100)
    panel.set_ylim(0.5, 300)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, place: f"{value:g}")
    panel.set_title("The bar that is needed: right of its line cheating does not pay")
    panel.set_xlabel("a cheat's upload is audited (%)")
    panel.set_ylabel("rounds that a caught device is barred")
    panel.legend(frameon=False, fontsize=9, loc="lower left")


def _draw_opening(panel: Any, rows: list[Row]) -> None:
    if not rows:
        panel.set_visible(False)
        return
    width = 0.27
    for place, (field, (colour, name)) in enumerate(OF_TIME.items()):
        bars = panel.bar(
            [at + (place - 1) * width for at in range(len(rows))],
            [row[field] for row in rows],
            width,
            color=colour,
            label=name,
        )
        panel.bar_label(bars, [f"{row[field]:,.0f}" for row in rows], fontsize=8, padding=1)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    panel.set_xticks(
        range(len(rows)),
        [
            f"{row['parameters']:,}\n{row['bits']} bits\n{row['opening_bytes'] / 1000:,.1f} kB"
            for row in rows
        ],
        fontsize=9,
    )
    panel.set_title("What it costs: milliseconds, least of several (logarithmic)")
    panel.set_xlabel("parameters; key; bytes of an opening, if drawn")
    panel.set_ylabel("ms")
    panel.margins(y=0.12)
    panel.legend(frameon=False, fontsize=9, loc="upper left")


def _mark(panel: Any, x: float, row: Row, colour: str, mark: str, scale: float) -> None:
    """Draw a simulated figure with its interval."""
    middle, low, high = (scale * row[name] for name in ("simulated", "low", "high"))
    panel.errorbar(
        x,
        middle,
        yerr=[[max(0.0, middle - low)], [max(0.0, high - middle)]],
        color=colour,
        marker=mark,
        ms=4,
        lw=1,
        capsize=2,
        linestyle="none",
    )
