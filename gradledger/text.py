"""Texts of others that people read."""

from __future__ import annotations

import unicodedata

from gradledger.errors import ConfigError

__all__ = ["check_text"]

# Control, format (what turns the direction of writing is among it), surrogates, line breaks.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_JOINERS = "\u200c\u200d"  # format as well, but Persian and emoji need them


def check_text(what: str, text: str) -> None:
    """Refuse a text that could change how the text around it looks when it is printed.

    That is one with a character that moves, hides or reorders others: of a terminal, a line break,
    or one that turns the direction of writing. The same characters are refused by every Python
    but for those that Unicode did not know yet.

    Parameters
    ----------
    what : str
        What it is, for the message.
    text : str

    Raises
    ------
    ConfigError
        The message names the first such character by its number.
    """
    for place, character in enumerate(text):
        if unicodedata.category(character) in _HIDDEN and character not in _JOINERS:
            raise ConfigError(
                f"{what}: expected one line without control characters, got U+"
                f"{ord(character):04X} at place {place}"
            )
