"""What a figure depends on: the processor, the system and the versions."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import gmpy2


def machine() -> dict[str, Any]:
    """Return a JSON object that stands beside every committed figure."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gmp": gmpy2.mp_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
