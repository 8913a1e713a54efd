"""What a device may choose of its encryption: blinding and threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_scene import CLIP_E6, PARAMETERS, SLOT_BITS, Scene

from device_sdk import Encryption
from gradledger import envelope
from gradledger.codec import Codec
from gradledger.errors import ConfigError, MasksShortError
from gradledger.models import Model
from gradledger.paillier.masks import MaskStore

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CODEC = Codec(CLIP_E6, SLOT_BITS, PARAMETERS)


def shift(model: Model, validation: object) -> tuple[Model, list[int]]:
    """Train by adding 0.25; the errors fall."""
    return model.with_vector(model.vector + 0.25), [500_000, 300_000]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"masks": "m", "fast": True}, "masks: expected neither fast nor strict beside them"),
        ({"masks": "m", "strict": True}, "masks: expected neither fast nor strict beside them"),
        ({"threads": 0}, r"threads: expected 1\.\.256, got 0"),
        ({"threads": 257}, r"threads: expected 1\.\.256, got 257"),
    ],
)
def test_choices_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Encryption(**wrong)


def test_each_blinding_makes_an_update_that_the_owner_can_decrypt(
    scene: Callable[..., Scene], tmp_path: Path
) -> None:
    s = scene()
    s.device().join(classes=[0])
    s.publish(1)
    masks = tmp_path / "masks"
    seen: list[tuple[int, int]] = []
    judge, key = next(iter(s.validators.items()))
    for choice in (
        Encryption(),
        Encryption(strict=True, threads=2),
        Encryption(fast=True),
        Encryption(masks=masks),
    ):
        device = s.device(encryption=choice)
        with device.round(wait_sec=20) as round_:
            update = round_.train(shift, examples=60)
        if choice.masks:
            with pytest.raises(MasksShortError, match="1 are missing"):
                round_.seal(update)
            device.make_masks(2, progress=lambda *now: seen.append(now))
            assert seen[-1] == (2, 2)
        else:
            with pytest.raises(ConfigError, match="expected a device with Encryption"):
                device.make_masks()
        blob = round_.seal(update)
        payload = envelope.parse(blob).open(judge, key.encryption_key())
        sums = s.paillier.decrypt_sums(payload, CODEC, 1)
        np.testing.assert_array_equal(sums, CODEC.quantise(update.delta))
    assert len(MaskStore(masks, s.paillier.public)) == 1
