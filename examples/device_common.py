"""The part of the example devices that knows nothing of the chain's byte formats.

A device takes part in one round: join, wait for the round, make an update, put it on IPFS, record
it, wait until it is paid and cannot be undone. How actions are packed, signed and pushed is the
example's own matter (`Chain`). Nothing here needs more than the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

POLL_SEC = 0.2
ANSWER_SEC = 30
ROUND_OPEN, UPLOAD_PAID, UPLOAD_REFUSED = 1, 2, 3


class Chain(ABC):
    """What a device needs of the chain."""

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """Return the node's get_info document."""

    @abstractmethod
    def row(self, scope: str, table: str, key: str) -> dict[str, Any] | None:
        """Return the row of the contract's table with this primary key, or None."""

    @abstractmethod
    def join(self, task: str, enc_key: bytes, classes: int) -> str:
        """Push `join`; return the transaction's id."""

    @abstractmethod
    def fedlearning(
        self, task: str, version: int, digest: bytes, cid: str, cost: int, errors: list[int]
    ) -> str:
        """Push `fedlearning`; return the transaction's id."""


def arguments(description: str) -> argparse.Namespace:
    """Read the command line that both examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", required=True)
    parser.add_argument("--key-file", required=True, help="account and PVT_K1_ key")
    parser.add_argument("--chain", required=True, help="http://host:port of a node")
    parser.add_argument("--store", required=True, help="http://host:port of Kubo's RPC")
    parser.add_argument("--data", required=True, help="own data, x and y in an .npz file")
    parser.add_argument("--classes", type=int, required=True, help="bit set of own classes")
    parser.add_argument(
        "--make-update",
        default=f"python {Path(__file__).with_name('make_update.py')}",
        help="how to run make_update.py in gradledger's environment",
    )
    parser.add_argument("--wait-sec", type=float, default=120.0)
    return parser.parse_args()


def account_and_key(path: str) -> tuple[str, str]:
    """Return account and ``PVT_K1_...`` of a key file."""
    document = json.loads(Path(path).read_text())
    return document["account"], document["private_key"]


def ipfs_add(store: str, data: bytes) -> str:
    """Put bytes on IPFS as a CIDv0; return the CID."""
    boundary = uuid.uuid4().hex
    head = (
        f"--{boundary}\r\nContent-Disposition: form-data; name=file; filename=update\r\n"
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    request = urllib.request.Request(
        f"{store}/api/v0/add?cid-version=0&raw-leaves=false&chunker=size-262144&pin=true",
        data=head.encode() + data + f"\r\n--{boundary}--\r\n".encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SEC) as answer:
        return json.loads(answer.read(65_536).splitlines()[-1])["Hash"]


def take_part(chain: Chain, options: argparse.Namespace) -> int:
    """Take part in one round; print what came of it as JSON; return the exit code."""
    end = time.monotonic() + options.wait_sec
    account, _ = account_and_key(options.key_file)
    task = options.task

    def wait(what: str, look: Any) -> Any:
        while not (found := look()):
            if time.monotonic() > end:
                raise SystemExit(f"waited in vain for {what}")
            time.sleep(POLL_SEC)
        return found

    def member() -> dict[str, Any]:
        found = chain.row(task, "members", account)
        if found is None:
            raise SystemExit(f"{account} is not admitted to task {task}")
        return found

    def ready() -> int:
        version = int(chain.row("fedlearning", "tasks", task)["version"])
        found = chain.row(task, "rounds", str(version)) if version else None
        own = member()
        is_open = found is not None and int(found["state"]) == ROUND_OPEN
        mine = int(own["set_version"]) == version and int(own["upload_version"]) != version
        return version if is_open and mine else 0

    own = _make_update(options, "public-key")
    if not member()["joined"] or member()["enc_key"] != own["enc_key"]:
        chain.join(task, bytes.fromhex(own["enc_key"]), options.classes)
    version = wait("an open round", ready)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "update.bin"
        more = ["--task", task, "--chain", options.chain, "--store", options.store]
        made = _make_update(options, "update", *more, "--data", options.data, "--out", str(out))
        data = out.read_bytes()
    assert made["version"] == version, made
    digest = hashlib.sha256(data).digest()
    cid = ipfs_add(options.store, data)
    trx = chain.fedlearning(task, version, digest, cid, made["cost"], made["errors"])

    def decided() -> dict[str, Any] | None:
        row = member()
        if row["upload_hash"] != digest.hex():
            return None
        return row if int(row["upload_state"]) in (UPLOAD_PAID, UPLOAD_REFUSED) else None

    wait("the verdict", decided)
    head = chain.info()["head_block_num"]
    wait("irreversibility", lambda: chain.info()["last_irreversible_block_num"] >= head)
    row = wait("the verdict, irreversibly", decided)
    paid = int(row["upload_state"]) == UPLOAD_PAID
    outcome = {
        "account": account,
        "version": version,
        "paid": paid,
        "reason": int(row["upload_reason"]),
        "cost": made["cost"],
        "trx": trx,
    }
    json.dump(outcome, sys.stdout)
    return 0 if paid else 1


def _make_update(options: argparse.Namespace, command: str, *more: str) -> dict[str, Any]:
    program = [*shlex.split(options.make_update), command, "--key-file", options.key_file, *more]
    done = subprocess.run(
        program, stdout=subprocess.PIPE, timeout=options.wait_sec, check=True, text=True
    )
    return json.loads(done.stdout)
