"""Where a read-only command looks: a node and an IPFS store, by address or by local network."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradledger.cli_parts import account_name
from gradledger.errors import ConfigError

if TYPE_CHECKING:
    from gradledger.chain.client import ChainClient, Timeout
    from gradledger.store import Store

HOME_DEFAULT = ".gradledger"
NO_STORE = "none"


@dataclass(frozen=True)
class Places:
    """What a command's flags name."""

    chain: ChainClient
    store: Store | None
    contract: str


def default_home() -> Path:
    """Return where a network is looked for that no flag names: $GRADLEDGER_HOME or .gradledger."""
    return Path(os.environ.get("GRADLEDGER_HOME", HOME_DEFAULT))


def add_network(place: argparse._ArgumentGroup) -> None:
    """Add ``--home`` (see `find_home`), ``--chain`` and ``--contract``."""
    place.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="a network of `gradledger up`; without --chain the default is "
        f"{default_home()} ($GRADLEDGER_HOME)",
    )
    place.add_argument("--chain", metavar="URL,...", help="endpoints of nodes")
    place.add_argument(
        "--contract", type=account_name, metavar="ACCOUNT", help="default fedlearning"
    )


def find_home(args: argparse.Namespace) -> Path | None:
    """Return ``--home``, or its default; None where the chain is given by address alone."""
    given: Path | None = args.home
    return default_home() if given is None and args.chain is None else given


def add_places(parser: argparse.ArgumentParser, *, store: bool = False) -> None:
    """Add ``--chain``, ``--home``, ``--contract`` and, if asked for, ``--store``."""
    place = parser.add_argument_group("where")
    add_network(place)
    if store:
        place.add_argument(
            "--store",
            metavar="ADDR",
            help=f"IPFS, such as /ip4/127.0.0.1/tcp/5001; '{NO_STORE}': look at no blob",
        )


def find_places(args: argparse.Namespace, *, timeout: Timeout | None = None) -> Places:
    """Return what the flags name; the local network fills what they leave out.

    Parameters
    ----------
    timeout : Timeout, optional
        Of calls to a node.

    Raises
    ------
    ConfigError
        There is neither an address nor a network.
    """
    from gradledger.chain.client import ChainClient
    from gradledger.chain.contract import CONTRACT_DEFAULT
    from gradledger.store import Store

    address = getattr(args, "store", None)
    chain, contract = args.chain, args.contract
    if chain is None:
        from gradledger.localnet.network import Network

        try:
            info = Network.load(args.home or default_home()).info()
        except ConfigError as error:
            raise ConfigError(f"{error}; or give --chain URL") from None
        chain, contract = info.chain_url, contract or info.contract
        address = address or info.store_addr
    is_wanted = hasattr(args, "store") and address not in (None, NO_STORE)
    return Places(
        ChainClient(chain, timeout=timeout),
        Store(str(address)) if is_wanted else None,
        contract or CONTRACT_DEFAULT,
    )
