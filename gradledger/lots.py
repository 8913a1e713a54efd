"""Who is audited: each validator's lot, as the contract computes it (docs/lots.md).

Before there is an upload each validator commits to a value; when every verdict is in it reveals
it. An upload is drawn if the value of any validator draws it. The same as
``eosio_contracts/common/lots.hpp``; shared vectors are in ``tests/vectors/lots.json``.
"""

from __future__ import annotations

import hashlib

from gradledger.chain.names import name_to_int

__all__ = ["VALUE_BYTES", "is_drawn", "lot_commitment"]

VALUE_BYTES = 32
_ALL_E6 = 1_000_000
_STEP = 2**64 // _ALL_E6


def lot_commitment(task: str, version: int, validator: str, value: bytes) -> bytes:
    """Return what a validator commits to by `commitlot`.

    Parameters
    ----------
    task : str
    version : int
        Of the round.
    validator : str
    value : bytes, length 32
        Secret until the round is drawn.

    Returns
    -------
    bytes, length 32
        SHA-256(task || version || validator || value), integers little endian.
    """
    if len(value) != VALUE_BYTES:
        raise ValueError(f"a lot's value of {VALUE_BYTES} bytes expected, got {len(value)}")
    names = [name_to_int(name).to_bytes(8, "little") for name in (task, validator)]
    return hashlib.sha256(names[0] + version.to_bytes(4, "little") + names[1] + value).digest()


def is_drawn(value: bytes, upload_hash: bytes, lot_e6: int) -> bool:
    """Whether a revealed value draws the upload with this hash.

    Parameters
    ----------
    value : bytes, length 32
    upload_hash : bytes, length 32
        As recorded on chain.
    lot_e6 : int
        The task's share for each validator, 1e-6 units; 1,000,000 draws every upload.
    """
    if lot_e6 >= _ALL_E6:
        return True
    place = hashlib.sha256(value + upload_hash).digest()[:8]
    return int.from_bytes(place, "big") < lot_e6 * _STEP
