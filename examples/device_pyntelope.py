"""A device whose chain part is pyntelope (0.8.6): nothing of gradledger is imported here.

python examples/device_pyntelope.py --task digits --key-file phone.json --classes 1023 \
    --chain http://127.0.0.1:8888 --store http://127.0.0.1:5001 --data points.npz \
    --make-update ".venv/bin/python examples/make_update.py"
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import base58
import device_common
import pyntelope
from pyntelope import types

CONTRACT = "fedlearning"


class Checksum256(types.Primitive):
    """32 bytes as they are: a type that pyntelope lacks."""

    value: bytes

    def __bytes__(self) -> bytes:
        return self.value

    @classmethod
    def from_bytes(cls, raw: bytes) -> Checksum256:
        """Read the first 32 bytes."""
        return cls(raw[:32])


def wif(private_key: str) -> str:
    """Return a ``PVT_K1_...`` key in the one form that pyntelope reads."""
    secret = base58.b58decode(private_key.removeprefix("PVT_K1_"))[:32]
    check = hashlib.sha256(hashlib.sha256(b"\x80" + secret).digest()).digest()[:4]
    return base58.b58encode(b"\x80" + secret + check).decode()


def action(name: str, actor: str, **data: Any) -> pyntelope.Action:
    """Return an action of the contract; each value is of a pyntelope type."""
    return pyntelope.Action(
        account=CONTRACT,
        name=name,
        authorization=[pyntelope.Authorization(actor=actor, permission="active")],
        data=[pyntelope.Data(name=key, value=value) for key, value in data.items()],
    )


def join(task: str, account: str, enc_key: bytes, classes: int) -> pyntelope.Action:
    """Return the action `join`."""
    return action(
        "join",
        account,
        task=types.Name(task),
        account=types.Name(account),
        enc_key=Checksum256(enc_key),
        classes=types.Uint64(classes),
    )


def fedlearning(
    task: str, account: str, version: int, digest: bytes, cid: str, cost: int, errors: list[int]
) -> pyntelope.Action:
    """Return the action `fedlearning`."""
    return action(
        "fedlearning",
        account,
        task=types.Name(task),
        device=types.Name(account),
        version=types.Uint32(version),
        hash=types.Array.from_dict(list(digest), type_=types.Uint8),
        cid=types.String(cid),
        cost=types.Uint32(cost),
        errors=types.Array.from_dict(errors, type_=types.Uint32),
    )


class PyntelopeChain(device_common.Chain):
    """The chain through pyntelope."""

    def __init__(self, url: str, account: str, private_key: str) -> None:
        self.net = pyntelope.Net(host=url)
        self.account, self.wif = account, wif(private_key)

    def info(self) -> dict[str, Any]:
        """Return the node's get_info document."""
        return self.net.get_info()

    def row(self, scope: str, table: str, key: str) -> dict[str, Any] | None:
        """Return one row, or None."""
        rows = self.net.get_table_rows(
            code=CONTRACT, scope=scope, table=table, lower_bound=key, upper_bound=key, limit=1
        )
        return rows[0] if rows else None

    def join(self, task: str, enc_key: bytes, classes: int) -> str:
        """Push `join`."""
        return self._push(join(task, self.account, enc_key, classes))

    def fedlearning(
        self, task: str, version: int, digest: bytes, cid: str, cost: int, errors: list[int]
    ) -> str:
        """Push `fedlearning`."""
        return self._push(fedlearning(task, self.account, version, digest, cid, cost, errors))

    def _push(self, act: pyntelope.Action) -> str:
        signed = pyntelope.Transaction(actions=[act]).link(net=self.net).sign(key=self.wif)
        answer = signed.send()
        if "transaction_id" not in answer:  # a check said no: HTTP 500 is no exception here
            raise SystemExit(answer["error"]["details"][0]["message"])
        return answer["transaction_id"]


def main() -> int:
    """Take part in one round."""
    options = device_common.arguments(__doc__.splitlines()[0])
    account, private_key = device_common.account_and_key(options.key_file)
    return device_common.take_part(PyntelopeChain(options.chain, account, private_key), options)


if __name__ == "__main__":
    sys.exit(main())
