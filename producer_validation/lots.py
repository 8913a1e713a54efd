"""A validator's part of the lots that decide which accepted uploads are audited.

While a round is open and empty, each validator commits on chain to a value that nobody else
knows; once no upload can change any more, it reveals it. One value that an attacker does not know
beforehand is enough: each draws its own share of the uploads.
"""

from __future__ import annotations

import hashlib
import struct

from gradledger.chain.contract import Round
from gradledger.chain.names import name_to_int

__all__ = ["lot_value"]

_PERSON = b"gradledger-lot"


def lot_value(secret: bytes, chain_id: str, contract: str, task: str, round_: Round) -> bytes:
    """Return the value that a validator commits to in a round.

    Parameters
    ----------
    secret : bytes, length 32
        The validator's X25519 secret, which only ever keys this and opens envelopes.
    chain_id : str
        64 hexadecimal digits.
    contract, task : str
    round_ : Round
        Its version, the block that opened it and its model's hash count.

    Returns
    -------
    bytes, length 32

    Notes
    -----
    Keyed BLAKE2b is a pseudo-random function: without the key, no number of revealed values tells
    another. So a value need not be drawn and kept, and cannot be lost between commitment and
    reveal, whenever the process is killed or its disk is gone; whoever has the key can do worse
    than know it.

    A value is good for one round, for once it is revealed, a device can choose an upload that it
    does not draw. Chain, contract and task tell rounds of the same number apart; the opening block
    and the model do so when a fork undoes `openround` and the number is used again. A fork that
    undoes uploads alone keeps the commitments: against that, the validator reveals nothing before
    the end of the uploads is irreversible (`producer_validation.validator`).
    """
    message = bytes.fromhex(chain_id) + struct.pack(
        "<QQII", name_to_int(contract), name_to_int(task), round_.version, round_.opened_block
    )
    message += round_.model_hash
    return hashlib.blake2b(message, key=secret, person=_PERSON, digest_size=32).digest()
