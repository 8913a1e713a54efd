"""Write the vectors of what Python and the contract must both compute.

    python tests/vectors/make_vectors.py

The numbers come from other methods than those under test: exact fractions for the least-squares
line, a level-by-level tree for the Merkle root, unbounded integers for the price. Each file is a
list of objects:

csves.json
    errors      list of integers, 1..64 of them, each 0..1000000
    tau         integer
    numerator   integer, m sum(x e) - sum(x) sum(e)
    held        integer, 1..64: declared classes
    excess      integer, of the third rule
    trend, threshold, either, both, gain   booleans: does the series meet the rule?
lots.json
    task, validator   integers, names
    version     integer
    value, upload     hex, 32 bytes each
    commitment  hex, SHA-256(task || version || validator || value), integers little endian
    lot_e6      integer, 0..1000000
    drawn       boolean: does the value draw the upload?
merkle.json
    records     list of hex texts, the leaves' records in order
    root        hex
    paths       list with one list of hex texts per record, from the leaf's sibling upwards
price.json
    cost        integer, 0..2^32-1
    price       decimal text, int64
    amount      decimal text, or null where the contract must refuse (negative price, over 2^62-1)
"""

from __future__ import annotations

import hashlib
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCALE = 1_000_000
SEED = 6962


def slope(errors: list[int]) -> Fraction:
    """Return the least-squares slope by its definition, in exact fractions."""
    count = len(errors)
    if count == 1:
        return Fraction(0)
    mean_x, mean_e = Fraction(count - 1, 2), Fraction(sum(errors), count)
    above = sum((x - mean_x) * (e - mean_e) for x, e in enumerate(errors))
    return Fraction(above) / sum((x - mean_x) ** 2 for x in range(count))


def excess(doubts: list[int], held: int) -> Fraction:
    """Return the third rule's excess of doubt by its meaning, in exact fractions."""
    later = doubts[1:]
    if not later:
        return Fraction(0)
    mean = Fraction(sum(later), len(later))
    ups = sum(b - a for a, b in zip(doubts, later, strict=False) if b > a)
    allowed = 80_000 - Fraction(150_000, held)
    return (mean - doubts[0] + ups - allowed) * len(later) * held


def csves_vector(errors: list[int], tau: int, held: int = 3) -> dict[str, Any]:
    """Return one object of csves.json."""
    count = len(errors)
    fall = slope(errors)
    # slope = numerator / (m sum(x^2) - sum(x)^2)
    numerator = fall * (count * sum(x * x for x in range(count)) - sum(range(count)) ** 2)
    assert numerator.denominator == 1
    trend, threshold = fall < 0, errors[-1] < tau
    h = max(held, 2)
    doubt = excess(errors[:-1], h)
    assert doubt.denominator == 1
    return {
        "errors": errors,
        "tau": tau,
        "held": held,
        "numerator": int(numerator),
        "excess": int(doubt),
        "trend": trend,
        "threshold": threshold,
        "either": trend or threshold,
        "both": trend and threshold,
        "gain": doubt < 0 and errors[-1] < tau * (1 - Fraction(1, h)),
    }


def csves_vectors(rng: random.Random) -> list[dict[str, Any]]:
    """Return both sides of each bound, then random series."""
    found = [
        csves_vector([0], 0),
        csves_vector([0], 1),
        csves_vector([SCALE], SCALE),
        csves_vector([SCALE], SCALE + 1),
        csves_vector([1, 0], 0),
        csves_vector([0, 1], 2),
        csves_vector([5, 5], 5),
        csves_vector([5, 5], 6),
        csves_vector([2, 1, 2], 2),  # flat in the middle: slope 0
        csves_vector([2, 1, 1], 1),
        csves_vector([1, 3, 0], 1),
        csves_vector([3, 0, 3, 2], 2),
        csves_vector([3, 0, 3, 3], 3),
        csves_vector([SCALE] * 64, SCALE),
        csves_vector([SCALE] * 32 + [0] * 32, 1),  # steepest fall
        csves_vector([0] * 32 + [SCALE] * 32, 2**32 - 1),  # steepest rise
        csves_vector([SCALE] * 63 + [SCALE - 1], SCALE),  # gentlest fall at the end
        csves_vector([0] * 63 + [1], 1),
        csves_vector([1] + [0] * 63, 1),
        # the third rule: 5,000 allowed with one class and with two, 30,000 with three; with one
        # step a rise counts twice
        csves_vector([500_000, 502_499, 0], 450_000, 1),
        csves_vector([500_000, 502_500, 0], 450_000, 1),
        csves_vector([500_000, 502_499, 0], 450_000, 2),
        csves_vector([500_000, 502_500, 0], 450_000, 2),
        csves_vector([500_000, 514_999, 0], 450_000, 3),
        csves_vector([500_000, 515_000, 0], 450_000, 3),
        csves_vector([500_000, 300_000, 590_000, 0], 450_000, 2),  # up again further than down
        csves_vector([500_000, 300_000, 490_000, 0], 450_000, 2),
        csves_vector([500_000, 300_000, 310_000, 0], 450_000, 10),
        csves_vector([500_000, 300_000, 650_000, 0], 450_000, 10),  # up again further than down
        csves_vector([500_000, 100_000, 224_999], 450_000, 2),
        csves_vector([500_000, 100_000, 225_000], 450_000, 2),
        csves_vector([500_000, 100_000, 299_999], 450_000, 3),
        csves_vector([500_000, 100_000, 300_000], 450_000, 3),
        csves_vector([500_000, 100_000, 0], 0, 5),
        csves_vector([500_000, 100_000, 0], 1, 5),
        csves_vector([500_000, 0], 450_000, 1),  # one doubt, two with a single measurement
        csves_vector([500_000], 2**32 - 1, 2),
        csves_vector([SCALE] + [0] * 63, 2**32 - 1, 64),
        csves_vector([0, SCALE] * 32, 2**32 - 1, 64),
    ]
    for _ in range(200):
        count = rng.randint(1, 64)
        top = rng.choice([1, 2, 10, 1000, SCALE])
        errors = [rng.randint(0, top) for _ in range(count)]
        tau = rng.choice([errors[-1], errors[-1] + 1, rng.randint(0, top)])
        found.append(csves_vector(errors, tau, rng.randint(1, 64)))
    return found


def tree_levels(records: list[bytes]) -> list[list[bytes]]:
    """Return the tree from the leaves up; the last node of an odd level moves up as it is."""
    levels = [[hashlib.sha256(b"\x00" + record).digest() for record in records]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        above = [
            hashlib.sha256(b"\x01" + below[i] + below[i + 1]).digest()
            for i in range(0, len(below) - 1, 2)
        ]
        levels.append(above + below[2 * len(above) :])
    return levels


def merkle_vector(records: list[bytes]) -> dict[str, Any]:
    """Return one object of merkle.json."""
    if not records:
        return {"records": [], "root": hashlib.sha256(b"").hexdigest(), "paths": []}
    levels = tree_levels(records)
    paths = []
    for index in range(len(records)):
        path = []
        for level in levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling].hex())
            index //= 2
        paths.append(path)
    return {
        "records": [record.hex() for record in records],
        "root": levels[-1][0].hex(),
        "paths": paths,
    }


def merkle_vectors(rng: random.Random) -> list[dict[str, Any]]:
    """Return trees on both sides of the powers of two; records of 102 bytes, as a round's are."""
    counts = [*range(10), 15, 16, 17, 33]
    return [merkle_vector([rng.randbytes(102) for _ in range(count)]) for count in counts]


def price_vectors(rng: random.Random) -> list[dict[str, Any]]:
    """Return both sides of each bound, then random products."""
    amount_max = 2**62 - 1
    cost_max, price_max = 2**32 - 1, 2**63 - 1
    pairs = [
        (0, 0),
        (0, price_max),
        (1, 0),
        (1, -1),
        (0, -1),
        (1, 1),
        (1, amount_max),
        (1, amount_max + 1),
        (1, price_max),
        (2, amount_max // 2),
        (2, amount_max // 2 + 1),
        (3, amount_max // 3),  # exactly: 3 divides 2^62 - 1
        (3, amount_max // 3 + 1),
        (2, 2**62),  # 2^63: over int64
        (4, 2**62),  # 2^64: zero where it wraps
        (cost_max, amount_max // cost_max),
        (cost_max, amount_max // cost_max + 1),
        (cost_max, price_max),
        (cost_max, -(2**63)),
    ]
    for _ in range(200):
        pairs.append((rng.getrandbits(rng.randint(1, 32)), rng.getrandbits(rng.randint(1, 63))))
    return [
        {
            "cost": cost,
            "price": str(price),
            "amount": str(cost * price) if price >= 0 and cost * price <= amount_max else None,
        }
        for cost, price in pairs
    ]


def lot_vectors(rng: random.Random) -> list[dict[str, Any]]:
    """Return lots.json; half of the shares lie right at the edge of what draws."""
    vectors = []
    for number in range(200):
        task, validator, version = rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(32)
        value, upload = rng.randbytes(32), rng.randbytes(32)
        place = Fraction(int(hashlib.sha256(value + upload).hexdigest()[:16], 16), 2**64 // SCALE)
        edge = int(place) + rng.randint(0, 1)
        lot_e6 = min(edge, SCALE) if number % 2 else rng.choice([0, 1, SCALE, rng.randrange(SCALE)])
        text = task.to_bytes(8, "little") + version.to_bytes(4, "little")
        text += validator.to_bytes(8, "little") + value
        vectors.append(
            {
                "task": task,
                "version": version,
                "validator": validator,
                "value": value.hex(),
                "upload": upload.hex(),
                "commitment": hashlib.sha256(text).hexdigest(),
                "lot_e6": lot_e6,
                "drawn": lot_e6 == SCALE or place < lot_e6,
            }
        )
    return vectors


def write(name: str, vectors: list[dict[str, Any]]) -> None:
    """Write one file, one object a line."""
    lines = ",\n".join(json.dumps(vector) for vector in vectors)
    (HERE / name).write_text(f"[\n{lines}\n]\n", encoding="ascii")


def main() -> None:
    """Write the files; equal every time."""
    write("csves.json", csves_vectors(random.Random(SEED)))
    write("lots.json", lot_vectors(random.Random(SEED)))
    write("merkle.json", merkle_vectors(random.Random(SEED)))
    write("price.json", price_vectors(random.Random(SEED)))


if __name__ == "__main__":
    main()
