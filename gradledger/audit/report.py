"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradledger.audit.replay import Payment
from gradledger.chain.names import Asset, Symbol


@dataclass(frozen=True)
class RoundSummary:
    """A round as the blocks give it; money in smallest units.

    `audited` uploads were drawn for an audit, `caught` ones of these were refused and their devices
    barred; `pending` is what is not decided yet.
    """

    version: int
    state: str
    uploads: int
    accepted: int
    refused: int
    silent: int
    audited: int
    caught: int
    pending: int
    paid: int
    root: str


@dataclass
class AuditReport:
    """What was read, what was proven, and what was not.

    Attributes
    ----------
    task, contract, chain_id : str
    first_block, last_block : int
    last_id : str
        Id of the last block read: every block before it is proven by it.
    blocks, transactions : int
        Read; of them `task_transactions` concern the task.
    uploads, verdicts, payments : int
    paid, deposited, withdrawn, reserved, free : int
        Smallest units of `symbol`.
    finding : str
        The first thing that is not explained; "" when there is none.
    unreached : list of str
        What could not be looked at.
    notes : list of str
    traces : bool
        The node gave its traces, but for `untraced` blocks, and they agree.
    untraced : int
        Blocks with transactions whose traces it lacks; 0 where it gives none at all.
    witnesses : int
        Nodes asked that have the last block with this id.
    code : str
        ``"known"`` when the contract's code is the one of this release, otherwise its hash.
    signed, unsigned : int
        Transactions whose keys are those of their accounts; those where that could not be told.
    blobs : int or None
        Uploads accepted by the validators whose bytes were fetched and agree; None: not looked at.
    rounds : list of RoundSummary
    payment_list : list of Payment
        Only if they were asked for.
    """

    task: str
    contract: str
    chain_id: str = ""
    symbol: Symbol | None = None
    first_block: int = 0
    last_block: int = 0
    last_id: str = ""
    blocks: int = 0
    transactions: int = 0
    task_transactions: int = 0
    uploads: int = 0
    verdicts: int = 0
    payments: int = 0
    paid: int = 0
    deposited: int = 0
    withdrawn: int = 0
    reserved: int = 0
    free: int = 0
    finding: str = ""
    unreached: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    traces: bool = False
    untraced: int = 0
    witnesses: int = 0
    code: str = ""
    signed: int = 0
    unsigned: int = 0
    blobs: int | None = None
    rounds: list[RoundSummary] = field(default_factory=list)
    payment_list: list[Payment] = field(default_factory=list, repr=False)

    @property
    def explained(self) -> bool:
        """Whether nothing was found that the rules do not explain."""
        return not self.finding

    @property
    def complete(self) -> bool:
        """Whether everything that was to be looked at was reached."""
        return not self.unreached

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if self.finding:
            return f"not explained: {self.finding}"
        done = f"{self.payments} payments, all explained"
        return done if self.complete else f"{done}; not all could be looked at"

    def money(self, amount: int) -> str:
        """Return an amount as text."""
        return str(amount) if self.symbol is None else str(Asset(amount, self.symbol))

    def to_dict(self) -> dict[str, Any]:
        """Return a document for programs; amounts are texts such as ``0.6000 TOK``."""
        return {
            "format": 1,
            "task": self.task,
            "contract": self.contract,
            "chain_id": self.chain_id,
            "explained": self.explained,
            "complete": self.complete,
            "verdict": self.verdict,
            "finding": self.finding or None,
            "unreached": self.unreached,
            "notes": self.notes,
            "blocks": {
                "first": self.first_block,
                "last": self.last_block,
                "last_id": self.last_id,
                "read": self.blocks,
                "transactions": self.transactions,
                "of_the_task": self.task_transactions,
            },
            "traces": self.traces,
            "untraced": self.untraced,
            "witnesses": self.witnesses,
            "code": self.code,
            "signatures": {"checked": self.signed, "unchecked": self.unsigned},
            "uploads": self.uploads,
            "verdicts": self.verdicts,
            "payments": self.payments,
            "blobs": self.blobs,
            "money": {
                name: self.money(getattr(self, name))
                for name in ("deposited", "paid", "withdrawn", "reserved", "free")
            },
            "rounds": [{**vars(one), "paid": self.money(one.paid)} for one in self.rounds],
            "payment_list": [
                {
                    **vars(one),
                    "amount": self.money(one.amount),
                    "reason": one.reason.name.lower(),
                }
                for one in self.payment_list
            ],
        }
