"""The contract's arithmetic, compiled natively, against the vectors and against Python."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from gradledger import csves, lots
from gradledger.chain.contract import Rule
from gradledger.chain.names import int_to_name
from gradledger.cid import cid_to_digest, digest_to_cid
from gradledger.errors import GradledgerError
from gradledger.localnet import parts
from gradledger.merkle import merkle_root

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
SOURCE = ROOT / "eosio_contracts" / "tests" / "native.cpp"
AMOUNT_MAX = 2**62 - 1
VERDICT_LAST = 17
INT64 = range(-(2**63), 2**63)

Ask = Callable[[Iterable[str]], list[str]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Compile the program, with every undefined behaviour a crash, and return a way to ask it."""
    program = tmp_path_factory.mktemp("native") / "native"
    system = shutil.which("c++")
    compiler = [system] if system else [str(parts.fetch("zig") / "ziglang" / "zig"), "cc"]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-exceptions"]
    flags += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(program)], check=True)

    def run(questions: Iterable[str]) -> list[str]:
        text = "\n".join(questions) + "\n"
        done = subprocess.run(
            [str(program)], input=text, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.splitlines()

    return run


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / name).read_text())


def test_csves_vectors(ask: Ask) -> None:
    rows = load("csves.json")
    questions = [
        f"csves {row['tau']} {row['held']} {' '.join(map(str, row['errors']))}" for row in rows
    ]
    rules = ("trend", "threshold", "either", "both")
    expected = [
        f"{row['numerator']} {' '.join(f'{row[rule]:d}' for rule in rules)} "
        f"{row['excess']} {row['gain']:d}"
        for row in rows
    ]
    assert ask(questions) == expected


def test_csves_is_the_same_as_in_python(ask: Ask) -> None:
    rng = random.Random(1)
    series = [
        [rng.randrange(rng.choice([2, 1000, 1_000_001])) for _ in range(rng.randint(1, 64))]
        for _ in range(3000)
    ]
    taus = [rng.randrange(1_000_002) for _ in series]
    held = [rng.randint(1, 64) for _ in series]
    answers = ask(
        f"csves {tau} {h} {' '.join(map(str, e))}"
        for e, tau, h in zip(series, taus, held, strict=True)
    )
    for errors, tau, h, found in zip(series, taus, held, answers, strict=True):
        flags = [int(csves.meets(rule, errors, tau, h)) for rule in Rule]
        expected = [csves.trend_numerator(errors), *flags[:4], csves.gain_excess(errors, h)]
        assert found == " ".join(map(str, [*expected, flags[4]]))


def test_lot_vectors(ask: Ask) -> None:
    rows = load("lots.json")
    told = ("task", "version", "validator", "value")
    answers = ask("lot " + " ".join(str(row[name]) for name in told) for row in rows)
    assert answers == [row["commitment"] for row in rows]
    answers = ask(f"draws {row['value']} {row['upload']} {row['lot_e6']}" for row in rows)
    assert answers == [f"{row['drawn']:d}" for row in rows]
    assert {row["drawn"] for row in rows} == {True, False}


def test_lots_are_the_same_in_python() -> None:
    for row in load("lots.json"):
        value = bytes.fromhex(row["value"])
        names = [int_to_name(row[name]) for name in ("task", "validator")]
        commitment = lots.lot_commitment(names[0], row["version"], names[1], value)
        assert commitment.hex() == row["commitment"]
        drawn = lots.is_drawn(value, bytes.fromhex(row["upload"]), row["lot_e6"])
        assert drawn is row["drawn"]


def test_price_vectors(ask: Ask) -> None:
    rows = load("price.json")
    answers = ask(f"price {row['cost']} {row['price']}" for row in rows)
    assert answers == ["-" if row["amount"] is None else row["amount"] for row in rows]


def test_price_is_exact_or_refused(ask: Ask) -> None:
    rng = random.Random(2)
    pairs = [(rng.getrandbits(rng.randint(0, 32)), rng.getrandbits(rng.randint(0, 63)))
             for _ in range(3000)]  # fmt: skip
    answers = ask(f"price {cost} {price}" for cost, price in pairs)
    for (cost, price), found in zip(pairs, answers, strict=True):
        assert found == (str(cost * price) if cost * price <= AMOUNT_MAX else "-")


def test_sums_are_exact_or_refused(ask: Ask) -> None:
    rng = random.Random(3)
    edges = [0, 1, -1, 2**63 - 1, -(2**63), 2**62, -(2**62)]
    pairs = [(a, b) for a in edges for b in edges]
    pairs += [(rng.randrange(-(2**63), 2**63), rng.randrange(-(2**63), 2**63)) for _ in range(1000)]
    added = ask(f"add {a} {b}" for a, b in pairs)
    for (a, b), plus in zip(pairs, added, strict=True):
        assert plus == (str(a + b) if a + b in INT64 else "-")


def test_quorum(ask: Ask) -> None:
    answers = [int(found) for found in ask(f"quorum {v}" for v in range(1, 33))]
    assert answers == [v * 2 // 3 + 1 for v in range(1, 33)]
    for v, quorum in zip(range(1, 33), answers, strict=True):
        faulty = (v - 1) // 3
        assert quorum <= v - faulty  # the honest ones suffice
        assert 2 * quorum - v > faulty  # two quorums share an honest one


def test_verdicts_decide_as_in_python(ask: Ask) -> None:
    """Of 1 to 32 validators, each number of acceptances with each number of refusals."""
    rng = random.Random(6)
    rows = []
    for validators in range(1, 33):
        for accepting in range(validators + 1):
            for refusing in range(validators + 1 - accepting):
                kinds = rng.sample(range(2, VERDICT_LAST + 1), rng.randint(1, 3))
                codes = [1] * accepting + rng.choices(kinds, k=refusing)
                codes += [0] * (validators - len(codes))
                rng.shuffle(codes)
                rows.append(codes)
    answers = ask(f"decided {len(row)} {bytes(row).ljust(32, bytes(1)).hex()}" for row in rows)

    def expected(codes: list[int]) -> int:
        quorum, refusals = len(codes) * 2 // 3 + 1, [code for code in codes if code > 1]
        if codes.count(1) >= quorum:
            return 1
        return min(statistics.multimode(sorted(refusals))) if len(refusals) >= quorum else 0

    assert answers == [str(expected(row)) for row in rows]
    assert {int(found) for found in answers} == {*range(VERDICT_LAST + 1)}


def test_merkle_vectors(ask: Ask) -> None:
    rows = load("merkle.json")
    answers = ask("merkle " + " ".join(row["records"]) for row in rows)
    assert answers == [row["root"] for row in rows]


def test_the_growing_tree_is_the_recursive_one(ask: Ask) -> None:
    counts = [*range(70), 127, 128, 129, 255, 1000, 1023, 1024, 1025]
    records = [i.to_bytes(4, "little") + bytes(98) for i in range(max(counts))]
    answers = ask(f"merkle_count {n}" for n in counts)
    assert answers == [merkle_root(records[:n]).hex() for n in counts]


def test_the_largest_round_fits_the_frontier(ask: Ask) -> None:
    level = [hashlib.sha256(b"\0" + i.to_bytes(4, "little") + bytes(98)).digest()
             for i in range(65535)]  # fmt: skip
    while len(level) > 1:
        pairs = range(0, len(level) - 1, 2)
        above = [hashlib.sha256(b"\1" + level[i] + level[i + 1]).digest() for i in pairs]
        level = above + level[2 * len(above) :]
    assert ask(["merkle_count 65535"]) == [level[0].hex()]


def test_cids_are_decoded_as_in_python(ask: Ask) -> None:
    rng = random.Random(4)
    digests = [bytes(32), b"\xff" * 32, *(rng.randbytes(32) for _ in range(500))]
    texts = [digest_to_cid(digest) for digest in digests]
    assert ask(f"cid {text}" for text in texts) == [digest.hex() for digest in digests]


def test_what_is_no_cid_is_refused_as_in_python(ask: Ask) -> None:
    rng = random.Random(5)
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0OIl+/"
    texts = ["z" * 46, "1" * 46, "Q" * 46, "Qm" + "z" * 44, "Qm" + "1" * 44]
    for _ in range(3000):
        text = list(digest_to_cid(rng.randbytes(32)))
        for _ in range(rng.randint(0, 2)):
            text[rng.randrange(len(text))] = rng.choice(alphabet)
        if rng.random() < 0.1:
            text = text[: rng.randint(1, 45)]
        texts.append("".join(text))

    def expected(text: str) -> str:
        try:
            return cid_to_digest(text).hex()
        except GradledgerError:
            return "-"

    assert ask(f"cid {text}" for text in texts) == [expected(text) for text in texts]
