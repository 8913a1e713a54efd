"""Which transactions the payer signs: one check after the other, each with its own refusal.

A transaction is signed when it holds one action that a device of a task of ours may take now, the
device has signed it, it is capped in CPU, NET and time, and the limits of both leave room.
Where the chain would refuse it, the refusal has the contract's own code.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import string
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from gradledger.chain.client import ChainClient
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Role,
    Round,
    RoundState,
    UploadState,
    contract_abi,
)
from gradledger.chain.keys import PrivateKey, PublicKey, recover_key
from gradledger.chain.names import check_account
from gradledger.chain.payer import ACTIONS, PERMISSION
from gradledger.chain.transaction import CPU_MS_MAX, Action, Transaction
from gradledger.errors import BadFieldError, ConfigError, NodeAnswerError, NodeError
from gradledger.logs import say
from gradledger.metrics import Metrics, PayerMetrics
from owner.payer.record import Record, Signed, Used

__all__ = ["ChainView", "Cosigner", "Limits", "Refusal"]

log = logging.getLogger("gradledger.payer")

TASKS_MAX = 64
TRANSACTION_BYTES_MAX = 2048  # an upload with 64 errors takes 450
VIEW_SEC = 1.0  # how long an answer of the node is used again
VIEW_ENTRIES_MAX = 4096

# HTTP status of each refusal; the codes of the contract's own checks are 409.
_STATUS = {
    "bad_request": 400,
    "malformed_transaction": 400,
    "bad_signature": 403,
    "not_a_member": 403,
    "wrong_role": 403,
    "unknown_path": 404,
    "unknown_transaction": 404,
    "wrong_method": 405,
    "too_slow": 408,
    "expired": 410,
    "length_required": 411,
    "replay": 409,
    "too_large": 413,
    "wrong_chain": 422,
    "unknown_action": 422,
    "unknown_task": 422,
    "wrong_authorization": 422,
    "cap_exceeded": 422,
    "expires_late": 422,
    "device_limit": 429,
    "round_limit": 429,
    "task_limit": 429,
    "busy": 503,
    "node_unavailable": 503,
    "not_recorded": 503,
}
_STATUS_OF_CONTRACT = 409
_HEX = frozenset(string.hexdigits)
_T = TypeVar("_T")


class Refusal(Exception):
    """No signature, and why.

    Attributes
    ----------
    code, text : str
    status : int
        Of HTTP.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text
        self.status = _STATUS.get(code, _STATUS_OF_CONTRACT)

    def to_dict(self) -> dict[str, str]:
        """Return the answer's document."""
        return {"code": self.code, "message": self.text}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is signed, and with which caps.

    Attributes
    ----------
    per_round : int
        Signatures for each step of one device's upload in one round (recording it, revealing its
        CID, opening it for an audit): a transaction that expired is signed anew.
    per_device_hour : int
        For one device in all tasks.
    per_task_hour : int
        For all devices of one task.
    cpu_ms, net_words : int
        Highest caps that a transaction may carry; a NET word has 8 bytes.
    expiration_sec : int
        A transaction must expire within so many seconds of the chain's time.
    """

    per_round: int = 3
    per_device_hour: int = 60
    per_task_hour: int = 20_000
    cpu_ms: int = 50
    net_words: int = 128
    expiration_sec: int = 120

    def __post_init__(self) -> None:
        most = {"cpu_ms": CPU_MS_MAX, "net_words": 65_536, "expiration_sec": 3600}
        least = {"expiration_sec": 10}
        for one in fields(self):
            low, high = least.get(one.name, 1), most.get(one.name, 1_000_000)
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{one.name}: expected {low} to {high}, got {value!r}")


class ChainView:
    """What the rules ask of the chain; an answer is used again for a second.

    Parameters
    ----------
    client : ChainClient
    contract : str
        Account of the contract.
    clock : callable, optional
        Seconds that never go back, like `time.monotonic`.

    Notes
    -----
    Every method raises NodeError when the node does not answer.
    """

    def __init__(
        self, client: ChainClient, contract: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._contract = FedLearning(client, contract)
        self._client = client
        self._clock = clock
        self._answers: OrderedDict[tuple[str, ...], tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()
        self.contract = self._contract.account
        self.chain_id = client.get_info().chain_id

    def now(self) -> int:
        """Return the chain's time, in seconds since 1970."""

        def fetch() -> tuple[float, int]:
            return self._clock(), self._client.get_info().head_time

        asked_at, head_time = self._cached(("now",), fetch)
        return head_time + int(self._clock() - asked_at)

    def newest_round(self, task: str) -> Round | None:
        """Return the newest round of a task; None before the first, or without such a task."""

        def fetch() -> Round | None:
            try:
                return self._contract.current_round(task)
            except BadFieldError:
                return None

        return self._cached(("round", task), fetch)

    def member(self, task: str, account: str) -> Member | None:
        """Return a member's row."""
        return self._cached(("member", task, account), lambda: self._contract.member(task, account))

    def active_keys(self, account: str) -> frozenset[PublicKey]:
        """Return the keys each of which satisfies an account's active permission alone."""
        return self._cached(("keys", account), lambda: self._active_keys(account))

    def forget(self, task: str, account: str) -> None:
        """Ask the node anew about a task and a member."""
        with self._lock:
            for place in (("round", task), ("member", task, account), ("keys", account)):
                self._answers.pop(place, None)

    def _active_keys(self, account: str) -> frozenset[PublicKey]:
        found = set()
        document = self._client.get_account(account)
        try:
            (active,) = (p for p in document["permissions"] if p["perm_name"] == "active")
            needed = active["required_auth"]
            enough = [one for one in needed["keys"] if one["weight"] >= needed["threshold"]]
            for one in enough:
                try:
                    found.add(PublicKey.from_string(one["key"]))
                except ConfigError:
                    pass  # of another kind than the devices' keys
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NodeAnswerError(f"expected the account {account}, got {error!r}") from None
        return frozenset(found)

    def _cached(self, place: tuple[str, ...], fetch: Callable[[], _T]) -> _T:
        with self._lock:
            until, answer = self._answers.get(place, (0.0, None))
            if self._clock() < until:
                return cast(_T, answer)
        answer = fetch()
        with self._lock:
            self._answers.pop(place, None)
            self._answers[place] = (self._clock() + VIEW_SEC, answer)
            while len(self._answers) > VIEW_ENTRIES_MAX:
                self._answers.popitem(last=False)
        return answer


class Cosigner:
    """Decides, records and signs. Safe to share between threads.

    Parameters
    ----------
    view : ChainView
    record : Record
    key : PrivateKey
        Of the payer's linked permission alone; see `owner.payer.setup`.
    account : str
        The payer.
    tasks : sequence of str
    permission : str
    limits : Limits, optional
    metrics : PayerMetrics, optional
        Where it and its service count; by default nowhere.
    """

    def __init__(
        self,
        view: ChainView,
        record: Record,
        *,
        key: PrivateKey,
        account: str,
        tasks: Sequence[str],
        permission: str = PERMISSION,
        limits: Limits | None = None,
        metrics: PayerMetrics | None = None,
    ) -> None:
        if not 1 <= len(tasks) <= TASKS_MAX:
            raise ConfigError(f"expected 1 to {TASKS_MAX} tasks, got {len(tasks)}")
        self.view, self.record = view, record
        self.account = check_account(account)
        self.permission = check_account(permission)
        self.tasks = tuple(dict.fromkeys(check_account(task) for task in tasks))
        self.limits = limits or Limits()
        self.metrics = metrics or PayerMetrics(Metrics())
        self._key = key
        self._abi = contract_abi()

    def __repr__(self) -> str:
        return f"Cosigner({self.account!r}, tasks={self.tasks!r})"

    # ---- what the service answers -------------------------------------------------------------

    def terms(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a device needs to know to ask (`gradledger.chain.payer.PayerTerms`)."""
        _texts(request)
        return {
            "chain_id": self.view.chain_id,
            "contract": self.view.contract,
            "account": self.account,
            "permission": self.permission,
            "tasks": list(self.tasks),
            "cpu_ms_max": self.limits.cpu_ms,
            "net_words_max": self.limits.net_words,
            "expiration_sec_max": self.limits.expiration_sec,
        }

    def signature(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Return the signature that was given for a transaction, to a device that missed it.

        It opens nothing: the chain executes a transaction once, and not without the device's own
        signature.
        """
        (trx_id,) = _texts(request, "transaction_id")
        _hex(trx_id, "transaction_id", 32)
        found = self._recorded(lambda: self.record.find(trx_id.lower()))
        if found is None:
            raise Refusal("unknown_transaction", f"no transaction {trx_id.lower()} was signed")
        return {"transaction_id": found.trx_id, "signature": found.signature}

    def cosign(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Sign a device's transaction.

        Parameters
        ----------
        request : mapping
            ``chain_id`` and ``packed_trx`` in hex, ``signature`` of the device.

        Returns
        -------
        dict
            ``transaction_id`` and ``signature``.

        Raises
        ------
        Refusal
        """
        chain_id, packed, signature = _texts(request, "chain_id", "packed_trx", "signature")
        raw = _hex(packed, "packed_trx")
        if len(raw) > TRANSACTION_BYTES_MAX:
            raise Refusal(
                "too_large", f"expected at most {TRANSACTION_BYTES_MAX} bytes, got {len(raw)}"
            )
        if _hex(chain_id, "chain_id", 32).hex() != self.view.chain_id:
            raise Refusal("wrong_chain", f"expected chain {self.view.chain_id}, got {chain_id}")
        try:
            transaction = Transaction.unpack(raw)
        except ConfigError as error:
            raise Refusal("malformed_transaction", str(error)) from None
        task, device, version = self._check_actions(transaction.actions)
        self._check_caps(transaction)
        digest = transaction.signing_digest(self.view.chain_id)
        try:
            signer = recover_key(digest, signature)
        except ConfigError as error:
            raise Refusal("bad_signature", str(error)) from None
        try:
            now = self._check_time(transaction)
            try:
                self._check_member(transaction, task, device, version, signer, now)
            except Refusal:  # the answers at hand may be a second old
                self.view.forget(task, device)
                self._check_member(transaction, task, device, version, signer, now)
        except NodeError as error:
            say(log, logging.ERROR, "node_unavailable", reason=error)
            raise Refusal("node_unavailable", "the chain cannot be asked now: try again") from None
        name = transaction.actions[0].name
        signed = Signed(
            transaction.id,
            task,
            device,
            name,
            version,
            now,
            transaction.expiration,
            self._key.sign_digest(digest),
        )
        try:
            with self.record.adding(signed) as used:
                self._check_limits(signed, used)
        except sqlite3.IntegrityError:
            raise _replay(signed.trx_id) from None
        except sqlite3.Error as error:
            say(log, logging.ERROR, "not_recorded", path=self.record.path, reason=error)
            raise Refusal("not_recorded", "the payer cannot write its record now") from None
        self.metrics.sign(task, name)
        facts: dict[str, Any] = {"task": task, "sender": device, "action": name}
        say(log, logging.INFO, "signed", **facts, transaction=signed.trx_id)
        return {"transaction_id": signed.trx_id, "signature": signed.signature}

    # ---- one check after the other ------------------------------------------------------------

    def _check_actions(self, actions: Sequence[Action]) -> tuple[str, str, int]:
        """Return task, device and version (0: a join) of the only action."""
        first = actions[0]
        for one in actions:
            if one.account != self.view.contract or one.name not in ACTIONS:
                raise Refusal(
                    "unknown_action",
                    f"expected {', '.join(ACTIONS)} of {self.view.contract}, got "
                    f"{one.name} of {one.account}",
                )
        if len(actions) != 1:
            raise Refusal("unknown_action", f"expected one action, got {len(actions)}")
        try:
            data = self._abi.unpack(first.name, first.data)
            if self._abi.pack(first.name, data) != first.data:
                raise ConfigError("not their shortest form")
        except ConfigError as error:
            raise Refusal("malformed_transaction", f"arguments of {first.name}: {error}") from None
        task, device = data["task"], data["account" if first.name == "join" else "device"]
        if task not in self.tasks:
            raise Refusal("unknown_task", f"this payer pays for {', '.join(self.tasks)} alone")
        expected = ((self.account, self.permission), (device, "active"))
        if first.authorization != expected:
            raise Refusal(
                "wrong_authorization",
                f"expected {_levels(expected)}, got {_levels(first.authorization[:4])}",
            )
        return task, device, int(data.get("version", 0))

    def _check_caps(self, transaction: Transaction) -> None:
        for what, cap, most in (
            ("max_cpu_usage_ms", transaction.cpu_ms_max, self.limits.cpu_ms),
            ("max_net_usage_words", transaction.net_words_max, self.limits.net_words),
        ):
            if not 1 <= cap <= most:
                raise Refusal("cap_exceeded", f"{what}: expected 1 to {most}, got {cap}")

    def _check_time(self, transaction: Transaction) -> int:
        """Return the chain's time."""
        now = self.view.now()
        if transaction.expiration <= now:
            raise Refusal("expired", f"it expired at {transaction.expiration}, the time is {now}")
        last = now + self.limits.expiration_sec
        if transaction.expiration > last:
            raise Refusal(
                "expires_late", f"expected to expire until {last}, got {transaction.expiration}"
            )
        return now

    def _check_member(
        self,
        transaction: Transaction,
        task: str,
        device: str,
        version: int,
        signer: PublicKey,
        now: int,
    ) -> None:
        """Who asks, and may it do that now?"""
        member = self.view.member(task, device)
        if member is None:
            raise Refusal("not_a_member", f"{device} is no member of task {task}")
        if member.role is not Role.DEVICE:
            raise Refusal("wrong_role", f"expected a device, {device} is a validator")
        if signer not in self.view.active_keys(device):
            raise Refusal("bad_signature", f"expected a signature of {device}'s active key")
        # Only the device itself gets as far as here, and learns what was signed for it.
        if self._recorded(lambda: self.record.find(transaction.id)) is not None:
            raise _replay(transaction.id)
        name = transaction.actions[0].name
        if name == "join":
            return
        if not member.joined:
            raise Refusal("not_joined", f"{device} has not joined task {task}")
        found = self.view.newest_round(task)
        if found is None:
            raise Refusal("round_not_open", f"task {task} has no round yet")
        newest = found.version
        if version != newest:
            code = "stale_version" if version < newest else "future_version"
            raise Refusal(code, f"got version {version}, the current version is {newest}")
        phase, code, deadline = {
            "fedlearning": (RoundState.OPEN, "round_not_open", found.deadline),
            "reveal": (RoundState.VERIFYING, "round_not_closed", found.reveal_deadline),
            "openupload": (RoundState.AUDITING, "not_auditing", found.audit_deadline),
        }[name]
        if found.state is not phase:
            raise Refusal(code, f"round {newest} is {found.state.name.lower()}")
        if now >= deadline:
            raise Refusal("deadline_passed", f"expected {name} before {deadline}, it is {now}")
        if name == "fedlearning":
            self._check_upload(member, version)
        else:
            self._check_step(name, member, version)

    @staticmethod
    def _check_upload(member: Member, version: int) -> None:
        device = member.account
        if member.upload_version >= version:
            raise Refusal("second_upload", f"expected one upload of {device} for version {version}")
        if member.barred_until >= version:
            raise Refusal(
                "barred", f"{device} failed an audit, and is barred up to {member.barred_until}"
            )

    @staticmethod
    def _check_step(name: str, member: Member, version: int) -> None:
        """What follows an upload is paid for once, and only if the chain asks for it."""
        device = member.account
        if member.upload_version != version:
            raise Refusal("unknown_upload", f"{device} has no upload in round {version}")
        if name == "openupload" and member.upload_state is not UploadState.DRAWN:
            raise Refusal("not_drawn", f"the upload of {device} is not under audit")
        code, known = ("already_revealed", member.upload_cid)
        if name == "openupload":
            code, known = ("already_opened", member.opening_cid)
        if known:
            raise Refusal(code, f"the CID of {device} for version {version} is known")

    def _check_limits(self, signed: Signed, used: Used) -> None:
        limits = self.limits
        if signed.version and used.round >= limits.per_round:
            raise Refusal(
                "round_limit",
                f"{signed.device} had {used.round} signatures for round {signed.version} of task "
                f"{signed.task}, the limit is {limits.per_round}",
            )
        if used.device >= limits.per_device_hour:
            raise Refusal(
                "device_limit",
                f"{signed.device} had {used.device} signatures in the last hour, the limit is "
                f"{limits.per_device_hour}: try again later",
            )
        if used.task >= limits.per_task_hour:
            raise Refusal(
                "task_limit",
                f"task {signed.task} had {used.task} signatures in the last hour, the limit is "
                f"{limits.per_task_hour}: try again later",
            )

    def _recorded(self, ask: Callable[[], Signed | None]) -> Signed | None:
        try:
            return ask()
        except sqlite3.Error as error:
            say(log, logging.ERROR, "not_recorded", path=self.record.path, reason=error)
            raise Refusal("not_recorded", "the payer cannot read its record now") from None


def parse_json(body: bytes) -> Mapping[str, Any]:
    """Return a request's JSON object. Raises Refusal."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("bad_request", "expected a JSON object") from None
    if not isinstance(document, dict):
        raise Refusal("bad_request", "expected a JSON object")
    return document


def _texts(request: Mapping[str, Any], *names: str) -> list[str]:
    """Return the texts of a request that has exactly these fields."""
    if set(request) != set(names):
        raise Refusal("bad_request", f"expected the fields {', '.join(names) or '(none)'}")
    for name in names:
        if not isinstance(request[name], str):
            raise Refusal("bad_request", f"expected a text for {name}")
    return [request[name] for name in names]


def _hex(text: str, what: str, size: int | None = None) -> bytes:
    whole = len(text) % 2 == 0 and _HEX.issuperset(text)
    if not text or not whole or (size is not None and len(text) != 2 * size):
        length = "" if size is None else f"{size} bytes in "
        raise Refusal("bad_request", f"expected {length}hex for {what}")
    return bytes.fromhex(text)


def _levels(levels: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{actor}@{permission}" for actor, permission in levels) or "nobody"


def _replay(trx_id: str) -> Refusal:
    return Refusal("replay", f"transaction {trx_id} was signed before: /v1/payer/signature has it")
