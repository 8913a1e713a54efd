"""The key that cosigns, and the permission under which it can do nothing else.

The permission hangs below `active` and is linked to the actions of the contract that a device
takes, and to nothing else. Each of them demands the device's own authority as well, so that the key
alone authorises nothing there, and the chain refuses it everywhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from gradledger.errors import ConfigError, NodeAnswerError
from gradledger.files import make_folder

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
        make_folder(path.parent)
        cosign = PrivateKey.generate()
        save_key_file(path, account, cosign)  # on disk before it is used
    if cosign == key:
        raise ConfigError(f"{path}: expected a key of its own, got the account's active key")
    found = _read_account(chain, account)
    actions: list[Action] = []
    if not found.has_key(permission, cosign.public):
        actions.append(update_auth(account, permission, "active", authority(cosign.public)))
    for name in ACTIONS:
        if found.links.get((contract, name)) != permission:
            actions.append(link_auth(account, contract, name, permission))
    for code, name in found.surplus(contract, permission):
        actions.append(unlink_auth(account, code, name))
    for child in found.children(permission):
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
    found = _read_account(chain, account)
    if permission not in found.parents:
        return None
    below = found.children(permission)
    linked = [place for place, of in found.links.items() if of in (permission, *below)]
    actions = [unlink_auth(account, code, name) for code, name in linked]
    actions += [delete_auth(account, child) for child in below]
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
    try:
        active = {one["feature_digest"] for one in answer["activated_protocol_features"]}
    except (KeyError, TypeError) as error:
        raise NodeAnswerError(f"expected the protocol features, got {error!r}") from None
    if ONLY_BILL_FIRST_AUTHORIZER not in active:
        problems.append(
            "the chain has not activated ONLY_BILL_FIRST_AUTHORIZER: it would bill the devices too"
        )
    found = _read_account(chain, account)
    wrong = [name for name in ACTIONS if found.links.get((contract, name)) != permission]
    if not found.has_key(permission, public):
        problems.append(f"{account}@{permission} is not this key's alone: run `owner payer setup`")
    elif wrong:
        problems.append(
            f"{account}@{permission} is not linked to {', '.join(wrong)} of {contract}: run "
            "`owner payer setup`"
        )
    elif found.surplus(contract, permission) or found.children(permission):
        problems.append(f"{account}@{permission} can do more than cosign: run `owner payer setup`")
    if found.cpu_us == 0 or found.net_bytes == 0:
        problems.append(f"{account} has no CPU or no NET to pay with")
    return Standing(tuple(problems), found.cpu_us, found.net_bytes, found.ram_bytes)


@dataclass(frozen=True)
class _Account:
    """A node's document on an account, as far as it matters here."""

    parents: Mapping[str, str]  # permission -> the one above
    keys: Mapping[str, str]  # permission -> its key, where one key alone has it
    links: Mapping[tuple[str, str], str]  # (contract, action) -> permission
    cpu_us: int
    net_bytes: int
    ram_bytes: int

    def has_key(self, permission: str, key: PublicKey) -> bool:
        """Return whether a permission hangs below active and is that key's, and nobody else's."""
        mine = (str(key), key.legacy)
        return self.parents.get(permission) == "active" and self.keys.get(permission) in mine

    def surplus(self, contract: str, permission: str) -> list[tuple[str, str]]:
        """Return what a permission is linked to, and should not be."""
        linked = [place for place, of in self.links.items() if of == permission]
        return [(code, name) for code, name in linked if code != contract or name not in ACTIONS]

    def children(self, permission: str) -> list[str]:
        """Return the permissions below `permission`, the deepest first."""
        below = [permission]
        for above in below:
            below += [n for n, parent in self.parents.items() if parent == above and n not in below]
        return below[:0:-1]


def _read_account(chain: ChainClient, account: str) -> _Account:
    document = chain.get_account(account)
    parents: dict[str, str] = {}
    keys: dict[str, str] = {}
    links: dict[tuple[str, str], str] = {}
    try:
        for one in document["permissions"]:
            name, needed = one["perm_name"], one["required_auth"]
            parents[name] = one["parent"]
            alone = needed["threshold"] == 1 and not needed["accounts"] and not needed["waits"]
            if alone and [key["weight"] for key in needed["keys"]] == [1]:
                keys[name] = str(needed["keys"][0]["key"])
            for link in one["linked_actions"]:
                links[link["account"], link["action"] or ""] = name
        quota = int(document["ram_quota"])
        return _Account(
            parents,
            keys,
            links,
            int(document["cpu_limit"]["available"]),
            int(document["net_limit"]["available"]),
            -1 if quota < 0 else quota - int(document["ram_usage"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NodeAnswerError(f"expected the account {account}, got {error!r}") from None
