"""Every verdict: one row for each way in which an upload can be wrong."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import (
    ARCHITECTURE,
    PARAMETERS,
    POINTS_X,
    POINTS_Y,
    PUBLIC,
    SECRETS,
    UPDATE,
    VERSION,
    World,
    make_member,
    make_round,
    published,
    validation_set,
)

from gradledger import envelope
from gradledger.chain.contract import Rule, VerdictCode
from gradledger.envelope import Kind, PayloadCodec
from gradledger.models import Model
from gradledger.paillier import PaillierPublicKey
from producer_validation import checks, measuring
from producer_validation.checks import Known, KnownUploads, MaterialError, judge

ROWS: list[tuple[str, str, Callable[[World], tuple[bytes, dict[str, Any]]], VerdictCode, str]] = []


def readers(count: int) -> dict[str, bytes]:
    """Return so many readers, val1 and the owner among them."""
    names = [f"r{a}{b}" for a in "abcdefg" for b in "12345"][: count - 2]
    return {name: PUBLIC.get(name, PUBLIC["val2"]) for name in ("val1", "boss", *names)}


def row(mode: str, code: VerdictCode, text: str) -> Callable[[Any], Any]:
    """Add a row: a function from the honest world to a blob and changes of the facts."""

    def add(make: Any) -> Any:
        for one in mode.split():
            ROWS.append((f"{make.__name__}-{one}", one, make, code, text))
        return make

    return add


@row("paillier sealed", VerdictCode.MALFORMED, "expected at most ")
def too_long(world: World) -> tuple[bytes, dict[str, Any]]:
    return bytes(100_000), {}


@row("paillier sealed", VerdictCode.HASH_MISMATCH, "expected the recorded hash 0707")
def another_hash(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(), {"member": make_member(upload_hash=b"\x07" * 32)}


@row("paillier sealed", VerdictCode.MALFORMED, "expected at least 112 bytes, got 5")
def no_envelope(world: World) -> tuple[bytes, dict[str, Any]]:
    return b"hello", {}


@row("paillier sealed", VerdictCode.MALFORMED, "bytes in all, got")
def cut_off(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob()[:-1], {}


@row("paillier sealed", VerdictCode.MALFORMED, "expected format version 1, got 2")
def later_format(world: World) -> tuple[bytes, dict[str, Any]]:
    blob = world.blob()
    return blob[:3] + b"\2" + blob[4:], {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "header field version: expected 3, got 2")
def stale_version(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(version=2), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field task: expected digits, got letters")
def another_task(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(task="letters"), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field sender: expected phone1, got phone2")
def another_sender(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(sender="phone2"), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field parameters: expected 6, got")
def another_length(world: World) -> tuple[bytes, dict[str, Any]]:
    if world.key is None:
        return world.sealed(bytes(14), parameters=7), {}
    return world.blob(parameters=7), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field clip_e6: expected 2000000, got 1")
def another_clip(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(clip_e6=1), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field examples: expected 60, got 61")
def another_cost(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(examples=61), {}


@row("paillier", VerdictCode.HEADER_MISMATCH, "field slot_bits: expected 26, got 27")
def another_slot(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(slot_bits=27), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "header field codec: expected ")
def another_codec(world: World) -> tuple[bytes, dict[str, Any]]:
    if world.key is not None:
        changes = {"codec": PayloadCodec.QUANTISED, "slot_bits": 0, "key_hash": bytes(32)}
        return world.sealed(bytes(2 * PARAMETERS), **changes), {}
    return world.blob(codec=PayloadCodec.PAILLIER, slot_bits=26, key_hash=b"\1" * 32), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "header field kind: expected update, got ")
def another_kind(world: World) -> tuple[bytes, dict[str, Any]]:
    changes = {"codec": PayloadCodec.BYTES, "slot_bits": 0, "clip_e6": 0, "examples": 0}
    return world.blob(kind=Kind.MODEL, key_hash=bytes(32), **changes), {}


@row("paillier sealed", VerdictCode.HEADER_MISMATCH, "field sealed: expected True, got False")
def in_the_clear(world: World) -> tuple[bytes, dict[str, Any]]:
    return envelope.plain(world.header, world.payload), {}


@row("paillier", VerdictCode.WRONG_KEY, "expected an update under key ")
def another_key(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(key_hash=b"\1" * 32), {}


@row("paillier", VerdictCode.MALFORMED, "expected a payload of 512 bytes, got 511")
def short_payload(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.sealed(world.payload[:-1]), {}


@row("paillier", VerdictCode.MALFORMED, "expected a payload of 512 bytes, got 1024")
def long_payload(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.sealed(world.payload * 2), {}


@row("paillier sealed", VerdictCode.MALFORMED, "expected val3 among the readers")
def left_out(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(), {"account": "val3"}


@row("sealed", VerdictCode.MALFORMED, "expected the owner boss among the readers")
def owner_left_out(world: World) -> tuple[bytes, dict[str, Any]]:
    validators = {name: PUBLIC[name] for name in ("val1", "val2")}
    return envelope.seal(world.header, world.payload, validators), {}


@row("paillier sealed", VerdictCode.MALFORMED, "expected at most ")
def a_reader_too_many(world: World) -> tuple[bytes, dict[str, Any]]:
    return envelope.seal(world.header, world.payload, readers(34)), {}


@row("paillier sealed", VerdictCode.MALFORMED, "sealed to another key of val1")
def sealed_to_another_key(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(), {"secret": SECRETS["val2"]}


@row("paillier sealed", VerdictCode.MALFORMED, "were changed after sealing")
def flipped_bit(world: World) -> tuple[bytes, dict[str, Any]]:
    blob = bytearray(world.blob())
    blob[-1] ^= 1
    return bytes(blob), {}


@row("paillier sealed", VerdictCode.MALFORMED, "were changed after sealing")
def name_put_over(world: World) -> tuple[bytes, dict[str, Any]]:
    """Another device's envelope with the copier's own name: the header is under the seal."""
    blob = bytearray(world.blob(sender="phone2"))
    blob[16:24] = world.blob()[16:24]
    return bytes(blob), {}


@row("paillier", VerdictCode.OUT_OF_RANGE, "ciphertext 0: expected a value in [1, n^2)")
def zero_ciphertext(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.sealed(bytes(512)), {}


@row("paillier", VerdictCode.OUT_OF_RANGE, "ciphertext 0: expected a value in [1, n^2)")
def too_large_ciphertext(world: World) -> tuple[bytes, dict[str, Any]]:
    assert world.key is not None
    return world.sealed((world.key.n**2).to_bytes(512, "big")), {}


@row("paillier", VerdictCode.OUT_OF_RANGE, "ciphertext 0: expected no common factor with n")
def factor_of_n(world: World) -> tuple[bytes, dict[str, Any]]:
    assert world.key is not None
    return world.sealed((3 * world.key.n).to_bytes(512, "big")), {}


@row("sealed", VerdictCode.ERROR_MISMATCH, "expected a last error of 1000000 +- 100000 (measured)")
def forged_series(world: World) -> tuple[bytes, dict[str, Any]]:
    """It makes the model worse, and reports the error of a good one."""
    return world.sealed(world.codec.to_bytes(world.codec.quantise(-UPDATE))), {}


@row("sealed", VerdictCode.ERROR_MISMATCH, "expected a last error of 1000000 +- 100000")
def harmful_update(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.sealed(world.codec.to_bytes(world.codec.quantise(-UPDATE))), {}


@row("paillier sealed", VerdictCode.DUPLICATE, "expected an update of its own, got the one of a")
def copied(world: World) -> tuple[bytes, dict[str, Any]]:
    digest = hashlib.sha256(world.payload).digest()
    return world.blob(), {"others": [Known("a", 0, digest, False)]}


GAIN_FIRST = 976_895  # the zero model's doubt: 1 + ln(1/2) / 30


@row("sealed", VerdictCode.NO_UPDATE, "expected an update, got none but rounding")
def zero_update(world: World) -> tuple[bytes, dict[str, Any]]:
    """A free rider: it sends nothing, and reports the error of a good model."""
    codes = world.codec.quantise(np.zeros(PARAMETERS))
    return world.sealed(world.codec.to_bytes(codes)), {}


@row("sealed", VerdictCode.NORM, "expected a norm of at most 1999000, got 1999969")
def too_long_an_update(world: World) -> tuple[bytes, dict[str, Any]]:
    measure = world.measure()
    assert measure is not None
    return world.blob(), {"measure": replace(measure, norm_max_e6=1_999_000)}


def gain_row(world: World, update: Any) -> tuple[bytes, dict[str, Any]]:
    """Return an upload with its true series under the rule gain."""
    codes = world.codec.quantise(np.array(update, dtype=np.float32))
    measure = world.measure()
    assert measure is not None
    after = measuring.views(measure.model, codes, world.codec, POINTS_X, POINTS_Y, doubts=True)[1]
    blob = world.sealed(world.codec.to_bytes(codes))
    one = replace(
        measure,
        rule=Rule.GAIN,
        error_first=GAIN_FIRST,
        error_before=after.doubt,
        error_last=after.error,
    )
    return blob, {"measure": one}


@row("sealed", VerdictCode.CLASS_CLAIM, "expected an update that knows class 1: doubt 0.97")
def one_class_alone(world: World) -> tuple[bytes, dict[str, Any]]:
    return gain_row(world, [0, 0, 0, 0, 1, -1])


@row("sealed", VerdictCode.NO_GAIN, "expected doubts to move by 0.012 in the mean")
def next_to_nothing(world: World) -> tuple[bytes, dict[str, Any]]:
    return gain_row(world, 0.1 * UPDATE)


@row("sealed", VerdictCode.NO_GAIN, "expected the doubt to fall further than from 976895 to 95")
def less_than_training_gives(world: World) -> tuple[bytes, dict[str, Any]]:
    return gain_row(world, 0.5 * UPDATE)


@row("sealed", VerdictCode.REPLAYED_SERIES, "it is the series of an earlier round")
def replayed_series(world: World) -> tuple[bytes, dict[str, Any]]:
    return world.blob(), {"measure": world.measure(300_000), "is_earlier": True}


@row("sealed", VerdictCode.COPIED_SERIES, "phone2 reported the same series")
def copied_series(world: World) -> tuple[bytes, dict[str, Any]]:
    rows = [make_member(), make_member("phone2"), make_member("phone0", upload_version=2)]
    return world.blob(), {"measure": world.measure(300_000), "rows": rows}


@pytest.mark.parametrize(
    ("mode", "make", "code", "text"), [one[1:] for one in ROWS], ids=[one[0] for one in ROWS]
)
def test_each_refusal_has_its_code_and_says_what_was_expected(
    request: pytest.FixtureRequest, mode: str, make: Any, code: VerdictCode, text: str
) -> None:
    world: World = request.getfixturevalue(mode)
    blob, changes = make(world)
    found, reason = judge(blob, **world.facts(blob, **changes))
    assert found is code, reason
    assert text in reason


def test_every_verdict_about_bytes_has_a_row() -> None:
    by_validator = set(VerdictCode) - {
        VerdictCode.NONE,
        VerdictCode.ACCEPT,
        VerdictCode.UNAVAILABLE,  # there are no bytes: tested with the validator
        VerdictCode.UNREVEALED,
        VerdictCode.OPENING_MISMATCH,  # in an audit: tests of openings
        VerdictCode.SILENCE,  # the contract's own
        VerdictCode.UNDELIVERED,
        VerdictCode.UNANSWERED,
    }
    assert {code for *_, code, _ in ROWS} == by_validator


@pytest.mark.parametrize("mode", ["paillier", "sealed"])
@pytest.mark.parametrize("account", ["val1", "val2"])
def test_every_validator_accepts_an_honest_upload(
    request: pytest.FixtureRequest, mode: str, account: str
) -> None:
    world: World = request.getfixturevalue(mode)
    blob = world.blob()
    facts = world.facts(blob, account=account, secret=SECRETS[account])
    assert judge(blob, **facts) == (VerdictCode.ACCEPT, "")


@pytest.mark.parametrize("mode", ["paillier", "sealed"])
def test_the_longest_envelope_is_as_long_as_the_bound(
    request: pytest.FixtureRequest, mode: str
) -> None:
    world: World = request.getfixturevalue(mode)
    blob = envelope.seal(world.header, world.payload, readers(33))
    assert len(blob) == checks.update_bytes_max(world.codec, world.key)
    assert judge(blob, **world.facts(blob)) == (VerdictCode.ACCEPT, "")


@pytest.mark.parametrize(
    ("reported", "code"),
    [
        (0, VerdictCode.ACCEPT),
        (100_000, VerdictCode.ACCEPT),  # two of the twenty examples
        (100_001, VerdictCode.ERROR_MISMATCH),
        (150_000, VerdictCode.ERROR_MISMATCH),
    ],
)
def test_two_examples_may_differ(sealed: World, reported: int, code: VerdictCode) -> None:
    blob = sealed.blob()
    assert judge(blob, **sealed.facts(blob, measure=sealed.measure(reported)))[0] is code


def test_the_tolerance_covers_that_errors_are_rounded_down(sealed: World) -> None:
    """One wrong of 3 is 333333, three wrong are 1000000: two examples apart."""
    x, y = POINTS_X[:3], np.array([1, 0, 1])
    measure = sealed.measure()
    assert measure is not None
    blob = sealed.blob()
    for reported, code in ((333_333, VerdictCode.ACCEPT), (333_332, VerdictCode.ERROR_MISMATCH)):
        one = replace(measure, x=x, y=y, error_last=reported)
        assert judge(blob, **sealed.facts(blob, measure=one))[0] is code


# ---- an update in the clear ---------------------------------------------------------------------


def gain(world: World, update: Any, **reported: int) -> tuple[VerdictCode, str]:
    """Judge an update under the rule gain whose series is true unless said otherwise."""
    codes = world.codec.quantise(np.array(update, dtype=np.float32))
    measure = world.measure()
    assert measure is not None
    before, after = measuring.views(
        measure.model, codes, world.codec, POINTS_X, POINTS_Y, doubts=True
    )
    assert before.doubt == GAIN_FIRST
    numbers = {
        "error_first": GAIN_FIRST,
        "error_before": after.doubt,
        "error_last": after.error,
        **reported,
    }
    blob = world.sealed(world.codec.to_bytes(codes))
    one = replace(measure, rule=Rule.GAIN, **numbers)
    return judge(blob, **world.facts(blob, measure=one))


def test_gain_accepts_what_learnt_both_classes(sealed: World) -> None:
    assert gain(sealed, UPDATE) == (VerdictCode.ACCEPT, "")


@pytest.mark.parametrize(
    ("name", "by", "text"),
    [
        ("error_first", 501, "expected a first error of 976895 \\+- 500"),
        ("error_before", -501, "expected a last but one error of 9"),
        ("error_last", 100_001, "expected a last error of 0 \\+- 100000"),
    ],
)
def test_every_number_that_the_chain_keeps_is_measured(
    sealed: World, name: str, by: int, text: str
) -> None:
    true = {"error_first": GAIN_FIRST, "error_before": 929_102, "error_last": 0}
    code, reason = gain(sealed, UPDATE, **{name: true[name] + by})
    assert code is VerdictCode.ERROR_MISMATCH
    assert re.match(text, reason)
    within = by - 2 if by > 0 else by + 2  # rounding to codes moves a doubt by one
    assert gain(sealed, UPDATE, **{name: true[name] + within})[0] is VerdictCode.ACCEPT


def test_the_first_error_under_the_papers_rules_is_of_wrong_answers(sealed: World) -> None:
    """The zero model answers class 0 always: half of the set is wrong."""
    blob, measure = sealed.blob(), sealed.measure()
    assert measure is not None
    for first, code in ((500_000, VerdictCode.ACCEPT), (399_999, VerdictCode.ERROR_MISMATCH)):
        one = replace(measure, error_first=first)
        assert judge(blob, **sealed.facts(blob, measure=one))[0] is code


def test_a_series_is_named_only_where_it_does_not_fit(sealed: World) -> None:
    rows, blob = [make_member("phone2")], sealed.blob()
    facts = sealed.facts(blob, rows=rows, is_earlier=True)
    assert judge(blob, **facts)[0] is VerdictCode.ACCEPT
    mismatch = checks.Refusal(VerdictCode.ERROR_MISMATCH, "m")
    me = make_member()
    for others in ([me], [make_member("phone2", upload_version=VERSION - 1)], []):
        assert checks.name_series(mismatch, me, others, is_earlier=False) is mismatch
    norm = checks.Refusal(VerdictCode.NORM, "n")
    assert checks.name_series(norm, me, rows, is_earlier=True) is norm


def test_what_an_update_is_measured_with_follows_from_the_rows() -> None:
    model = Model(ARCHITECTURE, np.zeros(PARAMETERS))
    series = hashlib.sha256(struct.pack("<3I", 7, 8, 9)).digest()
    fields = {"error_first": 7, "error_before": 8, "error_last": 9}
    member = make_member(series_hash=series, **fields)

    def found(member: Any, rule: Rule = Rule.EITHER, **more: Any) -> tuple[Any, ...]:
        round_ = make_round(rule=rule, norm_max_e6=5)
        one = checks.measure_of(round_, member, model, POINTS_X, POINTS_Y, **more)
        assert (one.rule, one.norm_max_e6) == (rule, 5)
        return one.error_first, one.error_before, one.error_last

    assert found(member) == (7, None, 9)
    assert found(member, Rule.GAIN) == (7, 8, 9)
    alone = hashlib.sha256(struct.pack("<I", 9)).digest()
    single = make_member(series_hash=alone, error_first=9, error_before=9, error_last=9)
    assert found(single) == (None, None, 9)
    assert found(single, tells_update=False) == (9, None, None)


# ---- duplicates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "others", "winner"),
    [
        (5, [], None),
        (5, [(5, "same", False)], None),  # itself
        (5, [(6, "same", False)], None),  # the first stays
        (5, [(4, "same", False)], 4),
        (5, [(4, "other", False)], None),
        (5, [(6, "same", True)], 6),  # accepted already: it stays wherever it is
        (5, [(6, "same", True), (4, "same", False)], 6),
        (5, [(4, "same", False), (3, "same", False)], 3),
    ],
)
def test_of_equal_payloads_one_stays(
    slot: int, others: list[tuple[int, str, bool]], winner: int | None
) -> None:
    known = [
        Known(f"phone{9 - place}", place, digest.encode(), accepted)
        for place, digest, accepted in others
    ]
    refusal = checks.find_duplicate(Known(f"phone{9 - slot}", slot, b"same", False), known)
    if winner is None:
        assert refusal is None
    else:
        assert refusal is not None and refusal.code is VerdictCode.DUPLICATE
        assert refusal.reason == f"expected an update of its own, got the one of phone{9 - winner}"


@given(
    st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_exactly_one_of_several_pending_copies_stays(names: list[str], accepted: set[str]) -> None:
    known = [Known(name, slot, b"same", name in accepted) for slot, name in enumerate(names)]
    left = [
        one.account
        for one in known
        if not one.accepted and checks.find_duplicate(one, known) is None
    ]
    assert left == ([] if accepted & set(names) else names[:1])


def sketched(slot: int, codes: np.ndarray, accepted: bool) -> Known:
    sketch = measuring.update_sketch(codes.astype(np.uint16))
    return Known(f"phone{slot}", slot, codes.tobytes(), accepted, sketch)


def first_of_the_same(mine: Known, known: list[Known]) -> Known | None:
    """Return whose copy an upload is, by comparing it with each of the others."""
    others = [one for one in known if one.account != mine.account]
    near = measuring.is_near(mine.sketch, [one.sketch for one in others])
    same = [one for one, is_near in zip(others, near, strict=True) if is_near]
    stays = [one for one in same if one.accepted] or [one for one in same if one.slot < mine.slot]
    return min(stays, key=lambda one: one.slot, default=None)


@pytest.mark.parametrize("accepted", [0.0, 0.2])
def test_all_at_once_finds_what_one_by_one_does(accepted: float) -> None:
    """Updates at about the distance at which two of them become one, in no order of slots."""
    rng = np.random.default_rng(7)
    bases = rng.uniform(-20_000, 20_000, (40, 300))
    known = []
    for slot in rng.permutation(200):
        codes = np.rint(bases[slot % 40] * (1 + rng.normal(0, 0.008, 300)) + 32_768)
        known.append(sketched(int(slot), codes, bool(rng.random() < accepted)))
    uploads = KnownUploads(known)
    found = [uploads.find_duplicate(mine) for mine in known]
    expected = [first_of_the_same(mine, known) for mine in known]
    assert 40 < found.count(None) < 160
    for refusal, first in zip(found, expected, strict=True):
        name = first and f"expected an update of its own, got nearly the one of {first.account}"
        assert (refusal and refusal.reason) == name


@pytest.mark.parametrize("apart", [0.0095, 0.5])
def test_a_round_of_many_compares_few_one_by_one(
    apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither different updates, be they near the bound, nor a thousand copies of one."""
    compared = 0
    is_near = measuring.is_near

    def counting(sketch: bytes, others: list[bytes]) -> list[bool]:
        nonlocal compared
        compared += len(others)
        return is_near(sketch, others)

    monkeypatch.setattr(measuring, "is_near", counting)
    rng = np.random.default_rng(1)
    base = rng.uniform(-20_000, 20_000, 3000)
    many = [np.rint(base * (1 + rng.normal(0, apart, 3000)) + 32_768) for _ in range(200)]
    known = [sketched(slot, codes, False) for slot, codes in enumerate(many)]
    known += [sketched(slot, many[0], False) for slot in range(200, 1200)]
    uploads = KnownUploads(known)
    refused = [one.slot for one in known if uploads.find_duplicate(one) is not None]
    assert refused[-1000:] == list(range(200, 1200))
    assert compared <= 2 * len(known)


# ---- whatever the bytes -------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(blob=st.binary(max_size=2_000))
def test_no_bytes_make_it_raise(paillier: World, sealed: World, blob: bytes) -> None:
    for world in (paillier, sealed):
        assert judge(blob, **world.facts(blob))[0] is not VerdictCode.ACCEPT


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_change_of_an_honest_envelope_is_accepted(
    paillier: World, sealed: World, data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([paillier, sealed]))
    blob = bytearray(world.blob())
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    found, reason = judge(bytes(blob), **world.facts(bytes(blob)))
    assert found is not VerdictCode.ACCEPT
    assert reason  # the whole table of readers is under the seal, others' rows as well


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(min_size=512, max_size=512))
def test_any_payload_under_a_right_seal_gets_a_verdict(paillier: World, payload: bytes) -> None:
    blob = paillier.sealed(payload)
    assert judge(blob, **paillier.facts(blob))[0] in (VerdictCode.ACCEPT, VerdictCode.OUT_OF_RANGE)


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(min_size=12, max_size=12))
def test_any_codes_under_a_right_seal_get_a_verdict(sealed: World, payload: bytes) -> None:
    blob = sealed.sealed(payload)
    found = judge(blob, **sealed.facts(blob))[0]
    assert found in (VerdictCode.ACCEPT, VerdictCode.ERROR_MISMATCH, VerdictCode.NO_UPDATE)


def test_no_reason_holds_a_secret(paillier: World) -> None:
    blob, changes = sealed_to_another_key(paillier)
    assert SECRETS["val2"].hex() not in judge(blob, **paillier.facts(blob, **changes))[1]
    assert "payload=" not in repr(checks.Opened(b"secret", b""))


# ---- the owner's material -----------------------------------------------------------------------


def test_what_the_owner_published_is_read(sealed: World) -> None:
    model = Model(ARCHITECTURE, np.arange(PARAMETERS))
    blob = published(Kind.MODEL, model.to_bytes())
    round_ = make_round(model_hash=hashlib.sha256(blob).digest())
    found = checks.read_model(blob, sealed.task, round_, ARCHITECTURE, "val1", SECRETS["val1"])
    assert (found.vector == model.vector).all()
    blob = published(Kind.VALIDATION_SET, validation_set())
    member = make_member(set_hash=hashlib.sha256(blob).digest())
    x, y = checks.read_set(blob, sealed.task, member, "val1", SECRETS["val1"])
    assert (x == POINTS_X).all() and len(y) == 20


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "its hash is not the one on chain"),
        (b"hello", "expected at least 112 bytes"),
        (published(Kind.VALIDATION_SET, validation_set(), version=2), "expected kind, task"),
        (published(Kind.VALIDATION_SET, validation_set(), sender="phone1"), "expected kind, task"),
        (published(Kind.VALIDATION_SET, validation_set(), task="letters"), "expected kind, task"),
        (published(Kind.MODEL, validation_set()), "expected kind, task"),
        (published(Kind.VALIDATION_SET, b"{}"), "validation set of phone1: "),
    ],
)
def test_a_bad_validation_set_is_not_blamed_on_the_device(
    sealed: World, blob: bytes, text: str
) -> None:
    digest = hashlib.sha256(blob).digest() if blob else bytes(32)
    with pytest.raises(MaterialError, match=text):
        checks.read_set(blob, sealed.task, make_member(set_hash=digest), "val1", SECRETS["val1"])


def test_a_bad_model_is_not_blamed_on_the_device(sealed: World) -> None:
    other = {"kind": "mlp", "layers": [3, 2], "activation": "relu"}
    blob = published(Kind.MODEL, Model(other, np.zeros(8)).to_bytes(), parameters=8)
    round_ = make_round(model_hash=hashlib.sha256(blob).digest())
    with pytest.raises(MaterialError, match="model of round 3"):
        checks.read_model(blob, sealed.task, round_, ARCHITECTURE, "val1", SECRETS["val1"])
    with pytest.raises(MaterialError, match="expected 6 parameters, got 8"):
        checks.read_model(blob, sealed.task, round_, other, "val1", SECRETS["val1"])


def test_a_set_that_does_not_fit_the_model_is_not_blamed_on_the_device(sealed: World) -> None:
    measure = sealed.measure()
    assert measure is not None
    wide = replace(measure, x=np.zeros((20, 3), dtype=np.float32))
    with pytest.raises(MaterialError, match="cannot be measured"):
        checks.check_payload(sealed.payload, sealed.codec, None, wide)


def test_work_for_an_executor_travels(paillier: World, sealed: World) -> None:
    for world in (paillier, sealed):
        task = (world.payload, world.codec, world.key, world.measure())
        assert checks.check_payload(*pickle.loads(pickle.dumps(task))) is None
    key, codec = paillier.key, paillier.codec
    assert isinstance(key, PaillierPublicKey)
    twice = checks.add_payloads(key, codec, [paillier.payload] * 2)
    copies = pickle.loads(pickle.dumps((key, codec, [twice, paillier.payload])))
    assert checks.add_payloads(*copies) == checks.add_payloads(key, codec, [paillier.payload] * 3)


def test_payloads_are_as_long_as_they_should_be(paillier: World, sealed: World) -> None:
    for world in (paillier, sealed):
        assert checks.update_payload_bytes(world.codec, world.key) == len(world.payload)
