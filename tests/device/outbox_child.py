"""A device's process that is to be killed: takes part in one round, with an outbox.

    python outbox_child.py ACCOUNT KEY_FILE TASK CHAIN STORE OUTBOX [STEP:before|after[:NTH]]

With a step it kills itself there, the first or NTH time; otherwise it goes on until the upload is
over, or it is killed. Prints "trained" whenever it trains, and what became of the upload where it
waits for that.
"""

import os
import signal
import sys

from device_sdk import Device
from gradledger.chain.client import ChainClient
from gradledger.outbox import Outbox, State
from gradledger.store import Store

STEPS = {
    "add": (Outbox, "add"),
    "put": (Store, "put"),
    "sign": (Outbox, "sign"),
    "send": (ChainClient, "send"),
    "finish": (Outbox, "finish"),
}
LATER_STEPS = {**STEPS, "release": (Outbox, "release")}


def die_at(point):
    step, when, *nth = point.split(":")
    owner, name = LATER_STEPS[step]
    original = getattr(owner, name)
    calls = []

    def fatal(*args, **options):
        calls.append(1)
        is_it = len(calls) == int(nth[0] if nth else 1)
        done = None if is_it and when == "before" else original(*args, **options)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, name, fatal)


def shift(model, validation):
    print("trained", flush=True)
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


def main():
    account, key_file, task, chain, store, outbox, *point = sys.argv[1:]
    for one in point:
        die_at(one)
    device = Device(account, key=key_file, task=task, chain=chain, store=store, outbox=outbox)
    found = device.resume()
    if not found:
        with device.round(wait_sec=60) as round_:
            found = [round_.upload(round_.train(shift, examples=60))]
        device.resume()
    for receipt in found:
        if receipt.outcome or device.outbox.keeping():  # it is not over before it is decided
            print(receipt.wait(60), flush=True)
    assert {entry.state for entry in device.outbox.entries()} == {State.DONE}
    assert device.outbox.keeping() == []


if __name__ == "__main__":
    main()
