"""What a device does off the chain, with gradledger: train, encrypt and seal an update.

The examples `device_pyntelope.py` and `device_eospy.py` talk to the chain and to IPFS by
themselves; for the rest they call this program, which runs in gradledger's environment:

    make_update.py public-key  --key-file KEY.json
    make_update.py update      --key-file KEY.json --task TASK --chain URL --store ADDR \
                               --data POINTS.npz --out UPDATE.bin

Both print one JSON object. POINTS.npz holds the device's own data: `x` [n, d] and `y` [n].
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from device_sdk import Device
from device_sdk.training_sklearn import sklearn_fit
from gradledger import envelope
from gradledger.chain.keys import load_key_file


def public_key(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the X25519 key that a device gives when it joins."""
    account, key = load_key_file(arguments.key_file)
    return {"account": account, "enc_key": envelope.public_key_of(key.encryption_key()).hex()}


def update(arguments: argparse.Namespace) -> dict[str, object]:
    """Train for the open round; write the sealed update; return what goes on chain with it."""
    account, key = load_key_file(arguments.key_file)
    with np.load(arguments.data, allow_pickle=False) as data:
        x, y = data["x"], data["y"]
    device = Device(
        account, key=key, task=arguments.task, chain=arguments.chain, store=arguments.store
    )
    with device.round(wait_sec=arguments.wait_sec) as found:
        trained = found.train(sklearn_fit(x, y, found.recipe), examples=len(y))
        Path(arguments.out).write_bytes(found.seal(trained))
        return {
            "version": found.version,
            "cost": trained.examples,
            "errors": list(trained.errors),
        }


def main() -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("public-key")
    first.add_argument("--key-file", required=True)
    first.set_defaults(run=public_key)
    second = commands.add_parser("update")
    for option in ("--key-file", "--task", "--chain", "--store", "--data", "--out"):
        second.add_argument(option, required=True)
    second.add_argument("--wait-sec", type=float, default=60.0)
    second.set_defaults(run=update)
    arguments = parser.parse_args()
    json.dump(arguments.run(arguments), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
