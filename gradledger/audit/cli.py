"""``gradledger audit`` and ``gradledger receipt check``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradledger.cli_parts import CHECK_CODES, UNREACHED, USAGE, task_name, whole_number
from gradledger.errors import BadFieldError
from gradledger.places import add_places, find_places

if TYPE_CHECKING:
    from gradledger.audit.report import AuditReport

EXPLAINED, NOT_EXPLAINED = 0, 1

_AUDIT = """\
examples:
  gradledger audit digits                                  a task on the network of `gradledger up`
  gradledger audit digits --chain http://127.0.0.1:8888 --store /ip4/127.0.0.1/tcp/5001
  gradledger audit digits --chain URL --store none --json  no blobs; one JSON document

Blocks are read back from the last irreversible one to the task's first. Each must have the id by
which its successor names it, and the transactions of which its header has the root: the last
block's id, which is printed, covers all of them. Compare that id with any node that you trust.

exit codes: 0 all explained; 1 something is not explained, and is named; 2 wrong usage, or no such
task or network; 3 something could not be reached (a node, a pruned block or its traces, a blob,
what a transaction did that a block has as a hash alone), and nothing else was found
"""

_CHECK = """\
examples:
  gradledger receipt check receipt.json                               without any network
  gradledger receipt check receipt.json --chain http://127.0.0.1:8888 and compare with the chain

exit codes: 0 it holds; 1 it does not, and the field is named; 2 wrong usage, or there is no such
file; 3 no node answers
"""


def add_commands(subparsers: Any) -> None:
    """Register the commands."""
    raw = argparse.RawDescriptionHelpFormatter
    audit = subparsers.add_parser(
        "audit",
        help="derive every upload, verdict and payment of a task again from the blocks",
        description="Derive every upload, verdict and payment of a task again, from a node's "
        "blocks and from IPFS, and compare them with what the contract recorded.",
        epilog=_AUDIT,
        formatter_class=raw,
    )
    audit.add_argument("task", type=task_name, metavar="TASK")
    add_places(audit, store=True)
    audit.add_argument(
        "--from-block",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="read no block before this one (reading ends at the task's first anyway)",
    )
    audit.add_argument("--json", action="store_true", help="print one JSON document")
    # Of a task that is not there nothing is left unexplained.
    audit.set_defaults(func=_audit, exit_codes={**CHECK_CODES, BadFieldError: USAGE})

    receipt = subparsers.add_parser("receipt", help="check a receipt of a settled upload")
    actions = receipt.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="check record, path and root; with --chain also that the root is on chain",
        description="Check a receipt: that its fields are its record's, and that its path leads "
        "from the record to its root. With --chain: that the chain has that root.",
        epilog=_CHECK,
        formatter_class=raw,
    )
    check.add_argument("file", type=Path, metavar="FILE", help="receipt.json")
    check.add_argument("--chain", metavar="URL,...", help="endpoints of nodes")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    check.set_defaults(func=_check, exit_codes=CHECK_CODES)


# ---- audit ------------------------------------------------------------------------------------


def _audit(args: argparse.Namespace) -> int:
    from gradledger.audit.run import audit

    places = find_places(args)
    with progress() as tell:
        report = audit(
            places.chain,
            args.task,
            contract=places.contract,
            store=places.store,
            from_block=args.from_block,
            keep_payments=args.json,
            tell=tell,
        )
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report)
    if not report.explained:
        return NOT_EXPLAINED
    return EXPLAINED if report.complete else UNREACHED


def _show(report: AuditReport) -> None:
    print(f"task {report.task} of {report.contract} on chain {report.chain_id}")
    print(
        f"  blocks      {report.first_block} to {report.last_block}, the last is {report.last_id}\n"
        f"              {report.blocks} blocks and {report.transactions} transactions, proven by "
        "that id"
    )
    if report.task_transactions:
        _show_books(report)
    if report.witnesses:
        print(f"  witnesses   {report.witnesses} of the nodes asked have that block")
    for note in report.notes:
        print(f"  note        {note}")
    for one in report.unreached:
        print(f"  not seen    {one}")
    print(report.verdict)


def _show_books(report: AuditReport) -> None:
    for one in report.rounds:
        audits = f"{one.audited} audited, {one.caught} caught, " if one.audited else ""
        print(
            f"  round {one.version:<5} {one.state}: {one.uploads} uploads, "
            f"{one.accepted} accepted, {one.refused} refused, "
            f"{one.silent} by silence, {audits}{one.pending} pending, "
            f"paid {report.money(one.paid)}"
        )
    print(
        f"  money       deposited {report.money(report.deposited)} = "
        f"paid {report.money(report.paid)} + withdrawn {report.money(report.withdrawn)} + "
        f"reserved {report.money(report.reserved)} + free {report.money(report.free)}"
    )
    print(f"  actions     {report.uploads} uploads, {report.verdicts} verdicts")
    unsigned = f"; {report.unsigned} could not be told" if report.unsigned else ""
    print(
        f"  signatures  {report.signed} transactions by keys of the accounts they act for{unsigned}"
    )
    known = "the one of this release" if report.code == "known" else report.code
    print(f"  code        {known}")
    traces = "agree with the books" if report.traces else "not given by this node"
    if report.untraced:
        traces = f"agree with the books where there are any; {report.untraced} blocks without"
    print(f"  traces      {traces}")
    blobs = "not looked at (--store)"
    if report.blobs is not None:
        blobs = f"{report.blobs} accepted uploads have the recorded hash and CID"
    print(f"  blobs       {blobs}")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr where that is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda what, done, total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("connecting", total=None)
        yield lambda what, done, total: progress.update(
            bar, description=what, completed=done, total=total or None
        )


# ---- receipts ---------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> int:
    from gradledger.receipt import load_receipt, verify_on_chain

    receipt = load_receipt(args.file)
    settled = None
    if args.chain is not None:
        from gradledger.chain.client import ChainClient

        settled = verify_on_chain(receipt, ChainClient(args.chain))
    if args.json:
        print(json.dumps({**receipt.to_dict(), "on_chain": settled}, indent=2))
        return 0
    print(receipt)
    print("  proven      the record leads to the root")
    if settled is None:
        print(
            f"  claimed     that contract {receipt.contract} on chain {receipt.chain_id}\n"
            f"              has this root for round {receipt.version}, over {receipt.count} "
            f"uploads, and pays in {receipt.paid.symbol.code}:\n"
            "              compare with --chain URL"
        )
    else:
        print("  proven      the chain has this root, irreversibly, as this node tells")
    return 0
