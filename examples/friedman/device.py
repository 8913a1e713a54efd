"""A device that takes part in a regression, and is paid: the counterpart of plan.json.

    python examples/friedman/device.py --account phone1 --key-file phone1.json --task friedman \\
        --chain http://127.0.0.1:8888 --store /ip4/127.0.0.1/tcp/5001 [--rounds 3]
"""

import argparse
import sys

from make_data import draw

from device_sdk import Device
from device_sdk.training_sklearn import sklearn_fit
from gradledger.errors import GradledgerError, RoundClosedError, RuleNotMetError

EXAMPLES = 600


def main() -> int:
    parser = argparse.ArgumentParser(description="Take part in a task that learns a number.")
    for option in ("--account", "--key-file", "--task", "--chain", "--store"):
        parser.add_argument(option, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--wait-sec", type=float, default=120.0, help="for each round")
    given = parser.parse_args()

    # This device's own data: it never leaves the device.
    x, y = draw(EXAMPLES, seed=sum(given.account.encode()))

    device = Device(
        given.account, key=given.key_file, task=given.task, chain=given.chain, store=given.store
    )
    terms = device.terms()
    print(terms)
    if terms.target is None:
        sys.exit(f"{given.task} learns classes: see device_quickstart.py")
    device.join(terms.target.strata_of(y))
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
