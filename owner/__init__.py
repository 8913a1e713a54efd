"""The owner of a task: publishes models, opens and closes rounds, aggregates, pays in.

`Owner` is the Python API for single steps, `run` carries a whole training through and can be
stopped and started again at any point, `gradledger owner ...` is both on the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owner.aggregation import Aggregate
    from owner.owner import Owner, Published
    from owner.paillier_key import PaillierPrivateKey
    from owner.plan import Plan
    from owner.run import RoundReport, run

__all__ = [
    "Aggregate",
    "Owner",
    "PaillierPrivateKey",
    "Plan",
    "Published",
    "RoundReport",
    "run",
]

_HOMES = {
    "Aggregate": "owner.aggregation",
    "Owner": "owner.owner",
    "PaillierPrivateKey": "owner.paillier_key",
    "Plan": "owner.plan",
    "Published": "owner.owner",
    "RoundReport": "owner.run",
    "run": "owner.run",
}


def __getattr__(name: str) -> Any:
    """Load a public name's module when the name is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'owner' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
