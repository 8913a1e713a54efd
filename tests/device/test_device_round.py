"""The SDK against a real node and a real Kubo, owner and validators played by hand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from device_scene import CLIP_E6, PARAMETERS, PRICE, SLOT_BITS, TOKEN, Scene, points

from device_sdk import Device, Paid, Receipt, Refused, Round, Update
from device_sdk.training_sklearn import sklearn_fit
from gradledger import envelope
from gradledger.card import TaskCard
from gradledger.chain.contract import (
    Mode,
    Role,
    RoundState,
    Rule,
    Silence,
    UploadState,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey
from gradledger.chain.names import Asset
from gradledger.codec import Codec
from gradledger.errors import (
    AlreadyDoneError,
    BadFieldError,
    ConfigError,
    EnvelopeError,
    IrreversibilityTimeout,
    KeyMismatchError,
    NodeUnavailableError,
    NotAllowedError,
    RoundClosedError,
    RuleNotMetError,
    StaleVersionError,
)
from gradledger.localnet.network import Network
from gradledger.models import Model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MakeScene = Callable[..., Scene]
A, X = VerdictCode.ACCEPT, VerdictCode.OUT_OF_RANGE


def shift(model: Model, validation: object) -> tuple[Model, list[int]]:
    """Train by adding 0.25; the errors fall."""
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


def block(scene: Scene, number: int) -> object:
    """Return a block as the node has it."""
    query = {"block_num_or_id": str(number)}
    return scene.contract.client.call("/v1/chain/get_block", query)


def uploaded(scene: Scene, device: Device, version: int = 1) -> tuple[Round, Update, Receipt]:
    """Take part in a round."""
    with device.round(wait_sec=20) as round_:
        assert round_.version == version
        update = round_.train(shift, examples=60)
        return round_, update, round_.upload(update)


def test_a_paid_round_from_terms_to_payment(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    terms = device.terms()
    assert (terms.price, terms.silence, terms.mode) == (None, Silence.REFUND, Mode.PAILLIER)
    assert set(terms.validators) == set(s.validators)
    assert "if they stay silent, an upload is not paid" in str(terms)
    device.join(classes=["left", 2])
    member = s.contract.member(s.task, device.account)
    assert member is not None and member.joined and member.classes == 0b101
    published = s.publish(1)
    x, y = points(1, 30)
    with device.round(wait_sec=20) as round_:
        assert (round_.version, round_.price) == (1, Asset(PRICE, TOKEN))
        np.testing.assert_array_equal(round_.model.vector, published.vector)
        np.testing.assert_array_equal(round_.validation[0], x)
        np.testing.assert_array_equal(round_.validation[1], y)
        data = points(5, 60)
        update = round_.train(sklearn_fit(*data, round_.recipe), examples=60)
        assert len(update.errors) == round_.recipe.measures
        receipt = round_.upload(update)
    with pytest.raises(IrreversibilityTimeout, match="3 verdicts that agree decide, 0 so far"):
        receipt.wait(timeout_sec=1)
    ids = s.attest(1, receipt.hash, [A, X, A, A])
    paid = receipt.wait(timeout_sec=20)
    assert isinstance(paid, Paid)
    assert (paid.amount, paid.trx) == (Asset(60 * PRICE, TOKEN), ids[3])
    assert str(paid) == f"Paid(0.0600 TOK, trx={ids[3]}, block={paid.block})"
    info = s.contract.client.get_info()
    assert paid.block <= info.irreversible_block
    assert ids[3] in str(block(s, paid.block))
    assert s.contract.client.balance("eosio.token", device.account, "TOK") == paid.amount


@pytest.mark.parametrize("mode", [Mode.PAILLIER, Mode.SEALED])
def test_real_validators_pay_what_the_sdk_uploads(
    scene: MakeScene, localnet_validators: Network, mode: Mode
) -> None:
    s = scene(mode=mode, devices_count=3, has_real_validators=True)
    s.wait_validators()
    devices = [s.device(number) for number in range(3)]
    for device in devices:
        device.join(classes=[0, 1, 2])
    s.publish(1)
    receipts = []
    for number, device in enumerate(devices):
        with device.round(wait_sec=20) as round_:
            fit = sklearn_fit(*points(number, 40 + number), round_.recipe)
            receipts.append(round_.upload(round_.train(fit, examples=40 + number)))
    outcomes = [receipt.wait(timeout_sec=40) for receipt in receipts]
    for number, (device, paid) in enumerate(zip(devices, outcomes, strict=True)):
        assert isinstance(paid, Paid)
        assert paid.amount == Asset((40 + number) * PRICE, TOKEN)
        assert s.contract.client.balance("eosio.token", device.account, "TOK") == paid.amount
        assert paid.trx is not None and paid.trx in str(block(s, paid.block))


def test_the_update_on_ipfs_is_what_the_protocol_says(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[0])
    s.publish(1)
    _, update, receipt = uploaded(s, device)
    member = s.contract.member(s.task, device.account)
    assert member is not None
    assert (member.upload_version, member.upload_hash, member.upload_cost) == (1, receipt.hash, 60)
    assert (member.error_first, member.error_last) == (500_000, 300_000)
    blob = s.store.get(member.upload_cid)
    assert hashlib.sha256(blob).digest() == receipt.hash
    found = envelope.parse(blob)
    assert set(found.readers) == set(s.validators)
    head = found.header
    assert (head.kind, head.codec) == (envelope.Kind.UPDATE, envelope.PayloadCodec.PAILLIER)
    assert (head.task, head.sender, head.version) == (s.task, device.account, 1)
    assert (head.parameters, head.examples, head.clip_e6) == (PARAMETERS, 60, CLIP_E6)
    assert (head.slot_bits, head.key_hash) == (SLOT_BITS, s.paillier.public.key_hash)
    name, key = next(iter(s.validators.items()))
    payload = found.open(name, key.encryption_key())
    codec = Codec(CLIP_E6, SLOT_BITS, PARAMETERS)
    sums = s.paillier.decrypt_sums(payload, codec, 1)
    np.testing.assert_allclose(codec.dequantise_mean(sums, 1), update.delta, atol=2e-5)


def test_sealed_mode_seals_codes_to_owner_and_validators_and_measures_what_arrives(
    scene: MakeScene,
) -> None:
    s = scene(mode=Mode.SEALED)
    device = s.device()
    device.join(classes=[0, 1, 2])
    s.issue(1)
    base = s.open(1, tau=1_000_000)

    def far(model: Model, validation: object) -> tuple[Model, list[int]]:
        return model.with_vector(model.vector + 5.0), [900_000, 0]  # far beyond the clip

    with device.round(wait_sec=20) as round_:
        update = round_.train(far, examples=10)
        codec = Codec(CLIP_E6, SLOT_BITS, PARAMETERS)
        arrives = base.vector + codec.dequantise(codec.quantise(update.delta))
        measured = base.with_vector(arrives).error_micro(*round_.validation)
        before = base.error_micro(*round_.validation)
        assert update.errors == (before, measured) != (900_000, 0)
        receipt = round_.upload(update)
    member = s.contract.member(s.task, device.account)
    assert member is not None
    found = envelope.parse(s.store.get(member.upload_cid))
    assert set(found.readers) == {*s.validators, s.owner}
    codes = codec.from_bytes(found.open(s.owner, s.owner_key.encryption_key()))
    np.testing.assert_array_equal(codes, 65_535)
    s.attest(1, receipt.hash, [A] * 3)
    assert isinstance(receipt.wait(timeout_sec=20), Paid)


def test_the_rule_gain_counts_declared_classes_and_the_error_before(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[0, 2])
    s.issue(1)
    s.open(1, rule=Rule.GAIN, tau=450_000)
    assert "wrong answers end below 0.45 of what guessing" in str(device.terms())
    with device.round(wait_sec=20) as round_:
        assert round_.recipe.rule is Rule.GAIN

        def measured(*errors: int) -> Update:
            return round_.train(lambda model, _: (shift(model, _)[0], errors), examples=10)

        expected = "an excess of doubt below 0 and a last error below 225000"
        with pytest.raises(RuleNotMetError, match=f"csves_gain: expected {expected}, got 0 and 0"):
            round_.upload(measured(500_000, 502_500, 0))
        with pytest.raises(RuleNotMetError, match="got -4 and 225000"):
            round_.upload(measured(500_000, 502_499, 225_000))
        round_.upload(measured(500_000, 502_499, 224_999))
    member = s.contract.member(s.task, device.account)
    assert member is not None
    assert (member.error_first, member.error_last) == (500_000, 224_999)


def test_a_refusal_names_its_reason(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    _, _, receipt = uploaded(s, device)
    ids = s.attest(1, receipt.hash, [X, A, X, X])
    refused = receipt.wait(timeout_sec=20)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.trx) == (X, ids[3])
    assert str(refused).startswith("Refused(out_of_range: a ciphertext or code is outside")
    assert s.contract.client.balance("eosio.token", device.account, "TOK") is None


def test_a_later_round_does_not_hide_an_earlier_outcome(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    _, _, first = uploaded(s, device)
    s.attest(1, first.hash, [A] * 4)
    s.finish(1)
    s.publish(2)
    _, _, second = uploaded(s, device, 2)
    paid = first.wait(timeout_sec=20)
    assert isinstance(paid, Paid) and paid.trx is not None
    s.attest(2, second.hash, [X] * 3)
    assert isinstance(second.wait(timeout_sec=20), Refused)


@pytest.mark.parametrize("silence", [Silence.PAY, Silence.REFUND])
def test_what_silence_means(scene: MakeScene, silence: Silence) -> None:
    s = scene(silence=silence)
    device = s.device()
    device.join(classes=[1])
    s.issue(1)
    s.open(1, verdict_sec=2)
    with pytest.raises(RoundClosedError, match="1 leaves 2 s for verdicts; verdict_sec_min: 10 s"):
        device.round(wait_sec=0.3)
    device.verdict_sec_min = 2
    round_, _, receipt = uploaded(s, device)
    assert repr(round_).endswith("per example, verdict_sec=2, close_after=1)")
    s.push(s.contract.closeround(s.task, s.owner, 1))
    row = s.contract.round(s.task, 1)
    assert row is not None and row.state is RoundState.VERIFYING
    deadline = row.verdict_deadline
    s.contract.client.wait_until(
        lambda: s.contract.client.get_info().head_time >= deadline, timeout_sec=20
    )
    pushed = s.push(s.contract.push(s.task, s.owner, 1)).trx_id
    outcome = receipt.wait(timeout_sec=20)
    assert outcome.trx == pushed
    if silence is Silence.PAY:
        assert isinstance(outcome, Paid)
        assert s.contract.client.balance("eosio.token", device.account, "TOK") == outcome.amount
    else:
        assert isinstance(outcome, Refused) and outcome.reason is VerdictCode.SILENCE


def test_an_upload_whose_answer_is_lost_is_recorded_once(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    send, sent = device.chain.send, []

    def lossy(body: dict[str, Any]) -> object:
        sent.append(body)
        answer = send(body)
        if len(sent) == 1:
            raise NodeUnavailableError("the answer is lost")
        return answer

    monkeypatch.setattr(device.chain, "send", lossy)
    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        receipt = round_.upload(update)
    assert sent == sent[:1] * 2  # the same bytes
    again = round_.upload(update)
    assert again is receipt
    with pytest.raises(AlreadyDoneError, match="second_upload"):
        round_.upload(Update(1, update.delta, update.errors, 60))
    row = s.contract.round(s.task, 1)
    assert row is not None and row.uploads == 1
    s.attest(1, receipt.hash, [A] * 3)
    assert isinstance(again.wait(timeout_sec=20), Paid)


def test_a_node_that_stays_away_is_an_error_and_the_upload_can_be_repeated(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    send, calls = device.chain.send, []

    def dead(body: object) -> object:
        calls.append(1)
        raise NodeUnavailableError("no answer")

    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        monkeypatch.setattr(device.chain, "send", dead)
        with pytest.raises(NodeUnavailableError):
            round_.upload(update)
        assert len(calls) == 3
        monkeypatch.setattr(device.chain, "send", send)
        assert round_.upload(update).trx is not None


def test_stale_late_and_bad_uploads_are_the_contracts_refusals(scene: MakeScene) -> None:
    s = scene(devices_count=2)
    device, other = s.device(0), s.device(1)
    for each in (device, other):
        each.join(classes=[1])
    s.publish(1)
    with device.round(wait_sec=20) as round_:
        flat = round_.train(lambda m, v: (m, [500_000, 500_000]), examples=60)
        with pytest.raises(RuleNotMetError, match="csves_either"):
            round_.upload(flat)
        assert device.attend() == []  # it is not sent again behind anybody's back
        update = round_.train(shift, examples=60)
    _, _, receipt = uploaded(s, other)
    s.attest(1, receipt.hash, [A] * 3)
    s.push(s.contract.closeround(s.task, s.owner, 1))
    with pytest.raises(RoundClosedError, match="round_not_open"):
        round_.upload(update)
    s.push(s.contract.settle(s.task, s.owner, 1))
    s.publish(2)
    with pytest.raises(StaleVersionError) as caught:
        round_.upload(update)
    assert caught.value.current == 2
    with pytest.raises(ConfigError, match="round 1 was left"):
        round_.train(shift, examples=60)


def test_what_fit_may_return(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    other = Model.random_glorot({"kind": "mlp", "layers": [4, 2], "activation": "relu"}, 0)
    with device.round(wait_sec=20) as round_:
        update = round_.train(lambda m, v: (m, [0.5, np.float32(0.25), np.int64(7)]), examples=1)
        assert update.errors == (500_000, 250_000, 7)
        for examples in (0, 1001, True):
            with pytest.raises(ConfigError, match="examples: expected 1 to 1000"):
                round_.train(shift, examples=examples)
        for errors in ([], [1] * 9, [1_000_001], [-1], [1.5], [float("nan")], ["x"]):
            with pytest.raises(ConfigError, match="fit: "):
                round_.train(lambda m, v, e=errors: (m, e), examples=1)
        with pytest.raises(ConfigError, match="architecture"):
            round_.train(lambda m, v: (other, [1]), examples=1)
        with pytest.raises(ConfigError, match="architecture"):
            round_.train(lambda m, v: (m.vector, [1]), examples=1)


def test_a_round_is_waited_for(scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    with pytest.raises(RoundClosedError, match="no round is open yet") as caught:
        device.round(wait_sec=0.3)
    assert caught.value.code == "no_round"
    s.open(1)
    with pytest.raises(RoundClosedError, match="has issued no validation set"):
        device.round(wait_sec=0.3)
    waits = []

    def issue_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        s.issue(1)

    monkeypatch.setattr("device_sdk.device.time.sleep", issue_meanwhile)
    with device.round(wait_sec=20) as round_:
        round_.upload(round_.train(shift, examples=2))
    assert len(waits) == 1
    monkeypatch.undo()
    with pytest.raises(RoundClosedError, match="round 1 is the newest"):
        s.device().round(wait_sec=0.3, after=1)
    with pytest.raises(RoundClosedError, match="has an upload of this device"):
        s.device().round(wait_sec=0.3)


def test_a_node_that_comes_back_is_waited_for(
    scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[1])
    s.publish(1)
    task, failures = device.contract.task, [NodeUnavailableError("away")] * 2

    def flaky(name: str) -> Any:
        if failures:
            raise failures.pop()
        return task(name)

    monkeypatch.setattr(device.contract, "task", flaky)
    assert device.round(wait_sec=20).version == 1
    failures += [NodeUnavailableError("away")] * 100
    with pytest.raises(NodeUnavailableError, match="away"):
        device.round(wait_sec=0.5)


def test_a_device_that_joined_too_late_waits_for_the_next_model(scene: MakeScene) -> None:
    s = scene(devices_count=2)
    first, second = s.device(0), s.device(1)
    first.join(classes=[1])
    s.issue(1)
    s.open(1, readers=[first.account])
    second.join(classes=[1])
    s.issue(1)
    with pytest.raises(RoundClosedError, match=r"is not sealed to .*, which joined after"):
        second.round(wait_sec=0.5)


def test_joining_is_refused_and_repeated_as_it_should_be(
    scene: MakeScene, new_account: Callable[..., tuple[str, PrivateKey]]
) -> None:
    s = scene()
    stranger, key = new_account()
    common: dict[str, Any] = {"task": s.task, "chain": s.contract.client, "store": s.store}
    with pytest.raises(NotAllowedError, match=f"{stranger} is no member"):
        Device(stranger, key=key, **common).join(classes=[0])
    validator, key = next(iter(s.validators.items()))
    with pytest.raises(NotAllowedError, match="is a validator"):
        Device(validator, key=key, **common).join(classes=[0])
    device = s.device()
    with pytest.raises(NotAllowedError, match="must join task"):
        s.open(1)
        device.round(wait_sec=5)
    for classes in ([], [3], [-1], ["up"], [True]):
        with pytest.raises(ConfigError, match="class"):
            device.join(classes=classes)
    with pytest.raises(BadFieldError, match="unknown_task"):
        s.device(task="nosuchtask").terms()
    device.join(classes=[0])
    before = s.contract.client.get_info().head_block
    device.join(classes=["left"])  # says the same: no transaction
    time.sleep(1.5)
    blocks = range(before + 1, s.contract.client.get_info().irreversible_block + 1)
    assert len(blocks) > 0
    assert not any(device.account in str(block(s, number)) for number in blocks)


def test_what_the_owner_publishes_is_checked_against_the_chain(scene: MakeScene) -> None:
    s = scene()
    device = s.device()
    device.join(classes=[0])
    s.issue(1)
    s.open(1, tamper=True)
    with pytest.raises(EnvelopeError, match="model of round 1: the hash is not that on chain"):
        device.round(wait_sec=5)
    other = scene()
    device = other.device()
    device.join(classes=[0])
    other.issue(1)
    other.open(1, header_version=9)
    with pytest.raises(EnvelopeError, match="model of round 1: a header with"):
        device.round(wait_sec=5)


def test_a_card_with_another_paillier_key_is_refused(scene: MakeScene) -> None:
    s = scene(create={"key_hash": hashlib.sha256(b"another").digest()})
    with pytest.raises(KeyMismatchError, match="the card's Paillier key"):
        s.device().join(classes=[0])
    assert TaskCard.from_bytes(s.card).paillier_n == s.paillier.public.n
    member = s.contract.member(s.task, s.device().account)
    assert member is not None and not member.joined and member.role is Role.DEVICE
    assert member.upload_state is UploadState.NONE
