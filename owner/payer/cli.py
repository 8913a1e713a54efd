"""`gradledger owner payer ...`: make the cosigning key, run the service, look at it, end it."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradledger import logs
from gradledger.cli_parts import account_name, task_name
from gradledger.errors import ConfigError
from gradledger.places import add_network, find_home

if TYPE_CHECKING:
    from gradledger.chain.client import ChainClient
    from gradledger.metrics import Metrics

KEY_FILE = "cosign.json"
RECORD_FILE = "signed.sqlite"
NEWEST_SHOWN = 10

_EPILOG = """\
On a chain that counts CPU and NET, a payer lets devices take part that have none:
  gradledger up --limits                                such a chain, with an account `payer`
  gradledger owner payer setup                          once: a key that can only cosign
  gradledger owner payer run --task digits
and in the app:
  Device("phone1", ..., payer="http://127.0.0.1:8899")

The payer is the first authoriser of a device's own transaction, so the chain bills it and not the
device. The service signs only what devices do in its tasks (`join`, `fedlearning`, `reveal`,
`openupload`), for admitted devices that have signed the transaction themselves, capped in CPU and
NET, and no more often than its limits say.
Whatever else is asked gets a refusal: unknown_action, not_a_member, bad_signature, wrong_chain,
replay, round_limit, device_limit, task_limit, ... What it signed lies in --state and outlives it.

The key that signs is not the account's own: the chain refuses it everywhere but in those
actions, and there it is nothing without the device's signature. Give the payer an account of its
own, with no tokens and little RAM, so that even a stolen key costs no more than CPU and NET.
"""
_RUN_EPILOG = """\
examples:
  gradledger owner payer run --task digits --task letters
  gradledger owner payer run --chain http://127.0.0.1:8888 --state /var/lib/payer --task digits \\
      --per-device-hour 6 --port 9000

It listens on loopback. For devices elsewhere, put a web server with TLS before it.
"""


def add_commands(commands: Any) -> None:
    """Register `payer` and its commands below `owner`."""
    from gradledger.metrics import add_option as add_metrics_option

    raw = argparse.RawDescriptionHelpFormatter
    group = commands.add_parser(
        "payer",
        help="pay CPU and NET for devices that have none",
        description="Pay CPU and NET for devices that have none.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    actions = group.add_subparsers(metavar="ACTION", required=True)

    setup = _command(actions, "setup", _setup, "make the cosigning key and its permission")
    _add_active_key(setup)

    run = _command(actions, "run", _run, "run the service", epilog=_RUN_EPILOG, formatter_class=raw)
    run.add_argument(
        "--task",
        type=task_name,
        action="append",
        required=True,
        metavar="NAME",
        help="may be repeated",
    )
    run.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="default 127.0.0.1")
    run.add_argument(
        "--port", type=int, default=8899, metavar="N", help="default 8899; 0: a free one"
    )
    add_metrics_option(run)
    limits = run.add_argument_group("limits")
    for name, text in (
        ("per-round", "signatures for each step of one device's upload in a round (default 3)"),
        ("per-device-hour", "signatures for one device in an hour (default 60)"),
        ("per-task-hour", "signatures for one task in an hour (default 20000)"),
        ("cpu-ms", "CPU cap of one transaction (default 50)"),
        ("net-words", "NET cap of one transaction, words of 8 bytes (default 128)"),
        ("expiration-sec", "how long a transaction may be valid (default 120)"),
    ):
        limits.add_argument(f"--{name}", type=int, metavar="N", help=text)

    _command(actions, "show", _show, "show what the payer can spend and what it signed last")

    revoke = _command(actions, "revoke", _revoke, "take the permission away for good")
    _add_active_key(revoke)


def _command(
    actions: Any, name: str, action: Any, text: str, **options: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", **options
    )
    place = parser.add_argument_group("where")
    add_network(place)
    place.add_argument(
        "--account",
        type=account_name,
        metavar="NAME",
        help="the payer; default: that of --home, or of the key",
    )
    place.add_argument(
        "--state", type=Path, metavar="DIR", help="default HOME/owner/payer, or ./payer"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("-v", "--verbose", action="store_true", help="log each signature")
    logs.add_options(parser)
    parser.set_defaults(func=action)
    return parser


def _add_active_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="the payer's active key; default: in --home"
    )


# ---- where the parts are ----------------------------------------------------------------------


class _Place:
    """Flags and network, put together."""

    def __init__(self, args: argparse.Namespace) -> None:
        from gradledger.chain.client import ChainClient
        from owner.cli import load_network

        level = logging.INFO if args.verbose else logging.WARNING
        logs.start(level, form=args.log_format, path=args.log_file)
        self._home = home = find_home(args)
        network = load_network(home) if home is not None else {}
        urls = args.chain or network.get("chain")
        if not urls:
            raise ConfigError("expected --home DIR, or --chain URL")
        self.chain: ChainClient = ChainClient(urls)
        self.contract: str = args.contract or network.get("contract") or "fedlearning"
        self.state: Path = args.state or (home / "owner" if home else Path()) / "payer"
        self.key_path = self.state / KEY_FILE
        self._account: str | None = args.account or network.get("payer") or network.get("owner")
        self._args = args

    def active_key(self) -> tuple[str, Any]:
        """Return the payer's account and its active key."""
        from gradledger.chain.keys import load_key_file

        path = self._args.key_file
        if path is None:
            if self._home is None or self._account is None:
                raise ConfigError("expected --home DIR or --key-file FILE")
            path = self._home / "keys" / f"{self._account}.json"
        account, key = load_key_file(path)
        if self._args.account not in (None, account):
            raise ConfigError(f"{path}: expected the key of {self._args.account}, got {account}'s")
        return account, key

    def cosign_key(self) -> tuple[str, Any]:
        """Return the payer's account and its cosigning key."""
        from gradledger.chain.keys import load_key_file
        from owner.payer.setup import load_cosign_key

        account = self._account
        if account is None and self.key_path.exists():
            account = load_key_file(self.key_path)[0]
        return account or "", load_cosign_key(self.key_path, account or "")


# ---- commands ---------------------------------------------------------------------------------


def _setup(args: argparse.Namespace) -> None:
    from gradledger.chain.payer import ACTIONS
    from owner.payer.setup import check, load_cosign_key, setup

    place = _Place(args)
    account, key = place.active_key()
    trx = setup(
        place.chain,
        account=account,
        key=key,
        key_path=place.key_path,
        contract=place.contract,
    )
    public = load_cosign_key(place.key_path, account).public
    standing = check(place.chain, account=account, public=public, contract=place.contract)
    if standing.problems:
        raise ConfigError("; ".join(standing.problems))
    if args.json:
        print(json.dumps({"account": account, "public_key": str(public), "transaction": trx}))
        return
    print(f"{place.key_path}: the cosigning key of {account}, {public}")
    done = "was there already" if trx is None else f"made by transaction {trx}"
    print(f"{account}@cosign, for {', '.join(ACTIONS)} of {place.contract} alone: {done}")


def _run(args: argparse.Namespace) -> int:
    from gradledger.metrics import served

    place = _Place(args)
    with served(args.metrics) as metrics:
        return _serve(args, place, metrics)


def _serve(args: argparse.Namespace, place: _Place, metrics: Metrics) -> int:
    """Answer devices until a signal comes."""
    import signal
    import threading

    from gradledger.chain.contract import FedLearning
    from gradledger.metrics import PayerMetrics
    from owner.payer.record import Record
    from owner.payer.rules import ChainView, Cosigner, Limits
    from owner.payer.service import PayerServer
    from owner.payer.setup import check

    metrics.watch(place.chain)
    account, key = place.cosign_key()
    given = {one.name: getattr(args, one.name) for one in fields(Limits)}
    limits = Limits(**{name: value for name, value in given.items() if value is not None})
    standing = check(place.chain, account=account, public=key.public, contract=place.contract)
    if standing.problems:
        raise ConfigError("; ".join(standing.problems))
    contract = FedLearning(place.chain, place.contract)
    for task in args.task:
        contract.task(task)
        if contract.member(task, account) is not None:
            raise ConfigError(
                f"{account} is a member of task {task}, so that its cosigning key could act for it "
                "there: pay with an account that is no member"
            )
    record = Record(place.state / RECORD_FILE)
    cosigner = Cosigner(
        ChainView(place.chain, place.contract),
        record,
        key=key,
        account=account,
        tasks=args.task,
        limits=limits,
        metrics=PayerMetrics(metrics),
    )
    server = PayerServer(cosigner, host=args.host, port=args.port)

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if args.json:
            facts = {"url": server.url, "account": account, "tasks": list(cosigner.tasks)}
            print(json.dumps(facts), flush=True)
        else:
            print(f"{account} pays for {', '.join(cosigner.tasks)} at {server.url}", flush=True)
        server.serve_forever(poll_interval=0.1)
    finally:
        server.server_close()
        record.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _show(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from owner.payer.record import Record
    from owner.payer.setup import check

    place = _Place(args)
    account, key = place.cosign_key()
    standing = check(place.chain, account=account, public=key.public, contract=place.contract)
    path, signed = place.state / RECORD_FILE, []
    if path.exists():
        record = Record(path)
        signed = record.newest(NEWEST_SHOWN)
        record.close()
    if args.json:
        newest = [asdict(one) for one in signed]
        document = {"account": account, **asdict(standing), "newest": newest}
        print(json.dumps(document, indent=2))
        return
    for problem in standing.problems:
        print(f"PROBLEM: {problem}")
    left = {"CPU us": standing.cpu_us, "NET bytes": standing.net_bytes}
    left["RAM bytes"] = standing.ram_bytes
    print(f"{account} has left: " + ", ".join(f"{v} {n}" for n, v in left.items() if v >= 0))
    for one in signed:
        at = datetime.fromtimestamp(one.signed_at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        print(f"{at} {one.trx_id} {one.action} of {one.device} in {one.task}")


def _revoke(args: argparse.Namespace) -> None:
    from owner.payer.setup import revoke

    place = _Place(args)
    account, key = place.active_key()
    trx = revoke(place.chain, account=account, key=key)
    text = f"{account}@cosign is gone" if trx else f"{account} has no permission cosign"
    print(json.dumps({"account": account, "transaction": trx}) if args.json else text)
