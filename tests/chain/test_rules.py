"""CSVES and the Merkle tree against the vectors that the contract's own arithmetic shares."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger import csves, merkle
from gradledger.chain.contract import Member, Role, Rule, UploadState, VerdictCode
from gradledger.cid import digest_to_cid
from gradledger.errors import ConfigError

VECTORS = Path(__file__).parents[1] / "vectors"
SERIES = st.lists(st.integers(0, 1_000_000), min_size=1, max_size=64)


def load(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / name).read_text())


def test_csves_meets_the_shared_vectors() -> None:
    vectors = load("csves.json")
    assert len(vectors) > 200
    for row in vectors:
        errors, tau, held = row["errors"], row["tau"], row["held"]
        assert csves.trend_numerator(errors) == row["numerator"]
        assert csves.meets_trend(errors) == row["trend"]
        assert csves.meets_threshold(errors, tau) == row["threshold"]
        assert csves.gain_excess(errors, held) == row["excess"]
        for rule in Rule:
            assert csves.meets(rule, errors, tau, held) == row[rule.name.lower()]


@given(SERIES)
def test_the_trend_is_that_of_numpys_line(errors: list[int]) -> None:
    count = len(errors)
    if count < 2:
        assert not csves.meets_trend(errors)
        return
    line = np.polyfit(np.arange(count), np.array(errors, dtype=float), 1)[0]
    denominator = count * count * (count * count - 1) / 12  # m sum(x^2) - sum(x)^2
    assert csves.trend_numerator(errors) / denominator == pytest.approx(line, abs=1e-6)


@given(SERIES)
def test_the_trend_turns_with_the_series(errors: list[int]) -> None:
    assert csves.trend_numerator(errors[::-1]) == -csves.trend_numerator(errors)
    assert abs(csves.trend_numerator(errors)) < 2**37


@pytest.mark.parametrize("errors", [[], [0] * 65, [-1], [1_000_001]])
def test_a_series_outside_its_bounds_is_refused(errors: list[int]) -> None:
    with pytest.raises(ConfigError, match="validation errors"):
        csves.trend_numerator(errors)
    with pytest.raises(ConfigError, match="validation errors"):
        csves.meets_threshold(errors, 1)


def test_merkle_meets_the_shared_vectors() -> None:
    for row in load("merkle.json"):
        records = [bytes.fromhex(record) for record in row["records"]]
        root = merkle.merkle_root(records)
        assert root.hex() == row["root"]
        for index, expected in enumerate(row["paths"]):
            path = merkle.merkle_path(records, index)
            assert [step.hex() for step in path] == expected
            assert merkle.verify_path(records[index], index, len(records), path, root)


def test_merkle_gives_the_known_roots_of_rfc_6962_logs() -> None:
    leaves = [
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    ]
    records = [bytes.fromhex(leaf) for leaf in leaves]
    assert merkle.merkle_root(records[:1]).hex() == (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    )
    assert merkle.merkle_root(records).hex() == (
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_a_path_proves_its_record_alone(records: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(records) - 1))
    root, path = merkle.merkle_root(records), merkle.merkle_path(records, index)
    count = len(records)
    assert merkle.verify_path(records[index], index, count, path, root)
    assert not merkle.verify_path(records[index] + b"x", index, count, path, root)
    assert not merkle.verify_path(records[index], index, count, [*path, bytes(32)], root)
    assert not merkle.verify_path(records[index], count, count, path, root)
    assert not merkle.verify_path(records[index], index, count, path, bytes(32))
    for other in range(count):
        if records[other] != records[index]:
            assert not merkle.verify_path(records[other], index, count, path, root)
    with pytest.raises(ConfigError, match=f"an index below {count}"):
        merkle.merkle_path(records, count)


def member(**changes: Any) -> Member:
    row = Member(
        account="phone1",
        role=Role.DEVICE,
        joined=True,
        enc_key=bytes(32),
        classes=1,
        set_version=0,
        set_cid="",
        set_hash=bytes(32),
        upload_version=3,
        upload_hash=hashlib.sha256(b"a").digest(),
        upload_cid=digest_to_cid(hashlib.sha256(b"b").digest()),
        series_hash=hashlib.sha256(b"c").digest(),
        upload_cost=600,
        error_first=900_000,
        error_before=200_000,
        error_last=100_000,
        upload_state=UploadState.PAID,
        upload_reason=VerdictCode.ACCEPT,
        barred_until=0,
        opening_cid="",
        upload_slot=0,
    )
    return dataclasses.replace(row, **changes)


def test_a_record_has_the_fields_where_the_protocol_says() -> None:
    record = merkle.leaf_record("digits", member(), price=7)
    assert len(record) == merkle.RECORD_BYTES
    assert int.from_bytes(record[8:12], "little") == 3
    assert record[20:52] == hashlib.sha256(b"a").digest()
    assert record[52:84] == hashlib.sha256(b"b").digest()
    assert int.from_bytes(record[84:88], "little") == 600
    assert int.from_bytes(record[88:92], "little") == 100_000
    assert record[92:94] == bytes([UploadState.PAID, VerdictCode.ACCEPT])
    assert int.from_bytes(record[94:], "little") == 4200
    refused = member(upload_state=UploadState.REFUSED, upload_reason=VerdictCode.MALFORMED)
    assert merkle.leaf_record("digits", refused, price=7)[94:] == bytes(8)


def test_a_rounds_records_ascend_by_the_accounts_value() -> None:
    members = [member(account=name) for name in ("zoe", "b", "a.b", "a1")]
    members.append(member(account="aa", upload_version=2))
    records = merkle.round_records("digits", members, 3, 7)
    assert records == [
        merkle.leaf_record("digits", member(account=name), 7) for name in ("a.b", "a1", "b", "zoe")
    ]
