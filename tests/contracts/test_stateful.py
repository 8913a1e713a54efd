"""Random histories on a real node, each step compared with a model of the contract.

``make soak`` runs more of them and writes bench/results/stateful.json. Read from the environment:
STATEFUL_STEPS, STATEFUL_SEED, STATEFUL_OUT (a file for the result).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from contracts.arena import Arena, arena
from contracts.machine import AUDIT_MOODS, JUMPS_MAX, VERDICT_MOODS, Book, ContractMachine
from contracts.test_money import NOTIFIER, REFUSER
from hypothesis.stateful import run_state_machine_as_test

from bench.machine import machine
from gradledger.chain.contract import Rule
from gradledger.localnet.network import Network

STEPS = int(os.environ.get("STATEFUL_STEPS", "2000"))
LONG_STEPS = 10_000
SEED = int(os.environ.get("STATEFUL_SEED", "1"))
OUT = os.environ.get("STATEFUL_OUT", "")
SHRINK_SEC_MAX = 60
# What is reached at least: a round's states, an upload's with its reason, refusals by the contract.
STATES = {
    *("0 to 1", "1 to 2", "1 to 6", "2 to 3", "2 to 6", "3 to 4", "3 to 5", "4 to 5", "4 to 6"),
    *("5 to 6", "6 to 7"),
}
UPLOADS = {
    *("1 to 2, reason 1", "1 to 3, reason 17", "1 to 3, reason 20", "1 to 4, reason 0"),
    *("4 to 2, reason 1", "4 to 3, reason 21", "4 to 5, reason 0"),
    *("5 to 2, reason 1", "5 to 3, reason 16", "5 to 3, reason 22"),
}
CODES = {"barred", "lots_missing", "not_drawing", "deadline_passed", "deadline_not_passed"}
RULES_PER_HISTORY, HISTORIES_PER_SEED = 100, 12


@pytest.fixture
def stage(make_network: Callable[[], Network], tmp_path: Path) -> Iterator[Arena]:
    with arena(make_network(), tmp_path, refuser=REFUSER, notifier=NOTIFIER) as made:
        yield made


def test_random_histories_end_as_the_model_says(
    stage: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history that fails is made shorter, for a minute, and printed as calls of its rules."""
    bound = "hypothesis.internal.conjecture.engine.MAX_SHRINKING_SECONDS"
    monkeypatch.setattr(bound, SHRINK_SEC_MAX, raising=False)
    book, begin, seed = Book(), time.monotonic(), SEED
    Machine = type("Machine", (ContractMachine,), {"arena": stage, "book": book})
    settings = hypothesis.settings(
        max_examples=HISTORIES_PER_SEED,
        stateful_step_count=RULES_PER_HISTORY,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    play_every_mood(Machine())
    while book.steps < STEPS:
        print(f"seed {seed}: {book.steps} steps done", flush=True)
        run_state_machine_as_test(hypothesis.seed(seed)(Machine), settings=settings)
        seed += 1
    document = {
        "command": f"make soak SEED={SEED} STEPS={STEPS}",
        "seed": SEED,
        "seconds": round(time.monotonic() - begin, 1),
        **book.document(),
        "contract_sha256": stage.world.contract_hash(),
        "chain": stage.client.get_info().server_version,
        "machine": machine(),
    }
    print(json.dumps(document, indent=2))
    if OUT:
        Path(OUT).write_text(json.dumps(document, indent=2) + "\n")
    assert set(book.states) >= STATES
    assert set(book.uploads) >= UPLOADS
    if STEPS >= LONG_STEPS:  # a short run may leave one out; test_rejections.py has them all
        assert {code for codes in book.refused.values() for code in codes} >= CODES


def play_every_mood(history: ContractMachine) -> None:
    """Play whole rounds of tasks with all uploads audited, with some and with none.

    Chance alone leaves out one phase or another of a short run.
    """
    history.begin(
        modes=(0, 0, 0),
        silences=(1, 0, 0),
        devices_max=5,  # without the one whose contract refuses its pay
        members=(6, 6, 6),
        validators=(4, 4, 4),
        crowded=(True, False, False),
        funds=(100_000,) * 3,
        rules=(Rule.THRESHOLD,) * 3,
        lots=(1_000_000, 50_000, 0),
        bars=(1, 0, 0),
        reveals=(300, 0, 300),
        producers=False,
        turn=0,
    )
    for task, moods in ((0, AUDIT_MOODS), (1, AUDIT_MOODS), (2, VERDICT_MOODS)):
        for turn in range(len(moods)):
            history.turn, history.jumps_left = turn, JUMPS_MAX
            history.play_round(task)
    history.teardown()
