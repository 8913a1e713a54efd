"""Read a metrics endpoint as Prometheus would."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape(url: str) -> dict[Sample, float]:
    """Return every sample by name and labels; no two are the same."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        assert answer.status == 200
        text = answer.read().decode("utf-8")
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type != "unknown", family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: dict[Sample, float], name: str, **labels: str) -> float:
    """Return a sample of the project's."""
    return found[f"gradledger_{name}", frozenset(labels.items())]
