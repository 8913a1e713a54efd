"""A device of `bench.faults`: takes part in every round until it is killed, and says what happened.

    python -m bench.faults_device SETTINGS.json

It appends a line of JSON to its events file for each upload that it abandons or acknowledges; only
what it takes for irreversible is acknowledged. A file named `fault` in its folder asks it for a
fault of its own with the next upload: a full disk, or a blob that is lost or altered on IPFS.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from device_sdk import Abandoned, Device, Receipt, Round, Update
from gradledger.chain.client import ChainClient, Timeout
from gradledger.cid import cid_to_digest
from gradledger.errors import (
    ChainError,
    IrreversibilityTimeout,
    ModelError,
    OutboxError,
    StoreError,
)
from gradledger.models import FloatArray, IntArray, Model
from gradledger.outbox import Entry, State

EXAMPLES = 60
RETRY_SEC = 0.3
FINAL_SEC = 3.0
ROUND_SEC = 10.0
FULL_DISK, LOST_BLOB, ALTERED_BLOB = "full_disk", "lost_blob", "altered_blob"


class FaultyDevice:
    """The device, its faults and its events."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self._device = Device(
            settings["account"],
            key=settings["key_file"],
            task=settings["task"],
            chain=ChainClient(settings["chain"], timeout=Timeout(connect=1.0, read=3.0)),
            store=settings["store"],
            outbox=folder / "outbox.db",
        )
        self._rng = np.random.default_rng()
        self._has_joined = False
        self._acknowledged = 0  # newest version

    def tell(self, event: str, **details: Any) -> None:
        """Append an event; one write, which a kill cannot divide."""
        line = json.dumps({"event": event, "at": time.monotonic(), **details}) + "\n"
        handle = os.open(self._folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def live(self) -> None:
        """Go on for ever, whatever fails."""
        self.tell("started")
        while True:
            try:
                self._once()
            except IrreversibilityTimeout:
                pass  # four producers take their time: the next round goes on meanwhile
            except (ChainError, StoreError, ModelError, OutboxError) as error:
                self.tell("trouble", message=f"{type(error).__name__}: {error}"[:300])
                time.sleep(RETRY_SEC)
            self._tell_of_outbox()

    def _once(self) -> None:
        if not self._has_joined:
            self._device.join(classes=[0, 1, 2])
            self._has_joined = True
        self._tell_of(self._device.resume(timeout_sec=FINAL_SEC))
        with self._device.round(wait_sec=ROUND_SEC) as round_:
            receipt = self._upload(round_, round_.train(self._fit, examples=EXAMPLES))
        outcome = receipt.wait(FINAL_SEC)
        self._acknowledge(receipt.version, receipt.hash, outcome=repr(outcome))

    def _tell_of(self, finished: list[Receipt | Abandoned]) -> None:
        for one in finished:
            if isinstance(one, Abandoned):
                self.tell("abandoned", version=one.version, hash=one.hash.hex(), reason=one.reason)
            else:
                self._acknowledge(one.version, one.hash)

    def _tell_of_outbox(self) -> None:
        """Tell of what became irreversible while something else was waited for."""
        for entry in uploads(self._outbox.entries(State.DONE)):
            if entry.details["version"] > self._acknowledged:
                self._acknowledge(entry.details["version"], bytes.fromhex(entry.details["hash"]))

    def _acknowledge(self, version: int, digest: bytes, **details: Any) -> None:
        self._acknowledged = max(self._acknowledged, version)
        self.tell("acknowledged", version=version, hash=digest.hex(), **details)

    def _fit(
        self, model: Model, validation: tuple[FloatArray, IntArray]
    ) -> tuple[Model, list[int]]:
        step = self._rng.normal(0, 0.01, model.parameters).astype(np.float32)
        trained = model.with_vector(model.vector + step)
        return trained, [each.error_micro(*validation) for each in (model, trained)]

    def _upload(self, round_: Round, update: Update) -> Receipt:
        fault = self._folder / "fault"
        kind = fault.read_text("ascii") if fault.exists() else ""
        if kind:
            fault.unlink()
        if kind == FULL_DISK:
            self._upload_on_a_full_disk(round_, update)
        elif kind:
            self._spoil_next_blob(kind)
        return round_.upload(update)

    def _upload_on_a_full_disk(self, round_: Round, update: Update) -> None:
        """Let every write of a file fail; the upload must fail before anything left."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            round_.upload(update)
            failed = ""
        except OutboxError as error:
            failed = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        row = self._device.contract.member(self._device.task, self._device.account)
        nothing_left = row is not None and row.upload_version != round_.version
        is_empty = all(
            entry.details["version"] != round_.version for entry in self._outbox.entries()
        )
        self.tell("fault", kind=FULL_DISK, held=bool(failed) and nothing_left and is_empty)

    def _spoil_next_blob(self, kind: str) -> None:
        """Delete or alter a blob on Kubo's disk after it was stored, before it is recorded."""
        store, put = self._device.store, self._device.store.put

        def spoiling(data: bytes) -> str:
            del store.put  # type: ignore[method-assign]
            cid = put(data)
            done = False
            for block in _blocks(Path(self._settings["repo"]), cid):
                if kind == LOST_BLOB:
                    block.unlink()
                else:
                    raw = bytearray(block.read_bytes())
                    raw[len(raw) // 2] ^= 0xFF
                    block.chmod(0o600)
                    block.write_bytes(raw)
                done = True
            self.tell("fault", kind=kind, held=done)
            return cid

        store.put = spoiling  # type: ignore[method-assign]

    @property
    def _outbox(self) -> Any:
        return self._device.outbox


def uploads(entries: Iterable[Entry]) -> list[Entry]:
    """Return the uploads among the entries of a device's outbox; the others are steps of one."""
    return [entry for entry in entries if "hash" in entry.details]


def _blocks(repo: Path, cid: str) -> list[Path]:
    """Return the file of a blob's first block in Kubo's flatfs."""
    multihash = b"\x12\x20" + cid_to_digest(cid)
    name = base64.b32encode(multihash).decode().rstrip("=")
    return list((repo / "blocks").glob(f"*/{name}.data"))


def main() -> None:
    """Read the settings and live."""
    path = Path(sys.argv[1])
    settings = json.loads(path.read_text("ascii"))
    while True:
        try:
            device = FaultyDevice(path.parent, settings)
            break
        except OutboxError:  # the process before this one is not quite gone
            time.sleep(RETRY_SEC)
    device.live()


if __name__ == "__main__":
    main()
