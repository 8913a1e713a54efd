"""Plans: what is refused, and what a file may say."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from gradledger.errors import ConfigError, GradledgerError
from gradledger.models import dump_validation_set
from owner.plan import Plan, load_data, load_plan, scaled, slot_bits_for
from owner.run import round_terms

FIELDS = {
    "task": "digits",
    "rounds": 2,
    "architecture": {"kind": "mlp", "layers": [4, 3], "activation": "relu"},
    "devices": ["phone1", "phone2", "phone3"],
    "validators": ["val1"],
    "deposit": "10.0000 TOK",
    "price": "0.0010 TOK",
    "budget": "1.0000 TOK",
}


def test_defaults_follow_from_the_rest():
    plan = Plan.from_dict(FIELDS)
    assert plan.class_names == ("0", "1", "2")
    assert plan.devices_max == 3
    assert plan.amount("price").amount == 10
    assert plan.mode == "paillier" and plan.rule == "either"
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: expected 1..100000, got 0"),
        ({"rounds": "2"}, "rounds: expected int, got str"),
        ({"rounds": True}, "rounds: expected int, got bool"),
        ({"task": "Digits"}, "Digits"),
        ({"devices": "phone1"}, "devices: expected tuple"),
        ({"devices": ["val1"]}, "device or validator, and once"),
        ({"devices": ["phone1", "phone1"]}, "device or validator, and once"),
        ({"mode": "open"}, "mode: expected paillier or sealed, got 'open'"),
        ({"rule": "none"}, "rule: expected trend or threshold or either or both"),
        ({"price": "0.001 TOK"}, "expected one token symbol"),
        ({"budget": "1.0000 TIK"}, "expected one token symbol"),
        ({"deposit": "ten"}, "deposit: expected an amount"),
        ({"class_names": ["a", "b"]}, "class_names: expected 3, got 2"),
        ({"architecture": {"kind": "cnn"}}, "architecture of a known kind"),
        ({"tau": -0.1}, "tau: expected a number"),
        ({"tau": float("nan")}, "tau: expected a number"),
        ({"devices_max": 65_536}, "devices_max: expected 1..65535"),
        ({"seed": 2**64}, "seed: expected"),
        ({"lot": 1.5}, "lot: expected a share from 0 to 1, got 1.5"),
        ({"lot": -0.5}, "lot: expected a number"),
        ({"lot": 0.5, "mode": "sealed"}, "lot: expected 0 in sealed mode"),
        ({"bar_rounds": 10_001}, "bar_rounds: expected 0..10000, got 10001"),
        ({"reveal_sec": -1}, "reveal_sec: expected 0..2592000, got -1"),
        ({"audit_sec": 0}, "audit_sec: expected 1..2592000, got 0"),
        ({"norm_max": -1.0}, "norm_max: expected a number"),
        ({"colour": "red"}, "unknown field colour"),
        ({"description": "digits\npaid twice"}, "one line without control .* got U\\+000A"),
        ({"class_names": ["a", "b", "\x1b[8m"]}, "class_names: expected one line"),
        # what the contract refuses, some of it once the money is paid in
        ({"errors_max": 1}, "errors_max: expected 2..64, got 1"),
        ({"errors_max": 65}, "errors_max: expected 2..64, got 65"),
        ({"cost_max": 0}, "cost_max: expected 1..4294967295, got 0"),
        ({"sum_min": 2}, "sum_min: expected 3..65535, got 2"),
        ({"sum_min": 100, "devices_max": 5}, "sum_min: expected 3..5, got 100"),
        ({"devices": list("abcd"), "devices_max": 3}, "devices: expected at most 3, got 4"),
        ({"validators": [f"val{a}{b}" for a in "12345" for b in "abcdefg"]}, "at most 32, got 35"),
        ({"architecture": {"kind": "mlp", "layers": [4, 65], "activation": "relu"}}, "at most 64"),
        ({"close_after": -1}, "close_after: expected 0..65535, got -1"),
        ({"epochs": 0}, "epochs: expected 1..65535, got 0"),
        ({"batch_size": 65_536}, "batch_size: expected 1..65535, got 65536"),
        ({"measures": 0}, "measures: expected 1..64, got 0"),
        ({"measures": 9, "errors_max": 8}, "measures: expected 1..8, got 9"),
        ({"measures": 8, "errors_max": 8, "rule": "gain"}, "measures: expected 2..7, got 8"),
        ({"clip": 1e-7}, "clip: expected at least 0.000001"),
        ({"tau": 1.1}, "tau: expected at most 1.000001, got 1.1"),
        ({"deposit": "-1.0000 TOK"}, "deposit: expected at least 0.0000 TOK, got -1.0000 TOK"),
        ({"budget": "-0.0001 TOK"}, "budget: expected at least 0.0000 TOK, got -0.0001 TOK"),
        ({"price": "0.0000 TOK"}, "price: expected at least 0.0001 TOK, got 0.0000 TOK"),
        ({"price": "400000000.0000 TOK", "cost_max": 2_000_000}, "more than an asset can hold"),
    ],
)
def test_refused_plans(changes, message):
    with pytest.raises(GradledgerError, match=message):
        Plan.from_dict({**FIELDS, **changes})


def test_what_audits_are_sent_to_the_chain():
    plain = Plan.from_dict(FIELDS)
    terms = round_terms(plan=plain, version=1, cid="c", digest=bytes(32))
    assert (terms.reveal_sec, terms.audit_sec, terms.norm_max_e6) == (0, 0, 0)
    changes = {"lot": 0.25, "reveal_sec": 5, "audit_sec": 7, "norm_max": 1.5}
    terms = round_terms(Plan.from_dict({**FIELDS, **changes}), 1, "c", bytes(32))
    assert (terms.reveal_sec, terms.audit_sec, terms.norm_max_e6) == (5, 7, 1_500_000)


PRIVACY = {"epsilon": 8, "delta": 1e-5, "clip_norm": 1}


def test_a_plan_with_privacy_gets_its_noise():
    plan = Plan.from_dict({**FIELDS, "clip": 7, "privacy": PRIVACY})
    assert plan.privacy == {**PRIVACY, "rounds": 2}
    terms = plan.privacy_terms()
    assert terms is not None and terms.rounds == 2 and terms.clip_norm == 1
    assert 8 - 1e-4 < terms.epsilon() <= 8
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert Plan.from_dict(FIELDS).privacy_terms() is None
    given = {"noise_multiplier": 1.5, "delta": 1e-6, "clip_norm": 0.1, "rounds": 5}
    direct = Plan.from_dict({**FIELDS, "clip": 2, "privacy": given}).privacy_terms()
    assert direct is not None and direct.rounds == 5
    assert direct.sigma == pytest.approx(2 * 0.1 * 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -8}, "epsilon: expected a number above 0"),
        ({"epsilon": None}, "either epsilon or noise_multiplier"),
        ({"noise_multiplier": 1}, "either epsilon or noise_multiplier"),
        ({"delta": 1.0}, "delta: expected a number above 0 and at most 0.001"),
        ({"delta": None}, "delta: expected a number above 0"),
        ({"clip_norm": float("inf")}, "clip_norm: expected a number above 0"),
        ({"rounds": 1}, "rounds: expected at least the plan's 2, got 1"),
        ({"clip_norm": 2}, "cut off .* of the values .* expected clip of at least"),
        ({"sigma": 1}, "privacy: unknown field sigma"),
    ],
)
def test_a_plan_with_useless_privacy_is_refused(changes, message):
    privacy = {**PRIVACY, **changes}
    with pytest.raises(GradledgerError, match=message):
        Plan.from_dict({**FIELDS, "clip": 7, "privacy": privacy})


def test_without_errors_of_updates_all_are_accepted_in_paillier_mode():
    fields = {**FIELDS, "clip": 7, "privacy": {**PRIVACY, "update_error": False}}
    for more in ({}, {"tau": 1.0}, {"tau": 1.000001, "rule": "both"}):
        with pytest.raises(ConfigError, match="without update_error nothing can be judged"):
            Plan.from_dict({**fields, **more})
    with pytest.raises(ConfigError, match="without update_error nothing can be judged"):
        Plan.from_dict({**fields, "tau": 1.000001, "mode": "sealed"})
    terms = Plan.from_dict({**fields, "tau": 1.000001}).privacy_terms()
    assert terms is not None and not terms.update_error


def test_other_refusals_of_a_plans_privacy():
    with pytest.raises(ConfigError, match="privacy: expected Mapping"):
        Plan.from_dict({**FIELDS, "privacy": 8})
    with pytest.raises(ConfigError, match="expected the field clip_norm, delta"):
        Plan.from_dict({**FIELDS, "privacy": {"epsilon": 8}})
    privacy = {**PRIVACY, "delta": 1e-3}
    with pytest.raises(ConfigError, match=r"delta: expected less than 1 / 1000 devices, got 0.001"):
        Plan.from_dict({**FIELDS, "clip": 7, "devices_max": 1000, "privacy": privacy})
    Plan.from_dict({**FIELDS, "clip": 7, "devices_max": 999, "privacy": privacy})


def test_a_missing_field_is_named():
    fields = {name: value for name, value in FIELDS.items() if name != "price"}
    with pytest.raises(ConfigError, match="expected the field price"):
        Plan.from_dict(fields)


@pytest.mark.parametrize(
    ("devices_max", "bits"), [(1, 17), (2, 17), (3, 18), (4, 18), (5, 19), (1000, 26)]
)
def test_the_narrowest_slot_that_does_not_carry(devices_max, bits):
    assert slot_bits_for(devices_max) == bits
    assert devices_max * 65_535 < 1 << bits
    assert bits == 17 or devices_max * 65_535 >= 1 << (bits - 1)


def test_rates_are_rounded_to_millionths():
    assert scaled("eta", 0.1) == 100_000
    assert scaled("eta", 0) == 0
    with pytest.raises(ConfigError, match="eta: expected a number"):
        scaled("eta", 4294)


def test_a_plan_file_with_data_beside_it(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIELDS, "data": {"test": "test.npz"}}))
    plan, data = load_plan(path)
    assert plan == Plan.from_dict(FIELDS)
    assert data == {"test": tmp_path / "test.npz"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "plan.json: "),
        ("[]", "expected an object"),
        ('{"data": {"train": "x"}}', "expected the paths validation, test, model"),
        ('{"data": {"test": 3}}', "expected paths"),
    ],
)
def test_refused_plan_files(tmp_path, text, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path / "none.json")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib comes with Python 3.11")
def test_a_plan_in_toml(tmp_path):
    lines = [f"{k} = {json.dumps(v)}" for k, v in FIELDS.items() if k != "architecture"]
    lines += ["[architecture]", 'kind = "mlp"', "layers = [4, 3]", 'activation = "relu"']
    (tmp_path / "plan.toml").write_text("\n".join(lines))
    assert load_plan(tmp_path / "plan.toml")[0] == Plan.from_dict(FIELDS)


def test_points_from_npz_and_safetensors(tmp_path):
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "a.safetensors").write_bytes(dump_validation_set(x, y))
    for name in ("a.npz", "a.safetensors"):
        found_x, found_y = load_data(tmp_path / name)
        assert (found_x == x).all() and (found_y == y).all()
    np.savez(tmp_path / "b.npz", x=x)
    with pytest.raises(ConfigError, match="expected arrays x and y"):
        load_data(tmp_path / "b.npz")


@pytest.mark.parametrize("y", [[0.7, 1.9, 2.0], [0, 1, np.nan], ["0", "1", "2"], [0, 1, 2**63]])
def test_classes_are_whole_numbers(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.array(y))
    with pytest.raises(ConfigError, match=r"y: expected .*numbers"):
        load_data(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=np.eye(3), y=np.array([0.0, 1.0, 2.0]))
    assert load_data(tmp_path / "a.npz")[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_damaged_file_is_an_error(tmp_path, is_compressed):
    path = tmp_path / "a.npz"
    rng = np.random.default_rng(1)
    (np.savez_compressed if is_compressed else np.savez)(path, x=rng.normal(size=99), y=np.eye(9))
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[100:120] = bytes(20)  # inside the first array, the file's directory is intact
    for data in (bytes(spoilt), whole[: len(whole) // 2], whole[:1], b""):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="expected arrays x and y"):
            load_data(path)


def test_points_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "c.npz", x=np.array([object()], dtype=object), y=np.arange(1))
    with pytest.raises(ConfigError, match="expected arrays x and y"):
        load_data(tmp_path / "c.npz")
