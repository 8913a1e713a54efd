"""The opening of an encrypted upload: what a drawn device hands the validators, sealed.

Byte for byte in `docs/protocol.md`, section 1.5. Pure: with seed and codes anyone encrypts again
and gets the upload's ciphertexts (`PaillierPublicKey.encrypt`), so both are as secret as an update.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradledger.codec import Codec
from gradledger.envelope import OPENING_SEED_BYTES
from gradledger.errors import CodecError
from gradledger.paillier.seeded import check_seed


def opening_bytes(codec: Codec) -> int:
    """Return the length of an opening's payload.

    Parameters
    ----------
    codec : Codec
        Of the task.

    Returns
    -------
    int
        32 + 2 x parameters.
    """
    return OPENING_SEED_BYTES + 2 * codec.parameters


def pack_opening(seed: bytes, codes: NDArray[np.uint16], codec: Codec) -> bytes:
    """Return the payload of an opening.

    Parameters
    ----------
    seed : bytes, length 32
        That the update was encrypted with.
    codes : ndarray of uint16, shape (parameters,)
        The update, as `codec.quantise` returned it.
    codec : Codec
        Of the task.

    Returns
    -------
    bytes
        `opening_bytes(codec)` bytes; a secret until it is sealed.

    Raises
    ------
    PaillierError
        The seed is not 32 bytes.
    CodecError
        The codes do not fit the codec.
    """
    check_seed(seed)
    return seed + codec.to_bytes(codes)


def split_opening(payload: bytes, codec: Codec) -> tuple[bytes, NDArray[np.uint16]]:
    """Return seed and codes of an opening's payload.

    Parameters
    ----------
    payload : bytes
        Anything; its values stay out of messages.
    codec : Codec
        Of the task.

    Returns
    -------
    seed : bytes, length 32
    codes : ndarray of uint16, shape (parameters,)
        Whatever the bytes are: every code is in range.

    Raises
    ------
    CodecError
        The length is another.
    """
    expected = opening_bytes(codec)
    if len(payload) != expected:
        raise CodecError(f"expected an opening of {expected} bytes, got {len(payload)}")
    view = memoryview(payload)
    return bytes(view[:OPENING_SEED_BYTES]), codec.from_bytes(view[OPENING_SEED_BYTES:])
