"""`gradledger demo`: options and their check; everything heavy is imported when it runs."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any


def add_commands(subparsers: Any) -> None:
    """Register `demo` with the command line's sub-parsers."""
    parser = subparsers.add_parser(
        "demo",
        help="train and pay ten devices on a local network, and show what happened",
        description="Train a model on devices that keep their data, on a real local chain and "
        "IPFS, and pay them from escrow. One device is late, one sends shuffled labels, one an "
        "old version: the contract and the validators refuse them. With --lot one more forges its "
        "errors: it is caught when a lot draws it.",
    )
    parser.add_argument("--devices", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="default 15")
    parser.add_argument(
        "--mode",
        choices=("paillier", "sealed"),
        default="paillier",
        help="who can read an update: nobody, only sums (paillier, the default), or the owner and "
        "the validators (sealed)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="MNIST: a directory with its four IDX files, plain or .gz (default: scikit-learn's "
        "digits)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write plots, report.json and report.html here"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="keep the local network's data here (default: a temporary directory, removed at the "
        "end)",
    )
    parser.add_argument(
        "--framework",
        choices=("sklearn", "torch"),
        default="sklearn",
        help="what the devices train with (default sklearn)",
    )
    parser.add_argument(
        "--key-bits",
        type=int,
        default=3072,
        metavar="N",
        help="the owner's Paillier key (default 3072; 2048 is for a quick look only)",
    )
    parser.add_argument(
        "--lot",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the accepted uploads, that each validator's lot draws for an audit (default 0: "
        "no audits)",
    )
    parser.add_argument(
        "--reveal",
        action="store_true",
        help="CIDs of uploads are told only once the round is closed, so that nobody copies them",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document; progress goes to stderr"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit code: 0, or 1 where it failed or money is not conserved."""
    from gradledger.demo import report as reports
    from gradledger.demo.options import DemoOptions
    from gradledger.demo.training import run_demo
    from gradledger.demo.view import make_view

    options = DemoOptions(
        devices=args.devices,
        rounds=args.rounds,
        mode=args.mode,
        data=args.data,
        out=args.out,
        seed=args.seed,
        home=args.home,
        framework=args.framework,
        key_bits=args.key_bits,
        lot=args.lot,
        reveal=args.reveal,
    )
    if options.out is not None:
        reports.make_folder(options.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # network and workers end with us
    with make_view(sys.stderr if args.json else sys.stdout) as view:
        report = run_demo(options, view)
        if options.out is not None:
            files = reports.write(report, options.out)
            view.say("wrote " + ", ".join(str(path) for path in files))
    if args.json:
        sys.stdout.write(reports.dumps(report))
    else:
        print(reports.summary(report))
    return 0 if report["conserved"] else 1
