"""The demo's report: exact money, plots and a page that stands alone."""

from __future__ import annotations

import json
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradledger.demo import report as reports
from gradledger.errors import ConfigError

TOKEN = {"symbol": "TOK", "precision": 4, "contract": "eosio.token"}
VOID = {"meta", "img", "br"}


def sample() -> dict[str, Any]:
    """A report of two rounds whose texts would break a careless page."""
    return {
        "rounds": [
            {
                "version": version,
                "accuracy": 0.4 * version,
                "uploads": 4,
                "accepted": 3,
                "refused": 1,
                "audited": 3,
                "caught": 77,
                "paid": 12_345,
            }
            for version in (1, 2)
        ],
        "initial_accuracy": 0.1,
        "final_accuracy": 0.8,
        "centralised": [0.5, 0.85],
        "centralised_accuracy": 0.85,
        "escrow": {
            "deposited": 30_000,
            "paid": 24_690,
            "reserved": 0,
            "withdrawn": 5_310,
            "balance": 0,
        },
        "conserved": True,
        "checks": {"deposited = paid + reserved": True, "a <b> & c": False},
        "seconds": 12.5,
        "chain": {"server_version": "<script>alert(1)</script>"},
        "reasons": {'x" onload="y': 2},
        "token": TOKEN,
        "options": {
            "dataset": "digits",
            "devices": 4,
            "rounds": 2,
            "mode": "paillier",
            "framework": "sklearn",
            "lot": 0.0,
            "seed": 1,
        },
        "devices": [
            {
                "account": f"phone{i}",
                "role": role,
                "examples": 100,
                "accepted": 2,
                "refused": 0,
                "paid": 6_172,
            }
            for i, role in enumerate(("honest", "late", "shuffled", "stale"))
        ],
    }


class Balanced(HTMLParser):
    """Fails on a tag that is not closed; collects resources and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for key, value in attrs if key in ("src", "href")]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (0, "0.0000 TOK"),
        (1, "0.0001 TOK"),
        (9_999, "0.9999 TOK"),
        (10_000, "1.0000 TOK"),
        (-25, "-0.0025 TOK"),
        (2**62, "461168601842738.7904 TOK"),
    ],
)
def test_money_is_exact(units: int, text: str) -> None:
    assert reports.money(units, TOKEN) == text


def test_money_without_decimals() -> None:
    assert reports.money(7, {"symbol": "ONE", "precision": 0}) == "7 ONE"


def test_page_is_balanced_escaped_and_self_contained() -> None:
    document = reports.page(sample(), b"\x89PNG one", b"\x89PNG two")
    parser = Balanced()
    parser.feed(document)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.tags
    assert len(parser.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
    assert "http" not in document
    for text in ("<script>alert(1)</script>", 'x" onload="y', "a <b> & c: NO", "1.2345 TOK"):
        assert text in parser.text


def test_files_of_a_report(tmp_path: Path) -> None:
    files = reports.write(sample(), tmp_path / "a" / "b")
    assert [path.name for path in files] == [
        "report.json",
        "accuracy.png",
        "pay.png",
        "report.html",
    ]
    assert json.loads(files[0].read_text()) == sample()
    for path in files[1:3]:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">2I", content[16:24])
        assert width >= 900
        assert height >= 450


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out: cannot write into"):
        reports.write(sample(), tmp_path / "file")


def test_audits_are_shown_where_there_are_any() -> None:
    report = sample()
    assert "caught" not in reports.summary(report) + reports.page(report, b"", b"")
    report["options"]["lot"] = 0.5
    lines = reports.summary(report).splitlines()
    assert lines[0].split()[-3:] == ["audited", "caught", "paid"]
    assert lines[3].split()[-4:] == ["3", "77", "1.2345", "TOK"]
    assert "<th>caught</th>" in reports.page(report, b"", b"")


def test_summary_shows_every_round_and_check() -> None:
    lines = reports.summary(sample()).splitlines()
    assert lines[0].split() == [
        "version",
        "accuracy",
        "centralised",
        "uploads",
        "accepted",
        "refused",
        "paid",
    ]
    assert lines[3].split() == ["2", "80.00%", "85.00%", "4", "3", "1", "1.2345", "TOK"]
    assert "  [FAILED] a <b> & c" in lines
    assert "Escrow: deposited 3.0000 TOK, paid 2.4690 TOK" in "\n".join(lines)
