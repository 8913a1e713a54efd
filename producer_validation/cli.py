"""`gradledger validator ...`: run the oracle, or look at an envelope's form."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradledger.metrics import Metrics

FILE_BYTES_MAX = 2**28 + 2**22
STOP_SEC = 0.8

_EPILOG = """\
A validator beside a producer's own node:
  gradledger validator run --account val1 --key-file val1.json \\
      --chain http://127.0.0.1:8888 --store /ip4/127.0.0.1/tcp/5001 --all-tasks

It serves each task whose owner admitted the account (`gradledger owner admit --validators val1`),
and joins by itself. Stop it with Ctrl-C or SIGTERM at any time: it goes on where the chain stands.
With --task it serves no other; so nobody else's task costs it anything.

Checking and multiplying take one core, or as many as --processes says, or the workers of a Dask
cluster (pip install 'gradledger[dask]'; `dask scheduler --host 127.0.0.1`, `dask worker` with
--nthreads 1). No secret goes there, but all else that the validator sees does: the cluster is part
of the validator. On other machines it must use TLS, as Dask's configuration says.

What it logs, one line of key=value or of JSON each:
  event=joined    it agreed to a task's terms
  event=accepted  sender=DEVICE: its verdict on an upload is "accept"
  event=refused   sender=DEVICE code=... reason=...: the verdict, and what was expected and came
  event=lot_committed, lot_revealed  its part in drawing who is audited
  event=audited   sender=DEVICE: an opened upload is what it claimed to be
  event=caught    sender=DEVICE code=... reason=...: it is not
  event=skipped   no verdict yet: something of the owner's or of the chain's failed; tried again
  event=summed    it attested the product of the accepted ciphertexts
  event=other_sum sender=VALIDATOR attested another product than this one
  event=outvoted  sender=VALIDATOR attested another product than the quorum
  event=worker_lost  a process or a worker of the cluster; its work is done again
  event=pushed    it moved a round on after a deadline
Codes: unavailable, hash_mismatch, malformed, header_mismatch, wrong_key, out_of_range, duplicate,
error_mismatch, replayed_series, copied_series, class_claim, no_update, norm, no_gain,
opening_mismatch, unrevealed. `docs/protocol.md` has the formats and what each code means,
`docs/caveats.md` what a validator can do wrong.
"""


def add_commands(subparsers: Any) -> None:
    """Register `validator` and its commands with the command line's sub-parsers."""
    from gradledger import logs, metrics

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
    where = run.add_mutually_exclusive_group()
    where.add_argument("--processes", type=int, metavar="N", help="check and multiply in N of them")
    where.add_argument(
        "--dask", metavar="ADDR", help="or on a cluster: tls://host:8786, tcp://127.0.0.1:8786"
    )
    run.add_argument("--poll-sec", type=float, default=0.25, metavar="S", help="default 0.25")
    run.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="remember uploads, to name replays in the log"
    )
    metrics.add_option(run)
    logs.add_options(run)
    run.set_defaults(func=_run)

    check = commands.add_parser(
        "check",
        help="print an envelope's header, or why it is none",
        description=(
            "Check the form of envelopes without a chain and without keys: header, hash and CID "
            "as they should stand on chain. Exit code 1 if one of them is malformed."
        ),
    )
    check.add_argument("file", type=Path, nargs="+", metavar="FILE")
    check.add_argument("--json", action="store_true", help="one JSON document")
    check.set_defaults(func=_check)


def _run(args: argparse.Namespace) -> int:
    from gradledger import logs, metrics
    from gradledger.errors import ConfigError

    if not 0.01 <= args.poll_sec <= 60:
        raise ConfigError(f"expected --poll-sec of 0.01..60, got {args.poll_sec:g}")
    logs.start(logging.INFO, form=args.log_format, path=args.log_file)
    with metrics.served(args.metrics) as counted:
        return _serve(args, counted)


def _serve(args: argparse.Namespace, metrics: Metrics) -> int:
    """Run a validator until a signal comes."""
    from gradledger.chain.client import ChainClient
    from gradledger.logs import say
    from gradledger.store import Store
    from producer_validation.validator import Validator, log

    executor = _executor(args)
    chain, store = ChainClient(args.chain), Store(args.store)
    metrics.watch(chain, store)
    validator = Validator(
        args.account,
        args.key_file,
        chain,
        store,
        tasks=args.task,
        contract=args.contract,
        executor=executor,
        state_dir=args.state_dir,
        metrics=metrics,
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    say(log, logging.INFO, "started", validator=args.account)
    worker = threading.Thread(
        target=validator.run, args=(stop,), kwargs={"poll_sec": args.poll_sec}, daemon=True
    )
    worker.start()
    while worker.is_alive() and not stop.wait(0.5):
        pass
    worker.join(STOP_SEC)  # a step in progress is safe to leave: the chain knows how far it got
    if executor is not None:
        executor.shutdown(wait=False, cancel_futures=True)
    say(log, logging.INFO, "stopped", validator=args.account)
    return 0 if stop.is_set() else 1


def _executor(args: argparse.Namespace) -> Executor | None:
    """Return where checking and multiplying is to be done; None: in this process."""
    from producer_validation.executors import DaskWorkers, ProcessWorkers

    if args.processes is not None:
        return ProcessWorkers(args.processes)
    return DaskWorkers(args.dask) if args.dask is not None else None


def _check(args: argparse.Namespace) -> int:
    documents = [_describe(path) for path in args.file]
    if args.json:
        json.dump(documents, sys.stdout, indent=2)
        print()
    else:
        for document in documents:
            for name, value in document.items():
                shown = ", ".join(value) if isinstance(value, list) else value
                print(f"{name + ':':<15}{shown}")
            print()
    return 0 if all(document["verdict"] == "well_formed" for document in documents) else 1


def _describe(path: Path) -> dict[str, Any]:
    """Return what can be said of a file without a chain and without keys."""
    import hashlib

    from gradledger import envelope
    from gradledger.cid import cid_v0
    from gradledger.errors import EnvelopeError

    document: dict[str, Any] = {"file": str(path)}
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        return document | {"verdict": "unavailable", "reason": error.strerror}
    if len(data) > FILE_BYTES_MAX:
        reason = f"expected at most {FILE_BYTES_MAX} bytes"
        return document | {"verdict": "malformed", "reason": reason}
    document |= {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "cid": cid_v0(data),
    }
    try:
        found = envelope.parse(data)
    except EnvelopeError as error:
        return document | {"verdict": "malformed", "reason": str(error)}
    header = found.header
    return document | {
        "verdict": "well_formed",
        "kind": header.kind.name.lower(),
        "codec": header.codec.name.lower(),
        "task": header.task,
        "sender": header.sender,
        "version": header.version,
        "parameters": header.parameters,
        "slot_bits": header.slot_bits,
        "clip_e6": header.clip_e6,
        "examples": header.examples,
        "key_hash": header.key_hash.hex(),
        "sealed": header.sealed,
        "payload_bytes": header.payload_bytes,
        "readers": list(found.readers),
    }
