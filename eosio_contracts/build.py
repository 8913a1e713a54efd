"""Compile the contract to WebAssembly, to the same bytes on every machine.

``python eosio_contracts/build.py`` writes ``artifacts/fedlearning.wasm``; with ``--check`` it
writes nothing, builds the sources in two folders of different names and fails unless both give
the committed bytes. The compiler is clang 18 of the `ziglang` wheel, the headers are those of the
`gscdk` wheel, both hash checked (`gradledger.localnet.parts`). ``--cdt`` uses the official
``cdt-cpp`` on PATH instead.

The ABI, ``artifacts/fedlearning.abi``, is kept by hand; ``tests/contracts/test_abi.py`` proves it
against the running contract.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
WASM = HERE / "artifacts" / "fedlearning.wasm"
SOURCE = "fedlearning/fedlearning.cpp"
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


def compile_contract(sources: Path, wasm: Path) -> None:
    """Compile ``sources / SOURCE`` into `wasm` with the pinned compiler."""
    sys.path.insert(0, str(HERE.parent))
    from gradledger.localnet import parts  # needs the line above when run as a script

    zig = str(parts.fetch("zig") / "ziglang" / "zig")
    sysroot = parts.fetch("cdt") / "gscdk/tinygo/lib/eosio/sysroot/include"
    includes = [flag for name in INCLUDES for flag in ("-isystem", str(sysroot / name))]
    with tempfile.TemporaryDirectory() as folder:
        unit = str(Path(folder) / "fedlearning.o")
        _run([zig, "clang", *COMPILE, *includes, "-c", SOURCE, "-o", unit], sources)
        _run([zig, "wasm-ld", *LINK, unit, "-o", str(wasm)], sources)


def compile_with_cdt(wasm: Path) -> None:
    """Compile with the user's own ``cdt-cpp``; its bytes differ from the committed ones."""
    if shutil.which("cdt-cpp") is None:
        raise SystemExit("cdt-cpp is not on PATH: install the Antelope CDT, or leave --cdt out")
    _run(["cdt-cpp", "-O3", "--no-abigen", SOURCE, "-o", str(wasm)], HERE)


def check() -> None:
    """Fail unless two builds in different folders give the committed bytes."""
    with tempfile.TemporaryDirectory() as folder:
        digests = [_digest(WASM)]
        for name in ("a", "a-folder-of-another-length"):
            sources = Path(folder) / name
            for topic in ("common", "fedlearning"):
                shutil.copytree(HERE / topic, sources / topic)
            compile_contract(sources, sources / "out.wasm")
            digests.append(_digest(sources / "out.wasm"))
    if len(set(digests)) != 1:
        raise SystemExit(
            "the committed contract is not what its sources give: run `make contracts`\n"
            f"committed {digests[0]}\nbuilt     {digests[1]}\nbuilt     {digests[2]}"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(command: list[str], folder: Path) -> None:
    if subprocess.run(command, cwd=folder, check=False).returncode != 0:
        raise SystemExit(f"failed: {' '.join(command[:2])} ... {command[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare with the committed bytes")
    parser.add_argument("--cdt", action="store_true", help="use the official cdt-cpp on PATH")
    parser.add_argument("--out", type=Path, default=WASM, metavar="FILE", help="where to write")
    arguments = parser.parse_args()
    if arguments.check:
        check()
        print(f"reproduced: {_digest(WASM)}")
        return
    if arguments.cdt:
        compile_with_cdt(arguments.out.resolve())
    else:
        compile_contract(HERE, arguments.out.resolve())
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes, {_digest(arguments.out)}")


if __name__ == "__main__":
    main()
