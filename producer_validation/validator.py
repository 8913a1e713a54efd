"""The validator: follows the chain, judges uploads, attests, sums, pushes rounds on.

Each `step` is one pass over what the chain says now; nothing is remembered that the chain or IPFS
could not tell again, so a validator may be killed and started at any point.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from os import PathLike

from gradledger import envelope
from gradledger.card import TaskCard, fetch_card, task_codec
from gradledger.chain.client import ChainClient
from gradledger.chain.contract import (
    FedLearning,
    Member,
    Mode,
    Role,
    Round,
    RoundState,
    Task,
    UploadState,
    Verdict,
    VerdictCode,
)
from gradledger.chain.keys import PrivateKey, load_key_file
from gradledger.chain.transaction import Action
from gradledger.codec import Codec
from gradledger.errors import (
    AlreadyDoneError,
    BlobCorruptError,
    BlobTooLargeError,
    ConfigError,
    ContractError,
    EnvelopeError,
    GradledgerError,
    ModelError,
    PaillierError,
    RoundClosedError,
    StoreError,
)
from gradledger.models import Model
from gradledger.paillier import PaillierPublicKey, sum_payload
from gradledger.store import Store
from producer_validation.checks import Evaluation, Facts, Judgement, blob_bytes_max, judge

ATTEST_BATCH = 50  # verdicts in one transaction; the contract takes more
UPLOADS_PER_STEP = 500
CACHE_BYTES_MAX = 64 * 2**20
OWNER_FIRST_SEC = 5  # after a deadline the owner has so long before a validator pushes
PATIENCE_SHARE = 0.7  # of verdict_sec; then a blob that nobody has is unavailable
PUSH_LIMIT = 100
BACKOFF_SEC_MAX = 10.0
MODEL_BYTES_EXTRA = 2**20 + envelope.READERS_MAX * envelope.READER_BYTES

log = logging.getLogger("gradledger.validator")


@dataclass(frozen=True)
class _Context:
    """What a task fixes, fetched once."""

    task: str
    card: TaskCard
    codec: Codec
    key: PaillierPublicKey | None
    bytes_max: int


class _Payloads:
    """The newest opened payloads, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._bytes, self._bytes_max = 0, bytes_max

    def get(self, hash_: bytes) -> bytes | None:
        return self._held.get(hash_)

    def put(self, hash_: bytes, payload: bytes) -> None:
        if hash_ in self._held or len(payload) > self._bytes_max:
            return
        self._held[hash_] = payload
        self._bytes += len(payload)
        while self._bytes > self._bytes_max:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= len(dropped)


class Validator:
    """One validator account, for one task or for all that admitted it.

    Parameters
    ----------
    account : str
    key : PrivateKey or path of a key file
    chain : ChainClient or endpoints
    store : Store or address
    tasks : sequence of str, optional
        Serve these. None: every task of the contract that admitted the account.
    contract : str
        Account of the contract.
    executor : concurrent.futures.Executor, optional
        Where uploads are checked and ciphertexts multiplied; None: here.

    Raises
    ------
    ConfigError
        The key file is another account's.
    """

    def __init__(
        self,
        account: str,
        key: PrivateKey | str | PathLike[str],
        chain: ChainClient | str | Sequence[str],
        store: Store | str,
        *,
        tasks: Iterable[str] | None = None,
        contract: str = "fedlearning",
        executor: Executor | None = None,
    ) -> None:
        if not isinstance(key, PrivateKey):
            holder, key = load_key_file(key)
            if holder != account:
                raise ConfigError(f"expected the key file of {account}, it is {holder}'s")
        self.account = account
        self.chain = chain if isinstance(chain, ChainClient) else ChainClient(chain)
        self.store = store if isinstance(store, Store) else Store(store)
        self.contract = FedLearning(self.chain, contract)
        self._key = key
        self._secret = key.encryption_key()
        self._tasks = None if tasks is None else tuple(tasks)
        self._executor = executor
        self._contexts: dict[str, _Context] = {}
        self._joined: set[str] = set()
        self._payloads = _Payloads(CACHE_BYTES_MAX)
        self._first_seen: dict[tuple[str, int, bytes], str] = {}
        self._models: OrderedDict[bytes, Model] = OrderedDict()

    def __repr__(self) -> str:
        return f"Validator({self.account})"

    def run(self, stop: threading.Event, *, poll_sec: float = 0.25) -> None:
        """Step until `stop` is set. Faults of the network are waited out, ever longer."""
        pause = poll_sec
        while not stop.is_set():
            try:
                busy = self.step()
                pause = poll_sec
                if busy:
                    continue
            except GradledgerError as error:
                log.warning("event=fault validator=%s error=%s", self.account, error)
                pause = min(2 * pause, BACKOFF_SEC_MAX)
            stop.wait(pause)

    def step(self) -> int:
        """Do what is to be done now, once.

        Returns
        -------
        int
            Transactions sent; 0 when there was nothing to do.
        """
        sent = 0
        if self._tasks is None:
            tasks = self.contract.tasks()
        else:
            tasks = [self.contract.task(task) for task in self._tasks]
        for task in tasks:
            try:
                if self._serves(task):
                    sent += self._serve(task)
            except (EnvelopeError, PaillierError, ModelError, StoreError, ContractError) as error:
                # One task's owner can break that task, and no other.
                log.warning("event=fault task=%s error=%s", task.id, error)
        return sent

    # ---- membership -------------------------------------------------------------------------

    def _serves(self, task: Task) -> bool:
        if task.id in self._joined:
            return True
        member = self.contract.member(task.id, self.account)
        if member is None or member.role is not Role.VALIDATOR:
            return False
        public = envelope.public_key_of(self._secret)
        if not member.joined or member.enc_key != public:
            self._push([self.contract.join(task.id, self.account, public, 0)])
            log.info("event=joined task=%s validator=%s", task.id, self.account)
        self._joined.add(task.id)
        return True

    def _context(self, task: Task) -> _Context:
        if task.id not in self._contexts:
            card = fetch_card(self.store, task)
            codec = task_codec(task)
            key = None
            if task.terms.mode is Mode.PAILLIER:
                key = card.public_key()
                if key.key_hash != task.terms.key_hash:
                    raise EnvelopeError(f"task {task.id}: the card's key is not that of the terms")
            bytes_max = blob_bytes_max(task, codec, key)
            self._contexts[task.id] = _Context(task.id, card, codec, key, bytes_max)
        return self._contexts[task.id]

    # ---- one task ---------------------------------------------------------------------------

    def _serve(self, task: Task) -> int:
        now = self.contract.round(task.id, task.version) if task.version else None
        if now is None or now.state is RoundState.SETTLED:
            self._forget(task.id)
            return 0
        sent = 0
        if self.account in now.validators:
            if now.state in (RoundState.OPEN, RoundState.VERIFYING) and now.pending:
                sent += self._judge_pending(task, now)
            elif now.state is RoundState.SUMMING:
                sent += self._attest_sum(task, now)
        return sent + self._push_on(task, now)

    def _judge_pending(self, task: Task, now: Round) -> int:
        mine = now.validators.index(self.account)
        pending = [
            member
            for member in self.contract.members(task.id)
            if member.upload_version == now.version
            and member.upload_state is UploadState.PENDING
            and member.verdicts[mine] == VerdictCode.NONE
        ][:UPLOADS_PER_STEP]
        if not pending:
            return 0
        context = self._context(task)
        verdicts = []
        for member, judgement in self._judgements(task, now, context, pending):
            if judgement is None:
                continue
            if judgement.code is VerdictCode.ACCEPT:
                self._payloads.put(member.upload_hash, judgement.payload)
                log.info(
                    "event=accepted task=%s version=%d sender=%s",
                    task.id,
                    now.version,
                    member.account,
                )
            else:
                log.warning(
                    "event=refused task=%s version=%d sender=%s code=%s reason=%r",
                    *(task.id, now.version, member.account),
                    *(judgement.code.name.lower(), judgement.reason),
                )
            verdicts.append(Verdict(hash=member.upload_hash, code=judgement.code))
        return self._attest(task, now, verdicts)

    def _judgements(
        self, task: Task, now: Round, context: _Context, pending: Sequence[Member]
    ) -> Iterator[tuple[Member, Judgement | None]]:
        """Fetch and judge uploads; None: nothing to say yet."""
        waiting = []
        for member in pending:
            blob = self._fetch(task, now, context, member)
            if isinstance(blob, Judgement) or blob is None:
                yield member, blob
                continue
            evaluation = None
            if context.key is None:
                evaluation = self._evaluation(task, now, context, member)
                if evaluation is None:
                    continue
            facts = Facts(
                *(task, now, member, context.key, context.codec, self.account, self._secret),
                evaluation,
            )
            if self._executor is None:
                yield member, self._once(task, now, member, judge(facts, blob))
            else:
                waiting.append((member, self._executor.submit(judge, facts, blob)))
        for member, future in waiting:
            yield member, self._once(task, now, member, future.result())

    def _once(self, task: Task, now: Round, member: Member, judgement: Judgement) -> Judgement:
        """Refuse a payload that another device of the round sent; the first one seen stands.

        Without its key nobody can open another device's envelope, so equal payloads mean collusion
        (or, in sealed mode, equal data): validators that see them in another order may disagree,
        and then neither is accepted.
        """
        if judgement.code is not VerdictCode.ACCEPT:
            return judgement
        place = (task.id, now.version, hashlib.sha256(judgement.payload).digest())
        first = self._first_seen.setdefault(place, member.account)
        if first == member.account:
            return judgement
        return Judgement(VerdictCode.DUPLICATE, f"the same update as {first}'s")

    def _fetch(
        self, task: Task, now: Round, context: _Context, member: Member
    ) -> bytes | Judgement | None:
        """Return the bytes, or a verdict that there are none, or None: try again later."""
        try:
            return self.store.get(member.upload_cid, bytes_max=context.bytes_max)
        except BlobTooLargeError as error:
            return Judgement(VerdictCode.MALFORMED, str(error))
        except StoreError as error:
            patience = now.verdict_deadline - (1 - PATIENCE_SHARE) * now.verdict_sec
            late = now.state is RoundState.VERIFYING and self._time() >= patience
            if late:
                return Judgement(VerdictCode.UNAVAILABLE, str(error))
            kind = "corrupt" if isinstance(error, BlobCorruptError) else "missing"
            log.info(
                "event=%s task=%s version=%d sender=%s reason=%r",
                *(kind, task.id, now.version, member.account, str(error)),
            )
            return None

    def _attest(self, task: Task, now: Round, verdicts: Sequence[Verdict]) -> int:
        sent = 0
        for first in range(0, len(verdicts), ATTEST_BATCH):
            batch = verdicts[first : first + ATTEST_BATCH]
            action = self.contract.attest(task.id, now.version, self.account, batch)
            try:
                self._push([action])
                sent += 1
            except RoundClosedError as error:
                log.info("event=late task=%s version=%d reason=%s", task.id, now.version, error)
                return sent
            except ContractError as error:
                if len(batch) == 1:
                    log.warning(
                        "event=not_attested task=%s version=%d hash=%s reason=%s",
                        *(task.id, now.version, batch[0].hash.hex(), error),
                    )
                    continue
                # One upload of the batch cannot be decided now: the others must not wait for it.
                sent += sum(self._attest(task, now, [verdict]) for verdict in batch)
        return sent

    # ---- sealed mode ------------------------------------------------------------------------

    def _evaluation(
        self, task: Task, now: Round, context: _Context, member: Member
    ) -> Evaluation | None:
        """Return model and validation set; None when they cannot be had (yet)."""
        try:
            return Evaluation(self._model(now, context), self._validation_set(now, member))
        except (StoreError, EnvelopeError, ModelError) as error:
            log.info(
                "event=not_evaluated task=%s version=%d sender=%s reason=%r",
                *(task.id, now.version, member.account, str(error)),
            )
            return None

    def _model(self, now: Round, context: _Context) -> Model:
        if now.model_hash not in self._models:
            bytes_max = 4 * context.codec.parameters + MODEL_BYTES_EXTRA
            payload = self._open(now.model_cid, now.model_hash, bytes_max)
            self._models[now.model_hash] = Model.from_bytes(payload)
            while len(self._models) > 2:
                self._models.popitem(last=False)
        return self._models[now.model_hash]

    def _validation_set(self, now: Round, member: Member) -> bytes:
        if member.set_version != now.version:
            raise EnvelopeError(f"no validation set was issued to {member.account} for this round")
        return self._open(member.set_cid, member.set_hash, 64 * 2**20)

    def _open(self, cid: str, hash_: bytes, bytes_max: int) -> bytes:
        blob = self.store.get(cid, bytes_max=bytes_max)
        if hashlib.sha256(blob).digest() != hash_:
            raise EnvelopeError("the bytes are not those of the recorded hash")
        return envelope.parse(blob).open(self.account, self._secret)

    # ---- the sum ----------------------------------------------------------------------------

    def _attest_sum(self, task: Task, now: Round) -> int:
        mine = now.validators.index(self.account)
        if any(now.sums[mine].hash):
            return 0
        context = self._context(task)
        if context.key is None:
            return 0
        accepted = [
            member
            for member in self.contract.members(task.id)
            if member.upload_version == now.version
            and member.upload_state is UploadState.PAID
            and member.upload_reason is VerdictCode.ACCEPT
        ]
        payloads = (self._payload(task, now, context, member) for member in accepted)
        ciphertexts = context.key.add(payloads, context.codec)
        total = sum_payload(now.version, len(accepted), ciphertexts)
        header = envelope.Header(
            kind=envelope.Kind.SUM,
            codec=envelope.PayloadCodec.PAILLIER,
            task=task.id,
            sender=self.account,
            version=now.version,
            parameters=context.codec.parameters,
            slot_bits=context.codec.slot_bits,
            clip_e6=context.codec.clip_e6,
            examples=len(accepted),
            key_hash=task.terms.key_hash,
        )
        blob = envelope.seal(header, total, {task.owner: context.card.owner_enc_key})
        cid = self.store.put(blob)
        digest = hashlib.sha256(total).digest()
        try:
            self._push([self.contract.attestsum(task.id, now.version, self.account, digest, cid)])
        except (AlreadyDoneError, RoundClosedError):
            return 0  # the quorum was faster
        log.info(
            "event=summed task=%s version=%d updates=%d hash=%s",
            *(task.id, now.version, len(accepted), digest.hex()),
        )
        return 1

    def _payload(self, task: Task, now: Round, context: _Context, member: Member) -> bytes:
        """Return an accepted upload's ciphertexts, from memory or IPFS."""
        held = self._payloads.get(member.upload_hash)
        if held is not None:
            return held
        blob = self.store.get(member.upload_cid, bytes_max=context.bytes_max)
        facts = Facts(task, now, member, context.key, context.codec, self.account, self._secret)
        judgement = judge(facts, blob)
        if judgement.code is not VerdictCode.ACCEPT:
            raise EnvelopeError(
                f"{member.account}'s accepted upload cannot be summed: {judgement.reason}"
            )
        return judgement.payload

    # ---- pushing on -------------------------------------------------------------------------

    def _push_on(self, task: Task, now: Round) -> int:
        """Do what anyone may once a deadline has passed, a little after the owner could have."""
        deadline, action = self._overdue(task, now)
        if action is None or self._time() < deadline + OWNER_FIRST_SEC:
            return 0
        try:
            self._push([action])
        except (RoundClosedError, AlreadyDoneError):
            return 0  # somebody else pushed
        log.info(
            "event=pushed task=%s version=%d state=%s", task.id, now.version, now.state.name.lower()
        )
        return 1

    def _overdue(self, task: Task, now: Round) -> tuple[int, Action | None]:
        if now.state is RoundState.OPEN:
            return now.deadline, self.contract.closeround(task.id, self.account, now.version)
        if now.state is RoundState.VERIFYING:
            return now.verdict_deadline, self._pushing(task, now)
        if now.state is RoundState.SUMMING:
            return now.sum_deadline, self._pushing(task, now)
        if now.state is RoundState.SUMMED:
            return now.sum_deadline, self.contract.settle(
                task.id, self.account, now.version, PUSH_LIMIT
            )
        return 0, None

    def _pushing(self, task: Task, now: Round) -> Action:
        return self.contract.push(task.id, self.account, now.version, PUSH_LIMIT)

    def _time(self) -> int:
        return self.chain.get_info().head_time

    def _push(self, actions: Sequence[Action]) -> None:
        # The same action again within a second must not be the same transaction.
        self.chain.push(actions, [self._key], expiration_sec=30 + time.monotonic_ns() % 30)

    def _forget(self, task: str) -> None:
        """Drop what was kept for a settled round."""
        for place in [place for place in self._first_seen if place[0] == task]:
            del self._first_seen[place]
