"""The bench of CSVES: its instances, its training, its tables."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench import csves as bench
from bench import csves_figures, csves_lab
from bench.csves_lab import DATA, STAGES, Lab
from device_sdk.training import TrainingData, TrainingRecipe
from device_sdk.training_sklearn import sklearn_fit
from gradledger.demo.data import Dataset, Samples
from gradledger.models import Mlp, Model

LAYERS = (16, 8, 10)


def blobs(points: int, seed: int) -> Samples:
    """Ten classes that a small network tells apart."""
    centres = np.random.default_rng(0).random((10, LAYERS[0]), dtype=np.float32)
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(points) % 10)
    noise = rng.normal(0, 0.05, (points, LAYERS[0])).astype(np.float32)
    return Samples(centres[y] + noise, y.astype(np.int64))


@pytest.fixture(scope="module")
def lab() -> Lab:
    dataset = Dataset("blobs", blobs(3000, 1), blobs(2000, 2), blobs(500, 3), 10)
    return Lab(dataset, LAYERS, csves_lab.global_models(dataset.train, LAYERS, 1, passes=2))


def test_training_follows_the_recipe_like_the_devices_helper() -> None:
    points = blobs(210, 4)
    sorted_as_devices_do = TrainingData(points.x, points.y)
    recipe = TrainingRecipe(2, 3, 32, 50_000, 4, 7)
    model = Model.random_glorot(Mlp(LAYERS), 5)
    check = blobs(100, 5)
    theirs, errors = sklearn_fit(points.x, points.y, recipe)(model, (check.x, check.y))
    ours, measured = csves_lab.train(
        model,
        Samples(sorted_as_devices_do.x, sorted_as_devices_do.y),
        recipe,
        lambda arrays: (model.with_arrays(arrays).error_micro(check.x, check.y),),
    )
    np.testing.assert_allclose(model.with_arrays(ours).vector, theirs.vector, atol=1e-5)
    assert [each for (each,) in measured] == errors


def test_class_counts_follow_the_papers_law() -> None:
    found = Counter(bench.instance_counts(20_000, 10, 3))
    assert sorted(found) == list(range(1, 10))
    for count, tickets in ((1, 10), (2, 45), (5, 252), (9, 10)):  # of 1,022: binomials of 10
        assert found[count] / 20_000 == pytest.approx(tickets / 1022, abs=0.01)
    assert Counter(bench.topped_up([1, 1, 2], 4, 2)) == {2: 1, 3: 2}


@pytest.mark.parametrize("count", [1, 3, 9])
def test_an_instance_is_of_its_classes(lab: Lab, count: int) -> None:
    one = csves_lab.draw(lab, count, 11)
    assert len(one.classes) == count
    assert set(one.points.y) == set(one.validation.y) == set(one.classes)
    per_class = np.unique(one.validation.y, return_counts=True)[1]
    assert per_class.sum() == 100 and per_class.max() - per_class.min() <= 1
    again = csves_lab.draw(lab, count, 11)
    np.testing.assert_array_equal(one.points.x, again.points.x)
    np.testing.assert_array_equal(one.validation.x, again.validation.x)
    assert set(csves_lab.draw(lab, count, 12).points.y) <= set(range(10))


def test_faults(lab: Lab) -> None:
    one = csves_lab.draw(lab, 3, 11)
    sound = one.points
    assert csves_lab.spoil(lab, one, "valid") is sound
    shuffled = csves_lab.spoil(lab, one, "labels")
    assert Counter(shuffled.y.tolist()) == Counter(sound.y.tolist())
    drawn = csves_lab.spoil(lab, one, "random_labels")
    assert set(drawn.y) == set(one.classes)
    for wrong in (shuffled, drawn):
        np.testing.assert_array_equal(wrong.x, sound.x)
        assert np.mean(wrong.y == sound.y) == pytest.approx(1 / 3, abs=0.06)
    noise = csves_lab.spoil(lab, one, "pixels")
    np.testing.assert_array_equal(noise.y, sound.y)
    assert noise.x.shape == sound.x.shape and noise.x.mean() == pytest.approx(0.5, abs=0.02)
    alone = csves_lab.draw(lab, 1, 11)
    assert set(csves_lab.spoil(lab, alone, "labels").y) == set(range(10))


def test_series_fall_with_sound_data_and_repeat(lab: Lab) -> None:
    one = csves_lab.draw(lab, 4, 2)
    wrong, doubts = csves_lab.series(lab, one, "one_pass", "valid")
    assert len(wrong) == len(doubts) == csves_lab.EPOCHS * csves_lab.PER_EPOCH + 1
    model = lab.model("one_pass", 0)
    assert wrong[0] == model.error_micro(one.validation.x, one.validation.y)
    assert doubts[0] == model.doubt_micro(one.validation.x, one.validation.y)
    assert doubts[-1] < doubts[0]
    faulty = csves_lab.series(lab, one, "one_pass", "labels")
    assert faulty[0, -1] > 100_000 > wrong[-1]
    again = csves_lab.series(lab, one, "one_pass", "labels")
    np.testing.assert_array_equal(again, faulty)
    assert not np.array_equal(lab.model("random", 1).vector, lab.model("random", 2).vector)


@pytest.mark.parametrize(
    ("accepted", "instances", "low", "high"),
    [(0, 10, 0.0, 27.75), (5, 10, 23.66, 76.34), (10, 10, 72.25, 100.0), (2, 200, 0.27, 3.57)],
)
def test_wilson(accepted: int, instances: int, low: float, high: float) -> None:
    assert bench.wilson(accepted, instances) == pytest.approx((low, high), abs=0.01)


def paper_rows(stage: str) -> list[dict]:
    """Rows that repeat the paper's rates at one stage, and accept nothing elsewhere."""
    rows = []
    for each in STAGES:
        for data in DATA:
            for rule in ("trend", "threshold"):
                rates = bench.PAPER[rule, "valid" if data == "valid" else "faulty"][1]
                for count, rate in enumerate(rates, 1):
                    accepted = round(10 * rate) if each == stage else 0
                    row = {"rule": rule, "stage": each, "data": data, "classes": count}
                    rows.append({**row, "instances": 1000, "accepted": accepted})
    return rows


def test_distance_is_zero_for_the_papers_own_rates() -> None:
    found = {(r["stage"], r["faulty"]): r for r in bench.distances(paper_rows("one_pass"))}
    assert len(found) == 9
    for (stage, _), row in found.items():
        assert (row["all"] == 0.0) == (stage == "one_pass")
    # the weighted means of the paper's rates: 60 % and 99 % of sound, 33 % and 82 % of faulty data
    assert found["random", "pixels"]["valid_tables"] == pytest.approx(80, abs=1)


def test_goals_are_met_on_the_bound() -> None:
    def row(data: str, accepted: int) -> dict:
        cell = {"rule": "gain", "stage": "random", "data": data, "classes": 2}
        return {**cell, "instances": 200, "accepted": accepted}

    pairs = [("valid", 198, 197), ("labels", 2, 3), ("random_labels", 2, 3), ("pixels", 10, 11)]
    for data, just, missed in pairs:
        found = bench.goals([row(data, just), row(data, missed), {**row(data, 0), "rule": "trend"}])
        assert [each["met"] for each in found] == [True, False]


def test_separation_is_by_the_change_from_the_error_before() -> None:
    found = np.zeros((200, 3, 4, 2, 3), dtype=np.int64)
    found[..., 0] = 500_000
    found[:, :, 0, :, 1:] = 300_000  # sound data: falls by 0.2
    found[:, :, 3, 0, 1:] = 300_000  # noise: so do its wrong answers,
    found[50:, :, 3, 1, 1:] = 450_000  # but for three quarters the doubt less
    rows = bench.separation(np.full(200, 4), found)
    assert [row["stage"] for row in rows] == list(STAGES)
    for row in rows:
        assert row["classes"] == 4
        assert row["pixels_accepted_percent_by_wrong_answers"] == 100.0
        assert row["pixels_accepted_percent_by_doubt"] == 25.0


def test_figures_and_the_least_squares_line() -> None:
    exact = csves_figures.cost_document([1000, 2000, 4000], [0.011, 0.021, 0.041])
    assert exact["slope_us_per_point"] == pytest.approx(10)
    assert exact["intercept_ms"] == pytest.approx(1)
    assert exact["r_squared"] == 1
    rough = csves_figures.cost_document([1000, 2000, 3000], [0.01, 0.04, 0.01])
    assert rough["r_squared"] == pytest.approx(0)
    assert csves_figures.cost_png(exact).startswith(b"\x89PNG")
    seven = {"decentralised": [0.1, 0.9, 0.95], "centralised": [0.1, 0.92, 0.94]}
    assert csves_figures.accuracy_png(seven).startswith(b"\x89PNG")
    costs = csves_figures.data_costs(500, 1)
    assert len(costs) == 500 and min(costs) >= 320 and max(costs) <= 60_000


def write_mnist(folder: Path) -> None:
    """Write four IDX files: a bright bar on each image says its class."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 9000), ("t10k", 500)):
        y = np.arange(count) % 10
        x = rng.integers(60, size=(count, 28, 28), dtype=np.uint8)
        x[np.arange(count), 2 * y + 2, 4:24] = 250
        head = struct.pack(">4I", 0x803, count, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + x.tobytes())
        labels = struct.pack(">2I", 0x801, count) + y.astype(np.uint8).tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(labels)


def test_the_command_prints_and_writes_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    out, dump = tmp_path / "csves.json", tmp_path / "series.npz"
    given = ["--data", str(tmp_path), "--instances", "1", "--workers", "1", "--seed", "3"]
    assert bench.main([*given, "--json", "--out", str(out), "--series", str(dump)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    held = set(bench.instance_counts(1, 10, 3))
    rows = document["rows"]
    assert len(rows) == 3 * 3 * 4 * len(held)
    for row in rows:
        assert set(row) == {"rule", "stage", "data", "classes", "instances", "accepted"}
        assert 0 <= row["accepted"] <= row["instances"]
    for rule in ("trend", "threshold", "gain"):
        assert sum(r["instances"] for r in rows if r["rule"] == rule) == 3 * 4
    with np.load(dump, allow_pickle=False) as arrays:
        assert arrays["series"].shape[:4] == (1, 3, 4, 2)
    assert not document["goals"]
    assert document["command"] == (
        "python -m bench.csves --data DIR --instances 1 --workers 1 --seed 3 --json --out FILE "
        "--series FILE"
    )
    separation = [
        {"stage": "random", "classes": 2}
        | {f"pixels_accepted_percent_by_{name}": 1.0 for name in ("wrong_answers", "doubt")}
    ]
    full = {**document, "goals": bench.goals(rows), "separation": separation}
    lines = "\n".join(bench.tables(full))
    assert "stage one_pass" in lines and "goals of the third rule" in lines


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--data", str(tmp_path / "none")]) == 2
    assert "expected a directory with the four IDX files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--instances", "0"])
    assert "--instances: expected at least 1, got 0" in capsys.readouterr().err
