"""A device that takes part in a task with scikit-learn's digits, and is paid.

    python examples/device_quickstart.py --account phone1 --key-file phone1.json --task digits \\
        --chain http://127.0.0.1:8888 --store /ip4/127.0.0.1/tcp/5001 [--rounds 3]

The task's owner must have admitted the account (`gradledger owner admit`) and open a round. An app
of its own would bring its own data, and perhaps a `fit` of its own.
"""

import argparse
import sys

import numpy as np
from sklearn.datasets import load_digits

from device_sdk import Device
from device_sdk.training_sklearn import sklearn_fit
from gradledger.errors import GradledgerError, RoundClosedError, RuleNotMetError

EXAMPLES = 600


def main() -> int:
    parser = argparse.ArgumentParser(description="Take part in a task with the digits.")
    for option in ("--account", "--key-file", "--task", "--chain", "--store"):
        parser.add_argument(option, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--wait-sec", type=float, default=120.0, help="for each round")
    given = parser.parse_args()

    # This device's own data: it never leaves the device.
    digits = load_digits()
    mine = np.random.default_rng().choice(len(digits.target), EXAMPLES, replace=False)
    x, y = (digits.data[mine] / 16).astype(np.float32), digits.target[mine]

    device = Device(
        given.account, key=given.key_file, task=given.task, chain=given.chain, store=given.store
    )
    print(device.terms())
    device.join(classes=np.unique(y).tolist())
    version = 0
    for _ in range(given.rounds):
        with device.round(wait_sec=given.wait_sec, after=version) as round_:
            version = round_.version
            print(round_)
            update = round_.train(sklearn_fit(x, y, round_.recipe), examples=len(y))
            try:
                receipt = round_.upload(update)
            except (RuleNotMetError, RoundClosedError) as refusal:
                print(refusal)
                continue
        print(receipt.wait(given.wait_sec))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GradledgerError as error:
        sys.exit(f"{type(error).__name__}: {error}")
