"""Audits by lot: what a cheat can expect, by formula and by simulation; what an audit costs.

    python -m bench.lots [--json] [--out bench/results/lots.json]

Simulated are rounds of a task as the contract runs them, without a network, with the draw of
`gradledger.lots` itself: validators commit to values, the device uploads, values are revealed or
withheld, what is drawn is audited, who is caught is barred. docs/lots.md derives the formulas.
Money is in units of the pay for one round; cheating is free, honest work costs `work` of it.

kind = "chance": how often the upload of a cheat is drawn, whatever its colluding validators do.
kind = "pay": what a strategy earns in a task of `rounds` rounds, on the average.
kind = "bar": for some bars the least share of lots with which cheating does not pay.
kind = "opening": milliseconds to encrypt with and without a seed and to check an opening; its size.

Intervals are of 95 %: Wilson's for shares, the normal one for means. Everything but the
milliseconds follows from --seed. With --out FILE.json a plot is drawn beside it, FILE.png.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gmpy2
import numpy as np

from bench.csves import wilson
from bench.machine import machine
from bench.record import command, record
from gradledger.codec import Codec
from gradledger.lots import VALUE_BYTES, is_drawn
from gradledger.opening import opening_bytes, pack_opening
from gradledger.paillier import PaillierPublicKey, backend
from producer_validation.checks import Refusal
from producer_validation.openings import check_opening

SEED = 2026
ALL_E6 = 1_000_000
ROUNDS = 60
TASKS = 1_500  # simulated for each row of "pay"
UPLOADS = 20_000  # and of "chance"
GRINDS_MAX = 300  # sealed copies that a cheat tries until its friends' values draw none
VALIDATORS = (1, 4, 7, 13)
LOTS_E6 = (20_000, 50_000, 100_000, 250_000)
WORKS = (0.5, 0.8, 0.95)
BARS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 40)
PLAN_BARS = (5, 10, 20, 50, 100)
BARS_MAX = 10_000  # of a task, a limit of the contract
KEY_BITS = (2048, 3072)
PARAMETERS = (650, 7_850, 101_770)
SLOT_BITS = 26

Row = dict[str, Any]


# ---- formulas -----------------------------------------------------------------------------------


def faulty(validators: int) -> int:
    """Return f, how many of 3f+1 may be faulty.

    Parameters
    ----------
    validators : int

    Returns
    -------
    int
    """
    return (validators - 1) // 3


def quorum(validators: int) -> int:
    """Return how many must have committed before there is an upload.

    Parameters
    ----------
    validators : int

    Returns
    -------
    int
    """
    return validators * 2 // 3 + 1


def chance(share: float, lots: int) -> float:
    """Return the chance that an upload is drawn by any of some lots.

    Parameters
    ----------
    share : float
        Of the accepted uploads that each draws.
    lots : int
        Revealed values that the device did not know when it uploaded.

    Returns
    -------
    float
        1 - (1 - share)^lots.
    """
    return 1 - (1 - share) ** lots


def share_for(wanted: float, lots: int) -> float:
    """Return the share of each lot for a wanted chance; the inverse of `chance`.

    Parameters
    ----------
    wanted : float
    lots : int

    Returns
    -------
    float
    """
    return 1 - (1 - wanted) ** (1 / lots)


def least_bar(audited: float, work: float) -> int | None:
    """Return the shortest bar with which cheating does not pay while the task lasts.

    Parameters
    ----------
    audited : float
        Chance that a cheat's upload is audited.
    work : float
        What honest work costs, in units of its pay; below 1.

    Returns
    -------
    int or None
        Rounds; None if the contract knows no bar that is long enough.
    """
    if audited >= work:
        return 0
    bar = math.ceil((work / audited - 1) / (1 - work) - 1e-9)
    return bar if bar <= BARS_MAX else None


def end_rounds(audited: float, work: float) -> int:
    """Return in how many rounds at the end of a task cheating pays, however long the bar.

    Parameters
    ----------
    audited : float
        Chance that a cheat's upload is audited.
    work : float
        What honest work costs, in units of its pay; below 1.

    Returns
    -------
    int
        The largest k with (1 - audited)^k > 1 - work.
    """
    return max(0, math.ceil(math.log(1 - work) / math.log(1 - audited) - 1e-9) - 1)


@dataclass(frozen=True)
class Strategy:
    """When a device cheats.

    Parameters
    ----------
    name : str
    share : float
        Of these rounds, by a coin.
    rounds : frozenset of int, optional
        In which it may; from 0 on. None: all along.
    until_caught : bool
        Never again after that.
    """

    name: str
    share: float
    rounds: frozenset[int] | None = None
    until_caught: bool = False

    def cheats(self, at: int, caught: bool) -> float:
        """Return the chance that it cheats in a round."""
        if self.until_caught and caught:
            return 0.0
        return self.share if self.rounds is None or at in self.rounds else 0.0


HONEST = Strategy("honest", 0.0)
ALWAYS = Strategy("always", 1.0)
STRATEGIES = (
    HONEST,
    ALWAYS,
    Strategy("every other round", 0.5),
    Strategy("one round in ten", 0.1),
    Strategy("until caught", 1.0, until_caught=True),
    Strategy("in the last 5 rounds", 1.0, frozenset(range(ROUNDS - 5, ROUNDS))),
)
BEST = "the best there is"


def expected_pay(strategy: Strategy, audited: float, bar: int, work: float, rounds: int) -> float:
    """Return what a strategy earns on the average, exactly.

    Parameters
    ----------
    strategy : Strategy
    audited : float
        Chance that the upload of a cheat is audited; it is caught then.
    bar : int
        Rounds.
    work : float
        What honest work costs, in units of its pay.
    rounds : int
        Of the task.

    Returns
    -------
    float
        In units of the pay for one round.
    """
    value = {(at, caught): 0.0 for at in range(rounds, rounds + bar + 2) for caught in (0, 1)}
    for at in reversed(range(rounds)):
        for caught in (0, 1):
            cheats = strategy.cheats(at, bool(caught))
            honest = 1 - work + value[at + 1, caught]
            escapes = 1 + value[at + 1, caught]
            is_caught = value[at + 1 + bar, 1]
            value[at, caught] = (1 - cheats) * honest + cheats * (
                (1 - audited) * escapes + audited * is_caught
            )
    return value[0, 0]


def best_strategy(audited: float, bar: int, work: float, rounds: int) -> Strategy:
    """Return what earns a cheat most, worked out backwards from the last round.

    Parameters
    ----------
    audited, bar, work, rounds
        As `expected_pay` takes them.

    Returns
    -------
    Strategy
        Cheating in those rounds in which that is worth more than honest work.
    """
    value = [0.0] * (rounds + bar + 2)
    cheats = set()
    for at in reversed(range(rounds)):
        honest = 1 - work + value[at + 1]
        cheating = (1 - audited) * (1 + value[at + 1]) + audited * value[at + 1 + bar]
        if cheating > honest:
            cheats.add(at)
        value[at] = max(honest, cheating)
    return Strategy(BEST, 1.0, frozenset(cheats))


# ---- simulation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Who draws lots in a round, and how those who collude with the device behave.

    Parameters
    ----------
    validators : int
        Of the round.
    colluding : int
        Of these; their values are known to the cheat before it uploads.
    withholds : bool
        They keep back a value that would draw the cheat.
    grinds : bool
        The cheat seals its update again until none of their values draws it.
    rushes : bool
        It uploads as soon as a quorum has committed, with all its friends in it: the others' lots
        come too late.
    """

    validators: int
    colluding: int = 0
    withholds: bool = False
    grinds: bool = False
    rushes: bool = False

    @property
    def honest(self) -> int:
        """Lots that the cheat cannot know or stop."""
        lots = quorum(self.validators) if self.rushes else self.validators
        return lots - self.colluding

    @property
    def strangers(self) -> int:
        """Lots whose draw the cheat has to bear."""
        escapes = self.withholds or self.grinds
        return self.honest if escapes else self.honest + self.colluding

    def draws(self, lot_e6: int, rng: random.Random) -> bool:
        """Play one round's lots; say whether the device's upload is drawn."""
        known = [rng.randbytes(VALUE_BYTES) for _ in range(self.colluding)]
        hidden = [rng.randbytes(VALUE_BYTES) for _ in range(self.honest)]
        upload = rng.randbytes(32)
        if self.grinds:
            for _ in range(GRINDS_MAX):
                if not any(is_drawn(value, upload, lot_e6) for value in known):
                    break
                upload = rng.randbytes(32)
        if self.withholds:
            known = [value for value in known if not is_drawn(value, upload, lot_e6)]
        return any(is_drawn(value, upload, lot_e6) for value in hidden + known)


def simulate_task(
    strategy: Strategy,
    table: Table,
    lot_e6: int,
    bar: int,
    work: float,
    rounds: int,
    rng: random.Random,
) -> float:
    """Return what a strategy earns in one task.

    Parameters
    ----------
    strategy : Strategy
    table : Table
        Who draws lots in each of its rounds.
    lot_e6 : int
        Of the task.
    bar, work, rounds
        As `expected_pay` takes them.
    rng : random.Random
        Of lots, uploads and the strategy's coin.

    Returns
    -------
    float
        In units of the pay for one round.
    """
    earned, caught, barred_until = 0.0, False, -1
    for at in range(rounds):
        if at <= barred_until:
            continue
        cheats = rng.random() < strategy.cheats(at, caught)
        if cheats and table.draws(lot_e6, rng):
            caught, barred_until = True, at + bar
        else:
            earned += 1.0 if cheats else 1 - work
    return earned


def chance_rows(uploads: int, seed: int) -> Iterator[Row]:
    """Yield how often the upload of a cheat is drawn.

    Parameters
    ----------
    uploads : int
        Simulated for each row.
    seed : int

    Yields
    ------
    dict
    """
    for validators in VALIDATORS:
        friends = faulty(validators)
        tables = [("alone", Table(validators))]
        if friends:
            tables += [
                ("friends withhold", Table(validators, friends, withholds=True)),
                ("friends tell, it grinds", Table(validators, friends, grinds=True)),
                ("rushes, friends withhold", Table(validators, friends, True, rushes=True)),
            ]
        for attack, table in tables:
            for lot_e6 in LOTS_E6:
                rng = random.Random(f"{seed} {validators} {attack} {lot_e6}")
                drawn = sum(table.draws(lot_e6, rng) for _ in range(uploads))
                low, high = wilson(drawn, uploads)
                yield {
                    "kind": "chance",
                    "attack": attack,
                    "validators": validators,
                    "colluding": table.colluding,
                    "lots_that_count": table.strangers,
                    "lot_e6": lot_e6,
                    "uploads": uploads,
                    "expected": round(chance(lot_e6 / ALL_E6, table.strangers), 5),
                    "simulated": round(drawn / uploads, 5),
                    "low": round(low / 100, 5),
                    "high": round(high / 100, 5),
                }


def pay_rows(tasks: int, seed: int) -> Iterator[Row]:
    """Yield what each strategy earns, four validators, one of them with the cheat.

    Parameters
    ----------
    tasks : int
        Simulated for each row.
    seed : int

    Yields
    ------
    dict
    """
    table = Table(4, 1, withholds=True)
    work, lot_e6 = 0.8, 50_000
    audited = chance(lot_e6 / ALL_E6, table.strangers)
    for bar in BARS:
        best = best_strategy(audited, bar, work, ROUNDS)
        for strategy in (*STRATEGIES, best):
            rng = random.Random(f"{seed} {strategy.name} {bar}")
            earned = [
                simulate_task(strategy, table, lot_e6, bar, work, ROUNDS, rng)
                for _ in range(tasks if strategy is not HONEST else 1)
            ]
            mean = statistics.fmean(earned)
            spread = 1.96 * statistics.stdev(earned) / math.sqrt(tasks) if len(earned) > 1 else 0.0
            yield {
                "kind": "pay",
                "strategy": strategy.name,
                "validators": table.validators,
                "colluding": table.colluding,
                "lot_e6": lot_e6,
                "audited": round(audited, 5),
                "bar_rounds": bar,
                "rounds": ROUNDS,
                "work": work,
                "cheats_from": min(best.rounds, default=None) if strategy is best else None,
                "tasks": len(earned),
                "expected": round(expected_pay(strategy, audited, bar, work, ROUNDS), 4),
                "simulated": round(mean, 4),
                "low": round(mean - spread, 4),
                "high": round(mean + spread, 4),
                "honest": round(ROUNDS * (1 - work), 4),
            }


def bar_rows() -> Iterator[Row]:
    """Yield for some bars the least share of lots with which cheating does not pay.

    Yields
    ------
    dict
        `lot_e6` is for the worst case: f of 3f+1 collude, and no more than a quorum drew lots.
        `opened` is the share of honest uploads that are opened when all reveal. In the last
        `end_rounds` of a task a cheat gains `end_gain` pays, however long the bar.
    """
    for validators in VALIDATORS:
        worst = quorum(validators) - faulty(validators)
        for work in WORKS:
            for bar in PLAN_BARS:
                needed = work / (1 + bar * (1 - work))
                lot_e6 = math.ceil(share_for(needed, worst) * ALL_E6)
                audited = chance(lot_e6 / ALL_E6, worst)
                found = least_bar(audited, work)
                assert found is not None and found <= bar
                end = end_rounds(audited, work)
                gain = expected_pay(ALWAYS, audited, end, work, end) - end * (1 - work)
                yield {
                    "kind": "bar",
                    "validators": validators,
                    "work": work,
                    "bar_rounds": bar,
                    "lot_e6": lot_e6,
                    "audited_worst": round(audited, 5),
                    "opened": round(chance(lot_e6 / ALL_E6, validators), 5),
                    "end_rounds": end,
                    "end_gain": round(gain, 4),
                }


# ---- what an opening costs ----------------------------------------------------------------------


def opening_rows(seed: int, repeats: int) -> Iterator[Row]:
    """Yield milliseconds of an update with and without a seed, and of the check of its opening.

    Parameters
    ----------
    seed : int
    repeats : int
        Each time is the least of so many.

    Yields
    ------
    dict
    """
    for bits in KEY_BITS:
        key = _key(bits, seed)
        for parameters in PARAMETERS:
            codec = Codec(1_000_000, SLOT_BITS, parameters)
            rng = np.random.default_rng([seed, bits, parameters])
            codes = rng.integers(0, 65_536, parameters).astype(np.uint16)
            of_update = rng.bytes(32)
            upload = key.encrypt(codes, codec, seed=of_update)
            payload = pack_opening(of_update, codes, codec)
            key.encrypt(codes, codec)  # its table is kept
            calls: dict[str, Callable[[], object]] = {
                "encrypt_ms": lambda key=key, codes=codes, codec=codec: key.encrypt(codes, codec),
                "encrypt_seeded_ms": lambda key=key, codes=codes, codec=codec, seed=of_update: (
                    key.encrypt(codes, codec, seed=seed)
                ),
                "check_ms": lambda payload=payload, upload=upload, codec=codec, key=key: (
                    check_opening(payload, upload, codec, key)
                ),
            }
            best = dict.fromkeys(calls, math.inf)
            for _ in range(repeats):
                for name, call in calls.items():
                    started = time.perf_counter()
                    result = call()
                    best[name] = min(best[name], 1000 * (time.perf_counter() - started))
                    assert not isinstance(result, Refusal)
            yield {
                "kind": "opening",
                "bits": bits,
                "parameters": parameters,
                "backend": backend(),
                "upload_bytes": len(upload),
                "opening_bytes": opening_bytes(codec),
                **{name: round(value, 2) for name, value in best.items()},
                "repeats": repeats,
            }


def _key(bits: int, seed: int) -> PaillierPublicKey:
    """Make a key that is good for measuring: its primes follow from the seed."""
    rng = random.Random(f"{seed} {bits}")
    high = 3 << (bits // 2 - 2)
    primes = [gmpy2.next_prime(high | rng.getrandbits(bits // 2 - 2)) for _ in range(2)]
    return PaillierPublicKey(int(primes[0] * primes[1]))


# ---- the command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, measure, print, draw; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.lots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=TASKS, help="simulated for a row of pay")
    parser.add_argument("--uploads", type=int, default=UPLOADS, help="and for one of chance")
    parser.add_argument(
        "--repeats", type=int, default=5, help="of a measurement; 0: measure nothing"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--out", type=Path, help="write that list to a file, and a plot beside it")
    options = parser.parse_args(arguments)
    if options.tasks < 2 or options.uploads < 1 or options.repeats < 0:
        parser.error("--tasks: at least 2, --uploads: 1, and --repeats: 0 expected")
    about = {
        "seed": options.seed,
        "command": command("bench.lots", options, arguments),
        "machine": machine(),
    }
    started = time.monotonic()
    rows = []
    for row in measure(options.tasks, options.uploads, options.repeats, options.seed):
        rows.append({**row, **about})
        if not options.json:
            print(_line(row), flush=True)
    if not options.json:
        print(f"{time.monotonic() - started:.0f} s")
    document = record(rows, options.out, indent=1)
    if options.json:
        print(document)
    if options.out:
        from bench.lots_plot import draw

        draw(rows, options.out.with_suffix(".png"))
    return 0


def measure(tasks: int, uploads: int, repeats: int, seed: int) -> Iterator[Row]:
    """Yield all rows.

    Parameters
    ----------
    tasks, uploads, repeats, seed : int
        As the command's options.

    Yields
    ------
    dict
    """
    yield from chance_rows(uploads, seed)
    yield from pay_rows(tasks, seed)
    yield from bar_rows()
    if repeats:
        yield from opening_rows(seed, repeats)


def _line(row: Row) -> str:
    """Return what is printed of a row."""
    if row["kind"] == "chance":
        return (
            f"{row['validators']:2} validators, {row['attack']:24} lot_e6 {row['lot_e6']:7}: "
            f"drawn {row['expected']:7.3%}, simulated {row['simulated']:7.3%} "
            f"({row['low']:.3%} .. {row['high']:.3%})"
        )
    if row["kind"] == "pay":
        return (
            f"bar {row['bar_rounds']:3}, {row['strategy']:20} earns {row['expected']:7.3f}, "
            f"simulated {row['simulated']:7.3f} ({row['low']:.3f} .. {row['high']:.3f}), "
            f"honest {row['honest']:.1f}"
        )
    if row["kind"] == "bar":
        return (
            f"{row['validators']:2} validators, work {row['work']:.0%} of the pay, "
            f"bar {row['bar_rounds']:3}: lot_e6 {row['lot_e6']:7}, worst case "
            f"{row['audited_worst']:6.2%} audited, {row['opened']:6.2%} of honest uploads opened, "
            f"last {row['end_rounds']} rounds worth {row['end_gain']:.2f}"
        )
    return (
        f"{row['bits']} bits, {row['parameters']:7} parameters: {row['encrypt_ms']:8.1f} ms, "
        f"with a seed {row['encrypt_seeded_ms']:8.1f} ms, check {row['check_ms']:8.1f} ms; "
        f"upload {row['upload_bytes']}, opening {row['opening_bytes']} bytes"
    )


if __name__ == "__main__":
    raise SystemExit(main())
