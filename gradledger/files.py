"""Private files that are there whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradledger.errors import ConfigError

__all__ = ["make_folder", "remove_unfinished", "write_atomically", "write_new"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, in the place of the one that is there.

    Parameters
    ----------
    path : Path
    data : bytes

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    try:
        with _written_beside(path, data) as temporary:
            os.replace(temporary, path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc.strerror}") from exc


def write_new(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, that must not be there yet.

    Parameters
    ----------
    path : Path
    data : bytes

    Raises
    ------
    FileExistsError
        It is there; nothing is changed.
    OSError
        The folder cannot be written.
    """
    with _written_beside(path, data) as temporary:
        os.link(temporary, path)  # a rename would replace what is there


def make_folder(path: Path) -> None:
    """Make a folder, mode 0700, and those above it, where they are missing. Raises ConfigError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot make the folder: {exc.strerror}") from exc


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody writes to now.

    Raises
    ------
    ConfigError
        The folder cannot be written.
    """
    try:
        for temporary in folder.glob(".*.tmp"):
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be written: {exc.strerror}") from exc


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """Write another file in the same folder, to be put in place; then synchronise the folder."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
