"""The client against a real node: push, page, wait, fail."""

from __future__ import annotations

import dataclasses
import time

import pytest

from gradledger.chain.abi import Abi
from gradledger.chain.client import ChainClient, Timeout
from gradledger.chain.contract import FedLearning, transfer
from gradledger.chain.keys import PrivateKey, load_key_file
from gradledger.chain.names import Asset, Symbol
from gradledger.chain.transaction import Action, Transaction, action
from gradledger.errors import (
    BadFieldError,
    ConfigError,
    ContractError,
    IrreversibilityTimeout,
    NodeAnswerError,
    NodeUnavailableError,
    NotAllowedError,
    TransactionExpiredError,
)
from gradledger.localnet.network import Network, NetworkInfo

TOK = Symbol(4, "TOK")
TOKEN_TABLES = Abi(
    {
        "structs": [{"name": "account", "fields": [{"name": "balance", "type": "asset"}]}],
        "actions": [],
        "tables": [{"name": "accounts", "type": "account"}],
    }
)


@pytest.fixture(scope="module")
def info(localnet: Network) -> NetworkInfo:
    return localnet.info()


@pytest.fixture(scope="module")
def owner_key(info: NetworkInfo) -> PrivateKey:
    return load_key_file(info.accounts[info.owner])[1]


def pay(info: NetworkInfo, memo: str, units: int = 1) -> Action:
    return transfer(info.token_contract, info.owner, "eosio", Asset(units, TOK), memo)


def test_a_transaction_becomes_irreversible(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    before = chain.balance(info.token_contract, info.owner, "TOK")
    result = chain.push([pay(info, "a"), pay(info, "b", 2)], [owner_key])
    number = chain.wait_irreversible(result, timeout_sec=30)
    assert result.first_block <= number <= chain.get_info().irreversible_block
    assert result.cpu_us > 0 and result.net_bytes > 0
    after = chain.balance(info.token_contract, info.owner, "TOK")
    assert before and after and before.amount - after.amount == 3
    assert chain.wait_irreversible(result, timeout_sec=5) == number  # from the kept blocks


def test_the_same_transaction_twice_is_one(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    before = chain.balance(info.token_contract, info.owner, "TOK")
    result = chain.push([pay(info, "twice")], [owner_key])
    assert result.traces["id"] == result.trx_id
    assert chain.send(result.body) == {}
    chain.wait_irreversible(result, timeout_sec=30)
    after = chain.balance(info.token_contract, info.owner, "TOK")
    assert before and after and before.amount - after.amount == 1


def test_a_check_of_another_contract_is_a_contract_error(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    with pytest.raises(ContractError, match="overdrawn balance") as caught:
        chain.push([pay(info, "much", 10**17)], [owner_key])
    assert caught.value.code == ""


def test_the_contracts_code_picks_the_class(
    chain: ChainClient, contract: FedLearning, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    act = contract.closeround("nosuchtask", info.owner, 1)
    with pytest.raises(BadFieldError, match=r"^unknown_task: ") as caught:
        chain.push([act], [owner_key])
    assert caught.value.code == "unknown_task"
    with pytest.raises(BadFieldError, match="nosuchtask"):
        contract.task("nosuchtask")
    assert contract.round("nosuchtask", 1) is None
    assert contract.members("nosuchtask") == []


def test_a_wrong_key_and_a_missing_one_are_not_allowed(
    chain: ChainClient, info: NetworkInfo
) -> None:
    for keys in ([PrivateKey.generate()], []):
        with pytest.raises(NotAllowedError, match="missing_authority"):
            chain.push([pay(info, "forged")], keys)


def test_an_unknown_account_is_told_from_a_known_one(chain: ChainClient, info: NetworkInfo) -> None:
    assert chain.has_account(info.owner)
    assert not chain.has_account("nosuchacc")
    with pytest.raises(NodeAnswerError):
        chain.get_account("nosuchacc")
    assert chain.balance(info.token_contract, "nosuchacc", "TOK") is None


def test_an_expired_transaction_is_refused_and_known_to_be_lost(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    now = chain.get_info()
    old = Transaction.refer([pay(info, "old")], now.head_time - 10, now.irreversible_id)
    with pytest.raises(TransactionExpiredError):
        chain.send(old.sign(now.chain_id, [owner_key]))
    # One that was accepted by a node that then lost it: never in a block.
    sent = chain.push([pay(info, "kept")], [owner_key], expiration_sec=30)
    lost = dataclasses.replace(sent, trx_id="00" * 32, expiration=chain.get_info().head_time + 1)
    with pytest.raises(TransactionExpiredError, match="sign it anew"):
        chain.wait_irreversible(lost, timeout_sec=30)
    unknown = dataclasses.replace(sent, trx_id="00" * 32)
    with pytest.raises(IrreversibilityTimeout, match=r"after 0\.3 s"):
        chain.wait_irreversible(unknown, timeout_sec=0.3)


def test_tables_are_read_page_by_page(chain: ChainClient, info: NetworkInfo) -> None:
    def scan(**bounds: int) -> list[str]:
        rows = chain.table_rows(
            info.token_contract, info.owner, "accounts", abi=TOKEN_TABLES, **bounds
        )
        return [row["balance"] for row in rows]

    assert len(scan()) == 1 and scan()[0].endswith(" TOK")
    assert scan(limit=1) == scan()
    key = TOK.to_int() >> 8
    assert scan(lower=key, upper=key) == scan()
    assert scan(lower=key + 1) == []
    with pytest.raises(ConfigError, match="got table 'rows'"):
        next(chain.table_rows(info.token_contract, info.owner, "rows", abi=TOKEN_TABLES))


def test_many_rows_come_once_and_in_order(
    chain: ChainClient, contract: FedLearning, localnet: Network
) -> None:
    pages = chain.table_rows(
        "eosio.token", "TOK", "stat", abi=Abi({"structs": STAT, "actions": [], "tables": TABLES})
    )
    assert [row["supply"].split()[1] for row in pages] == ["TOK"]


STAT = [
    {
        "name": "stat",
        "fields": [
            {"name": "supply", "type": "asset"},
            {"name": "max_supply", "type": "asset"},
            {"name": "issuer", "type": "name"},
        ],
    }
]
TABLES = [{"name": "stat", "type": "stat"}]


def test_a_row_that_is_not_the_abis_is_a_node_error(chain: ChainClient, info: NetworkInfo) -> None:
    wrong = Abi(
        {
            "structs": [{"name": "account", "fields": [{"name": "id", "type": "uint8"}]}],
            "actions": [],
            "tables": [{"name": "accounts", "type": "account"}],
        }
    )
    with pytest.raises(NodeAnswerError, match="expected rows of"):
        list(chain.table_rows(info.token_contract, info.owner, "accounts", abi=wrong))


def test_a_dead_endpoint_is_stepped_over(info: NetworkInfo, owner_key: PrivateKey) -> None:
    client = ChainClient(["http://127.0.0.1:9", *info.chain_urls], timeout=Timeout(connect=1))
    result, number = client.transact([pay(info, "second")], [owner_key], timeout_sec=30)
    assert number >= result.first_block
    dead = ChainClient("http://127.0.0.1:9", timeout=Timeout(connect=1))
    with pytest.raises(NodeUnavailableError, match=r"127\.0\.0\.1:9: ConnectionRefused"):
        dead.get_info()


def test_nothing_signed_for_one_chain_is_valid_on_another(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    now = chain.get_info()
    actions = [pay(info, f"other {time.monotonic_ns()}")]
    transaction = Transaction.refer(actions, now.head_time + 30, now.irreversible_id)
    with pytest.raises(NotAllowedError):
        chain.send(transaction.sign("ab" * 32, [owner_key]))
    stranger = Transaction.refer(actions, now.head_time + 30, "ff" * 32)
    with pytest.raises(NodeUnavailableError, match="reference block did not match"):
        chain.send(stranger.sign(now.chain_id, [owner_key]))


def test_what_refers_to_the_head_is_taken(
    chain: ChainClient, info: NetworkInfo, owner_key: PrivateKey
) -> None:
    now = chain.get_info()
    assert int(now.head_id[:8], 16) == now.head_block > now.irreversible_block
    sent = chain.push([pay(info, "head")], [owner_key], reference=now.head_id)
    assert chain.wait_irreversible(sent, timeout_sec=30) > now.head_block


def test_an_action_of_no_contract_is_an_error(chain: ChainClient, info: NetworkInfo) -> None:
    key = load_key_file(info.accounts[info.owner])[1]
    with pytest.raises((ContractError, NodeAnswerError)):
        chain.push([action("nosuchacc", "do", info.owner, b"")], [key])
