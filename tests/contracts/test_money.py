"""Escrow: deposits, withdrawals, silence, and what nobody pushes."""

from __future__ import annotations

import random

import pytest
from contracts.world import (
    MALFORMED,
    PAID,
    REFUSED,
    SETTLED,
    SUMMED,
    VERIFYING,
    ZERO,
    Scene,
    World,
)

from gradledger.chain.abi import parse_time
from gradledger.chain.names import name_to_int
from gradledger.errors import BudgetShortError
from gradledger.localnet import system

LARGEST = 2**62 - 1  # of an asset


def test_a_deposit_is_counted(world: World) -> None:
    scene = Scene.make(world, deposit=0)
    scene.do(scene.deposit(1))
    scene.do(scene.deposit(1_999_999))
    assert scene.money()["deposited"] == scene.money()["free"] == 2_000_000
    assert world.balance(scene.owner) == 0


def test_anyone_may_deposit(world: World) -> None:
    scene = Scene.make(world, deposit=0)
    scene.do(world.transfer(world.token, world.creator, "0.0005 TOK", scene.task))
    assert scene.money()["deposited"] == 5


def test_a_fake_token_is_refused(world: World) -> None:
    scene = Scene.make(world)
    fake, holder = world.new_token("1000.0000 TOK")
    before = scene.everything()
    message = world.refusal(world.transfer(fake, holder, "1.0000 TOK", scene.task))
    assert message == f"fake_token: expected a token of {world.token}, got one of {fake}"
    assert scene.everything() == before


def test_a_fake_notification_is_refused(world: World) -> None:
    """A contract may call an action `transfer` and name anyone as sender."""
    scene = Scene.make(world)
    (liar,) = world.accounts(1)
    world.push(system.set_contract(liar, NOTIFIER, b'{"version": "eosio::abi/1.1"}'))
    before = scene.everything()
    forged = world.transfer(liar, scene.owner, "1.0000 TOK", scene.task)
    message = world.refusal(forged)
    assert message == f"fake_token: expected a token of {world.token}, got one of {liar}"
    assert scene.everything() == before


@pytest.mark.parametrize(("supply", "got"), [("5.0000 ABC", "ABC"), ("5.000 TOK", "TOK")])
def test_another_symbol_of_the_same_contract_is_refused(
    world: World, supply: str, got: str
) -> None:
    """The task's token contract may hold several tokens; one of them counts."""
    token, holder = world.new_token(supply)
    scene = Scene.make(world, deposit=0, owner_funds=0, token_contract=token)
    before = scene.everything()
    message = world.refusal(world.transfer(token, holder, supply, scene.task))
    assert message == f"wrong_symbol: expected TOK, got {got}"
    assert scene.everything() == before


def test_deposits_that_would_overflow_are_refused(world: World) -> None:
    text = "461168601842738.7903 TOK"  # the largest asset
    token, holder = world.new_token(text)
    scene = Scene.make(world, deposit=0, owner_funds=0, token_contract=token)
    scene.do(world.transfer(token, holder, text, scene.task), scene.withdraw(LARGEST))
    back = world.transfer(token, scene.owner, text, scene.task)
    scene.do(back, scene.withdraw(LARGEST))
    assert scene.money() == {
        "deposited": 2 * LARGEST,
        "paid": 0,
        "reserved": 0,
        "withdrawn": 2 * LARGEST,
        "free": 0,
    }
    scene.do(scene.deposit(1))  # 2^63 - 1 in all
    before = scene.everything()
    assert world.refusal(scene.deposit(1)) == (
        f"overflow: the deposits of task {scene.task} are more than 64 bits can count"
    )
    assert scene.everything() == before


def test_the_largest_price_that_fits_is_taken(world: World) -> None:
    scene = Scene.make(world, cost_max=1000)
    scene.do(scene.open(price=LARGEST // 1000, budget=0))
    message = world.refusal(scene.upload(scene.devices[0], cost=1000))
    assert message == (
        "budget_short: expected 461168601842738.7000 TOK free, got 100.0000 TOK, "
        "short by 461168601842638.7000 TOK"
    )


def test_all_that_is_free_can_be_withdrawn(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.withdraw(1))
    scene.do(scene.withdraw(999_999))
    assert scene.money()["free"] == 0
    assert world.balance(scene.owner) == 2_000_000
    assert world.refusal(scene.withdraw(1)).startswith("reserved_money: expected at most 0.0000")


def test_an_open_round_keeps_its_budget(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(budget=1000))
    scene.do(scene.withdraw(999_000))
    assert "at most 0.0000 TOK" in world.refusal(scene.withdraw(1))
    scene.do(scene.upload(scene.devices[0]))  # 600 of the 1000
    assert "at most 0.0000 TOK" in world.refusal(scene.withdraw(1))
    scene.do(scene.close())
    scene.do(scene.withdraw(400))  # closed: the reserve alone is kept
    assert "at most 0.0000 TOK" in world.refusal(scene.withdraw(1))
    scene.do(*[scene.verdict(v, scene.devices[:1], code=MALFORMED) for v in scene.quorum()])
    scene.do(scene.withdraw(600))
    assert scene.money()["free"] == 0


def test_uploads_over_the_budget_draw_on_what_is_free(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(budget=100), *[scene.upload(d) for d in scene.devices])
    assert scene.money()["reserved"] == 1800
    scene.do(scene.withdraw(998_200))
    assert scene.money()["free"] == 0


def test_only_the_owner_withdraws(world: World) -> None:
    scene = Scene.make(world)
    one = scene.withdraw(1)
    forged = type(one)(one.account, one.name, ((scene.devices[0], "active"),), one.data)
    assert "missing authority" in world.refusal(forged)


@pytest.mark.parametrize(("silence", "state"), [(0, REFUSED), (1, PAID)])
def test_silence_is_decided_as_the_task_says(world: World, silence: int, state: int) -> None:
    scene = Scene.make(world, silence=silence)
    scene.do(
        scene.open(verdict_sec=2),
        *[scene.upload(d) for d in scene.devices],
        *[scene.verdict(v, scene.devices[:1]) for v in scene.validators[:3]],
        scene.close(),
    )
    scene.wait(parse_time(scene.round()["verdict_deadline"]))
    stranger = world.creator
    scene.do(scene.push_on(stranger, limit=2))
    assert scene.round()["state"] == VERIFYING  # bounded: one is left
    scene.do(scene.push_on(stranger, limit=100))
    found = scene.round()
    assert (found["state"], found["pending"], found["reserved"]) == (SUMMED, 0, 0)
    # who is paid for silence is not in the sum
    assert (found["accepted"], found["refused"]) == (1, 0 if silence else 2)
    for device in scene.devices[1:]:
        row = scene.member(device)
        assert (row["upload_state"], row["upload_reason"]) == (state, 20)
        assert world.balance(device) == (600 if silence else 0)
    scene.do(scene.settle())
    assert scene.money()["paid"] == (1800 if silence else 600)


def test_a_device_that_cannot_be_paid_strands_nobody(world: World) -> None:
    """Its own contract refuses the money: the batch fails, the others are paid one by one."""
    scene = Scene.make(world, devices=2)
    evil, good = scene.devices
    world.push(system.set_contract(evil, REFUSER, b'{"version": "eosio::abi/1.1"}'))
    scene.do(scene.open(verdict_sec=2), scene.upload(evil), scene.upload(good))
    for validator in scene.validators[:2]:
        scene.do(scene.verdict(validator, scene.devices))
    before = scene.everything()
    world.refusal(scene.verdict(scene.validators[2], scene.devices))
    assert scene.everything() == before
    scene.do(scene.verdict(scene.validators[2], [good]))
    world.refusal(scene.verdict(scene.validators[2], [evil]))
    assert world.balance(good) == 600
    scene.do(scene.close())
    scene.wait(parse_time(scene.round()["verdict_deadline"]) + 2)
    message = world.refusal(scene.verdict(scene.validators[2], [evil]))
    assert message.startswith("deadline_passed: expected verdicts before ")
    scene.do(scene.push_on(world.creator))
    row = scene.member(evil)
    assert (row["upload_state"], row["upload_reason"]) == (REFUSED, 21)
    assert scene.round()["state"] == SUMMED
    assert scene.money()["free"] == 1_000_000 - 600


def test_a_device_that_cannot_be_paid_for_silence_is_stepped_over(world: World) -> None:
    scene = Scene.make(world, silence=1)
    evil, *good = scene.devices
    world.push(system.set_contract(evil, REFUSER, b'{"version": "eosio::abi/1.1"}'))
    scene.do(scene.open(verdict_sec=4), *[scene.upload(d) for d in scene.devices], scene.close())
    deadline = parse_time(scene.round()["verdict_deadline"])
    scene.wait(deadline)
    world.refusal(scene.push_on(world.creator))
    data = {"version": 1, "limit": 10, "start": good[0]}
    scene.do(scene.act("push", world.creator, **data))
    assert [world.balance(d) for d in good] == [600, 600]
    assert scene.round()["pending"] == 1
    scene.wait(deadline + 4)
    scene.do(scene.push_on(world.creator))
    assert scene.member(evil)["upload_reason"] == 21
    assert scene.round()["state"] == SUMMED


def test_after_the_last_deadline_silence_does_not_pay(world: World) -> None:
    scene = Scene.make(world, silence=1)
    scene.do(scene.open(verdict_sec=1), scene.upload(scene.devices[0]), scene.close())
    scene.wait(parse_time(scene.round()["verdict_deadline"]) + 1)
    scene.do(scene.push_on(world.creator))
    row = scene.member(scene.devices[0])
    assert (row["upload_state"], row["upload_reason"]) == (REFUSED, 21)


def test_without_owner_and_validators_anyone_pushes_a_round_to_its_end(world: World) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(open_sec=1, sum_sec=1), *[scene.upload(d) for d in scene.devices])
    scene.do(*[scene.verdict(v, scene.devices) for v in scene.quorum()])
    anyone = world.creator
    scene.wait(parse_time(scene.round()["deadline"]))
    scene.do(scene.close(caller=anyone))
    scene.wait(parse_time(scene.round()["sum_deadline"]))
    scene.do(scene.push_on(anyone))
    found = scene.round()
    assert (found["state"], found["sum_hash"]) == (SUMMED, ZERO)
    scene.do(scene.settle(caller=anyone))
    assert scene.round()["state"] == SETTLED
    assert scene.money()["paid"] == 1800


def test_another_contracts_transfers_to_others_are_none_of_its_business(world: World) -> None:
    scene = Scene.make(world)
    # withdrawing notifies the contract of its own outgoing transfer, with a memo that is no task
    scene.do(scene.withdraw(5))
    assert scene.money()["deposited"] == 1_000_000


def test_money_is_conserved_over_a_random_history(world: World) -> None:
    """Escrow equation after each step, and the contract's balance against the rows."""
    rng = random.Random(20)
    token, holder = world.new_token("1000.0000 TOK")
    scene = Scene.make(world, devices=6, mode=1, deposit=0, owner_funds=0, token_contract=token)
    scene.do(world.transfer(token, holder, "1000.0000 TOK", "", to=scene.owner))
    for version in range(1, 6):
        scene.do(scene.deposit(rng.randrange(1, 100_000)))
        free = scene.money()["free"]
        scene.do(scene.open(version, price=rng.randrange(1, 20), budget=rng.randrange(free + 1)))
        loaded = []
        for device in scene.devices:
            try:
                scene.do(scene.upload(device, version, cost=rng.randrange(1, 1000)))
            except BudgetShortError:
                continue
            loaded.append(device)
        codes = {d: rng.choice([1, 1, 1, 4]) for d in loaded}
        for validator in scene.quorum():
            for device in loaded:
                scene.do(scene.verdict(validator, [device], version, codes[device]))
            money = scene.money()
            assert world.balance(world.contract, token) == money["reserved"] + money["free"]
        if not loaded:
            break
        scene.do(scene.close(version))
        if scene.money()["free"]:
            scene.do(scene.withdraw(rng.randrange(1, scene.money()["free"] + 1)))
        scene.do(scene.settle(version))
        money = scene.money()
        assert world.balance(world.contract, token) == money["free"]
        assert sum(world.balance(d, token) for d in scene.devices) == money["paid"]


def _wasm(*imports: str, body: bytes, data: bytes = b"") -> bytes:
    """Assemble a contract of one function, `apply`, with memory and up to 127 bytes a section."""

    def section(number: int, payload: bytes) -> bytes:
        assert len(payload) < 128
        return bytes([number, len(payload)]) + payload

    types = bytes([3, 0x60, 3, 0x7E, 0x7E, 0x7E, 0, 0x60, 1, 0x7E, 0, 0x60, 2, 0x7F, 0x7F, 0])
    kinds = {"require_recipient": 1, "eosio_assert": 2}
    imported = bytes([len(imports)]) + b"".join(
        b"\x03env" + bytes([len(name)]) + name.encode() + bytes([0, kinds[name]])
        for name in imports
    )
    code = bytes([1, len(body) + 2, 0]) + body + b"\x0b"
    return (
        b"\0asm\1\0\0\0"
        + section(1, types)
        + section(2, imported)
        + section(3, b"\x01\x00")
        + section(5, b"\x01\x00\x01")
        + section(7, b"\x01\x05apply\x00" + bytes([len(imports)]))
        + section(10, code)
        + (section(11, b"\x01\x00\x41\x00\x0b" + bytes([len(data)]) + data) if data else b"")
    )


def _leb(value: int) -> bytes:
    """Return a 64-bit integer as signed LEB128."""
    value = value - 2**64 if value >= 2**63 else value
    out = bytearray()
    while True:
        byte, value = value & 127, value >> 7
        if (value == 0 and not byte & 64) or (value == -1 and byte & 64):
            out.append(byte)
            return bytes(out)
        out.append(byte | 128)


# every action: require_recipient(fedlearning)
NOTIFIER = _wasm("require_recipient", body=b"\x42" + _leb(name_to_int("fedlearning")) + b"\x10\x00")
# every action and notification: eosio_assert(false, "no, thank you")
REFUSER = _wasm("eosio_assert", body=b"\x41\x00\x41\x00\x10\x00", data=b"no, thank you\0")
