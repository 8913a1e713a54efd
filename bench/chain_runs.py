"""One measured run against a world: send, watch the blocks, and see what became of every one."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.chain_world import HZ, Nodes, Signers, Watch, World
from gradledger.chain.client import ChainClient

SINGLE = "/v1/chain/send_transaction2"
BATCHED = "/v1/chain/push_transactions"
IRREVERSIBLE_SEC_MAX = 120.0


class Run:
    """Sends signed transactions and reads what the chain made of them."""

    def __init__(self, nodes: Nodes, world: World, signers: Signers, folder: Path) -> None:
        self.nodes, self.world, self.signers, self.folder = nodes, world, signers, folder
        self._salt = 0

    def load(
        self,
        kinds: tuple[str, ...],
        *,
        connections: int,
        seconds: float,
        count: int,
        batch: int = 1,
    ) -> tuple[dict[str, Any], list[int]]:
        """Return the figures of a run, and the numbers of the devices that got through.

        Parameters
        ----------
        kinds : tuple of str
            What the devices do in turn: ``fedlearning``, ``transfer``.
        seconds : float
            No request leaves later than that.
        count : int
            Transactions that are signed ahead; each is a different device's.
        batch : int
            Transactions in one request.
        """
        nodes = self.nodes
        path, out = self.folder / "requests", self.folder / "answers"
        self._salt += 1
        ids = self.signers.sign(self.world, kinds, count, path, batch=batch, salt=self._salt)
        first_block = self.world.client.get_info().head_block + 1
        command = [sys.executable, "-m", "bench.chain_client", str(path), str(out)]
        command += ["--ports", ",".join(map(str, nodes.ports))]
        command += ["--path", SINGLE if batch == 1 else BATCHED]
        command += ["--connections", str(connections), "--seconds", str(seconds)]
        with Watch(nodes.urls[0]) as watch:
            before = nodes.cpu_s(), nodes.main_threads_s(), busy_s()
            subprocess.run(command, check=True)
            after = nodes.cpu_s(), nodes.main_threads_s(), busy_s()
            last = self.world.client.get_info().head_block + 1
            self.world.client.wait_until(
                lambda: self.world.client.get_info().irreversible_block >= last,
                timeout_sec=IRREVERSIBLE_SEC_MAX,
                poll_sec=0.1,
                what=f"block {last} to be irreversible",
            )
            time.sleep(0.1)
        sent, answered, statuses = times(out.with_suffix(".times"))
        rest = json.loads(out.with_suffix(".json").read_text())
        blocks = executed(nodes.urls[0], first_block, last)
        heads, finals = watch.times()
        requests = [number for number, when in enumerate(answered) if when]
        begun = min(sent[number] for number in requests)
        ended = max(answered[number] for number in requests)
        inclusion, finality, through = [], [], []
        billed: dict[str, list[int]] = {kind: [] for kind in kinds}
        for number in requests:
            for place in range(number * batch, min((number + 1) * batch, count)):
                found = blocks.get(ids[place])
                if found is None:
                    continue
                through.append(place)
                billed[kinds[place % len(kinds)]].append(found[1])
                inclusion.append(heads[found[0]] - sent[number])
                finality.append(finals[found[0]] - sent[number])
        elapsed: dict[str, list[int]] = {kind: [] for kind in kinds}
        refusals = []
        for number, text in rest["kept"]:
            if statuses[number] not in (200, 202):
                refusals.append(text[:300])
                continue
            for trace in _traces(text):
                elapsed[trace["action_traces"][0]["act"]["name"]].append(trace["elapsed"])
        seconds, done = ended - begun, len(through)
        nodes_s, main_s, all_s = (b - a for a, b in zip(before, after, strict=True))
        figures: dict[str, Any] = {
            "actions": " and ".join(kinds),
            "producers": len(nodes.ports),
            "connections": connections,
            "transactions_per_request": batch,
            "seconds": round(seconds, 3),
            "transactions": done,
            "not_included": sum(min(batch, count - n * batch) for n in requests) - done,
            "per_s": round(done / seconds, 1),
            "answer_ms": quantiles([answered[n] - sent[n] for n in requests]),
            "inclusion_ms": quantiles(inclusion),
            "irreversible_ms": quantiles(finality),
            "billed_us": {kind: statistics.median(found) for kind, found in billed.items()},
            "elapsed_us": {kind: statistics.median(found) for kind, found in elapsed.items()},
            "blocks": len({found[0] for found in blocks.values()}),
            "node_us_each": round(1e6 * nodes_s / done, 1),
            "main_thread_us_each": round(1e6 * main_s / done, 1),
            "client_us_each": round(1e6 * rest["cpu_s"] / done, 1),
            "cores_nodes": round(nodes_s / seconds, 2),
            "cores_client": round(rest["cpu_s"] / seconds, 2),
            "cores_others": round(max(0.0, all_s - nodes_s - rest["cpu_s"]) / seconds, 2),
            "refused": sum(statuses[n] not in (200, 202) for n in requests),
        }
        if refusals:
            figures["refusals"] = refusals
        return figures, through


def _traces(text: str) -> list[dict[str, Any]]:
    """Return the traces in an answer to one transaction or to many."""
    answer = json.loads(text)
    listed = answer if isinstance(answer, list) else [answer]
    return [one["processed"] for one in listed if "elapsed" in one["processed"]]


def busy_s() -> float:
    """Return the time that all the machine's processors together were busy, seconds."""
    fields = Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    user, nice, kernel, _, _, interrupts, soft = (int(field) for field in fields[:7])
    return (user + nice + kernel + interrupts + soft) / HZ


def times(path: Path) -> tuple[array[float], array[float], array[int]]:
    """Return what the client wrote: sent, answered, status of each request."""
    data = path.read_bytes()
    count = len(data) // 18
    columns = array("d"), array("d"), array("H")
    columns[0].frombytes(data[: 8 * count])
    columns[1].frombytes(data[8 * count : 16 * count])
    columns[2].frombytes(data[16 * count :])
    return columns


def executed(url: str, first: int, last: int) -> dict[bytes, tuple[int, int]]:
    """Return block and billed microseconds of each transaction in these blocks, by its id."""
    client = ChainClient(url)
    found: dict[bytes, tuple[int, int]] = {}
    for number in range(first, last + 1):
        block = client.call("/v1/chain/get_raw_block", {"block_num_or_id": str(number)})
        for row in block["transactions"]:
            if row["status"] == "executed" and not isinstance(row["trx"], str):
                packed = bytes.fromhex(row["trx"][1]["packed_trx"])
                found[hashlib.sha256(packed).digest()] = (number, int(row["cpu_usage_us"]))
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    at = min(len(ordered) - 1, int(0.99 * len(ordered)))
    return {
        "median": round(1000 * statistics.median(ordered), 2),
        "p99": round(1000 * ordered[at], 2),
    }
