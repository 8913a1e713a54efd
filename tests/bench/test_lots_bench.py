"""The bench of audits by lot: its formulas, its simulation, its command."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from bench import lots as bench
from bench.lots import ALWAYS, HONEST, STRATEGIES, Strategy, Table
from gradledger.lots import is_drawn

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "lots.json"


def test_chance_is_that_of_any_of_several_lots() -> None:
    share = 0.3
    for lots in range(5):
        total = 0.0
        for drawn in itertools.product((True, False), repeat=lots):
            weight = 1.0
            for each in drawn:
                weight *= share if each else 1 - share
            total += weight * any(drawn)
        assert bench.chance(share, lots) == pytest.approx(total)
    assert bench.share_for(bench.chance(share, 3), 3) == pytest.approx(share)


@pytest.mark.parametrize(
    ("validators", "f", "quorum"), [(1, 0, 1), (4, 1, 3), (7, 2, 5), (13, 4, 9)]
)
def test_validators_as_the_contract_counts_them(validators: int, f: int, quorum: int) -> None:
    assert bench.faulty(validators) == f
    assert bench.quorum(validators) == quorum
    assert Table(validators, f, withholds=True, rushes=True).strangers == f + 1


def every_history(strategy: Strategy, audited: float, bar: int, work: float, rounds: int) -> float:
    """What a strategy earns, by going through everything that can happen."""

    def go(at: int, caught: bool) -> float:
        if at >= rounds:
            return 0.0
        cheats = strategy.cheats(at, caught)
        honest = 1 - work + go(at + 1, caught) if cheats < 1 else 0.0
        cheat = (1 - audited) * (1 + go(at + 1, caught)) + audited * go(at + 1 + bar, True)
        return (1 - cheats) * honest + cheats * cheat

    return go(0, False)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each.name)
@pytest.mark.parametrize("bar", [0, 1, 3, 20])
def test_expected_pay_is_that_of_every_history(strategy: Strategy, bar: int) -> None:
    found = bench.expected_pay(strategy, 0.2, bar, 0.7, 8)
    assert found == pytest.approx(every_history(strategy, 0.2, bar, 0.7, 8))


@pytest.mark.parametrize("bar", [0, 1, 2, 4])
def test_no_choice_of_rounds_earns_more_than_the_best(bar: int) -> None:
    rounds, audited, work = 7, 0.3, 0.6
    best = bench.best_strategy(audited, bar, work, rounds)
    most = max(
        bench.expected_pay(Strategy("", 1.0, frozenset(chosen)), audited, bar, work, rounds)
        for size in range(rounds + 1)
        for chosen in itertools.combinations(range(rounds), size)
    )
    assert bench.expected_pay(best, audited, bar, work, rounds) == pytest.approx(most)


@pytest.mark.parametrize("work", bench.WORKS)
@pytest.mark.parametrize("audited", [0.02, 0.1, 0.3, 0.7])
def test_the_least_bar_is_where_cheating_stops_to_pay(audited: float, work: float) -> None:
    """Far from the end of a task: there one cheated round is worth less than an honest one."""
    bar = bench.least_bar(audited, work)
    assert bar is not None

    def gain(bar: int) -> float:
        loss = audited * (1 + bar * (1 - work))
        return work - loss

    assert gain(bar) <= 1e-9
    assert bar == 0 or gain(bar - 1) > 0
    rounds = 20 * (bar + 3)
    cheated = bench.expected_pay(ALWAYS, audited, bar + 1, work, rounds)
    honest = bench.expected_pay(HONEST, audited, bar + 1, work, rounds)
    assert honest == pytest.approx(rounds * (1 - work))
    assert cheated < honest + 1 / audited  # but for the last rounds, which no bar reaches


@pytest.mark.parametrize("work", bench.WORKS)
@pytest.mark.parametrize("audited", [0.05, 0.1, 0.3, 0.7, 0.96])
def test_how_many_rounds_at_the_end_no_bar_reaches(audited: float, work: float) -> None:
    rounds, end = 150, bench.end_rounds(audited, work)
    bar = bench.least_bar(audited, work)
    assert bar is not None
    for length in (bar + 1, 2 * bar + 1):
        best = bench.best_strategy(audited, length, work, rounds)
        assert best.rounds == frozenset(range(rounds - end, rounds))


def test_a_bar_that_no_task_has() -> None:
    assert bench.least_bar(0.0001, 0.95) is None


def test_what_withholding_and_grinding_do_is_take_away_lots() -> None:
    """With the draw that the contract has, exactly: nothing but honest lots draws the upload."""
    for table in (Table(4, 1, withholds=True), Table(7, 2, grinds=True)):
        rng, again = random.Random(1), random.Random(1)
        lot_e6 = 300_000
        for _ in range(200):
            found = table.draws(lot_e6, rng)
            known = [again.randbytes(32) for _ in range(table.colluding)]
            hidden = [again.randbytes(32) for _ in range(table.honest)]
            upload = again.randbytes(32)
            while table.grinds and any(is_drawn(value, upload, lot_e6) for value in known):
                upload = again.randbytes(32)
            assert found == any(is_drawn(value, upload, lot_e6) for value in hidden)


def test_a_lot_that_draws_all_is_not_escaped_by_grinding() -> None:
    assert Table(4, 1, grinds=True).draws(1_000_000, random.Random(1))


def test_the_command_writes_rows_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "lots.json"
    words = ["--tasks", "3", "--uploads", "20", "--repeats", "0", "--out", str(out)]
    assert bench.main(words) == 0
    rows = json.loads(out.read_text())
    assert {row["kind"] for row in rows} == {"chance", "pay", "bar"}
    assert rows[0]["command"] == "python -m bench.lots " + " ".join([*words[:-1], "FILE"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "4 validators, friends withhold" in capsys.readouterr().out
    assert bench.main([*words[:6], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row.get("simulated") for row in again] == [row.get("simulated") for row in rows]


def test_arguments_are_bounded() -> None:
    with pytest.raises(SystemExit):
        bench.main(["--tasks", "1"])


def test_the_committed_simulation_bears_the_formulas_out() -> None:
    rows = json.loads(RESULTS.read_text())
    judged = [row for row in rows if "low" in row and row["low"] < row["high"]]
    hits = sum(row["low"] <= row["expected"] <= row["high"] for row in judged)
    assert len(judged) >= 100
    assert hits / len(judged) >= 0.9  # 95 in 100 are to be expected
    for row in judged:  # none is far off: three half widths
        spread = (row["high"] - row["low"]) / 2
        assert abs(row["simulated"] - row["expected"]) <= 3 * spread
