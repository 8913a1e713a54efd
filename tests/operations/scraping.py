"""Read a metrics endpoint as Prometheus would."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


def fetch(url: str) -> str:
    """Return the endpoint's text."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        assert answer.status == 200
        return answer.read().decode("utf-8")


def scrape(url: str) -> dict[Sample, float]:
    """Return every sample by name and labels; no two are the same."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(fetch(url)):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: dict[Sample, float], name: str, **labels: str) -> float:
    """Return a sample of the project's."""
    return found[f"gradledger_{name}", frozenset(labels.items())]


def url_in(lines: Iterable[str]) -> str:
    """Return where the metrics are, by the first line of a log in JSON."""
    first = json.loads(next(iter(lines)))
    assert (first["level"], first["event"]) == ("INFO", "metrics")
    return str(first["url"])
