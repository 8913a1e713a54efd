"""What importing the SDK costs, and what it must not pull in."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("numpy", "gmpy2", "coincurve", "nacl", "requests", "ipfshttpclient", "http.client")
FOREIGN = (
    "torch",
    "sklearn",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "owner",
    "producer_validation",
    "gradledger.localnet",
)


def loaded_by(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_import_loads_neither_heavy_parts_nor_other_parties() -> None:
    modules = loaded_by("from device_sdk import Device, Paid, Refused")
    assert "device_sdk.rounds" in modules
    assert not modules & {*HEAVY, *FOREIGN}


def test_a_training_without_a_framework_loads_none() -> None:
    modules = loaded_by(
        "import device_sdk.training, gradledger.models, gradledger.codec, gradledger.paillier"
    )
    assert "numpy" in modules
    assert not modules & set(FOREIGN)
