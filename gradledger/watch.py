"""``gradledger watch``: a task's round as it happens, read from the contract's tables.

What is shown is the state of the node's head, which may still be undone; for what is final see
`Receipt` and ``gradledger audit``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from gradledger.chain.client import ChainInfo, Timeout
from gradledger.chain.contract import (
    Ballot,
    FedLearning,
    Member,
    Role,
    Round,
    RoundState,
    Task,
    UploadState,
    VerdictCode,
)
from gradledger.chain.names import Asset
from gradledger.cli_parts import task_name
from gradledger.errors import ConfigError, NodeAnswerError, NodeError
from gradledger.phases import (
    barred,
    lots_awaited,
    phase_end,
    unopened,
    unrevealed,
    waits_for,
)
from gradledger.places import add_places, find_places

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_SEC_DEFAULT = 1.0
INTERVAL_SEC_MIN, INTERVAL_SEC_MAX = 0.2, 3600.0
READ_SHARE = 4  # a pause is at least so many times what a reading took
ROUNDS_SHOWN = 5
READS_MAX = 5  # until no round is settled in the middle of a reading, and no fork comes between

_EPILOG = """\
examples:
  gradledger watch digits                          on the network of `gradledger up`
  gradledger watch digits --chain http://127.0.0.1:8888
  gradledger watch digits --json | jq .state       one object for each change
  gradledger watch digits --once                   how it stands, then end

On a terminal it redraws; elsewhere it writes one line for each change. It goes on while the node is
away. Ctrl-C ends it. All numbers are those of the node's newest block, which may still be undone.
"""


@dataclass(frozen=True)
class Snapshot:
    """A task at one moment, as a node's newest block has it.

    Attributes
    ----------
    info : ChainInfo
    task : Task
    rounds : tuple of Round
        The newest `ROUNDS_SHOWN`, the newest first.
    members : tuple of Member
    ballots : tuple of Ballot
        Those on the uploads of `members` to the newest round; none once that is settled.
    """

    info: ChainInfo
    task: Task
    rounds: tuple[Round, ...]
    members: tuple[Member, ...]
    ballots: tuple[Ballot, ...]

    @property
    def round(self) -> Round | None:
        """The newest round."""
        return self.rounds[0] if self.rounds else None

    @property
    def deadline(self) -> int:
        """When the round's phase ends, seconds since 1970; 0 where it does not end by itself."""
        return phase_end(self.round) if self.round else 0

    @property
    def left_sec(self) -> int:
        """Seconds until `deadline` on the chain's clock; negative once it has passed."""
        return self.deadline - self.info.head_time

    def verdicts(self) -> dict[str, tuple[int, int, int]]:
        """Return (accepting, refusing, missing) verdicts of each validator on the newest round."""
        if self.round is None or not self.round.validators:
            return {}
        found = {}
        for place, validator in enumerate(self.round.validators):
            said = [one.verdicts[place] for one in self.ballots]
            accepting = said.count(VerdictCode.ACCEPT)
            missing = said.count(VerdictCode.NONE)
            found[validator] = (accepting, len(said) - accepting - missing, missing)
        return found

    def reasons(self) -> dict[str, int]:
        """Return why uploads of the newest round were refused, and how many."""
        found: dict[str, int] = {}
        version = self.round.version if self.round else 0
        for one in self.members:
            if one.upload_version == version and one.upload_state is UploadState.REFUSED:
                name = one.upload_reason.name.lower()
                found[name] = found.get(name, 0) + 1
        return dict(sorted(found.items()))

    def money(self) -> dict[str, str]:
        """Return the task's money as texts."""
        live = self.round if self.round and self.round.state is not RoundState.SETTLED else None
        task = self.task
        paid = task.paid + (live.paid if live else 0)
        reserved = live.reserved if live else 0
        amounts = {
            "deposited": task.deposited,
            "paid": paid,
            "withdrawn": task.withdrawn,
            "reserved": reserved,
            "free": task.deposited - paid - task.withdrawn - reserved,
        }
        return {name: self.asset(amount) for name, amount in amounts.items()}

    def asset(self, amount: int) -> str:
        """Return an amount of the task's token as text."""
        return str(Asset(amount, self.task.terms.token_symbol))

    def joined(self, role: Role) -> int:
        """Return how many members of a role have joined."""
        return sum(one.joined and one.role is role for one in self.members)

    def to_dict(self) -> dict[str, Any]:
        """Return what may change, as a document for programs."""
        row = self.round
        return {
            "task": self.task.id,
            "owner": self.task.owner,
            "devices": {"admitted": self.task.devices, "joined": self.joined(Role.DEVICE)},
            "validators": {"admitted": self.task.validators, "joined": self.joined(Role.VALIDATOR)},
            "version": self.task.version,
            "state": row.state.name.lower() if row else None,
            "deadline": _clock(self.deadline) if self.deadline else None,
            "price": self.asset(row.price) if row else None,
            "uploads": row.uploads if row else 0,
            "accepted": row.accepted if row else 0,
            "refused": row.refused if row else 0,
            "pending": row.pending if row else 0,
            "unrevealed": len(unrevealed(row, self.members)) if row else 0,
            "held": row.held if row else 0,
            "drawn": row.drawn if row else 0,
            "unopened": len(unopened(self.members)),
            "lots_awaited": list(lots_awaited(row)) if row else [],
            "reasons": self.reasons(),
            "barred": barred(row.version, self.members) if row else [],
            "verdicts": {
                name: {"accept": accepting, "refuse": refusing, "missing": missing}
                for name, (accepting, refusing, missing) in self.verdicts().items()
            },
            "money": self.money(),
            "rounds": [
                {
                    "version": one.version,
                    "state": one.state.name.lower(),
                    "uploads": one.uploads,
                    "accepted": one.accepted,
                    "refused": one.refused,
                    "paid": self.asset(one.paid),
                }
                for one in self.rounds
            ],
        }

    def waits_for(self) -> list[str]:
        """Say what the newest round waits for beside verdicts, and who is barred from it."""
        return waits_for(self.round, self.members) if self.round else []

    def line(self) -> str:
        """Return it in one line."""
        money, row = self.money(), self.round
        text = f"task {self.task.id}: no round yet"
        if row is not None:
            text = (
                f"round {row.version} {row.state.name.lower()}: {row.uploads} uploads, "
                f"{row.accepted} accepted, {row.refused} refused, {row.pending} pending"
            )
            text += "".join(f", {each}" for each in self.waits_for())
        said = [f"{name} {a}+{r}" for name, (a, r, _) in self.verdicts().items() if a or r]
        verdicts = f"; verdicts {', '.join(said)}" if said else ""
        return (
            f"{text}{verdicts}; {self.joined(Role.DEVICE)} devices and "
            f"{self.joined(Role.VALIDATOR)} validators joined; paid {money['paid']}, "
            f"reserved {money['reserved']}, free {money['free']} of {money['deposited']}"
        )


def read_snapshot(contract: FedLearning, task: str) -> Snapshot:
    """Read a task's rows.

    Raises
    ------
    BadFieldError
        There is no such task.
    NodeError
        The node does not answer, or rounds end faster than their rows are read.
    """
    for _ in range(READS_MAX):
        info, row = contract.client.get_info(), contract.task(task)
        oldest = max(1, row.version - ROUNDS_SHOWN + 1)
        rounds = [contract.round(task, version) for version in range(row.version, oldest - 1, -1)]
        members = contract.members(task)
        found = tuple(one for one in rounds if one is not None)
        ballots = _read_ballots(contract, task, found[0], members) if found else []
        if row == contract.task(task) and None not in rounds and ballots is not None:
            return Snapshot(info, row, found, tuple(members), tuple(ballots))
    raise NodeAnswerError(f"task {task} changes faster than its rows are read")


def _read_ballots(
    contract: FedLearning, task: str, newest: Round, members: Sequence[Member]
) -> list[Ballot] | None:
    """Return the ballots on the members' uploads to a round; None where one is another upload's."""
    if newest.state is RoundState.SETTLED:
        return []
    uploads = [one for one in members if one.upload_version == newest.version]
    rows = contract.ballots(task, max((one.upload_slot for one in uploads), default=-1) + 1)
    found = [rows[one.upload_slot] for one in uploads if one.upload_slot < len(rows)]
    is_whole = [one.hash for one in found] == [one.upload_hash for one in uploads]
    return found if is_whole else None


# ---- the command ------------------------------------------------------------------------------


def add_commands(subparsers: Any) -> None:
    """Register the command."""
    watch = subparsers.add_parser(
        "watch",
        help="show a task's round as it happens",
        description="Show a task's round as it happens: uploads, verdicts, money, last rounds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watch.add_argument("task", type=task_name, metavar="TASK")
    add_places(watch)
    watch.add_argument(
        "--interval",
        type=float,
        default=INTERVAL_SEC_DEFAULT,
        metavar="SEC",
        help=f"least time between two looks (default {INTERVAL_SEC_DEFAULT:g})",
    )
    watch.add_argument("--once", action="store_true", help="show how it stands, then end")
    watch.add_argument("--json", action="store_true", help="write one JSON object for each change")
    watch.set_defaults(func=_watch)


def _watch(args: argparse.Namespace) -> int:
    if not INTERVAL_SEC_MIN <= args.interval <= INTERVAL_SEC_MAX:
        raise ConfigError(
            f"--interval: expected {INTERVAL_SEC_MIN:g} to {INTERVAL_SEC_MAX:g} s, "
            f"got {args.interval:g}"
        )
    places = find_places(args, timeout=Timeout(connect=2.0, read=5.0))
    contract = FedLearning(places.chain, places.contract)
    first = read_snapshot(contract, args.task)  # a wrong name or address ends it here
    is_terminal = sys.stdout.isatty() and not args.json
    if args.once:
        _Screen().once(first) if is_terminal else _Lines(args.json).show(first)
        return 0
    shown: _Lines | _Screen = _Screen() if is_terminal else _Lines(args.json)
    with _ends_quietly(), shown:
        shown.show(first)
        for snapshot in _looks(contract, args.task, args.interval):
            shown.show(snapshot)
    return 0


@contextmanager
def _ends_quietly() -> Iterator[None]:
    """End on Ctrl-C, or when told to, and leave the terminal as it was."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _looks(contract: FedLearning, task: str, interval_sec: float) -> Iterator[Snapshot | NodeError]:
    """Look again and again; give what was seen, or why nothing was."""
    took_sec = 0.0
    while True:
        time.sleep(max(interval_sec, READ_SHARE * took_sec))
        began, took_sec = time.monotonic(), 0.0
        try:
            seen = read_snapshot(contract, task)
        except NodeError as error:
            yield error
            continue
        took_sec = time.monotonic() - began
        yield seen


class _Lines:
    """One line, or one JSON object, for each change."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._last: Any = None

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, seen: Snapshot | NodeError) -> None:
        """Write what is new."""
        if isinstance(seen, NodeError):
            document: Any = {"error": "the node does not answer"}
            text = f"the node does not answer: {seen}"
        else:
            document, text = seen.to_dict(), seen.line()
        if document == self._last:
            return
        self._last = document
        now = _clock(time.time())
        if self._as_json:
            if isinstance(seen, Snapshot):
                blocks = (seen.info.head_block, seen.info.irreversible_block)
                document = {"head_block": blocks[0], "irreversible_block": blocks[1], **document}
            text = json.dumps({"time": now, **document})
        else:
            text = f"{now}  {text}"
        print(text, flush=True)


class _Screen:
    """A picture that is drawn again and again."""

    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            raise ConfigError(
                "the live view needs rich: pip install 'gradledger[cli]', or add --json"
            ) from None
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._last: Snapshot | None = None
        self._seen_at = 0.0

    def __enter__(self) -> _Screen:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def once(self, seen: Snapshot) -> None:
        """Draw it and be done."""
        self._console.print(_picture(seen))

    def show(self, seen: Snapshot | NodeError) -> None:
        """Draw what was seen; while the node is away, what was seen last."""
        note = ""
        if isinstance(seen, NodeError):
            note = f"the node has been away for {time.monotonic() - self._seen_at:.0f} s"
        else:
            self._last, self._seen_at = seen, time.monotonic()
        if self._last is not None:
            self._live.update(_picture(self._last, note), refresh=True)


def _picture(seen: Snapshot, note: str = "") -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    row, info = seen.round, seen.info
    title = Text.assemble(
        (f"task {seen.task.id}", "bold"),
        f" of {seen.task.owner}: {seen.joined(Role.DEVICE)} of {seen.task.devices} devices and "
        f"{seen.joined(Role.VALIDATOR)} of {seen.task.validators} validators have joined",
    )
    blocks = Text(
        f"block {info.head_block} of {_clock(info.head_time)}, "
        f"irreversible up to {info.irreversible_block}",
        "dim",
    )
    parts: list[RenderableType] = [title, Text(note, "bold red") if note else blocks, ""]
    if row is None:
        parts.append("no round yet")
    else:
        parts.append(_round_text(seen, row))
        if seen.verdicts():
            table = Table(title="verdicts", title_justify="left", box=None, pad_edge=False)
            for column in ("validator", "accept", "refuse", "missing"):
                table.add_column(column, justify="left" if column == "validator" else "right")
            for name, counts in seen.verdicts().items():
                table.add_row(name, *map(str, counts))
            parts += ["", table]
    money = Table(title="money", title_justify="left", box=None, pad_edge=False)
    for name in seen.money():
        money.add_column(name, justify="right")
    money.add_row(*seen.money().values())
    parts += ["", money]
    if seen.rounds:
        rounds = Table(title="last rounds", title_justify="left", box=None, pad_edge=False)
        for column in ("round", "state", "uploads", "accepted", "refused", "paid"):
            rounds.add_column(column, justify="left" if column == "state" else "right")
        for one in seen.rounds:
            counts = (one.uploads, one.accepted, one.refused)
            rounds.add_row(
                str(one.version),
                one.state.name.lower(),
                *map(str, counts),
                seen.asset(one.paid),
            )
        parts += ["", rounds]
    return Group(*parts)


def _round_text(seen: Snapshot, row: Round) -> RenderableType:
    from rich.text import Text

    text = Text.assemble(
        (f"round {row.version} {row.state.name.lower()}", "bold green"),
        f", {seen.asset(row.price)} an example",
    )
    if seen.deadline:
        left = seen.left_sec
        until = f"in {left} s" if left > 0 else f"{-left} s ago: anybody may push it on"
        text.append(f", this phase ends {until}" if left > 0 else f", this phase ended {until}")
    text.append(
        f"\n{row.uploads} uploads: {row.accepted} accepted, {row.refused} refused, "
        f"{row.pending} pending"
    )
    if seen.reasons():
        text.append(f" ({', '.join(f'{n} {name}' for name, n in seen.reasons().items())})")
    if seen.waits_for():
        text.append(f"\n{'; '.join(seen.waits_for())}")
    return text


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
