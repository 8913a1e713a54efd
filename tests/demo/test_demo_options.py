"""The demo's options, and who misbehaves when."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from gradledger.demo import options
from gradledger.demo.options import DemoOptions
from gradledger.errors import ConfigError


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"devices": 3}, "--devices: expected 4 to 100, got 3"),
        ({"devices": 101}, "--devices: expected 4 to 100, got 101"),
        ({"rounds": 0}, "--rounds: expected 1 to 200, got 0"),
        ({"rounds": 201}, "--rounds: expected 1 to 200, got 201"),
        ({"seed": -1}, "--seed: expected 0 to 4294967295, got -1"),
        ({"key_bits": 512}, "--key-bits: expected 2048 to 8192, got 512"),
        ({"key_bits": 2050}, "--key-bits: expected a multiple of 64, got 2050"),
        ({"mode": "open"}, "--mode: expected paillier or sealed, got open"),
        ({"framework": "jax"}, "--framework: expected sklearn or torch, got jax"),
        ({"lot": -0.1}, "--lot: expected 0 to 1, got -0.1"),
        ({"lot": float("nan")}, "--lot: expected 0 to 1, got nan"),
        (
            {"lot": 0.5, "mode": "sealed"},
            "--lot: in sealed mode validators see every update, without audits",
        ),
        ({"lot": 0.5, "devices": 4}, "--devices: expected 5 to 100, got 4"),
    ],
)
def test_refused_options(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DemoOptions(**bad)
    assert str(caught.value) == message


def test_both_sides_of_each_bound() -> None:
    for good in (
        {"devices": 4},
        {"devices": 100},
        {"rounds": 1},
        {"rounds": 200},
        {"seed": 0},
        {"key_bits": 2048},
        {"lot": 1.0, "devices": 5},
    ):
        DemoOptions(**good)


@pytest.mark.parametrize(
    ("module", "settings", "extra"),
    [
        ("torch", {"framework": "torch"}, "torch"),
        ("sklearn", {}, "localnet"),
        ("matplotlib", {}, "localnet"),
    ],
)
def test_missing_library_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, settings: dict[str, Any], extra: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else real(name)
    )
    with pytest.raises(ConfigError, match=f"the extra '{extra}'"):
        DemoOptions(**settings)


def test_behaviours() -> None:
    assert options.roles(4) == ["honest", "late", "shuffled", "stale"]
    assert options.roles(5, audits=True) == ["honest", "late", "shuffled", "stale", "forger"]
    assert options.roles(10).count("honest") == 7
    late = [v for v in range(1, 16) if options.is_late("late", v)]
    stale = [v for v in range(1, 16) if options.is_stale("stale", v)]
    assert late == [2, 5, 8, 11, 14]
    assert stale == [2, 4, 6, 8, 10, 12, 14]
    assert not any(options.is_late(r, 2) or options.is_stale(r, 2) for r in ("honest", "shuffled"))


def test_account_names_ascend_and_fit() -> None:
    assert options.account_names("phone", 3) == ["phonea", "phoneb", "phonec"]
    many = options.account_names("phone", 100)
    assert len(set(many)) == 100
    assert many == sorted(many)
    assert all(len(name) <= 12 and name.isalpha() for name in many)
    with pytest.raises(ConfigError, match="no room for 30 account names"):
        options.account_names("phonephonep1", 30)
