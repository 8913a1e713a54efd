"""Keeps the logs of a folder bounded while their writers run.

Run as ``python -m gradledger.localnet.logkeeper DIR``. A log that has grown over the bound is
copied to NAME.1 (the one before to NAME.2) and cut to nothing; its writers append, so they go on
at the start. A line written between the copy and the cut is lost, which a log can bear.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from pathlib import Path

BYTES_MAX = 8 * 2**20
KEPT = 2
PERIOD_SEC = 2.0


def bound_logs(folder: Path, *, bytes_max: int = BYTES_MAX) -> None:
    """Turn over each ``*.log`` of a folder that is larger than `bytes_max`."""
    for log in folder.glob("*.log"):
        try:
            if log.stat().st_size <= bytes_max:
                continue
            for number in range(KEPT, 1, -1):
                older = log.with_name(f"{log.name}.{number - 1}")
                if older.exists():
                    older.replace(log.with_name(f"{log.name}.{number}"))
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            with log.open("r+b") as file:
                file.truncate(0)
        except OSError as exc:
            print(f"{log}: {exc}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Look after the logs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="gradledger.localnet.logkeeper", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes-max", type=int, default=BYTES_MAX)
    parser.add_argument("--period-sec", type=float, default=PERIOD_SEC)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while args.folder.is_dir():
        bound_logs(args.folder, bytes_max=args.bytes_max)
        time.sleep(args.period_sec)
    return 0


if __name__ == "__main__":
    sys.exit(main())
