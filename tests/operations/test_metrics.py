"""The metrics endpoint, and what every party declares."""

from __future__ import annotations

import ast
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scraping import scrape, value

from gradledger import metrics as module
from gradledger.chain.client import ChainInfo
from gradledger.chain.contract import RoundState, VerdictCode
from gradledger.errors import ConfigError
from gradledger.metrics import (
    TASKS_MAX,
    Metrics,
    MetricsServer,
    OwnerMetrics,
    PayerMetrics,
    ValidatorMetrics,
    served,
)
from owner.run import STEPS

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
INFO = ChainInfo("cf" * 32, "v", 1000, 1_700_000_000, 990, "00" * 32, "")


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with MetricsServer("0") as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def everything(metrics: Metrics) -> tuple[ValidatorMetrics, OwnerMetrics, PayerMetrics]:
    """Let one process be all parties."""
    chain: Any = SimpleNamespace(last_info=INFO)
    store: Any = SimpleNamespace(bytes_fetched=12, bytes_stored=34)
    metrics.watch(chain, store)
    return ValidatorMetrics(metrics), OwnerMetrics(metrics, "digits"), PayerMetrics(metrics)


def use(metrics: Metrics) -> None:
    """Touch every metric once."""
    validator, owner, payer = everything(metrics)
    for one in (validator.attested, validator.sums, validator.pushed, validator.skipped):
        one.inc()
    validator.faults.inc()
    validator.judge(VerdictCode.DUPLICATE)
    validator.judge(VerdictCode.OPENING_MISMATCH, is_audit=True)
    validator.lots.labels("committed").inc()
    validator.serve("digits", 3)
    with validator.attest_sec.time():
        pass
    counts = {"pending": 1, "held": 0, "drawn": 0, "accepted": 2, "refused": 3, "paid": 40}
    round_: Any = SimpleNamespace(version=3, state=RoundState.SUMMING, **counts)
    owner.see_round(round_)
    owner.see_round(SimpleNamespace(version=2))  # type: ignore[arg-type]
    parts = {"deposited": 100, "paid": 40, "reserved": 10, "withdrawn": 20, "free": 30}
    owner.see_escrow(SimpleNamespace(**parts))  # type: ignore[arg-type]
    owner.settled.inc()
    owner.retries.inc()
    for step in STEPS:
        with owner.step_sec.labels(step).time():
            pass
    payer.answer("signed")
    payer.sign("digits", "join")


def test_what_is_counted_is_served(server: MetricsServer) -> None:
    use(server.metrics)
    found = scrape(server.url)
    assert value(found, "validator_uploads_judged_total", verdict="duplicate") == 1
    assert value(found, "validator_uploads_judged_total", verdict="accept") == 0
    assert value(found, "validator_round_version", task="digits") == 3
    assert value(found, "owner_round_version", task="digits") == 3
    states = {
        dict(labels)["state"]: held
        for (name, labels), held in found.items()
        if name == "gradledger_owner_round_state"
    }
    assert states == {state.name.lower(): state is RoundState.SUMMING for state in RoundState}
    assert value(found, "owner_round_uploads", task="digits", verdict="refused") == 3
    assert value(found, "owner_escrow_units", task="digits", part="free") == 30
    assert value(found, "payer_signatures_total", task="digits", action="join") == 1
    assert value(found, "chain_lag_blocks") == 10
    assert value(found, "chain_head_timestamp_seconds") == 1_700_000_000
    assert value(found, "ipfs_fetched_bytes_total") == 12
    assert found["process_resident_memory_bytes", frozenset()] > 2**20


def test_without_a_registry_nothing_is_counted_and_all_works() -> None:
    use(Metrics())
    with served(None) as metrics:
        assert not metrics.is_on


def test_nothing_is_said_of_a_chain_that_was_not_heard_yet(server: MetricsServer) -> None:
    chain: Any = SimpleNamespace(last_info=None)
    server.metrics.watch(chain)
    assert not any(name.startswith("gradledger_") for name, _ in scrape(server.url))


def test_tasks_are_bounded(server: MetricsServer) -> None:
    validator = ValidatorMetrics(server.metrics)
    for number in range(3 * TASKS_MAX):
        validator.serve(f"task{number}", 1)

    def shown() -> set[str]:
        return {
            dict(labels)["task"]
            for name, labels in scrape(server.url)
            if name == "gradledger_validator_round_version"
        }

    assert shown() == {f"task{number}" for number in range(TASKS_MAX)}
    validator.forget("task0")
    validator.forget(f"task{TASKS_MAX}")
    validator.serve("another", 1)
    assert len(shown()) == TASKS_MAX and "another" in shown()


def test_every_metric_is_documented(server: MetricsServer) -> None:
    use(server.metrics)
    suffixes = re.compile("_(created|bucket|count|sum)$")
    names = {suffixes.sub("", name) for name, _ in scrape(server.url)}
    told = set(
        re.findall(r"^\| `(gradledger_[a-z_]+)", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    )
    ours = {name for name in names if name.startswith("gradledger_")}
    # `_created` is the client library's companion of every counter.
    assert {name for name in ours if f"{name}_total" not in ours} == told


def events(text: str) -> set[str]:
    """Return the events that a module logs, by the calls that do it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
        if name in ("_say", "_say_once", "_warn") or getattr(node.func, "id", "") == "say":
            inside = (part for argument in node.args for part in ast.walk(argument))
            words = (str(one.value) for one in inside if isinstance(one, ast.Constant))
            found.update(words)
    return found


def test_every_event_is_documented() -> None:
    root = DOCS.parents[1]
    used: set[str] = set()
    for package in ("gradledger", "owner", "producer_validation"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "from gradledger.logs import" in text:
                used |= events(text)
    text = DOCS.read_text(encoding="utf-8").partition("## Logs")[2]
    assert used == set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)) - {"message"}


# ---- callers that misbehave ---------------------------------------------------------------------


def exchange(server: MetricsServer, data: bytes) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=10) as sock:
        answer = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65_536):
                answer += piece
        except OSError:
            pass
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /metrics/../etc HTTP/1.0\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", b"501"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", b""),
        (b"\x16\x03\x01\x00\xff\n\n", b""),
        (b"", b""),
    ],
)
def test_callers_that_misbehave_are_turned_away(
    server: MetricsServer, data: bytes, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = exchange(server, data)
    if status:
        assert answer.split(b" ", 2)[1] == status
    else:
        assert not answer.startswith(b"HTTP/1.0 200")
    assert scrape(server.url)
    assert capfd.readouterr() == ("", "")


def test_a_slow_caller_is_cut_off(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SEC", 0.2)
    with socket.create_connection(server.server_address[:2], timeout=10) as sock:
        sock.sendall(b"GET /metr")
        assert scrape(server.url)  # the next one waits no longer than that
        assert sock.recv(100) == b""


# ---- the option ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["", "x", ":", "70000", "-1", "1e3", "²", "::1", "::1:0", "127.0.0.1", "host:port"]
)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--metrics: expected \[HOST:\]PORT, got "):
        MetricsServer(address)


def test_loopback_is_the_default() -> None:
    for address in ("0", ":0", "127.0.0.1:0"):
        with MetricsServer(address) as made:
            assert made.server_address[0] == "127.0.0.1"
            assert made.url == f"http://127.0.0.1:{made.server_address[1]}/metrics"


def test_ipv6_has_brackets() -> None:
    try:
        made = MetricsServer("[::1]:0")
    except ConfigError:
        pytest.skip("no IPv6 here")
    with made:
        assert made.url == f"http://[::1]:{made.server_address[1]}/metrics"


def test_a_port_that_is_taken_is_named(server: MetricsServer) -> None:
    port = server.server_address[1]
    with pytest.raises(ConfigError, match=f"--metrics {port}: cannot listen there"):
        MetricsServer(str(port))


def test_the_endpoint_ends_with_its_block(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    with served("0"):
        (line,) = [one for one in caplog.messages if one.startswith("event=metrics url=")]
        url = line.partition("url=")[2]
        assert scrape(url)
    with pytest.raises(urllib.error.URLError):
        scrape(url)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_parties_do_without_prometheus_client() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
from gradledger.errors import ConfigError
from gradledger.metrics import Metrics, MetricsServer, OwnerMetrics, PayerMetrics, ValidatorMetrics
import owner.payer.service, owner.run, producer_validation.validator
ValidatorMetrics(Metrics()), OwnerMetrics(Metrics(), "digits"), PayerMetrics(Metrics())
try:
    MetricsServer("0")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "metrics: expected the package prometheus_client: pip install 'gradledger[metrics]'\n"
    )
