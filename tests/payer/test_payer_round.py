"""Devices that have nothing, on a chain that counts CPU, NET and RAM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from device_scene import PRICE, TOKEN, Scene
from scraping import scrape, url_in, value

from device_sdk import Paid
from gradledger import envelope
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import VerdictCode, transfer
from gradledger.chain.keys import PrivateKey, save_key_file
from gradledger.chain.names import Asset
from gradledger.chain.payer import Payer, with_payer
from gradledger.chain.permissions import (
    authority,
    delete_auth,
    link_auth,
    unlink_auth,
    update_auth,
)
from gradledger.chain.transaction import Action
from gradledger.cli import main
from gradledger.errors import (
    BadFieldError,
    ChainError,
    ConfigError,
    NodeAnswerError,
    NotAllowedError,
    PayerRefusedError,
    PayerUnavailableError,
    RoundClosedError,
    StaleVersionError,
)
from gradledger.localnet.network import (
    ACCOUNT_RAM_BYTES,
    PAYER_RESOURCES,
    VALIDATOR_RESOURCES,
    Network,
)
from gradledger.models import Model
from owner.payer.service import PayerServer
from owner.payer.setup import ONLY_BILL_FIRST_AUTHORIZER, check, load_cosign_key, revoke, setup

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MakeScene = Callable[..., Scene]
Serve = Callable[..., PayerServer]
A = VerdictCode.ACCEPT


def shift(model: Model, validation: object) -> tuple[Model, list[int]]:
    """Train by adding 0.25; the errors fall."""
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


def resources(chain: ChainClient, account: str) -> dict[str, int]:
    """Return what an account has and has used."""
    found = chain.get_account(account)
    names = ("ram_quota", "ram_usage", "net_weight", "cpu_weight")
    used = {f"{kind}_used": int(found[f"{kind}_limit"]["used"]) for kind in ("cpu", "net")}
    return {**{name: int(found[name]) for name in names}, **used}


def join_action(scene: Scene, number: int = 0, classes: int = 7) -> Action:
    """Return a device's own join, without a payer."""
    account, key = list(scene.devices.items())[number]
    public = envelope.public_key_of(key.encryption_key())
    return scene.contract.join(scene.task, account, public, classes)


def test_a_whole_round_costs_a_device_nothing(
    scene: MakeScene, serve: Serve, limited: Network, limited_chain: ChainClient
) -> None:
    s = scene()
    payer = limited.info().payer
    assert payer is not None
    device = s.device()
    nothing = {
        "ram_quota": ACCOUNT_RAM_BYTES,
        "ram_usage": ACCOUNT_RAM_BYTES,
        "net_weight": 0,
        "cpu_weight": 0,
        "cpu_used": 0,
        "net_used": 0,
    }
    assert resources(limited_chain, device.account) == nothing
    with pytest.raises(NodeAnswerError, match="net usage is too high"):
        device.join(classes=[0, 1, 2])  # alone it can do nothing
    before = resources(limited_chain, payer)
    server = serve(s.task)
    device = s.device(payer=server.url)
    device.join(classes=[0, 1, 2])
    after_join = resources(limited_chain, payer)
    assert after_join["cpu_used"] >= before["cpu_used"] + 100  # the least that is billed
    s.publish(1)
    with device.round(wait_sec=20) as round_:
        receipt = round_.upload(round_.train(shift, examples=60))
    assert resources(limited_chain, payer)["cpu_used"] >= after_join["cpu_used"] + 100
    s.attest(1, receipt.hash, [A] * 4)
    paid = receipt.wait(timeout_sec=20)
    assert isinstance(paid, Paid) and paid.amount == Asset(60 * PRICE, TOKEN)
    s.finish(1)
    assert resources(limited_chain, device.account) == nothing
    assert limited_chain.balance("eosio.token", device.account, "TOK") == paid.amount
    assert resources(limited_chain, payer)["ram_usage"] == before["ram_usage"]
    assert limited_chain.balance("eosio.token", payer, "TOK") is None
    assert server.answered == {"terms": 1, "signed": 2}


def test_without_a_payer_nothing_changes(scene: MakeScene, limited_chain: ChainClient) -> None:
    s = scene()
    action = join_action(s)
    assert action.authorization == ((next(iter(s.devices)), "active"),)
    with pytest.raises(NodeAnswerError, match="net usage is too high"):
        s.device().push(action)


def test_the_payer_pays_as_first_authoriser_only(
    scene: MakeScene, limited: Network, limited_chain: ChainClient, cosign_path: Path
) -> None:
    s = scene()
    payer = limited.info().payer
    assert payer is not None
    key = load_cosign_key(cosign_path, payer)
    device_key = next(iter(s.devices.values()))
    first = with_payer(join_action(s), payer, "cosign")
    second = Action(first.account, first.name, first.authorization[::-1], first.data)
    with pytest.raises(NodeAnswerError, match="net usage is too high"):
        limited_chain.push([second], [key, device_key])
    assert limited_chain.push([first], [key, device_key]).cpu_us > 0


def test_every_refusal_reaches_the_device_as_an_error(scene: MakeScene, serve: Serve) -> None:
    s, other = scene(), scene()
    server = serve(s.task, per_device_hour=2)
    device = s.device(payer=server.url)
    with pytest.raises(BadFieldError, match=f"unknown_task: this payer pays for {s.task} alone"):
        other.device(payer=server.url).join(classes=[0])
    stranger, key = next(iter(other.devices.items()))
    forged = s.contract.join(s.task, stranger, bytes([1]) * 32, 1)
    payer = Payer(server.url)
    with pytest.raises(NotAllowedError, match=f"not_a_member: {stranger} is no member of task"):
        payer.push(device.chain, forged, key)
    with pytest.raises(PayerRefusedError, match="bad_signature: expected a signature of"):
        payer.push(device.chain, join_action(s), key)  # a member's action, a stranger's key
    move = transfer("eosio.token", device.account, "bank", Asset(1, TOKEN))
    with pytest.raises(PayerRefusedError, match="unknown_action: expected join, fedlearning,"):
        device.push(move)
    device.join(classes=[0])
    s.publish(1)
    cid = s.store.put(b"an old one")
    late = s.contract.fedlearning(s.task, device.account, 0, bytes([1]) * 32, cid, 1, [1])
    with pytest.raises(StaleVersionError) as stale:
        device.push(late)
    assert stale.value.current == 1
    with device.round(wait_sec=20) as round_:
        update = round_.train(shift, examples=60)
        round_.upload(update)
        round_.upload(update)  # recorded once, signed once
    with pytest.raises(PayerRefusedError, match=r"device_limit: .* had 2 signatures in the last"):
        device.push(join_action(s, classes=3))
    assert server.answered == {
        "terms": 4,
        "unknown_task": 1,
        "not_a_member": 1,
        "bad_signature": 1,
        "unknown_action": 1,
        "stale_version": 1,
        "signed": 2,
        "device_limit": 1,
    }


def test_a_new_round_is_seen_at_once(scene: MakeScene, serve: Serve) -> None:
    s = scene()
    device = s.device(payer=serve(s.task).url)
    device.join(classes=[0])
    cid = s.store.put(b"one")
    upload = s.contract.fedlearning(s.task, device.account, 1, bytes([1]) * 32, cid, 1, [1])
    with pytest.raises(RoundClosedError, match="round_not_open"):
        device.push(upload)
    s.publish(1)
    assert device.push(upload).cpu_us > 0


# ---- the key ----------------------------------------------------------------------------------


def try_with(chain: ChainClient, action: Action, key: PrivateKey) -> str:
    """Send an action that a key alone signs; return the refusal, or "" when it went through."""
    try:
        chain.push([action], [key])
    except ChainError as error:
        return str(error)
    return ""


def test_the_cosigning_key_can_do_nothing_else(
    scene: MakeScene, limited: Network, limited_chain: ChainClient, cosign_path: Path
) -> None:
    s = scene()
    payer = limited.info().payer
    assert payer is not None
    key, mine = load_cosign_key(cosign_path, payer), authority(PrivateKey.generate().public)
    limited.transfer(payer, "1.0000 TOK")

    def as_cosign(action: Action) -> Action:
        levels = ((payer, "cosign"),)
        return Action(action.account, action.name, levels, action.data)

    act = s.contract
    upload = act.fedlearning(s.task, payer, 1, bytes([1]) * 32, s.store.put(b"1"), 1, [1])
    others = [
        transfer("eosio.token", payer, "bank", Asset(1, TOKEN)),
        act.createtask("stolen", payer, act.task(s.task).terms),
        act.withdraw(s.task, payer, Asset(1, TOKEN)),
        act.closeround(s.task, payer, 1),
        act.attest(s.task, 1, payer, []),
        Action("bank", "anything", ((payer, "cosign"),), b""),
        update_auth(payer, "active", "owner", mine, by="cosign"),
        update_auth(payer, "owner", "", mine, by="cosign"),
        update_auth(payer, "another", "active", mine, by="cosign"),
        link_auth(payer, "eosio.token", "transfer", "cosign", by="cosign"),
        link_auth(payer, "fedlearning", "attest", "cosign", by="cosign"),
        delete_auth(payer, "active", by="cosign"),
    ]
    for action in others:
        refusal = try_with(limited_chain, as_cosign(action), key)
        assert "missing_authority: " in refusal or "irrelevant authority" in refusal, action
        full = Action(action.account, action.name, ((payer, "active"),), action.data)
        assert try_with(limited_chain, full, key).startswith("missing_authority: "), action
    # In its own actions it passes the chain's check, and the contract's stops it.
    refusal = try_with(limited_chain, as_cosign(act.join(s.task, payer, bytes([1]) * 32, 1)), key)
    assert refusal == f"not_a_member: {payer} is no member of task {s.task}"
    assert try_with(limited_chain, as_cosign(upload), key).startswith("not_a_member: ")
    # It stands for nobody else there: a device's own authority is missing.
    device = next(iter(s.devices))
    join = act.join(s.task, device, bytes([1]) * 32, 1)
    assert f"missing authority of {device}" in try_with(limited_chain, as_cosign(join), key)
    assert "does not have signatures" in try_with(
        limited_chain, with_payer(join, payer, "cosign"), key
    )
    assert limited_chain.balance("eosio.token", payer, "TOK") == Asset(10_000, TOKEN)


def test_what_a_stolen_key_can_do_to_itself_is_seen_and_mended(
    limited: Network, limited_chain: ChainClient, new_name: Callable[[str], str], tmp_path: Path
) -> None:
    """Every permission may change itself: that gives a thief nothing, and `setup` undoes it."""
    account, path = new_name("payer"), tmp_path / "cosign.json"
    active = limited.create_account(account, resources=PAYER_RESOURCES)

    def mend() -> str | None:
        return setup(
            limited_chain, account=account, key=active, key_path=path, contract="fedlearning"
        )

    def problems() -> str:
        public = load_cosign_key(path, account).public
        standing = check(limited_chain, account=account, public=public, contract="fedlearning")
        return "; ".join(standing.problems)

    with pytest.raises(ConfigError, match="make it with `gradledger owner payer setup`"):
        problems()
    assert mend() is not None and problems() == ""
    assert path.stat().st_mode & 0o777 == 0o600
    assert mend() is None  # nothing to do
    key = load_cosign_key(path, account)
    thief = PrivateKey.generate()
    mine = authority(thief.public)
    limited_chain.push([link_auth(account, "fedlearning", "join", "active", by="cosign")], [key])
    assert "cosign is not linked to join of fedlearning" in problems()
    assert mend() is not None and problems() == ""
    limited_chain.push([unlink_auth(account, "fedlearning", "join", by="cosign")], [key])
    assert "cosign is not linked to join of fedlearning" in problems()
    limited_chain.push([update_auth(account, "below", "cosign", mine, by="cosign")], [key])
    lower = link_auth(account, "fedlearning", "fedlearning", "below", by="cosign")
    limited_chain.push([lower], [key])
    limited_chain.push([update_auth(account, "cosign", "active", mine, by="cosign")], [key])
    assert "cosign is not this key's alone" in problems()
    assert mend() is not None and problems() == ""
    names = {one["perm_name"] for one in limited_chain.get_account(account)["permissions"]}
    assert names == {"owner", "active", "cosign"}
    assert revoke(limited_chain, account=account, key=active) is not None
    assert revoke(limited_chain, account=account, key=active) is None
    assert "cosign is not this key's alone" in problems()


def test_setup_wants_a_key_of_its_own(
    limited: Network, limited_chain: ChainClient, tmp_path: Path
) -> None:
    account = limited.info().payer
    assert account is not None
    key, path = limited.key(account), tmp_path / "cosign.json"

    def make() -> None:
        setup(limited_chain, account=account, key=key, key_path=path, contract="fedlearning")

    save_key_file(path, account, key)
    with pytest.raises(ConfigError, match="a key of its own, got the account's active key"):
        make()
    path.unlink()
    save_key_file(path, "bank", PrivateKey.generate())
    with pytest.raises(ConfigError, match=f"the cosigning key of {account}, got that of bank"):
        make()


# ---- the network ------------------------------------------------------------------------------


def test_limits_are_fixed_once_a_network_is_made(limited: Network, localnet: Network) -> None:
    assert limited.up(validators=0).payer == "payer"
    with pytest.raises(ConfigError, match="was made with limits: take it away first"):
        limited.up(limits=False)
    with pytest.raises(ConfigError, match="was made without limits: take it away first"):
        localnet.up(limits=True)
    assert localnet.info().payer is None
    with pytest.raises(ConfigError, match="has no limits: accounts need no bounds"):
        localnet.create_account("phone1", resources=VALIDATOR_RESOURCES)


def test_who_has_what_on_a_network_with_limits(
    limited: Network, limited_chain: ChainClient, new_name: Callable[[str], str]
) -> None:
    active = limited_chain.call("/v1/chain/get_activated_protocol_features", {"limit": 1000})
    digests = {one["feature_digest"] for one in active["activated_protocol_features"]}
    assert ONLY_BILL_FIRST_AUTHORIZER in digests
    plain, judge = new_name("plain"), new_name("judge")
    assert main(["accounts", "--home", str(limited.home), plain]) == 0
    assert main(["accounts", "--home", str(limited.home), "--resources", judge]) == 0
    for account, weight in {
        "modelowner": 1000,
        "payer": 1000,
        "validator1": 100,
        judge: 100,
        plain: 0,
        "bank": -1,
        "fedlearning": -1,
    }.items():
        found = resources(limited_chain, account)
        assert (found["cpu_weight"], found["net_weight"]) == (weight, weight), account
        assert (found["ram_quota"] == -1) is (weight == -1), account
    found = resources(limited_chain, plain)
    assert found["ram_usage"] == found["ram_quota"] == ACCOUNT_RAM_BYTES  # exactly, none to spare


# ---- the command line -------------------------------------------------------------------------


@contextmanager
def service(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Give a running `gradledger owner payer run` and what it said first."""
    command = [sys.executable, "-m", "gradledger.cli", "owner", "payer", "run", "--json"]
    with subprocess.Popen([*command, "--port", "0", *arguments], stdout=PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_the_service_on_the_command_line_forgets_nothing(
    scene: MakeScene, limited: Network, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    s = scene()
    place = ("--home", str(limited.home), "--state", str(tmp_path / "payer"))
    # The other tests' service may use the same permission: this one has an account of its own.
    account = s.owner
    assert main(["owner", "payer", "run", *place, "--account", account, "--task", s.task]) == 1
    assert "make it with `gradledger owner payer setup`" in capsys.readouterr().err
    for again in (False, True):
        assert main(["owner", "payer", "setup", *place, "--account", account]) == 0
        out = capsys.readouterr().out
        assert ("was there already" in out) is again and f"{account}@cosign" in out
        assert "PVT_" not in out
    where = (*place, "--account", account, "--task", s.task, "--cpu-ms", "200")
    where += ("--per-device-hour", "1")
    log = tmp_path / "log"
    counting = ("--metrics", "0", "--log-format", "json", "--log-file", str(log), "--verbose")
    with service(*where, *counting) as (process, said):
        assert said["account"] == account and said["tasks"] == [s.task]
        s.device(payer=said["url"]).join(classes=[0])
        lines = log.read_text().splitlines()
        found = scrape(url_in(lines))
        assert value(found, "payer_signatures_total", task=s.task, action="join") == 1
        assert value(found, "payer_answers_total", code="signed") == 1
        assert value(found, "chain_head_block") > 0
        (signed,) = [one for one in map(json.loads, lines) if one["event"] == "signed"]
        assert (signed["task"], signed["action"]) == (s.task, "join")
        process.kill()
    with pytest.raises(PayerUnavailableError, match="ask the task's owner whether `gradl"):
        s.device(payer=said["url"]).join(classes=[1])
    with service(*where) as (process, said):
        with pytest.raises(PayerRefusedError, match=r"device_limit: .* had 1 signatures"):
            s.device(payer=said["url"]).join(classes=[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert main(["owner", "payer", "show", *place, "--account", account, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["problems"] == [] and shown["cpu_us"] > 0
    assert [(one["device"], one["action"]) for one in shown["newest"]] == [
        (next(iter(s.devices)), "join")
    ]
    assert main(["owner", "payer", "show", *place, "--account", account]) == 0
    assert f"{account} has left: " in capsys.readouterr().out
    assert main(["owner", "payer", "revoke", *place, "--account", account]) == 0
    assert f"{account}@cosign is gone" in capsys.readouterr().out
    assert main(["owner", "payer", "run", *where]) == 1
    assert "cosign is not this key's alone: run `owner payer setup`" in capsys.readouterr().err


def test_the_service_does_not_start_for_a_member_or_an_unknown_task(
    scene: MakeScene, limited: Network, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    s = scene()
    account = next(iter(s.validators))
    place = ("--home", str(limited.home), "--state", str(tmp_path), "--account", account)
    assert main(["owner", "payer", "setup", *place]) == 0
    assert main(["owner", "payer", "run", *place, "--task", s.task]) == 1
    assert f"{account} is a member of task {s.task}" in capsys.readouterr().err
    assert main(["owner", "payer", "run", *place, "--task", "nosuchtask"]) == 1
    assert "unknown_task: no task is named 'nosuchtask'" in capsys.readouterr().err
    assert main(["owner", "payer", "run", *place, "--task", s.task, "--cpu-ms", "256"]) == 1
    assert "cpu_ms: expected 1 to 255, got 256" in capsys.readouterr().err
