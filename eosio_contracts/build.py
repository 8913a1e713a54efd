"""Compile the contracts to WebAssembly, to the same bytes on every machine.

``python eosio_contracts/build.py`` writes ``artifacts/*.wasm``; with ``--check`` it writes nothing,
builds the sources in two folders of different names and fails unless both give the committed
bytes. The compiler is clang 18 of the `ziglang` wheel, the headers are those of the `gscdk` wheel,
both hash checked (`gradledger.localnet.parts`). ``--cdt`` uses the official ``cdt-cpp`` on PATH
instead; its bytes differ.

The ABIs are kept by hand; ``tests/contracts/test_abi.py`` proves that of `fedlearning` against the
running contract.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARTIFACTS = HERE / "artifacts"
SOURCES = {"fedlearning": "fedlearning/fedlearning.cpp", "prods": "prods/prods.cpp"}
FOLDERS = ("common", "fedlearning", "prods")
STACK_BYTES = 16_384

COMPILE = [
    *("--target=wasm32", "-mcpu=mvp", "-std=c++17", "-O3", "-Wall", "-Wno-unknown-attributes"),
    *("-fno-exceptions", "-fno-rtti", "-ffreestanding", "-nostdinc", "-nostdinc++"),
    *("-fno-threadsafe-statics", "-fvisibility=hidden", "-fno-ident", "-D_LIBCPP_HAS_NO_THREADS"),
]
INCLUDES = ("libcxx", "libc", ".", "eosiolib/core", "eosiolib/contracts", "eosiolib/capi")
LINK = [
    *("--no-entry", "--gc-sections", "--strip-all", "--export=apply", "--allow-undefined"),
    *("--stack-first", f"-zstack-size={STACK_BYTES}"),
]

Compiler = Callable[[Path, str, Path], None]  # folder of the sources, source, wasm


def pinned_compiler() -> Compiler:
    """Return the compiler that makes the committed bytes, fetched when it is not there yet."""
    sys.path.insert(0, str(HERE.parent))
    from gradledger.localnet import parts  # needs the line above when run as a script

    zig = str(parts.fetch("zig") / "ziglang" / "zig")
    sysroot = parts.fetch("cdt") / "gscdk/tinygo/lib/eosio/sysroot/include"
    includes = [flag for name in INCLUDES for flag in ("-isystem", str(sysroot / name))]

    def compile_one(folder: Path, source: str, wasm: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            unit = str(Path(scratch) / "unit.o")
            _run([zig, "clang", *COMPILE, *includes, "-c", source, "-o", unit], folder)
            _run([zig, "wasm-ld", *LINK, unit, "-o", str(wasm)], folder)

    return compile_one


def cdt_compiler() -> Compiler:
    """Return the user's own ``cdt-cpp``."""
    if shutil.which("cdt-cpp") is None:
        raise SystemExit("cdt-cpp is not on PATH: install the Antelope CDT, or leave --cdt out")

    def compile_one(folder: Path, source: str, wasm: Path) -> None:
        flags = ["-O3", "--no-abigen", f"--stack-size={STACK_BYTES}"]
        _run(["cdt-cpp", *flags, source, "-o", str(wasm)], folder)

    return compile_one


def build(compiler: Compiler, sources: Path, out: Path) -> dict[str, str]:
    """Compile each contract of `sources` into the folder `out`; return SHA-256 by contract."""
    out.mkdir(parents=True, exist_ok=True)
    for name, source in SOURCES.items():
        compiler(sources, source, out / f"{name}.wasm")
        (out / f"{name}.wasm").chmod(0o644)
    return _digests(out)


def check() -> dict[str, str]:
    """Fail unless two builds in different folders give the committed bytes."""
    committed, compiler = _digests(ARTIFACTS), pinned_compiler()
    with tempfile.TemporaryDirectory() as folder:
        for place in ("a", "a-folder-of-another-length"):
            sources = Path(folder) / place
            for name in FOLDERS:
                shutil.copytree(HERE / name, sources / name)
            built = build(compiler, sources, sources / "out")
            for name, digest in built.items():
                if digest != committed[name]:
                    raise SystemExit(
                        f"{name}.wasm is not what its sources give: run `make contracts`\n"
                        f"committed {committed[name]}\nbuilt     {digest}"
                    )
    return committed


def _digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / f"{name}.wasm").read_bytes()).hexdigest() for name in SOURCES
    }


def _run(command: list[str], folder: Path) -> None:
    if subprocess.run(command, cwd=folder, check=False).returncode != 0:
        raise SystemExit(f"failed: {' '.join(command[:2])} ... {command[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the contracts.")
    parser.add_argument("--check", action="store_true", help="compare with the committed bytes")
    parser.add_argument("--cdt", action="store_true", help="use the official cdt-cpp on PATH")
    parser.add_argument("--out", type=Path, default=ARTIFACTS, metavar="DIR", help="where to write")
    arguments = parser.parse_args()
    if arguments.check:
        digests = check()
    else:
        compiler = cdt_compiler() if arguments.cdt else pinned_compiler()
        digests = build(compiler, HERE, arguments.out.resolve())
    for name, digest in digests.items():
        print(f"{name}.wasm {'reproduced' if arguments.check else 'built'}: {digest}")


if __name__ == "__main__":
    main()
