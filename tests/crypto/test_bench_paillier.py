"""The Paillier bench: every row with every figure, a plot, and CKKS or the reason why not."""

import json

import pytest

from bench import ckks, paillier_plot
from bench import paillier as bench
from gradledger import paillier

FIGURES = {
    "scheme",
    "backend",
    "bits",
    "parameters",
    "encrypt_s",
    "us_per_parameter",
    "bytes_per_parameter",
    "add_s",
    "decrypt_s",
    "ratio_to_phe",
    "max_abs_error",
}
PARAMETERS = [78, 200]  # one ciphertext at 2048 bits, and three


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run: its rows, and where it wrote them."""
    out = tmp_path_factory.mktemp("bench") / "made" / "paillier.json"
    backends = list(dict.fromkeys([paillier.backends()[0], "gmpy2"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "PHE_SAMPLE", 3)
        patch.setattr(bench, "MASKS", 2)
        code = bench.main(
            [
                *("--bits", "2048", "--parameters", *map(str, PARAMETERS)),
                *("--backends", *backends, "--seconds", "0.01"),
                *("--sum-devices", "3", "--sum-parameters", "200"),
                *("--stream-parameters", "25000", "--out", str(out)),
            ]
        )
    assert code == 0
    return backends, json.loads(out.read_text()), out


def test_every_row_has_every_figure(made):
    backends, rows, _ = made
    for row in rows:
        assert row.keys() >= FIGURES
        assert row["seed"] == bench.SEED
        assert row["command"].startswith("python -m bench.paillier --bits 2048")
        assert row["machine"]["cpu"]
    ours = [
        (scheme, backend, parameters)
        for scheme in (bench.SHORT, bench.FAST, bench.STRICT, bench.MASKED)
        for backend in (backends[:1] if scheme == bench.MASKED else backends)
        for parameters in PARAMETERS
        if (scheme, backend) != (bench.FAST, bench.GMPY2)
    ]
    by_place = {(row["scheme"], row["backend"], row["parameters"]): row for row in rows}
    for place in ours:
        row = by_place[place]
        assert all(row[figure] > 0 for figure in FIGURES - {"scheme", "backend"})
        assert row["max_abs_error"] < 2 * bench.CLIP_E6 / 1e6 / 65535
        assert row["us_per_parameter"] == pytest.approx(row["encrypt_s"] / place[2] * 1e6)
        assert 1 <= row["measured"] <= row["ciphertexts"] == -(-place[2] // 78)
        assert row["bytes_per_parameter"] == 512 * row["ciphertexts"] / place[2]
    for parameters in PARAMETERS:
        assert by_place[bench.MAKING, backends[0], parameters]["encrypt_s"] > 0
        values, packed = (
            next(row for row in rows if (row["scheme"], row["parameters"]) == (scheme, parameters))
            for scheme in (bench.PHE_VALUES, bench.PHE_PACKED)
        )
        assert values["ratio_to_phe"] == pytest.approx(1)
        assert packed["ratio_to_phe"] == pytest.approx(values["encrypt_s"] / packed["encrypt_s"])
        assert values["bytes_per_parameter"] == 512


def test_sum_and_stream(made):
    backends, rows, _ = made
    sums = [row for row in rows if row["scheme"] == bench.SUM]
    assert [row["backend"] for row in sums] == backends
    assert all(row["devices"] == 3 and row["add_s"] > 0 and row["check_s"] > 0 for row in sums)
    (stream,) = (row for row in rows if row["scheme"] == bench.STREAM)
    assert stream["backend"] == backends[0]
    assert stream["peak_mb"] >= stream["peak_mb_before"] > 10
    assert stream["ciphertexts"] == -(-25_000 // 78)


def test_ckks_is_measured_or_said_to_be_missing(made):
    _, rows, _ = made
    found = [row for row in rows if row["scheme"] == bench.CKKS]
    if found[0]["parameters"]:
        assert [row["parameters"] for row in found] == PARAMETERS
        assert all(row["ratio_to_phe"] > 0 and row["max_abs_error"] < 1e-3 for row in found)
    else:
        (row,) = found
        assert row["note"].startswith("not installed: ")
        assert row["note"].endswith("(make setup-tenseal)")


def test_ckks_without_tenseal(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    monkeypatch.setattr("sys.argv", ["bench.ckks"])
    assert ckks.main() == ckks.NOT_INSTALLED
    assert "not installed: " in capsys.readouterr().err


def test_plot(made, tmp_path):
    _, rows, out = made
    assert out.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    named = {row["scheme"] for row in rows} - {bench.SUM, bench.STREAM}
    assert named <= set(paillier_plot.NAMES)
    paillier_plot.draw([row for row in rows if row["scheme"] == bench.SHORT], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("row", "met"),
    [
        ({"scheme": bench.SUM, "devices": 100, "parameters": 10**6, "add_s": 2.9}, True),
        ({"scheme": bench.SUM, "devices": 100, "parameters": 10**6, "add_s": 3.1}, False),
        ({"scheme": bench.SUM, "devices": 10, "parameters": 10**6, "add_s": 0.31}, False),
        ({"scheme": bench.STREAM, "peak_mb": 249}, True),
        ({"scheme": bench.STREAM, "peak_mb": 251}, False),
    ],
)
def test_targets(row, met):
    (target,) = bench._targets(row).values()
    assert target["met"] is met


def test_targets_of_a_backend():
    row = {
        "scheme": bench.SHORT,
        "backend": "gmpy2",
        "bits": 3072,
        "us_per_parameter": 17.1,
        "ratio_to_phe": 1500,
        "bytes_per_parameter": 6.6,
        "decrypt_ratio_to_phe": 4.9,
    }
    met = {figure: target["met"] for figure, target in bench._targets(row).items()}
    assert met == {
        "us_per_parameter": False,
        "ratio_to_phe": True,
        "bytes_per_parameter": True,
        "decrypt_ratio_to_phe": False,
    }


def test_table_is_in_columns(made):
    _, rows, _ = made
    for row in rows:
        line = bench._line(row)
        place = bench._HEADER.index("encrypt s") + len("encrypt s")
        if row["encrypt_s"]:
            assert line[:place].endswith(f"{row['encrypt_s']:,.3f}")
