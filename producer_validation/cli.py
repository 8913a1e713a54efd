"""`gradledger validator ...`: run the oracle, or judge an envelope's form by hand."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Any

FILE_BYTES_MAX = 2**28 + 2**22

_EPILOG = """\
A validator beside a producer's own node:
  gradledger validator run --account val1 --key-file val1.json \\
      --chain http://127.0.0.1:8888 --store /ip4/127.0.0.1/tcp/5001 --all-tasks

It serves each task whose owner admitted the account (`gradledger owner admit --validators val1`),
and joins by itself. Stop it with Ctrl-C or SIGTERM at any time: it goes on where the chain stands.
"""


def add_commands(subparsers: Any) -> None:
    """Register `validator` and its commands with the command line's sub-parsers."""
    raw = argparse.RawDescriptionHelpFormatter
    group = subparsers.add_parser(
        "validator",
        help="run the validation oracle",
        description="The oracle: fetch uploads, check them, attest, sum the accepted ones.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run", help="follow the chain until stopped", epilog=_EPILOG, formatter_class=raw
    )
    run.add_argument("--account", required=True, metavar="NAME")
    run.add_argument("--key-file", type=Path, required=True, metavar="FILE", help="mode 0600")
    run.add_argument(
        "--chain", required=True, metavar="URL[,URL...]", help="nodes; the next one on failure"
    )
    run.add_argument(
        "--store", required=True, metavar="ADDR", help="Kubo's RPC, /ip4/... or http://host:port"
    )
    which = run.add_mutually_exclusive_group(required=True)
    which.add_argument("--task", action="append", metavar="NAME", help="may be given repeatedly")
    which.add_argument("--all-tasks", action="store_true", help="each task that admitted NAME")
    run.add_argument("--contract", default="fedlearning", metavar="NAME")
    run.add_argument("--poll-sec", type=float, default=0.25, metavar="S", help="default 0.25")
    run.add_argument("--log-file", type=Path, metavar="FILE", help="default: standard error")
    run.set_defaults(func=_run)

    check = commands.add_parser(
        "check",
        help="print an envelope's header, or why it is none",
        description="Check the form of an envelope without a chain. Exit code 1 if it is none.",
    )
    check.add_argument("file", type=Path, nargs="+", metavar="FILE")
    check.add_argument("--json", action="store_true", help="one JSON document")
    check.set_defaults(func=_check)


def _run(args: argparse.Namespace) -> int:
    from gradledger.errors import ConfigError
    from producer_validation.validator import Validator

    if not 0.01 <= args.poll_sec <= 60:
        raise ConfigError(f"expected --poll-sec of 0.01..60, got {args.poll_sec:g}")
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s level=%(levelname)s %(message)s",
        filename=args.log_file,
    )
    validator = Validator(
        args.account,
        args.key_file,
        args.chain,
        args.store,
        tasks=args.task,
        contract=args.contract,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    logging.getLogger("gradledger.validator").info("event=started validator=%s", args.account)
    worker = threading.Thread(
        target=validator.run, args=(stop,), kwargs={"poll_sec": args.poll_sec}, daemon=True
    )
    worker.start()
    while worker.is_alive() and not stop.wait(0.5):
        pass
    worker.join(timeout=1.0)  # a step in progress is safe to leave: the chain knows how far it got
    return 0 if stop.is_set() else 1


def _check(args: argparse.Namespace) -> int:
    from gradledger import envelope
    from gradledger.errors import EnvelopeError

    documents = []
    for path in args.file:
        document: dict[str, Any] = {"file": str(path)}
        try:
            with path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
            found = envelope.parse(data)
            header = found.header
            document |= {
                "valid": True,
                "kind": header.kind.name.lower(),
                "codec": header.codec.name.lower(),
                "task": header.task,
                "sender": header.sender,
                "version": header.version,
                "parameters": header.parameters,
                "examples": header.examples,
                "sealed": header.sealed,
                "payload_bytes": header.payload_bytes,
                "readers": list(found.readers),
            }
        except (EnvelopeError, OSError) as error:
            document |= {"valid": False, "reason": str(error)}
        documents.append(document)
    if args.json:
        json.dump(documents, sys.stdout, indent=2)
        print()
    else:
        for document in documents:
            for name, value in document.items():
                shown = ", ".join(value) if isinstance(value, list) else value
                print(f"{name + ':':<15}{shown}")
            print()
    return 0 if all(document["valid"] for document in documents) else 1
