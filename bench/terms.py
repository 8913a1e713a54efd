"""Plain terms of tasks and rounds, for benches and tests that are not about them."""

from __future__ import annotations

import hashlib
from typing import Any

from gradledger.chain.contract import (
    Mode,
    Recipe,
    RoundTerms,
    Rule,
    Silence,
    TaskTerms,
    ValidatorsKind,
)
from gradledger.chain.names import Symbol
from gradledger.cid import digest_to_cid

PHASE_SEC = 3600


def task_choices(**fields: Any) -> dict[str, Any]:
    """Return what an owner chooses of a task's terms; `fields` are those that matter.

    A sealed task without audits, unless they say otherwise.
    """
    return {
        "token_contract": "eosio.token",
        "token_symbol": Symbol(4, "TOK"),
        "mode": Mode.SEALED,
        "is_public": False,
        "validators_kind": ValidatorsKind.NAMED,
        "silence": Silence.REFUND,
        "errors_max": 16,
        "cost_max": 10_000,
        "devices_max": 1000,
        "sum_min": 3,
        "slot_bits": 26,
        "clip_e6": 1_000_000,
        "lot_e6": 0,
        "bar_rounds": 0,
        **fields,
    }


def task_terms(**fields: Any) -> TaskTerms:
    """Return the terms of a task; `key_hash` has to be given unless it is a sealed one."""
    derived: dict[str, Any] = {
        "classes": 10,
        "parameters": 101_770,
        "key_hash": bytes(32),
        "card_cid": digest_to_cid(_digest("card")),
        "card_hash": _digest("card"),
    }
    return TaskTerms(**{**derived, **task_choices(**fields)})


def round_terms(*, phase_sec: int = PHASE_SEC, **fields: Any) -> RoundTerms:
    """Return terms that accept what falls; `fields` are those that matter, by their names.

    Parameters
    ----------
    phase_sec : int
        Length of each phase, unless `fields` say otherwise.
    """
    plain: dict[str, Any] = {
        "model_cid": digest_to_cid(_digest("model")),
        "model_hash": _digest("model"),
        "price": 1,
        "budget": 1000,
        "open_sec": phase_sec,
        "verdict_sec": phase_sec,
        "sum_sec": phase_sec,
        "reveal_sec": 0,
        "audit_sec": 0,
        "close_after": 1,
        "rule": Rule.EITHER,
        "tau": 100_000,
        "eta_e6": 1_000_000,
        "norm_max_e6": 0,
        "training": Recipe(epochs=1, batch_size=32, rate_e6=1, measures=4, seed=1),
    }
    return RoundTerms(**{**plain, **fields})


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
