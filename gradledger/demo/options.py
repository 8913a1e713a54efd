"""What `gradledger demo` is asked to do, and how its devices behave."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from gradledger.errors import ConfigError

DEVICES_MIN = 4
DEVICES_MAX = 100
ROUNDS_MAX = 200
KEY_BITS_MIN = 2048
KEY_BITS_MAX = 8192
KEY_BITS = 3072

HONEST = "honest"
LATE = "late"
SHUFFLED = "shuffled"
STALE = "stale"
FORGER = "forger"
"""Behaviour of a device: `LATE` uploads after the round has closed in every third round, `STALE`
offers an update of the round before in every second one, `SHUFFLED` always trains on labels in a
random order. All three follow the protocol otherwise. `FORGER`, who comes where there are audits,
trains nothing: it sends noise and reports the errors of a good model."""


@dataclass(frozen=True)
class DemoOptions:
    """Options of one run; checked where they are made.

    Parameters
    ----------
    devices, rounds : int
    mode : str
        ``"paillier"`` or ``"sealed"``.
    data : Path or None
        Directory with MNIST's IDX files; None for scikit-learn's digits.
    out : Path or None
        Where plots and reports go; None for nowhere.
    seed : int
        Splits, shares, first model and training order follow from it.
    home : Path or None
        Where the local network lives; None for a temporary one that is removed at the end.
    framework : str
        ``"sklearn"`` or ``"torch"``.
    key_bits : int
        Length of the owner's Paillier modulus; under 3072 only for a quick look.
    lot : float
        Share of the accepted uploads that each validator's lot draws for an audit; paillier mode.
    reveal : bool
        Whether devices tell their uploads' CIDs only once the round is closed.

    Raises
    ------
    ConfigError
        An option is out of its range, or the framework is not installed.
    """

    devices: int = 10
    rounds: int = 15
    mode: str = "paillier"
    data: Path | None = None
    out: Path | None = None
    seed: int = 1
    home: Path | None = None
    framework: str = "sklearn"
    key_bits: int = KEY_BITS
    lot: float = 0.0
    reveal: bool = False

    def __post_init__(self) -> None:
        _within("--devices", self.devices, DEVICES_MIN + (self.lot > 0), DEVICES_MAX)
        _within("--rounds", self.rounds, 1, ROUNDS_MAX)
        _within("--seed", self.seed, 0, 2**32 - 1)
        _within("--key-bits", self.key_bits, KEY_BITS_MIN, KEY_BITS_MAX)
        if self.key_bits % 64:
            raise ConfigError(f"--key-bits: expected a multiple of 64, got {self.key_bits}")
        if self.mode not in ("paillier", "sealed"):
            raise ConfigError(f"--mode: expected paillier or sealed, got {self.mode}")
        if not 0 <= self.lot <= 1:
            raise ConfigError(f"--lot: expected 0 to 1, got {self.lot:g}")
        if self.lot and self.mode == "sealed":
            raise ConfigError("--lot: in sealed mode validators see every update, without audits")
        if self.framework not in ("sklearn", "torch"):
            raise ConfigError(f"--framework: expected sklearn or torch, got {self.framework}")
        if self.framework == "torch" and importlib.util.find_spec("torch") is None:
            raise ConfigError(
                "--framework torch: PyTorch is not installed; install gradledger with the extra "
                "'torch'"
            )
        for module in ("sklearn", "matplotlib"):
            if importlib.util.find_spec(module) is None:
                raise ConfigError(
                    f"the demo needs {module}: install gradledger with the extra 'localnet'"
                )


def roles(devices: int, *, audits: bool = False) -> list[str]:
    """Return the behaviour of each device: all honest but the last three, or four."""
    others = [LATE, SHUFFLED, STALE] + [FORGER] * audits
    return [HONEST] * (devices - len(others)) + others


def is_late(role: str, version: int) -> bool:
    """Return whether a device of this behaviour uploads after round `version` has closed."""
    return role == LATE and version % 3 == 2


def is_stale(role: str, version: int) -> bool:
    """Return whether a device of this behaviour first offers an old update in round `version`."""
    return role == STALE and version % 2 == 0


def account_names(prefix: str, count: int) -> list[str]:
    """Return `count` account names: `prefix` and letters, ascending (``phonea``, ``phoneb``)."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    width = 1 if count <= len(letters) else 2
    if count > len(letters) ** width or len(prefix) + width > 12:
        raise ConfigError(f"no room for {count} account names that start with {prefix}")
    if width == 1:
        return [prefix + letter for letter in letters[:count]]
    return [prefix + a + b for a in letters for b in letters][:count]


def _within(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{option}: expected {low} to {high}, got {value}")
