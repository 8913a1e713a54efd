"""TenSEAL's CKKS for one update: what `bench.paillier` puts beside Paillier.

    python -m bench.ckks --parameters 7850 101770 [--seed N] [--clock wall|cpu]

Prints a list of rows as JSON. Needs nothing but numpy and TenSEAL, so that it may run under another
interpreter: `make setup-tenseal` makes .venv-tenseal, where `bench.paillier` looks first. Exit code
3: TenSEAL is not installed here.

Polynomials of degree 8,192, coefficients modulo 40 bits (and 40 more for keys), 4,096 values in a
ciphertext; public-key encryption; one level, since updates are only added. encrypt_s includes
serialising, as ours does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

DEGREE = 8192
MODULI_BITS = [40, 40]
SCALE = 2.0**28  # 1,000 updates of at most 0.5 stay below 40 bits
CLIP = 0.5
REPEATS = 3
NOT_INSTALLED = 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ckks")
    parser.add_argument("--parameters", type=int, nargs="+", default=[7_850, 101_770])
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    try:
        import tenseal
    except ImportError as exc:
        print(f"not installed: {exc}", file=sys.stderr)
        return NOT_INSTALLED
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=DEGREE,
        coeff_mod_bit_sizes=MODULI_BITS,
        n_threads=1,
    )
    context.global_scale = SCALE
    print(
        json.dumps(
            [
                measure(tenseal, context, count, options.seed, CLOCKS[options.clock])
                for count in options.parameters
            ]
        )
    )
    return 0


def measure(
    tenseal: Any, context: Any, parameters: int, seed: int, now: Callable[[], float]
) -> dict[str, Any]:
    """Return one row; seconds are the least of several."""
    values = np.random.default_rng(seed).normal(0, 0.1, (2, parameters)).clip(-CLIP, CLIP)
    slots = DEGREE // 2

    def encrypt(row: np.ndarray) -> list[Any]:
        return [
            tenseal.ckks_vector(context, row[start : start + slots].tolist())
            for start in range(0, parameters, slots)
        ]

    seconds: dict[str, list[float]] = {"encrypt": [], "add": [], "decrypt": []}
    other = encrypt(values[1])
    for _ in range(REPEATS):
        started = now()
        one = encrypt(values[0])
        payload = [vector.serialize() for vector in one]
        seconds["encrypt"].append(now() - started)
        started = now()
        total = [left + right for left, right in zip(one, other, strict=True)]
        seconds["add"].append(now() - started)
        started = now()
        back = np.concatenate([vector.decrypt() for vector in total])
        seconds["decrypt"].append(now() - started)
    return {
        "backend": f"tenseal {tenseal.__version__}",
        "parameters": parameters,
        "encrypt_s": min(seconds["encrypt"]),
        "bytes_per_parameter": sum(map(len, payload)) / parameters,
        "add_s": min(seconds["add"]),
        "decrypt_s": min(seconds["decrypt"]),
        "max_abs_error": float(np.abs(back / 2 - values.mean(axis=0)).max()),
    }


if __name__ == "__main__":
    sys.exit(main())
