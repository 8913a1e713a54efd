"""The part of the build that setup.cfg cannot say: Paillier's arithmetic in C, where a compiler is.

Optional: without a compiler, or where it does not compile, everything runs on gmpy2. It holds no
Python, so that the limited API's name fits: one file serves every version of Python.
"""

from setuptools import Extension, setup

SOURCES = "gradledger/paillier/csrc"

setup(
    ext_modules=[
        Extension(
            "gradledger.paillier._native",
            sources=[
                f"{SOURCES}/{name}.c"
                for name in (
                    "paillier",
                    "limbs",
                    "lanes_portable",
                    "lanes_avx2",
                    "lanes_ifma",
                    "lanes_ifma_emulated",
                )
            ],
            depends=[
                f"{SOURCES}/paillier.h",
                f"{SOURCES}/cpu.h",
                f"{SOURCES}/lanes.h",
                f"{SOURCES}/kernel.h",
                f"{SOURCES}/lanes_ifma.c",
            ],
            extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
