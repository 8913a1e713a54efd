"""The hand-kept ABI against the running contract: every action, every table, every byte."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from contracts.world import ABI, ZERO, Scene, World, cid, digest, lot_commitment, lot_value

from gradledger.chain.abi import parse_time
from gradledger.chain.names import name_to_int
from gradledger.chain.transaction import action
from gradledger.cid import cid_to_digest
from gradledger.errors import ContractError

DOCUMENT = json.loads(
    resources.files("gradledger.artifacts").joinpath("fedlearning.abi").read_bytes()
)


def played(world: World) -> tuple[Scene, Scene, list[dict[str, Any]]]:
    """Play a task through all actions; return it, one that is half way, and all traces."""
    traces: list[dict[str, Any]] = []

    def do(scene: Scene, *actions: Any) -> None:
        traces.extend(scene.do(*actions).traces["action_traces"])

    scene = Scene.make(world)
    half = Scene.make(world)
    (late,) = world.accounts(1)
    terms = {**scene.terms, "card_cid": cid("another card")}
    do(scene, world.act("createtask", late, task=late, owner=late, terms=terms))
    do(scene, scene.act("admit", scene.owner, accounts=[late], role=1))
    do(scene, scene.join(late, classes=0b101))
    do(scene, scene.act("remove", scene.owner, account=late))
    device = scene.devices[0]
    record = {"device": device, "version": 1, "cid": cid("set"), "hash": digest("set")}
    do(scene, scene.act("issueset", scene.owner, **record))
    for one in (scene, half):
        do(one, one.open(), *[one.upload(d) for d in one.devices])
        do(one, *[one.verdict(v, one.devices) for v in one.quorum()], one.close())
    do(half, half.vote_sum(half.validators[0]))
    do(scene, *[scene.vote_sum(v) for v in scene.quorum()])
    do(scene, scene.settle(), scene.withdraw(7))
    do(scene, scene.open(2, verdict_sec=1), scene.upload(device, 2), scene.close(2))
    scene.wait(parse_time(scene.round(2)["verdict_deadline"]))
    do(scene, scene.push_on(scene.owner, 2))
    audited = Scene.make(world, lot_e6=1_000_000)
    drawn = audited.devices
    do(audited, audited.open(reveal_sec=60), *[audited.commit_lot(v) for v in audited.validators])
    do(audited, *[audited.upload(d, cid="") for d in drawn], audited.close())
    do(audited, *[audited.reveal(d) for d in drawn])
    do(audited, *[audited.verdict(v, drawn) for v in audited.quorum()])
    do(audited, *[audited.reveal_lot(v) for v in audited.validators], audited.push_on(late))
    do(audited, *[audited.opening(d) for d in drawn])
    do(audited, *[audited.audit_verdict(v, drawn[:2]) for v in audited.quorum()])
    return scene, half, traces


def test_the_chain_has_the_committed_abi(world: World) -> None:
    found = world.client.call("/v1/chain/get_abi", {"account_name": world.contract})["abi"]
    for part in ("version", "types", "structs", "actions", "tables"):
        assert found[part] == DOCUMENT[part], part


def test_every_action_and_table_round_trips(world: World) -> None:
    scene, half, traces = played(world)
    seen = set()
    for trace in traces:
        act = trace["act"]
        if act["account"] != world.contract or trace["receiver"] != world.contract:
            continue
        packed = bytes.fromhex(act["hex_data"])
        ours = ABI.unpack(act["name"], packed)
        assert ABI.pack(act["name"], ours) == packed
        assert _plain(ours) == _plain(act["data"]), act["name"]  # as the node decodes it
        seen.add(act["name"])
    assert seen == {one["name"] for one in DOCUMENT["actions"]}

    tables = set()
    for scope in (world.contract, scene.task, half.task):
        for table, kind in ABI.tables.items():
            for packed, shown in _rows(world, scope, table):
                ours = ABI.unpack(kind, packed)  # every byte is used
                assert ABI.pack(kind, ours) == packed
                assert _plain(ours) == _plain(shown)
                tables.add(table)
    assert tables == set(ABI.tables)


def test_each_field_lands_where_the_abi_says(world: World) -> None:
    """Values that are all different, so that two fields of one type cannot be swapped."""
    terms = {
        "silence": 1,
        "classes": 37,
        "errors_max": 41,
        "cost_max": 43_000,
        "devices_max": 801,
        "sum_min": 7,
        "parameters": 53_000,
        "slot_bits": 29,
        "clip_e6": 59_000,
        "key_hash": digest("k"),
        "card_cid": cid("c"),
        "card_hash": digest("h"),
        "is_public": 1,
        "lot_e6": 61_000,
        "bar_rounds": 67,
    }
    scene = Scene.make(world, **terms)
    row = scene.task_row()
    assert row["terms"] == {**scene.terms, **terms}
    assert (row["devices"], row["validators"]) == (3, 4)
    round_terms = {
        "model_cid": cid("m"),
        "model_hash": digest("mh"),
        "price": 61,
        "budget": 67,
        "open_sec": 71,
        "verdict_sec": 73,
        "sum_sec": 79,
        "reveal_sec": 101,
        "audit_sec": 103,
        "close_after": 83,
        "rule": 4,
        "tau": 89,
        "eta_e6": 97,
        "norm_max_e6": 107,
        "training": {
            "epochs": 2,
            "batch_size": 3,
            "rate_e6": 5,
            "measures": 11,
            "seed": 2**63 + 13,
        },
    }
    opened = scene.do(scene.open(**round_terms))
    found = scene.round()
    for name, value in round_terms.items():
        if name not in ("model_cid", "open_sec"):
            assert found[name] == value, name
    assert found["model_cid"] == cid_to_digest(cid("m")).hex()
    block_time = parse_time(opened.traces["block_time"].split(".")[0])
    assert parse_time(found["deadline"]) == block_time + 71
    member = scene.member(scene.devices[0])
    assert (member["enc_key"], member["classes"]) == (digest("enc", scene.devices[0]), 7)
    assert found["opened_block"] == opened.traces["block_num"]

    device, errors = scene.devices[0], [500_000, 400_000, 50]
    scene.do(
        *[scene.commit_lot(v) for v in scene.quorum()], scene.upload(device, cid="", errors=errors)
    )
    row = scene.member(device)
    series = b"".join(error.to_bytes(4, "little") for error in errors)
    assert row["series_hash"] == hashlib.sha256(series).hexdigest()
    assert [row[f"error_{place}"] for place in ("first", "before", "last")] == errors
    lots = scene.round()["lots"]
    values = {v: lot_commitment(scene.task, 1, v, lot_value(v, 1)) for v in scene.quorum()}
    expected = [values.get(v, ZERO) for v in sorted(scene.validators, key=name_to_int)]
    assert [one["commitment"] for one in lots] == expected
    assert {one["value"] for one in lots} == {ZERO}


def test_an_action_that_is_not_there_is_refused(world: World) -> None:
    for name in ("nosuch", "transfer"):
        message = world.refusal(action(world.contract, name, world.creator, bytes(40)))
        assert message == f"unknown_action: expected an action of the contract, got '{name}'"


def test_arguments_too_short_or_too_long_are_refused(world: World) -> None:
    for name, data in _valid_data(world):
        for cut in {0, 7, len(data) // 2, len(data) - 1}:
            message = world.refusal(action(world.contract, name, world.creator, data[:cut]))
            assert message == "bad_parameter: the action's data ends before its last field", name
        if name == "push":
            data += bytes(8)  # its last field may be left out
        message = world.refusal(action(world.contract, name, world.creator, data + b"\0"))
        assert message == "bad_parameter: the action's data is 1 bytes too long", name
    message = world.refusal(action(world.contract, "attest", world.creator, bytes(20_001)))
    assert message == "limit_exceeded: expected at most 20000 bytes of arguments, got 20001"
    lengths = bytes(20) + b"\xff\xff\xff\xff\x1f"
    message = world.refusal(action(world.contract, "attest", world.creator, lengths))
    assert message == "bad_parameter: a length of the action's data is over 32 bits"


@pytest.mark.parametrize("seed", range(4))
def test_malformed_arguments_end_in_a_check_and_change_nothing(world: World, seed: int) -> None:
    scene = Scene.make(world)
    scene.do(scene.open(), *[scene.upload(d) for d in scene.devices[:2]])
    before = scene.everything()
    rng = random.Random(seed)
    valid = list(_valid_data(world, scene))
    for _ in range(150):
        name, data = rng.choice(valid)
        mangled = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.3:
                del mangled[rng.randrange(len(mangled) + 1) :]
            elif mangled:
                mangled[rng.randrange(len(mangled))] = rng.choice([0, 1, 127, 128, 255])
        with pytest.raises(ContractError) as refused:
            # no member and not the owner: even what is well formed is not allowed
            world.push([action(world.contract, name, world.creator, bytes(mangled))])
        assert re.match(r"[a-z_]+: |missing authority", str(refused.value)), (name, mangled.hex())
    assert scene.everything() == before


def _valid_data(world: World, scene: Scene | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield each action with arguments that unpack."""
    scene = scene or Scene(world, "task", "owner", ["d1"], ["v1"], {"lot_e6": 0}, 0)
    device, validator = scene.devices[0], scene.validators[0]
    terms = {
        field: {"name": "zz", "symbol": "4,TOK", "checksum256": ZERO, "string": cid("x")}.get(
            kind, 3
        )
        for field, kind in ABI.fields("task_terms")
    }
    upload = scene.upload_data(device)
    known: dict[str, dict[str, Any]] = {
        "createtask": {"owner": scene.owner, "terms": terms},
        "admit": {"accounts": [device], "role": 1},
        "remove": {"account": device},
        "issueset": {"device": device, "version": 1, "cid": cid("s"), "hash": digest("s")},
        "withdraw": {"quantity": "0.0001 TOK"},
        "join": {"account": device, "enc_key": digest("e"), "classes": 1},
        "fedlearning": upload,
        "uploadgrad": upload,
        "payment": {"version": 1, "device": device, "quantity": "0.0001 TOK"},
        "attestsum": {"version": 1, "validator": validator, "hash": digest("s"), "cid": cid("s")},
        "closeround": {"version": 1, "caller": scene.owner},
        "reveal": {"device": device, "version": 1, "cid": cid("u")},
        "openupload": {"device": device, "version": 1, "cid": cid("o")},
        "commitlot": {"version": 1, "validator": validator, "commitment": digest("c")},
        "reveallot": {"version": 1, "validator": validator, "value": digest("v")},
        "push": {"version": 1, "limit": 1},
        "settle": {"version": 1, "limit": 1, "caller": scene.owner},
    }
    for name, data in known.items():
        yield name, ABI.pack_action(name, {"task": scene.task, **data})
    yield "openround", scene.open().data
    yield "attest", scene.verdict(validator, scene.devices).data
    yield "attestaudit", scene.audit_verdict(validator, scene.devices).data


def _rows(world: World, scope: str, table: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    query = {"code": world.contract, "scope": scope, "table": table, "limit": 500}
    path = "/v1/chain/get_table_rows"
    packed = world.client.call(path, {**query, "json": False})["rows"]
    shown = world.client.call(path, {**query, "json": True})["rows"]
    for raw, row in zip(packed, shown, strict=True):
        yield bytes.fromhex(raw), row


def _plain(value: Any) -> Any:
    """Return a document in which numbers are texts; the node shows large ones so."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
