"""The payer of a task: somebody else's account pays CPU and NET for what a device does.

The payer is the first authoriser of the device's own action, so that the chain bills it and not the
device (protocol feature ONLY_BILL_FIRST_AUTHORIZER). The device signs first and sends the bytes to
the payer's service, which answers with a signature of the same bytes; the device sends both to a
node itself. So the service can refuse, but neither change a transaction nor make one up.

Talking to the service, JSON by POST (`owner/payer/` is the other side):

    /v1/payer/terms      {}                                 -> `PayerTerms`
    /v1/payer/cosign     {chain_id, packed_trx, signature}  -> {transaction_id, signature}
    /v1/payer/signature  {transaction_id}                   -> the same, if it was signed before
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from gradledger.chain.client import ChainClient, ChainInfo, PushResult, Signed, Timeout
from gradledger.chain.keys import PrivateKey, recover_key
from gradledger.chain.names import check_account
from gradledger.chain.transaction import CPU_MS_MAX, Action, Transaction
from gradledger.errors import (
    ConfigError,
    ContractError,
    NodeAnswerError,
    NodeUnavailableError,
    PayerRefusedError,
    PayerUnavailableError,
    TransactionExpiredError,
    error_from_check,
)

# Of the contract: what a device does, and a payer pays for.
ACTIONS = ("join", "fedlearning", "reveal", "openupload")
PERMISSION = "cosign"
TRIES_MAX = 3
PAUSE_SEC = 0.5  # between tries
ANSWER_BYTES_MAX = 65_536
PENDING_MAX = 1024
EXPIRATION_SEC = 60
MARGIN_SEC = 5  # a transaction that expires sooner is not sent any more

_BOUNDS = ("cpu_ms_max", "net_words_max", "expiration_sec_max")


def with_payer(action: Action, account: str, permission: str) -> Action:
    """Return the action with the payer as its first authoriser."""
    return replace(action, authorization=((account, permission), *action.authorization))


@dataclass(frozen=True)
class PayerTerms:
    """What a payer's service pays for.

    Attributes
    ----------
    chain_id, contract : str
    account, permission : str
        First authoriser of every transaction.
    tasks : tuple of str
    cpu_ms_max, net_words_max : int
        The caps that a transaction must carry, at most.
    expiration_sec_max : int
        A transaction must expire by then.
    """

    chain_id: str
    contract: str
    account: str
    permission: str
    tasks: tuple[str, ...]
    cpu_ms_max: int
    net_words_max: int
    expiration_sec_max: int

    @classmethod
    def from_dict(cls, document: Any) -> PayerTerms:
        """Read a service's answer. Raises ConfigError."""
        try:
            terms = cls(
                str(document["chain_id"]),
                check_account(document["contract"]),
                check_account(document["account"]),
                check_account(document["permission"]),
                tuple(check_account(task) for task in document["tasks"]),
                *(_integer(document, name) for name in _BOUNDS),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"expected a payer's terms, got something else: {error}") from None
        if not (
            1 <= terms.cpu_ms_max <= CPU_MS_MAX
            and 1 <= terms.net_words_max < 2**32
            and MARGIN_SEC < terms.expiration_sec_max <= 3600
        ):
            raise ConfigError("expected a payer's terms, a bound of theirs is out of range")
        return terms


def _integer(document: Any, name: str) -> int:
    value = document[name]
    if type(value) is not int:
        raise TypeError(f"{name}: expected an integer, got {value!r:.40}")
    return value


@dataclass
class _Pending:
    """A transaction that may still happen: it is sent again rather than made anew."""

    signed: Signed  # by the device, and by the payer once `cosigned`
    cosigned: bool = field(default=False)


class Payer:
    """A payer's service. Safe to share between threads and devices.

    Parameters
    ----------
    url : str
        ``http://host:port``.
    timeout : Timeout, optional

    Raises
    ------
    ConfigError
        The address is none. Nothing is contacted here.
    """

    def __init__(self, url: str, *, timeout: Timeout | None = None) -> None:
        self.url = url.strip().rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
            raise ConfigError(f"expected a payer's address like http://host:port, got {url!r}")
        from gradledger.chain.transport import Transport

        limit = timeout or Timeout()
        self._transport = Transport(connect_sec=limit.connect, answer_sec=limit.read)
        self._terms: PayerTerms | None = None
        self._pending: OrderedDict[tuple[str, bytes], _Pending] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Payer({self.url!r})"

    def terms(self) -> PayerTerms:
        """Return what the service pays for; asked once, and anew after a refusal.

        Raises
        ------
        PayerUnavailableError
            It does not answer, or not as a payer's service.
        """
        terms = self._terms
        if terms is None:
            try:
                terms = self._terms = PayerTerms.from_dict(self._call("/v1/payer/terms", {}))
            except ConfigError as error:
                raise PayerUnavailableError(f"the payer at {self.url}: {error}") from None
        return terms

    def push(self, chain: ChainClient, action: Action, key: PrivateKey) -> PushResult:
        """Have a device's action paid for, sign and send it.

        Called again with the same action, it sends the same transaction, as long as that may still
        happen: whatever was lost on the way, nothing happens twice.

        Parameters
        ----------
        chain : ChainClient
            The node to send it to.
        action : Action
            One of `ACTIONS`, with the device's authorisation.
        key : PrivateKey
            The device's.

        Raises
        ------
        PayerRefusedError, ContractError
            The service, or the chain, refused it; nothing happened.
        PayerUnavailableError, NodeError
            Service or node do not answer. It may have arrived all the same.
        """
        info = chain.get_confirmed()
        pending = self._find(info, action, key)
        try:
            if not pending.cosigned:
                pending.signed = self.cosign(pending.signed, info.chain_id)
                pending.cosigned = True
            traces = chain.send(pending.signed.body)
        except (ContractError, PayerRefusedError, TransactionExpiredError):
            with self._lock:  # it will never happen
                self._pending.pop((info.chain_id, action.pack()), None)
            raise
        return PushResult.of(pending.signed, traces)

    def _find(self, info: ChainInfo, action: Action, key: PrivateKey) -> _Pending:
        """Return the action's transaction that may still happen, or a new one."""
        place = (info.chain_id, action.pack())
        with self._lock:
            found = self._pending.get(place)
            if found and found.signed.expiration > info.head_time + MARGIN_SEC:
                return found
        made = _Pending(self.sign(info, action, key))
        with self._lock:
            self._pending[place] = made
            while len(self._pending) > PENDING_MAX:
                self._pending.popitem(last=False)
        return made

    def sign(
        self,
        info: ChainInfo,
        action: Action,
        key: PrivateKey,
        *,
        expiration_sec: int = EXPIRATION_SEC,
    ) -> Signed:
        """Return a device's action as a transaction that the device has signed.

        Parameters
        ----------
        info : ChainInfo
            As the chain stands now.
        action : Action
            One of `ACTIONS`, with the device's authorisation.
        key : PrivateKey
            The device's.
        expiration_sec : int
            Life of the transaction; no longer than the service allows.

        Raises
        ------
        PayerUnavailableError
            The service does not answer.
        ConfigError
            It pays on another chain.
        """
        terms = self.terms()
        if terms.chain_id != info.chain_id:
            raise ConfigError(
                f"the payer at {self.url} pays on chain {terms.chain_id}, the node has "
                f"{info.chain_id}"
            )
        if terms.account in (actor for actor, _ in action.authorization):
            raise ConfigError(f"the payer at {self.url} would have this device pay for itself")
        transaction = Transaction.refer(
            [with_payer(action, terms.account, terms.permission)],
            info.head_time + min(expiration_sec, terms.expiration_sec_max),
            info.irreversible_id,
            cpu_ms_max=terms.cpu_ms_max,
            net_words_max=terms.net_words_max,
        )
        body = transaction.sign(info.chain_id, [key])
        return Signed(transaction.id, info.irreversible_block + 1, transaction.expiration, body)

    def cosign(self, signed: Signed, chain_id: str) -> Signed:
        """Return a transaction of `sign` with the payer's signature; the same at every call.

        Raises
        ------
        PayerRefusedError, ContractError
            The service refused it.
        TransactionExpiredError
            It is too late for this transaction.
        PayerUnavailableError
            The service does not answer.
        """
        ours: str = signed.body["signatures"][0]
        request = {
            "chain_id": chain_id,
            "packed_trx": signed.body["packed_trx"],
            "signature": ours,
        }
        try:
            answer = self._call("/v1/payer/cosign", request)
        except PayerRefusedError as error:
            if error.code != "replay":
                self._terms = None  # they may have changed
                raise
            # It signed these very bytes before, and the answer was lost on the way.
            answer = self._call("/v1/payer/signature", {"transaction_id": signed.trx_id})
        try:
            signature = str(answer["signature"])
            if answer["transaction_id"] != signed.trx_id:
                raise ConfigError("a signature of another transaction")
            packed = bytes.fromhex(signed.body["packed_trx"])
            digest = Transaction.unpack(packed).signing_digest(chain_id)
            if recover_key(digest, signature) == recover_key(digest, ours):
                raise ConfigError("this device's own signature")
        except (KeyError, TypeError, ConfigError) as error:
            raise PayerUnavailableError(
                f"the payer at {self.url}: expected its signature of {signed.trx_id}, got {error}"
            ) from None
        return replace(signed, body={**signed.body, "signatures": [signature, ours]})

    def _call(self, path: str, document: Any) -> Any:
        """POST a document, with bounded tries; return the answer's document."""
        payload = json.dumps(document).encode()
        for left in reversed(range(TRIES_MAX)):
            try:
                return self._ask(path, payload)
            except PayerUnavailableError:
                if not left:
                    raise
                time.sleep(PAUSE_SEC)
        raise AssertionError("not reached")

    def _ask(self, path: str, payload: bytes) -> Any:
        try:
            status, raw = self._transport.post(
                self.url, path, payload, answer_bytes_max=ANSWER_BYTES_MAX
            )
            answer = json.loads(raw)
        except (NodeUnavailableError, NodeAnswerError, ValueError, RecursionError) as error:
            cause = "no JSON" if isinstance(error, (ValueError, RecursionError)) else str(error)
            raise PayerUnavailableError(
                f"the payer at {self.url} does not answer ({cause}): check the address, and ask "
                "the task's owner whether `gradledger owner payer run` is running; a device with "
                "CPU and NET of its own can leave payer= out"
            ) from None
        if status == 200:
            return answer
        try:
            code, text = str(answer["code"]), str(answer["message"])
        except (KeyError, TypeError):
            raise PayerUnavailableError(
                f"the payer at {self.url} answers HTTP {status} without a reason: is it one?"
            ) from None
        if status >= 500:
            raise PayerUnavailableError(f"the payer at {self.url} cannot now: {code}: {text}")
        if code == "expired":
            raise TransactionExpiredError(text)
        refusal = error_from_check(f"{code}: {text}")
        if type(refusal) is ContractError:  # no code of the contract's: one of the service's own
            raise PayerRefusedError(code, text)
        raise refusal


__all__ = ["ACTIONS", "PERMISSION", "Payer", "PayerTerms", "with_payer"]
