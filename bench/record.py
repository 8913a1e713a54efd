"""Where a bench's figures go: a JSON document, printed or kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["record"]


def record(document: Any, out: Path | None, *, indent: int = 2) -> str:
    """Return a document as JSON; with `out`, write it there as well, its folder made if need be."""
    text = json.dumps(document, indent=indent)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    return text
