"""Which arithmetic is in use: the fastest that runs here, or what GRADLEDGER_PAILLIER names."""

from __future__ import annotations

import os

from gradledger.errors import ConfigError
from gradledger.paillier import native
from gradledger.paillier.gmpy import Gmpy2

ENVIRONMENT = "GRADLEDGER_PAILLIER"
AUTO = "auto"

_GMPY2 = Gmpy2()
_NEVER_BEST = "ifma-emulated"  # for tests: it is there that the kernel for IFMA runs everywhere


def backends() -> tuple[str, ...]:
    """Return the names of what runs here.

    Returns
    -------
    tuple of str
        The first one is in use unless GRADLEDGER_PAILLIER names another: `ifma` (AVX-512 IFMA,
        eight lanes), `avx2` (four lanes), `portable` (64-bit C), `gmpy2`, `ifma-emulated` (the
        kernel of `ifma` in plain C, for tests). Only gmpy2 without the extension.
    """
    names = [kernel.name for kernel in native.load() if kernel.name != _NEVER_BEST]
    slow = [kernel.name for kernel in native.load() if kernel.name == _NEVER_BEST]
    return (*names, _GMPY2.name, *slow)


def backend() -> str:
    """Return the name of what is in use.

    Returns
    -------
    str
        One of `backends`.

    Raises
    ------
    ConfigError
        GRADLEDGER_PAILLIER names none of them.
    """
    return current().name


def current() -> Gmpy2 | native.Native:
    """Return the arithmetic in use.

    Returns
    -------
    Gmpy2 or Native
        GRADLEDGER_PAILLIER is read at every call.

    Raises
    ------
    ConfigError
        GRADLEDGER_PAILLIER names none of `backends`.
    """
    name = os.environ.get(ENVIRONMENT) or AUTO
    known = {kernel.name: kernel for kernel in native.load()}
    if name == AUTO:
        name = backends()[0]
    if name == _GMPY2.name:
        return _GMPY2
    if name not in known:
        raise ConfigError(
            f"{ENVIRONMENT}: expected {AUTO} or one of {', '.join(backends())}, got {name!r}"
        )
    return known[name]
