"""What Paillier costs: ours beside python-paillier, in one run.

    python -m bench.paillier [--bits 2048 3072] [--parameters 7850 101770] [--json] [--out FILE]

Quantising and packing are part of encrypt_s. Every figure of both sides is the least of several
measurements, since other work on the machine only ever adds: of `REPEATS` whole updates for ours;
for python-paillier of the single calls of a sample, scaled to all parameters, and its rows say so.
The least of short calls meets less disturbance than that of a whole update, which favours
python-paillier. What it takes for one value is measured once per size of key: it does not depend on
the number of parameters, and so all ratios of one size of key have the same base. One core, unless
--workers is given (decryption alone).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gmpy2
import numpy as np
import phe
from numpy.typing import NDArray

from bench.machine import machine
from gradledger.codec import Codec
from owner.paillier_key import PaillierPrivateKey

SEED = 2026
CLIP_E6 = 500_000
SLOT_BITS = 26
UPDATES = 2
REPEATS = 3
PHE_VALUES = 64  # of the value-by-value scheme
PHE_CIPHERTEXTS = 64  # of the packed one


def main(arguments: list[str] | None = None) -> int:
    """Measure and print.

    Parameters
    ----------
    arguments : list of str, optional
        In place of the command line's.

    Returns
    -------
    int
        Exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.paillier", description=__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[2048, 3072])
    parser.add_argument("--parameters", type=int, nargs="+", default=[7_850, 101_770])
    parser.add_argument("--workers", type=int, default=1, help="threads of the decryption")
    parser.add_argument("--seed", type=int, default=SEED, help="of the updates, not of the keys")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--out", type=Path, help="write that list to a file as well")
    options = parser.parse_args(arguments)
    about = {
        "seed": options.seed,
        "command": " ".join(["python -m bench.paillier", *(arguments or sys.argv[1:])]),
        "machine": machine(),
    }
    rows = []
    for bits in options.bits:
        values = _phe_values(PaillierPrivateKey.generate(bits), options.seed)
        for parameters in options.parameters:
            key = PaillierPrivateKey.generate(bits)  # new, so that its comb table is new as well
            for row in measure(key, parameters, values, options.seed, options.workers):
                rows.append({**row, **about})
                if not options.json:
                    print(_line(row), flush=True)
    document = json.dumps(rows, indent=1)
    if options.json:
        print(document)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(document + "\n", encoding="utf-8")
    return 0


def measure(
    key: PaillierPrivateKey, parameters: int, value: dict[str, float], seed: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Yield one row per scheme for one key and one number of parameters.

    Parameters
    ----------
    key : PaillierPrivateKey
        Made for this run.
    parameters : int
        Length of an update.
    value : dict
        What python-paillier takes for one value.
    seed : int
        Of the updates.
    workers : int
        Threads of our decryption.

    Yields
    ------
    dict
        Seconds are for one update of `parameters` values; `add_s` for adding one update to a sum.
    """
    codec = Codec(CLIP_E6, SLOT_BITS, parameters)
    updates = np.random.default_rng(seed).normal(0, 0.1, (UPDATES, parameters)).astype(np.float32)
    exact = np.clip(updates.astype(np.float64), -codec.clip, codec.clip).mean(axis=0)
    one_by_one = _row(
        "one ciphertext per value",
        f"phe {phe.__version__}",
        key.public.bits,
        parameters,
        value["encrypt_s"] * parameters,
        parameters * key.public.ciphertext_bytes,
        value["add_s"] * parameters,
        value["decrypt_s"] * parameters,
        value["max_abs_error"],
        f"scaled from the fastest of {PHE_VALUES} values",
    )
    for row in (
        _ours(key, codec, updates, exact, workers),
        _phe_packed(key, codec, updates),
        one_by_one,
    ):
        yield {**row, "ratio_to_phe": one_by_one["encrypt_s"] / row["encrypt_s"]}


def _ours(
    key: PaillierPrivateKey,
    codec: Codec,
    updates: NDArray[np.float32],
    exact: NDArray[np.float64],
    workers: int,
) -> dict[str, Any]:
    public = key.public
    _, first = _timed(lambda update: public.encrypt(codec.quantise(update), codec), [updates[0]])
    payloads, encrypt = _timed(
        lambda update: public.encrypt(codec.quantise(update), codec),
        [updates[place % UPDATES] for place in range(REPEATS)],
    )
    pair = payloads[:UPDATES]
    totals, add = _timed(lambda each: public.add(each, codec), [pair] * REPEATS)
    results, decrypt = _timed(
        lambda total: key.decrypt_sums(total, codec, UPDATES, workers), totals
    )
    mean = codec.dequantise_mean(results[0], UPDATES)
    return _row(
        "packed, short exponent",
        f"gmpy2 {gmpy2.version()}",
        public.bits,
        codec.parameters,
        encrypt.least,
        len(totals[0]),
        add.least / (UPDATES - 1),
        decrypt.least,
        float(np.abs(mean - exact).max()),
        f"encrypt_s ranged over {encrypt.text}, decrypt_s over {decrypt.text}; the first update "
        f"under a key, comb table included: {first.least:.3f} s; {workers} thread(s) decrypt",
    )


def _phe_packed(
    key: PaillierPrivateKey, codec: Codec, updates: NDArray[np.float32]
) -> dict[str, Any]:
    """python-paillier's raw calls over our plaintexts."""
    private = key.to_phe()
    public = private.public_key
    bits = key.public.bits
    plaintexts = [
        int.from_bytes(plaintext, "little")
        for plaintext in codec.pack(codec.quantise(updates[0]), bits)
    ]
    sample = plaintexts[:PHE_CIPHERTEXTS]
    count = len(plaintexts)
    ciphertexts, encrypt = _timed(public.raw_encrypt, sample)
    n_squared = public.n * public.n
    _, add = _timed(lambda each: each * each % n_squared, ciphertexts)
    back, decrypt = _timed(private.raw_decrypt, ciphertexts)
    if back != sample:
        raise AssertionError("phe did not decrypt what it encrypted")
    return _row(
        "packed, full exponent",
        f"phe {phe.__version__}",
        bits,
        codec.parameters,
        encrypt.least * count,
        count * key.public.ciphertext_bytes,
        add.least * count,
        decrypt.least * count,
        None,
        f"scaled from {len(sample)} of {count} ciphertexts, without quantising and packing; one "
        f"took {encrypt.text} to encrypt, {decrypt.text} to decrypt",
    )


def _phe_values(key: PaillierPrivateKey, seed: int) -> dict[str, float]:
    """python-paillier as its users call it, one ciphertext per float: what one value takes."""
    private = key.to_phe()
    public = private.public_key
    left, right = np.random.default_rng(seed).normal(0, 0.1, (UPDATES, PHE_VALUES)).tolist()
    one, encrypt = _timed(public.encrypt, left)
    two = [public.encrypt(value) for value in right]
    sums, add = _timed(lambda pair: pair[0] + pair[1], list(zip(one, two, strict=True)))
    back, decrypt = _timed(private.decrypt, sums)
    exact = np.add(left, right) / UPDATES
    return {
        "encrypt_s": encrypt.least,
        "add_s": add.least,
        "decrypt_s": decrypt.least,
        "max_abs_error": float(np.abs(np.array(back) / UPDATES - exact).max()),
    }


def _row(
    scheme: str,
    backend: str,
    bits: int,
    parameters: int,
    encrypt_s: float,
    size: int,
    add_s: float,
    decrypt_s: float,
    max_abs_error: float | None,
    note: str,
) -> dict[str, Any]:
    return {
        "scheme": scheme,
        "backend": backend,
        "bits": bits,
        "parameters": parameters,
        "encrypt_s": encrypt_s,
        "us_per_parameter": encrypt_s / parameters * 1e6,
        "bytes_per_parameter": size / parameters,
        "add_s": add_s,
        "decrypt_s": decrypt_s,
        "max_abs_error": max_abs_error,
        "note": note,
    }


class _Seconds(list[float]):
    """Seconds of several calls."""

    @property
    def least(self) -> float:
        return min(self)

    @property
    def text(self) -> str:
        """Least and most."""
        return f"{min(self):.4f}..{max(self):.4f} s"


def _timed(work: Callable[[Any], Any], inputs: Sequence[Any]) -> tuple[list[Any], _Seconds]:
    """Call `work` on each input; return the results and the seconds of each call."""
    results, seconds = [], _Seconds()
    for value in inputs:
        started = time.perf_counter()
        results.append(work(value))
        seconds.append(time.perf_counter() - started)
    return results, seconds


def _line(row: dict[str, Any]) -> str:
    error = "" if row["max_abs_error"] is None else f"  error {row['max_abs_error']:.1e}"
    return (
        f"{row['bits']} bits  {row['parameters']:>9,} parameters  {row['scheme']:<24} "
        f"({row['backend']}): encrypt {row['encrypt_s']:.3f} s = "
        f"{row['us_per_parameter']:.1f} us each, {row['bytes_per_parameter']:.2f} B each, "
        f"add {row['add_s']:.4f} s, decrypt {row['decrypt_s']:.2f} s, "
        f"{row['ratio_to_phe']:.0f}x{error}"
    )


if __name__ == "__main__":
    sys.exit(main())
