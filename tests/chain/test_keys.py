"""Keys: known answers, canonical signatures, key files."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import pickle
import stat
from pathlib import Path

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradledger.chain.keys import (
    PrivateKey,
    PublicKey,
    key_of,
    load_key_file,
    save_key_file,
    signature_bytes,
)
from gradledger.errors import ConfigError

# The development key that every Antelope tutorial prints.
WIF = "5KQwrPbwdL6PhXujxW37FSSQZ1JiwsST4cqQzDeyXtP79zkvFD3"
PVT = "PVT_K1_2bfGi9rYsXQSXXTvJbDAPhHLQUojjaNLomdm3cEJ1XTzMqUt3V"
PUB = "PUB_K1_6MRyAjQq8ud7hVNYcfnVPJqcVpscN5So8BhtHuGYqET5BoDq63"
LEGACY = "EOS6MRyAjQq8ud7hVNYcfnVPJqcVpscN5So8BhtHuGYqET5GDW5CV"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def test_the_development_key_has_its_known_texts() -> None:
    key = PrivateKey.from_string(WIF)
    assert key.to_string() == PVT
    assert PrivateKey.from_string(PVT) == key
    assert key.to_wif() == WIF
    assert str(key.public) == PUB
    assert key.public.legacy == LEGACY
    assert PublicKey.from_string(PUB) == PublicKey.from_string(LEGACY) == key.public


def test_the_encryption_key_is_derived_and_is_not_the_key() -> None:
    key = PrivateKey.from_string(WIF)
    secret = key._secret
    expected = hashlib.blake2b(key=secret, person=b"gradledger-x255", digest_size=32).digest()
    assert key.encryption_key() == expected != secret


def test_nothing_but_to_string_shows_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    key = PrivateKey.from_string(WIF)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("t").warning("%s %r", key, [key])
    shown = repr(key) + str(key) + caplog.text
    assert "***" in shown and PUB in shown
    for secret in (WIF, PVT, key._secret.hex(), repr(key._secret)):
        assert secret not in shown
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not serialised"):
            copier(key)


def recover(signature: str, digest: bytes) -> bytes:
    raw = signature_bytes(signature)
    compact = raw[1:] + bytes([(raw[0] - 27) & 3])
    point = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    return point.format()


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_a_signature_is_canonical_and_recovers_the_key(message: bytes) -> None:
    key = PrivateKey.from_string(WIF)
    digest = hashlib.sha256(message).digest()
    signature = key.sign_digest(digest)
    raw = signature_bytes(signature)
    assert len(raw) == 65 and raw[0] in (27, 28)
    for half in (raw[1:33], raw[33:]):
        assert not half[0] & 0x80
        assert half[0] or half[1] & 0x80
    assert recover(signature, digest) == key.public.raw
    assert key.sign_digest(digest) == signature


def test_signatures_are_those_of_rfc_6979_with_the_counter_on_the_digest() -> None:
    """Made with pyntelope 0.8.6: ``utils.sign_bytes(bytes_=text, key=WIF)``."""
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "signatures.json").read_text())
    key = PrivateKey.from_string(WIF)
    for row in vectors:
        digest = hashlib.sha256(row["text"].encode()).digest()
        assert key.sign_digest(digest) == row["signature"]


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_digest_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ConfigError, match="a digest of 32 bytes"):
        PrivateKey.from_string(WIF).sign_digest(bytes(length))


@pytest.mark.parametrize("value", [0, ORDER, 2**256 - 1])
def test_a_secret_outside_the_group_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="within the group's order"):
        PrivateKey(value.to_bytes(32, "big"))
    PrivateKey((ORDER - 1).to_bytes(32, "big"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", WIF[:-1], WIF[:-1] + "4", PVT[:-1], PVT[:-1] + "1", PUB, "0" * 51),
        *("PVT_K1_", "PVT_R1_" + PVT[7:], "é" * 9, "1" * 500),
    ],
)
def test_a_broken_private_key_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PrivateKey.from_string(text)
    assert len(text) < 3 or text not in str(caught.value)


@pytest.mark.parametrize("text", ["", PVT, PUB[:-1], LEGACY + "1", "PUB_R1_" + PUB[7:], "EOS"])
def test_a_broken_public_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        PublicKey.from_string(text)


@given(st.text(max_size=60))
def test_no_text_crashes_the_readers(text: str) -> None:
    for read in (PrivateKey.from_string, PublicKey.from_string, signature_bytes):
        for prefix in ("", "PVT_K1_", "PUB_K1_", "EOS", "SIG_K1_"):
            with pytest.raises(ConfigError):
                read(prefix + text)


def test_generated_keys_differ_and_survive_their_text() -> None:
    keys = {PrivateKey.generate() for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        assert PrivateKey.from_string(key.to_string()) == key
        assert PrivateKey.from_string(key.to_wif()) == key


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    path, key = tmp_path / "phone1.json", PrivateKey.generate()
    old = os.umask(0)
    try:
        save_key_file(path, "phone1", key)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key_file(path) == ("phone1", key)
    with pytest.raises(ConfigError, match="one exists"):
        save_key_file(path, "phone1", PrivateKey.generate())
    assert load_key_file(path) == ("phone1", key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.json"
    save_key_file(path, "phone1", PrivateKey.generate())
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0600 .* it is {mode:04o}"):
        load_key_file(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 4096,
        b"\xff\xfe",
        b'{"account": "phone1"}',
        b'{"account": "phone1", "private_key": 5}',
        b'{"account": "PHONE", "private_key": "' + PVT.encode() + b'"}',
        b'{"account": "phone1", "private_key": "' + PVT[:-1].encode() + b'"}',
        b'{"account": "phone1", "private_key": "' + PVT.encode() + b'"' + b" " * 5000 + b"}",
    ],
)
def test_a_broken_key_file_is_refused_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="expected a key file") as caught:
        load_key_file(path)
    assert PVT[:-1] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_is_found_however_it_is_given(tmp_path: Path) -> None:
    path, key = tmp_path / "phone1.json", PrivateKey.from_string(PVT)
    save_key_file(path, "phone1", key)
    for one in (key, PVT, WIF, f" {PVT}\n", f"\t{WIF} ", path, str(path)):
        assert key_of(one, "phone1") == key
    with pytest.raises(
        ConfigError, match=r"phone1\.json: expected the key file of phone2, it is p"
    ):
        key_of(path, "phone2")
    with pytest.raises(ConfigError, match=r"cannot read the key file .*none\.json"):
        key_of(tmp_path / "none.json", "phone1")


@pytest.mark.parametrize("text", [PVT, WIF])
@pytest.mark.parametrize("form", ["{}x", "x{}", '"{}"', "keys/{}", "{}.json", "PVT_{}", "{} {}"])
def test_a_key_that_is_mistyped_is_not_repeated(form: str, text: str) -> None:
    for one in (form.format(text, text), Path(form.format(text, text))):
        with pytest.raises(ConfigError) as caught:
            key_of(one, "phone1")
        assert text[10:20] not in str(caught.value) + str(caught.value.__cause__)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json"):
        load_key_file(tmp_path / "none.json")
