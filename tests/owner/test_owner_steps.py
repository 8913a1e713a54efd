"""Single steps of the owner against a real node and a real Kubo.

The tasks here commit to no validation points; those of `test_owner_run` and `tests/sets` do.
"""

from __future__ import annotations

import hashlib
from functools import partial

import pytest
from contracts.test_money import REFUSER
from played import ARCHITECTURE, EXAMPLES, Training, points

from gradledger import envelope, phases
from gradledger.chain.contract import RoundState, VerdictCode
from gradledger.chain.names import name_to_int
from gradledger.errors import (
    BudgetShortError,
    ConfigError,
    NotAllowedError,
    RoundClosedError,
)
from gradledger.localnet import system
from gradledger.models import Model, load_validation_set
from owner import owner as owner_module
from owner.owner import Owner
from owner.plan import Plan
from owner.run import create_task, first_model, round_terms
from owner.validation_sets import ValidationData

BUDGET = 10_000  # 1.0000 TOK, the plan's


@pytest.fixture
def make_training(make_training):
    return partial(make_training, committed_sets=False)


def set_up(training: Training) -> Owner:
    """Create the task, admit everybody, let everybody join."""
    owner = training.make_owner()
    create_task(owner, training.plan)
    owner.admit_devices(training.plan.devices, wait=False)
    owner.admit_validators(training.plan.validators, wait=False)
    for actor in (*training.phones, *training.validators):
        actor.step()
    return owner


def open_first(owner: Owner, training: Training, **changes):
    published = owner.publish_model(first_model(training.plan), 1)
    plan = Plan.from_dict({**training.plan.to_dict(), **changes})
    terms = round_terms(plan, 1, published.cid, published.hash)
    return owner.open_round(1, terms, wait=False)


def test_a_task_is_created_once_and_not_taken_with_other_terms(make_training):
    training = make_training()
    owner = training.make_owner()
    task = create_task(owner, training.plan)
    assert task.terms.classes == 3 and task.terms.parameters == 15
    assert create_task(owner, training.plan) == task
    other = Plan.from_dict({**training.plan.to_dict(), "cost_max": 7})
    with pytest.raises(ConfigError, match="exists with other terms"):
        create_task(owner, other)


def test_paillier_mode_needs_a_key(make_training):
    training = make_training()
    owner = training.make_owner()
    bare = Owner(
        owner.account, task=owner.task, key=owner._key, chain=owner.chain, store=owner.store
    )
    with pytest.raises(ConfigError, match="expected a Paillier key"):
        create_task(bare, training.plan)


def test_admitting_again_admits_nobody_and_a_role_is_kept(make_training):
    training = make_training()
    owner = training.make_owner()
    create_task(owner, training.plan)
    assert owner.admit_devices(training.plan.devices) == list(training.plan.devices)
    assert owner.admit_devices(training.plan.devices) == []
    with pytest.raises(ConfigError, match="is a device already"):
        owner.admit_validators(training.plan.devices[:1])


def test_the_model_is_sealed_to_those_who_joined_and_to_the_owner(make_training):
    training = make_training()
    owner = training.make_owner()
    create_task(owner, training.plan)
    owner.admit_devices(training.plan.devices, wait=False)
    training.phones[0].step()
    model = first_model(training.plan)
    published = owner.publish_model(model, 1)
    assert published.readers == tuple(sorted((owner.account, training.phones[0].account)))
    data = owner.store.get(published.cid)
    assert hashlib.sha256(data).digest() == published.hash
    parsed = envelope.parse(data)
    assert set(parsed.readers) == set(published.readers)
    payload = parsed.open(training.phones[0].account, training.phones[0].key.encryption_key())
    assert (Model.from_bytes(payload).vector == model.vector).all()
    with pytest.raises(ConfigError, match="takes 15 parameters, got 8"):
        owner.publish_model(Model.random_normal({**ARCHITECTURE, "layers": [3, 2]}, 0), 1)


def test_a_public_model_is_in_the_clear(make_training):
    training = make_training(public=True)
    owner = set_up(training)
    published = owner.publish_model(first_model(training.plan), 1)
    assert published.readers == ()
    parsed = envelope.parse(owner.store.get(published.cid))
    assert (Model.from_bytes(parsed.payload()).vector == first_model(training.plan).vector).all()


def test_a_member_with_an_unusable_key_does_not_stop_the_others(make_training, caplog):
    training = make_training()
    owner = set_up(training)
    bad = training.phones[0]
    low_order = (1).to_bytes(32, "little")  # any 32 bytes can be given on chain
    bad.push(owner.contract.join(owner.task, bad.account, low_order, 1))
    published = owner.publish_model(first_model(training.plan), 1)
    assert bad.account not in published.readers and len(published.readers) == 4
    assert f"event=no_reader sender={bad.account}" in caplog.text
    data = ValidationData(*points(100, 90))
    issued = owner.issue_validation_sets(1, data, per_class=2, wait=False)
    assert sorted(issued) == sorted(p.account for p in training.phones[1:])


def test_validation_sets_go_to_the_device_and_the_validators_alone(make_training):
    training = make_training()
    owner = set_up(training)
    phone = training.phones[0]
    public = envelope.public_key_of(phone.key.encryption_key())
    phone.push(owner.contract.join(owner.task, phone.account, public, 0b101))
    data = ValidationData(*points(100, 90))
    issued = owner.issue_validation_sets(1, data, per_class=4)
    assert sorted(issued) == sorted(p.account for p in training.phones)
    member = owner.contract.member(owner.task, phone.account)
    assert member is not None and member.set_version == 1
    blob = owner.store.get(member.set_cid)
    assert hashlib.sha256(blob).digest() == member.set_hash
    parsed = envelope.parse(blob)
    assert set(parsed.readers) == {phone.account, *training.plan.validators}
    x, y = load_validation_set(parsed.open(phone.account, phone.key.encryption_key()))
    assert sorted(y.tolist()) == [0] * 4 + [2] * 4
    known = {row.tobytes() for row in data.x}
    assert all(row.tobytes() in known for row in x)
    assert owner.issue_validation_sets(1, data, per_class=4) == []
    with pytest.raises(ConfigError, match="per_class: expected a number"):
        owner.issue_validation_sets(2, data)


def test_who_has_uploaded_gets_no_set_any_more(make_training):
    """A killed node may forget a set and be told of the upload again; the contract refuses then."""
    training = make_training()
    owner = set_up(training)
    owner.deposit("2.0000 TOK", wait=False)
    open_first(owner, training)
    early, *others = training.phones
    cid = owner.store.put(b"an update")
    upload = (owner.task, early.account, 1, b"h" * 32, cid, EXAMPLES, [900_000, 200_000])
    early.push(owner.contract.fedlearning(*upload))
    data = ValidationData(*points(100, 90))
    issued = owner.issue_validation_sets(1, data, per_class=4, wait=False)
    assert sorted(issued) == sorted(phone.account for phone in others)


def test_reserved_money_cannot_be_withdrawn_and_free_money_can(make_training):
    training = make_training()
    owner = set_up(training)
    owner.deposit("2.0000 TOK", wait=False)
    open_first(owner, training)
    escrow = owner.escrow()
    assert (escrow.deposited, escrow.withdrawable) == (20_000, 20_000 - BUDGET)
    with pytest.raises(NotAllowedError, match=r"expected at most 1\.0000 TOK, got 1\.0001 TOK"):
        owner.withdraw("1.0001 TOK")
    owner.withdraw("1.0000 TOK")
    escrow = owner.escrow()
    assert escrow.withdrawn == 10_000 and escrow.withdrawable == 0 and escrow.conserved
    with pytest.raises(NotAllowedError, match="reserved_money"):
        owner.withdraw("0.0001 TOK")


def test_a_round_needs_its_budget(make_training):
    training = make_training()
    owner = set_up(training)
    owner.deposit("0.9999 TOK", wait=False)
    with pytest.raises(BudgetShortError) as caught:
        open_first(owner, training)
    assert caught.value.missing == "0.0001 TOK"
    assert owner.version() == 0


def test_a_round_closes_when_the_contract_lets_it(make_training):
    training = make_training(rounds=1)
    owner = set_up(training)
    owner.deposit("2.0000 TOK", wait=False)
    found = open_first(owner, training, close_after=0, open_sec=3600)
    assert found.state is RoundState.OPEN and not owner.can_close(found)
    with pytest.raises(RoundClosedError, match="deadline_not_passed"):
        owner.close_round(1)
    with pytest.raises(RoundClosedError, match="expected round 1 to be summed, it is open"):
        owner.aggregate(1)


def test_a_round_without_uploads_ends_by_its_deadline(make_training):
    training = make_training(rounds=1)
    owner = set_up(training)
    owner.deposit("2.0000 TOK", wait=False)
    found = open_first(owner, training, close_after=0, open_sec=1)
    while not owner.can_close(owner.round(1)):
        pass
    owner.close_round(1, wait=False)
    assert owner.wait_sum(1, timeout_sec=30).state is RoundState.SUMMED
    model = owner.fetch_model(1)
    assert (model.vector == first_model(training.plan).vector).all()
    result = owner.aggregate(1)
    assert not result.changed and result.note.startswith("0 accepted uploads, fewer than")
    settled = owner.settle(1)
    assert settled.state is RoundState.SETTLED
    assert settled.root == hashlib.sha256(b"").digest()
    assert owner.settle(1) == settled
    assert found.version == 1


def test_silent_validators_do_not_stop_a_round(make_training, monkeypatch):
    """No verdict within the deadline: `push` refunds, as the task says; in small portions here."""
    monkeypatch.setattr(owner_module, "MEMBERS_PER_CALL", 1)
    monkeypatch.setattr(phases, "MEMBERS_PER_PUSH", 1)
    training = make_training(rounds=1)
    owner = set_up(training)
    owner.deposit("2.0000 TOK", wait=False)
    open_first(owner, training, verdict_sec=1, sum_sec=1)
    data = ValidationData(*points(100, 90))
    owner.issue_validation_sets(1, data, per_class=4, wait=False)
    for phone in training.phones:
        phone.step()
    assert owner.round(1).pending == 3
    owner.close_round(1, wait=False)
    found = owner.wait_verdicts(1, timeout_sec=60)
    assert (found.pending, found.accepted, found.refused) == (0, 0, 3)
    assert found.state is RoundState.SUMMED
    settled = owner.settle(1)
    assert (settled.settled, settled.state) == (3, RoundState.SETTLED)
    escrow = owner.escrow()
    assert (escrow.paid, escrow.reserved, escrow.free) == (0, 0, 20_000)


def test_who_cannot_be_paid_strands_nobody(make_training):
    """A device's own contract refuses the money, which `push` owes to all: nobody judged."""
    training = make_training(rounds=1, silence="pay")
    owner = set_up(training)
    evil, *others = sorted(training.phones, key=lambda phone: name_to_int(phone.account))
    refusing = system.set_contract(evil.account, REFUSER, b'{"version": "eosio::abi/1.1"}')
    owner.chain.push(refusing, [evil.key])
    owner.deposit("2.0000 TOK", wait=False)
    open_first(owner, training, verdict_sec=3, sum_sec=1)
    data = ValidationData(*points(100, 90))
    owner.issue_validation_sets(1, data, per_class=4, wait=False)
    for phone in training.phones:
        phone.step()
    owner.close_round(1, wait=False)
    found = owner.wait_verdicts(1, timeout_sec=60)
    assert (found.state, found.pending, found.refused) == (RoundState.SUMMED, 0, 1)
    states = {member.account: member.upload_reason for member in owner.members()}
    assert states[evil.account] is VerdictCode.UNDELIVERED
    assert {states[phone.account] for phone in others} == {VerdictCode.SILENCE}
    for phone in training.phones:
        held = owner.chain.balance("eosio.token", phone.account, "TOK")
        assert (held.amount if held else 0) == (0 if phone is evil else EXAMPLES * 10)
    assert owner.escrow().reserved == 0


def test_nothing_secret_is_shown(make_training):
    owner = make_training().make_owner()
    shown = repr(owner) + repr(owner.__dict__)
    assert owner._key.to_string() not in shown
    assert owner._secret.hex() not in repr(owner)
