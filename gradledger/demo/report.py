"""What the demo leaves behind: one JSON document, two plots and a page that holds them all."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradledger.demo import plots
from gradledger.demo.view import table
from gradledger.errors import ConfigError

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
ACCURACY_PNG = "accuracy.png"
PAY_PNG = "pay.png"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .25rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f4f4; } img { max-width: 100%; height: auto; }
.yes { color: #1b6e33; } .no { color: #a32020; font-weight: bold; }
"""


def money(units: int, token: Mapping[str, Any]) -> str:
    """Return an exact amount for people, such as ``0.6000 TOK``; `units` are the smallest."""
    precision = int(token["precision"])
    sign, digits = ("-" if units < 0 else ""), str(abs(units)).rjust(precision + 1, "0")
    whole, part = digits[: len(digits) - precision], digits[len(digits) - precision :]
    return f"{sign}{whole}{'.' + part if part else ''} {token['symbol']}"


def write(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the JSON document, the plots and the page into `directory`.

    Parameters
    ----------
    report : mapping
        As `gradledger.demo.training.run_demo` returns it.
    directory : Path
        Created where it does not exist; files of the same names are replaced.

    Returns
    -------
    list of Path
        The four files.

    Raises
    ------
    ConfigError
        The directory cannot be written.
    """
    accuracy, pay = draw(report)
    files = {
        REPORT_JSON: dumps(report).encode(),
        ACCURACY_PNG: accuracy,
        PAY_PNG: pay,
        REPORT_HTML: page(report, accuracy, pay).encode(),
    }
    make_folder(directory)
    try:
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as exc:
        raise ConfigError(f"--out: cannot write into {directory}: {exc}") from exc
    return [directory / name for name in files]


def make_folder(directory: Path) -> None:
    """Make the folder of the report; called before the rounds, so that a typo costs no minutes.

    Raises
    ------
    ConfigError
        It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"--out: cannot write into {directory}: {exc}") from exc


def dumps(report: Mapping[str, Any]) -> str:
    """Return the report as one JSON document that ends in a newline."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def summary(report: Mapping[str, Any]) -> str:
    """Return the tables and sentences that end a run on the terminal."""
    token, escrow, chain = report["token"], report["escrow"], report["chain"]
    audits = _audit_columns(report)
    rounds = table(
        ["version", "accuracy", "centralised", "uploads", "accepted", "refused", *audits, "paid"],
        [
            [
                row["version"],
                f"{row['accuracy']:.2%}",
                f"{centralised:.2%}",
                row["uploads"],
                row["accepted"],
                row["refused"],
                *(row[name] for name in audits),
                money(row["paid"], token),
            ]
            for row, centralised in zip(report["rounds"], report["centralised"], strict=True)
        ],
    )
    reasons = ", ".join(f"{code} {count}" for code, count in report["reasons"].items()) or "none"
    amounts = ", ".join(f"{name} {money(amount, token)}" for name, amount in escrow.items())
    checks = [
        f"  [{'ok' if passed else 'FAILED'}] {text}" for text, passed in report["checks"].items()
    ]
    return "\n".join(
        [
            rounds,
            "",
            f"Final accuracy {report['final_accuracy']:.2%}; centralised training on the same data "
            f"{report['centralised_accuracy']:.2%}.",
            f"Refused uploads, by reason: {reasons}.",
            f"Escrow: {amounts}.",
            "From the chain's tables:",
            *checks,
            f"{report['seconds']:.1f} s, chain {chain['server_version']}.",
        ]
    )


def draw(report: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the two plots, accuracy and pay, as PNG files."""
    options, token = report["options"], report["token"]
    count, rounds = options["devices"], options["rounds"]
    title = f"{options['dataset']}: {count} devices, {rounds} rounds, {options['mode']} mode"
    federated = [report["initial_accuracy"], *(row["accuracy"] for row in report["rounds"])]
    centralised = [report["initial_accuracy"], *report["centralised"]]
    return (
        plots.accuracy_png(title, federated, centralised),
        plots.pay_png(
            f"{title}: pay per device", report["devices"], token["symbol"], token["precision"]
        ),
    )


def page(report: Mapping[str, Any], accuracy: bytes, pay: bytes) -> str:
    """Return a page that needs no other file: every text escaped, both plots embedded."""
    options, token, escrow = report["options"], report["token"], report["escrow"]
    audits = _audit_columns(report)
    rounds = _table(
        ["version", "accuracy", "uploads", "accepted", "refused", *audits, "paid"],
        [
            [
                row["version"],
                f"{row['accuracy']:.2%}",
                row["uploads"],
                row["accepted"],
                row["refused"],
                *(row[name] for name in audits),
                money(row["paid"], token),
            ]
            for row in report["rounds"]
        ],
    )
    devices = _table(
        ["device", "behaviour", "examples", "accepted", "refused", "paid"],
        [
            [
                row["account"],
                row["role"],
                row["examples"],
                row["accepted"],
                row["refused"],
                money(row["paid"], token),
            ]
            for row in report["devices"]
        ],
    )
    reasons = _table(["reason", "uploads"], [[k, v] for k, v in report["reasons"].items()])
    kept = _table(
        ["escrow", "amount"], [[name, money(amount, token)] for name, amount in escrow.items()]
    )
    checks = "".join(
        f'<li class="{"yes" if passed else "no"}">{html.escape(text)}: '
        f"{'yes' if passed else 'NO'}</li>"
        for text, passed in report["checks"].items()
    )
    title = f"gradledger demo: {options['dataset']}"
    summary = (
        f"{options['devices']} devices, {options['rounds']} rounds, {options['mode']} mode, "
        f"{options['framework']}, seed {options['seed']}. "
        f"Final accuracy {report['final_accuracy']:.2%}, centralised training on the same data "
        f"{report['centralised_accuracy']:.2%}. {report['seconds']:.0f} s on a chain of version "
        f"{report['chain']['server_version']}."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(summary)}</p>\n"
        f"{_image(accuracy, 'accuracy of each version')}\n"
        f"<h2>Rounds</h2>\n{rounds}\n<h2>Devices</h2>\n{_image(pay, 'pay of each device')}\n"
        f"{devices}\n<h2>Why uploads were refused</h2>\n{reasons}\n"
        f"<h2>Money, from the chain's tables</h2>\n{kept}\n<ul>{checks}</ul>\n</body>\n</html>\n"
    )


def _audit_columns(report: Mapping[str, Any]) -> list[str]:
    """Return the columns that only a run with audits has."""
    return ["audited", "caught"] if report["options"]["lot"] else []


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table>\n<thead>{line(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
