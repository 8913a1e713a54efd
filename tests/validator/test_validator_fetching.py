"""Background reads, and that nobody's blobs hold up, spoil or outweigh another's."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from judging import POINTS_X, POINTS_Y, SECRETS, World, make_member, make_round, published

from gradledger.chain.contract import (
    Ballot,
    Member,
    RoundState,
    UploadState,
)
from gradledger.chain.keys import PrivateKey
from gradledger.cid import cid_v0
from gradledger.envelope import Kind
from gradledger.errors import BlobMissingError, BlobTooLargeError
from gradledger.models import dump_validation_set
from producer_validation import validator as validator_module
from producer_validation.checks import MaterialError, Opened, update_bytes_max
from producer_validation.executors import InlineExecutor, Job, Work
from producer_validation.fetching import PATIENCE_SEC, Fetcher
from producer_validation.validator import (
    STEP_WAIT_SEC,
    StepReport,
    Validator,
    _Audit,
    _Pass,
    _RoundWork,
    _TaskState,
)

WAIT_SEC = 10.0


class Blobs:
    """A store in memory; some reads hang until they are let go."""

    def __init__(self, *blobs: bytes) -> None:
        self.held = {cid_v0(blob): blob for blob in blobs}
        self.reads: Counter[str] = Counter()
        self.order: list[str] = []
        self.patience: list[float] = []
        self.readers: set[threading.Thread] = set()
        self.hanging: dict[str, threading.Event] = {}

    def get(
        self, cid: str, *, bytes_max: int | None = None, patience_sec: float = math.inf
    ) -> bytes:
        self.reads[cid] += 1
        self.order.append(cid)
        self.patience.append(patience_sec)
        self.readers.add(threading.current_thread())
        if cid in self.hanging:
            assert self.hanging[cid].wait(WAIT_SEC)
        if cid not in self.held:
            raise BlobMissingError(f"no {cid}")
        if bytes_max is not None and len(self.held[cid]) > bytes_max:
            raise BlobTooLargeError(f"expected at most {bytes_max} bytes, more came")
        return self.held[cid]

    def put(self, data: bytes) -> str:
        cid = cid_v0(data)
        self.held[cid] = data
        return cid


def fetch(fetcher: Fetcher, *reads: tuple[str, int]) -> None:
    for cid, bytes_max in reads:
        fetcher.want(cid, bytes_max)
    fetcher.wait(reads, WAIT_SEC)


# ---- reads --------------------------------------------------------------------------------------


def test_a_read_blob_is_kept_and_not_read_again() -> None:
    blobs = Blobs(b"one")
    fetcher, (cid,) = Fetcher(blobs), blobs.held
    for _ in range(3):
        fetch(fetcher, (cid, 100))
        assert fetcher.blob(cid, 100) == b"one"
    assert blobs.reads[cid] == 1
    fetcher.close()


def test_the_cache_is_bounded_and_drops_the_oldest() -> None:
    blobs = Blobs(b"a" * 40, b"b" * 40, b"c" * 40)
    cids = list(blobs.held)
    fetcher = Fetcher(blobs, cache_bytes_max=100)
    for cid in cids:
        fetch(fetcher, (cid, 100))
    assert [fetcher.blob(cid, 100) is not None for cid in cids] == [False, True, True]
    fetcher.close()


def test_a_blob_that_hangs_holds_up_no_other() -> None:
    blobs = Blobs(b"one", b"two")
    slow, quick = blobs.held
    blobs.hanging[slow] = threading.Event()
    fetcher = Fetcher(blobs, threads=2)
    fetcher.want(slow, 100)
    fetch(fetcher, (quick, 100))
    assert fetcher.blob(quick, 100) == b"two"
    assert fetcher.blob(slow, 100) is None and fetcher.failure(slow, 100) is None
    blobs.hanging[slow].set()
    fetcher.wait([(slow, 100)], WAIT_SEC)
    assert fetcher.blob(slow, 100) == b"one"
    fetcher.close()


def test_a_missing_blob_is_asked_for_again_but_not_at_once() -> None:
    now = [0.0]
    blobs = Blobs()
    fetcher, cid = Fetcher(blobs, clock=lambda: now[0]), cid_v0(b"late")
    pauses = []
    for attempt in range(1, 8):
        fetch(fetcher, (cid, 100))
        failure = fetcher.failure(cid, 100)
        assert failure is not None and failure.attempts == attempt == blobs.reads[cid]
        assert isinstance(failure.error, BlobMissingError)
        pauses.append(failure.retry_at - now[0])
        fetch(fetcher, (cid, 100))  # too soon
        assert blobs.reads[cid] == attempt
        now[0] = failure.retry_at
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    assert blobs.patience == [*PATIENCE_SEC, *[math.inf] * 5]
    blobs.put(b"late")
    fetch(fetcher, (cid, 100))
    assert fetcher.blob(cid, 100) == b"late" and fetcher.failure(cid, 100) is None
    fetcher.close()


def test_a_blob_too_large_for_one_bound_is_there_for_another() -> None:
    blobs = Blobs(b"x" * 50)
    (cid,) = blobs.held
    blobs.hanging[cid] = threading.Event()
    fetcher = Fetcher(blobs)
    fetcher.want(cid, 10)  # under way while the other is asked for
    fetcher.want(cid, 100)
    blobs.hanging[cid].set()
    fetcher.wait([(cid, 10), (cid, 100)], WAIT_SEC)
    assert fetcher.blob(cid, 100) == b"x" * 50 and fetcher.failure(cid, 100) is None
    failure = fetcher.failure(cid, 10)
    assert failure is not None and isinstance(failure.error, BlobTooLargeError)
    assert fetcher.blob(cid, 10) is None
    fetcher.close()


def test_blobs_asked_for_again_leave_room_for_first_reads() -> None:
    now = [0.0]
    blobs = Blobs(b"new")
    (new,), lost = blobs.held, [cid_v0(bytes([number])) for number in range(4)]
    fetcher = Fetcher(blobs, threads=2, clock=lambda: now[0])
    fetch(fetcher, *((cid, 100) for cid in lost))
    over = threading.Event()
    blobs.hanging = dict.fromkeys(lost, over)
    now[0] = 1.0
    for cid in lost:
        fetcher.want(cid, 100)
    time.sleep(0.2)  # for every thread that would to take one
    fetcher.want(new, 100)
    fetcher.wait([(new, 100)], WAIT_SEC / 2)  # none of those is over by then
    assert fetcher.blob(new, 100) == b"new"
    over.set()
    fetcher.wait([(cid, 100) for cid in lost], WAIT_SEC)
    assert all(blobs.reads[cid] == 2 for cid in lost)
    fetcher.close()


def test_tasks_take_turns() -> None:
    blobs = Blobs()
    noisy = [cid_v0(bytes([number])) for number in range(9)]
    quiet = [cid_v0(bytes([number])) for number in range(10, 12)]
    blobs.hanging = {noisy[0]: threading.Event()}
    fetcher = Fetcher(blobs, threads=1)
    for cid in noisy:
        fetcher.want(cid, 100, "noisy")
    for cid in quiet:
        fetcher.want(cid, 100, "quiet")
    blobs.hanging[noisy[0]].set()
    fetcher.wait([(cid, 100) for cid in (*noisy, *quiet)], WAIT_SEC)
    assert set(quiet) < set(blobs.order[:6])
    fetcher.close()


def test_a_store_that_breaks_does_not_end_the_reads() -> None:
    class Broken(Blobs):
        def get(self, *args: Any, **options: Any) -> bytes:
            raise ZeroDivisionError

    fetcher, cid = Fetcher(Broken(), threads=1), cid_v0(b"x")
    for other in (cid, cid_v0(b"y")):
        fetch(fetcher, (other, 1))
        failure = fetcher.failure(other, 1)
        assert failure is not None and isinstance(failure.error, ZeroDivisionError)
    fetcher.close()


def test_a_closed_fetcher_reads_nothing_and_waits_for_nothing() -> None:
    blobs = Blobs(b"one")
    fetcher, (cid,) = Fetcher(blobs), blobs.held
    fetcher.close()
    before = time.monotonic()
    fetch(fetcher, (cid, 100))
    assert time.monotonic() - before < WAIT_SEC
    assert not blobs.reads


# ---- what a validator does with them ------------------------------------------------------------


class Rows:
    """The rows of a round, as the contract would give them."""

    def __init__(self, rows: Sequence[Member]) -> None:
        self.rows = list(rows)

    def members(self, task: str) -> list[Member]:
        return self.rows

    def ballots(self, task: str, uploads: int) -> list[Ballot]:
        return []


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def judge(blobs: Blobs) -> Iterator[Validator]:
    made = Validator("val1", PrivateKey.generate(), "http://127.0.0.1:9", blobs)
    made._secret = SECRETS["val1"]
    made.chain = SimpleNamespace(get_info=lambda: SimpleNamespace(head_id=""))  # type: ignore[assignment]
    yield made
    made.close()


def material(world: World) -> Any:
    return SimpleNamespace(
        key=world.key,
        codec=world.codec,
        payload_bytes=len(world.payload),
        bytes_max=update_bytes_max(world.codec, world.key),
        card=SimpleNamespace(target=None, privacy=None, validation=None),
    )


def one_pass(
    judge: Validator,
    world: World,
    rows: Sequence[Member],
    work: _RoundWork,
    *,
    kind: type[_Pass] = _Pass,
    **changes: Any,
) -> _Pass:
    judge.contract = Rows(rows)  # type: ignore[assignment]
    return kind(judge, world.task, make_round(**changes), work, material(world), 50)


def round_work(world: World) -> _RoundWork:
    """What is kept of a round whose model is here already."""
    measure = world.measure()
    return _RoundWork(3, model=measure.model if measure else None)


def uploads(world: World, blobs: Blobs, count: int, **changes: Any) -> list[Member]:
    """Rows of many slots with the very same upload."""
    blob = world.blob()
    cid, digest = blobs.put(blob), hashlib.sha256(blob).digest()
    return [
        make_member(upload_slot=slot, upload_hash=digest, upload_cid=cid, **changes)
        for slot in range(count)
    ]


def test_an_upload_named_as_an_opening_is_not_refused_for_its_length(
    judge: Validator, blobs: Blobs, paillier: World
) -> None:
    blob = paillier.blob()
    cid = blobs.put(blob)
    row = make_member(
        upload_cid=cid,
        upload_hash=hashlib.sha256(blob).digest(),
        upload_state=UploadState.DRAWN,
        opening_cid=cid_v0(b"not here yet"),
    )
    work = round_work(paillier)
    options: dict[str, Any] = {"state": RoundState.AUDITING, "audit_deadline": 100}
    audit = one_pass(judge, paillier, [row], work, kind=_Audit, **options)
    judge._fetcher.want(cid, len(blob) - 1)  # as the opening of somebody else
    audit._examine([row], StepReport())
    assert not work.audits
    assert isinstance(audit._open(row), Opened)


def test_the_card_is_read_in_the_background(judge: Validator, blobs: Blobs, sealed: World) -> None:
    cid = cid_v0(b"card")
    blobs.hanging[cid] = threading.Event()
    task = replace(sealed.task, terms=replace(sealed.task.terms, card_cid=cid))
    with pytest.raises(MaterialError, match="no answer yet"):
        judge._material(task, _TaskState())
    assert threading.current_thread() not in blobs.readers
    blobs.hanging[cid].set()


def test_a_step_waits_for_missing_sets_within_its_bound(
    judge: Validator, blobs: Blobs, sealed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    rows = [
        replace(row, set_cid=f"lost{number}", set_hash=bytes([number]) * 32)
        for number, row in enumerate(uploads(sealed, blobs, 100))
    ]
    there = set(blobs.held)

    class Slow:
        """A fetcher to which the sets never come."""

        def want(self, cid: str, bytes_max: int, task: str) -> None:
            pass

        def wait(self, reads: Iterable[tuple[str, int]], timeout_sec: float) -> None:
            if any(cid not in there for cid, _ in reads):
                now[0] += timeout_sec

        def blob(self, cid: str, bytes_max: int) -> bytes | None:
            return blobs.held.get(cid)

        def failure(self, cid: str, bytes_max: int) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(validator_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    judge._fetcher = Slow()  # type: ignore[assignment]
    report = StepReport()
    one_pass(judge, sealed, rows, round_work(sealed)).judge(0, report)
    assert report.skipped == len(rows)
    assert 0 < now[0] <= STEP_WAIT_SEC


def test_sets_that_are_measured_by_are_let_go_before_they_are_many(
    judge: Validator, blobs: Blobs, sealed: World
) -> None:
    x, y = POINTS_X.repeat(100, axis=0), POINTS_Y.repeat(100)
    blob = published(Kind.VALIDATION_SET, dump_validation_set(x, y))
    issued = {"set_cid": blobs.put(blob), "set_hash": hashlib.sha256(blob).digest()}
    rows = uploads(sealed, blobs, 20, upload_cost=60, **issued)
    flown: list[int] = []

    class Noting(Work):
        def results(self, jobs: Sequence[Job[Any]]) -> Any:
            flown.append(sum(job.args[-1].x.nbytes + job.args[-1].y.nbytes for job in jobs))
            return super().results(jobs)

    judge._work = Noting(InlineExecutor())
    set_bytes = x.nbytes + y.nbytes
    judge._cache_bytes_max = 6 * set_bytes
    report = StepReport()
    looked = one_pass(judge, sealed, rows, round_work(sealed))
    assert len(next(looked._windows(rows))) == len(rows)
    looked._examine(rows, report)
    assert report.skipped == 0
    assert sum(flown) == len(rows) * set_bytes and max(flown) <= 4 * set_bytes
    assert len(next(looked._windows(rows))) < len(rows)
