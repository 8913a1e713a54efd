"""Rounds with differential privacy on a real node and a real Kubo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_scene import PARAMETERS, Scene

from device_sdk import Paid
from gradledger.chain.contract import Mode, VerdictCode
from gradledger.codec import Codec
from gradledger.errors import ConfigError, PrivacyError, RoundClosedError, RuleNotMetError
from gradledger.models import Model
from gradledger.privacy import METADATA_KEY, Privacy

MakeScene = Callable[..., Scene]
TERMS = Privacy.calibrate(clip_norm=1, delta=1e-5, rounds=2, epsilon=20)
CLIP_E6 = 10_000_000
ANY_ERROR = 1_000_001  # a threshold that every error meets
A = VerdictCode.ACCEPT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def private(scene: MakeScene, **options: Any) -> Scene:
    """Return a task with the terms of this file."""
    return scene(create={"clip_e6": CLIP_E6}, **{"privacy": TERMS, **options})


def moved(step: float) -> Callable[..., tuple[Model, list[int]]]:
    """Return a training that adds `step` to every parameter and boasts of its errors."""
    return lambda model, _: (model.with_vector(model.vector + step), [999_999, 1])


def test_terms_show_epsilon_and_a_bound_refuses(scene: MakeScene) -> None:
    s = private(scene)
    device = s.device()
    terms = device.terms()
    assert terms.privacy == TERMS and terms.delta == 1e-5
    assert terms.epsilon == pytest.approx(20, abs=1e-4)
    assert terms.epsilon_round == TERMS.epsilon(1)
    assert terms.epsilon_sum is None  # for the errors of single updates are on chain
    text = str(terms)
    assert f"L2 norm 1 and gets Gaussian noise of standard deviation {TERMS.sigma:.4g}" in text
    assert "in all, over 2 rounds: epsilon 20 at delta 1e-05; one round: epsilon 12.79" in text
    assert "on chain stands the error of your noisy update" in text and "sums" not in text
    for bound in (19.9, 0.0, float("nan")):
        with pytest.raises(PrivacyError, match=r"at most .* expected, the task has 20"):
            device.join(classes=[0], epsilon_max=bound)
    member = s.contract.member(s.task, device.account)
    assert member is not None and not member.joined
    device.join(classes=[0], epsilon_max=20)


def test_a_task_without_noise_says_so_and_meets_no_bound(scene: MakeScene) -> None:
    device = scene().device()
    terms = device.terms()
    assert terms.privacy is None and terms.epsilon is None and terms.epsilon_sum is None
    assert "no noise is added to your update" in str(terms)
    with pytest.raises(PrivacyError, match="the task has no differential privacy"):
        device.join(classes=[0], epsilon_max=1000.0)


def test_what_only_sums_give_away_is_told_where_nothing_else_is(scene: MakeScene) -> None:
    silent = replace(TERMS, update_error=False)
    terms = private(scene, mode=Mode.SEALED, privacy=silent).device().terms()
    assert terms.epsilon_sum is None and "sums" not in str(terms)
    s = private(scene, privacy=silent)
    device = s.device()
    terms = device.terms()
    assert terms.epsilon_sum == TERMS.epsilon(devices=3)
    assert "who sees only sums with 2 more honest devices: about epsilon 9.9" in str(terms)
    assert "on chain stands the error of the model you got, not yours" in str(terms)
    device.join(classes=[0])
    s.issue(1)
    base = s.open(1, tau=ANY_ERROR)
    with device.round(wait_sec=20) as round_:
        update = round_.train(moved(-100.0), examples=9)
        assert update.errors == (base.error_micro(*round_.validation),)
        receipt = round_.upload(update)
    s.attest(1, receipt.hash, [A] * 3)
    assert isinstance(receipt.wait(timeout_sec=20), Paid)


def test_a_false_claim_is_refused(scene: MakeScene) -> None:
    device = private(scene, privacy=replace(TERMS, epsilon_e6=1_000_000)).device()
    for ask in (device.terms, lambda: device.join(classes=[0])):
        with pytest.raises(
            PrivacyError, match="the card claims epsilon 1; with its noise it is 20"
        ):
            ask()


def test_a_codec_that_cuts_the_noise_of_others_is_refused(scene: MakeScene) -> None:
    with pytest.raises(PrivacyError, match="clip 1 would cut off"):
        scene(privacy=TERMS).device().terms()


def test_a_device_without_the_library_stays_away(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = private(scene).device()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradledger\[privacy\]'"):
        device.join(classes=[0])


@pytest.mark.parametrize("mode", [Mode.PAILLIER, Mode.SEALED])
def test_a_round_with_noise_is_paid_and_its_errors_follow_from_the_noisy_update(
    scene: MakeScene, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = private(scene, mode=mode)
    device = s.device()
    device.join(classes=[0, 1, 2])
    s.issue(1)
    base = s.open(1, tau=ANY_ERROR)
    with device.round(wait_sec=20) as round_:
        # Whatever was trained, the same noisy update has the same errors, and no others.
        fixed = np.linspace(-3, 3, PARAMETERS)
        with monkeypatch.context() as patch:
            patch.setattr(Privacy, "protect", lambda *_: fixed.copy())
            updates = []
            for step in (0.0, 0.5, -100.0):
                device.budget.spent = device.budget.newest = 0
                updates.append(round_.train(moved(step), examples=9))
        codec = Codec(CLIP_E6, 26, PARAMETERS)
        arrives = codec.dequantise(codec.quantise(fixed))
        last = base.with_vector(base.vector + arrives).error_micro(*round_.validation)
        for update in updates:
            np.testing.assert_array_equal(update.delta, arrives)
            assert update.errors == (base.error_micro(*round_.validation), last)
        device.budget.spent = device.budget.newest = 0
        update = round_.train(moved(0.5), examples=9)
        with pytest.raises(PrivacyError, match="round 1 has an update with noise already"):
            round_.train(moved(0.5), examples=9)
        with pytest.raises(PrivacyError, match="expected an update made by `train`"):
            round_.seal(replace(update, _is_protected=False))
        receipt = round_.upload(update)
    s.attest(1, receipt.hash, [A] * 3)
    assert isinstance(receipt.wait(timeout_sec=20), Paid)
    member = s.contract.member(s.task, device.account)
    assert member is not None and (member.error_first, member.error_last) == update.errors


def test_a_device_keeps_to_its_budget(scene: MakeScene, tmp_path: Path) -> None:
    s = private(scene)
    device = s.device(budget_file=tmp_path / "budget")
    device.join(classes=[0])
    for version in (1, 2):
        s.issue(version)
        s.open(version, tau=ANY_ERROR)
        with device.round(wait_sec=20) as round_:
            receipt = round_.upload(round_.train(moved(0.1), examples=1))
        assert device.budget.spent == version
        s.attest(version, receipt.hash, [A] * 3)
        s.finish(version)
    s.issue(3)
    s.open(3)
    again = s.device(budget_file=tmp_path / "budget")
    assert (again.budget.spent, again.budget.newest) == (2, 2)
    for one in (device, again, s.device()):  # the last has it from the chain
        with pytest.raises(PrivacyError, match="is for 2 rounds, and 2 may be used"):
            one.round(wait_sec=20)


def test_an_update_that_the_rule_refuses_is_not_drawn_anew(scene: MakeScene) -> None:
    s = private(scene)
    device = s.device()
    device.join(classes=[0])
    s.issue(1)
    s.open(1, tau=0, rule=2)  # a threshold that no error meets
    with device.round(wait_sec=20) as round_:
        update = round_.train(moved(0.1), examples=1)
        with pytest.raises(RuleNotMetError):
            round_.upload(update)
    with pytest.raises(RoundClosedError, match="an update with noise already"):
        device.round(wait_sec=0)
    assert device.budget.spent == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "one expected about privacy in its metadata, got none"),
        ({METADATA_KEY: TERMS.spent(2).to_text()}, "after 2 rounds; expected epsilon"),
        ({METADATA_KEY: "all is well"}, "expected rounds, epsilon_e6 and delta_e12"),
    ],
)
def test_a_round_whose_model_says_otherwise_is_refused(
    scene: MakeScene, metadata: dict[str, str], message: str
) -> None:
    s = private(scene)
    device = s.device()
    device.join(classes=[0])
    s.issue(1)
    s.open(1, metadata=metadata)
    with pytest.raises(PrivacyError, match=message):
        device.round(wait_sec=20)


def test_a_task_without_noise_has_no_account(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[0])
    s.issue(1)
    s.open(1, metadata={METADATA_KEY: TERMS.spent(1).to_text()})
    with pytest.raises(PrivacyError, match="none expected about privacy in its metadata, got one"):
        device.round(wait_sec=20)
