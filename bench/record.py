"""Where a bench's figures go: a JSON document, printed or kept, and the command that made it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["command", "record"]


def command(bench: str, given: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """Return the command that ran, as a shell takes it, without paths of this machine.

    Parameters
    ----------
    bench : str
        Name of the module, as in ``bench.chain``.
    given : argparse.Namespace
        What was parsed from `argv`: an argument that became a Path is shown as DIR, where it is a
        folder, or as FILE.
    argv : sequence of str or None
        None: the process's own.
    """
    paths = {value for value in vars(given).values() if isinstance(value, Path)}
    shown = []
    for word in sys.argv[1:] if argv is None else argv:
        option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        path = Path(value)
        if path in paths:
            value = "DIR" if path.is_dir() else "FILE"
        shown.append(option + equals + value)
    return shlex.join(["python", "-m", bench, *shown])


def record(document: Any, out: Path | None, *, indent: int = 2, on_chain: bool = False) -> str:
    """Return a document as JSON; with `out`, write it there as well, its folder made if need be.

    Where the bench ran `on_chain`, `contract_sha256` is put beside: of the contract's wasm, which
    every network of a bench deploys.
    """
    if on_chain:
        import hashlib  # here and not above: a device that is measured imports this module
        from importlib import resources

        wasm = resources.files("gradledger.artifacts").joinpath("fedlearning.wasm").read_bytes()
        document = {**document, "contract_sha256": hashlib.sha256(wasm).hexdigest()}
    text = json.dumps(document, indent=indent)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return text
