"""A device whose chain part is eospy (libeospy 2.1.0): nothing of gradledger is imported here.

eospy would ask the node to pack an action's data, at an endpoint that nodes no longer have; so the
data is packed by hand below. The command line is that of `device_pyntelope.py`.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import device_common
import requests
from eospy.cleos import Cleos
from eospy.keys import EOSKey
from eospy.utils import string_to_name

CONTRACT = "fedlearning"


def pack_name(text: str) -> bytes:
    """Pack a name of at most 12 characters."""
    return struct.pack("<Q", string_to_name(text))


def pack_length(value: int) -> bytes:
    """Pack a length: 7 bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def pack_bytes(raw: bytes) -> bytes:
    """Pack bytes, or a text's, behind their length."""
    return pack_length(len(raw)) + raw


def action(name: str, actor: str, data: bytes) -> dict[str, Any]:
    """Return an action of the contract as eospy takes it."""
    return {
        "account": CONTRACT,
        "name": name,
        "authorization": [{"actor": actor, "permission": "active"}],
        "data": data.hex(),
    }


def join(task: str, account: str, enc_key: bytes, classes: int) -> dict[str, Any]:
    """Return the action `join`."""
    data = pack_name(task) + pack_name(account) + enc_key + struct.pack("<Q", classes)
    return action("join", account, data)


def fedlearning(
    task: str, account: str, version: int, digest: bytes, cid: str, cost: int, errors: list[int]
) -> dict[str, Any]:
    """Return the action `fedlearning`."""
    data = (
        pack_name(task)
        + pack_name(account)
        + struct.pack("<I", version)
        + pack_bytes(digest)
        + pack_bytes(cid.encode())
        + struct.pack("<I", cost)
        + pack_length(len(errors))
        + struct.pack(f"<{len(errors)}I", *errors)
    )
    return action("fedlearning", account, data)


class EospyChain(device_common.Chain):
    """The chain through eospy."""

    def __init__(self, url: str, account: str, private_key: str) -> None:
        self.cleos = Cleos(url=url)
        self.account, self.key = account, EOSKey(private_key)

    def info(self) -> dict[str, Any]:
        """Return the node's get_info document."""
        return self.cleos.get_info()

    def row(self, scope: str, table: str, key: str) -> dict[str, Any] | None:
        """Return one row, or None."""
        answer = self.cleos.get_table(
            CONTRACT, scope, table, lower_bound=key, upper_bound=key, limit=1
        )
        return answer["rows"][0] if answer["rows"] else None

    def join(self, task: str, enc_key: bytes, classes: int) -> str:
        """Push `join`."""
        return self._push(join(task, self.account, enc_key, classes))

    def fedlearning(
        self, task: str, version: int, digest: bytes, cid: str, cost: int, errors: list[int]
    ) -> str:
        """Push `fedlearning`."""
        return self._push(fedlearning(task, self.account, version, digest, cid, cost, errors))

    def _push(self, act: dict[str, Any]) -> str:
        try:
            answer = self.cleos.push_transaction({"actions": [act]}, self.key)
        except requests.HTTPError as error:  # a check said no
            raise SystemExit(error.response.json()["error"]["details"][0]["message"]) from None
        return answer["transaction_id"]


def main() -> int:
    """Take part in one round."""
    options = device_common.arguments(__doc__.splitlines()[0])
    account, private_key = device_common.account_and_key(options.key_file)
    return device_common.take_part(EospyChain(options.chain, account, private_key), options)


if __name__ == "__main__":
    sys.exit(main())
