"""A worker process of the demo: hosts some devices, or the centralised training.

Run as `python -m gradledger.demo.phone`. Reads one job, a line of JSON, from standard input;
writes events, a line of JSON each, to standard output; ends when the input closes. Each device is
a thread that does what an app would do: wait for a round, train, upload, wait to be paid. One
device of a process computes at a time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from device_sdk import Device, Paid, Receipt, Round, Update
from device_sdk.training import TrainingRecipe
from gradledger.chain.contract import RoundState
from gradledger.demo import options
from gradledger.demo.data import class_list
from gradledger.errors import ChainError, ContractError, NotAllowedError, StoreError
from gradledger.models import Model

JOB_BYTES_MAX = 1 << 20
POLL_SEC = 0.2
ROUND_SEC = 1800.0
DECISION_SEC = 180.0
NICENESS = 10
FORGED_NORM = 0.5  # L2, of what a forger sends: it looks like an update

Emit = Callable[[dict[str, Any]], None]


def main() -> int:
    """Read the job, run it, and return the process's exit code."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print must not become an event
    lock = threading.Lock()

    def emit(event: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(event) + "\n")
            out.flush()

    line = sys.stdin.buffer.readline(JOB_BYTES_MAX)
    if not line:
        return 0
    job = json.loads(line)
    fit = fitter(job["framework"])
    works: list[tuple[str, Callable[[], None]]] = []
    if "centralised" in job:
        os.nice(NICENESS)
        works.append(("centralised", lambda: centralised(job["centralised"], fit, emit)))
    else:
        computing = threading.Lock()
        for settings in job["devices"]:
            phone = Phone(job, settings, fit, computing, emit)
            works.append((settings["account"], phone.run))
    for who, work in works:
        threading.Thread(target=_guard, args=(who, work, emit), daemon=True).start()
    sys.stdin.buffer.read(1)  # until the demo closes it
    os._exit(0)  # threads may wait for a node that is gone; they have nothing left to keep


def fitter(framework: str) -> Callable[..., Any]:
    """Return the SDK's training helper: `fitter(...)(x, y, recipe)` is a `fit` function."""
    if framework == "torch":
        from device_sdk.training_torch import torch_fit

        return torch_fit
    from device_sdk.training_sklearn import sklearn_fit

    return sklearn_fit


def centralised(job: dict[str, Any], fit: Callable[..., Any], emit: Emit) -> None:
    """Train on everybody's data in one place, by the rounds' recipe; report each version."""
    x, y = _load(job["train_file"])
    test = _load(job["test_file"])
    architecture = {"kind": "mlp", "layers": job["layers"], "activation": "relu"}
    model = Model.random_glorot(architecture, job["initial_seed"])
    for version in range(1, job["rounds"] + 1):
        recipe = TrainingRecipe(
            version=version,
            epochs=job["epochs"],
            batch_size=job["batch_size"],
            rate_e6=job["rate_e6"],
            measures=1,
            seed=job["seed"] + version,
        )
        model, errors = fit(x, y, recipe)(model, test)
        accuracy = 1 - errors[-1] / 1e6
        emit({"event": "centralised", "version": version, "accuracy": accuracy})


class Phone:
    """One device of the demo, and how it behaves.

    Parameters
    ----------
    job : dict
        ``task``, ``chain`` (endpoints), ``store``, ``contract``, ``rounds``.
    settings : dict
        ``account``, ``key_file``, ``share_file``, ``role``, ``seed``.
    fit : callable
        See `fitter`.
    computing : threading.Lock
        Held while the device computes.
    emit : callable
        Takes events.
    """

    def __init__(
        self,
        job: dict[str, Any],
        settings: dict[str, Any],
        fit: Callable[..., Any],
        computing: threading.Lock,
        emit: Emit,
    ) -> None:
        self._job = job
        self._account: str = settings["account"]
        self._role: str = settings["role"]
        self._fit = fit
        self._computing = computing
        self._emit = emit
        self._x, self._y = _load(settings["share_file"])
        if self._role == options.SHUFFLED:
            self._y = np.random.default_rng(settings["seed"]).permutation(self._y)
        self._device = Device(
            self._account,
            key=Path(settings["key_file"]),
            task=job["task"],
            chain=job["chain"],
            store=job["store"],
            contract=job["contract"],
        )
        self._before: tuple[Round, Update] | None = None

    def run(self) -> None:
        """Join the task and take part in every round."""
        self._device.join(classes=class_list(self._y))
        self._tell("joined")
        version = 0
        while version < self._job["rounds"]:
            receipt = None
            try:
                with self._device.round(wait_sec=ROUND_SEC, after=version) as current:
                    version = current.version
                    receipt = self._contribute(current)
            except NotAllowedError as error:  # barred since an audit: it looks on
                version = self._device.contract.task(self._job["task"]).version
                self._tell("refused", version=version, code=error.code, message=error.text)
            self._tell("done", version=version)
            if receipt is not None:
                self._await_decision(receipt)

    def _contribute(self, current: Round) -> Receipt | None:
        """Train and upload as the device's role says; return the receipt of a recorded upload."""
        version = current.version
        if options.is_stale(self._role, version) and self._before is not None:
            old, update = self._before
            again = Update(update.version, update.delta, update.errors, update.examples)
            with self._computing:
                self._upload(old, again, version)
        with self._computing:
            update = self._train(current)
            self._before = (current, update)
            if not options.is_late(self._role, version):
                return self._upload(current, update, version)
        self._await_close(version)
        with self._computing:
            return self._upload(current, update, version)

    def _train(self, current: Round) -> Update:
        """Train; a forger makes noise in its place, and errors that fall to nothing."""
        if self._role != options.FORGER:
            fit = self._fit(self._x, self._y, current.recipe)
            return current.train(fit, examples=len(self._y))
        model, (x, y) = current.model, current.validation
        noise = np.random.default_rng(current.version).normal(0, FORGED_NORM, model.parameters)
        errors = np.linspace(model.error_micro(x, y), 0, current.recipe.measures).astype(int)
        delta = (noise / np.sqrt(model.parameters)).astype(np.float32)
        return Update(current.version, delta, tuple(errors.tolist()), len(self._y))

    def _upload(self, round_: Round, update: Update, offered_in: int) -> Receipt | None:
        """Upload; where the contract refuses it, tell why and return None."""
        try:
            return round_.upload(update)
        except ContractError as error:
            self._tell("refused", version=offered_in, code=error.code, message=error.text)
            return None

    def _await_close(self, version: int) -> None:
        until = time.monotonic() + ROUND_SEC
        while time.monotonic() < until:
            row = self._device.contract.round(self._job["task"], version)
            if row is None or row.state is not RoundState.OPEN:
                return
            time.sleep(POLL_SEC)

    def _await_decision(self, receipt: Receipt) -> None:
        try:
            outcome = receipt.wait(DECISION_SEC)
        except (ChainError, StoreError) as error:
            print(f"{self._account}: {error}", file=sys.stderr)  # the audit reads the chain itself
            return
        if isinstance(outcome, Paid):
            self._tell("paid", version=receipt.version, amount=outcome.amount.amount)

    def _tell(self, event: str, **details: Any) -> None:
        self._emit({"event": event, "account": self._account, **details})


def _load(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["x"], arrays["y"]


def _guard(who: str, work: Callable[[], None], emit: Emit) -> None:
    """Run a thread's work; what goes wrong becomes an event, with the details in the log."""
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        emit({"event": "failed", "account": who, "message": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    sys.exit(main())
