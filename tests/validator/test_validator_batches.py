"""How verdicts are sent: in the order of their ballots, and in halves where a chain is slow."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from judging import World, make_member, make_round

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
from gradledger.errors import BadFieldError, ChainError, NodeAnswerError, NodeBusyError
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


def upload_hash(slot: int) -> bytes:
    return slot.to_bytes(32, "big")


class SlowChain(FedLearning):
    """A round of many uploads on a chain that takes few verdicts at a time."""

    def __init__(self, limit: int, refusal: ChainError) -> None:
        super().__init__(SimpleNamespace(push=self.push))  # type: ignore[arg-type]
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

    def members(self, task: str) -> list[Member]:
        return self.rows

    def ballots(self, task: str, uploads: int) -> list[Ballot]:
        self.reads += 1
        return self.ballots_read[:uploads]

    def judged(self, slot: int, **changes: Any) -> None:
        """Say that val2 has judged what has this slot."""
        fields = {**vars(self.ballots_read[slot]), "verdicts": b"\1\1" + bytes(30), **changes}
        self.ballots_read[slot] = Ballot(**fields)

    def push(self, actions: list[Action], keys: Any, *, expiration_sec: int) -> None:
        self.asked += 1
        verdicts = contract_abi().unpack("attest", actions[0].data)["verdicts"]
        slots = [row["slot"] for row in verdicts]
        assert [bytes.fromhex(row["hash"]) for row in verdicts] == [*map(upload_hash, slots)]
        if self.poison in slots:
            raise BadFieldError("unknown_upload", "another is there")
        if len(slots) > self.limit:
            raise self.refusal
        self.landed.append(slots)


@pytest.fixture
def validator() -> Iterator[Validator]:
    made = Validator("val2", PrivateKey.generate(), "http://127.0.0.1:9", "/ip4/127.0.0.1/tcp/9")
    yield made
    made.close()


def judge(validator: Validator, chain: SlowChain, world: World) -> StepReport:
    """Send what has been found out about all uploads."""
    validator.contract, validator.chain = chain, chain.client
    material: Any = SimpleNamespace(key=world.key, codec=world.codec, bytes_max=1000)
    work, report = _RoundWork(3), StepReport()
    for row in chain.rows:
        work.results[_key(row)] = _Result(None, digest=row.upload_hash)
    round_ = make_round(state=RoundState.OPEN, uploads=UPLOADS)
    _Pass(validator, world.task, round_, work, material, 50).judge(PLACE, report)
    return report


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
