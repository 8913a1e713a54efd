"""The key that cosigns, and the permission under which it can do nothing else.

The permission hangs below `active` and is linked to the two actions of the contract that a device
takes. Each of them demands the device's own authority as well, so that the key alone authorises
nothing there, and the chain refuses it everywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradledger.chain.client import ChainClient
from gradledger.chain.keys import PrivateKey, PublicKey, load_key_file, save_key_file
from gradledger.chain.payer import ACTIONS, PERMISSION
from gradledger.chain.permissions import (
    authority,
    delete_auth,
    link_auth,
    unlink_auth,
    update_auth,
)
from gradledger.chain.transaction import Action
from gradledger.errors import ConfigError

__all__ = ["Standing", "check", "load_cosign_key", "revoke", "setup"]

# https://github.com/AntelopeIO/leap: "eosio::protocol_feature: ONLY_BILL_FIRST_AUTHORIZER"
ONLY_BILL_FIRST_AUTHORIZER = "8ba52fe7a3956c5cd3a656a3174b931d3bb2abb45578befc59f283ecd816a405"
FEATURES_MAX = 1000


@dataclass(frozen=True)
class Standing:
    """How the payer's account stands.

    Attributes
    ----------
    problems : tuple of str
        What keeps the service from paying; none when all is well.
    cpu_us, net_bytes : int
        What the account can still spend; -1 is no bound.
    ram_bytes : int
        RAM that it has left; -1 is no bound.
    """

    problems: tuple[str, ...]
    cpu_us: int
    net_bytes: int
    ram_bytes: int


def load_cosign_key(path: str | os.PathLike[str], account: str) -> PrivateKey:
    """Return the payer's cosigning key. Raises ConfigError when it is not there, or another's."""
    if not Path(path).exists():
        raise ConfigError(f"no key at {path}: make it with `gradledger owner payer setup`")
    name, key = load_key_file(path)
    if name != account:
        raise ConfigError(f"{path}: expected the cosigning key of {account}, got that of {name}")
    return key


def setup(
    chain: ChainClient,
    *,
    account: str,
    key: PrivateKey,
    key_path: str | os.PathLike[str],
    contract: str,
    permission: str = PERMISSION,
    timeout_sec: float = 60.0,
) -> str | None:
    """Make the cosigning key, its permission and its links; mend what is not as it must be.

    May be called again at any time; what is right already is left as it is.

    Parameters
    ----------
    chain : ChainClient
    account, key : str, PrivateKey
        The payer, and its active key.
    key_path : path
        Of the cosigning key; made, mode 0600, where it is not there.
    contract : str
    permission : str

    Returns
    -------
    str or None
        The transaction, irreversible by now; None when there was nothing to do.

    Raises
    ------
    ConfigError
        `key_path` holds another account's key, or the account's active key itself.
    ChainError
    """
    path = Path(key_path)
    if path.exists():
        cosign = load_cosign_key(path, account)
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        cosign = PrivateKey.generate()
        save_key_file(path, account, cosign)  # on disk before it is used
    if cosign == key:
        raise ConfigError(f"{path}: expected a key of its own, got the account's active key")
    document = chain.get_account(account)
    actions: list[Action] = []
    if not _has_key(document, permission, cosign.public):
        actions.append(update_auth(account, permission, "active", authority(cosign.public)))
    links = _links(document)
    for name in ACTIONS:
        if links.get((contract, name)) != permission:
            actions.append(link_auth(account, contract, name, permission))
    for code, name in _surplus(links, contract, permission):
        actions.append(unlink_auth(account, code, name))
    for child in _children(document, permission):
        actions.append(delete_auth(account, child))
    if not actions:
        return None
    return chain.transact(actions, [key], timeout_sec=timeout_sec)[0].trx_id


def revoke(
    chain: ChainClient,
    *,
    account: str,
    key: PrivateKey,
    permission: str = PERMISSION,
    timeout_sec: float = 60.0,
) -> str | None:
    """Take the permission and its links away: the cosigning key can do nothing any more.

    Returns
    -------
    str or None
        The transaction, irreversible by now; None when there was nothing to do.
    """
    document = chain.get_account(account)
    if permission not in _permissions(document):
        return None
    linked = [place for place, of in _links(document).items() if of == permission]
    actions = [unlink_auth(account, code, name) for code, name in linked]
    actions += [delete_auth(account, child) for child in _children(document, permission)]
    actions.append(delete_auth(account, permission))
    return chain.transact(actions, [key], timeout_sec=timeout_sec)[0].trx_id


def check(
    chain: ChainClient,
    *,
    account: str,
    public: PublicKey,
    contract: str,
    permission: str = PERMISSION,
) -> Standing:
    """Look whether the payer can pay: feature, permission, links, CPU, NET. Raises ChainError."""
    problems = []
    answer = chain.call(
        "/v1/chain/get_activated_protocol_features", {"limit": FEATURES_MAX, "reverse": False}
    )
    active = {one["feature_digest"] for one in answer["activated_protocol_features"]}
    if ONLY_BILL_FIRST_AUTHORIZER not in active:
        problems.append(
            "the chain has not activated ONLY_BILL_FIRST_AUTHORIZER: it would bill the devices too"
        )
    document = chain.get_account(account)
    links = _links(document)
    wrong = [name for name in ACTIONS if links.get((contract, name)) != permission]
    if not _has_key(document, permission, public):
        problems.append(f"{account}@{permission} is not this key's alone: run `owner payer setup`")
    elif wrong:
        problems.append(
            f"{account}@{permission} is not linked to {', '.join(wrong)} of {contract}: run "
            "`owner payer setup`"
        )
    elif _surplus(links, contract, permission) or _children(document, permission):
        problems.append(f"{account}@{permission} can do more than cosign: run `owner payer setup`")
    cpu_us = int(document["cpu_limit"]["available"])
    net_bytes = int(document["net_limit"]["available"])
    if cpu_us == 0 or net_bytes == 0:
        problems.append(f"{account} has no CPU or no NET to pay with")
    quota, used = int(document["ram_quota"]), int(document["ram_usage"])
    return Standing(tuple(problems), cpu_us, net_bytes, -1 if quota < 0 else quota - used)


def _permissions(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["perm_name"]: one for one in document["permissions"]}


def _has_key(document: Mapping[str, Any], permission: str, key: PublicKey) -> bool:
    """Return whether a permission hangs below active and is that key's, and nobody else's."""
    found = _permissions(document).get(permission)
    if found is None or found["parent"] != "active":
        return False
    needed = found["required_auth"]
    return (
        needed["threshold"] == 1
        and [(one["key"], one["weight"]) for one in needed["keys"]]
        in ([(key.legacy, 1)], [(str(key), 1)])
        and not needed["accounts"]
        and not needed["waits"]
    )


def _links(document: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return which permission each (contract, action) of the account is linked to."""
    return {
        (link["account"], link["action"] or ""): one["perm_name"]
        for one in document["permissions"]
        for link in one.get("linked_actions", [])
    }


def _surplus(
    links: Mapping[tuple[str, str], str], contract: str, permission: str
) -> list[tuple[str, str]]:
    wanted = {(contract, name) for name in ACTIONS}
    return [place for place, of in links.items() if of == permission and place not in wanted]


def _children(document: Mapping[str, Any], permission: str) -> list[str]:
    """Return the permissions below `permission`, the deepest first."""
    found = [one["perm_name"] for one in document["permissions"] if one["parent"] == permission]
    return [name for child in found for name in (*_children(document, child), child)]
