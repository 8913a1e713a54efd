"""What a figure depends on: the processor, the system and the versions; and peak memory."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return a JSON object that stands beside every committed figure."""
    import gmpy2  # here and not above: a process whose memory is measured imports this module

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


def peak_mb(pid: int | str = "self") -> float:
    """Return the most memory that a process ever had (VmHWM), in units of 10^6 bytes.

    Where the system does not tell VmHWM, this process's is from getrusage; another's raises
    OSError.
    """
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text("utf-8"))
        if found:
            return round(int(found.group(1)) * 1024 / 1e6, 1)
    if pid != "self":
        raise OSError(f"{status}: expected VmHWM, found none")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
