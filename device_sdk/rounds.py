"""One round as a device sees it: train, upload."""

from __future__ import annotations

import hashlib
import operator
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from device_sdk.receipts import ENVELOPE, OPENING, Receipt
from gradledger import card as cards
from gradledger import envelope
from gradledger.chain.contract import ERROR_SCALE, Mode, Rule, Task
from gradledger.chain.contract import Round as RoundRow
from gradledger.chain.names import Asset
from gradledger.cid import cid_v0
from gradledger.errors import (
    AlreadyDoneError,
    BadFieldError,
    ConfigError,
    NodeError,
    PrivacyError,
    error_from_check,
)
from gradledger.outbox import Entry, State

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
    _opening: bytes = field(default=b"", repr=False)  # what an audit asks for; as secret as `delta`
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
    verdict_sec : int
        How long the validators have for their verdicts after the round was closed and its CIDs
        were revealed; an upload without a quorum then gets what the task's `silence` says.
    close_after : int
        The owner may close the round early once so many uploads are in; 0: never.
    reveal_sec : int
        More than 0: so long after the round was closed the device has time to reveal where the
        update lies, which `Receipt.wait` does; 0: the upload says it.
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
        self.verdict_sec = row.verdict_sec
        self.close_after = row.close_after
        self.reveal_sec = row.reveal_sec
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
        self._row = row
        self._content: tuple[Model, tuple[FloatArray, IntArray]] | None = (model, validation)

    def __repr__(self) -> str:
        until = datetime.fromtimestamp(self.deadline, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        model = self._content[0] if self._content else None
        return (
            f"Round(version={self.version}, model={model}, deadline={until}, "
            f"price={self.price} per example, verdict_sec={self.verdict_sec}, "
            f"close_after={self.close_after})"
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
        In `sealed` mode, and in an audit, the validators measure the errors again, of the received
        model and of the update as it arrives: so the first error is measured here again, and the
        last on the clipped and quantised update; under the rule gain the last but one as well.

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
        if terms.mode is Mode.SEALED or terms.lot_e6:
            codec = cards.task_codec(self._task)
            arrived = self._arrived(codec.dequantise(codec.quantise(delta)))
            errors[0] = self.recipe.measure(model, validation)
            ending = self._ending(arrived)[-len(errors) :]
            errors[-len(ending) :] = ending
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
            errors += self._ending(self._arrived(delta))
            errors = errors[-self._task.terms.errors_max :]
        return Update(self.version, delta, tuple(errors), examples, _is_protected=True)

    def _arrived(self, delta: FloatArray) -> Model:
        """Return the received model plus an update as others will have it."""
        return self.model.with_vector(self.model.vector + delta)

    def _ending(self, arrived: Model) -> list[int]:
        """Return the end of the series: what is measured of the trained model."""
        validation = self.validation
        error = self.recipe.measure(arrived, validation)
        return [error, *self.recipe.closing(arrived, validation)]

    def upload(self, update: Update) -> Receipt:
        """Encrypt, seal, store and record an update.

        May be repeated with the same update after an error: it is recorded once. It is sent for the
        round in which it was trained; the chain alone decides whether that round still takes it.
        In a round with `reveal_sec` the update stays here, until the round is closed. If another
        member has recorded the hash of its envelope before, it is sealed anew, once in a call.

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
        BadFieldError
            Code `repeated_hash`: another member recorded the second envelope's hash as well.
        MasksShortError
            As for `seal`.
        ConfigError
            The task audits, and the device's `Encryption` cannot be repeated from a seed.
        PayerRefusedError
            The payer does not pay for it, for instance because its limits are used up.
        ChainError, StoreError
            Node or store do not answer; try again.
        OutboxError
            The outbox cannot be written, for instance since the disk is full: nothing was sent.
        """
        try:
            return self._sent(update)
        except BadFieldError as error:
            if error.code != "repeated_hash":
                raise
            # A member saw it and recorded the same hash first: another envelope has another one.
            update._blob = None
        return self._sent(update)

    def _sent(self, update: Update) -> Receipt:
        if update._blob is None:
            update._blob, update._opening = self._seal(update)
        receipt = self._device.receipt(self._written_down(update, update._blob))
        for left in reversed(range(UPLOAD_TRIES_MAX)):
            try:
                receipt.send()
                break
            except NodeError:
                if not left:
                    raise
                time.sleep(RETRY_SEC)
        return receipt

    def _written_down(self, update: Update, blob: bytes) -> Entry:
        """Return the update's entry in the outbox, made where there is none."""
        device, digest = self._device, hashlib.sha256(blob)
        for entry in device.box.entries():
            if entry.details["version"] != update.version or "hash" not in entry.details:
                continue
            if entry.details["hash"] == digest.hexdigest():
                if entry.state is not State.ABANDONED:
                    return entry
                if device.outbox is None:  # the chain alone says whether it is too late
                    continue
                raise error_from_check(entry.reason)
            taken = entry.state is State.DONE or (
                entry.state is State.PENDING and not entry.refusal
            )
            if taken and device.outbox is not None:  # without a file the chain alone says so
                raise AlreadyDoneError(
                    "second_upload",
                    f"the outbox has another update for round {update.version}: resume that one",
                )
        keep = {ENVELOPE: blob} if self.reveal_sec else {}
        if self._task.terms.lot_e6:
            keep[OPENING] = update._opening
        amount = Asset(update.examples * self.price.amount, self.price.symbol)
        action = device.contract.fedlearning(
            device.task,
            device.account,
            update.version,
            digest.digest(),
            "" if self.reveal_sec else cid_v0(blob),
            update.examples,
            update.errors,
        )
        return device.box.add(
            f"the upload of {device.account} for round {update.version}",
            [action],
            give_up_at=self.deadline + GRACE_SEC,
            blob=b"" if self.reveal_sec else blob,
            keep=keep,
            details={
                "version": update.version,
                "hash": digest.hexdigest(),
                "amount": amount.amount,
                "symbol": str(amount.symbol),
                "validators": len(self._row.validators),
                "examples": update.examples,
                "errors": list(update.errors),
                "lots": bool(self._task.terms.lot_e6),
            },
        )

    def seal(self, update: Update) -> bytes:
        """Clip, quantise, encrypt and seal an update to those who may read it.

        Returns
        -------
        bytes
            The envelope that `upload` stores and records; for devices that do this themselves. In a
            task with audits it cannot be opened afterwards: its seed is not kept.

        Raises
        ------
        PrivacyError
            The task has differential privacy, and the update does not come from `train`.
        MasksShortError
            Fewer masks are ready than the update takes: see `Device.make_masks`.
        ConfigError
            The task audits, and the device's `Encryption` cannot be repeated from a seed.
        """
        return self._seal(update)[0]

    def _seal(self, update: Update) -> tuple[bytes, bytes]:
        """Return the envelope, and the opening for an audit; b"" where the task has none."""
        device, terms = self._device, self._task.terms
        if self._card.privacy is not None and not update._is_protected:
            raise PrivacyError("expected an update made by `train`, which adds the task's noise")
        codec = cards.task_codec(self._task)
        codes = codec.quantise(update.delta)
        header: dict[str, Any] = {}
        opening = b""
        if terms.mode is Mode.PAILLIER:
            key = self._card.public_key()  # `Device.card` has checked its hash
            header = {
                "codec": envelope.PayloadCodec.PAILLIER,
                "slot_bits": terms.slot_bits,
                "key_hash": key.key_hash,
            }
            seed = None
            if terms.lot_e6:
                from gradledger.opening import pack_opening

                seed = secrets.token_bytes(envelope.OPENING_SEED_BYTES)
                opening = pack_opening(seed, codes, codec)
            payload = key.encrypt(codes, codec, **device.encryption.options(key, seed))
        else:
            header = {"codec": envelope.PayloadCodec.QUANTISED}
            payload = codec.to_bytes(codes)
        blob = envelope.seal(
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
        return blob, opening

    def _readers(self) -> dict[str, bytes]:
        """Return the X25519 keys of the round's validators and, in sealed mode, of the owner."""
        readers = self._device.readers(self._row)
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
