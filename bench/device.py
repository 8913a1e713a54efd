"""What a device pays: time to import the SDK, memory and time to encrypt and upload.

    python -m bench.device [--bits 3072] [--layers 784 128 10] [--seed N] [--json] [--out FILE]

A local network is brought up, an owner opens a round of a 784-128-10 network (101,770 parameters),
and a device in a process of its own takes part in it: it trains nothing (the update is made up), so
that no framework's memory is counted. Memory is the process's peak (VmHWM), all libraries included.
Import times are of fresh interpreters, from before to after `from device_sdk import Device`.

    python -m bench.device upload --account A --key-file F --task T --chain URL --store ADDR

is that process; it prints what it measured of itself as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.ending import end_cleanly
from bench.machine import machine, peak_mb
from bench.record import command, record

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = 7
EXAMPLES = 600
DEVICE = "phone"
OWNER = "benchowner"
VALIDATOR = "judge"
TASK = "benchdevice"
IMPORT_BUDGET_MS = 150
MEMORY_BUDGET_MB = 120

_IMPORT = (
    "import time; start = time.perf_counter(); from device_sdk import Device; "
    "print(1000 * (time.perf_counter() - start))"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    end_cleanly()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=3072, help="of the owner's Paillier key")
    parser.add_argument("--layers", type=int, nargs="+", default=[784, 128, 10])
    parser.add_argument("--seed", type=int, default=1, help="of points and model, not of keys")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="write the JSON document there as well")
    commands = parser.add_subparsers(dest="part")
    child = commands.add_parser("upload", help="be the device that is measured")
    for option in ("--account", "--key-file", "--task", "--chain", "--store"):
        child.add_argument(option, required=True)
    given = parser.parse_args(arguments)
    if given.part == "upload":
        print(json.dumps(upload(given)))
        return 0
    if given.seed < 0:
        parser.error(f"--seed: expected at least 0, got {given.seed}")
    shown = command("bench.device", given, arguments)
    document = {"command": shown, **measure(given.bits, given.layers, given.seed)}
    text = record(document, given.out, on_chain=True)
    print(text if given.json else table(document))
    return 0


def measure(bits: int, layers: Sequence[int], seed: int) -> dict[str, Any]:
    """Bring a network up, let a device take part in one round, and return the figures."""
    from gradledger.localnet.network import Network

    times = [import_ms() for _ in range(IMPORTS)]
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as home:
        network = Network(home)
        try:
            info = network.up(validators=0)
            open_round(network, bits, layers, seed)
            child = [sys.executable, "-m", "bench.device", "upload"]
            child += ["--account", DEVICE, "--task", TASK]
            child += ["--key-file", network.info().accounts[DEVICE]]
            child += ["--chain", info.chain_url, "--store", info.store_addr]
            done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise SystemExit(f"the device failed:\n{done.stderr}")
        finally:
            network.down(wipe=True)
    return {
        "machine": machine(),
        "seed": seed,
        "import_ms": {"least": round(min(times), 1), "median": round(statistics.median(times), 1)},
        "import_budget_ms": IMPORT_BUDGET_MS,
        "key_bits": bits,
        **json.loads(done.stdout),
        "memory_budget_mb": MEMORY_BUDGET_MB,
    }


def import_ms() -> float:
    """Return how long a fresh interpreter takes to import the SDK."""
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, check=True)
    return float(done.stdout)


def open_round(network: Any, bits: int, layers: Sequence[int], seed: int) -> None:
    """Play the owner and a validator up to an open round for one device."""
    import numpy as np

    from bench.terms import round_terms, task_choices
    from device_sdk import Device
    from gradledger import envelope
    from gradledger.chain.contract import Mode, Recipe
    from gradledger.models import Model
    from owner import Owner
    from owner.paillier_key import PaillierPrivateKey
    from owner.validation_sets import ValidationData

    info = network.info()
    keys = network.create_accounts([OWNER, VALIDATOR, DEVICE])
    network.transfer(OWNER, "1000.0000 TOK")
    architecture = {"kind": "mlp", "layers": list(layers), "activation": "relu"}
    owner = Owner(
        OWNER,
        task=TASK,
        key=keys[OWNER],
        chain=info.chain_url,
        store=info.store_addr,
        paillier_key=PaillierPrivateKey.generate(bits),
    )
    owner.create_task(
        task_choices(mode=Mode.PAILLIER),
        architecture=architecture,
        class_names=[str(number) for number in range(layers[-1])],
    )
    owner.admit_devices([DEVICE])
    owner.admit_validators([VALIDATOR])
    owner.deposit("100.0000 TOK")
    public = envelope.public_key_of(keys[VALIDATOR].encryption_key())
    owner.chain.transact(
        [owner.contract.join(TASK, VALIDATOR, public, 0)], [keys[VALIDATOR]], timeout_sec=60
    )
    device = Device(
        DEVICE, key=keys[DEVICE], task=TASK, chain=info.chain_url, store=info.store_addr
    )
    device.join(classes=range(layers[-1]))
    y = np.arange(20 * layers[-1]) % layers[-1]
    x = np.random.default_rng(seed).random((len(y), layers[0]), dtype=np.float32)
    owner.issue_validation_sets(1, ValidationData(x, y), per_class=20)
    model = owner.publish_model(Model.random_glorot(architecture, seed), 1)
    owner.open_round(
        1,
        round_terms(
            model_cid=model.cid,
            model_hash=model.hash,
            price=10,
            budget=100_000,
            phase_sec=600,
            close_after=0,
            training=Recipe(epochs=1, batch_size=64, rate_e6=50_000, measures=4, seed=1),
        ),
    )


def upload(given: argparse.Namespace) -> dict[str, Any]:
    """Take part in the open round; return what it took this process."""
    from device_sdk import Device

    start = time.perf_counter()
    device = Device(
        given.account, key=given.key_file, task=given.task, chain=given.chain, store=given.store
    )
    with device.round(wait_sec=60) as round_:
        fetched = time.perf_counter()
        before = peak_mb()

        def made_up(model: Any, validation: Any) -> Any:
            return model.with_vector(model.vector * 1.01), [500_000, 400_000]

        update = round_.train(made_up, examples=EXAMPLES)
        trained = time.perf_counter()
        receipt = round_.upload(update)
        recorded = time.perf_counter()
    return {
        "parameters": len(update.delta),
        "fetch_s": round(fetched - start, 3),
        "upload_s": round(recorded - trained, 3),
        "peak_mb_fetched": before,
        "peak_mb": peak_mb(),
        "hash": receipt.hash.hex(),
    }


def table(document: dict[str, Any]) -> str:
    """Return the figures as text."""
    times = document["import_ms"]
    return "\n".join(
        [
            f"import device_sdk    {times['least']:.0f} ms (median {times['median']:.0f} ms of "
            f"{IMPORTS}; budget {document['import_budget_ms']} ms)",
            f"parameters           {document['parameters']:,}, key of {document['key_bits']} bits",
            f"fetch and check      {document['fetch_s']:.2f} s",
            f"encrypt and upload   {document['upload_s']:.2f} s (first of the process)",
            f"peak memory          {document['peak_mb']:.0f} MB, of which "
            f"{document['peak_mb_fetched']:.0f} MB before the update "
            f"(budget {document['memory_budget_mb']} MB)",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
