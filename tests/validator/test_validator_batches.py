"""How verdicts are sent, and on what they rest: the rows of one fork, looked at in full."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from judging import SECRETS, UPDATE, World, make_member, make_round

from gradledger.chain.contract import (
    Ballot,
    BallotStage,
    FedLearning,
    Member,
    RoundState,
    UploadState,
    VerdictCode,
    contract_abi,
)
from gradledger.chain.keys import PrivateKey
from gradledger.chain.transaction import Action
from gradledger.errors import (
    BadFieldError,
    ChainError,
    NodeAnswerError,
    NodeBusyError,
    NodeUnavailableError,
)
from gradledger.paillier import sum_payload
from producer_validation.checks import update_payload_bytes
from producer_validation.validator import (
    ATTEST_BATCH,
    StepReport,
    Validator,
    _key,
    _Pass,
    _Result,
    _RoundWork,
)

UPLOADS, LIMIT = 700, 90
PLACE = 1  # of val2
SLOW = NodeAnswerError("tx_cpu_usage_exceeded")
VOID = NodeUnavailableError("invalid_ref_block_exception")


def upload_hash(slot: int) -> bytes:
    return slot.to_bytes(32, "big")


class SlowChain(FedLearning):
    """A round of many uploads on a chain that takes few verdicts at a time."""

    def __init__(self, limit: int, refusal: ChainError) -> None:
        client: Any = SimpleNamespace(push=self.push, get_info=self.get_info)
        super().__init__(client)
        self.read_at, self.head = 0, 0  # blocks, of the members and of the head
        self.references: set[str | None] = set()
        self.codes: set[tuple[int, int]] = set()  # by slot
        self.limit, self.refusal, self.poison = limit, refusal, -1
        self.reads, self.asked = 0, 0
        self.landed: list[list[int]] = []
        self.rows = [  # the last to upload comes first by name
            make_member(
                f"phone{UPLOADS - slot:03}".translate(str.maketrans("06789", "abcde")),
                upload_slot=slot,
                upload_hash=upload_hash(slot),
                upload_cid="Qm",
            )
            for slot in reversed(range(UPLOADS))
        ]
        verdicts = [bytes([VerdictCode.ACCEPT]) + bytes(31)] * UPLOADS
        self.ballots_read = [
            Ballot(device="", hash=upload_hash(slot), stage=BallotStage.OPEN, verdicts=given)
            for slot, given in enumerate(verdicts)
        ]

    def get_info(self) -> Any:
        self.head += 1
        return SimpleNamespace(head_id=f"block {self.head}")

    def members(self, task: str) -> list[Member]:
        self.read_at = self.head
        return self.rows

    def ballots(self, task: str, uploads: int) -> list[Ballot]:
        self.reads += 1
        return self.ballots_read[:uploads]

    def judged(self, slot: int, **changes: Any) -> None:
        """Say that val2 has judged what has this slot."""
        fields = {**vars(self.ballots_read[slot]), "verdicts": b"\1\1" + bytes(30), **changes}
        self.ballots_read[slot] = Ballot(**fields)

    def push(
        self, actions: list[Action], keys: Any, *, expiration_sec: int, reference: str | None
    ) -> None:
        self.asked += 1
        self.references.add(reference)
        verdicts = contract_abi().unpack("attest", actions[0].data)["verdicts"]
        slots = [row["slot"] for row in verdicts]
        hashes = {row.upload_slot: row.upload_hash for row in self.rows}
        assert [bytes.fromhex(row["hash"]) for row in verdicts] == [hashes[slot] for slot in slots]
        if self.poison in slots:
            raise BadFieldError("unknown_upload", "another is there")
        if len(slots) > self.limit:
            raise self.refusal
        self.landed.append(slots)
        self.codes |= {(row["slot"], row["code"]) for row in verdicts}


@pytest.fixture
def validator() -> Iterator[Validator]:
    made = Validator("val2", PrivateKey.generate(), "http://127.0.0.1:9", "/ip4/127.0.0.1/tcp/9")
    yield made
    made.close()


def judge(validator: Validator, chain: SlowChain, world: World) -> StepReport:
    """Send what has been found out about all uploads."""
    validator.contract, validator.chain = chain, chain.client
    work, report = _RoundWork(3), StepReport()
    for row in chain.rows:
        work.results[_key(row)] = _Result(None, digest=row.upload_hash)
    look(validator, world, work).judge(PLACE, report)
    return report


def look(validator: Validator, world: World, work: _RoundWork, **changes: Any) -> _Pass:
    """Read a round's rows."""
    length = update_payload_bytes(world.codec, world.key)
    material: Any = SimpleNamespace(
        key=world.key, codec=world.codec, bytes_max=10_000, payload_bytes=length
    )
    material.card = SimpleNamespace(owner_enc_key=bytes([9] * 32))
    round_ = make_round(**{"state": RoundState.OPEN, "uploads": UPLOADS, **changes})
    return _Pass(validator, world.task, round_, work, material, 50)


@pytest.mark.parametrize("refusal", [SLOW, NodeBusyError("leeway_deadline_exception")])
def test_more_verdicts_than_a_slow_chain_takes_land_by_halves(
    validator: Validator, paillier: World, refusal: ChainError
) -> None:
    chain = SlowChain(LIMIT, refusal)
    report = judge(validator, chain, paillier)
    assert [slot for slots in chain.landed for slot in slots] == list(range(UPLOADS))
    assert LIMIT // 2 <= max(map(len, chain.landed)) <= LIMIT
    assert chain.asked <= 2 * len(chain.landed)
    assert (report.attested, report.skipped, report.faults) == (UPLOADS, 0, 0)
    assert report.busy


def test_verdicts_are_sent_in_the_order_of_their_ballots(
    validator: Validator, paillier: World
) -> None:
    chain = SlowChain(ATTEST_BATCH, SLOW)
    for slot in range(0, UPLOADS, 7):
        chain.judged(slot)
    chain.judged(14, hash=b"\7" * 32)  # of another upload: a fork, or the next round
    del chain.ballots_read[-10:]  # what came after they were read
    report = judge(validator, chain, paillier)
    fresh = [slot for slot in range(UPLOADS) if slot % 7 or slot in (14, 693)]
    assert [slot for slots in chain.landed for slot in slots] == fresh
    assert [len(slots) for slots in chain.landed] == [ATTEST_BATCH, len(fresh) - ATTEST_BATCH]
    assert report.attested == len(fresh) and chain.reads == 1


def test_a_verdict_that_is_refused_holds_up_no_other(validator: Validator, paillier: World) -> None:
    chain = SlowChain(ATTEST_BATCH, SLOW)
    chain.poison = 77
    report = judge(validator, chain, paillier)
    landed = {slot for slots in chain.landed for slot in slots}
    assert landed == set(range(UPLOADS)) - {77}
    assert (report.attested, report.skipped) == (UPLOADS - 1, 1)


def test_the_ballots_are_read_only_while_something_is_to_be_judged(
    validator: Validator, paillier: World
) -> None:
    chain = SlowChain(ATTEST_BATCH, SLOW)
    chain.rows = [
        make_member(upload_state=UploadState.PAID, upload_reason=VerdictCode.ACCEPT),
        make_member("phone2", upload_state=UploadState.REFUSED),
        make_member("phone3", upload_version=2),
        make_member("phone4"),  # not revealed, in an open round
    ]
    assert judge(validator, chain, paillier) == StepReport()
    assert chain.reads == chain.asked == 0


# ---- after a fork -------------------------------------------------------------------------------


def test_verdicts_refer_to_a_block_that_the_node_named_after_the_rows_were_read(
    validator: Validator, paillier: World
) -> None:
    chain = SlowChain(ATTEST_BATCH, SLOW)
    judge(validator, chain, paillier)
    assert chain.asked == 2
    assert chain.references == {f"block {chain.read_at + 1}"}


def test_verdicts_whose_block_is_on_no_fork_wait_for_the_next_pass(
    validator: Validator, paillier: World
) -> None:
    chain = SlowChain(0, VOID)
    with pytest.raises(NodeUnavailableError):
        judge(validator, chain, paillier)
    assert chain.asked == 1  # not by halves: none of them is at fault
    chain.limit = UPLOADS
    assert judge(validator, chain, paillier).attested == UPLOADS


@pytest.mark.parametrize(
    "changes",
    [
        {"account": "phone"},
        {"set_version": 2},
        {"set_hash": b"\1" * 32},
        {"upload_hash": b"\1" * 32},
        {"upload_cid": "Qn"},
        {"upload_cost": 60_000},
        {"series_hash": b"\1" * 32},
        {"error_first": 1},
        {"error_before": 1},
        {"error_last": 1},
        {"opening_cid": "Qm"},
    ],
)
def test_a_result_is_of_no_other_row_with_the_same_hash(changes: dict[str, Any]) -> None:
    row = make_member(upload_cid="Qm")
    assert _key(replace(row, **changes)) != _key(row)
    decided = {"upload_state": UploadState.PAID, "upload_reason": VerdictCode.ACCEPT}
    assert _key(replace(row, **decided)) == _key(row)


class Held:
    """A store of some blobs."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    def get(self, cid: str, **_: Any) -> bytes:
        return self.blobs[cid]

    def put(self, data: bytes) -> str:
        return "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"


@contextmanager
def holding(*blobs: bytes) -> Iterator[tuple[Validator, SlowChain, list[Member]]]:
    """Give a validator whose store has these blobs, and rows of accepted uploads of phone1."""
    cids = [f"Qm{place}" for place in range(len(blobs))]
    store: Any = Held(dict(zip(cids, blobs, strict=True)))
    validator = Validator("val2", PrivateKey.generate(), "http://127.0.0.1:9", store)
    validator._secret = SECRETS["val2"]
    chain = SlowChain(ATTEST_BATCH, SLOW)
    validator.contract, validator.chain = chain, chain.client
    rows = [
        make_member(
            upload_slot=0,
            upload_hash=hashlib.sha256(blob).digest(),
            upload_cid=cid,
            upload_state=UploadState.PAID,
            upload_reason=VerdictCode.ACCEPT,
        )
        for cid, blob in zip(cids, blobs, strict=True)
    ]
    yield validator, chain, rows
    validator.close()


def test_what_was_accepted_is_judged_where_it_is_pending_again(paillier: World) -> None:
    """Beside an accepted upload only its digest is looked at; a fork takes the decision back."""
    payload = bytes(len(paillier.payload))  # no ciphertexts of any key
    work, report = _RoundWork(3), StepReport()
    with holding(paillier.sealed(payload)) as (validator, chain, (row,)):
        other = make_member("phone2", upload_slot=1, upload_hash=upload_hash(1), upload_cid="Qm")
        work.results[_key(other)] = _Result(None, digest=hashlib.sha256(payload).digest())
        chain.rows = [row, other]
        look(validator, paillier, work).judge(PLACE, report)
        assert chain.codes == {(1, VerdictCode.DUPLICATE)}
        chain.rows = [replace(row, upload_state=UploadState.PENDING)]
        look(validator, paillier, work).judge(PLACE, report)
    assert (0, VerdictCode.OUT_OF_RANGE) in chain.codes
    assert (report.accepted, report.refused) == (0, 1)


def test_a_sum_is_of_the_uploads_that_are_accepted_now(paillier: World) -> None:
    assert paillier.key is not None
    other = paillier.key.encrypt(paillier.codec.quantise(UPDATE), paillier.codec)
    said, work = [], _RoundWork(3)

    def push(actions: list[Action], keys: Any, **_: Any) -> None:
        said.append(contract_abi().unpack("attestsum", actions[0].data)["hash"])

    with holding(paillier.blob(), paillier.sealed(other)) as (validator, chain, rows):
        chain.client.push = push  # type: ignore[method-assign]
        for row in (rows[0], rows[0], rows[1]):
            chain.rows = [row]
            summing = {"state": RoundState.SUMMING, "accepted": 1}
            look(validator, paillier, work, **summing).attest_sum(StepReport())
    expected = [
        hashlib.sha256(sum_payload(3, 1, one)).hexdigest() for one in (paillier.payload, other)
    ]
    assert said == [expected[0], *expected]
