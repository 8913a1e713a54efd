"""Every error that gradledger raises, and what the caller should do about it.

GradledgerError
 +- ConfigError                    mend the call or the file
 +- ChainError
 |   +- NodeError                  the node did not do it
 |   |   +- NodeUnavailableError   try again, or give another endpoint
 |   |   |   +- NodeBusyError      it took too long there: try again later, or with less
 |   |   +- NodeAnswerError        the node's answer makes no sense: ask another node
 |   |   +- TransactionExpiredError   it can no longer happen: sign anew and send again
 |   |   +- IrreversibilityTimeout    not known yet: wait again
 |   |   +- PayerUnavailableError     the payer did not do it: try again, or ask the task's owner
 |   +- PayerRefusedError          it pays for no such transaction now; has `code` and `text`
 |   +- ContractError              a check of a contract said no; has `code` and `text`
 |       +- StaleVersionError      fetch the current round; has `current`
 |       +- RoundClosedError       too late, or too early: wait for the next phase
 |       +- RuleNotMetError        CSVES: train on better data
 |       +- BudgetShortError       the owner must deposit; has `missing`
 |       +- AlreadyDoneError       it happened before: nothing to do
 |       +- NotAllowedError        another account must do it
 |       +- BadFieldError          mend the field that it names
 +- StoreError
 |   +- StoreUnavailableError      try again
 |   +- BlobMissingError           nobody has it: wait, or give it up
 |   +- BlobCorruptError           the bytes are not those of the CID: ask another node
 |   +- BlobTooLargeError          it is over the caller's bound: give it up
 +- EnvelopeError                  the bytes are no valid envelope: give them up
 |   +- NotAReaderError            it is not sealed to this account
 +- CodecError                     the values or codes are outside the codec's range
 +- PaillierError                  a key, plaintext or ciphertext is outside its range
 |   +- KeyMismatchError           it was made under another key
 |   +- MasksShortError            make more masks ahead; has `missing`
 +- ModelError                     the bytes are no valid model or validation set
 +- ValidationSetError             the set was not drawn as committed: stay away from the round
 +- OutboxError                    free the disk, or stop the other process: nothing was sent
 +- PrivacyError                   the privacy promised does not hold, or is used up: stay away

Packages add leaves of their own below GradledgerError (`owner.errors`,
`gradledger.localnet.errors`).
"""

from __future__ import annotations

import re


class GradledgerError(Exception):
    """Base of every error that gradledger raises on purpose."""


class ConfigError(GradledgerError, ValueError):
    """The caller gave something that cannot be used; the message names what was expected."""


class ChainError(GradledgerError):
    """Something between this party and the chain went wrong."""


class NodeError(ChainError):
    """The node did not do what was asked."""


class NodeUnavailableError(NodeError):
    """No endpoint answered within the bounds."""


class NodeBusyError(NodeUnavailableError):
    """A node broke the transaction off, for want of time; no other one took it."""


class NodeAnswerError(NodeError):
    """The node answered with something that cannot be its answer, or refused the request."""


class TransactionExpiredError(NodeError):
    """The transaction expired without being in an irreversible block."""


class IrreversibilityTimeout(NodeError):
    """The transaction did not become irreversible within the bound; it still may."""


class PayerUnavailableError(NodeError):
    """The payer's service did not answer within the bounds, or not as one."""


class PayerRefusedError(ChainError):
    """The payer's service understood the transaction and does not pay for it.

    Attributes
    ----------
    code, text : str
        The service's reason.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class ContractError(ChainError):
    """A contract's check refused the action.

    Attributes
    ----------
    code : str
        The word before the colon of the contract's message; "" when the message has none.
    text : str
        The rest of the message.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}" if code else text)
        self.code = code
        self.text = text


class StaleVersionError(ContractError):
    """The upload is for an older round. `current` is the task's version, if it was named."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        found = re.search(r"current version is (\d{1,10})\b", text)
        self.current: int | None = int(found.group(1)) if found else None


class RoundClosedError(ContractError):
    """The round is not in the phase that the action needs."""


class RuleNotMetError(ContractError):
    """The validation errors do not meet the round's CSVES rule."""


class BudgetShortError(ContractError):
    """The escrow cannot cover it. `missing` is the amount as the contract wrote it."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        found = re.search(r"short by (\d+(?:\.\d+)? [A-Z]{1,7})", text)
        self.missing: str | None = found.group(1) if found else None


class AlreadyDoneError(ContractError):
    """What the action asks for happened before."""


class NotAllowedError(ContractError):
    """The account may not do this."""


class BadFieldError(ContractError):
    """A field of the action is outside its range or has the wrong form."""


_CODES: dict[type[ContractError], tuple[str, ...]] = {
    StaleVersionError: ("stale_version",),
    RoundClosedError: (
        "round_not_open",
        "round_open",
        "round_not_closed",
        "deadline_passed",
        "deadline_not_passed",
        "future_version",
        "wrong_version",
        "not_summing",
        "not_summed",
        "not_drawing",
        "not_auditing",
        "not_revealed",
        "lots_missing",
        "uploads_begun",
    ),
    RuleNotMetError: (
        "csves_trend",
        "csves_threshold",
        "csves_either",
        "csves_both",
        "csves_gain",
    ),
    BudgetShortError: ("budget_short",),
    AlreadyDoneError: (
        "task_exists",
        "already_member",
        "second_upload",
        "already_revealed",
        "already_opened",
        "already_committed",
        "already_attested",
        "already_uploaded",
        "already_decided",
    ),
    NotAllowedError: (
        "not_a_member",
        "not_joined",
        "owner_cannot_upload",
        "wrong_role",
        "not_a_validator",
        "internal_only",
        "fake_token",
        "reserved_money",
        "barred",
    ),
    BadFieldError: (
        "unknown_task",
        "bad_parameter",
        "bad_cost",
        "empty_hash",
        "short_hash",
        "repeated_hash",
        "bad_cid",
        "no_errors",
        "too_many_errors",
        "error_out_of_range",
        "unknown_upload",
        "not_drawn",
        "not_opened",
        "no_lots",
        "wrong_lot",
        "bad_verdict",
        "wrong_symbol",
        "not_positive",
        "overflow",
        "limit_exceeded",
    ),
}
_CLASS_OF_CODE = {code: cls for cls, codes in _CODES.items() for code in codes}
_CHECK_MESSAGE = re.compile(r"([a-z][a-z0-9_]{1,31}): (.*)", re.DOTALL)


def error_from_check(message: str) -> ContractError:
    """Return the error for a contract's check message.

    Parameters
    ----------
    message : str
        ``code: text``, or any text of another contract.

    Returns
    -------
    ContractError
        Of the subclass that its code belongs to; plain when the code is unknown.
    """
    found = _CHECK_MESSAGE.fullmatch(message)
    if not found:
        return ContractError("", message)
    code, text = found.groups()
    return _CLASS_OF_CODE.get(code, ContractError)(code, text)


class StoreError(GradledgerError):
    """Something between this party and IPFS went wrong."""


class StoreUnavailableError(StoreError):
    """The IPFS node did not answer within the bounds."""


class BlobMissingError(StoreError):
    """The IPFS node has no such content."""


class BlobCorruptError(StoreError):
    """The bytes are not those that the CID names."""


class BlobTooLargeError(StoreError):
    """The content is larger than the caller allows."""


class EnvelopeError(GradledgerError):
    """The bytes are not a valid envelope."""


class NotAReaderError(EnvelopeError):
    """The envelope is not sealed to this account, or not to this key."""


class CodecError(GradledgerError):
    """Values or codes are outside the codec's range."""


class PaillierError(GradledgerError):
    """A key, a plaintext or a ciphertext is outside its range."""


class KeyMismatchError(PaillierError):
    """It was made under another public key."""


class MasksShortError(PaillierError):
    """Fewer masks are ready than an update takes. `missing` is how many."""

    def __init__(self, text: str, *, missing: int) -> None:
        super().__init__(text)
        self.missing = missing


class ModelError(GradledgerError):
    """The bytes are not a valid model or validation set."""


class ValidationSetError(GradledgerError):
    """A validation set is not what was committed and drawn, or none can be drawn."""


class PrivacyError(GradledgerError):
    """A task's claim about privacy does not hold, is weaker than asked for, or is used up."""


class OutboxError(GradledgerError):
    """The outbox is another process's, or cannot be written: what it does not hold is not sent."""
