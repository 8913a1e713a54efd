"""One round as a device sees it: train, upload."""

from __future__ import annotations

import hashlib
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from device_sdk.receipts import Receipt
from gradledger import card as cards
from gradledger import envelope
from gradledger.chain.contract import ERROR_SCALE, Mode, Rule, Task
from gradledger.chain.contract import Round as RoundRow
from gradledger.chain.names import Asset
from gradledger.chain.transaction import Action
from gradledger.cid import cid_v0
from gradledger.errors import (
    AlreadyDoneError,
    ConfigError,
    EnvelopeError,
    NodeError,
    PrivacyError,
    error_from_check,
)
from gradledger.outbox import Entry, Outbox, State

if TYPE_CHECKING:
    from device_sdk.device import Device
    from device_sdk.training import TrainingRecipe
    from gradledger.models import FloatArray, IntArray, Model
    from gradledger.privacy import Privacy

    Fit = Callable[
        [Model, tuple[FloatArray, IntArray]],
        tuple[Model, Sequence[SupportsIndex | SupportsFloat]],
    ]

__all__ = ["Round", "Update"]

UPLOAD_TRIES_MAX = 3
RETRY_SEC = 0.5
GRACE_SEC = 3600  # after the deadline: a chain that lost the round may open it anew


@dataclass(eq=False)
class Update:
    """What a training gave, on its way to the owner.

    Attributes
    ----------
    version : int
        The round whose model was trained.
    delta : array of float32, shape (parameters,)
        Trained minus received; in a task with differential privacy what will be uploaded, clipped,
        with its noise and quantised.
    errors : tuple of int
        Validation errors, 1e-6 units.
    examples : int
        Data cost.
    """

    version: int
    delta: FloatArray = field(repr=False)
    errors: tuple[int, ...]
    examples: int
    _blob: bytes | None = field(default=None, repr=False)
    _is_protected: bool = field(default=False, repr=False)


class Round:
    """An open round. Made by `Device.round`.

    Attributes
    ----------
    version : int
    deadline : int
        Of uploads, on the chain's clock, in seconds since 1970.
    price : Asset
        Per example.
    rule : Rule
    tau_e6 : int
        Threshold of the rule, 1e-6 units.
    recipe : TrainingRecipe
        How the owner wants the training done; the helpers follow it.
    """

    def __init__(
        self,
        device: Device,
        task: Task,
        card: cards.TaskCard,
        row: RoundRow,
        model: Model,
        validation: tuple[FloatArray, IntArray],
    ) -> None:
        from device_sdk.training import TrainingRecipe

        self.version = row.version
        self.deadline = row.deadline
        self.price = Asset(row.price, task.terms.token_symbol)
        self.rule: Rule = row.rule
        self.tau_e6 = row.tau
        training = row.training
        self.recipe: TrainingRecipe = TrainingRecipe(
            version=row.version,
            epochs=training.epochs,
            batch_size=training.batch_size,
            rate_e6=training.rate_e6,
            measures=training.measures,
            seed=training.seed,
            rule=row.rule,
        )
        self._device = device
        self._task = task
        self._card = card
        self._validators = row.validators
        self._content: tuple[Model, tuple[FloatArray, IntArray]] | None = (model, validation)

    def __repr__(self) -> str:
        until = datetime.fromtimestamp(self.deadline, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        model = self._content[0] if self._content else None
        return (
            f"Round(version={self.version}, model={model}, deadline={until}, "
            f"price={self.price} per example)"
        )

    def __enter__(self) -> Round:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the model and the validation set; an update may still be uploaded."""
        self._content = None

    @property
    def model(self) -> Model:
        """The received model, T_(version-1)."""
        return self._here()[0]

    @property
    def validation(self) -> tuple[FloatArray, IntArray]:
        """The validation set issued to this device: x [m, features] and y [m]."""
        return self._here()[1]

    def _here(self) -> tuple[Model, tuple[FloatArray, IntArray]]:
        if self._content is None:
            raise ConfigError(f"round {self.version} was left: its model is not kept")
        return self._content

    def train(self, fit: Fit, *, examples: int) -> Update:
        """Train and take the difference.

        Parameters
        ----------
        fit : callable
            `fit(model, validation) -> (trained, errors)`. `trained` is a `Model` of the same
            architecture (`model.with_arrays(...)`); `errors` are the validation errors in the order
            measured, as integers in 1e-6 units (`model.error_micro`) or as floats from 0 to 1.
            Under the rule gain: the doubts (`model.doubt_micro`), that of the received model first,
            and behind them the trained model's share of wrong answers.
        examples : int
            Data cost: how many examples `fit` trained on.

        Returns
        -------
        Update

        Raises
        ------
        ConfigError
            `fit` returned something else, or `examples` is more than the task allows.
        PrivacyError
            The task has differential privacy, and this device has drawn noise for this round
            before, or for as many rounds as its budget is for.

        Notes
        -----
        In `sealed` mode the validators measure the error again, on the update as it arrives: so the
        last error is measured here on the clipped and quantised update.

        Under differential privacy the errors go on chain and must tell no more than the update
        does: those that `fit` measured are dropped. The first is that of the received model, the
        last that of the received model plus the update as it arrives, with its noise; a task may
        do without the last.
        """
        model, validation = self._here()
        terms = self._task.terms
        if isinstance(examples, bool) or not 1 <= operator.index(examples) <= terms.cost_max:
            raise ConfigError(f"examples: expected 1 to {terms.cost_max}, got {examples}")
        trained, measured = fit(model, validation)
        if getattr(trained, "architecture", None) != model.architecture:
            raise ConfigError("fit: expected a Model of the round's architecture first")
        errors = [_error_micro(error) for error in measured]
        if not 1 <= len(errors) <= terms.errors_max:
            raise ConfigError(f"fit: expected 1 to {terms.errors_max} errors, got {len(errors)}")
        examples = operator.index(examples)
        if self._card.privacy is not None:
            return self._protect(self._card.privacy, trained, examples)
        delta = trained.vector - model.vector
        if terms.mode is Mode.SEALED:
            codec = cards.task_codec(self._task)
            arrived = self._arrived(codec.dequantise(codec.quantise(delta)))
            errors[-1] = arrived.error_micro(*validation)
        return Update(self.version, delta, tuple(errors), examples)

    def _protect(self, privacy: Privacy, trained: Model, examples: int) -> Update:
        """Clip, add noise, quantise; whatever leaves here follows from the result."""
        model, validation = self._here()
        codec = cards.task_codec(self._task)
        difference = trained.vector.astype("f8") - model.vector
        self._device.budget.charge(self.version, privacy)
        delta = codec.dequantise(codec.quantise(privacy.protect(difference)))
        errors = [self.recipe.measure(model, validation)]
        if privacy.update_error:
            arrived = self._arrived(delta)
            errors += [self.recipe.measure(arrived, validation)]
            errors += self.recipe.closing(arrived, validation)
            errors = errors[-self._task.terms.errors_max :]
        return Update(self.version, delta, tuple(errors), examples, _is_protected=True)

    def _arrived(self, delta: FloatArray) -> Model:
        """Return the received model plus an update as others will have it."""
        return self.model.with_vector(self.model.vector + delta)

    def upload(self, update: Update) -> Receipt:
        """Encrypt, seal, store and record an update.

        May be repeated with the same update after an error: it is recorded once. It is sent for the
        round in which it was trained; the chain alone decides whether that round still takes it.

        Parameters
        ----------
        update : Update
            From `train`.

        Returns
        -------
        Receipt
            The node has accepted it, which is not final: see `Receipt.wait`.

        Raises
        ------
        RoundClosedError, StaleVersionError
            Too late.
        RuleNotMetError
            The errors do not meet the round's rule.
        BudgetShortError
            The owner's escrow cannot pay for it.
        AlreadyDoneError
            Another update of this device is recorded for the round.
        PayerRefusedError
            The payer does not pay for it, for instance because its limits are used up.
        ChainError, StoreError
            Node or store do not answer; try again.
        OutboxError
            The outbox cannot be written, for instance since the disk is full: nothing was sent.
        """
        if update._blob is None:
            update._blob = self.seal(update)
        device, blob = self._device, update._blob
        digest = hashlib.sha256(blob).digest()
        amount = Asset(update.examples * self.price.amount, self.price.symbol)
        action = device.contract.fedlearning(
            device.task,
            device.account,
            update.version,
            digest,
            cid_v0(blob),
            update.examples,
            update.errors,
        )
        delivery = None
        if device.outbox is None:
            device.store.put(blob)
        else:
            delivery = device.delivery(self._written_down(device.outbox, update, action, amount))
        receipt = Receipt(
            device, update.version, digest, amount, len(self._validators), action, delivery
        )
        for left in reversed(range(UPLOAD_TRIES_MAX)):
            try:
                receipt.send()
                break
            except NodeError:
                if not left:
                    raise
                time.sleep(RETRY_SEC)
        return receipt

    def _written_down(self, outbox: Outbox, update: Update, action: Action, amount: Asset) -> Entry:
        """Return the update's entry in the outbox, made where there is none."""
        assert update._blob is not None
        digest = hashlib.sha256(update._blob).hexdigest()
        for entry in outbox.entries():
            if entry.details["version"] != update.version:
                continue
            if entry.details["hash"] == digest:
                if entry.state is State.ABANDONED:
                    raise error_from_check(entry.reason)
                return entry
            if entry.state is State.DONE or (entry.state is State.PENDING and not entry.refusal):
                raise AlreadyDoneError(
                    "second_upload",
                    f"the outbox has another update for round {update.version}: resume that one",
                )
        return outbox.add(
            f"the upload of {self._device.account} for round {update.version}",
            [action],
            give_up_at=self.deadline + GRACE_SEC,
            blob=update._blob,
            details={
                "version": update.version,
                "hash": digest,
                "amount": amount.amount,
                "symbol": str(amount.symbol),
                "validators": len(self._validators),
                "examples": update.examples,
                "errors": list(update.errors),
            },
        )

    def seal(self, update: Update) -> bytes:
        """Clip, quantise, encrypt and seal an update to those who may read it.

        Returns
        -------
        bytes
            The envelope that `upload` stores and records; for devices that do this themselves.

        Raises
        ------
        PrivacyError
            The task has differential privacy, and the update does not come from `train`.
        MasksShortError
            Fewer masks are ready than the update takes: see `Device.make_masks`.
        """
        device, terms = self._device, self._task.terms
        if self._card.privacy is not None and not update._is_protected:
            raise PrivacyError("expected an update made by `train`, which adds the task's noise")
        codec = cards.task_codec(self._task)
        header: dict[str, Any] = {}
        if terms.mode is Mode.PAILLIER:
            key = self._card.public_key()  # `Device.card` has checked its hash
            header = {
                "codec": envelope.PayloadCodec.PAILLIER,
                "slot_bits": terms.slot_bits,
                "key_hash": key.key_hash,
            }
            payload = key.encrypt(update.delta, codec, **device.encryption.options(key))
        else:
            header = {"codec": envelope.PayloadCodec.QUANTISED}
            payload = codec.to_bytes(codec.quantise(update.delta))
        return envelope.seal(
            envelope.Header(
                kind=envelope.Kind.UPDATE,
                task=device.task,
                sender=device.account,
                version=update.version,
                parameters=terms.parameters,
                clip_e6=terms.clip_e6,
                examples=update.examples,
                **header,
            ),
            payload,
            self._readers(),
        )

    def _readers(self) -> dict[str, bytes]:
        """Return the X25519 keys of the round's validators and, in sealed mode, of the owner."""
        device = self._device
        readers: dict[str, bytes] = {}
        for account in self._validators:
            member = device.contract.member(device.task, account)
            if member is not None and member.joined and envelope.can_seal_to(member.enc_key):
                readers[account] = member.enc_key
        if not readers:
            raise EnvelopeError(f"no validator of round {self.version} can be sealed to")
        if self._task.terms.mode is Mode.SEALED:
            readers[self._task.owner] = self._card.owner_enc_key
        return readers


def _error_micro(error: Any) -> int:
    """Return an error in 1e-6 units, given so or as a share."""
    try:
        value = operator.index(error)
    except TypeError:
        try:
            share = float(error)
        except (TypeError, ValueError):
            share = -1.0
        value = round(share * ERROR_SCALE) if 0.0 <= share <= 1.0 else -1
    if not 0 <= value <= ERROR_SCALE:
        raise ConfigError(f"fit: errors of 0 to {ERROR_SCALE} (1e-6 units) expected, got {error!r}")
    return value
