"""Runs in .venv-interop: pack and sign with pyntelope and eospy what the test sends as JSON.

stdin: {"chain_id", "wif", "transactions": [{"expiration", "block_id", "actions": [[account, name,
actor, data in hex]]}], "joins": [arguments], "uploads": [arguments]}; stdout: the same, packed.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import device_eospy
import device_pyntelope
import pyntelope
from pyntelope import transaction as pyntelope_transaction
from pyntelope import types


def pack_and_sign(row: dict[str, Any], chain_id: str, wif: str) -> dict[str, Any]:
    """Return bytes, id and signature as pyntelope makes them."""
    net = pyntelope.Net(host="http://127.0.0.1:1")
    actions = [
        pyntelope.Action(
            account=account,
            name=name,
            authorization=[pyntelope.Authorization(actor=actor, permission="active")],
            data=[pyntelope.Data(name="raw", value=types.Bytes(bytes.fromhex(data)))],
        ).link(net)
        for account, name, actor, data in row["actions"]
    ]
    number, prefix = pyntelope_transaction._get_tapos_info(row["block_id"])
    linked = pyntelope.LinkedTransaction(
        actions=actions,
        net=net,
        chain_id=chain_id,
        ref_block_num=number,
        ref_block_prefix=prefix,
        expiration=datetime.datetime.utcfromtimestamp(row["expiration"]),
    )
    signed = linked.sign(key=wif)
    return {"packed": bytes(linked).hex(), "id": linked.id(), "signature": signed.signatures[0]}


def pyntelope_data(act: pyntelope.Action) -> str:
    """Return an action's data in hex."""
    return b"".join(bytes(one) for one in act.data).hex()


def main() -> None:
    """Answer one request."""
    asked = json.load(sys.stdin)
    answer: dict[str, Any] = {
        "transactions": [
            pack_and_sign(row, asked["chain_id"], asked["wif"]) for row in asked["transactions"]
        ],
        "joins": [],
        "uploads": [],
    }
    for task, account, enc_key, classes in asked["joins"]:
        given = (task, account, bytes.fromhex(enc_key), classes)
        answer["joins"].append(
            [
                pyntelope_data(device_pyntelope.join(*given)),
                device_eospy.join(*given)["data"],
            ]
        )
    for task, account, version, digest, cid, cost, errors in asked["uploads"]:
        arguments = (task, account, version, bytes.fromhex(digest), cid, cost, errors)
        answer["uploads"].append(
            [
                pyntelope_data(device_pyntelope.fedlearning(*arguments)),
                device_eospy.fedlearning(*arguments)["data"],
            ]
        )
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
