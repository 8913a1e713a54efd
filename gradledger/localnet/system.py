"""Actions of a chain's system account and of its token, as the local network needs them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradledger.chain.abi import Abi
from gradledger.chain.keys import PublicKey
from gradledger.chain.names import name_to_int
from gradledger.chain.permissions import AUTHORITY_STRUCTS, SYSTEM, authority, update_auth
from gradledger.chain.transaction import Action, action

PREACTIVATE_FEATURE = "0ec7e080177b2c02b278d5088611686b49d739925a92d9bfcacd7fc6b74053bd"


def _struct(kind: str, /, **fields: str) -> dict[str, Any]:
    pairs = [{"name": name.rstrip("_"), "type": of} for name, of in fields.items()]
    return {"name": kind, "base": "", "fields": pairs}


# Types of the system contract's actions, and of an ABI itself, which goes to the chain in binary.
_ABI = Abi(
    {
        "structs": [
            *AUTHORITY_STRUCTS,
            _struct("activate", feature_digest="checksum256"),
            _struct(
                "newaccount", creator="name", name="name", owner="authority", active="authority"
            ),
            _struct("setcode", account="name", vmtype="uint8", vmversion="uint8", code="bytes"),
            _struct("setabi", account="name", abi="bytes"),
            _struct("setpriv", account="name", is_priv="uint8"),
            _struct(
                "setalimits",
                account="name",
                ram_bytes="int64",
                net_weight="int64",
                cpu_weight="int64",
            ),
            _struct("create", issuer="name", maximum_supply="asset"),
            _struct("issue", to="name", quantity="asset", memo="string"),
            _struct("transfer", from_="name", to="name", quantity="asset", memo="string"),
            _struct("producer_key", producer="name", key="public_key"),
            _struct("setprods", schedule="producer_key[]"),
            # An ABI in binary.
            _struct("type_def", new_type_name="string", type="string"),
            _struct("field_def", name="string", type="string"),
            _struct("struct_def", name="string", base="string", fields="field_def[]"),
            _struct("action_def", name="name", type="string", ricardian_contract="string"),
            _struct(
                "table_def",
                name="name",
                index_type="string",
                key_names="string[]",
                key_types="string[]",
                type="string",
            ),
            _struct("pair_def", id="string", body="string"),
            _struct("error_def", code="uint64", message="string"),
            _struct("extension_def", tag="uint16", value="bytes"),
            _struct("variant_def", name="string", types="string[]"),
            _struct("result_def", name="name", result_type="string"),
            _struct(
                "abi_def",
                version="string",
                types="type_def[]",
                structs="struct_def[]",
                actions="action_def[]",
                tables="table_def[]",
                ricardian_clauses="pair_def[]",
                error_messages="error_def[]",
                abi_extensions="extension_def[]",
                variants="variant_def[]",
                action_results="result_def[]",
            ),
        ],
        "actions": [
            {"name": name, "type": name}
            for name in (
                "activate",
                "newaccount",
                "setcode",
                "setabi",
                "setpriv",
                "setalimits",
                "create",
                "issue",
                "transfer",
                "setprods",
            )
        ],
    }
)
_TYPE_DEFAULTS: Mapping[str, Any] = {
    "uint16": 0,
    "uint64": 0,
    "name": "",
    "string": "",
    "bytes": b"",
}


@dataclass(frozen=True)
class Resources:
    """What an account may use of the chain; -1 is no limit.

    Attributes
    ----------
    ram_bytes : int
    net_weight, cpu_weight : int
        Its share of the chain's NET and CPU is its weight over the sum of all weights.
    """

    ram_bytes: int
    net_weight: int
    cpu_weight: int


def new_account(creator: str, name: str, key: PublicKey) -> Action:
    """Create an account whose owner and active permission are one key."""
    data = {"creator": creator, "name": name, "owner": authority(key), "active": authority(key)}
    return _system("newaccount", creator, data)


def set_contract(account: str, wasm: bytes, abi_json: bytes) -> list[Action]:
    """Put code and ABI on an account."""
    code = {"account": account, "vmtype": 0, "vmversion": 0, "code": wasm}
    abi = {"account": account, "abi": pack_abi(json.loads(abi_json))}
    return [_system("setcode", account, code), _system("setabi", account, abi)]


def let_code_act(account: str, key: PublicKey) -> Action:
    """Let a contract use its own account's active permission (``account@eosio.code``)."""
    return update_auth(account, "active", "owner", authority(key, code=account))


def set_limits(account: str, resources: Resources) -> Action:
    """Set what an account may use, through the bios contract."""
    data = {
        "account": account,
        "ram_bytes": resources.ram_bytes,
        "net_weight": resources.net_weight,
        "cpu_weight": resources.cpu_weight,
    }
    return _system("setalimits", SYSTEM, data)


def activate(features: Iterable[str]) -> list[Action]:
    """Activate protocol features by their digests, through the bios contract."""
    return [_system("activate", SYSTEM, {"feature_digest": digest}) for digest in features]


def set_privileged(account: str) -> Action:
    """Make an account's contract privileged."""
    return _system("setpriv", SYSTEM, {"account": account, "is_priv": 1})


def set_producers(contract: str, producers: Mapping[str, PublicKey]) -> Action:
    """Propose a schedule through the privileged contract `prods`."""
    schedule = [
        {"producer": name, "key": str(producers[name])}
        for name in sorted(producers, key=name_to_int)
    ]
    return action(
        contract, "setprods", contract, _ABI.pack_action("setprods", {"schedule": schedule})
    )


def token_action(contract: str, name: str, actor: str, **arguments: Any) -> Action:
    """Return ``create``, ``issue`` or ``transfer`` of a token contract; ``from_`` means from."""
    data = {field.rstrip("_"): value for field, value in arguments.items()}
    return action(contract, name, actor, _ABI.pack_action(name, data))


def pack_abi(document: Mapping[str, Any]) -> bytes:
    """Return an ABI's JSON document in the binary form that `setabi` takes."""
    return _ABI.pack("abi_def", _complete("abi_def", document))


def _complete(kind: str, value: Any) -> Any:
    """Fill in the members that ABI files may leave out."""
    if kind.endswith("[]"):
        return [_complete(kind[:-2], item) for item in value or []]
    if kind in _TYPE_DEFAULTS:
        return _TYPE_DEFAULTS[kind] if value is None else value
    return {name: _complete(field, value.get(name)) for name, field in _ABI.fields(kind)}


def _system(name: str, actor: str, data: Mapping[str, Any]) -> Action:
    return action(SYSTEM, name, actor, _ABI.pack_action(name, data))
