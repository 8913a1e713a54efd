"""Four validators judge real uploads on a real node and a real Kubo."""

from __future__ import annotations

import base64
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from judging import PARAMETERS, UPDATE
from oracle import Oracle, decided, reached, step, step_until

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.chain.contract import (
    Member,
    Mode,
    RoundState,
    Silence,
    UploadState,
    Verdict,
    VerdictCode,
)
from gradledger.chain.keys import save_key_file
from gradledger.cid import cid_v0
from gradledger.errors import (
    AlreadyDoneError,
    BlobCorruptError,
    GradledgerError,
    StoreUnavailableError,
)
from gradledger.localnet.network import Network
from gradledger.onnx_models import mlp_graph
from gradledger.store import Store
from producer_validation.checks import update_bytes_max
from producer_validation.replay import replay_verdicts
from producer_validation.validator import StepReport, Validator

PAID = (UploadState.PAID, VerdictCode.ACCEPT)
MakeOracle = Callable[..., Oracle]


def refused(code: VerdictCode) -> tuple[UploadState, VerdictCode]:
    return UploadState.REFUSED, code


class Byzantine(Validator):
    """Says the opposite of what is true about every upload, and attests a sum of its own."""

    def step(self) -> StepReport:
        for task in self._tasks or ():
            now = self.contract.current_round(task)
            if now is None:
                continue
            for row in self.contract.members(task):
                if row.upload_version == now.version and row.upload_state is UploadState.PENDING:
                    code = VerdictCode.DUPLICATE
                    if len(self.store.get(row.upload_cid)) < 200:
                        code = VerdictCode.ACCEPT
                    lie = Verdict(slot=row.upload_slot, hash=row.upload_hash, code=code)
                    self._try(self.contract.attest(task, now.version, self.account, [lie]))
            if now.state is RoundState.SUMMING:
                bogus = cid_v0(b"nowhere")
                self._try(
                    self.contract.attestsum(task, now.version, self.account, b"\7" * 32, bogus)
                )
        return super().step()

    def _try(self, action: Any) -> None:
        try:
            self._push(action)
        except GradledgerError:
            pass


def test_a_round_in_paillier_mode_with_one_byzantine_validator(
    oracle: MakeOracle, caplog: pytest.LogCaptureFixture
) -> None:
    stage = oracle(devices=6)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        honest = [stage.validator(0, executor=pool), stage.validator(1), stage.validator(2)]
        everybody = [stage.validator(3, Byzantine), *honest]  # the liar is always first
        step(everybody)
        stage.open()
        good, (torn, stale, foreign) = stage.devices[:3], stage.devices[3:]
        for number, device in enumerate(good):
            stage.upload(device, UPDATE * (number + 1) / 4)
        with caplog.at_level(logging.INFO, "gradledger.validator"):
            stage.upload(torn, spoil=lambda blob: blob[:150])
            stage.upload(stale, version=7)
            stage.upload(foreign, key_hash=b"\1" * 32)
            step_until(everybody, decided(stage, stage.devices))
            stage.close()
            step_until(everybody, reached(stage, RoundState.SUMMED))
            step(everybody)
    assert [stage.verdict(one) for one in good] == [PAID] * 3
    assert stage.verdict(torn) == refused(VerdictCode.MALFORMED)
    assert stage.verdict(stale) == refused(VerdictCode.HEADER_MISMATCH)
    assert stage.verdict(foreign) == refused(VerdictCode.WRONG_KEY)
    now = stage.round()
    liar = now.sums[now.validators.index(everybody[0].account)]
    assert liar.hash == b"\7" * 32 != now.sum_hash
    stage.check_sum(good)
    stage.check_money(good)
    lines = caplog.text
    assert f"event=refused validator={honest[1].account} task={stage.task} version=1" in lines
    assert f"sender={stale} code=header_mismatch " in lines
    assert "header field version: expected 1, got 7" in lines
    assert f"event=outvoted validator={honest[1].account}" in lines
    assert f"sender={everybody[0].account} expected={now.sum_hash.hex()}" in lines
    # given again later, its verdicts and its sum do not hold, and nobody else's
    stage.finality()
    judge = honest[1].account
    report = replay_verdicts(
        stage.contract.client, stage.task, store=stage.store, keys=[(judge, stage.keys[judge])]
    )
    assert (report.count("wrong"), report.count("untold"), report.sums.wrong) == (6, 0, 1)
    assert report.verdict.endswith(f" and 1 of {report.sums.verdicts} sums do not hold")
    assert {one.validator for one in report.wrong} == {everybody[0].account}
    (wrong,) = report.wrong_sums
    assert (wrong.validator, wrong.said) == (everybody[0].account, b"\7" * 32)
    assert wrong.expected == now.sum_hash


def test_a_round_in_sealed_mode(oracle: MakeOracle) -> None:
    stage = oracle(Mode.SEALED, devices=8)
    validators = stage.validators()
    stage.open(norm_max_e6=3_000_000)
    first, copier, rider, hidden, forger, parrot, giant, last = stage.devices
    stage.upload(first)
    step(validators)
    assert stage.verdict(first) == PAID
    stage.upload(copier)  # the same codes, sealed under its own name
    stage.upload(rider, np.zeros(PARAMETERS))
    stage.upload(hidden, UPDATE * 0.7, readers=stage.judges[:1])  # three of four cannot open it
    stage.upload(forger, UPDATE * 0.6, errors=[500_000, 200_001])
    stage.upload(parrot, -UPDATE)  # with the series of everybody
    stage.upload(giant, UPDATE * 1.9)
    stage.upload(last, UPDATE * 0.9)
    step_until(validators, decided(stage, stage.devices))
    assert stage.verdict(copier) == refused(VerdictCode.DUPLICATE)
    assert stage.verdict(rider) == refused(VerdictCode.NO_UPDATE)
    assert stage.verdict(forger) == refused(VerdictCode.ERROR_MISMATCH)
    assert stage.verdict(parrot) == refused(VerdictCode.COPIED_SERIES)
    assert stage.verdict(giant) == refused(VerdictCode.NORM)
    assert stage.verdict(hidden) == refused(VerdictCode.MALFORMED)
    assert stage.verdict(last) == PAID
    stage.close()
    assert stage.round().state is RoundState.SUMMED  # no sum in sealed mode
    stage.check_money([first, last])


def test_validators_run_a_model_that_the_card_brings(oracle: MakeOracle) -> None:
    graph = base64.b64encode(mlp_graph([2, 2])).decode()
    architecture = {"kind": "onnx", "graph": graph, "arrays": [["w0", [2, 2]], ["b0", [2]]]}
    stage = oracle(Mode.SEALED, devices=2, architecture=architecture)
    validators = stage.validators()
    stage.open()
    sound, forger = stage.devices
    stage.upload(sound)
    stage.upload(forger, -UPDATE)
    step_until(validators, decided(stage, stage.devices))
    assert stage.verdict(sound) == PAID
    assert stage.verdict(forger) == refused(VerdictCode.COPIED_SERIES)


def test_of_two_pending_copies_the_first_is_paid(oracle: MakeOracle) -> None:
    stage = oracle(Mode.SEALED, devices=2)
    validators = stage.validators()
    stage.open()
    for device in reversed(stage.devices):
        stage.upload(device)
    step_until(validators, decided(stage, stage.devices))
    assert stage.verdict(stage.devices[1]) == PAID
    assert stage.verdict(stage.devices[0]) == refused(VerdictCode.DUPLICATE)


def test_a_validator_started_anew_knows_what_was_accepted_before_it(oracle: MakeOracle) -> None:
    """Nothing but chain and IPFS carries over: all four are replaced twice in a round."""
    stage = oracle(Mode.SEALED, devices=2)
    validators = stage.validators()
    stage.open()
    stage.upload(stage.devices[1])
    step_until(validators, decided(stage, stage.devices[1:]))
    stage.upload(stage.devices[0])
    step_until([stage.validator(n) for n in range(4)], decided(stage, stage.devices))
    assert stage.verdict(stage.devices[0]) == refused(VerdictCode.DUPLICATE)


def test_a_replay_is_refused_and_named(
    oracle: MakeOracle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = oracle(devices=2)
    validators = [stage.validator(n, state_dir=tmp_path) for n in range(4)]
    step(validators)
    stage.open()
    first, second = stage.devices
    blob = stage.upload(first)
    step_until(validators, decided(stage, [first]))
    stage.close()
    assert stage.round().state is RoundState.SUMMED  # too few for a sum
    while stage.round().state is not RoundState.SETTLED:
        stage.push(stage.contract.settle(stage.task, stage.owner, 1), stage.owner)
    stage.open()
    stage.upload(first, UPDATE / 2)  # its row no longer has the old hash
    with caplog.at_level(logging.INFO, "gradledger.validator"):
        stage.record(second, blob)
        step_until(validators, decided(stage, [first, second]))
    assert stage.verdict(second) == refused(VerdictCode.HEADER_MISMATCH)
    assert f"replay_of={stage.task}/1/{first}" in caplog.text


# ---- blobs that do not come ---------------------------------------------------------------------


class Garbling(Store):
    """A store that alters one blob on the way."""

    cid = ""

    def _request(
        self, path: str, cid: str | None, bound: int, deadline: float, **options: Any
    ) -> bytes:
        data = super()._request(path, cid, bound, deadline, **options)
        return data[:-1] + bytes([data[-1] ^ 1]) if cid == self.cid and path == "/cat" else data


def test_a_blob_altered_on_the_way_is_never_accepted(oracle: MakeOracle) -> None:
    stage = oracle(devices=4)
    garbling = Garbling(stage.store.address)
    validators = [stage.validator(n, store=garbling if n else stage.store) for n in range(4)]
    step(validators)
    stage.open(verdict_sec=2)
    bad, *good = stage.devices
    garbling.cid = cid_v0(stage.upload(bad))
    for number, device in enumerate(good):
        stage.upload(device, UPDATE / (number + 2))
    step_until(validators, decided(stage, good))
    with pytest.raises(BlobCorruptError):
        garbling.get(garbling.cid)
    for _ in range(5):
        step(validators)
    assert stage.verdict(bad) == (UploadState.PENDING, VerdictCode.NONE)  # there is time yet
    stage.close()
    step_until(validators, reached(stage, RoundState.SUMMED))
    assert stage.verdict(bad) == refused(VerdictCode.UNAVAILABLE)
    stage.check_sum(good)
    stage.check_money(good)


def blocks(network: Network) -> Path:
    return network.home / "kubo" / "repo" / "blocks"


def test_a_blob_altered_in_kubo_is_never_accepted(oracle: MakeOracle) -> None:
    stage = oracle(devices=1)
    validators = stage.validators()
    stage.open(verdict_sec=2)
    blob = stage.upload(stage.devices[0])
    (path,) = (one for one in blocks(stage.network).rglob("*.data") if blob in one.read_bytes())
    raw = bytearray(path.read_bytes())
    raw[raw.index(blob) + 200] ^= 1
    path.chmod(0o600)
    path.write_bytes(raw)
    step(validators)
    assert stage.verdict(stage.devices[0])[0] is UploadState.PENDING
    stage.close()
    step_until(validators, decided(stage, stage.devices))
    assert stage.verdict(stage.devices[0]) == refused(VerdictCode.UNAVAILABLE)
    stage.check_money([])


def test_a_missing_blob_holds_up_no_other_and_is_taken_when_it_comes(oracle: MakeOracle) -> None:
    stage = oracle(devices=3)
    validators = stage.validators()
    stage.open()
    late, lost, there = stage.devices
    blob = stage.upload(late, UPDATE / 2, store=False)
    stage.upload(lost, UPDATE / 3, store=False)
    stage.upload(there)
    step_until(validators, decided(stage, [there]))
    assert stage.verdict(late)[0] is UploadState.PENDING
    stage.store.put(blob)
    step_until(validators, decided(stage, [late]))
    assert stage.verdict(late) == PAID
    assert stage.verdict(lost)[0] is UploadState.PENDING


def test_a_store_that_is_down_refuses_nobody(oracle: MakeOracle) -> None:
    stage = oracle(devices=1)
    stage.validators()
    down = [stage.validator(n, store=Store("/ip4/127.0.0.1/tcp/9")) for n in range(4)]
    stage.open(verdict_sec=2)
    stage.upload(stage.devices[0])
    stage.close()
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        step(down)
        time.sleep(0.1)
    assert stage.said(stage.devices[0]) == bytes(32)


class Flaky(Store):
    """A store whose first read of anything fails."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.asked: set[str] = set()

    def get(self, cid: str, **options: Any) -> bytes:
        if cid not in self.asked:
            self.asked.add(cid)
            raise StoreUnavailableError("not now")
        return super().get(cid, **options)


def test_a_sum_of_more_than_the_cache_holds(oracle: MakeOracle) -> None:
    """Whoever sums fetches again what it has dropped, and goes on while something comes."""
    stage = oracle(devices=5)
    judges = stage.validators()
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    step_until(judges, decided(stage, stage.devices))
    blob_bytes_max = update_bytes_max(task_codec(stage.contract.task(stage.task)), stage.public)
    fresh = [
        stage.validator(0, cache_bytes_max=1),  # one upload at a time
        stage.validator(1, cache_bytes_max=4 * blob_bytes_max),  # two, and the next two
        stage.validator(2, store=Flaky(stage.store.address)),
    ]
    stage.close()
    step_until(fresh, reached(stage, RoundState.SUMMED))  # the quorum needs all three
    stage.check_sum(stage.devices)


# ---- batches ------------------------------------------------------------------------------------


class Hasty(Validator):
    """Attests one upload of a batch beforehand, so that the batch is refused."""

    ahead: Member | None = None

    def _push(self, action: Any, reference: str | None = None) -> None:
        if self.ahead and action.name == "attest":
            row, self.ahead = self.ahead, None
            task = (self._tasks or ("",))[0]
            one = [Verdict(slot=row.upload_slot, hash=row.upload_hash, code=VerdictCode.ACCEPT)]
            early = self.contract.attest(task, 1, self.account, one)
            # Another expiration than the validator's own: never the same transaction.
            self.chain.push([early], [self._key], expiration_sec=90)
            with pytest.raises(AlreadyDoneError):
                super()._push(action, reference)
        super()._push(action, reference)


def test_a_batch_that_fails_is_sent_in_halves(oracle: MakeOracle) -> None:
    stage = oracle(devices=3)
    stage.validators()
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    hasty = stage.validator(0, Hasty)
    hasty.ahead = stage.member(stage.devices[1])
    report = hasty.step()
    assert (report.accepted, report.attested, report.skipped, report.faults) == (3, 2, 0, 0)
    place = stage.round().validators.index(hasty.account)
    assert [stage.said(one)[place] for one in stage.devices] == [VerdictCode.ACCEPT] * 3
    assert hasty.step().attested == 0


def test_what_goes_wrong_with_one_upload_stops_no_other(
    oracle: MakeOracle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = oracle(devices=2)
    validator = stage.validators(1)[0]
    stage.open()
    for number, device in enumerate(stage.devices):
        stage.upload(device, UPDATE / (number + 1))
    real, poison = envelope.parse, stage.devices[0]

    def parse(data: bytes) -> envelope.Envelope:
        found = real(data)
        if found.header.sender == poison:
            raise ZeroDivisionError("a fault nobody thought of")
        return found

    monkeypatch.setattr(envelope, "parse", parse)
    with caplog.at_level(logging.ERROR, "gradledger.validator"):
        report = validator.step()
    assert (report.accepted, report.skipped, report.attested) == (1, 1, 1)
    assert f"event=skipped validator={validator.account}" in caplog.text
    assert f"sender={poison} error=ZeroDivisionError" in caplog.text


def test_a_node_that_is_gone_is_a_fault_and_no_crash(oracle: MakeOracle) -> None:
    stage = oracle(devices=1)
    name = stage.judges[0]
    validator = Validator(name, stage.keys[name], "http://127.0.0.1:9", stage.store)
    report = validator.step()
    assert not report.is_reachable and report.faults == 1


# ---- owners that go away ------------------------------------------------------------------------


@pytest.mark.slow
def test_validators_bring_a_round_to_its_end_without_the_owner(
    oracle: MakeOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer_validation.validator.OWNER_FIRST_SEC", 1)
    stage = oracle(devices=4, silence=Silence.REFUND)
    validators = stage.validators()
    stage.open(open_sec=3, verdict_sec=2, sum_sec=2)
    *good, lost = stage.devices
    for number, device in enumerate(good):
        stage.upload(device, UPDATE / (number + 1))
    stage.upload(lost, store=False)
    step_until(validators, reached(stage, RoundState.SETTLED))
    now = stage.round()
    assert any(now.sum_hash) and any(now.root) and now.settled == 4
    assert stage.verdict(lost)[0] is UploadState.REFUSED
    stage.check_money(good)


# ---- real processes -----------------------------------------------------------------------------


def pid_of(network: Network, name: str) -> int:
    (row,) = (one for one in network.status()["processes"] if one["name"] == name)
    assert row["state"] == "up"
    return int(row["pid"])


@pytest.fixture
def served(localnet_validators: Network) -> Iterator[Network]:
    yield localnet_validators
    localnet_validators.up()  # whoever was killed is back


def test_a_round_survives_a_killed_validator(served: Network, oracle: MakeOracle) -> None:
    stage = oracle(devices=4, judges=["validator1", "validator2", "validator3", "validator4"])
    step_until([], lambda: all(stage.member(one).joined for one in stage.judges))
    stage.open()
    stage.upload(stage.devices[0])
    step_until([], decided(stage, stage.devices[:1]))
    os.kill(pid_of(served, "validator2"), signal.SIGKILL)
    for number, device in enumerate(stage.devices[1:]):
        stage.upload(device, UPDATE / (number + 2))
    step_until([], decided(stage, stage.devices))
    stage.close()
    step_until([], reached(stage, RoundState.SUMMED))
    assert [stage.verdict(one) for one in stage.devices] == [PAID] * 4
    now = stage.round()
    assert not any(now.sums[now.validators.index("validator2")].hash)
    stage.check_sum(stage.devices)
    stage.check_money(stage.devices)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_cleanly(
    oracle: MakeOracle, tmp_path: Path, number: signal.Signals
) -> None:
    stage = oracle(devices=1)
    name = stage.judges[0]
    save_key_file(tmp_path / "key.json", name, stage.keys[name])
    command = [
        *(sys.executable, "-m", "gradledger.cli", "validator", "run", "--account", name),
        *("--key-file", str(tmp_path / "key.json"), "--task", stage.task),
        *("--chain", ",".join(stage.contract.client.endpoints), "--store", stage.store.address),
        *("--log-file", str(tmp_path / "log"), "--state-dir", str(tmp_path)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        step_until([], lambda: stage.member(name).joined)
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    text = (tmp_path / "log").read_text()
    assert f"event=joined validator={name} task={stage.task}" in text
    assert text.splitlines()[-1].endswith(f"event=stopped validator={name}")


def test_the_members_of_a_large_task_are_not_read_again_at_once(
    oracle: MakeOracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = oracle(devices=2)
    validator = stage.validator(0)
    validator.step()
    stage.open()
    clock = [1000.0]
    monkeypatch.setattr("producer_validation.validator.MEMBERS_FEW", 5)
    monkeypatch.setattr("producer_validation.validator.REST_SEC_PER_MEMBER", 10.0)
    stopped = SimpleNamespace(**{**vars(time), "monotonic": lambda: clock[0]})
    monkeypatch.setattr("producer_validation.validator.time", stopped)

    def judged() -> list[bool]:
        validator.step()
        return [any(stage.said(device)) for device in stage.devices[: stage.round().uploads]]

    stage.upload(stage.devices[0])
    assert judged() == [True]
    stage.upload(stage.devices[1])
    assert judged() == [True, False]
    clock[0] += 59.0  # two devices and four validators: a minute
    assert judged() == [True, False]
    clock[0] += 2.0
    assert judged() == [True, True]
