"""A payer without a chain: what the rules ask of one, told by the test."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gradledger.chain.contract import Role, RoundState, UploadState, contract_abi
from gradledger.chain.keys import PrivateKey, PublicKey
from gradledger.chain.payer import with_payer
from gradledger.chain.transaction import Action, Transaction
from gradledger.cid import digest_to_cid
from gradledger.errors import NodeUnavailableError
from owner.payer.record import Record
from owner.payer.rules import Cosigner, Limits
from owner.payer.service import PayerServer

CHAIN_ID = "cf" * 32
NOW = 1_700_000_000
CONTRACT, PAYER, TASK = "fedlearning", "payer", "digits"


class View:
    """A chain with one task: two devices that joined, one that did not, a validator."""

    contract, chain_id = CONTRACT, CHAIN_ID

    def __init__(self) -> None:
        self.time = NOW
        self.fails = False
        self.forgot = 0
        self.keys = {
            name: PrivateKey.generate() for name in ("phone1", "phone2", "newphone", "judge")
        }
        self.members = {
            name: SimpleNamespace(
                account=name,
                role=Role.DEVICE,
                joined=True,
                upload_version=0,
                upload_state=UploadState.NONE,
                upload_cid="",
                opening_cid="",
                barred_until=0,
            )
            for name in self.keys
        }
        self.members["newphone"].joined = False
        self.members["judge"].role = Role.VALIDATOR
        self.round: Any = SimpleNamespace(
            version=1,
            state=RoundState.OPEN,
            deadline=NOW + 100,
            reveal_deadline=0,
            audit_deadline=0,
        )

    def ask_for(self, step: str) -> None:
        """Put the round where it waits for what follows an upload, which every device has made."""
        is_audit = step == "openupload"
        self.round.state = RoundState.AUDITING if is_audit else RoundState.VERIFYING
        self.round.deadline = NOW
        self.round.reveal_deadline = NOW + (0 if is_audit else 100)
        self.round.audit_deadline = NOW + 100 if is_audit else 0
        for one in self.members.values():
            one.upload_version = 1
            one.upload_state = UploadState.DRAWN if is_audit else UploadState.PENDING

    def now(self) -> int:
        if self.fails:
            raise NodeUnavailableError("no endpoint answered")
        return self.time

    def newest_round(self, task: str) -> Any:
        return self.round

    def member(self, task: str, account: str) -> Any:
        return self.members.get(account)

    def active_keys(self, account: str) -> frozenset[PublicKey]:
        key = self.keys.get(account)
        return frozenset([key.public]) if key else frozenset()

    def forget(self, task: str, account: str) -> None:
        self.forgot += 1


class World:
    """A cosigner on a `View`, and the requests that devices make."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.view = View()
        self.key = PrivateKey.generate()
        self.path = folder / "signed.sqlite"
        self.limits = Limits(**limits)
        self.abi = contract_abi()
        self.restart()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *error: object) -> None:
        self.record.close()

    def restart(self) -> None:
        """Start the service's inside anew, on the same record."""
        if hasattr(self, "record"):
            self.record.close()
        self.record = Record(self.path)
        self.cosigner = Cosigner(
            self.view,  # type: ignore[arg-type]
            self.record,
            key=self.key,
            account=PAYER,
            tasks=[TASK],
            limits=self.limits,
        )

    def join(self, device: str = "phone1", task: str = TASK, classes: int = 1) -> Action:
        """Return a device's own join."""
        data = {"task": task, "account": device, "enc_key": bytes([7]) * 32, "classes": classes}
        packed = self.abi.pack_action("join", data)
        return Action(CONTRACT, "join", ((device, "active"),), packed)

    def upload(self, device: str = "phone1", version: int = 1, **changes: Any) -> Action:
        """Return a device's own upload; no two are equal."""
        digest = os.urandom(32)
        data = {
            "task": TASK,
            "device": device,
            "version": version,
            "hash": digest,
            "cid": digest_to_cid(digest),
            "cost": 60,
            "errors": [500_000, 300_000],
            **changes,
        }
        packed = self.abi.pack_action("fedlearning", data)
        return Action(CONTRACT, "fedlearning", ((device, "active"),), packed)

    def step(self, name: str, device: str = "phone1", version: int = 1, task: str = TASK) -> Action:
        """Return a device's own `reveal` or `openupload`; no two are equal."""
        cid = digest_to_cid(os.urandom(32))
        data = {"task": task, "device": device, "version": version, "cid": cid}
        packed = self.abi.pack_action(name, data)
        return Action(CONTRACT, name, ((device, "active"),), packed)

    def transaction(self, *actions: Action, **changes: Any) -> Transaction:
        """Return a transaction that the rules like, but for `changes`."""
        listed = (with_payer(actions[0], PAYER, "cosign"), *actions[1:])
        good = Transaction(self.view.time + 60, 1, 2, listed, 50, 128)
        return replace(good, _packed=[], **changes)

    def request(
        self, transaction: Transaction, signer: str | PrivateKey = "phone1"
    ) -> dict[str, str]:
        """Return a request whose transaction `signer` has signed."""
        key = self.view.keys[signer] if isinstance(signer, str) else signer
        body = transaction.sign(CHAIN_ID, [key])
        return {
            "chain_id": CHAIN_ID,
            "packed_trx": body["packed_trx"],
            "signature": body["signatures"][0],
        }

    def good(self, device: str = "phone1") -> dict[str, str]:
        """Return a request that is signed, as long as the limits leave room."""
        return self.request(self.transaction(self.upload(device)), device)

    @contextmanager
    def served(self, **options: Any) -> Iterator[PayerServer]:
        """Serve it on a free loopback port."""
        server = PayerServer(self.cosigner, port=0, **options)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)


def raw_exchange(server: PayerServer, data: bytes, *, half_close: bool = True) -> bytes:
    """Send bytes; return all that comes back."""
    address = server.server_address[0], server.server_port
    with socket.create_connection((str(address[0]), address[1]), timeout=10) as sock:
        answer = b""
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65_536):
                answer += piece
        except OSError:
            pass
        return answer
