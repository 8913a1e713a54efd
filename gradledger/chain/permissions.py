"""Actions of a chain's system account that shape an account's permissions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradledger.chain.abi import Abi
from gradledger.chain.keys import PublicKey
from gradledger.chain.transaction import Action

SYSTEM = "eosio"

# Types of an authority, for ABIs that have one in an action.
AUTHORITY_STRUCTS: tuple[dict[str, Any], ...] = tuple(
    {"name": kind, "base": "", "fields": [{"name": name, "type": of} for name, of in fields]}
    for kind, fields in (
        ("permission_level", (("actor", "name"), ("permission", "name"))),
        ("key_weight", (("key", "public_key"), ("weight", "uint16"))),
        ("level_weight", (("permission", "permission_level"), ("weight", "uint16"))),
        ("wait_weight", (("wait_sec", "uint32"), ("weight", "uint16"))),
        (
            "authority",
            (
                ("threshold", "uint32"),
                ("keys", "key_weight[]"),
                ("accounts", "level_weight[]"),
                ("waits", "wait_weight[]"),
            ),
        ),
    )
)


def _struct(kind: str, *fields: tuple[str, str]) -> dict[str, Any]:
    return {"name": kind, "fields": [{"name": name, "type": of} for name, of in fields]}


_ABI = Abi(
    {
        "structs": [
            *AUTHORITY_STRUCTS,
            _struct(
                "updateauth",
                ("account", "name"),
                ("permission", "name"),
                ("parent", "name"),
                ("auth", "authority"),
            ),
            _struct("deleteauth", ("account", "name"), ("permission", "name")),
            _struct(
                "linkauth",
                ("account", "name"),
                ("code", "name"),
                ("type", "name"),
                ("requirement", "name"),
            ),
            _struct("unlinkauth", ("account", "name"), ("code", "name"), ("type", "name")),
        ],
        "actions": [
            {"name": name, "type": name}
            for name in ("updateauth", "deleteauth", "linkauth", "unlinkauth")
        ],
    }
)


def authority(key: PublicKey, *, code: str | None = None) -> dict[str, Any]:
    """Return an authority of one key; with `code`, of that contract's own actions as well."""
    accounts = []
    if code is not None:
        level = {"actor": code, "permission": "eosio.code"}
        accounts.append({"permission": level, "weight": 1})
    keys = [{"key": str(key), "weight": 1}]
    return {"threshold": 1, "keys": keys, "accounts": accounts, "waits": []}


def update_auth(
    account: str, permission: str, parent: str, auth: Mapping[str, Any], *, by: str = "active"
) -> Action:
    """Make a permission of an account below `parent`, or give it another authority.

    Parameters
    ----------
    by : str
        The account's permission that authorises it.
    """
    data = {"account": account, "permission": permission, "parent": parent, "auth": auth}
    return _system("updateauth", account, by, data)


def delete_auth(account: str, permission: str, *, by: str = "active") -> Action:
    """Take a permission away. It must have no links."""
    return _system("deleteauth", account, by, {"account": account, "permission": permission})


def link_auth(account: str, code: str, name: str, permission: str, *, by: str = "active") -> Action:
    """Let `permission` be enough for the account's part in action `name` of contract `code`."""
    data = {"account": account, "code": code, "type": name, "requirement": permission}
    return _system("linkauth", account, by, data)


def unlink_auth(account: str, code: str, name: str, *, by: str = "active") -> Action:
    """Undo `link_auth`."""
    return _system("unlinkauth", account, by, {"account": account, "code": code, "type": name})


def _system(name: str, actor: str, permission: str, data: Mapping[str, Any]) -> Action:
    levels = ((actor, permission),)
    return Action(SYSTEM, name, levels, _ABI.pack_action(name, data))
