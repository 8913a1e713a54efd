"""Validators on a Dask cluster of two workers: a round, and workers and schedulers that die."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import chores
import numpy as np
import pytest
from judging import UPDATE
from oracle import Oracle, decided, reached, step, step_until

from gradledger.chain.contract import RoundState, UploadState, VerdictCode
from gradledger.chain.keys import save_key_file
from gradledger.errors import ConfigError
from producer_validation import cli, executors
from producer_validation.executors import DaskWorkers, ProcessWorkers, Work, WorkersError

ANY_PORT = "127.0.0.1:0"
PARTIES = ("scheduler", "worker", "client")
PAID = (UploadState.PAID, VerdictCode.ACCEPT)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of two worker processes on loopback."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=ANY_PORT,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def dask(scheduler: str) -> Iterator[DaskWorkers]:
    workers = DaskWorkers(scheduler)
    yield workers
    workers.shutdown(wait=False)


@pytest.mark.parametrize("kind", ["dask", "processes"])
def test_a_whole_round_on_two_workers(
    oracle: Callable[..., Oracle], request: pytest.FixtureRequest, kind: str
) -> None:
    """Node, Kubo, devices and validators are real; all checking and multiplying is done elsewhere.

    The sum is over exactly the accepted uploads: what was refused is not in it.
    """
    stage = oracle(devices=6)
    workers = ProcessWorkers(2) if kind == "processes" else request.getfixturevalue("dask")
    used: set[str] = set()
    real = workers.submit

    def submit(fn: Callable[..., Any], /, *args: Any) -> Any:
        used.add(fn.__name__)
        return real(fn, *args)

    workers.submit = submit
    try:
        validators = [stage.validator(number, executor=workers) for number in range(4)]
        step(validators)
        stage.open()
        *good, torn, ranged = stage.devices
        for number, device in enumerate(good):
            stage.upload(device, UPDATE * (number + 1) / 4)
        stage.upload(torn, spoil=lambda blob: blob[:150])
        n = stage.public.n
        encrypt = type(stage.public).encrypt
        with pytest.MonkeyPatch.context() as patch:
            outside = (3 * n).to_bytes(stage.public.ciphertext_bytes, "big")
            patch.setattr(type(stage.public), "encrypt", lambda *_, **__: outside)
            stage.upload(ranged)
        assert type(stage.public).encrypt is encrypt
        step_until(validators, decided(stage, stage.devices))
        stage.close()
        step_until(validators, reached(stage, RoundState.SUMMED))
    finally:
        workers.submit = real
        if kind == "processes":
            workers.shutdown()
    assert used == {"check_payload", "add_payloads"}
    assert [stage.verdict(one) for one in good] == [PAID] * 4
    assert stage.verdict(torn) == (UploadState.REFUSED, VerdictCode.MALFORMED)
    assert stage.verdict(ranged) == (UploadState.REFUSED, VerdictCode.OUT_OF_RANGE)
    stage.check_sum(good)
    stage.check_money(good)


def test_the_cluster_says_how_wide_it_is(dask: DaskWorkers) -> None:
    assert dask.width == Work(dask).width == 2
    pids = {Work(dask).result(Work(dask).submit(os.getpid)) for _ in range(8)}
    assert os.getpid() not in pids


def test_a_call_whose_worker_is_killed_is_done_by_the_other(
    dask: DaskWorkers, tmp_path: Path
) -> None:
    work = Work(dask)
    job = work.submit(chores.nap, tmp_path / "note")
    os.kill(chores.napper(tmp_path / "note"), signal.SIGKILL)
    assert work.result(job) == "rested"


def test_a_call_that_is_given_up_is_cancelled_on_the_cluster(
    dask: DaskWorkers, tmp_path: Path
) -> None:
    step_until([], lambda: dask.width == 2)  # whoever was killed before is back
    work = Work(dask)
    jobs = [work.submit(chores.nap, tmp_path / name) for name in "abc"]
    pids = {chores.napper(tmp_path / name) for name in "ab"}
    work.cancel(jobs)
    with pytest.raises(CancelledError):
        jobs[2].future.result(5)
    for pid in pids:  # a call that runs cannot be taken back; these tests end it
        os.kill(pid, signal.SIGKILL)
    assert work.result(work.submit(chores.square, 8)) == 64
    assert not (tmp_path / "c").exists()


def test_a_large_argument_is_taken_without_a_warning(dask: DaskWorkers) -> None:
    work = Work(dask)
    assert work.result(work.submit(len, np.zeros(12_000_000, np.uint8).tobytes())) == 12_000_000


def test_nothing_is_kept_of_a_call_whose_result_is_here(dask: DaskWorkers) -> None:
    """Or the memory of client, scheduler and workers would grow with the number of uploads."""
    work = Work(dask)
    gc.collect()
    gc.disable()
    try:
        for number in range(5):
            assert work.result(work.submit(chores.square, number)) == number**2
        step_until([], lambda: not dask._client.futures)
    finally:
        gc.enable()


SCHEDULER = (
    "import sys, time\n"
    "import producer_validation.executors\n"  # what it takes to load counts for no timeout
    "from distributed import LocalCluster\n"
    "if __name__ == '__main__':\n"
    "    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol='tcp',\n"
    "                      host='127.0.0.1', scheduler_port=int(sys.argv[1]),\n"
    "                      dashboard_address='127.0.0.1:0'):\n"
    "        print('up', flush=True)\n"
    "        time.sleep(300)\n"
)


def test_a_scheduler_that_goes_away_and_comes_back(
    tmp_path: Path, free_ports: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "DASK_SEC", 2.0)  # a client tries to reach it so long
    (tmp_path / "cluster.py").write_text(SCHEDULER)
    (port,) = free_ports(1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "cluster.py"), str(port)]

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process

    def end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate(timeout=20)

    cluster = start()
    try:
        workers = DaskWorkers(f"127.0.0.1:{port}")
        work = Work(workers, result_sec=20)
        job = work.submit(chores.nap, tmp_path / "note")
        chores.napper(tmp_path / "note")
        end(cluster)
        with pytest.raises(WorkersError, match=r"went away|no scheduler answers"):
            work.result(job)
        said: set[str] = set()

        def refused() -> bool:
            with pytest.raises(WorkersError) as caught:
                work.submit(chores.square, 2)
            said.add(str(caught.value))
            return any("no scheduler answers" in text for text in said)

        step_until([], refused)  # the client tries to reach it for some time
        cluster = start()
        monkeypatch.setattr(executors, "DASK_SEC", 20.0)
        assert work.result(work.submit(chores.square, 3)) == 9
        workers.shutdown(wait=False)
        with pytest.raises(WorkersError, match="these workers are shut down"):
            work.submit(chores.square, 4)
    finally:
        end(cluster)


# ---- what is refused at the start ---------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "inproc://1/2", "http://127.0.0.1:1", "tcp://127.0.0.1:port", "tcp://:8786"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected tcp://HOST:PORT or tls://HOST:PORT, got"):
        DaskWorkers(address)


@pytest.mark.parametrize("address", ["10.0.0.7:8786", "tcp://cluster:8786", "tcp://[fe80::1]:1"])
def test_another_machine_is_not_talked_to_in_the_clear(address: str) -> None:
    with pytest.raises(ConfigError, match="expected tls://"):
        DaskWorkers(address)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_tls_is_spoken_with_the_certificates_that_dask_is_given(tmp_path: Path) -> None:
    import dask
    from distributed import LocalCluster, Security

    pair = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    request += ["-subj", "/CN=gradledger", "-addext", "subjectAltName=IP:127.0.0.1"]
    request += ["-keyout", pair["key"], "-out", pair["cert"]]
    subprocess.run(request, check=True, capture_output=True)
    names = {f"{who}.{what}": file for who in PARTIES for what, file in pair.items()}
    names["ca-file"] = pair["cert"]
    with (
        dask.config.set({f"distributed.comm.tls.{name}": file for name, file in names.items()}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tls://",
            host="127.0.0.1",
            dashboard_address=ANY_PORT,
            security=Security(require_encryption=True),
        ) as cluster,
    ):
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        workers = DaskWorkers(cluster.scheduler_address)
        assert Work(workers).result(Work(workers).submit(chores.square, 12)) == 144
        workers.shutdown()


def test_tls_without_certificates_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="DASK_DISTRIBUTED__COMM__TLS__CA_FILE"):
        DaskWorkers("tls://127.0.0.1:8786")


def test_without_distributed_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradledger\[dask\]'"):
        DaskWorkers("tcp://127.0.0.1:8786")


def test_nobody_there_is_said(
    monkeypatch: pytest.MonkeyPatch, free_ports: Callable[[int], list[int]]
) -> None:
    monkeypatch.setattr(executors, "DASK_SEC", 0.3)
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match=f"no scheduler answers at tcp://127.0.0.1:{port}"):
        DaskWorkers(f"localhost:{port}".replace("localhost", "127.0.0.1"))


def test_workers_with_another_version_are_refused(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors.gradledger, "__version__", "99.0")
    with pytest.raises(ConfigError, match=r"expected gradledger 99\.0 on the workers of tcp://"):
        DaskWorkers(scheduler)


# ---- the command line ---------------------------------------------------------------------------

WHERE = ("--account", "v", "--key-file", "k", "--chain", "c", "--store", "s", "--task", "t")


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    return parser.parse_args(["validator", "run", *WHERE, *arguments])


def test_the_options_name_one_executor(scheduler: str) -> None:
    assert cli._executor(parse()) is None
    processes = cli._executor(parse("--processes", "3"))
    assert isinstance(processes, ProcessWorkers) and processes.width == 3
    workers = cli._executor(parse("--dask", scheduler))
    assert isinstance(workers, DaskWorkers)
    workers.shutdown(wait=False)
    with pytest.raises(SystemExit):
        parse("--processes", "3", "--dask", scheduler)
    with pytest.raises(ConfigError, match=r"processes: expected 1\.\.256, got 0"):
        cli._executor(parse("--processes", "0"))


@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_a_validator_started_with_the_option_judges_and_stops(
    oracle: Callable[..., Oracle], scheduler: str, tmp_path: Path, kind: str
) -> None:
    stage = oracle(devices=1)
    name, *others = stage.judges
    save_key_file(tmp_path / "key.json", name, stage.keys[name])
    command = [
        *(sys.executable, "-m", "gradledger.cli", "validator", "run", "--account", name),
        *("--key-file", str(tmp_path / "key.json"), "--task", stage.task),
        *("--chain", ",".join(stage.contract.client.endpoints), "--store", stage.store.address),
        *(("--processes", "2") if kind == "processes" else ("--dask", scheduler)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        step_until([], lambda: stage.member(name).joined)
        stage.open()
        stage.upload(stage.devices[0])
        place = stage.round().validators.index(name)
        step_until([], lambda: stage.said(stage.devices[0])[place])
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stage.said(stage.devices[0])[place] == VerdictCode.ACCEPT
    assert "event=stopped" in errors and "Traceback" not in errors
    assert len(others) == 3
