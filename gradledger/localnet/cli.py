"""Commands of the local network: ``up``, ``down``, ``status``, ``accounts``, ``parts``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gradledger.errors import ConfigError
from gradledger.places import default_home

_UP = """\
examples:
  gradledger up                        one node, Kubo, four validators, in .gradledger
  gradledger up --home /tmp/net        somewhere else
  gradledger up --producers 4          four producing nodes
  gradledger up --validators 0         no validator: run your own
  gradledger up --limits               CPU, NET and RAM are bounded, and devices have none: the
                                       account `payer` pays (gradledger owner payer --help)

The addresses are printed, and `gradledger status --json` has them for programs. Keys of the
accounts (modelowner, bank, validator1, ...) are in HOME/keys. `up` may be called again at any time:
it starts what is missing.
"""


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the commands."""
    raw = argparse.RawDescriptionHelpFormatter
    up = subparsers.add_parser(
        "up", help="bring a local network up", epilog=_UP, formatter_class=raw
    )
    _add_home(up)
    up.add_argument("--producers", type=int, metavar="N", help="producing nodes (default 1)")
    up.add_argument("--validators", type=int, metavar="N", help="validators (default 4)")
    up.add_argument(
        "--limits",
        action="store_true",
        default=None,
        help="bounded CPU, NET and RAM for owner, validators and a payer; none for other accounts",
    )
    up.add_argument("--http-port", type=int, default=8888, help="first port tried for nodes")
    up.add_argument("--p2p-port", type=int, default=9876, help="first port tried between nodes")
    up.add_argument("--kubo-port", type=int, default=5001, help="first port tried for Kubo")
    up.add_argument("--json", action="store_true", help="print the status as JSON")
    up.set_defaults(func=_up)

    down = subparsers.add_parser("down", help="stop the local network; its data stay")
    _add_home(down)
    down.add_argument("--wipe", action="store_true", help="remove chain, content and keys as well")
    down.set_defaults(func=_down)

    status = subparsers.add_parser("status", help="show the local network")
    _add_home(status)
    status.add_argument("--json", action="store_true", help="print one JSON document")
    status.set_defaults(func=_status)

    accounts = subparsers.add_parser(
        "accounts",
        help="make accounts on the local network, for devices of your own",
        description="Make accounts on a running local network; their key files, mode 0600, go to "
        "HOME/keys. Without names: list the accounts that there are.",
        epilog="examples:\n  gradledger accounts phone1 phone2 phone3\n"
        "  gradledger accounts --resources judge1   CPU, NET and RAM of its own, as a validator "
        "needs\n                                           on a network with limits",
        formatter_class=raw,
    )
    _add_home(accounts)
    accounts.add_argument("name", nargs="*", metavar="NAME", help="1 to 12 of a-z, 1-5 and dots")
    accounts.add_argument(
        "--resources",
        action="store_true",
        help="with --limits networks: CPU, NET and RAM of their own; devices need none",
    )
    accounts.add_argument("--json", action="store_true", help="print one JSON document")
    accounts.set_defaults(func=_accounts)

    binaries = subparsers.add_parser("parts", help="the binaries: node, Kubo, contract compiler")
    actions = binaries.add_subparsers(metavar="ACTION", required=True)
    fetch = actions.add_parser("fetch", help="fetch and unpack them, hash-checked")
    fetch.add_argument("--contracts", action="store_true", help="the contract compiler as well")
    fetch.set_defaults(func=_parts_fetch)
    path = actions.add_parser("path", help="print where a part lies, fetched if need be")
    path.add_argument("name", help="antelope, kubo, zig or cdt")
    path.set_defaults(func=_parts_path)


def _add_home(parser: argparse.ArgumentParser) -> None:
    default = default_home()
    parser.add_argument(
        "--home",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"folder of the network (default {default}; $GRADLEDGER_HOME)",
    )


def _up(args: argparse.Namespace) -> int:
    from gradledger.localnet.network import Network

    network = Network(
        args.home,
        http_port=args.http_port,
        p2p_port=args.p2p_port,
        kubo_port=args.kubo_port,
        say=lambda text: print(text, file=sys.stderr),
    )
    network.up(producers=args.producers, validators=args.validators, limits=args.limits)
    _show(network.status(), as_json=args.json)
    return 0


def _down(args: argparse.Namespace) -> int:
    from gradledger.localnet.network import Network

    stopped = Network(args.home).down(wipe=args.wipe)
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _status(args: argparse.Namespace) -> int:
    from gradledger.localnet.network import Network

    document = Network(args.home).status()
    _show(document, as_json=args.json)
    return 0 if document["state"] == "up" else 1


def _accounts(args: argparse.Namespace) -> int:
    from gradledger.localnet.network import VALIDATOR_RESOURCES, Network

    network = Network.load(args.home)
    if args.name:
        given = VALIDATOR_RESOURCES if args.resources else None
        network.create_accounts(args.name, resources=given)
    files = network.info().accounts
    shown = {name: files[name] for name in args.name or sorted(files)}
    if args.json:
        print(json.dumps(shown, indent=2))
    else:
        for name, path in shown.items():
            print(f"{name:<13} {path}")
    return 0


def _parts_fetch(args: argparse.Namespace) -> int:
    from gradledger.localnet import parts

    for name in parts.NETWORK_PARTS + (parts.CONTRACT_PARTS if args.contracts else ()):
        print(f"{name}: {parts.fetch(name)}", flush=True)
    return 0


def _parts_path(args: argparse.Namespace) -> int:
    from gradledger.localnet import parts

    print(parts.fetch(args.name))
    return 0


def _show(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document, indent=2))
        return
    if document["state"] == "none":
        print(f"no network in {document['home']}: start one with gradledger up")
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        raise ConfigError(
            "tables need rich: pip install 'gradledger[cli]', or add --json"
        ) from None

    table = Table(title=f"{document['home']}: {document['state']}")
    for column in ("process", "state", "pid", "listens on"):
        table.add_column(column, overflow="fold")
    for one in document["processes"]:
        ports = ", ".join(f"{kind} 127.0.0.1:{port}" for kind, port in one["ports"].items())
        style = "green" if one["state"] == "up" else "red"
        table.add_row(one["name"], f"[{style}]{one['state']}[/]", str(one["pid"] or "-"), ports)
    console = Console()
    console.print(table)
    lines = {
        "chain": ",".join(document["chain"]),
        "store": document["store"],
        "node": document["server_version"],
        "block": f"{document['head_block']} (irreversible {document['irreversible_block']})",
        "contract": document["contract"],
        "token": f"{document['token']['symbol']} of {document['token']['contract']}",
        "keys": f"{document['home']}/keys ({len(document['accounts'])} accounts)",
        "logs": f"{document['home']}/logs",
    }
    for name, value in lines.items():
        console.print(f"{name:>9}  {value}", highlight=False, soft_wrap=True)
