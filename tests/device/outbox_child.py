"""A device's process that is to be killed: takes part in one round, with an outbox.

    python outbox_child.py ACCOUNT KEY_FILE TASK CHAIN STORE OUTBOX [STEP:before|after]

With a step it kills itself there; otherwise it goes on until the upload is irreversible, or it is
killed. Prints "trained" whenever it trains.
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


def die_at(point):
    step, when = point.split(":")
    owner, name = STEPS[step]
    original = getattr(owner, name)

    def fatal(*args, **options):
        if when == "after":
            original(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, fatal)


def shift(model, validation):
    print("trained", flush=True)
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


def main():
    account, key_file, task, chain, store, outbox, *point = sys.argv[1:]
    for one in point:
        die_at(one)
    device = Device(account, key=key_file, task=task, chain=chain, store=store, outbox=outbox)
    if not device.resume():
        with device.round(wait_sec=60) as round_:
            round_.upload(round_.train(shift, examples=60))
        device.resume()
    assert [entry.state for entry in device.outbox.entries()] == [State.DONE]


if __name__ == "__main__":
    main()
