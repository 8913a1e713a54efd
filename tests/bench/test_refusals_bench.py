"""The bench of refusals: its attacks go through the validators' checks, its tables add up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_csves_bench import LAYERS, blobs, write_mnist

from bench import csves_lab, refusals
from bench.csves_lab import STAGES, Lab
from bench.refusals import ATTACKS, Outcome
from gradledger import csves
from gradledger.chain.contract import Rule
from gradledger.demo.data import Dataset


@pytest.fixture(scope="module")
def lab() -> Lab:
    dataset = Dataset("blobs", blobs(30_000, 1), blobs(2000, 2), blobs(500, 3), 10)
    return Lab(dataset, LAYERS, csves_lab.global_models(dataset.train, LAYERS, 1, passes=2))


@pytest.fixture(scope="module")
def codes(lab: Lab) -> dict[str, Counter[str]]:
    """What became of each attack, for eight devices with three classes."""
    found: dict[str, Counter[str]] = {}
    for seed in range(8):
        outcomes, side = refusals.uploads(lab, "one_pass", 3, seed, attacked=True)
        assert side["doubt_apart"] <= 10 and side["distance"] > 0.02
        for one in outcomes:
            assert (one.stage, one.classes) == ("one_pass", 3)
            found.setdefault(one.attack, Counter())[one.code] += 1
    return found


def test_every_attack_is_made_and_the_sound_update_passes(codes: dict[str, Counter[str]]) -> None:
    assert set(codes) == set(ATTACKS)
    assert codes["sound"]["accept"] >= 7
    assert all(sum(each.values()) == 8 for each in codes.values())


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("forged", "error_mismatch"),
        ("replayed", "replayed_series"),
        ("copied", "copied_series"),
        ("zero", "no_update"),
        ("noise_small", "no_gain"),
        ("copy", "duplicate"),
        ("copy_altered", "duplicate"),
    ],
)
def test_an_attack_is_refused_with_its_own_reason(
    codes: dict[str, Counter[str]], attack: str, code: str
) -> None:
    assert codes[attack]["accept"] == 0
    assert codes[attack].most_common(1)[0][0] == code


def test_a_device_without_other_devices_attacks_alone(lab: Lab) -> None:
    outcomes, side = refusals.uploads(lab, "random", 1, 5, attacked=False)
    assert [one.attack for one in outcomes] == ["sound"]
    assert "distance" not in side
    names = {one.attack for one in refusals.uploads(lab, "random", 1, 5, attacked=True)[0]}
    assert names == set(ATTACKS) - {"claim_one", "claim_half", "issued_half"}


@pytest.mark.parametrize("ends", [(600_000, 500_000, 0), (600_000, 640_000, 0)])
def test_no_other_series_with_these_ends_pleases_the_rule_more(ends: tuple[int, int, int]) -> None:
    best = refusals.best_series(*ends)
    assert len(best) == refusals.MEASURES + 1
    assert (best[0], *best[-2:]) == ends
    least = csves.gain_excess(best, 4)
    rng = np.random.default_rng(0)
    for _ in range(300):
        middle = rng.integers(400_000, 700_000, refusals.MEASURES - 2)
        if rng.random() < 0.5:
            middle = np.sort(middle)[::-1]
        assert csves.gain_excess([ends[0], *middle.tolist(), *ends[1:]], 4) >= least
    assert csves.meets(Rule.GAIN, best, refusals.GAIN_TAU_E6, 4)


def test_rows_count_and_order() -> None:
    found = [Outcome("zero", "random", 2, "no_update")] * 3
    found += [Outcome("sound", "converged", 2, code) for code in ("accept", "accept", "no_gain")]
    found += [Outcome("sound", "random", 2, "accept")]
    rows = refusals.rows_of(found)
    assert [(r["attack"], r["stage"]) for r in rows] == [
        ("sound", "random"),
        ("sound", "converged"),
        ("zero", "random"),
    ]
    assert rows[1]["accepted_percent"] == 66.67 and rows[1]["instances"] == 3
    assert list(rows[1]["codes"].items()) == [("accept", 2), ("no_gain", 1)]
    assert rows[2]["interval"] == [0.0, 56.15]
    assert refusals.sides([{"doubt_apart": 3, "answers_apart": 1, "distance": 0.4}]) == {
        "updates": 1,
        "doubt_apart_most_e6": 3,
        "answers_apart_most": 1,
        "sound_pairs": 1,
        "sound_pair_nearest": 0.4,
    }


def test_copies_are_compared_each_with_each() -> None:
    found = refusals.copies_cost(500, devices=30)
    assert (found["devices"], found["parameters"]) == (30, 500)


def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    out = tmp_path / "refusals.json"
    given = ["--data", str(tmp_path), "--instances", "1", "--attacks", "1", "--workers", "1"]
    assert refusals.main([*given, "--classes", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "a zero update" in shown and "processor time" in shown
    document = json.loads(out.read_text())
    assert document["command"] == (
        "python -m bench.refusals --data DIR --instances 1 --attacks 1 --workers 1 --classes 2 "
        "--out FILE"
    )
    assert {row["stage"] for row in document["rows"]} == set(STAGES)
    assert len(document["rows"]) == 3 * len(ATTACKS)
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusals.main(["--data", str(tmp_path / "none")]) == 2
    assert "expected a directory with the four IDX files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        refusals.main(["--classes", "12"])
    assert "--classes: expected numbers of 1 to 9, got [12]" in capsys.readouterr().err
