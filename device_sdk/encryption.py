"""How a device encrypts its updates: what blinds them, and how many threads work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradledger.errors import ConfigError

if TYPE_CHECKING:
    from gradledger.paillier import PaillierPublicKey

__all__ = ["Encryption"]


@dataclass(frozen=True, kw_only=True)
class Encryption:
    """What `PAILLIER` mode leaves to the device; `docs/caveats.md` compares the blindings.

    Parameters
    ----------
    threads : int, 1..256
        How many encrypt at once.
    fast : bool
        Look-ups that are not constant-time: for a machine on which nobody else can watch caches.
    strict : bool
        Longer exponents: no assumption on short ones, and more than twice the time. Not in a task
        with audits, and neither are masks.
    masks : path, optional
        Folder of masks made ahead (`Device.make_masks`), one used for each ciphertext: no
        assumption but Paillier's. Made with mode 0700; never copy or restore it.

    Raises
    ------
    ConfigError
        `masks` with `fast` or `strict`, or `threads` is out of bounds.
    """

    threads: int = 1
    fast: bool = False
    strict: bool = False
    masks: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.masks is not None and (self.fast or self.strict):
            raise ConfigError("masks: expected neither fast nor strict beside them")
        if not 1 <= self.threads <= 256:
            raise ConfigError(f"threads: expected 1..256, got {self.threads}")

    def check_audits(self) -> None:
        """Refuse what a task with audits cannot have: masks and strict exponents.

        Raises
        ------
        ConfigError
        """
        for name in ("masks", "strict"):
            if getattr(self, name):
                raise ConfigError(
                    f"encryption: no {name} expected: the task audits uploads by lot, for which a "
                    "validator must be able to encrypt an opened update again from its seed alone"
                )

    def options(self, key: PaillierPublicKey, seed: bytes | None = None) -> dict[str, Any]:
        """Return the keywords for `key.encrypt`.

        Parameters
        ----------
        key : PaillierPublicKey
            Of the task.
        seed : bytes, length 32, optional
            From which all randomness is to follow, for a task with audits.

        Returns
        -------
        dict
            With the masks' store opened, if there is one.

        Raises
        ------
        ConfigError
            Other accounts may read the folder of masks, or the file is damaged or a copy; or
            `check_audits` says no.
        """
        options: dict[str, Any] = {"threads": self.threads}
        if seed is not None:
            self.check_audits()
            return {**options, "fast": self.fast, "seed": seed}
        if self.masks is None:
            return {**options, "fast": self.fast, "strict": self.strict}
        from gradledger.paillier.masks import MaskStore

        return {**options, "masks": MaskStore(self.masks, key)}
