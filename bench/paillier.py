"""What Paillier costs: every backend and blinding of ours beside python-paillier and CKKS.

    python -m bench.paillier [--bits 2048 3072] [--parameters 7850 101770 1000000]
                             [--backends NAME ...] [--threads N] [--clock wall|cpu]
                             [--json] [--out FILE]

One run, one key for each size, one core unless --threads says otherwise. encrypt_s is from float32
values to bytes: quantising and packing are part of it. Every figure is the least of several
measurements, since other work on the machine only ever adds to it. What would take longer than
--seconds is measured on the first ciphertexts of the update and scaled, and the row says so
(`measured`, of `ciphertexts`); encrypting with a short exponent is never scaled.

python-paillier is measured on a sample, and what it takes for one value or one ciphertext is the
same at every number of parameters, so that all ratios of one size of key have one base. The least
of its short calls meets less disturbance than that of a whole update of ours; that favours it. On a
machine with other work `--clock cpu` counts the processor's time alone, everybody's; with several
threads that is not how long it takes, and waiting for a disk is not in it.

Beside the updates: the sum of --sum-devices updates of --sum-parameters; an update of
--stream-parameters encrypted as a stream by a process of its own, with the most memory it ever had;
CKKS by TenSEAL, where `make setup-tenseal` has installed it. A whole run takes some ten minutes on
two cores. --out writes the rows, and a plot of them beside it (.png).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import phe
from numpy.typing import NDArray

from bench.machine import machine, peak_mb
from bench.record import command, record
from gradledger import paillier
from gradledger.codec import Codec
from gradledger.paillier import PaillierPublicKey
from gradledger.paillier.engines import ENVIRONMENT
from gradledger.paillier.masks import MaskStore
from owner.paillier_key import PaillierPrivateKey

ROOT = Path(__file__).resolve().parents[1]
SEED = 2026
CLIP_E6 = 500_000
SLOT_BITS = 26  # 1,000 devices
UPDATES = 2
REPEATS = 5
SAMPLE_MIN = 32  # ciphertexts
PHE_SAMPLE = 48  # values, ciphertexts
MASKS = 32  # true ones, made for each number of parameters
SUM_DISTINCT = 4  # payloads that the sum's updates repeat: they only have to be read
CHILD_SEC_MAX = 600
EMULATED = "ifma-emulated"
GMPY2 = "gmpy2"

SHORT = "packed, short exponent"
FAST = "packed, short exponent, fast"
STRICT = "packed, exponent of n + 128 bits"
MASKED = "packed, masks made ahead"
MAKING = "making masks ahead"
PHE_VALUES = "one ciphertext per value"
PHE_PACKED = "packed, full exponent"
CKKS = "CKKS 8192 [40, 40]"
SUM = "sum of updates"
STREAM = "stream"

# What rows should show, on one core. What bounds it is in docs/architecture.md.
_TARGETS_US = {("ifma", 3072): 3.3, ("ifma", 2048): 1.5, ("gmpy2", 3072): 17, ("gmpy2", 2048): 10}
_TARGETS_RATIO = {"ifma": 8000, "gmpy2": 1500}
_TARGET_BYTES = 7
_TARGET_DECRYPT_RATIO = 5
_TARGET_SUM_S = 3
_TARGET_STREAM_MB = 250

Row = dict[str, Any]


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
    parser = argparse.ArgumentParser(
        prog="python -m bench.paillier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[2048, 3072])
    parser.add_argument("--parameters", type=int, nargs="+", default=[7_850, 101_770, 1_000_000])
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="default: all but emulated")
    parser.add_argument("--threads", type=int, default=1, help="of our backends")
    parser.add_argument("--seconds", type=float, default=3.0, help="for one figure, about")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--sum-devices", type=int, default=100)
    parser.add_argument("--sum-parameters", type=int, default=1_000_000)
    parser.add_argument("--stream-parameters", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=SEED, help="of the updates, not of the keys")
    parser.add_argument("--json", action="store_true", help="print a list of rows")
    parser.add_argument("--out", type=Path, help="write the rows to FILE, the plot beside it")
    parser.add_argument("--stream-child", metavar="N_HEX", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    _use_clock(options.clock)
    if options.stream_child:
        print(json.dumps(_stream_here(options)))
        return 0
    options.bits.sort()
    options.parameters.sort()
    here = paillier.backends()
    options.backends = options.backends or [name for name in here if name != EMULATED]
    if not set(options.backends) <= set(here):
        parser.error(f"--backends: expected some of {', '.join(here)}, got {options.backends}")
    about = {
        "seed": options.seed,
        "clock": options.clock,
        "command": command("bench.paillier", options, arguments),
        "machine": machine(),
    }
    rows: list[Row] = []
    if not options.json:
        print(_HEADER)
    for row in measure(options):
        rows.append({**row, **about})
        if not options.json:
            print(_line(row), flush=True)
    document = record(rows, options.out, indent=1)
    if options.json:
        print(document)
    if options.out:
        from bench.paillier_plot import draw

        draw(rows, options.out.with_suffix(".png"))
    _say_missed(rows)
    return 0


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows one by one.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Yields
    ------
    dict
        Seconds are for one update of `parameters` values, `add_s` for adding one update to a sum;
        None where a figure has no meaning, or was not measured.
    """
    before = os.environ.get(ENVIRONMENT)
    try:
        for bits in options.bits:
            _progress(f"{bits} bits: making the key; phe")
            key = PaillierPrivateKey.generate(bits)
            scale = _Phe(key, options.seed)
            for parameters in options.parameters:
                yield from scale.rows(parameters)
            for backend in options.backends:
                os.environ[ENVIRONMENT] = backend
                for row in _backend(key, backend, options, scale):
                    yield scale.with_ratio({**row, "threads": options.threads})
        for row in _ckks(options):
            yield scale.with_ratio(row)
    finally:
        os.environ.pop(ENVIRONMENT, None)
        if before is not None:
            os.environ[ENVIRONMENT] = before


# ---- ours -------------------------------------------------------------------------------------


def _backend(
    key: PaillierPrivateKey, backend: str, options: argparse.Namespace, scale: _Phe
) -> Iterator[Row]:
    """Yield all rows of one backend for one key."""
    shared: dict[int, Row] = {}
    for scheme, blinding in ((SHORT, {}), (FAST, {"fast": True}), (STRICT, {"strict": True})):
        if scheme == FAST and backend == GMPY2:
            continue  # its look-ups are never constant-time
        for parameters in options.parameters:
            _progress(f"{key.public.bits} bits, {backend}, {scheme}, {parameters:,} parameters")
            update = _Update(key.public, parameters, options)
            encrypt, table_s = update.encrypt(blinding, scaled=scheme != SHORT)
            if scheme == SHORT:
                shared[parameters] = update.after(key, scale)
            yield _row(
                scheme,
                backend,
                key.public.bits,
                parameters,
                encrypt_s=encrypt.whole,
                bytes_per_parameter=update.size / parameters,
                ciphertexts=update.ciphertexts,
                measured=encrypt.measured,
                # The first call under a key makes the table; the later ones find it.
                **({"table_s": table_s} if parameters == options.parameters[0] else {}),
                constant_time_lookups=scheme != FAST and backend != GMPY2,
                **shared[parameters],
            )
    _progress(f"{key.public.bits} bits, {backend}, sum of {options.sum_devices} updates")
    yield _sum(key.public, backend, options)
    if backend != options.backends[0]:
        return
    for parameters in options.parameters:  # masks are made and used alike on every backend
        _progress(f"{key.public.bits} bits, {MASKED}, {parameters:,} parameters")
        for row in _masks(_Update(key.public, parameters, options), backend, options):
            yield {**row, **shared[parameters]} if row["scheme"] == MASKED else row
    if key.public.bits == max(options.bits):
        _progress(f"{key.public.bits} bits, {backend}, stream of {options.stream_parameters:,}")
        yield _stream(key.public, backend, options)


class _Timed:
    """Seconds of several calls of one thing, and how much of the whole it was."""

    def __init__(self, measured: int, whole: int) -> None:
        self.seconds: list[float] = []
        self.measured = measured
        self.scale = whole / measured

    def calls(self, work: Callable[[], Any], seconds_max: float) -> Any:
        """Call until it has taken `seconds_max` or was called often enough; return the result."""
        started = _now()
        while True:
            before = _now()
            result = work()
            now = _now()
            self.seconds.append(now - before)
            if len(self.seconds) >= REPEATS or now - started > seconds_max:
                return result

    @property
    def whole(self) -> float:
        """Seconds for all of it."""
        return min(self.seconds) * self.scale


class _Update:
    """Updates of one length under one key."""

    def __init__(
        self, public: PaillierPublicKey, parameters: int, options: argparse.Namespace
    ) -> None:
        self.public = public
        self.options = options
        self.codec = Codec(CLIP_E6, SLOT_BITS, parameters)
        self.ciphertexts = self.codec.plaintexts(public.bits)
        self.size = public.payload_bytes(self.codec)
        rng = np.random.default_rng(options.seed)
        self.values = rng.standard_normal((UPDATES, parameters), dtype=np.float32)
        self.values *= np.float32(0.1)
        self.payloads: list[bytes] = []

    def part(self, ciphertexts: int) -> Codec:
        """Return the codec of the update's first ciphertexts."""
        values = min(self.codec.parameters, ciphertexts * self.codec.slots(self.public.bits))
        return Codec(CLIP_E6, SLOT_BITS, values)

    def affordable(self, seconds_per_ciphertext: float) -> int:
        """Return how many ciphertexts can be done in half of --seconds."""
        wanted = int(self.options.seconds / 2 / seconds_per_ciphertext)
        return min(self.ciphertexts, max(SAMPLE_MIN, wanted))

    def encrypt(self, blinding: Mapping[str, Any], *, scaled: bool) -> tuple[_Timed, float]:
        """Time encrypting, of a sample if it may be scaled; say what making the table took too."""
        call, threads = self.public.encrypt, self.options.threads
        probe = self.part(SAMPLE_MIN)
        first, spent = (
            _seconds(lambda: call(self.values[0, : probe.parameters], probe, **blinding))
            for _ in range(2)
        )
        count = self.ciphertexts
        if scaled:
            count = self.affordable(spent / probe.plaintexts(self.public.bits))
        codec = self.part(count)
        timed = _Timed(count, self.ciphertexts)
        places = itertools.cycle(range(UPDATES))
        results: list[bytes] = []

        def work() -> None:
            values = self.values[next(places), : codec.parameters]
            results.append(call(values, codec, threads=threads, **blinding))

        timed.calls(work, self.options.seconds)
        if not scaled:
            if len(results) == 1:  # it took long: add the one update to itself
                results *= UPDATES
                self.values[1:] = self.values[0]
            self.payloads = results[:UPDATES]
        return timed, max(0.0, first - spent)

    def after(self, key: PaillierPrivateKey, scale: _Phe) -> Row:
        """Add and decrypt what `encrypt` made: figures that do not depend on the blinding."""
        threads = self.options.threads
        adding = _Timed(self.ciphertexts, self.ciphertexts)
        total = adding.calls(
            lambda: self.public.add(self.payloads, self.codec, threads=threads),
            self.options.seconds,
        )
        width = self.public.ciphertext_bytes
        count = min(self.ciphertexts, SAMPLE_MIN)
        sample = total[: count * width]
        probe = self.part(count)
        spent = _seconds(lambda: key.decrypt_sums(sample, probe, UPDATES, workers=threads))
        decrypting = _Timed(self.affordable(spent / count), self.ciphertexts)
        codec = self.part(decrypting.measured)
        sums = decrypting.calls(
            lambda: key.decrypt_sums(
                total[: decrypting.measured * width], codec, UPDATES, workers=threads
            ),
            self.options.seconds,
        )
        values = self.values[:, : codec.parameters].astype(np.float64)
        exact = np.clip(values, -codec.clip, codec.clip).mean(axis=0)
        error = np.abs(codec.dequantise_mean(sums, UPDATES) - exact).max()
        return {
            "add_s": adding.whole / (UPDATES - 1),
            "decrypt_s": decrypting.whole,
            "decrypt_measured": decrypting.measured,
            "decrypt_ratio_to_phe": scale.decrypt_ratio(key, sample, probe, threads),
            "max_abs_error": float(error),
        }


def _masks(update: _Update, backend: str, options: argparse.Namespace) -> Iterator[Row]:
    """Yield what making true masks takes, and what using as many as an update takes."""
    public, codec, count = update.public, update.codec, update.ciphertexts
    sample = min(count, MASKS)
    with tempfile.TemporaryDirectory(prefix="gradledger-bench-") as folder:
        store = MaskStore(folder, public)
        making = _seconds(lambda: store.fill(sample, workers=options.threads)) / sample
        # Using a mask takes the same whatever it is, and thousands of true ones take minutes.
        width = public.ciphertext_bytes
        made_up = (b"\0" + secrets.token_bytes(width - 1) for _ in range(count * REPEATS))
        store._put(list(made_up))
        using = _Timed(count, count)
        using.calls(
            lambda: public.encrypt(update.values[0], codec, masks=store, threads=options.threads),
            options.seconds,
        )
    bits, parameters = public.bits, codec.parameters
    same = {"bytes_per_parameter": update.size / parameters, "ciphertexts": count}
    yield _row(MASKED, backend, bits, parameters, encrypt_s=using.whole, measured=count, **same)
    yield _row(MAKING, backend, bits, parameters, encrypt_s=making * count, measured=sample, **same)


def _sum(public: PaillierPublicKey, backend: str, options: argparse.Namespace) -> Row:
    """Check one update of a round as validators do, and add them all."""
    codec = Codec(CLIP_E6, SLOT_BITS, options.sum_parameters)
    width = public.ciphertext_bytes
    payloads = []
    for _ in range(SUM_DISTINCT):
        raw = np.frombuffer(secrets.token_bytes(public.payload_bytes(codec)), np.uint8)
        numbers = raw.reshape(-1, width).copy()
        numbers[:, 0] = 0  # below n^2
        payloads.append(numbers.tobytes())
    checking = _Timed(1, options.sum_devices)
    checking.calls(
        lambda: public.check_ciphertexts(payloads[0], codec, threads=options.threads),
        options.seconds / 2,
    )
    updates = (payloads[place % SUM_DISTINCT] for place in range(options.sum_devices))
    adding = _seconds(lambda: public.add(updates, codec, threads=options.threads))
    return _row(
        SUM,
        backend,
        public.bits,
        options.sum_parameters,
        devices=options.sum_devices,
        add_s=adding,
        check_s=checking.whole,
        ciphertexts=codec.plaintexts(public.bits),
    )


def _stream(public: PaillierPublicKey, backend: str, options: argparse.Namespace) -> Row:
    """Have a process of its own encrypt a long update."""
    command = [sys.executable, "-m", "bench.paillier", "--stream-child", public.to_hex()]
    command += ["--stream-parameters", str(options.stream_parameters)]
    command += ["--threads", str(options.threads), "--seed", str(options.seed)]
    command += ["--clock", options.clock]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=CHILD_SEC_MAX, check=True
    )
    return _row(STREAM, backend, public.bits, options.stream_parameters, **json.loads(done.stdout))


def _stream_here(options: argparse.Namespace) -> Row:
    """Encrypt a long update, letting each block go; return what it took this process."""
    public = PaillierPublicKey.from_hex(options.stream_child)
    codec = Codec(CLIP_E6, SLOT_BITS, options.stream_parameters)
    rng = np.random.default_rng(options.seed)
    values: NDArray[np.float32] = rng.standard_normal(codec.parameters, dtype=np.float32)
    before = peak_mb()
    size, told, whole = 0, 0, public.payload_bytes(codec)
    started = _now()
    for block in public.encrypt_stream(values, codec, threads=options.threads):
        size += len(block)
        if 5 * size // whole > told:
            told = 5 * size // whole
            _progress(f"stream: {20 * told} %")
    seconds = _now() - started
    if size != whole:
        raise AssertionError(f"expected {whole} bytes, got {size}")
    return {
        "encrypt_s": seconds,
        "bytes_per_parameter": size / codec.parameters,
        "ciphertexts": codec.plaintexts(public.bits),
        "peak_mb": peak_mb(),
        "peak_mb_before": before,
    }


# ---- the others -------------------------------------------------------------------------------


class _Phe:
    """What python-paillier takes for one value and for one packed ciphertext under one key."""

    def __init__(self, key: PaillierPrivateKey, seed: int) -> None:
        self.bits = key.public.bits
        self.width = key.public.ciphertext_bytes
        self._private = key.to_phe()
        public = self._private.public_key
        n_squared = public.n * public.n
        left, right = np.random.default_rng(seed).normal(0, 0.1, (2, PHE_SAMPLE)).tolist()
        one, self.value_encrypt = _each(public.encrypt, left)
        two = [public.encrypt(value) for value in right]
        sums, self.value_add = _each(
            lambda pair: pair[0] + pair[1], list(zip(one, two, strict=True))
        )
        back, self.value_decrypt = _each(self._private.decrypt, sums)
        self.value_error = float(np.abs(np.array(back) / 2 - np.add(left, right) / 2).max())
        plaintexts = [secrets.randbelow(public.n) for _ in range(PHE_SAMPLE)]
        ciphertexts, self.packed_encrypt = _each(public.raw_encrypt, plaintexts)
        _, self.packed_add = _each(lambda each: each * each % n_squared, ciphertexts)
        back, self.packed_decrypt = _each(self._private.raw_decrypt, ciphertexts)
        if back != plaintexts:
            raise AssertionError("phe did not decrypt what it encrypted")

    def rows(self, parameters: int) -> Iterator[Row]:
        """Yield its two rows, scaled."""
        backend = f"phe {phe.__version__}"
        yield self.with_ratio(
            _row(
                PHE_VALUES,
                backend,
                self.bits,
                parameters,
                encrypt_s=self.value_encrypt * parameters,
                bytes_per_parameter=self.width,
                add_s=self.value_add * parameters,
                decrypt_s=self.value_decrypt * parameters,
                max_abs_error=self.value_error,
                ciphertexts=parameters,
                measured=min(PHE_SAMPLE, parameters),
            )
        )
        ciphertexts = Codec(CLIP_E6, SLOT_BITS, parameters).plaintexts(self.bits)
        yield self.with_ratio(
            _row(
                PHE_PACKED,
                backend,
                self.bits,
                parameters,
                encrypt_s=self.packed_encrypt * ciphertexts,
                bytes_per_parameter=ciphertexts * self.width / parameters,
                add_s=self.packed_add * ciphertexts,
                decrypt_s=self.packed_decrypt * ciphertexts,
                ciphertexts=ciphertexts,
                measured=min(PHE_SAMPLE, ciphertexts),
            )
        )

    def with_ratio(self, row: Row) -> Row:
        """Return the row with its ratio to value by value, and its targets."""
        if row["encrypt_s"] and row["scheme"] != MAKING:
            row["ratio_to_phe"] = self.value_encrypt * row["parameters"] / row["encrypt_s"]
        return {**row, "targets": _targets(row)}

    def decrypt_ratio(
        self, key: PaillierPrivateKey, ciphertexts: bytes, codec: Codec, threads: int
    ) -> float:
        """Return how much faster ours decrypts the same ciphertexts, both measured in turn."""
        numbers = [
            int.from_bytes(ciphertexts[start : start + self.width], "big")
            for start in range(0, len(ciphertexts), self.width)
        ]
        ours, theirs = [], []
        for _ in range(3):
            ours.append(
                _seconds(lambda: key.decrypt_sums(ciphertexts, codec, UPDATES, workers=threads))
            )
            theirs.append(_seconds(lambda: [self._private.raw_decrypt(each) for each in numbers]))
        return min(theirs) / min(ours)


def _ckks(options: argparse.Namespace) -> list[Row]:
    """Return TenSEAL's rows, or one that says why there are none."""
    _progress(CKKS)
    there = ROOT / ".venv-tenseal" / "bin" / "python"
    command = [str(there) if there.exists() else sys.executable, "-m", "bench.ckks"]
    command += ["--seed", str(options.seed), "--clock", options.clock]
    command += ["--parameters", *map(str, options.parameters)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CHILD_SEC_MAX)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [_row(CKKS, "tenseal", None, 0, note=f"{why} (make setup-tenseal)")]
    bits = max(options.bits)
    return [
        _row(
            CKKS,
            row.pop("backend"),
            None,
            row.pop("parameters"),
            **row,
            note=f"ratio_to_phe is to {bits} bits",
        )
        for row in json.loads(done.stdout)
    ]


# ---- rows -------------------------------------------------------------------------------------


def _row(scheme: str, backend: str, bits: int | None, parameters: int, **figures: Any) -> Row:
    encrypt_s = figures.get("encrypt_s")
    return {
        "scheme": scheme,
        "backend": backend,
        "bits": bits,
        "parameters": parameters,
        "encrypt_s": None,
        "us_per_parameter": encrypt_s / parameters * 1e6 if encrypt_s else None,
        "bytes_per_parameter": None,
        "add_s": None,
        "decrypt_s": None,
        "ratio_to_phe": None,
        "max_abs_error": None,
        **figures,
    }


def _targets(row: Row) -> dict[str, Row]:
    """Return what the row should show: {figure: {"most" or "least": value, "met": whether}}."""
    wanted: list[tuple[str, str, float | None]] = []
    if row["scheme"] in (SHORT, FAST):
        wanted = [
            ("us_per_parameter", "most", _TARGETS_US.get((row["backend"], row["bits"]))),
            ("ratio_to_phe", "least", _TARGETS_RATIO.get(row["backend"])),
            ("bytes_per_parameter", "most", _TARGET_BYTES),
        ]
        if row["scheme"] == SHORT:
            wanted.append(("decrypt_ratio_to_phe", "least", _TARGET_DECRYPT_RATIO))
    elif row["scheme"] == SUM:
        wanted = [("add_s", "most", _TARGET_SUM_S * row["devices"] * row["parameters"] / 1e8)]
    elif row["scheme"] == STREAM:
        wanted = [("peak_mb", "most", _TARGET_STREAM_MB)]
    return {
        figure: {
            bound: value,
            "met": row[figure] <= value if bound == "most" else row[figure] >= value,
        }
        for figure, bound, value in wanted
        if value is not None
    }


def _each(work: Callable[[Any], Any], inputs: Sequence[Any]) -> tuple[list[Any], float]:
    """Call `work` on each input; return the results and the least seconds."""
    results, seconds = [], []
    for value in inputs:
        started = _now()
        results.append(work(value))
        seconds.append(_now() - started)
    return results, min(seconds)


def _seconds(work: Callable[[], Any]) -> float:
    started = _now()
    work()
    return _now() - started


_STARTED = time.monotonic()
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_now = _CLOCKS["wall"]


def _use_clock(name: str) -> None:
    global _now
    _now = _CLOCKS[name]


def _progress(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {text}", file=sys.stderr, flush=True)


_COLUMNS = (
    ("encrypt_s", "encrypt s", ",.3f"),
    ("us_per_parameter", "us each", ",.2f"),
    ("bytes_per_parameter", "B each", ".2f"),
    ("ratio_to_phe", "x phe", ",.0f"),
    ("add_s", "add s", ",.4f"),
    ("decrypt_s", "decrypt s", ",.3f"),
    ("decrypt_ratio_to_phe", "x phe", ".2f"),
    ("max_abs_error", "error", ".1e"),
)
_HEADER = f"{'bits':>4} {'parameters':>10}  {'backend':<14} {'scheme':<32}" + "".join(
    f"{title:>11}" for _, title, _ in _COLUMNS
)


def _line(row: Row) -> str:
    """Return a row as a line of the table below `_HEADER`."""
    line = (
        f"{row['bits'] or '':>4} {row['parameters'] or 0:>10,}  {row['backend']:<14} "
        f"{row['scheme']:<32}"
    )
    for name, _, form in _COLUMNS:
        value = row.get(name)
        line += f"{'' if value is None else format(value, form):>11}"
    if row.get("peak_mb"):
        line += f"  peak {row['peak_mb']:.0f} MB"
    if row.get("devices"):
        line += f"  {row['devices']} devices; checking them {row['check_s']:.2f} s"
    if row.get("note"):
        line += f"  {row['note']}"
    return line.rstrip()


def _say_missed(rows: list[Row]) -> None:
    """Name each figure that is not as it should be, for all numbers of parameters at once."""
    missed: dict[str, list[str]] = {}
    for row in rows:
        for figure, target in row["targets"].items():
            if not target["met"]:
                bound = next(iter(target))
                place = f"{row['bits']} bits, {row['backend']}, {row['scheme']}: {figure}"
                missed.setdefault(f"{place} at {bound} {target[bound]:g}", []).append(
                    f"{row[figure]:.3g}"
                )
    for place, figures in missed.items():
        print(f"missed: {place}; measured {', '.join(figures)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
