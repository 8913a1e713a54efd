"""``gradledger check-set``: did a device get the validation points that the task drew for it?

Whoever can open a set can tell: its device and the validators. What is checked is what they check
themselves before they use it, `gradledger.validation.read_issued_set`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradledger.chain.contract import FedLearning, Role, Round, RoundState, Task
from gradledger.cli_parts import CHECK_CODES, USAGE, account_name, task_name, whole_number
from gradledger.errors import (
    BadFieldError,
    ConfigError,
    EnvelopeError,
    IrreversibilityTimeout,
    ModelError,
    NotAReaderError,
    ValidationSetError,
)
from gradledger.places import add_places, find_places
from gradledger.validation import Draw, class_list, opening_id, read_issued_set

if TYPE_CHECKING:
    from gradledger.card import TaskCard
    from gradledger.chain.keys import PrivateKey
    from gradledger.store import Store

__all__ = ["SetReport", "check_set"]

HOLDS, WRONG = 0, 1
SET_BYTES_MAX = 2**26 + 2**21
BLOCKS_AT_ONCE = 2_000  # read back between two looks whether all is found

_HELP = """\
examples:
  gradledger check-set digits --device phone1 --version 3 --key .gradledger/keys/phone1.json
  gradledger check-set digits --device phone1 --version 3 --key val1.json --chain URL --store ADDR

The set is read with the key of its device, or of a validator that it was sealed to. Of an earlier
round than the device's newest, the record of the set is looked for in the blocks.

exit codes: 0 the set was drawn by the round's block and is in the committed root; 1 it was not, and
it is said what was expected and what came, or it cannot be read; 2 wrong usage, or there is no such
task, round, set, key file or network; 3 a node or IPFS does not answer
"""


@dataclass(frozen=True)
class SetReport:
    """What was checked, and whether it holds.

    Parameters
    ----------
    task, device : str
    version : int
        Round.
    cid, hash : str
        Of the set, as the chain records it.
    block : int
        That opened the round, and so drew the points.
    block_id : str
    root : str
        Of the committed points, from the task's card.
    classes : tuple of int
        That the device declared.
    per_class : int
    holds : bool
    reason : str
        What was expected and what came, where it does not hold.
    from_blocks : bool
        Whether the set's record was looked for in the blocks.
    is_regression : bool
        Whether the classes are strata of a number to be learnt.
    """

    task: str
    device: str
    version: int
    cid: str
    hash: str
    block: int
    block_id: str
    root: str
    classes: tuple[int, ...]
    per_class: int
    holds: bool
    reason: str = ""
    from_blocks: bool = False
    is_regression: bool = False


@dataclass(frozen=True)
class _Issued:
    """A set as the owner recorded it, and the classes that the device had declared then."""

    cid: str
    hash: bytes
    classes: int


def check_set(
    contract: FedLearning,
    store: Store,
    task: str,
    *,
    device: str,
    version: int,
    account: str,
    key: PrivateKey,
) -> SetReport:
    """Check that a device got the validation points that a round's block drew.

    Parameters
    ----------
    contract : FedLearning
    store : Store
    task, device : str
    version : int
        Round.
    account : str
        Who reads the set: its device, or a validator of then.
    key : PrivateKey
        Of `account`.

    Returns
    -------
    SetReport

    Raises
    ------
    ConfigError
        The task commits to no points, there is no such round, or it has no set for this device.
    NotAReaderError
        The set is not sealed to `account`.
    IrreversibilityTimeout
        The block that opened the round can still be undone.
    NodeError, StoreError
        Node or store do not answer.
    """
    from gradledger.card import fetch_card

    found = contract.task(task)
    card = fetch_card(store, found)
    if card.validation is None:
        raise ConfigError(f"task {task} commits to no validation points: its owner picks them")
    row = contract.round(task, version)
    if row is None:
        raise ConfigError(f"task {task} has no round {version}")
    block_id = opening_id(contract, task, row)
    if block_id is None:
        raise IrreversibilityTimeout(
            f"block {row.opened_block}, which opened round {version}, can still be undone"
        )
    member = contract.member(task, device)
    report = None
    if member is not None and member.role is Role.DEVICE and member.set_version == version:
        issued = _Issued(member.set_cid, member.set_hash, member.classes)
        report = _check(found, card, row, block_id, device, issued, store, account, key)
    # Once the round is settled the device may have declared other classes, or got its next set.
    if report is None or not (report.holds or row.state is not RoundState.SETTLED):
        issued = _from_blocks(contract, found, row, device)
        report = _check(
            found, card, row, block_id, device, issued, store, account, key, from_blocks=True
        )
    return report


def _check(
    task: Task,
    card: TaskCard,
    row: Round,
    block_id: str,
    device: str,
    issued: _Issued,
    store: Store,
    account: str,
    key: PrivateKey,
    *,
    from_blocks: bool = False,
) -> SetReport:
    commitment = card.validation
    assert commitment is not None
    draw = Draw(commitment, block_id, task.id, row.version, device, issued.classes)
    reason = ""
    try:
        data = store.get(issued.cid, bytes_max=SET_BYTES_MAX)
        read_issued_set(_open(data, task, row.version, issued, account, key), draw, card.target)
    except NotAReaderError:
        raise
    except (EnvelopeError, ModelError, ValidationSetError) as error:
        reason = str(error)
    return SetReport(
        task=task.id,
        device=device,
        version=row.version,
        cid=issued.cid,
        hash=issued.hash.hex(),
        block=row.opened_block,
        block_id=block_id,
        root=commitment.root.hex(),
        classes=tuple(class_list(issued.classes)),
        per_class=commitment.per_class,
        holds=not reason,
        reason=reason,
        from_blocks=from_blocks,
        is_regression=card.target is not None,
    )


def _open(
    data: bytes, task: Task, version: int, issued: _Issued, account: str, key: PrivateKey
) -> bytes:
    from gradledger import envelope

    digest = hashlib.sha256(data).digest()
    if digest != issued.hash:
        raise EnvelopeError(f"expected the recorded hash {issued.hash.hex()}, got {digest.hex()}")
    parsed = envelope.parse(data)
    header = parsed.header
    expected = (envelope.Kind.VALIDATION_SET, task.id, task.owner, version)
    got = (header.kind, header.task, header.sender, header.version)
    if got != expected:
        raise EnvelopeError(f"expected kind, task, sender, version {expected}, got {got}")
    return parsed.open(account, key.encryption_key())


# ---- older rounds -------------------------------------------------------------------------------


def _from_blocks(contract: FedLearning, task: Task, row: Round, device: str) -> _Issued:
    """Return the last record of a device's set in a round, from proven blocks.

    They are read back from the opening of the next round, or the last irreversible block, until the
    record is found and the `join` before it, which says the device's classes.
    """
    record: dict[str, Any] | None = None
    for name, data in _actions(contract, task, row):
        if name == "issueset" and record is None:
            if (data["device"], data["version"]) == (device, row.version):
                record = data
        elif name == "join" and record is not None and data["account"] == device:
            return _Issued(record["cid"], bytes.fromhex(record["hash"]), int(data["classes"]))
    raise ConfigError(f"the blocks of task {task.id} have no set for {device} in {row.version}")


def _actions(contract: FedLearning, task: Task, row: Round) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the task's `issueset` and `join`, the newest first."""
    from gradledger.audit.reader import BlockReader, Subject

    client, account = contract.client, contract.account
    info = client.get_confirmed()
    last, last_id = info.irreversible_block, info.irreversible_id
    following = contract.round(task.id, row.version + 1)
    if following is not None and following.opened_block < last:
        found = opening_id(contract, task.id, following)
        if found is not None:
            last, last_id = following.opened_block, found
    subject = Subject(task.id, account, task.terms.token_contract, info.chain_id)
    reader = BlockReader(client, subject, traces=False)
    while last >= 1:
        first = max(1, last - BLOCKS_AT_ONCE + 1)
        with closing(reader.read(first, last, last_id)) as stretch:
            steps = list(stretch.steps())
            begins, last, last_id = stretch.begins, stretch.first - 1, stretch.first_previous
        for step in reversed(steps):
            for one in reversed(step.inputs):
                if one.account == account and one.name in ("issueset", "join"):
                    data = contract.abi.unpack(contract.abi.actions[one.name], one.data)
                    if data["task"] == task.id:
                        yield one.name, data
        if begins:
            return


# ---- the command --------------------------------------------------------------------------------


def add_commands(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "check-set",
        help="was a validation set drawn as its task committed to?",
        description="Check that the validation set which a device got in a round was drawn by the "
        "block that opened the round, out of the points that the task's card commits to.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", type=task_name, metavar="TASK")
    parser.add_argument("--device", type=account_name, required=True, metavar="NAME")
    parser.add_argument(
        "--version", type=whole_number(1), required=True, metavar="K", help="round, from 1 on"
    )
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="key file of who reads the set"
    )
    add_places(parser, store=True)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(func=_run, exit_codes={**CHECK_CODES, BadFieldError: USAGE})


def _run(args: argparse.Namespace) -> int:
    from gradledger.chain.keys import load_key_file

    reader, key = load_key_file(args.key)
    places = find_places(args)
    if places.store is None:
        raise ConfigError("expected --home DIR, or --store ADDR")
    report = check_set(
        FedLearning(places.chain, places.contract),
        places.store,
        args.task,
        device=args.device,
        version=args.version,
        account=reader,
        key=key,
    )
    if args.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        _show(report)
    return HOLDS if report.holds else WRONG


def _show(report: SetReport) -> None:
    numbers = ", ".join(str(c) for c in report.classes)
    classes = f"{'strata' if report.is_regression else 'classes'} {numbers}"
    where = "the blocks" if report.from_blocks else "the tables"
    print(f"round {report.version} of task {report.task}, {report.device}: {report.cid}")
    print(f"  recorded in {where}; {report.per_class} points of each of the {classes}")
    print(f"  opened by block {report.block}, {report.block_id}")
    print(f"  committed root {report.root}")
    if report.holds:
        print("the set was drawn by the round's block and is in the committed root")
    else:
        print(f"THE SET IS NOT THE ONE DRAWN: {report.reason}")
