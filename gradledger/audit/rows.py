"""The books in the form of the contract's tables: where those differ, and typed, for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradledger.audit.replay import MemberBook, RoundBook, TaskReplay, Upload, as_member
from gradledger.chain.abi import parse_time
from gradledger.chain.contract import (
    BALLOTS_PER_ROW,
    BallotStage,
    FedLearning,
    Lot,
    Member,
    Mode,
    Recipe,
    Role,
    Round,
    RoundState,
    Rule,
    Silence,
    SumVote,
    Task,
    TaskTerms,
    ValidatorsKind,
)
from gradledger.chain.names import Symbol, name_to_int
from gradledger.cid import digest_to_cid

_TIMES = ("deadline", "reveal_deadline", "verdict_deadline", "audit_deadline", "sum_deadline")


@dataclass(frozen=True)
class Tables:
    """A task's rows as a node has them, unpacked here."""

    task: Mapping[str, Any] | None
    rounds: dict[int, Mapping[str, Any]]
    members: dict[str, Mapping[str, Any]]
    ballots: dict[int, Mapping[str, Any]]  # by page


def read_tables(contract: FedLearning, task: str) -> Tables:
    """Read every row of a task. Raises NodeError."""
    client, abi = contract.client, contract.abi
    rounds = client.table_rows(contract.account, task, "rounds", abi=abi)
    members = client.table_rows(contract.account, task, "members", abi=abi)
    ballots = client.table_rows(contract.account, task, "ballots", abi=abi)
    return Tables(
        client.table_row(contract.account, contract.account, "tasks", name_to_int(task), abi=abi),
        {row["version"]: row for row in rounds},
        {row["account"]: row for row in members},
        {row["page"]: row for row in ballots},
    )


def differences(books: TaskReplay, tables: Tables) -> Iterator[str]:
    """Yield each field in which a row is not what the blocks give."""
    if tables.task is None:
        yield f"table tasks has no row {books.task}"
        return
    yield from _compare("tasks", books.task, _task(books), tables.task)
    for version in sorted(books.rounds.keys() | tables.rounds.keys()):
        where = f"round {version}"
        if version not in tables.rounds:
            yield f"table rounds has no {where}, the blocks do"
        elif version not in books.rounds:
            yield f"table rounds has {where}, the blocks do not"
        else:
            expected = _round(books.rounds[version])
            yield from _compare("rounds", where, expected, tables.rounds[version])
    live = books.live
    for account in sorted(books.members.keys() | tables.members.keys()):
        if account not in tables.members:
            yield f"table members lacks {account}, which was admitted and not removed"
        elif account not in books.members:
            yield f"table members has {account}, which no block admits"
        else:
            expected = _member(account, books.members[account])
            yield from _compare("members", account, expected, tables.members[account])
    yield from _compare_ballots(books, tables.ballots)
    if live is None and books.free < 0:
        yield f"the task has paid out {books.money(-books.free)} more than it got"


def owed(contract: FedLearning, token_contract: str, symbol: Symbol) -> int:
    """Return what the contract should hold of a token for all its tasks together."""
    total = 0
    for task in contract.tasks():
        if (task.terms.token_contract, task.terms.token_symbol) != (token_contract, symbol):
            continue
        newest = contract.round(task.id, task.version) if task.version else None
        live_paid = newest.paid if newest and newest.state is not RoundState.SETTLED else 0
        total += task.deposited - task.paid - task.withdrawn - live_paid
    return total


# ---- what the blocks give, in the form of rows ------------------------------------------------


def task_row(books: TaskReplay) -> Task:
    """Return a task as its blocks give it."""
    kinds: dict[str, Callable[[Any], Any]] = {
        "token_symbol": Symbol.parse,
        "mode": Mode,
        "is_public": bool,
        "validators_kind": ValidatorsKind,
        "silence": Silence,
        "key_hash": bytes.fromhex,
        "card_hash": bytes.fromhex,
    }
    values = {name: kinds.get(name, _same)(value) for name, value in books.terms.items()}
    return Task(**{**_task(books), "terms": TaskTerms(**values)})


def round_row(book: RoundBook) -> Round:
    """Return a round as its blocks give it, with its validators also when it is settled."""
    row = _round(book)
    for name in ("model_hash", "sum_hash", "root"):
        row[name] = bytes.fromhex(row[name])
    for name in ("model_cid", "sum_cid"):
        row[name] = _cid(bytes.fromhex(row[name]))
    row |= {name: int(row[name]) for name in ("price", "budget")}
    row |= {"rule": Rule(row["rule"]), "training": Recipe(**row["training"])}
    sums = [book.sums.get(name, (bytes(32), bytes(32))) for name in book.validators]
    has_lots = book.terms["audit_sec"] > 0
    lots = [book.lots.get(name, (bytes(32), bytes(32))) for name in book.validators if has_lots]
    row |= {
        "validators": book.validators,
        "sums": tuple(SumVote(hash=digest, cid=_cid(cid)) for digest, cid in sums),
        "lots": tuple(Lot(commitment=sealed, value=value) for sealed, value in lots),
        "frontier": (),
    }
    return Round(**row)


def member_row(account: str, member: MemberBook) -> Member:
    """Return a device with an upload as its blocks give it."""
    if member.upload is None:
        raise ValueError(f"{account} has no upload")
    return replace(
        as_member(account, member.upload),
        enc_key=member.enc_key,
        classes=member.classes,
        set_version=member.set_version,
        set_cid=_cid(member.set_cid),
        set_hash=member.set_hash,
        barred_until=member.barred_until,
    )


def _same(value: Any) -> Any:
    return value


def _cid(digest: bytes) -> str:
    return digest_to_cid(digest) if any(digest) else ""


# ---- rows beside each other -------------------------------------------------------------------


def _compare(
    table: str, where: str, expected: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[str]:
    for name, value in expected.items():
        got = parse_time(row[name]) if name in _TIMES else row[name]
        if got != value:
            yield f"table {table}, {where}, {name}: the blocks give {value}, the row says {got}"


def _compare_ballots(books: TaskReplay, rows: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    """Compare every ballot, also those that earlier rounds left behind the newest one's."""
    pages = range(len(books.ballots) // BALLOTS_PER_ROW)
    for page in sorted(rows.keys() | set(pages)):
        if page not in rows:
            yield f"table ballots lacks page {page}, which the admitted devices need"
            continue
        if page not in pages:
            yield f"table ballots has page {page}, which the admitted devices do not need"
            continue
        ballots = rows[page]["ballots"]
        if len(ballots) != BALLOTS_PER_ROW:
            expected = f"the blocks give {BALLOTS_PER_ROW} ballots"
            yield f"table ballots, page {page}: {expected}, the row has {len(ballots)}"
            continue
        for slot, ballot in enumerate(ballots, page * BALLOTS_PER_ROW):
            yield from _compare("ballots", f"slot {slot}", _ballot(books, slot), ballot)


def _task(books: TaskReplay) -> dict[str, Any]:
    return {
        "id": books.task,
        "owner": books.owner,
        "terms": books.terms,
        "version": books.version,
        "devices": books.count(Role.DEVICE),
        "validators": books.count(Role.VALIDATOR),
        "deposited": books.deposited,
        "paid": books.paid,
        "withdrawn": books.withdrawn,
    }


def _round(book: RoundBook) -> dict[str, Any]:
    """Return a round's row; `frontier`, which the tree's growth alone needs, is left out."""
    kept = (
        *("model_hash", "price", "budget", "verdict_sec", "sum_sec", "reveal_sec", "audit_sec"),
        *("close_after", "rule", "tau", "eta_e6", "norm_max_e6", "training"),
    )
    terms = {name: book.terms[name] for name in kept}
    is_live = book.state is not RoundState.SETTLED
    none = (bytes(32), bytes(32))
    votes = [book.sums.get(name, none) for name in book.validators] if is_live else []
    has_lots = is_live and book.terms["audit_sec"] > 0
    lots = [book.lots.get(name, none) for name in book.validators] if has_lots else []
    return {
        "version": book.version,
        "state": book.state,
        "model_cid": book.model_cid.hex(),
        **terms,
        "deadline": book.deadline,
        "reveal_deadline": book.reveal_deadline,
        "verdict_deadline": book.verdict_deadline,
        "audit_deadline": book.audit_deadline,
        "sum_deadline": book.sum_deadline,
        "opened_block": book.opened_block,
        "uploads": book.uploads,
        "pending": book.pending,
        "accepted": book.accepted,
        "refused": book.refused,
        "held": book.held,
        "drawn": book.drawn,
        "reserved": book.reserved,
        "paid": book.paid,
        "sum_hash": book.sum_hash.hex(),
        "sum_cid": book.sum_cid.hex(),
        "root": book.root.hex(),
        "settled": book.settled,
        "cursor": book.cursor,
        "validators": list(book.validators) if is_live else [],
        "sums": [{"hash": digest.hex(), "cid": cid.hex()} for digest, cid in votes],
        "lots": [{"commitment": sealed.hex(), "value": value.hex()} for sealed, value in lots],
    }


def _member(account: str, book: MemberBook) -> dict[str, Any]:
    upload = book.upload
    zero = bytes(32).hex()
    return {
        "account": account,
        "role": book.role,
        "joined": int(book.joined),
        "enc_key": book.enc_key.hex(),
        "classes": book.classes,
        "set_version": book.set_version,
        "set_cid": book.set_cid.hex(),
        "set_hash": book.set_hash.hex(),
        "upload_version": upload.version if upload else 0,
        "upload_slot": upload.slot if upload else 0,
        "upload_hash": upload.hash.hex() if upload else zero,
        "upload_cid": upload.cid.hex() if upload else zero,
        "series_hash": upload.series_hash.hex() if upload else zero,
        "upload_cost": upload.cost if upload else 0,
        "error_first": upload.errors[0] if upload else 0,
        "error_before": upload.errors[-2:][0] if upload else 0,
        "error_last": upload.errors[-1] if upload else 0,
        "upload_state": upload.state if upload else 0,
        "upload_reason": upload.reason if upload else 0,
        "barred_until": book.barred_until,
        "opening_cid": upload.opening.hex() if upload else zero,
    }


def _ballot(books: TaskReplay, slot: int) -> dict[str, Any]:
    found = books.ballots[slot]
    if found is None:
        zero = bytes(32).hex()
        return {"device": "", "hash": zero, "stage": BallotStage.NONE, "verdicts": zero}
    device, upload = found
    return {
        "device": device,
        "hash": upload.hash.hex(),
        "stage": upload.stage,
        "verdicts": _verdicts(upload, books.rounds[upload.version]),
    }


def _verdicts(upload: Upload, book: RoundBook) -> str:
    codes = (upload.verdicts.get(validator, 0) for validator in book.validators)
    return bytes(codes).ljust(32, b"\0").hex()
