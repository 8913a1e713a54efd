"""The local network's life: up, killed, up again, down."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradledger.chain.client import ChainClient
from gradledger.chain.keys import PrivateKey
from gradledger.cli import main
from gradledger.errors import ConfigError
from gradledger.localnet import nodeos, processes
from gradledger.localnet.logkeeper import bound_logs
from gradledger.localnet.network import Network, validator_names
from gradledger.localnet.processes import Process
from gradledger.store import Store

STATUS_MEMBERS = {
    "format",
    "home",
    "state",
    "chain",
    "store",
    "contract",
    "token",
    "chain_id",
    "server_version",
    "head_block",
    "irreversible_block",
    "processes",
    "accounts",
}


def pids(network: Network) -> dict[str, int]:
    return {one["name"]: one["pid"] for one in network.status()["processes"]}


def kill(network: Network, *names: str) -> None:
    running = pids(network)
    for name in names or running:
        os.kill(running[name], signal.SIGKILL)
    until = time.monotonic() + 10
    while any(pids(network)[name] for name in names or running) and time.monotonic() < until:
        time.sleep(0.02)


def balance(network: Network, account: str) -> str:
    return str(ChainClient(network.info().chain_url).balance("eosio.token", account, "TOK"))


def pay_for_good(network: Network, account: str, quantity: str) -> None:
    """Make an account with tokens, and wait until nothing can undo it."""
    network.create_account(account)
    network.transfer(account, quantity)
    head = network.status()["head_block"]
    until = time.monotonic() + 20
    while network.status()["irreversible_block"] <= head and time.monotonic() < until:
        time.sleep(0.1)


def test_up_twice_is_harmless(make_network: Callable[[], Network]) -> None:
    network = make_network()
    first = network.up()
    before = pids(network)
    assert set(before) == {"node1", "kubo", "logs", *validator_names(4)}
    assert network.up() == first
    assert pids(network) == before
    assert network.status()["state"] == "up"


def test_killed_processes_come_back_with_their_data(make_network: Callable[[], Network]) -> None:
    network = make_network()
    info = network.up(validators=2)
    pay_for_good(network, "alice", "5.0000 TOK")
    cid = Store(info.store_addr).put(b"survives")
    for names in (["node1"], ["kubo"], ["validator1", "logs"], []):
        before = pids(network)
        kill(network, *names)
        assert network.status()["state"] in ("partly", "down")
        assert network.up() == network.info()
        after = pids(network)
        changed = {name for name in before if before[name] != after[name]}
        assert changed == set(names or before)
        assert network.status()["state"] == "up"
        assert balance(network, "alice") == "5.0000 TOK"
        assert Store(network.info().store_addr).get(cid) == b"survives"
    assert network.info().chain_urls == info.chain_urls
    assert network.info().store_addr == info.store_addr


def test_up_at_once_after_a_kill(make_network: Callable[[], Network]) -> None:
    network = make_network()
    network.up(validators=0)
    for pid in pids(network).values():
        os.kill(pid, signal.SIGKILL)
    network.up()
    assert network.status()["state"] == "up"


def test_down_keeps_the_data_and_wipe_does_not(make_network: Callable[[], Network]) -> None:
    network = make_network()
    network.up(validators=0)
    pay_for_good(network, "alice", "5.0000 TOK")
    assert set(network.down()) == {"node1", "kubo", "logs"}
    assert network.status()["state"] == "down"
    assert network.down() == []
    network.up()
    assert balance(network, "alice") == "5.0000 TOK"
    network.down(wipe=True)
    assert not network.home.exists()
    assert network.status()["state"] == "none"
    with pytest.raises(ConfigError, match=r"no network in .*: start one with gradledger up"):
        Network.load(network.home)


def test_wipe_takes_away_only_what_is_its_own(
    make_network: Callable[[], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    network = make_network()
    monkeypatch.setattr(Network, "_keep_logs", cut_off)
    with pytest.raises(KeyboardInterrupt):
        network.up()
    for folder in ("node1", "kubo", "node2", "node_modules"):
        (network.home / folder).mkdir()
        (network.home / folder / "file").touch()
    (network.home / "node_notes.txt").touch()
    assert (network.home / "keys").is_dir()
    network.down(wipe=True)
    left = {path.name for path in network.home.iterdir()}
    assert left == {"node2", "node_modules", "node_notes.txt"}
    shutil.rmtree(network.home)  # for the fixture, which finds a folder without a network here


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "no network in {home}: nothing was removed"),
        ("{", "cannot read {home}/network.json: "),
        ("[]", "{home}/network.json does not describe a network of format 1"),
        ('{"format": 1}', "{home}/network.json does not describe a network of format 1"),
        (
            '{"format": 1, "producers": 10000000, "validators": 4, "processes": {}}',
            "{home}/network.json does not describe a network of format 1",
        ),
        (
            '{"format": 1, "producers": 1, "validators": 4, "processes": {"node1": {"x": 1}}}',
            "{home}/network.json does not describe a network of format 1",
        ),
    ],
)
def test_what_is_no_network_is_not_wiped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: str | None, message: str
) -> None:
    for name in ("keys/mine.pem", "logs/log", "kubo/x", "node_modules/x", "node1", "genesis.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if document is not None:
        (tmp_path / "network.json").write_text(document)
    before = sorted(tmp_path.rglob("*"))
    assert main(["down", "--wipe", "--home", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"gradledger: {message.format(home=tmp_path)}")
    assert main(["down", "--home", str(tmp_path)]) == (0 if document is None else 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_busy_ports_are_stepped_over(tmp_path: Path) -> None:
    with socket.socket() as one, socket.socket() as two:
        for busy in (one, two):
            busy.bind(("127.0.0.1", 0))
            busy.listen()
        http, kubo = one.getsockname()[1], two.getsockname()[1]
        network = Network(tmp_path / "net", http_port=http, p2p_port=http, kubo_port=kubo)
        try:
            info = network.up(validators=0)
            assert info.chain_urls != (f"http://127.0.0.1:{http}",)
            assert not info.store_addr.endswith(f"/{kubo}")
            shown = {row["name"]: row["ports"] for row in network.status()["processes"]}
            assert info.chain_urls == (f"http://127.0.0.1:{shown['node1']['http']}",)
            assert info.store_addr == f"/ip4/127.0.0.1/tcp/{shown['kubo']['rpc']}"
            ports = {**shown["node1"], **shown["kubo"]}.values()
            assert len({http, kubo, *ports}) == 5
        finally:
            network.down(wipe=True)


def test_four_producers_take_turns(make_network: Callable[[], Network]) -> None:
    network = make_network()
    info = network.up(producers=4, validators=0)
    assert info.producers == ("producer1", "producer2", "producer3", "producer4")
    assert len(set(info.chain_urls)) == 4
    head = network.status()["head_block"]
    for url in info.chain_urls:  # each node knows the schedule, and follows the others
        node = ChainClient(url)
        schedule = node.call("/v1/chain/get_producer_schedule", {})["active"]["producers"]
        assert [one["producer_name"] for one in schedule] == list(info.producers)
        node.wait_until(
            lambda node=node: node.get_info().head_block > head, timeout_sec=30, what="a block"
        )
    kill(network, "node3")
    assert network.up() == info
    assert network.status()["state"] == "up"


def test_the_number_of_producers_is_fixed(localnet: Network) -> None:
    with pytest.raises(ConfigError, match="has 1 producers, not 3: take it away first"):
        localnet.up(producers=3)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"producers": 0}, "producers: expected 1..21, got 0"),
        ({"producers": 22}, "producers: expected 1..21, got 22"),
        ({"validators": -1}, "validators: expected 0..25, got -1"),
        ({"validators": 26}, "validators: expected 0..25, got 26"),
    ],
)
def test_numbers_out_of_range(
    make_network: Callable[[], Network], numbers: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_network().up(**numbers)


@pytest.mark.parametrize(
    ("option", "port"), [("http", 99999), ("http", -5), ("http", 0), ("p2p", 70000), ("kubo", 0)]
)
def test_ports_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, port: int
) -> None:
    home = tmp_path / "net"
    assert main(["up", "--home", str(home), f"--{option}-port", str(port)]) == 1
    assert capsys.readouterr().err == f"gradledger: {option}_port: expected 1..65535, got {port}\n"
    assert not home.exists()


def test_what_a_failed_start_has_started_is_stopped(
    make_network: Callable[[], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Process] = []
    start = processes.start

    def kept(*args: Any, **options: Any) -> Process:
        started.append(start(*args, **options))
        return started[-1]

    def failing(process: Process, spec: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "start", kept)
    monkeypatch.setattr(nodeos, "_answers", failing)
    network = make_network()
    with pytest.raises(KeyboardInterrupt):
        network.up(validators=0)
    assert [one.name for one in started] == ["logs", "kubo", "node1"]
    assert not any(one.alive for one in started)


def test_a_port_that_is_taken_for_a_moment(
    make_network: Callable[[], Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    free_port, wait_until = processes.free_port, processes.wait_until
    with socket.create_server(("127.0.0.1", 0)) as holder:
        first = [holder.getsockname()[1]]  # Kubo's, who is the first to ask

        def chosen(*args: Any, **options: Any) -> int:
            return first.pop() if first else free_port(*args, **options)

        def let_go(*args: Any, **options: Any) -> None:
            try:
                wait_until(*args, **options)
            finally:
                holder.close()

        monkeypatch.setattr(processes, "free_port", chosen)
        monkeypatch.setattr(processes, "wait_until", let_go)
        network = make_network()
        network.up(validators=0)
    assert network.status()["state"] == "up"


def test_a_failed_start_leaves_what_stood(
    localnet: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OverflowError

    before = pids(localnet)
    monkeypatch.setattr(Network, "_provision", failing)
    with pytest.raises(OverflowError):
        localnet.up()
    assert pids(localnet) == before


def test_keys_are_for_their_owner_alone(localnet: Network) -> None:
    info = localnet.info()
    assert {"eosio", "fedlearning", "modelowner", "bank", "validator4"} <= set(info.accounts)
    for path in info.accounts.values():
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    config = localnet.home / "node1" / "config.ini"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    command = Path(f"/proc/{pids(localnet)['node1']}/cmdline").read_bytes()
    assert b"PVT_K1" not in command


def test_everything_listens_on_loopback_alone(localnet_validators: Network) -> None:
    rows = localnet_validators.status()["processes"]
    kinds = {row["name"]: set(row["ports"]) for row in rows if row["ports"]}
    assert kinds == {"node1": {"http", "p2p"}, "kubo": {"rpc"}}
    for row in rows:
        expected = {("0100007F", port) for port in row["ports"].values()}
        assert listening(row["pid"]) == expected, row["name"]


def listening(pid: int) -> set[tuple[str, int]]:
    """Return where a process listens: addresses as /proc/net/tcp writes them, and ports."""
    sockets = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(handle))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].partition(":")
                found.add((address, int(port, 16)))
    return found


def test_status_is_a_stable_document(localnet: Network) -> None:
    status = localnet.status()
    assert set(status) == STATUS_MEMBERS
    assert status["format"] == 1
    assert status["state"] == "up"
    assert status["server_version"] == "v4.1.0-dev"
    assert 0 < status["irreversible_block"] <= status["head_block"]
    assert status["token"] == {"contract": "eosio.token", "symbol": "4,TOK"}
    for row in status["processes"]:
        assert set(row) == {"name", "state", "pid", "ports", "log"}


def test_a_new_account_can_sign(
    localnet: Network, chain: ChainClient, new_account: Callable[..., tuple[str, PrivateKey]]
) -> None:
    name, key = new_account("signer")
    assert localnet.key(name) == key
    active = chain.get_account(name)["permissions"][0]["required_auth"]["keys"]
    assert [one["key"] for one in active] == [key.public.legacy]
    with pytest.raises(ConfigError, match=f"the account {name} exists already"):
        localnet.create_account(name)


def test_contract_may_pay_out(chain: ChainClient) -> None:
    permissions = chain.get_account("fedlearning")["permissions"]
    active = next(one for one in permissions if one["perm_name"] == "active")
    levels = [one["permission"] for one in active["required_auth"]["accounts"]]
    assert levels == [{"actor": "fedlearning", "permission": "eosio.code"}]


def test_a_recycled_pid_is_not_ours() -> None:
    mine = Process("x", os.getpid(), processes._start_ticks(os.getpid()), processes._boot())
    assert mine.alive
    other = Process("x", os.getpid(), mine.start_ticks - 1, mine.boot)
    assert not other.alive
    other.signal(signal.SIGKILL)  # would be the end of this test
    assert not Process("x", os.getpid(), mine.start_ticks, "another boot").alive


def test_logs_are_bounded_while_their_writer_runs(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("a", buffering=1) as writer:
        for turn in range(4):
            writer.write(f"{turn}" * 100 + "\n")
            bound_logs(tmp_path, bytes_max=50)
        writer.write("last\n")
    assert log.read_text() == "last\n"
    assert (tmp_path / "x.log.1").read_text() == "3" * 100 + "\n"
    assert (tmp_path / "x.log.2").read_text() == "2" * 100 + "\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_command_line(
    localnet: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--home", str(localnet.home)]) == 0
    assert "node1" in capsys.readouterr().out
    assert main(["status", "--home", str(tmp_path), "--json"]) == 1
    assert '"state": "none"' in capsys.readouterr().out
    assert main(["down", "--home", str(tmp_path / "none")]) == 0
    assert main(["down", "--wipe", "--home", str(tmp_path)]) == 0  # empty
    assert capsys.readouterr().out == "nothing was running\n" * 2
    assert main(["up", "--home", str(tmp_path / "none"), "--producers", "0"]) == 1
    assert capsys.readouterr().err == "gradledger: producers: expected 1..21, got 0\n"
    with pytest.raises(SystemExit, match="2"):
        main(["up", "--no-such-option"])


def test_accounts_are_made_and_listed(
    localnet: Network, new_name: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, home = new_name("phone"), str(localnet.home)
    assert main(["accounts", name, "--home", home]) == 0
    path = Path(capsys.readouterr().out.split()[1])
    assert path == localnet.home / "keys" / f"{name}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert localnet.client.has_account(name)
    assert main(["accounts", "--home", home]) == 0
    assert name in capsys.readouterr().out
    assert main(["accounts", name, "--home", home]) == 1
    assert capsys.readouterr().err == f"gradledger: the account {name} exists already\n"
    assert main(["accounts", "PHONE", "--home", home]) == 1
    assert "expected an account name of a-z, 1-5 and dots" in capsys.readouterr().err
