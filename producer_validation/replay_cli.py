"""``gradledger audit verdicts``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradledger.cli_parts import CHECK_CODES, USAGE, task_name, whole_number
from gradledger.errors import GradledgerError
from gradledger.places import add_places, find_places

if TYPE_CHECKING:
    from producer_validation.replay import VerdictsReport

HELD, NOT_HELD, NOT_JUDGED = 0, 1, USAGE
WRONG_SHOWN_MAX = 50

_EPILOG = """\
examples:
  gradledger audit verdicts digits                          what the public bytes decide
  gradledger audit verdicts digits --key val1.json          what that validator could open as well
  gradledger audit verdicts digits --key val1.json --version 3 --json

Without a key: that the upload is there, its hash, form, header, key and length. With the key file
of a validator of the task: ciphertexts, copies, openings and sums, in sealed mode updates and what
is measured of them; the key of a sealed task's owner opens updates, but no validation sets. Keys
stay in this process. --key can be given several times: a validator's own key tells whether an
upload was sealed to it as it should be.

A verdict that cannot be told any more is counted and is held against nobody.

exit codes: 0 all that could be judged hold; 1 some do not, and are named; 2 none could be judged,
or wrong usage; 3 a node or IPFS does not answer
"""


def add_commands(subparsers: Any) -> None:
    """Register the command."""
    verdicts = subparsers.add_parser(
        "audit verdicts",
        help="give every verdict of a task again, and name those that do not hold",
        description="Give every verdict of a task again from the chain and IPFS, by the functions "
        "that validators judge by, and name those that do not hold.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verdicts.add_argument("task", type=task_name, metavar="TASK")
    verdicts.add_argument(
        "--key", type=Path, action="append", default=[], metavar="FILE", help="key file of a reader"
    )
    verdicts.add_argument(
        "--version", type=whole_number(1), metavar="K", help="of this round alone"
    )
    add_places(verdicts, store=True)
    verdicts.add_argument(
        "--from-block",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="read no block before this one",
    )
    verdicts.add_argument("--json", action="store_true", help="print one JSON document")
    codes = {**CHECK_CODES, GradledgerError: NOT_JUDGED}
    verdicts.set_defaults(func=_verdicts, exit_codes=codes)


def _verdicts(args: argparse.Namespace) -> int:
    from gradledger.audit.cli import progress
    from gradledger.chain.keys import load_key_file
    from producer_validation.replay import replay_verdicts

    places = find_places(args)
    keys = [load_key_file(path) for path in args.key]
    with progress() as tell:
        report = replay_verdicts(
            places.chain,
            args.task,
            store=places.store,
            keys=keys,
            contract=places.contract,
            version=args.version,
            from_block=args.from_block,
            tell=tell,
        )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report)
    if report.count("wrong") or report.sums.wrong:
        return NOT_HELD
    return NOT_JUDGED if report.count("untold") and not report.count("held") else HELD


def _show(report: VerdictsReport) -> None:
    print(f"task {report.task} of {report.contract} on chain {report.chain_id}")
    print(f"  blocks      up to {report.last_block}, {report.last_id}")
    print(f"  keys        {', '.join(report.keys) or 'none: what is public'}")
    print(f"  looked at   rounds: {report.rounds}, uploads: {report.uploads}")
    print(f"  {'validator':<13}{'verdicts':>10}{'held':>10}{'not held':>10}{'cannot be told':>16}")
    for name, tally in sorted(report.validators.items()):
        print(
            f"  {name:<13}{tally.verdicts:>10}{tally.held:>10}{tally.wrong:>10}{tally.untold:>16}"
        )
    if report.sums.verdicts:
        sums = report.sums
        print(
            f"  {'(sums)':<13}{sums.verdicts:>10}{sums.held:>10}{sums.wrong:>10}{sums.untold:>16}"
        )
    for reason, count in report.untold.most_common():
        print(f"  not told    {count}: {reason}")
    for reason, count in report.noted.most_common():
        print(f"  held, but   {count}: {reason}")
    for one in report.wrong[:WRONG_SHOWN_MAX]:
        print(f"  not held    {one}")
    for wrong in report.wrong_sums[:WRONG_SHOWN_MAX]:
        print(f"  not held    {wrong}")
    if report.count("wrong") > WRONG_SHOWN_MAX:
        print(f"  not held    {report.count('wrong') - WRONG_SHOWN_MAX} more")
    print(report.verdict)
