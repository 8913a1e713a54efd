"""What validator, owner and payer count, for Prometheus.

Every metric is declared here; docs/operations.md says what each means. A party that is given no
`Metrics` counts nothing and needs no prometheus_client. Labels are verdicts, codes, states, steps
and tasks, never accounts, so that nobody can make them grow: tasks are bounded by `TASKS_MAX`.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from gradledger.chain.transport import BoundedReader
from gradledger.errors import ConfigError
from gradledger.logs import say

if TYPE_CHECKING:
    from gradledger.chain.client import ChainClient
    from gradledger.chain.contract import Escrow, Round, VerdictCode
    from gradledger.store import Store

__all__ = [
    "Metrics",
    "MetricsServer",
    "OwnerMetrics",
    "PayerMetrics",
    "ValidatorMetrics",
    "add_option",
    "served",
]

log = logging.getLogger("gradledger.metrics")

HOST_DEFAULT = "127.0.0.1"
PATH = "/metrics"
TASKS_MAX = 64  # that a validator shows
REQUEST_SEC = 5.0  # from the connection to the last byte of a request, and again to answer
REQUEST_BYTES_MAX = 65_536


class _Nothing:
    """Stands for any metric where nothing is counted."""

    def labels(self, *values: object) -> _Nothing:
        return self

    def inc(self, amount: float = 1) -> None:
        pass

    def set(self, value: float) -> None:
        pass

    def remove(self, *values: object) -> None:
        pass

    def time(self) -> Any:
        return nullcontext()


_NOTHING = _Nothing()


class Metrics:
    """Makes the metrics of one party.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry, optional
        Where they are registered, once each; None: nothing is counted.
    """

    def __init__(self, registry: Any = None) -> None:
        self.registry = registry

    @property
    def is_on(self) -> bool:
        """Whether anything is counted."""
        return self.registry is not None

    def make(self, kind: str, name: str, text: str, *labels: str) -> Any:
        """Return a ``Counter``, ``Gauge``, ``Histogram`` or ``Summary`` of prometheus_client."""
        if self.registry is None:
            return _NOTHING
        import prometheus_client

        cls = getattr(prometheus_client, kind)
        return cls(f"gradledger_{name}", text, labels, registry=self.registry)

    def watch(self, chain: ChainClient, store: Store | None = None) -> None:
        """Show what a client last heard of its chain, and what a store has moved."""
        if self.registry is not None:
            self.registry.register(_Parts(chain, store))


class _Parts:
    """Reads chain client and store when somebody asks; asks neither of their nodes."""

    def __init__(self, chain: ChainClient, store: Store | None) -> None:
        self._chain, self._store = chain, store

    def describe(self) -> list[Any]:
        """Return nothing: there may be nothing to collect yet."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the families of metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        info = self._chain.last_info
        if info is not None:
            for name, text, value in (
                ("head_block", "Head block", info.head_block),
                ("head_timestamp_seconds", "Time of the head block", info.head_time),
                (
                    "lag_blocks",
                    "Head block minus last irreversible block",
                    info.head_block - info.irreversible_block,
                ),
            ):
                said = f"{text}, as a node last said"
                yield GaugeMetricFamily(f"gradledger_chain_{name}", said, value)
        if self._store is not None:
            for name, text, value in (
                ("fetched", "Content fetched from IPFS and verified", self._store.bytes_fetched),
                ("stored", "Content put on IPFS", self._store.bytes_stored),
            ):
                yield CounterMetricFamily(f"gradledger_ipfs_{name}_bytes", text, value)


class ValidatorMetrics:
    """What a validator counts since its start.

    Attributes
    ----------
    attested, sums, pushed, skipped, faults : Counter
        As in `producer_validation.validator.StepReport`.
    lots : Counter
        Lots, by what happened to them: ``committed`` or ``revealed``.
    attest_sec : Histogram
        Seconds of an `attest` transaction, until a node took or refused it.
    """

    def __init__(self, metrics: Metrics) -> None:
        from gradledger.chain.contract import VerdictCode

        make = metrics.make
        self._judged = make(
            "Counter", "validator_uploads_judged", "Uploads judged, by verdict", "verdict"
        )
        self._audited = make(
            "Counter", "validator_uploads_audited", "Opened uploads judged, by verdict", "verdict"
        )
        for code in VerdictCode:
            if VerdictCode.NONE < code < VerdictCode.SILENCE:
                self._judged.labels(code.name.lower())
                self._audited.labels(code.name.lower())
        self.lots = make("Counter", "validator_lots", "Lots committed and revealed", "step")
        self.attested = make(
            "Counter", "validator_verdicts_attested", "Verdicts that a transaction carried"
        )
        self.sums = make("Counter", "validator_sums_attested", "Sums attested")
        self.pushed = make(
            "Counter", "validator_rounds_pushed", "Rounds pushed on after a deadline"
        )
        self.skipped = make("Counter", "validator_uploads_skipped", "Uploads left for a later step")
        self.faults = make("Counter", "validator_faults", "Faults that will be tried again")
        self.attest_sec = make(
            "Histogram", "validator_attest_seconds", "Time until a node answered to verdicts"
        )
        self._version = make(
            "Gauge", "validator_round_version", "Newest round of a task that it serves", "task"
        )
        self._tasks: set[str] = set()

    def judge(self, code: VerdictCode, *, is_audit: bool = False) -> None:
        """Count a verdict, on an upload or in its audit."""
        (self._audited if is_audit else self._judged).labels(code.name.lower()).inc()

    def serve(self, task: str, version: int) -> None:
        """Show the round of a task, if there is room for it."""
        if task in self._tasks or len(self._tasks) < TASKS_MAX:
            self._tasks.add(task)
            self._version.labels(task).set(version)

    def forget(self, task: str) -> None:
        """Show a task no more."""
        if task in self._tasks:
            self._tasks.discard(task)
            self._version.remove(task)


class OwnerMetrics:
    """What the owner of one task last read of it, and what a run counts.

    Attributes
    ----------
    settled, retries : Counter
    step_sec : Summary
        Seconds of each step of `owner.run.STEPS`.
    """

    def __init__(self, metrics: Metrics, task: str) -> None:
        from gradledger.chain.contract import RoundState

        make = metrics.make
        self.is_on = metrics.is_on
        self._task = task
        self._newest = 0
        self._states = tuple(RoundState)
        self._version = make("Gauge", "owner_round_version", "Newest round", "task")
        self._state = make(
            "Gauge", "owner_round_state", "1 for the state of the newest round", "task", "state"
        )
        self._uploads = make(
            "Gauge", "owner_round_uploads", "Uploads of the newest round", "task", "verdict"
        )
        self._round_paid = make(
            "Gauge", "owner_round_paid_units", "Paid in the newest round, smallest units", "task"
        )
        self._escrow = make(
            "Gauge", "owner_escrow_units", "The task's money in smallest units", "task", "part"
        )
        self.settled = make("Counter", "owner_rounds_settled", "Rounds reported as settled")
        self.retries = make("Counter", "owner_retries", "Steps begun again after a fault")
        self.step_sec = make("Summary", "owner_step_seconds", "Time of a step", "step")

    def see_round(self, found: Round) -> None:
        """Show a round that was read, unless a newer one is known."""
        if found.version < self._newest:
            return
        self._newest = found.version
        self._version.labels(self._task).set(found.version)
        for state in self._states:
            self._state.labels(self._task, state.name.lower()).set(found.state is state)
        for verdict in ("pending", "held", "drawn", "accepted", "refused"):
            self._uploads.labels(self._task, verdict).set(getattr(found, verdict))
        self._round_paid.labels(self._task).set(found.paid)

    def see_escrow(self, escrow: Escrow) -> None:
        """Show the task's money."""
        for part in ("deposited", "paid", "reserved", "withdrawn", "free"):
            self._escrow.labels(self._task, part).set(getattr(escrow, part))


class PayerMetrics:
    """What a payer counts since its start."""

    def __init__(self, metrics: Metrics) -> None:
        self._answers = metrics.make(
            "Counter", "payer_answers", "Answers by code, of the service or of the contract", "code"
        )
        self._signatures = metrics.make(
            "Counter", "payer_signatures", "Transactions signed", "task", "action"
        )

    def answer(self, code: str) -> None:
        """Count an answer; codes are this project's own words."""
        self._answers.labels(code).inc()

    def sign(self, task: str, action: str) -> None:
        """Count a signature for a task that the payer serves."""
        self._signatures.labels(task, action).inc()


# ---- the endpoint -----------------------------------------------------------------------------


class MetricsServer(HTTPServer):
    """Answers ``GET /metrics``, one caller after the other, each bounded in time and size.

    Parameters
    ----------
    address : str
        ``[HOST:]PORT``; loopback by default, port 0 takes a free one.

    Attributes
    ----------
    metrics : Metrics
        In a registry of its own, beside the process's memory, CPU time and open files.
    url : str

    Raises
    ------
    ConfigError
        There is no prometheus_client, or it cannot listen there.
    """

    def __init__(self, address: str) -> None:
        host, port = _host_and_port(address)
        try:
            import prometheus_client
        except ImportError as error:
            raise ConfigError(
                "metrics: expected the package prometheus_client: pip install 'gradledger[metrics]'"
            ) from error
        self.metrics = Metrics(prometheus_client.CollectorRegistry())
        prometheus_client.ProcessCollector(registry=self.metrics.registry)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--metrics {address}: cannot listen there: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}{PATH}"

    def server_bind(self) -> None:
        """Bind, without looking the host's name up."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        end = time.monotonic() + REQUEST_SEC
        self.rfile = io.BufferedReader(
            BoundedReader(self.connection, end, bytes_max=REQUEST_BYTES_MAX)
        )

    def do_GET(self) -> None:
        """Answer with all metrics, in the text format."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        self.connection.settimeout(REQUEST_SEC)
        if self.path.partition("?")[0] != PATH:
            self.send_error(404, explain=f"expected {PATH}")
            return
        body = generate_latest(self.server.metrics.registry)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of who asks."""


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        port = ""
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        raise ConfigError(f"--metrics: expected [HOST:]PORT, got {address!r}")
    return host or HOST_DEFAULT, int(port)


def add_option(parser: ArgumentParser) -> None:
    """Add ``--metrics`` to a command."""
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="serve metrics to Prometheus; on loopback by default; 0: a free port, see the log",
    )


@contextmanager
def served(address: str | None) -> Iterator[Metrics]:
    """Give metrics that are served while the block lasts.

    Without an address they count nothing. With one, the log gets ``event=metrics url=...``,
    whatever its level.
    """
    if address is None:
        yield Metrics()
        return
    server = MetricsServer(address)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        log.setLevel(logging.INFO)
        say(log, logging.INFO, "metrics", url=server.url)
        yield server.metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
