"""The bench of the chain: its client, its signatures, its sums; and a round of its world."""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import chain, chain_client, chain_postgres, chain_runs, fleet, record
from bench.chain_world import Job, Place, World, device_key, name_of, sign_range
from gradledger.chain.contract import RoundState
from gradledger.chain.keys import recover_key
from gradledger.localnet.network import Network


class _Node(BaseHTTPRequestHandler):
    """Accepts every body but those that say no, in two pieces."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        answer = b'{"said": "%b"}' % (b"no" if b"no" in body else b"yes" * 1000)
        self.send_response(500 if b"no" in body else 202)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[:5])
        self.wfile.flush()
        self.wfile.write(answer[5:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def node() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Node)
    server.bodies = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _load(
    tmp_path: Path, node: ThreadingHTTPServer, sent: list[bytes], **options: Any
) -> tuple[Any, Any, Any, dict[str, Any]]:
    path, out = tmp_path / "requests", tmp_path / "out"
    chain_client.write_bodies(path, iter(sent))
    arguments = {"connections": 3, "seconds": 60, "keep-every": 4, "path": "/x"} | options
    listed = [str(path), str(out), "--ports", f"{node.server_address[1]}"]
    for name, value in arguments.items():
        listed += [f"--{name}", str(value)]
    assert chain_client.main(listed) == 0
    rest = json.loads(out.with_suffix(".json").read_text())
    return *chain_runs.times(out.with_suffix(".times")), rest


def test_the_client_sends_each_body_once_and_tells_answers_from_refusals(
    tmp_path: Path, node: ThreadingHTTPServer
) -> None:
    bodies = [b"body %d" % number for number in range(40)]
    bodies[7] = b"no, not this one"
    sent, answered, statuses, rest = _load(tmp_path, node, bodies)
    assert Counter(node.bodies) == Counter(bodies)  # type: ignore[attr-defined]
    assert list(statuses) == [500 if number == 7 else 202 for number in range(40)]
    assert all(0 < start < end for start, end in zip(sent, answered, strict=True))
    kept = dict(rest["kept"])
    assert sorted(kept) == [0, 4, 7, 8, 12, 16, 20, 24, 28, 32, 36]
    assert json.loads(kept[7]) == {"said": "no"}
    assert json.loads(kept[8]) == {"said": "yes" * 1000}


def test_the_client_stops_when_its_time_is_over(tmp_path: Path, node: ThreadingHTTPServer) -> None:
    sent, answered, statuses, _ = _load(tmp_path, node, [b"x"] * 10, seconds=0)
    assert len(node.bodies) == 3  # type: ignore[attr-defined]  # one on each connection
    assert [bool(one) for one in sent] == [True] * 3 + [False] * 7
    assert not any(answered[3:]) and not any(statuses[3:])


@pytest.mark.parametrize("batch", [1, 2])
def test_each_transaction_is_signed_by_another_device(tmp_path: Path, batch: int) -> None:
    job = Job(
        kinds=("fedlearning", "transfer"),
        owner="task",
        contract="fedlearning",
        version=3,
        devices=5,
        seed=bytes(32),
        chain_id="ab" * 32,
        block_id="00000007" + "cd" * 28,
        expiration=2_000_000_000,
        batch=batch,
    )
    ids = sign_range(job, 0, 5, tmp_path / "bodies")
    made = [json.loads(bytes(body)) for body in chain_client.bodies(tmp_path / "bodies")]
    signed = [one["transaction"] for one in made] if batch == 1 else [t for b in made for t in b]
    assert len(made) == -(-5 // batch)
    assert len(set(ids)) == 5
    for number, (one, id_) in enumerate(zip(signed, ids, strict=True)):
        packed = bytes.fromhex(one["packed_trx"])
        assert hashlib.sha256(packed).digest() == id_
        digest = hashlib.sha256(bytes.fromhex(job.chain_id) + packed + bytes(32)).digest()
        (signature,) = one["signatures"]
        assert recover_key(digest, signature) == device_key(job.seed, number).public


def test_names_are_different_and_in_order() -> None:
    names = [name_of("bd", number) for number in (0, 1, 25, 26, 17_575, 17_576)]
    assert names == ["bdaaaa", "bdaaab", "bdaaaz", "bdaaba", "bdazzz", "bdbaaa"]


def test_without_postgresql_the_bench_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_postgres, "tools", lambda: None)
    found = chain_postgres.measure(clients=[1], seconds=1, say=lambda text: None)
    assert isinstance(found, str) and found.startswith("not installed: apt-get install postgresql")


def _run(actions: str, per_s: float, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"actions": actions, "producers": 1, "per_s": per_s}
    return row | {"elapsed_us": {"fedlearning": 90, "transfer": 60}} | more


def test_the_summary_is_held_against_the_targets() -> None:
    uploads = [
        _run("fedlearning", 1600.0, ram_bytes_open=0.5, ram_bytes_settled=389, transactions=100),
        _run("fedlearning", 1400.0, ram_bytes_open=0.9, ram_bytes_settled=389, transactions=300),
        _run("fedlearning", 9000.0, ram_bytes_open=0.1, ram_bytes_settled=389, transactions=200),
    ]
    uploads[2]["producers"] = 4
    in_turn = {"ratios": {"script": 0.8, "function": 0.5}}
    runs = [*uploads, _run("fedlearning and transfer", 1.0)]
    document: dict[str, Any] = {"runs": runs, "in_turn": in_turn}
    document["summary"] = chain.summarise(document)
    assert document["summary"] == {
        "uploads_per_s": 1600.0,
        "cpu_ratio_to_transfer": 1.5,
        "ram_bytes_open": 0.9,
        "ram_bytes_settled": 0.0,
        "ratio_to_postgres": 0.8,
        "models_per_s": 106.7,
    }
    met = {row["name"]: row["met"] for row in chain.judge(document)}
    assert met.pop("ratio_to_postgres") is False
    assert set(met.values()) == {True}
    for row in uploads:  # a byte for each upload
        row["ram_bytes_settled"] += row["transactions"]
    del document["in_turn"]
    document["summary"] = chain.summarise(document)
    met = {row["name"]: row["met"] for row in chain.judge(document)}
    assert met["ratio_to_postgres"] is None
    assert document["summary"]["ram_bytes_settled"] == 1.0 and met["ram_bytes_settled"] is False
    for row in uploads:  # what would grow with them stays unseen
        row.update(transactions=200, ram_bytes_settled=589)
    document["summary"] = chain.summarise(document)
    met = {row["name"]: row["met"] for row in chain.judge(document)}
    assert document["summary"]["ram_bytes_settled"] is None is met["ram_bytes_settled"]


@pytest.mark.parametrize(
    ("state", "limit_sec", "why"),
    [
        (RoundState.VERIFYING, 60, ", and the round is verifying"),
        (RoundState.OPEN, 0, " within 0 s"),
    ],
)
def test_the_fleet_does_not_wait_for_uploads_that_will_not_come(
    monkeypatch: pytest.MonkeyPatch, state: RoundState, limit_sec: int, why: str
) -> None:
    monkeypatch.setattr(fleet, "ROUND_SEC_MAX", limit_sec)
    answers = [SimpleNamespace(uploads=1, state=state)]
    owner = SimpleNamespace(round=lambda version: answers.pop())  # asked again, it fails
    with pytest.raises(RuntimeError, match=f"^expected 2 uploads, got 1{why}$"):
        fleet.wait_for_uploads(owner, 2)
    answers = [SimpleNamespace(uploads=2, state=state)]
    fleet.wait_for_uploads(owner, 2)


def test_a_process_that_fails_ends_the_fleet() -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert fleet.results([pool.submit(abs, -1), pool.submit(abs, -2)]) == [1, 2]
        waiting = pool.submit(time.sleep, 60)
        with pytest.raises(ValueError, match="invalid literal"):
            fleet.results([waiting, pool.submit(int, "x")])
    assert isinstance(waiting.exception(), BrokenProcessPool)


def test_the_command_is_what_ran_and_names_no_place(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--executors", nargs="+")
    words = ["--data", f"{tmp_path}/", f"--out={tmp_path}/x/../a.json"]
    words += ["--exec", "1 process", "b=c"]
    assert record.command("bench.x", parser.parse_args(words), words) == (
        "python -m bench.x --data DIR --out=FILE --exec '1 process' b=c"
    )


def test_a_document_from_a_chain_names_the_contract(tmp_path: Path) -> None:
    text = record.record({"a": 1}, tmp_path / "out" / "a.json", on_chain=True)
    folder = Path(record.__file__).parents[1] / "eosio_contracts" / "artifacts"
    wasm = (folder / "fedlearning.wasm").read_bytes()
    assert json.loads(text) == {"a": 1, "contract_sha256": hashlib.sha256(wasm).hexdigest()}
    assert (tmp_path / "out" / "a.json").read_text() == text + "\n"
    assert json.loads(record.record([{"a": 1}], None)) == [{"a": 1}]


def test_the_exponent_of_a_known_law() -> None:
    rows = [{"devices": n, "seconds": 0.5 * n**0.75} for n in (10, 100, 1000)]
    assert fleet.fits(rows) == {"all": 0.75, "last_two": 0.75}
    assert fleet.fits(rows[:1]) == {}


def test_a_round_of_the_world_keeps_no_ram_per_upload(localnet: Network) -> None:
    place = Place(localnet)
    world = World(place, 12, 4, 1)
    assert World(place, 12, 4, 1).key == world.key != World(place, 12, 4, 2).key
    world.create_accounts()
    world.begin("worldtask", 12, 4)
    kept, opened = [], []
    for count in (12, 12, 3):  # the first payment to a device takes a balance's row
        before = world.ram()
        world.open_round()
        world.upload(range(count), batch=5)
        opened.append(world.ram() - before)
        costs = world.judge(batch=5)
        world.settle()
        kept.append(world.ram() - before)
        assert sum(cost["verdicts"] for cost in costs) == 4 * count
        found = world.contract.current_round("worldtask")
        assert found is not None and (found.accepted, found.refused) == (count, 0)
    assert kept[1] == kept[2] and kept[0] >= kept[1] + 12 * 240
    assert opened[1] == opened[2]
