"""The command line: ``gradledger GROUP ...``, one group per party."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from gradledger import __version__
from gradledger.errors import GradledgerError

_DESCRIPTION = """\
Record and reward federated learning: devices train on data that never leave them, their encrypted
updates go to IPFS, the chain records and checks them, and a contract pays out of escrow.
"""
_EPILOG = """\
start here:
  gradledger demo --out out/demo      ten devices, fifteen rounds, four validators, on real parts
  gradledger up                       a local network to try things on; then `gradledger status`
  gradledger owner --help             create a task, open rounds, aggregate, pay
  gradledger validator --help         check uploads beside a producer, or on your own
  gradledger watch TASK               a round as it happens
  gradledger audit TASK               was every payment right? from the blocks alone
  gradledger audit verdicts TASK      was every verdict right? from the blocks and IPFS
  gradledger check-set TASK --help    did a device get the validation points drawn for it?

`gradledger COMMAND --help` says more and has examples. Devices embed `device_sdk` in Python.
"""

# Module of each command. It is imported only when one of its commands is called, or for --help.
_GROUPS = {
    "gradledger.localnet.cli": ("up", "down", "status", "accounts", "parts"),
    "owner.cli": ("owner",),
    "producer_validation.cli": ("validator",),
    "gradledger.audit.cli": ("audit", "receipt"),
    "producer_validation.replay_cli": ("audit verdicts",),
    "gradledger.watch": ("watch",),
    "gradledger.check_set": ("check-set",),
    "gradledger.demo.cli": ("demo",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        0 done, 1 failed (the message says what to do next), 2 wrong usage; a command's own
        `exit_codes` say more.
    """
    arguments = _joined(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    args = parser.parse_args(arguments)
    try:
        return int(args.func(args) or 0)
    except GradledgerError as exc:
        print(f"gradledger: {exc}", file=sys.stderr)
        codes = getattr(args, "exit_codes", {})
        return next((code for kind, code in codes.items() if isinstance(exc, kind)), 1)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from writing more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gradledger: interrupted", file=sys.stderr)
        return 130


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments, a command of two words as one of them."""
    words = " ".join(arguments[:2])
    if any(words in commands for commands in _GROUPS.values()):
        return [words, *arguments[2:]]
    return list(arguments)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradledger",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gradledger {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    first = next((one for one in arguments if not one.startswith("-")), None)
    chosen = [module for module, commands in _GROUPS.items() if first in commands]
    for module in chosen or _GROUPS:
        importlib.import_module(module).add_commands(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
