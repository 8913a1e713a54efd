"""Fixtures that need a real node and a real Kubo: one local network per test process."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning
from gradledger.chain.keys import PrivateKey
from gradledger.localnet.network import Network
from gradledger.store import Store


def pytest_configure() -> None:
    """Let whoever ends the tests end their networks as well."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that the other processes do not wait for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorial.py")


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Give ports that were free a moment ago, so that test processes do not meet."""

    def find(count: int) -> list[int]:
        sockets = [socket.socket() for _ in range(count)]
        try:
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]
        finally:
            for one in sockets:
                one.close()

    return find


@pytest.fixture
def make_network(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Callable[[], Network]]:
    """Give networks that are not up yet, each in a home of its own; they end with the test."""
    made: list[Network] = []

    def make() -> Network:
        http, p2p, kubo = free_ports(3)
        home = tmp_path_factory.mktemp("net")
        made.append(Network(home, http_port=http, p2p_port=p2p, kubo_port=kubo))
        return made[-1]

    yield make
    for network in made:
        network.down(wipe=True)


@pytest.fixture(scope="session")
def localnet(
    tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Network]:
    """A network of one node and Kubo, without validators, for the whole test process."""
    http, p2p, kubo = free_ports(3)
    network = Network(
        tmp_path_factory.mktemp("localnet"), http_port=http, p2p_port=p2p, kubo_port=kubo
    )
    try:
        network.up(validators=0)
        yield network
    finally:
        network.down(wipe=True)


@pytest.fixture(scope="session")
def localnet_validators(localnet: Network) -> Iterator[Network]:
    """The same network while four validators serve every task that admits them."""
    localnet.up(validators=4)
    yield localnet


@pytest.fixture(scope="session")
def chain(localnet: Network) -> ChainClient:
    """A client of the network's node."""
    return ChainClient(list(localnet.info().chain_urls))


@pytest.fixture(scope="session")
def contract(chain: ChainClient) -> FedLearning:
    """The deployed contract."""
    return FedLearning(chain)


@pytest.fixture(scope="session")
def store(localnet: Network) -> Store:
    """A client of the network's Kubo."""
    return Store(localnet.info().store_addr)


@pytest.fixture(scope="session")
def new_name() -> Callable[[str], str]:
    """Give account and task names that no other test has: a stem and five letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    numbers = itertools.count()

    def make(stem: str = "acc") -> str:
        number, text = next(numbers), ""
        for _ in range(4):
            number, digit = divmod(number, len(letters))
            text = letters[digit] + text
        return f"{stem[:7]}x{text}"

    return make


@pytest.fixture(scope="session")
def new_account(
    localnet: Network, new_name: Callable[[str], str]
) -> Callable[..., tuple[str, PrivateKey]]:
    """Give fresh accounts on the chain: (name, key)."""

    def make(stem: str = "acc") -> tuple[str, PrivateKey]:
        name = new_name(stem)
        return name, localnet.create_account(name)

    return make


@pytest.fixture(scope="session")
def new_accounts(
    localnet: Network, new_name: Callable[[str], str]
) -> Callable[..., dict[str, PrivateKey]]:
    """Give several fresh accounts at once: name to key, in order of creation."""

    def make(count: int, stem: str = "acc") -> dict[str, PrivateKey]:
        return localnet.create_accounts([new_name(stem) for _ in range(count)])

    return make
