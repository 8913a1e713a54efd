"""Executors: bounded, tried again where a worker is lost, given up on stop; and the product."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import chores
import gmpy2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import UPDATE, World
from oracle import Oracle, decided, reached, step_until

from gradledger.chain.contract import Mode, RoundState, UploadState, VerdictCode
from gradledger.codec import Codec
from gradledger.errors import ConfigError, PaillierError
from gradledger.paillier import PaillierPublicKey
from producer_validation import checks, executors, summing
from producer_validation.executors import (
    InlineExecutor,
    ProcessWorkers,
    StoppedError,
    Work,
    WorkersError,
)
from producer_validation.summing import Product

PAID = (UploadState.PAID, VerdictCode.ACCEPT)


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    pool = ProcessWorkers(1)
    yield pool
    pool.shutdown()


class Deferred(Executor):
    """Does nothing until it is told to; so a test sees what is under way."""

    width = 2

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.most_bytes = self.calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append((Future(), fn, args))
        self.calls += 1
        under_way = sum(len(one) for _, _, taken in self.waiting for one in taken[2])
        self.most_bytes = max(self.most_bytes, under_way)
        return self.waiting[-1][0]

    def do_one(self) -> None:
        future, fn, args = self.waiting.pop(0)
        future.set_result(fn(*args))


class LazyWork(Work):
    """Lets a deferred executor work only when a result is asked for."""

    def _wait(self, job: Any) -> None:
        assert isinstance(self._executor, Deferred)
        while not job.future.done():
            self._executor.do_one()


# ---- processes ----------------------------------------------------------------------------------


def test_a_call_whose_process_is_killed_is_done_by_another(
    workers: ProcessWorkers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(workers)
    job = work.submit(chores.nap, tmp_path / "note")
    beside = work.submit(chores.square, 7)  # waits behind it, and is lost with it
    os.kill(chores.napper(tmp_path / "note"), signal.SIGKILL)
    assert work.result(job) == "rested"
    assert work.result(beside) == 49
    assert "event=worker_lost error=BrokenProcessPool" in caplog.text


def test_a_call_that_kills_its_worker_every_time_harms_no_other(workers: ProcessWorkers) -> None:
    work = Work(workers)
    jobs = [work.submit(fn, number) for number, fn in enumerate([chores.square, chores.die] * 3)]
    outcomes = dict(work.results(jobs))
    assert [outcomes[number] for number in (0, 2, 4)] == [0, 4, 16]
    assert all(isinstance(outcomes[number], WorkersError) for number in (1, 3, 5))
    assert work.result(work.submit(chores.square, 5)) == 25


def test_a_call_that_takes_too_long_is_given_up_and_its_process_ended(
    workers: ProcessWorkers, tmp_path: Path
) -> None:
    work = Work(workers)
    before = work.submit(chores.square, 3)
    work.result(before)  # the process has started
    hasty = Work(workers, result_sec=0.5)
    jobs: list[Any] = [
        before,
        hasty.submit(chores.nap, tmp_path / "note"),
        hasty.submit(chores.square, 4),
    ]
    pid = chores.napper(tmp_path / "note")
    outcomes = dict(hasty.results(jobs))
    assert outcomes.pop(0) == 9
    error = outcomes.pop(1)
    assert isinstance(error, WorkersError) and "expected a result within 0.5 s" in str(error)
    assert outcomes == {}  # what waited behind it is left for a later step
    assert chores.is_gone(pid)
    assert work.result(work.submit(chores.square, 5)) == 25


def test_a_stop_ends_the_waiting_at_once(workers: ProcessWorkers, tmp_path: Path) -> None:
    stop = threading.Event()
    work = Work(workers, is_stopped=stop.is_set)
    jobs = [work.submit(chores.nap, tmp_path / "note"), work.submit(chores.nap, tmp_path / "two")]
    chores.napper(tmp_path / "note")
    stop.set()
    with pytest.raises(StoppedError):
        list(work.results(jobs))
    assert all(job.future.cancelled() for job in jobs)
    workers.renew()
    stop.clear()
    assert work.result(work.submit(chores.square, 6)) == 36


def test_a_fault_of_the_work_itself_is_no_lost_worker(workers: ProcessWorkers) -> None:
    job = Work(workers).submit(chores.fail, "a fault of its own")
    with pytest.raises(ValueError, match="a fault of its own"):
        Work(workers).result(job)
    assert job.tries == 1


def test_processes_that_are_shut_down_take_nothing(tmp_path: Path) -> None:
    pool = ProcessWorkers(1)
    sleeper = pool.submit(chores.nap, tmp_path / "note")
    pid = chores.napper(tmp_path / "note")
    pool.shutdown(wait=False)
    assert chores.is_gone(pid)
    with pytest.raises(WorkersError, match="these workers are shut down"):
        Work(pool).submit(chores.square, 1)
    with pytest.raises(Exception, match=r"terminated abruptly|were ended"):
        sleeper.result(10)


@pytest.mark.parametrize("number", [0, -1, 257])
def test_the_number_of_processes_is_bounded(number: int) -> None:
    with pytest.raises(ConfigError, match=f"expected 1..256, got {number}"):
        ProcessWorkers(number)


def test_the_processes_end_with_a_validator_that_is_killed(tmp_path: Path) -> None:
    """No orphan stays behind: neither its memory nor a lock on anything."""
    code = (
        "import pathlib, chores\n"
        "from producer_validation.executors import ProcessWorkers\n"
        "if __name__ == '__main__':\n"
        "    workers = ProcessWorkers(1)\n"
        f"    workers.submit(chores.nap, pathlib.Path({str(tmp_path / 'note')!r}))\n"
        "    import time; time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=environment)
    try:
        pid = chores.napper(tmp_path / "note")
    finally:
        parent.kill()
        parent.wait(10)
    assert chores.is_gone(pid)


# ---- the product --------------------------------------------------------------------------------

TOY = PaillierPublicKey(
    int(gmpy2.next_prime(2**40)) * int(gmpy2.next_prime(2**41)), allow_insecure_size_for_tests=True
)


def numbers(count: int, codec: Codec, seed: int) -> list[bytes]:
    """Draw ciphertexts; what they would decrypt to does not matter to a product."""
    draw, width = np.random.default_rng(seed), TOY.ciphertext_bytes
    return [
        b"".join(
            (int(draw.integers(1, 2**62)) ** 2 % TOY.n**2).to_bytes(width, "big")
            for _ in range(codec.plaintexts(TOY.bits))
        )
        for _ in range(count)
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    count=st.integers(1, 40),
    parameters=st.integers(1, 60),
    slice_bytes=st.integers(1, 200),
    group=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_the_product_is_the_same_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    parameters: int,
    slice_bytes: int,
    group: int,
    seed: int,
) -> None:
    monkeypatch.setattr(summing, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(summing, "GROUP_MAX", group)
    codec = Codec(clip_e6=1_000_000, slot_bits=26, parameters=parameters)
    payloads = numbers(count, codec, seed)
    expected = TOY.add(payloads, codec)
    for work in (Work(InlineExecutor()), LazyWork(Deferred())):
        with Product(TOY, codec, work) as product:
            for payload in payloads:
                product.add(payload)
            assert product.total() == expected


def test_the_product_of_many_holds_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "TASK_BYTES", 500)
    monkeypatch.setattr(summing, "SLICE_BYTES", 100)
    monkeypatch.setattr(summing, "GROUP_BYTES", 1_000)
    codec = Codec(clip_e6=1_000_000, slot_bits=26, parameters=27)  # 9 ciphertexts
    payload_bytes = TOY.payload_bytes(codec)
    executor = Deferred()
    one = numbers(1, codec, 1)[0]
    with Product(TOY, codec, LazyWork(executor)) as product:
        for _ in range(400):
            product.add(one)
        product.total()
        assert executor.most_bytes <= product.bytes_max <= 25 * payload_bytes
    assert executor.calls > 80 and not executor.waiting


def test_a_product_takes_no_more_than_the_slots_can_hold() -> None:
    codec = Codec(clip_e6=1_000_000, slot_bits=17, parameters=3)
    assert codec.devices_max == 2
    one, two, three = numbers(3, codec, 1)
    with Product(TOY, codec, Work(InlineExecutor())) as product:
        with pytest.raises(PaillierError, match="at least one update to add, got none"):
            product.total()
        with pytest.raises(PaillierError, match="bytes of ciphertexts, got 1"):
            product.add(b"\1")
        product.add(one)
        product.add(two)
        with pytest.raises(PaillierError, match="at most 2 updates in slots of 17 bits"):
            product.add(three)


def test_a_product_that_is_left_gives_up_what_is_under_way() -> None:
    codec = Codec(clip_e6=1_000_000, slot_bits=26, parameters=3)
    executor = Deferred()
    with pytest.raises(ZeroDivisionError), Product(TOY, codec, Work(executor)) as product:
        for payload in numbers(2 * summing.GROUP_MAX, codec, 1):
            product.add(payload)
        raise ZeroDivisionError
    assert executor.waiting and all(future.cancelled() for future, _, _ in executor.waiting)


# ---- in a round ---------------------------------------------------------------------------------


class Assassin(ProcessWorkers):
    """Kills its process while it works, once with each kind of work."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1)
        self.folder = folder
        self.killed: list[str] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        note = self.folder / fn.__name__
        if fn.__name__ in self.killed:
            return super().submit(fn, *args, **kwargs)
        self.killed.append(fn.__name__)
        super().submit(chores.nap, note)
        future = super().submit(fn, *args, **kwargs)
        os.kill(chores.napper(note), signal.SIGKILL)
        return future


def test_a_round_is_right_though_processes_are_killed_in_it(
    oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    stage = oracle(devices=4)
    assassin = Assassin(tmp_path)
    try:
        validators = [stage.validator(0, executor=assassin), *map(stage.validator, (1, 2))]
        # Three of four vote, so that the quorum needs the one whose workers are killed.
        for one in validators:
            one.step()
        stage.open()
        bad, *good = stage.devices
        stage.upload(bad, spoil=lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]))
        for number, device in enumerate(good):
            stage.upload(device, UPDATE / (number + 1))
        step_until(validators, decided(stage, stage.devices))
        stage.close()
        step_until(validators, reached(stage, RoundState.SUMMED))
    finally:
        assassin.shutdown()
    assert assassin.killed == ["check_payload", "add_payloads"]
    assert [stage.verdict(one) for one in good] == [PAID] * 3
    assert stage.verdict(bad) == (UploadState.REFUSED, VerdictCode.MALFORMED)
    now = stage.round()
    assert [vote.hash for vote in now.sums if any(vote.hash)] == [now.sum_hash] * 3
    stage.check_sum(good)
    stage.check_money(good)


class Broken(Executor):
    """Loses everything."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(ConnectionResetError("gone"))
        return future


def test_a_validator_whose_workers_are_lost_for_good_says_nothing(
    oracle: Callable[..., Oracle], caplog: pytest.LogCaptureFixture
) -> None:
    stage = oracle(devices=3)
    lost = stage.validator(0, executor=Broken())
    honest = [stage.validator(number) for number in (1, 2, 3)]
    for one in (lost, *honest):
        one.step()
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    report = lost.step()
    assert (report.accepted, report.refused, report.attested, report.skipped) == (0, 0, 0, 3)
    assert "error=WorkersError" in caplog.text
    step_until(honest, decided(stage, stage.devices))
    stage.close()
    assert lost.step().sums == 0
    step_until(honest, reached(stage, RoundState.SUMMED))
    now = stage.round()
    assert not any(now.sums[now.validators.index(lost.account)].hash)


class Silent(Executor):
    """Never answers."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


def test_a_validator_that_is_stopped_gives_up_its_calls(oracle: Callable[..., Oracle]) -> None:
    stage = oracle(devices=2)
    silent, stop = Silent(), threading.Event()
    validator = stage.validator(0, executor=silent)
    validator.step()
    stage.open()
    for device in stage.devices:
        stage.upload(device, UPDATE / (1 + stage.devices.index(device)))
    thread = threading.Thread(target=validator.run, args=(stop,))
    thread.start()
    step_until([], lambda: len(silent.futures) == 2)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert all(future.cancelled() for future in silent.futures)


class Watching(InlineExecutor):
    """Keeps what would travel to a worker."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.sent.append((fn.__name__, pickle.dumps((fn, args))))
        return super().submit(fn, *args)


@pytest.mark.parametrize("mode", [Mode.PAILLIER, Mode.SEALED])
def test_no_secret_goes_to_the_executor(oracle: Callable[..., Oracle], mode: Mode) -> None:
    stage = oracle(mode, devices=3)
    watching = Watching()
    validators = [stage.validator(number, executor=watching) for number in range(4)]
    for one in validators:
        one.step()
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE * (1 - number / 10))
    step_until(validators, decided(stage, stage.devices))
    stage.close()
    step_until(validators, reached(stage, RoundState.SUMMED))
    assert [stage.verdict(one) for one in stage.devices] == [PAID] * 3
    secrets = [
        part
        for key in stage.keys.values()
        for part in (key._secret, key.encryption_key(), key.to_string().encode())
    ]
    secrets += [
        part
        for prime in (stage.paillier._p, stage.paillier._q)
        for part in (int(prime).to_bytes(128, order) for order in ("big", "little"))
    ]
    assert {name for name, _ in watching.sent} == (
        {"check_payload", "add_payloads"} if mode is Mode.PAILLIER else {"check_payload"}
    )
    for name, sent in watching.sent:
        assert not any(secret in sent for secret in secrets), name


def test_what_comes_back_from_a_process_is_what_is_made_here(
    workers: ProcessWorkers, paillier: World
) -> None:
    assert paillier.key is not None
    work, codec = Work(workers), paillier.codec
    bad = bytes(len(paillier.payload))
    jobs = [
        work.submit(checks.check_payload, payload, codec, paillier.key, None)
        for payload in (paillier.payload, bad)
    ]
    refusal = checks.check_payload(bad, codec, paillier.key, None)
    assert refusal is not None
    assert dict(work.results(jobs)) == {0: None, 1: refusal}


# ---- any executor -------------------------------------------------------------------------------


def test_an_executor_that_never_answers_is_waited_for_within_a_bound() -> None:
    before = time.monotonic()
    work = Work(Silent(), result_sec=0.3)
    with pytest.raises(WorkersError, match=r"expected a result within 0\.3 s, got none"):
        work.result(work.submit(chores.square, 1))
    assert time.monotonic() - before >= 0.3


def test_an_executor_that_does_not_say_its_width_is_given_a_few_calls() -> None:
    assert Work(Silent()).width == executors.WIDTH_DEFAULT
    assert Work(InlineExecutor()).width == 1
