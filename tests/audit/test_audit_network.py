"""The audit of a real run; then of the same run through nodes that alter one thing each."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from audit_scene import COSTS, Bought, Forger, Liar, Played, in_ballot, in_block, in_row
from device_scene import PRICE

from device_sdk import Paid, Refused
from gradledger.audit.blocks import _ABI
from gradledger.audit.replay import TaskReplay, UnexplainedError
from gradledger.audit.report import AuditReport
from gradledger.audit.rows import differences, read_tables
from gradledger.audit.run import audit
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import FedLearning, VerdictCode
from gradledger.chain.keys import PrivateKey, signature_variant
from gradledger.cli import main
from gradledger.errors import BlobMissingError, ConfigError, NodeAnswerError, StoreUnavailableError
from gradledger.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PAID = 2 * COSTS[0] + COSTS[1] + COSTS[2]  # of the third for silence


def audited(played: Played, client: ChainClient | None = None, **options: Any) -> AuditReport:
    return audit(client or played.client, played.task, **options)


def test_a_true_run_is_explained_to_the_last_unit(played: Played, store: Store) -> None:
    first, second, third = played.devices
    outcomes = played.outcomes
    assert isinstance(outcomes[1, first], Paid) and isinstance(outcomes[1, third], Paid)
    assert isinstance(outcomes[1, second], Refused)
    stages = []
    report = audited(
        played, store=store, keep_payments=True, tell=lambda *progress: stages.append(progress)
    )
    assert report.verdict == "4 payments, all explained"
    assert report.explained and report.complete and not report.notes
    assert (report.deposited, report.paid, report.withdrawn) == (10_000, PAID * PRICE, 1000)
    assert (report.reserved, report.free) == (0, 9000 - PAID * PRICE)
    assert (report.uploads, report.verdicts, report.blobs) == (5, 17, 3)
    paid = {(one.version, one.device): one for one in report.payment_list}
    assert {key: one.amount for key, one in paid.items()} == {
        (1, first): COSTS[0] * PRICE,
        (1, third): COSTS[2] * PRICE,
        (2, first): COSTS[0] * PRICE,
        (2, second): COSTS[1] * PRICE,
    }
    assert paid[1, third].reason is VerdictCode.SILENCE
    for key, one in paid.items():
        outcome = outcomes[key]
        assert isinstance(outcome, Paid)
        assert (outcome.trx, outcome.block) == (one.trx, one.block)
        assert outcome.amount.amount == one.amount
    rounds = [(r.uploads, r.accepted, r.refused, r.silent, r.state) for r in report.rounds]
    assert rounds == [(3, 1, 1, 1, "settled"), (2, 2, 0, 0, "settled")]
    assert report.unsigned == 0 and report.signed == report.task_transactions
    assert report.code == "known" and not report.traces and report.witnesses == 1
    # read back no further than to the task's first block, and proven by the last one's id
    assert report.blocks == report.last_block - report.first_block + 1
    assert report.first_block > 1 and len(report.last_id) == 64
    assert {what for what, _, _ in stages} >= {"reading back", "fetching blobs"}


def test_each_signed_action_matters(played: Played) -> None:
    """Leave one transaction out of the books: they no longer add up, or no longer fit the rows."""
    contract, steps = played.scene.contract, played.steps()
    tables = read_tables(contract, played.task)

    def fault(left_out: int | None) -> str:
        books = TaskReplay(played.task, contract.account, contract.abi, schedules={})
        try:
            for number, step in enumerate(steps):
                if number != left_out:
                    books.apply(step)
        except UnexplainedError as error:
            return str(error)
        return next(differences(books, tables), "")

    assert fault(None) == ""
    ours = [number for number, step in enumerate(steps) if step.inputs]
    assert len(ours) == audited(played).task_transactions
    # a verdict or a set of round 1 that changed nothing is overwritten by round 2
    silent = [names for number in ours if not fault(number) and (names := _names(steps[number]))]
    assert {name for names in silent for name in names} <= {"attest", "issueset"}
    assert len(silent) <= 5


def _names(step: Any) -> list[str]:
    return [one.name for one in step.inputs]


def swapped(change: Callable[[bytearray], None]) -> Callable[[Any], None]:
    """Change the bytes of a block's first transaction."""

    def apply(block: Any) -> None:
        body = block["transactions"][0]["trx"][1]
        raw = bytearray.fromhex(body["packed_trx"])
        change(raw)
        body["packed_trx"] = raw.hex()

    return apply


def flip(raw: bytearray) -> None:
    raw[-3] ^= 1


def test_an_altered_block_is_named(played: Played) -> None:
    number = played.block_of("attest")
    report = audited(played, Liar(played.client, in_block(number, swapped(flip))))
    assert report.finding.startswith(f"block {number}: its transactions have the root")
    assert not report.explained

    def leave_out(block: Any) -> None:
        del block["transactions"][0]

    report = audited(played, Liar(played.client, in_block(number, leave_out)))
    assert report.finding.startswith(f"block {number}: its transactions have the root")

    def refit(block: Any) -> None:
        """Leave everything out, and say so in the header."""
        block.update(transactions=[], transaction_mroot="00" * 32)

    report = audited(played, Liar(played.client, in_block(number, refit)))
    assert report.finding.startswith(f"block {number}: its header gives the id")
    assert f"block {number + 1} names" in report.finding

    def fail(block: Any) -> None:
        """Say that a transaction failed, which the root covers as well."""
        block["transactions"][0]["status"] = "hard_fail"

    report = audited(played, Liar(played.client, in_block(number, fail)))
    assert report.finding.startswith(f"block {number}: its transactions have the root")


def test_a_transaction_passed_off_as_a_deferred_one_is_missed(played: Played) -> None:
    """The root covers a transaction's hash, and does not tell it from the id of a deferred one."""

    def hide(block: Any) -> None:
        row = block["transactions"][0]
        one = row["trx"][1]
        prunable = _ABI.pack("varuint32", len(one["signatures"]))
        prunable += b"".join(map(signature_variant, one["signatures"])) + _ABI.pack("bytes", b"")
        body = b"\0" + _ABI.pack("bytes", bytes.fromhex(one["packed_trx"]))
        row["trx"] = hashlib.sha256(body + hashlib.sha256(prunable).digest()).hexdigest()

    report = audited(played, Liar(played.client, in_block(played.block_of("attest"), hide)))
    assert report.unreached[0].startswith("1 transactions that the node calls deferred")
    assert not report.complete


def test_an_invented_chain_needs_the_accounts_keys(played: Played) -> None:
    """A node can fit every hash to its lie; it cannot sign for a validator."""
    steps = [s for s in played.steps() if [one.name for one in s.inputs] == ["attest"]]
    number, trx, stranger = steps[-1].block, steps[-1].trx, PrivateKey.generate()
    chain_id = played.client.get_info().chain_id

    def other_verdict(block: Any) -> None:
        bodies = [row["trx"][1] for row in block["transactions"]]
        raws = [bytearray.fromhex(body["packed_trx"]) for body in bodies]
        pairs = zip(bodies, raws, strict=True)
        body, raw = next(pair for pair in pairs if hashlib.sha256(pair[1]).hexdigest() == trx)
        raw[-2] = VerdictCode.MALFORMED  # the last verdict's code; then no extensions
        body["packed_trx"] = raw.hex()
        digest = hashlib.sha256(bytes.fromhex(chain_id) + raw + bytes(32)).digest()
        body["signatures"] = [stranger.sign_digest(digest)]

    forger = Forger(played.client, number, other_verdict)
    report = audited(played, Liar(played.client, forger))
    assert report.finding.startswith(f"block {number}, transaction ")
    validator = next(name for name in played.scene.validators if name in report.finding)
    assert f"it acts for {validator}" in report.finding
    assert stranger.public.legacy in report.finding


def books_of(played: Played) -> TaskReplay:
    """Return the books as the blocks give them."""
    contract = played.scene.contract
    books = TaskReplay(played.task, contract.account, contract.abi, schedules={})
    for step in played.steps():
        books.apply(step)
    return books


ALTERED_ROWS = [
    ("tasks", {"deposited": 20_000}, "deposited: the blocks give 10000, the row says 20000"),
    ("tasks", {"paid": 1}, f"paid: the blocks give {PAID * PRICE}, the row says 1"),
    ("tasks", {"withdrawn": 999}, "withdrawn: the blocks give 1000, the row says 999"),
    ("tasks", {"owner": "eosio"}, "the row says eosio"),
    ("rounds", {"paid": 5}, "round 1, paid: the blocks give 1400, the row says 5"),
    ("rounds", {"price": 9}, "round 1, price: the blocks give 10, the row says 9"),
    ("rounds", {"root": "ab" * 32}, "round 1, root: the blocks give"),
    ("rounds", {"deadline": 9}, "round 1, deadline: the blocks give"),
    ("rounds", {"accepted": 2}, "round 1, accepted: the blocks give 1, the row says 2"),
    ("members", {"upload_cost": 7}, "upload_cost: the blocks give 60, the row says 7"),
    ("members", {"upload_state": 3}, "upload_state: the blocks give 2, the row says 3"),
    ("members", {"joined": 0}, "joined: the blocks give 1, the row says 0"),
]
ALTERED_BALLOTS = [
    (0, {"verdicts": "02" * 32}, "verdicts: the blocks give 0101070100"),
    (1, {"stage": 2}, "stage: the blocks give 3, the row says 2"),
    (1, {"hash": "ab" * 32}, f"the row says {'ab' * 32}"),
    (1, {"device": "eosio"}, "the row says eosio"),
    # of round 1: round 2 had two uploads
    (2, {"verdicts": "00" * 32}, "verdicts: the blocks give 0100"),
]


def test_an_altered_row_is_named(played: Played) -> None:
    contract, books = played.scene.contract, books_of(played)

    def lies(table: str, changes: dict[str, Any]) -> Liar:
        keys = {"tasks": played.task, "rounds": 1, "members": played.devices[0]}
        names = {"tasks": "id", "rounds": "version", "members": "account"}
        lie = in_row(contract, table, lambda row: row[names[table]] == keys[table], **changes)
        return Liar(played.client, lie)

    for table, changes, text in ALTERED_ROWS:
        liar = FedLearning(lies(table, changes))
        (fault,) = differences(books, read_tables(liar, played.task))
        assert fault.startswith(f"table {table}, ") and text in fault
    for slot, changes, text in ALTERED_BALLOTS:
        liar = FedLearning(Liar(played.client, in_ballot(contract, slot, **changes)))
        (fault,) = differences(books, read_tables(liar, played.task))
        assert fault.startswith(f"table ballots, slot {slot}, ") and text in fault
    table, changes, text = ALTERED_ROWS[4]
    report = audited(played, lies(table, changes))
    assert report.finding.startswith(f"table {table}, {text}")


def test_a_row_that_is_missing_or_too_many(played: Played) -> None:
    def drop(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_table_rows" and document["table"] == "rounds":
            answer["rows"] = answer["rows"][:1]

    liar = FedLearning(Liar(played.client, drop))
    books = books_of(played)
    faults = list(differences(books, read_tables(liar, played.task)))
    assert faults == ["table rounds has no round 2, the blocks do"]
    true = read_tables(played.scene.contract, played.task)
    page = dict(true.ballots[0])
    for ballots, fault in (
        ({}, "table ballots lacks page 0, which the admitted devices need"),
        ({0: page, 1: page}, "table ballots has page 1, which the admitted devices do not need"),
        (
            {0: {**page, "ballots": page["ballots"][1:]}},
            "table ballots, page 0: the blocks give 32 ballots, the row has 31",
        ),
    ):
        assert list(differences(books, replace(true, ballots=ballots))) == [fault]


def test_tokens_that_left_the_escrow_are_missed(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradledger.audit.run.HOLDINGS_READS_MAX", 2)

    def drain(path: str, document: Any, answer: Any) -> Any:
        return ["0.0001 TOK"] if path == "/v1/chain/get_currency_balance" else None

    report = audited(played, Liar(played.client, drain))
    assert report.finding.startswith("the contract holds 0.0001 TOK for all its tasks")


def test_traces_of_a_real_node_agree_and_an_altered_payment_is_named(
    played: Played, tracing: str, store: Store
) -> None:
    client = ChainClient(tracing)
    report = audited(played, client, store=store)
    assert report.traces and report.verdict == "4 payments, all explained"
    paid = played.outcomes[2, played.devices[1]]
    assert isinstance(paid, Paid)

    def pay_more(name: str) -> Callable[[str, Any, Any], None]:
        def lie(path: str, document: Any, answer: Any) -> None:
            if path != "/v1/trace_api/get_block" or document["block_num"] != paid.block:
                return
            (trx,) = [one for one in answer["transactions"] if one["id"] == paid.trx]
            for one in trx["actions"]:
                if (one["action"], one["receiver"]) == (name, one["account"]):
                    raw = bytearray.fromhex(one["data"])
                    raw[20 if name == "payment" else 16] ^= 1
                    one["data"] = raw.hex()

        return lie

    for name in ("payment", "transfer"):
        report = audited(played, Liar(client, pay_more(name)))
        assert f"transaction {paid.trx}" in report.finding
        assert f"the trace shows {name} of 0.0701 TOK to" in report.finding
        assert f"expected {name} of 0.0700 TOK to {played.devices[1]}" in report.finding

    def without(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/trace_api/get_block" and document.get("block_num") == paid.block:
            for trx in answer["transactions"]:
                trx["actions"] = [a for a in trx["actions"] if a["action"] != "transfer"]

    report = audited(played, Liar(client, without))
    assert "the trace lacks transfer of 0.0" in report.finding


def test_traces_that_a_node_lacks_are_counted(
    played: Played,
    tracing: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The newest block has its traces, those of the task have none."""
    client, blocks = ChainClient(tracing), {step.block for step in played.steps()}

    def pruned(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/trace_api/get_block" and document["block_num"] in blocks:
            raise NodeAnswerError("block trace missing")

    report = audited(played, Liar(client, pruned))
    assert report.traces and report.untraced == len(blocks) > 1
    assert report.explained and not report.complete
    text = f"traces: the node has none of {len(blocks)} blocks that have transactions"
    assert report.unreached == [text]

    monkeypatch.setattr("gradledger.audit.run.audit", lambda *args, **options: report)
    command = ["audit", played.task, "--chain", tracing, "--store", "none"]
    assert main(command) == 3
    out = capsys.readouterr().out
    line = f"agree with the books where there are any; {len(blocks)} blocks without"
    assert f"  traces      {line}\n" in out and f"  not seen    {text}\n" in out
    assert main([*command, "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["traces"], document["untraced"]) == (True, len(blocks))

    def altered(path: str, document: Any, answer: Any) -> None:
        pruned(path, document, answer)
        in_row(played.scene.contract, "tasks", bool, deposited=7)(path, document, answer)

    finding = audited(played, Liar(client, altered)).finding
    assert "the row says 7" in finding and finding.endswith("eosio::trace_api_plugin does")


def test_blobs_that_are_gone_are_no_fraud(played: Played, store: Store) -> None:
    gone = played.receipts[2, played.devices[0]]

    class Forgetful(Store):
        def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
            data = super().get(cid, bytes_max=bytes_max)
            if hashlib.sha256(data).digest() == gone.hash:
                raise BlobMissingError("nobody has it")
            return data

    report = audited(played, store=Forgetful(store.address))
    assert report.explained and not report.complete and report.blobs == 2
    (text,) = report.unreached
    assert text.startswith("blobs: 1 of 3 are not on IPFS any more: upload of ")
    assert report.verdict == "4 payments, all explained; not all could be looked at"

    class Away(Store):
        def get(self, cid: str, *, bytes_max: int | None = None) -> bytes:
            raise StoreUnavailableError("no answer")

    report = audited(played, store=Away(store.address))
    assert report.unreached == ["blobs: 3 of 3 not looked at: no answer"]


def test_validators_that_accept_what_is_not_there(bought: Bought, store: Store) -> None:
    """A quorum can pay for anything; the blob shows it to everybody."""
    client, task = bought.scene.contract.client, bought.scene.task
    report = audit(client, task, store=store)
    assert report.payments == 1 and report.rounds[0].state == "open"
    assert report.finding.startswith(f"upload of {bought.device} in round 1 ({bought.cid}): ")
    assert "the validators accepted it, but its blob has the hash" in report.finding
    assert audit(client, task).explained


def test_a_node_that_has_not_all_blocks(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradledger.audit.reader.RETRY_SEC", 0.01)
    number = played.block_of("openround")

    def pruned(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_raw_block" and document["block_num_or_id"] == str(number):
            raise NodeAnswerError("Unknown Block")

    with pytest.raises(NodeAnswerError, match=f"block {number} is not to be had: Unknown Block"):
        audited(played, Liar(played.client, pruned))

    def nonsense(path: str, document: Any, answer: Any) -> Any:
        return {"transactions": 7} if path == "/v1/chain/get_raw_block" else None

    with pytest.raises(NodeAnswerError, match="is not to be had: expected block"):
        audited(played, Liar(played.client, nonsense))
    with pytest.raises(ConfigError, match="give an earlier --from-block"):
        audited(played, from_block=played.block_of("settle"))
    with pytest.raises(ConfigError, match="from 1 on"):
        audited(played, from_block=0)


def test_several_nodes_are_witnesses(
    played: Played, tracing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ChainClient([*played.client.endpoints, tracing])
    report = audited(played, both)
    assert report.witnesses == 2 and report.complete
    one_away = ChainClient([*played.client.endpoints, "http://127.0.0.1:9"])
    report = audited(played, one_away)
    assert report.witnesses == 1 and report.explained and not report.complete
    assert report.unreached[0].startswith("http://127.0.0.1:9, as a witness: ")

    def witness(endpoint: str) -> ChainClient:
        """Make one node contradict itself."""
        client = ChainClient(endpoint)
        altered = {"transaction_mroot": "ab" * 32}
        return client if endpoint != tracing else Liar(client, lambda *call: call[2] | altered)

    monkeypatch.setattr("gradledger.audit.run.ChainClient", witness)
    report = audited(played, both)
    assert report.witnesses == 1 and report.explained and not report.complete
    (text,) = report.unreached
    assert text.startswith(f"{tracing}, as a witness: block ") and "have the root" in text


def test_another_chain_is_noticed(played: Played) -> None:
    def first_block(path: str, document: Any, answer: Any) -> None:
        if path == "/v1/chain/get_info":
            answer["chain_id"] = "ab" * 32

    report = audited(played, Liar(played.client, first_block))
    # every signature is over the chain's id
    assert "whose permissions have none of the keys that signed it" in report.finding


def test_the_command_line(
    played: Played, store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    where = ["--chain", ",".join(played.client.endpoints), "--store", store.address]
    assert main(["audit", played.task, *where]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n4 payments, all explained\n")
    assert "round 1     settled: 3 uploads, 1 accepted, 1 refused, 1 by silence" in out
    assert main(["audit", played.task, *where, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["explained"] and len(document["payment_list"]) == document["payments"] == 4
    assert main(["audit", "nosuchtask", *where]) == 2
    assert "no task is named" in capsys.readouterr().err
    away = ["--chain", where[1], "--store", "/ip4/127.0.0.1/tcp/9"]
    assert main(["audit", played.task, *away]) == 3
    assert "not seen    blobs: 3 of 3 not looked at" in capsys.readouterr().out
    assert main(["audit", played.task, "--home", str(tmp_path)]) == 2
    assert "or give --chain URL" in capsys.readouterr().err


def test_books_of_altered_steps_fail_in_one_way_alone(played: Played) -> None:
    """Whatever the signed actions say, the books are explained, or they name what is not."""
    contract, steps, rng = played.scene.contract, played.steps(), random.Random(1)
    tables, noticed = read_tables(contract, played.task), 0
    ours = [number for number, step in enumerate(steps) if step.inputs]
    for _ in range(300):
        altered, number = list(steps), rng.choice(ours)
        one = altered[number].inputs[0]
        data = bytearray(one.data)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        cut = rng.choice([len(data), len(data), rng.randrange(len(data))])
        inputs = (replace(one, data=bytes(data[:cut])), *altered[number].inputs[1:])
        altered[number] = replace(altered[number], inputs=inputs)
        books = TaskReplay(played.task, contract.account, contract.abi, schedules={})
        try:
            for step in altered:
                books.apply(step)
            noticed += next(differences(books, tables), "") != ""
        except UnexplainedError:
            noticed += 1
    assert noticed > 200
