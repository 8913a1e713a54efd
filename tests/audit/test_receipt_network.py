"""Receipts of a real run, against the roots that the contract recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from audit_scene import COSTS, Bought, Liar, Played, in_row
from device_scene import PRICE

from gradledger.chain.contract import UploadState, VerdictCode
from gradledger.chain.names import Asset, Symbol
from gradledger.cli import main
from gradledger.errors import AlreadyDoneError, ConfigError, IrreversibilityTimeout
from gradledger.receipt import ReceiptError, load_receipt, prove, verify_on_chain

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_device_saves_receipts_of_both_rounds(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Round 2 is in the members' rows still; round 1 is in the blocks alone."""
    expected = {
        (1, 1): (UploadState.REFUSED, VerdictCode.OUT_OF_RANGE, 0, 3),
        (1, 2): (UploadState.PAID, VerdictCode.SILENCE, COSTS[2] * PRICE, 3),
        (2, 1): (UploadState.PAID, VerdictCode.ACCEPT, COSTS[1] * PRICE, 2),
    }
    path = tmp_path / "receipt.json"
    for (version, number), (state, reason, paid, count) in expected.items():
        played.receipts[version, played.devices[number]].save(path)
        read = load_receipt(path)
        assert (read.device, read.version) == (played.devices[number], version)
        assert (read.state, read.reason, read.paid.amount) == (state, reason, paid)
        assert (read.cost, read.count) == (COSTS[number], count)
        row = played.scene.contract.round(played.task, version)
        assert row is not None and row.root == read.root
    assert main(["receipt", "check", str(path), "--chain", played.client.endpoints[0]]) == 0
    assert "the chain has this root, irreversibly" in capsys.readouterr().out
    assert json.loads(path.read_text())["chain_id"] == played.client.get_info().chain_id


def test_the_chain_has_the_last_word(played: Played) -> None:
    contract, device = played.scene.contract, played.devices[1]
    made = prove(contract, played.task, 2, device)
    assert verify_on_chain(made, played.client)["price"] == "0.0010 TOK"
    lies = {
        "root": Liar(played.client, in_row(contract, "rounds", bool, root="ab" * 32)),
        "count": Liar(played.client, in_row(contract, "rounds", bool, settled=7)),
    }
    for field, client in lies.items():
        with pytest.raises(ReceiptError) as caught:
            verify_on_chain(made, client)
        assert caught.value.field == field
    others = {
        "chain_id": replace(made, chain_id="ab" * 32),
        "paid": replace(made, paid=Asset(made.paid.amount, Symbol(4, "EUR"))),
    }
    for field, changed in others.items():
        with pytest.raises(ReceiptError) as caught:
            verify_on_chain(changed, played.client)
        assert caught.value.field == field


def test_what_cannot_be_proven_yet_or_ever(played: Played, bought: Bought) -> None:
    contract = played.scene.contract
    with pytest.raises(IrreversibilityTimeout, match="it is not settled yet"):
        prove(contract, bought.scene.task, 1, bought.device, timeout_sec=0)
    with pytest.raises(IrreversibilityTimeout, match="it was not opened yet"):
        prove(contract, played.task, 9, played.devices[0], timeout_sec=0)
    with pytest.raises(ConfigError, match="has no upload in round 2"):
        prove(contract, played.task, 2, played.devices[2])
    receipt = played.receipts[2, played.devices[0]]
    true = receipt.hash
    try:
        receipt.hash = bytes(32)
        with pytest.raises(AlreadyDoneError, match="round 2 has another upload"):
            receipt.to_json()
    finally:
        receipt.hash = true
