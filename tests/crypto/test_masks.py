"""Masks made ahead: true blinding, used once whatever happens, in a file for one account alone."""

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import gmpy2
import numpy as np
import pytest

from gradledger.codec import Codec
from gradledger.errors import CodecError, ConfigError, KeyMismatchError, MasksShortError
from gradledger.paillier import masks as masks_module
from gradledger.paillier.masks import MaskStore
from owner.paillier_key import PaillierPrivateKey

KEY = PaillierPrivateKey.generate(256, allow_insecure_size_for_tests=True)
OTHER = PaillierPrivateKey.generate(256, allow_insecure_size_for_tests=True)
PUBLIC = KEY.public
WIDTH = PUBLIC.ciphertext_bytes
CODEC = Codec(clip_e6=1_000_000, slot_bits=26, parameters=40)
COUNT = CODEC.plaintexts(PUBLIC.bits)
CRASHES = Path(__file__).with_name("mask_crashes.py")


@pytest.fixture
def store(tmp_path):
    store = MaskStore(tmp_path / "masks", PUBLIC)
    store.fill(12)
    return store


def split(masks):
    return [masks[start : start + WIDTH] for start in range(0, len(masks), WIDTH)]


def codes_of(seed):
    return np.random.default_rng(seed).integers(0, 65536, CODEC.parameters).astype(np.uint16)


def change(store, statement, *values):
    with closing(sqlite3.connect(store.path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


# ---- what a mask is ---------------------------------------------------------------------------


def test_a_mask_is_an_nth_power_that_no_other_is(store):
    masks = [int.from_bytes(mask, "big") for mask in split(store.take(12))]
    assert len(set(masks)) == 12
    theirs = KEY.to_phe()
    for mask in masks:
        assert 1 < mask < PUBLIC.n**2
        assert gmpy2.gcd(mask, PUBLIC.n) == 1
        assert theirs.raw_decrypt(mask) == 0  # an n-th power, and nothing else decrypts to zero


def test_masks_blind_an_update(store):
    codes = codes_of(1)
    one = PUBLIC.encrypt(codes, CODEC, masks=store)
    two = PUBLIC.encrypt(codes, CODEC, masks=store)
    assert len(store) == 12 - 2 * COUNT
    assert not set(split(one)) & set(split(two))
    PUBLIC.check_ciphertexts(one, CODEC)
    for payload in (one, two):
        assert (KEY.decrypt_sums(payload, CODEC, 1) == codes).all()
    mixed = PUBLIC.add([one, PUBLIC.encrypt(codes, CODEC)], CODEC)
    assert (KEY.decrypt_sums(mixed, CODEC, 2) == 2 * codes.astype(np.uint64)).all()


def test_a_ciphertext_is_the_plaintext_times_its_mask(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    store.fill(COUNT)
    known = [row[0] for row in change(store, "SELECT mask FROM masks ORDER BY id")]
    codes = codes_of(2)
    n = PUBLIC.n
    expected = b"".join(
        (
            (1 + int.from_bytes(plaintext, "little") * n) * int.from_bytes(mask, "big") % n**2
        ).to_bytes(WIDTH, "big")
        for plaintext, mask in zip(CODEC.pack(codes, PUBLIC.bits), known, strict=True)
    )
    assert PUBLIC.encrypt(codes, CODEC, masks=store) == expected


def test_masks_blind_a_stream(store):
    codes = codes_of(3)
    payload = b"".join(PUBLIC.encrypt_stream(codes, CODEC, masks=store))
    assert (KEY.decrypt_sums(payload, CODEC, 1) == codes).all()
    assert len(store) == 12 - COUNT


@pytest.mark.parametrize("other", [{"fast": True}, {"strict": True}])
def test_masks_are_a_mode_of_their_own(store, other):
    with pytest.raises(ConfigError, match="masks"):
        PUBLIC.encrypt(codes_of(1), CODEC, masks=store, **other)
    assert len(store) == 12


def test_codes_are_checked_before_a_mask_is_taken(store):
    with pytest.raises(CodecError):
        PUBLIC.encrypt(codes_of(1)[1:], CODEC, masks=store)
    assert len(store) == 12


# ---- making and taking ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_filling_goes_on_from_what_is_there(tmp_path, workers):
    store = MaskStore(tmp_path, PUBLIC)
    assert len(store) == 0
    seen = []
    store.fill(100, workers=workers, progress=lambda *report: seen.append(report))
    assert len(store) == 100
    assert seen[0] == (0, 100)
    assert seen[-1] == (100, 100)
    assert len(seen) > 2
    assert seen == sorted(seen)
    before = [row[0] for row in change(store, "SELECT mask FROM masks")]
    store.fill(100)
    store.fill(101)
    after = [row[0] for row in change(store, "SELECT mask FROM masks")]
    assert after[:100] == before
    assert len(set(after)) == 101
    store.take(5)
    store.fill(5)
    assert len(store) == 96


@pytest.mark.parametrize(
    ("count", "workers", "message"),
    [
        (0, 1, r"^expected 1\.\.1000000 masks, got 0$"),
        (1_000_001, 1, r"^expected 1\.\.1000000 masks, got 1000001$"),
        (1, 0, r"^expected 1\.\.256 workers, got 0$"),
        (1, 257, r"^expected 1\.\.256 workers, got 257$"),
    ],
)
def test_arguments_of_filling_are_bounded(tmp_path, count, workers, message):
    with pytest.raises(ConfigError, match=message):
        MaskStore(tmp_path, PUBLIC).fill(count, workers=workers)


def test_the_oldest_masks_go_first_and_once(store):
    known = [row[0] for row in change(store, "SELECT mask FROM masks ORDER BY id")]
    taken = split(store.take(5)) + split(store.take(1)) + split(store.take(6))
    assert taken == known
    assert len(store) == 0


def test_numbers_of_masks_are_never_given_again(store):
    store.take(12)
    store.fill(1)
    assert change(store, "SELECT id FROM masks") == [(13,)]


def test_all_masks_or_none(store):
    message = r"^expected 13 masks, got 12: 1 are missing; make them with MaskStore\.fill\(13\)$"
    with pytest.raises(MasksShortError, match=message) as caught:
        store.take(13)
    assert caught.value.missing == 1
    assert len(store) == 12
    with pytest.raises(ConfigError, match="expected 1 or more masks to take, got 0"):
        store.take(0)
    big = Codec(clip_e6=1_000_000, slot_bits=26, parameters=400)
    with pytest.raises(MasksShortError) as caught:
        PUBLIC.encrypt(np.zeros(400, dtype=np.uint16), big, masks=store)
    assert caught.value.missing == big.plaintexts(PUBLIC.bits) - 12
    with pytest.raises(MasksShortError):
        next(iter(PUBLIC.encrypt_stream(np.zeros(400, dtype=np.uint16), big, masks=store)))
    assert len(store) == 12


def test_a_mask_has_left_the_file_before_it_is_handed_out(store):
    known = [row[0] for row in change(store, "SELECT mask FROM masks ORDER BY id")]
    assert all(mask in store.path.read_bytes() for mask in known)
    taken = split(store.take(7))
    content = store.path.read_bytes()  # nothing of it is left: secure_delete
    assert not any(mask in content or mask[:16] in content for mask in taken)
    assert all(mask in content for mask in known[7:])
    assert os.listdir(store.path.parent) == [store.path.name]  # and no journal


def test_a_commit_is_on_the_disk_before_it_returns(store):
    with store._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert connection.execute("PRAGMA journal_mode").fetchone() == (b"delete",)
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)


def test_no_mask_is_handed_out_when_the_commit_fails(store, monkeypatch):
    monkeypatch.setattr(masks_module, "BUSY_SEC_MAX", 0.05)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM masks").fetchone() == (12,)
        with pytest.raises(ConfigError, match="cannot use the masks: database is locked"):
            store.take(3)  # it may delete, but not commit while somebody reads
    assert len(store) == 12


# ---- killed, or shared ------------------------------------------------------------------------


def crash(kind, store):
    done = subprocess.run(
        [sys.executable, CRASHES, kind, store.path.parent, str(PUBLIC.n)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_each_statement(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    store.fill(40)
    known = [row[0].hex() for row in change(store, "SELECT mask FROM masks ORDER BY id")]
    given = crash("statements", store)
    left = [mask.hex() for mask in split(store.take(len(store)))]
    # Five processes died with nothing said; only the one killed after the commit has lost its two.
    assert [len(each) for each in given] == [0, 1] * 5
    assert [mask for each in given for mask in each] == [*known[:4], known[6]]
    assert left == known[7:]


def test_killed_at_random(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    store.fill(3000)
    known = {row[0].hex() for row in change(store, "SELECT mask FROM masks")}
    given = [mask for each in crash("random", store) for mask in each]
    left = [mask.hex() for mask in split(store.take(len(store)))] if len(store) else []
    everything = given + left
    assert len(set(everything)) == len(everything)
    assert set(everything) <= known
    assert given
    assert len(known) - len(everything) <= 3 * 30  # a kill loses one transaction's masks at most


def test_processes_share_a_store(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    store.fill(90)
    known = {row[0].hex() for row in change(store, "SELECT mask FROM masks")}
    given = crash("together", store)
    everything = [mask for each in given for mask in each]
    assert len(everything) == 90
    assert set(everything) == known
    assert sum(bool(each) for each in given) > 1
    assert len(store) == 0


def test_threads_share_a_store(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)
    store.fill(60)
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return [store.take(3) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        given = [
            mask for each in pool.map(work, range(4)) for masks in each for mask in split(masks)
        ]
    assert len(set(given)) == 60


def test_filling_stops_where_it_is_interrupted(tmp_path):
    store = MaskStore(tmp_path, PUBLIC)

    def interrupt(ready, count):
        if ready >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fill(100, progress=interrupt)
    assert len(store) == 32
    store.fill(100)
    assert len(store) == 100


# ---- the file ---------------------------------------------------------------------------------


def test_the_file_is_for_this_account_alone(tmp_path):
    old = os.umask(0)
    try:
        store = MaskStore(tmp_path / "made" / "here", PUBLIC)
        modes = []
        with store._transaction() as connection:
            connection.execute("INSERT INTO masks VALUES (1, x'00', x'00')")
            modes = [path.stat().st_mode & 0o777 for path in store.path.parent.iterdir()]
    finally:
        os.umask(old)
    assert modes == [0o600, 0o600]  # file and journal
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    assert store.path.name == f"{PUBLIC.key_hash.hex()}.masks"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610])
def test_a_file_that_others_reach_is_refused(store, mode):
    store.path.chmod(mode)
    with pytest.raises(ConfigError, match=f"expected mode 0600, got {mode:04o}"):
        MaskStore(store.path.parent, PUBLIC)


def test_a_folder_that_others_reach_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="expected mode 0700, got 0755"):
        MaskStore(tmp_path, PUBLIC)


def test_a_link_or_a_folder_is_no_store(store):
    elsewhere = store.path.with_name("elsewhere")
    store.path.rename(elsewhere)
    store.path.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="expected a regular file"):
        MaskStore(store.path.parent, PUBLIC)
    store.path.unlink()
    store.path.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="expected a regular file"):
        MaskStore(store.path.parent, PUBLIC)
    with pytest.raises(ConfigError, match="cannot keep masks here"):
        MaskStore(elsewhere, PUBLIC)


def test_a_copy_is_refused(store, tmp_path):
    folder = tmp_path / "restored"
    folder.mkdir(mode=0o700)
    shutil.copy2(store.path, folder / store.path.name)
    with pytest.raises(ConfigError, match="this is a copy, and its masks may have been used"):
        MaskStore(folder, PUBLIC)
    moved = tmp_path / "moved"
    store.path.parent.rename(moved)
    assert len(MaskStore(moved, PUBLIC)) == 12


def test_masks_of_another_key_are_refused(store):
    with pytest.raises(KeyMismatchError, match="expected masks for key"):
        OTHER.public.encrypt(codes_of(1), CODEC, masks=store)
    assert len(store) == 12
    store.path.rename(store.path.with_name(f"{OTHER.public.key_hash.hex()}.masks"))
    with pytest.raises(KeyMismatchError, match="these masks are for another key"):
        MaskStore(store.path.parent, OTHER.public)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE masks SET mask = CAST(substr(mask, 1, 30) || x'ff00' || substr(mask, 33) AS BLOB) "
        "WHERE id = 2",
        "UPDATE masks SET mask = CAST(mask AS TEXT) || 'x' WHERE id = 2",
        "UPDATE masks SET mask = substr(mask, 1, 60) WHERE id = 2",
        "UPDATE masks SET mask = x'' WHERE id = 2",
        "UPDATE masks SET mask = 5 WHERE id = 2",
        "UPDATE masks SET mask = 'text' WHERE id = 2",
        "UPDATE masks SET checksum = x'' WHERE id = 2",
        "UPDATE masks SET (mask, checksum) = (SELECT mask, checksum FROM masks WHERE id = 3) "
        "WHERE id = 2",
        "UPDATE masks SET id = -7 WHERE id = 2",
    ],
    ids=["bytes", "undecodable", "short", "empty", "number", "text", "checksum", "twice", "id"],
)
def test_a_damaged_mask_is_removed_and_none_is_handed_out(store, damage):
    known = {row[0] for row in change(store, "SELECT mask FROM masks WHERE id != 2")}
    change(store, damage)
    with pytest.raises(ConfigError, match="1 masks were damaged and have been removed; make new"):
        store.take(4)
    assert set(split(store.take(11))) == known


def test_a_damaged_file_is_refused(store):
    content = store.path.read_bytes()
    for damaged in (content[:-6000], content[:100], b"x" * len(content)):
        store.path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"cannot use the masks: (file|database)"):
            MaskStore(store.path.parent, PUBLIC).take(12)


def test_a_file_of_another_format_is_refused(store):
    change(store, "UPDATE about SET format = 2")
    with pytest.raises(ConfigError, match="expected masks of format 1, got 2"):
        MaskStore(store.path.parent, PUBLIC)


def test_a_file_that_went_away_is_not_made_anew(store):
    store.path.unlink()
    with pytest.raises(ConfigError, match="cannot use the masks: unable to open"):
        store.take(1)
    assert not store.path.exists()


def test_masks_are_never_shown(store, caplog):
    caplog.set_level(logging.DEBUG)
    known = [row[0] for row in change(store, "SELECT mask FROM masks")]
    shown = repr(store) + str(store)
    with pytest.raises(MasksShortError) as caught:
        store.take(13)
    change(store, "UPDATE masks SET checksum = x'' WHERE id = 1")
    with pytest.raises(ConfigError) as damaged:
        store.take(3)
    store.take(3)
    shown += f"{caught.value!r} {damaged.value!r} {caplog.text}"
    assert shown.startswith("MaskStore('")
    for mask in known:
        for text in (mask.hex(), str(int.from_bytes(mask, "big")), repr(mask)):
            assert text[:24] not in shown
