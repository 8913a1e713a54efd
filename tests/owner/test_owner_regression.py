"""A plan whose task learns a number, and what the owner makes of such data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradledger.errors import ConfigError, GradledgerError
from gradledger.models import Mlp, Model, dump_validation_set
from gradledger.target import Target
from owner.evaluation import Quality, quality
from owner.plan import Plan, load_data, load_plan

FIELDS: dict[str, Any] = {
    "task": "walks",
    "rounds": 1,
    "architecture": {"kind": "mlp", "layers": [3, 1], "activation": "relu", "output": "identity"},
    "devices": ["phone1", "phone2", "phone3"],
    "validators": ["val1"],
    "deposit": "10.0000 TOK",
    "price": "0.0010 TOK",
    "budget": "1.0000 TOK",
    "target": {"edges": [-1, 1], "scale": 2},
}


def test_what_a_plan_may_leave_out() -> None:
    plan = Plan.from_dict(FIELDS)
    assert plan.target_terms() == Target((-1.0, 1.0), 2.0, 0.5)
    assert plan.class_names == ("below -1", "-1 to 1", "1 and more")
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    full = Target((0.0,), 3.0, 1.5, "km")
    assert Plan(**{**FIELDS, "target": full.to_dict()}).target_terms() == full
    classes = {"kind": "mlp", "layers": [3, 2], "activation": "relu"}
    assert Plan(**{**FIELDS, "target": None, "architecture": classes}).target_terms() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "gain"}, "rule: gain does not tell sound data from faulty where a number"),
        ({"target": None}, "a target and an architecture with output identity, or neither"),
        (
            {"architecture": {"kind": "mlp", "layers": [3, 2], "activation": "relu"}},
            "or neither",
        ),
        ({"class_names": ["a", "b"]}, "class_names: expected 3 strata, got 2"),
        ({"target": {"edges": [1, 0], "scale": 2}}, "edges: expected each to be greater"),
        ({"target": {"edges": [1], "scale": 0}}, "scale: expected more than 0"),
        ({"target": {"edges": [1], "scale": "2"}}, "scale: expected a number, got '2'"),
        ({"target": {"edges": [1]}}, "expected edges and scale"),
        ({"target": {"strata": 3, "scale": 2}}, "expected edges; strata are counted in plan files"),
        ({"target": {"edges": [1], "scale": 2, "colour": 1}}, "expected exactly kind, edges"),
        ({"target": [1, 2]}, "target: expected Mapping"),
    ],
)
def test_refused_plans(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GradledgerError, match=message):
        Plan.from_dict({**FIELDS, **changes})


def test_strata_are_counted_out_of_the_validation_data(tmp_path: Path) -> None:
    y = np.random.default_rng(3).normal(size=500)
    np.savez(tmp_path / "validation.npz", x=np.zeros((500, 3)), y=y)
    target = {"strata": 5, "scale": 2, "unit": "km"}
    plan_file = tmp_path / "plan.json"

    def write(target: dict[str, Any], **data: str) -> None:
        plan_file.write_text(json.dumps({**FIELDS, "target": target, "data": data}))

    write(target, validation="validation.npz")
    plan, _ = load_plan(plan_file)
    found = plan.target_terms()
    assert found == Target.by_quantiles(
        y.astype(np.float32), 5, scale=2.0, tolerance=0.5, unit="km"
    )
    assert len(plan.class_names) == 5 and plan.class_names[0].endswith(" km")
    write({**target, "edges": [1]}, validation="validation.npz")
    with pytest.raises(ConfigError, match="edges or strata, got both"):
        load_plan(plan_file)
    write(target, test="validation.npz")
    with pytest.raises(ConfigError, match="strata: expected validation data, or edges"):
        load_plan(plan_file)
    write({**target, "strata": "5"}, validation="validation.npz")
    with pytest.raises(ConfigError, match=r"strata: expected 1\.\.64, got '5'"):
        load_plan(plan_file)


def test_points_of_a_regression_are_finite_floats(tmp_path: Path) -> None:
    x, y = np.eye(3, dtype=np.float32), np.array([0.5, -1.25, 3.0])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "a.safetensors").write_bytes(dump_validation_set(x, y))
    for name in ("a.npz", "a.safetensors"):
        found = load_data(tmp_path / name, regression=True)[1]
        assert found.dtype == np.float32 and found.tolist() == y.tolist()
    for bad in (np.nan, np.inf):
        np.savez(tmp_path / "b.npz", x=x, y=[0.5, 1.0, bad])
        with pytest.raises(ConfigError, match="y: expected finite numbers"):
            load_data(tmp_path / "b.npz", regression=True)


def test_what_a_report_says_of_a_regression() -> None:
    target = Target((0.0,), 2.0, 0.5, "km")
    model = Model(Mlp([1, 1], identity=True), [1, 0])  # y = x
    found = quality(model, [[1.0], [2.0], [3.0], [4.0]], [1.0, 2.5, 3.0, 2.0], target)
    assert found.accuracy is None
    assert found.mean_absolute_error == pytest.approx(2.5 / 4)
    assert found.r2 == pytest.approx(1 - 4.25 / 2.1875)
    assert found.within_tolerance == 0.75
    assert found.told(target) == "mean absolute error 0.625 km, R^2 -0.9429, 75.00% within 0.5 km"
    same = quality(model, [[1.0], [2.0]], [1.0, 1.0], target)
    assert same.r2 is None and "R^2 unknown" in same.told(target)
    huge = quality(Model(Mlp([1, 1], identity=True), [3e38, 0]), [[9.0]], [1.0], target)
    assert huge == Quality(within_tolerance=0.0)
    classes = Model(Mlp([1, 2]), [0, 1, 0, 0])
    assert quality(classes, [[1.0], [-1.0]], [1, 1]).told(None) == "accuracy 50.00%"
    for wrong, learnt in ((classes, target), (model, None)):
        with pytest.raises(ConfigError, match="a target for a regression, and for nothing else"):
            quality(wrong, [[1.0]], [1], learnt)
    with pytest.raises(ConfigError, match="at least one"):
        quality(model, np.zeros((0, 1)), [], target)


def test_the_example_of_a_regression(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "examples" / "friedman"
    make = [sys.executable, str(folder / "make_data.py"), str(tmp_path)]
    subprocess.run(make, check=True, timeout=60, capture_output=True)
    plan, files = load_plan(tmp_path / "plan.json")
    target = plan.target_terms()
    assert target is not None and target.strata == 5 == len(plan.class_names)
    x, y = load_data(files["validation"], regression=True)
    least = np.bincount(target.stratum_of(y)).min()
    assert least >= plan.points_per_class and x.shape[1] == plan.architecture["layers"][0]
