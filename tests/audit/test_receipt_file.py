"""Receipts without any network: what holds, and that every altered field is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.audit.replay import Upload, as_member
from gradledger.chain.contract import UploadState, VerdictCode
from gradledger.chain.names import Asset, Symbol, name_to_int
from gradledger.cli import main
from gradledger.errors import ConfigError
from gradledger.merkle import leaf_record, merkle_path, merkle_root, path_length
from gradledger.receipt import (
    ReceiptError,
    SettledReceipt,
    load_receipt,
    parse_receipt,
)

TASK, PRICE, SYMBOL = "digits", 10, Symbol(4, "TOK")
REASONS = {2: VerdictCode.DUPLICATE, 3: VerdictCode.UNREVEALED}
DEVICES = sorted(("phonea", "phoneb", "phonec", "phoned", "phonee"), key=name_to_int)


def upload(number: int) -> Upload:
    reason = REASONS.get(number, VerdictCode.ACCEPT)
    paid, hidden = reason is VerdictCode.ACCEPT, reason is VerdictCode.UNREVEALED
    return Upload(
        version=3,
        slot=number,
        hash=bytes([number + 1]) * 32,
        cid=bytes(32) if hidden else bytes([number + 101]) * 32,
        cost=100 + number,
        errors=(900_000, 1000 + number),
        state=UploadState.PAID if paid else UploadState.REFUSED,
        reason=reason,
    )


RECORDS = [leaf_record(TASK, as_member(one, upload(i)), PRICE) for i, one in enumerate(DEVICES)]


def receipt(number: int) -> SettledReceipt:
    member = as_member(DEVICES[number], upload(number))
    paid = member.upload_cost * PRICE if member.upload_state is UploadState.PAID else 0
    return SettledReceipt(
        chain_id="ab" * 32,
        contract="fedlearning",
        task=TASK,
        version=3,
        device=member.account,
        hash=member.upload_hash,
        cid=member.upload_cid,
        cost=member.upload_cost,
        error_last=member.error_last,
        state=member.upload_state,
        reason=member.upload_reason,
        paid=Asset(paid, SYMBOL),
        record=RECORDS[number],
        index=number,
        count=len(RECORDS),
        path=tuple(merkle_path(RECORDS, number)),
        root=merkle_root(RECORDS),
    )


@pytest.mark.parametrize("number", range(len(DEVICES)))
def test_a_receipt_survives_its_file(number: int, tmp_path: Path) -> None:
    made = receipt(number)
    made.verify()
    made.save(tmp_path / "receipt.json")
    assert load_receipt(tmp_path / "receipt.json") == made
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]
    document = json.loads((tmp_path / "receipt.json").read_text())
    assert document["paid"] == (
        "0.0000 TOK" if number in REASONS else f"0.{1000 + 10 * number:04d} TOK"
    )
    assert len(document["path"]) == path_length(number, len(RECORDS))
    assert (document["cid"] == "") == (REASONS.get(number) is VerdictCode.UNREVEALED)
    assert ("never revealed" in str(made)) == (document["cid"] == "")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("task", "other", "task"),
        ("version", 4, "version"),
        ("device", "phoneb", "device"),
        ("hash", "00" * 32, "hash"),
        ("cid", receipt(1).cid, "cid"),
        ("cid", "", "cid"),
        ("cost", 1000, "cost"),
        ("error_last", 1, "error_last"),
        ("state", "refused", "state"),
        ("reason", "silence", "reason"),
        ("paid", "9.9999 TOK", "paid"),
        ("record", RECORDS[1].hex(), "device"),
        ("record", RECORDS[0].hex()[:-2] + "01", "paid"),
        ("record", "00", "record"),
        ("index", 1, "root"),
        ("index", 5, "index"),
        ("count", 9, "path"),
        ("count", 2, "path"),
        ("count", 0, "count"),
        ("path", [], "path"),
        ("path", ["00" * 32] * 3, "root"),
        ("path", ["00"], "path"),
        ("path", ["00" * 32] * 17, "path"),
        ("root", "00" * 32, "root"),
        ("chain_id", "ab", "chain_id"),
        ("contract", "NOT A NAME", "contract"),
        ("format", 2, "format"),
        ("more", 1, "more"),
        ("cost", True, "cost"),
        ("cost", -1, "cost"),
        ("cost", "100", "cost"),
        ("state", "pending", "state"),
        ("state", 7, "state"),
        ("paid", 1000, "paid"),
        ("paid", "1 TOK", "paid"),
        ("hash", "AB" * 32, "hash"),
        ("hash", None, "hash"),
        ("device", ["phonea"], "device"),
    ],
)
def test_an_altered_field_is_named(field: str, value: Any, named: str) -> None:
    document = {**receipt(0).to_dict(), field: value}
    with pytest.raises(ReceiptError) as caught:
        parse_receipt(json.dumps(document))
    assert caught.value.field == named
    assert str(caught.value).startswith(f"{named}: ")


def test_a_missing_field_is_named() -> None:
    for field in receipt(0).to_dict():
        document = receipt(0).to_dict()
        del document[field]
        with pytest.raises(ReceiptError) as caught:
            parse_receipt(json.dumps(document))
        assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", "null", '{"format": []}'])
def test_what_is_no_receipt(text: str) -> None:
    with pytest.raises(ReceiptError):
        parse_receipt(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(receipt(0).to_json()) - 1), st.characters(codec="ascii"))
def test_no_altered_character_passes_unnoticed(place: int, character: str) -> None:
    text = receipt(0).to_json()
    altered = text[:place] + character + text[place + 1 :]
    try:
        assert _facts(parse_receipt(altered)) == _facts(receipt(0))
    except ReceiptError:
        pass


def _facts(one: SettledReceipt) -> list[Any]:
    """Return all that the root binds. The rest is only claimed, `count` within some bounds."""
    bound = {**one.to_dict(), "paid": one.paid.amount, "chain_id": "", "contract": "", "count": 0}
    return list(bound.values())


def test_the_command_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "receipt.json"
    receipt(0).save(path)
    assert main(["receipt", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{DEVICES[0]}, round 3 of task digits: paid 0.1000 TOK (accept)" in out
    assert "proven      the record leads to the root" in out
    assert "claimed     that contract fedlearning on chain abab" in out
    assert main(["receipt", "check", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["on_chain"] is None
    path.write_text(path.read_text().replace('"cost": 100', '"cost": 101'))
    assert main(["receipt", "check", str(path)]) == 1
    assert capsys.readouterr().err == "gradledger: cost: it says 101, the record has 100\n"
    receipt(0).save(path)
    assert main(["receipt", "check", str(path), "--chain", "http://127.0.0.1:9"]) == 3
    assert "no endpoint answered" in capsys.readouterr().err
    path.write_text(" " * 70_000)
    with pytest.raises(ReceiptError, match="expected at most 65536 bytes"):
        load_receipt(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_receipt(tmp_path / "none.json")
