"""Commit then reveal, audits by lot and bars: explained to the last unit, and each lie named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from audit_scene import COSTS, Liar, in_ballot, in_row
from audited_round import BAR_ROUNDS, LOT_E6, MIXED, AuditedRound
from device_scene import PRICE

from gradledger.audit.reader import Step
from gradledger.audit.replay import TaskReplay, UnexplainedError
from gradledger.audit.rows import (
    Tables,
    differences,
    member_row,
    read_tables,
    round_row,
    task_row,
)
from gradledger.audit.run import Audit, audit
from gradledger.chain.contract import (
    BallotStage,
    FedLearning,
    UploadState,
    VerdictCode,
    contract_abi,
)
from gradledger.errors import ContractError
from gradledger.lots import is_drawn, lot_commitment
from gradledger.receipt import prove, verify_on_chain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ABI = contract_abi()
Edit = Callable[[str, dict[str, Any]], dict[str, Any] | None]


@pytest.fixture(scope="module")
def steps(audited_round: AuditedRound) -> list[Step]:
    return audited_round.steps()


@pytest.fixture(scope="module")
def tables(audited_round: AuditedRound) -> Tables:
    return read_tables(audited_round.scene.contract, audited_round.task)


def edited(steps: list[Step], edit: Edit) -> list[Step]:
    """Change the arguments of actions, and who signed; leave out those for which there are none."""
    found = []
    for step in steps:
        inputs = []
        for one in step.inputs:
            if one.account != "fedlearning":
                inputs.append(one)
                continue
            data = edit(one.name, ABI.unpack(ABI.actions[one.name], one.data))
            if data is not None:
                signed = ((data["signed"], "active"),) if "signed" in data else one.authorization
                packed = ABI.pack_action(one.name, {k: v for k, v in data.items() if k != "signed"})
                inputs.append(replace(one, data=packed, authorization=signed))
        found.append(replace(step, inputs=tuple(inputs)))
    return found


def fault(played: AuditedRound, steps: list[Step], tables: Tables) -> str:
    """Return the first thing that the steps do not explain."""
    books = TaskReplay(played.task, "fedlearning", ABI, schedules={})
    try:
        for step in steps:
            books.apply(step)
    except UnexplainedError as error:
        return str(error)
    return next(differences(books, tables), "")


def test_all_that_lots_bring_about_is_explained(audited_round: AuditedRound) -> None:
    played = audited_round
    report = audit(played.client, played.task, keep_payments=True)
    assert report.verdict == "2 payments, all explained"
    paid = {one.device: (one.amount, one.reason) for one in report.payment_list}
    assert paid == {
        played.devices[0]: (COSTS[0] * PRICE, VerdictCode.ACCEPT),
        played.devices[1]: (COSTS[1] * PRICE, VerdictCode.ACCEPT),
    }
    first, second = report.rounds
    assert (first.uploads, first.accepted, first.refused, first.silent) == (6, 2, 4, 0)
    assert (first.audited, first.caught, first.pending) == (3, 2, 0)
    assert (second.state, second.pending) == ("open", 1)
    # 3 for each upload, one more for the fourth; then 3 for each that was opened
    assert report.verdicts == 19 + 6
    rows = {row.account: row for row in played.scene.contract.members(played.task)}
    reasons = [rows[device].upload_reason for device in played.devices[1:]]
    assert reasons == [
        VerdictCode.ACCEPT,
        VerdictCode.OPENING_MISMATCH,
        VerdictCode.UNANSWERED,
        VerdictCode.ERROR_MISMATCH,
        VerdictCode.UNREVEALED,
    ]
    barred = [rows[device].barred_until for device in played.devices]
    assert barred == [0, 0, 1 + BAR_ROUNDS, 1 + BAR_ROUNDS, 0, 0]


def test_the_contract_refuses_what_the_books_refuse(audited_round: AuditedRound) -> None:
    """An upload of a barred device: here to the contract, below to the books."""
    played = audited_round
    with pytest.raises(ContractError, match=r"barred: .* may upload again after version 3"):
        played.send(played.fedlearning(2, 2, played.cid("upload", 7)))


def test_a_receipt_of_an_upload_that_was_never_revealed(audited_round: AuditedRound) -> None:
    played = audited_round
    receipt = prove(played.scene.contract, played.task, 1, played.devices[5])
    assert (receipt.cid, receipt.state) == ("", UploadState.REFUSED)
    assert receipt.reason is VerdictCode.UNREVEALED
    assert verify_on_chain(receipt, played.client)["count"] == 6


def drop(*names: str) -> Edit:
    """Leave actions out."""
    return lambda name, data: None if name in names else data


def only(name: str, who: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Edit:
    """Change one account's action of round 1."""

    def edit(found: str, data: dict[str, Any]) -> dict[str, Any] | None:
        actor = data.get("device", data.get("validator"))
        is_it = (found, actor, data.get("version")) == (name, who, 1)
        return change(data) if is_it else data

    return edit


def lies(played: AuditedRound) -> dict[str, tuple[Edit, str]]:
    """Return what a node may tell otherwise than it was, and what must be said of it."""
    devices, judges = played.devices, played.judges
    other = played.cid("other", 0)
    values = (hashlib.sha256(bytes([number])).digest() for number in range(256))
    value = next(one for one in values if is_drawn(one, played.hash(1, 0), LOT_E6)).hex()
    fits = lot_commitment(played.task, 1, judges[0], bytes.fromhex(value)).hex()

    def forged(name: str, data: dict[str, Any]) -> dict[str, Any]:
        """Another lot from the beginning: it is consistent, and draws the one that was not."""
        if data.get("validator") != judges[0] or data["version"] != 1:
            return data
        new = {"commitlot": {"commitment": fits}, "reveallot": {"value": value}}
        return {**data, **new.get(name, {})}

    def barred(name: str, data: dict[str, Any]) -> dict[str, Any]:
        is_last = name == "fedlearning" and data["version"] == 2
        return {**data, "device": devices[2], "signed": devices[2]} if is_last else data

    def too_few(name: str, data: dict[str, Any]) -> dict[str, Any] | None:
        return None if name == "commitlot" and data["validator"] in judges[:2] else data

    def with_(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda data: {**data, **fields}

    def judged(kind: str, said: VerdictCode, **changes: Any) -> Edit:
        """Change the verdicts that say this."""

        def edit(name: str, data: dict[str, Any]) -> dict[str, Any]:
            is_it = name == kind and data["verdicts"][0]["code"] == said
            return {**data, "verdicts": [{**data["verdicts"][0], **changes}]} if is_it else data

        return edit

    def recoded(kind: str, said: VerdictCode, code: VerdictCode) -> Edit:
        return judged(kind, said, code=code)

    return {
        "a CID with the upload": (
            only("fedlearning", devices[0], with_(cid=other)),
            "its CID, which was to be revealed later",
        ),
        "another CID revealed": (
            only("reveal", devices[1], with_(cid=other)),
            "table rounds, round 1, root: the blocks give",
        ),
        "a CID not revealed": (
            only("reveal", devices[4], lambda data: None),
            f"the CID of {devices[4]} was not revealed",
        ),
        "an unrevealed upload accepted": (
            recoded("attest", VerdictCode.UNREVEALED, VerdictCode.ACCEPT),
            f"the CID of {devices[5]} was not revealed",
        ),
        "another series": (
            only("fedlearning", devices[1], with_(errors=[900_000, 300_000, 100_000])),
            f"table members, {devices[1]}, series_hash: the blocks give",
        ),
        "an upload before the lots": (too_few, "before the lots of 3 validators"),
        "a lot that was not committed to": (
            only("reveallot", judges[1], with_(value=value)),
            f"not the lot that {judges[1]} had committed to",
        ),
        "a lot kept back": (
            only("reveallot", judges[1], lambda data: None),
            "before the deadline",
        ),
        "a lot of somebody else's": (
            only("reveallot", judges[1], with_(validator="eosio")),
            "without the authority of eosio",
        ),
        "another lot from the beginning": (forged, f"{devices[0]} is barred up to round 3"),
        "no lots in the task": (drop("commitlot", "reveallot"), "before the lots of 3"),
        "an opening that was not asked for": (
            only("openupload", devices[1], with_(device=devices[0], signed=devices[0])),
            "of an upload that is not under audit",
        ),
        "another opening": (
            only("openupload", devices[1], with_(cid=other)),
            f"table members, {devices[1]}, opening_cid: the blocks give",
        ),
        "an opening left out": (
            only("openupload", devices[2], lambda data: None),
            f"{devices[2]} had not opened its upload",
        ),
        "an upload of a barred device": (barred, f"{devices[2]} is barred up to round 3"),
        "a refusal in an audit turned": (
            recoded("attestaudit", MIXED, VerdictCode.ACCEPT),
            "",  # by the time: it is still under audit, or decided by silence
        ),
        "a reason in an audit": (
            recoded("attestaudit", VerdictCode.OPENING_MISMATCH, VerdictCode.NO_UPDATE),
            "table rounds, round 1, root: the blocks give",
        ),
        "a refusal among mixed ones": (
            recoded("attest", MIXED, VerdictCode.COPIED_SERIES),
            "table rounds, round 1, root: the blocks give",
        ),
        "a verdict on nobody's upload": (
            judged("attest", VerdictCode.MALFORMED, slot=6),
            "(attest): a verdict on slot 6 of round 1, which had 6 uploads then",
        ),
        "a verdict on another's upload": (
            judged("attest", VerdictCode.MALFORMED, slot=2),
            f"with the hash {played.hash(1, 3).hex()}, while {devices[2]} had uploaded "
            f"{played.hash(1, 2).hex()} there",
        ),
        "a verdict in an audit that was none": (
            judged(
                "attestaudit", MIXED, slot=3, hash=played.hash(1, 3), code=VerdictCode.NO_UPDATE
            ),
            f"{devices[3]} had not opened its upload",
        ),
        "no verdict in an audit": (drop("attestaudit"), ""),
        "pushes left out": (drop("push"), "round 1 was drawing, expected auditing"),
    }


def test_each_lie_is_named(audited_round: AuditedRound, steps: list[Step], tables: Tables) -> None:
    assert fault(audited_round, steps, tables) == ""
    for what, (edit, text) in lies(audited_round).items():
        found = fault(audited_round, edited(steps, edit), tables)
        assert found and text in found, (what, found)


ALTERED_ROWS = [
    ("rounds", 1, {"opened_block": 1}, "opened_block: the blocks give"),
    ("rounds", 1, {"norm_max_e6": 6}, "norm_max_e6: the blocks give 5, the row says 6"),
    ("rounds", 1, {"reveal_deadline": 9}, "reveal_deadline: the blocks give"),
    ("rounds", 1, {"audit_deadline": 9}, "audit_deadline: the blocks give"),
    ("rounds", 1, {"held": 1}, "held: the blocks give 0, the row says 1"),
    ("rounds", 1, {"drawn": 1}, "drawn: the blocks give 0, the row says 1"),
    ("rounds", 2, {"lots": []}, "lots: the blocks give [{'commitment': "),
    ("members", 2, {"barred_until": 0}, "barred_until: the blocks give 3, the row says 0"),
    ("members", 2, {"opening_cid": "00" * 32}, "opening_cid: the blocks give"),
    ("members", 4, {"series_hash": "00" * 32}, "series_hash: the blocks give"),
    ("members", 4, {"error_before": 1}, "error_before: the blocks give 400000, the row says 1"),
    ("members", 1, {"upload_slot": 2}, "upload_slot: the blocks give 1, the row says 2"),
    # one of the round that is open
    ("ballots", 0, {"verdicts": "01" * 32}, f"verdicts: the blocks give {'00' * 32}, the row"),
    ("ballots", 0, {"stage": 3}, f"stage: the blocks give {BallotStage.OPEN}, the row says 3"),
    # what the round before has left behind it
    ("ballots", 1, {"verdicts": "00" * 32}, "verdicts: the blocks give 01010100"),
    ("ballots", 2, {"hash": "00" * 32}, "hash: the blocks give"),
    ("ballots", 3, {"stage": 3}, f"stage: the blocks give {BallotStage.DRAWN}, the row says 3"),
    ("ballots", 3, {"verdicts": "09" * 32}, f"verdicts: the blocks give {'00' * 32}, the row"),
    ("ballots", 4, {"verdicts": "00" * 32}, "verdicts: the blocks give 0b0a0900"),
    ("ballots", 5, {"device": "eosio"}, "the row says eosio"),
    ("ballots", 6, {"stage": 1}, f"stage: the blocks give {BallotStage.NONE}, the row says 1"),
]


def test_an_altered_row_is_named(audited_round: AuditedRound, steps: list[Step]) -> None:
    played = audited_round
    books = TaskReplay(played.task, "fedlearning", ABI, schedules={})
    for step in steps:
        books.apply(step)
    for table, key, changes, text in ALTERED_ROWS:
        if table == "ballots":
            liar = FedLearning(
                Liar(played.client, in_ballot(played.scene.contract, key, **changes))
            )
            (found,) = differences(books, read_tables(liar, played.task))
            assert found.startswith(f"table ballots, slot {key}, ") and text in found
            continue
        wanted = played.devices[key] if table == "members" else key
        field = "account" if table == "members" else "version"
        is_it = partial(lambda field, wanted, row: row[field] == wanted, field, wanted)
        lie = in_row(played.scene.contract, table, is_it, **changes)
        liar = FedLearning(Liar(played.client, lie))
        (found,) = differences(books, read_tables(liar, played.task))
        assert found.startswith(f"table {table}, ") and text in found


def test_the_books_in_the_form_of_rows_are_the_rows(
    audited_round: AuditedRound, steps: list[Step]
) -> None:
    played, shown = audited_round, []
    contract, task = played.scene.contract, played.task
    Audit(played.client, task).walk(lambda books, book: shown.append((books, round_row(book))))
    (books, first), (_, second) = shown
    assert task_row(books) == contract.task(task)
    empty = replace(first, validators=(), sums=(), lots=())
    assert empty == replace(played.round(1), frontier=())
    assert first.validators == second.validators == tuple(played.judges)
    assert second == replace(played.round(2), frontier=())
    for row in contract.members(task):
        if row.upload_version:
            assert row == member_row(row.account, books.members[row.account])
