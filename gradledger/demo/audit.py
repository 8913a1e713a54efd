"""Checks the money of a run from the chain's tables and blocks, and from nothing the demo counted.

A settled round's row says what was paid and carries the Merkle root over its uploads; the members'
rows hold those uploads until the next round's. Read together, once a round is settled and before
the next one opens, they give every payment, and the root proves that the contract saw the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gradledger.audit.run import audit
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import Escrow, FedLearning, UploadState, VerdictCode
from gradledger.chain.names import Symbol
from gradledger.errors import ConfigError
from gradledger.merkle import merkle_root, round_records


@dataclass(frozen=True)
class RoundLedger:
    """One settled round, as the chain's tables had it.

    Parameters
    ----------
    version : int
    uploads, accepted : int
        Of the round's row.
    paid : int
        Of the round's row; smallest units.
    payments : dict of str to int
        What each accepted device of the round is due: examples times price, of its row.
    refusals : dict of str to str
        Why the validators refused a device's upload.
    proven : bool
        The rows' Merkle root is the one that the contract recorded.
    """

    version: int
    uploads: int
    accepted: int
    paid: int
    payments: dict[str, int]
    refusals: dict[str, str]
    proven: bool


def read_round(contract: FedLearning, task: str, version: int) -> RoundLedger:
    """Read a settled round; the next one must not have taken uploads yet.

    Raises
    ------
    ConfigError
        The task has no such round.
    NodeError
        The node does not answer.
    """
    found = contract.round(task, version)
    if found is None:
        raise ConfigError(f"task {task} has no round {version}")
    members = [row for row in contract.members(task) if row.upload_version == version]
    return RoundLedger(
        version=version,
        uploads=found.uploads,
        accepted=found.accepted,
        paid=found.paid,
        payments={
            row.account: row.upload_cost * found.price
            for row in members
            if row.upload_state is UploadState.PAID
        },
        refusals={
            row.account: VerdictCode(row.upload_reason).name.lower()
            for row in members
            if row.upload_state is UploadState.REFUSED
        },
        proven=merkle_root(round_records(task, members, version, found.price)) == found.root,
    )


def balances(
    contract: FedLearning, token_contract: str, symbol: Symbol, accounts: Iterable[str]
) -> dict[str, int]:
    """Return what each account holds of the token, from the token contract's table."""
    held = {a: contract.client.balance(token_contract, a, symbol.code) for a in accounts}
    return {account: asset.amount if asset else 0 for account, asset in held.items()}


def check_blocks(client: ChainClient, task: str, ledgers: Iterable[RoundLedger]) -> dict[str, bool]:
    """Derive the payments again from the blocks, as ``gradledger audit`` does.

    Raises
    ------
    NodeError
        The node does not give its blocks.
    """
    report = audit(client, task)
    payments = sum(len(ledger.payments) for ledger in ledgers)
    explained = report.explained and report.complete and report.payments == payments
    return {"the blocks alone explain every payment": explained}


def check(
    ledgers: Iterable[RoundLedger],
    escrow: Escrow,
    owed: int,
    received: dict[str, int],
) -> dict[str, bool]:
    """Compare rounds, escrow and token balances.

    Parameters
    ----------
    ledgers : iterable of RoundLedger
        Every round of the task.
    escrow : Escrow
        Of the task, with `holdings`.
    owed : int
        What the contract should hold of the token for all its tasks.
    received : dict of str to int
        By how much the token balance of each of the task's devices has grown.

    Returns
    -------
    dict of str to bool
        Each statement, and whether it is true to the last unit.
    """
    rounds = list(ledgers)
    due: Counter[str] = Counter()
    for ledger in rounds:
        due.update(ledger.payments)
    parts = escrow.paid + escrow.reserved + escrow.withdrawn + escrow.free
    return {
        "deposited = paid + reserved + withdrawn + balance": parts == escrow.deposited
        and escrow.conserved,
        "the contract's token balance is what its tasks have left": escrow.holdings == owed,
        "every accepted upload was paid once: its round's payments add up to what the round paid": (
            all(len(ledger.payments) == ledger.accepted for ledger in rounds)
            and all(sum(ledger.payments.values()) == ledger.paid for ledger in rounds)
            and sum(ledger.paid for ledger in rounds) == escrow.paid
        ),
        "every device's token balance is the sum of its payments": received
        == {account: due[account] for account in received}
        and set(due) <= set(received),
        "every round's Merkle root proves its payments": all(ledger.proven for ledger in rounds),
    }
