"""The terms of differential privacy, the noise and the account, without any network."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from device_sdk.budget import Budget
from gradledger import card, envelope
from gradledger.card import TaskCard
from gradledger.codec import Codec
from gradledger.errors import ConfigError, EnvelopeError, ModelError, PrivacyError
from gradledger.models import Model, read_metadata
from gradledger.privacy import METADATA_KEY, Privacy, Spent, gaussian

TERMS = Privacy.calibrate(clip_norm=1, delta=1e-5, rounds=10, epsilon=8)
PHI = NormalDist().cdf


def delta_of(epsilon: float, multiplier: float) -> float:
    """Return the least delta of a Gaussian mechanism: Balle and Wang 2018, theorem 8."""
    half = 1 / (2 * multiplier)
    far = epsilon * multiplier
    return PHI(half - far) - math.exp(epsilon) * PHI(-half - far)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
@pytest.mark.parametrize("rounds", [1, 7, 100])
def test_calibration_agrees_with_the_closed_form(epsilon: float, delta: float, rounds: int) -> None:
    terms = Privacy.calibrate(clip_norm=0.5, delta=delta, rounds=rounds, epsilon=epsilon)
    together = terms.noise_multiplier / math.sqrt(rounds)
    assert delta_of(epsilon, together) == pytest.approx(delta, rel=1e-4)
    assert delta_of(epsilon, together) <= delta * (1 + 1e-9)
    assert terms.epsilon_e6 / 1e6 <= epsilon + 1e-6
    assert terms.sigma == terms.noise_multiplier * 2 * 0.5
    # One step less noise would not do.
    less = replace(terms, noise_multiplier_e6=terms.noise_multiplier_e6 - 2)
    assert less.epsilon() > epsilon


def test_the_account_agrees_with_another_accountant() -> None:
    for rounds, devices in ((1, 1), (4, 1), (10, 1), (10, 3)):
        other = pld.PLDAccountant()
        noise = TERMS.noise_multiplier * math.sqrt(devices)
        other.compose(dp_accounting.GaussianDpEvent(noise), rounds)
        ours = TERMS.epsilon(rounds, devices=devices)
        assert ours == pytest.approx(other.get_epsilon(TERMS.delta), rel=1e-3)
    assert TERMS.epsilon() == pytest.approx(8, abs=1e-4)
    assert TERMS.epsilon(0) == 0
    assert TERMS.epsilon(1) < TERMS.epsilon(2) < TERMS.epsilon()
    assert TERMS.epsilon(devices=3) < TERMS.epsilon(devices=2) < TERMS.epsilon()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "epsilon: expected a number above 0"),
        ({"epsilon": -1.0}, "epsilon: expected a number above 0"),
        ({"epsilon": float("nan")}, "epsilon: expected a number above 0"),
        ({"epsilon": float("inf")}, "epsilon: expected a number above 0 and at most 1000"),
        ({"epsilon": "8"}, "epsilon: expected a number above 0"),
        ({"epsilon": True}, "epsilon: expected a number above 0"),
        ({"epsilon": 1001}, "at most 1000, got 1001"),
        ({"epsilon": 1e-7}, "epsilon: expected at least 1e-06"),
        ({"delta": 0}, "delta: expected a number above 0"),
        ({"delta": 1}, "delta: expected a number above 0 and at most 0.001, got 1"),
        ({"delta": 0.0011}, "delta: expected a number above 0 and at most 0.001"),
        ({"delta": 1e-13}, "delta: expected at least 1e-12"),
        ({"clip_norm": float("inf")}, "clip_norm: expected a number above 0"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0"),
        ({"clip_norm": 4295}, "clip_norm: expected a number above 0 and at most 4294"),
        ({"rounds": 0}, "rounds: expected 1..100000, got 0"),
        ({"rounds": 1.0}, "rounds: expected 1..100000"),
        ({"noise_multiplier": 1.0}, "either epsilon or noise_multiplier"),
        ({"epsilon": None}, "either epsilon or noise_multiplier"),
        ({"epsilon": None, "noise_multiplier": -1}, "noise_multiplier: expected a number above 0"),
        ({"epsilon": None, "noise_multiplier": 0.01}, "protects nothing"),
        ({"epsilon": None, "noise_multiplier": 0.04}, "an epsilon of at most 1000"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"clip_norm": 1.0, "delta": 1e-5, "rounds": 10, "epsilon": 8.0}
    with pytest.raises((ConfigError, PrivacyError), match=message):
        Privacy.calibrate(**{**given, **changes})


def test_both_sides_of_the_bounds_are_accepted() -> None:
    Privacy.calibrate(clip_norm=4294.967295, delta=1e-3, rounds=1, epsilon=1000)
    least = Privacy.calibrate(clip_norm=1e-6, delta=1e-12, rounds=100_000, epsilon=1)
    assert (least.clip_norm_e6, least.delta_e12) == (1, 1)
    given = Privacy.calibrate(clip_norm=1, delta=1e-5, rounds=1, noise_multiplier=1.0000001)
    assert given.noise_multiplier_e6 == 1_000_001  # up, and delta down
    given.check_claim()
    most = Privacy.calibrate(clip_norm=1, delta=1e-3, rounds=1, noise_multiplier=1e6)
    assert most.epsilon() == 0 and most.epsilon_e6 == 1
    most.check_claim()


def test_without_the_library_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['dp_accounting'] = None\n"
        "from gradledger.errors import ConfigError\n"
        "from gradledger.privacy import Privacy\n"
        "try: Privacy.calibrate(clip_norm=1, delta=1e-5, rounds=1, epsilon=1)\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'gradledger[privacy]'" in done.stdout


# ---- the mechanism ---------------------------------------------------------------------------


def test_noise_is_gaussian() -> None:
    """Each bound is crossed by chance less than once in 10^9 runs."""
    n = 400_000
    drawn = gaussian(n)
    assert drawn.shape == (n,)
    assert abs(drawn.mean()) < 6.2 / math.sqrt(n)
    assert abs(drawn.var() - 1) < 6.2 * math.sqrt(2 / n)
    # Kolmogorov's distance: Massart's bound, 2 exp(-2 n d^2) = 10^-10.
    ordered = np.sort(drawn)
    cdf = np.array([PHI(value) for value in ordered[::50]])
    rank = np.arange(n)[::50] / n
    assert np.abs(cdf - rank).max() < math.sqrt(math.log(2e10) / (2 * n)) + 1 / n
    # Neighbours, and the two halves that share their radii, do not hang together.
    for lag in (1, n // 2):
        assert abs((drawn[:-lag] * drawn[lag:]).mean()) < 6.5 / math.sqrt(n - lag)


def test_noise_comes_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", lambda count: asked.append(count) or b"\0" * count)
    assert gaussian(0).shape == (0,)
    assert np.isfinite(gaussian(3)).all()  # the smallest radius' bits
    assert asked == [0, 32]
    assert gaussian(2)[0] == math.sqrt(2 * 64 * math.log(2))
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    assert np.isfinite(gaussian(5)).all()


def test_the_noise_of_an_update_has_the_promised_deviation() -> None:
    n = 300_000  # more than one block
    terms = Privacy.calibrate(clip_norm=2, delta=1e-6, rounds=3, epsilon=2)
    noise = terms.protect(np.zeros(n))
    assert noise.std() == pytest.approx(terms.sigma, rel=6.2 * math.sqrt(1 / (2 * n)))
    blocks = noise[: 1 << 18].std(), noise[1 << 18 :].std()
    for found, size in zip(blocks, (1 << 18, n - (1 << 18)), strict=True):
        assert found == pytest.approx(terms.sigma, rel=6.2 * math.sqrt(1 / (2 * size)))
    assert not np.array_equal(terms.protect(np.zeros(9)), terms.protect(np.zeros(9)))


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e3, 1e30, 1e300])
def test_the_clip_is_exact(scale: float) -> None:
    rng = np.random.default_rng(3)
    for size in (1, 2, 1000):
        update = rng.normal(size=size) * scale
        length = np.linalg.norm(update / scale) * scale
        found = TERMS.clipped(update)
        if length <= 1:
            np.testing.assert_array_equal(found, update)
        else:
            assert 1 - 1e-11 <= math.fsum(found**2) <= 1
            np.testing.assert_allclose(found, update / length, rtol=1e-10)
    assert not TERMS.clipped(np.zeros(4)).any()


def test_the_clip_refuses_what_is_no_update() -> None:
    for update in (np.array([1.0, np.nan]), np.array([np.inf]), np.zeros((2, 2))):
        with pytest.raises(ConfigError, match="one row of finite values"):
            TERMS.clipped(update)


def test_quantising_what_was_quantised_changes_nothing() -> None:
    """The update that `train` returns is what `seal` encrypts, code by code."""
    for clip_e6 in (1, 16_000_000, 2**32 - 1):
        codec = Codec(clip_e6, 26, 65_536)
        codes = np.arange(65_536).astype(np.uint16)
        np.testing.assert_array_equal(codec.quantise(codec.dequantise(codes)), codes)


def test_a_codec_that_cuts_the_noise_is_refused() -> None:
    least = math.ceil(4 * TERMS.sigma * 1e6)
    TERMS.check_codec(least)
    with pytest.raises(PrivacyError, match=r"cut off 0\.01% .* expected clip of at least 15\.18"):
        TERMS.check_codec(least - 1)
    with pytest.raises(PrivacyError, match=r"clip 1 would cut off 79\.2.% of the values"):
        TERMS.check_codec(1_000_000)


# ---- card, model file, budget ----------------------------------------------------------------


def make_card(privacy: Privacy | None) -> TaskCard:
    """Return a card."""
    return TaskCard(
        task="digits",
        owner="alice",
        description="",
        classes=("0", "1"),
        architecture={"kind": "mlp", "layers": [4, 2], "activation": "relu"},
        owner_enc_key=bytes(range(32)),
        paillier_n=None,
        privacy=privacy,
    )


def altered(changes: dict[str, Any]) -> bytes:
    """Return the bytes of a card with privacy whose text was changed."""
    found = envelope.parse(make_card(TERMS).to_bytes())
    document = json.loads(found.payload())
    privacy = changes.pop("privacy", {})
    document.update(changes)
    document["privacy"].update(privacy)
    header = replace(found.header, payload_bytes=0)
    return envelope.plain(header, json.dumps(document).encode())


def test_a_card_carries_the_terms() -> None:
    again = TaskCard.from_bytes(make_card(TERMS).to_bytes())
    assert again.privacy == TERMS
    document = json.loads(envelope.parse(make_card(TERMS).to_bytes()).payload())
    assert document["format"] == card.FORMAT_PRIVACY
    assert document["privacy"] == {
        "mechanism": "gaussian",
        "clip_norm_e6": 1_000_000,
        "noise_multiplier_e6": 1_898_091,
        "delta_e12": 10_000_000,
        "rounds": 10,
        "epsilon_e6": 8_000_000,
        "update_error": True,
    }
    plain = json.loads(envelope.parse(make_card(None).to_bytes()).payload())
    assert plain["format"] == card.FORMAT and "privacy" not in plain
    assert TaskCard.from_bytes(make_card(None).to_bytes()).privacy is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, "card format 1 does not go with the keys: privacy"),
        ({"format": 4}, "card format 1, 2 or 3, got 4"),
        ({"privacy": {"mechanism": "laplace"}}, "the mechanism gaussian"),
        ({"privacy": {"rounds": 0}}, "rounds: expected 1..100000, got 0"),
        ({"privacy": {"rounds": 1.5}}, "rounds: expected 1..100000, got 1.5"),
        ({"privacy": {"delta_e12": 10**12}}, "delta_e12: expected"),
        ({"privacy": {"epsilon_e6": True}}, "epsilon_e6: expected"),
        ({"privacy": {"clip_norm_e6": 2**32}}, "clip_norm_e6: expected"),
        ({"privacy": {"noise_multiplier_e6": 0}}, "noise_multiplier_e6: expected"),
        ({"privacy": {"colour": 1}}, "unexpected keyword argument"),
        ({"privacy": {"update_error": 1}}, "update_error: expected true or false, got 1"),
    ],
)
def test_a_card_with_wrong_terms_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvelopeError, match=message):
        TaskCard.from_bytes(altered(changes))


def test_a_claim_is_computed_and_not_believed() -> None:
    TERMS.check_claim()
    replace(TERMS, epsilon_e6=TERMS.epsilon_e6 + 2).check_claim()  # another machine's rounding
    for claim in (1_000_000, TERMS.epsilon_e6 - 3, TERMS.epsilon_e6 + 3):
        with pytest.raises(PrivacyError, match="with its noise it is 8 "):
            replace(TERMS, epsilon_e6=claim).check_claim()
    with pytest.raises(PrivacyError, match="protects nothing"):
        replace(TERMS, noise_multiplier_e6=1).check_claim()


def test_a_model_says_what_is_spent() -> None:
    model = Model.random_glorot({"kind": "mlp", "layers": [4, 2], "activation": "relu"}, 0)
    spent = TERMS.spent(3)
    data = model.to_bytes({METADATA_KEY: spent.to_text()})
    np.testing.assert_array_equal(Model.from_bytes(data).vector, model.vector)
    assert Spent.from_text(read_metadata(data)[METADATA_KEY]) == spent
    assert METADATA_KEY not in read_metadata(model.to_bytes())
    assert spent.epsilon == pytest.approx(TERMS.epsilon(3), abs=1e-6) and spent.delta == 1e-5
    assert TERMS.spent(0) == Spent(0, 0, 0)
    assert TERMS.spent(11) == TERMS.spent(10) and TERMS.spent(11).epsilon_e6 == 8_000_000
    with pytest.raises(ModelError):
        read_metadata(b"\0" * 7)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "[" * 100_000),
        '{"rounds":-1,"epsilon_e6":1,"delta_e12":1}',
        '{"rounds":1,"epsilon_e6":1.5,"delta_e12":1}',
        '{"rounds":1,"epsilon_e6":1,"x":1}',
    ],
)
def test_nonsense_in_a_models_metadata_is_refused(text: str) -> None:
    with pytest.raises(PrivacyError, match="expected rounds, epsilon_e6 and delta_e12"):
        Spent.from_text(text)


def test_a_wrong_account_in_a_model_is_refused() -> None:
    TERMS.check_spent(TERMS.spent(3), 3)
    wrong = [TERMS.spent(2), replace(TERMS.spent(3), epsilon_e6=1_000_000)]
    for said in [*wrong, replace(TERMS.spent(3), delta_e12=1)]:
        with pytest.raises(PrivacyError, match="the model of round 3 says epsilon"):
            TERMS.check_spent(said, 3)


def test_the_budget_is_counted_and_never_below_what_was_spent() -> None:
    three = replace(TERMS, rounds=3)
    budget = Budget()
    budget.charge(4, three)  # it came late: rounds 1 to 3 were others'
    with pytest.raises(PrivacyError, match="round 4 has an update with noise already"):
        budget.charge(4, three)
    budget.observe(4)  # its own
    assert (budget.spent, budget.newest) == (1, 4)
    budget.charge(5, three)
    budget.observe(7)  # another process of this account: up to two more
    assert budget.spent == 4
    with pytest.raises(PrivacyError, match="is for 3 rounds, and 4 may be used"):
        budget.charge(8, three)
    restarted = Budget()
    restarted.observe(2)  # at most two uploads, whatever they were
    restarted.charge(3, three)
    with pytest.raises(PrivacyError, match="is for 3 rounds"):
        restarted.check(three)


def test_a_budget_in_a_file_survives_restarts(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    three = replace(TERMS, rounds=3)
    first = Budget(path, holder="phone1 in digits")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.charge(7, three)  # drawn, and never recorded on chain
    second = Budget(path, holder="phone1 in digits")
    assert (second.spent, second.newest) == (1, 7)
    with pytest.raises(PrivacyError, match="round 7 has an update with noise already"):
        second.charge(7, three)
    second.observe(7)
    second.charge(8, three)
    with pytest.raises(PrivacyError, match="round 8 has an update with noise already"):
        first.charge(8, three)  # the other process of this device
    first.charge(9, three)
    with pytest.raises(PrivacyError, match="is for 3 rounds, and 3 may be used"):
        second.charge(10, three)
    # A crash while a line was written, and while the first one was.
    whole = path.read_bytes()
    path.write_bytes(whole + b"4 1")
    third = Budget(path, holder="phone1 in digits")
    assert (third.spent, third.newest) == (3, 9) and path.read_bytes() == whole
    path.write_bytes(whole[:20])
    assert Budget(path, holder="phone1 in digits").spent == 0
    Budget(path, holder="phone1 in digits").charge(1, three)


@pytest.mark.parametrize(
    "content", [b"notes of mine", b"\0" * 5_000_000, b'{"privacy_budget": 1, "holder": "b"}\n']
)
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "budget"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected a privacy budget that begins with"):
        Budget(path, holder="a")
    assert path.read_bytes() == content
    with pytest.raises(ConfigError, match="cannot be used"):
        Budget(tmp_path / "none" / "budget")


def test_nonsense_in_a_budget_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "budget"
    Budget(path)
    head = path.read_bytes()
    for line in (b"1\n", b"1 2 3\n", b"-1 2\n", b"1 2\n\n", b"9" * 5000 + b" 1\n", b"a b\n"):
        path.write_bytes(head + line)
        with pytest.raises(ConfigError, match="expected a privacy budget"):
            Budget(path)
