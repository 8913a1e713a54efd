"""The demo's data: IDX files, splits and shares."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gradledger.demo import data
from gradledger.errors import ConfigError


def images_bytes(pixels: np.ndarray, magic: int = 0x803) -> bytes:
    return struct.pack(">4I", magic, *pixels.shape) + pixels.tobytes()


def labels_bytes(labels: np.ndarray, magic: int = 0x801) -> bytes:
    return struct.pack(">2I", magic, len(labels)) + labels.tobytes()


@pytest.fixture
def tiny_mnist(tmp_path: Path) -> Path:
    """Four IDX files, two of them packed, of 900 and 60 images."""
    rng = np.random.default_rng(5)
    for stem, count in (("train", 900), ("t10k", 60)):
        pixels = rng.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(images_bytes(pixels))
        packed = gzip.compress(labels_bytes(labels))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(packed)
    return tmp_path


def test_idx_round_trip(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (tmp_path / "a").write_bytes(images_bytes(pixels))
    (tmp_path / "b.gz").write_bytes(gzip.compress(labels_bytes(np.array([3, 9], np.uint8))))
    np.testing.assert_array_equal(data.read_idx_images(tmp_path / "a"), pixels)
    np.testing.assert_array_equal(data.read_idx_labels(tmp_path / "b.gz"), [3, 9])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a: expected a header of 16 bytes, found 0 bytes"),
        (struct.pack(">3I", 0x803, 1, 2), "a: expected a header of 16 bytes, found 12 bytes"),
        (
            images_bytes(np.zeros((1, 2, 2), np.uint8), magic=0x801),
            "a: expected the IDX magic 0x00000803, found 0x00000801",
        ),
        (
            images_bytes(np.zeros((2, 2, 2), np.uint8))[:-1],
            "a: the header promises 2x2x2, so 24 bytes, but the file has 23",
        ),
        (
            images_bytes(np.zeros((2, 2, 2), np.uint8)) + b"\0",
            "a: the header promises 2x2x2, so 24 bytes, but the file has 25",
        ),
        (
            struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1),
            f"a: the header promises {2**32 - 1}x{2**32 - 1}x{2**32 - 1}, "
            f"so {16 + (2**32 - 1) ** 3} bytes, but the file has 16",
        ),
    ],
)
def test_idx_refusals(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        data.read_idx_images(tmp_path / "a")
    assert str(caught.value) == message


def test_idx_broken_gzip_and_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(images_bytes(np.zeros((50, 8, 8), np.uint8)))
    (tmp_path / "short.gz").write_bytes(packed[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        data.read_idx_images(tmp_path / "short.gz")
    (tmp_path / "not.gz").write_bytes(b"plain text")
    with pytest.raises(ConfigError, match="cannot be read"):
        data.read_idx_images(tmp_path / "not.gz")
    (tmp_path / "whole.gz").write_bytes(packed)
    monkeypatch.setattr(data, "IDX_BYTES_MAX", 16 + 50 * 64)
    assert data.read_idx_images(tmp_path / "whole.gz").shape == (50, 8, 8)
    monkeypatch.setattr(data, "IDX_BYTES_MAX", 16 + 50 * 64 - 1)
    with pytest.raises(ConfigError, match=r"whole\.gz: more than 3215 bytes unpacked"):
        data.read_idx_images(tmp_path / "whole.gz")


def test_mnist_is_read_and_split(tiny_mnist: Path) -> None:
    loaded = data.load(tiny_mnist, seed=1)
    assert loaded.name == "mnist"
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [750, 150, 60]
    assert loaded.train.x.dtype == np.float32
    assert loaded.train.y.dtype == np.int64
    assert loaded.train.x.shape == (750, 12)
    assert loaded.validation.least() == np.bincount(loaded.validation.y).min()
    assert 0.0 <= loaded.train.x.min() <= loaded.train.x.max() <= 1.0


def test_class_that_is_too_rare(tiny_mnist: Path) -> None:
    labels = (np.arange(900) % 9).astype(np.uint8)
    labels[7] = 9
    path = tiny_mnist / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(labels_bytes(labels)))
    with pytest.raises(ConfigError, match="too few images of class 9"):
        data.load(tiny_mnist, seed=1)


def test_mnist_refusals(tiny_mnist: Path) -> None:
    with pytest.raises(ConfigError, match="expected a directory"):
        data.load(tiny_mnist / "nowhere", seed=1)
    labels = tiny_mnist / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(labels_bytes(np.zeros(59, np.uint8))))
    with pytest.raises(ConfigError, match=r"has 60 images, but t10k-labels.* has 59 labels"):
        data.load(tiny_mnist, seed=1)
    labels.write_bytes(gzip.compress(labels_bytes(np.full(60, 10, np.uint8))))
    with pytest.raises(ConfigError, match="expected labels 0 to 9, found 10"):
        data.load(tiny_mnist, seed=1)
    labels.unlink()
    with pytest.raises(ConfigError, match="has no file t10k-labels-idx1-ubyte"):
        data.load(tiny_mnist, seed=1)


def test_digits_split_is_seeded_and_disjoint() -> None:
    first, again, other = data.load_digits(3), data.load_digits(3), data.load_digits(4)
    np.testing.assert_array_equal(first.train.x, again.train.x)
    assert not np.array_equal(first.train.x, other.train.x)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [1197, 240, 360]
    parts = (first.train, first.validation, first.test)
    rows = np.concatenate([np.column_stack((part.x, part.y)) for part in parts])
    from sklearn.datasets import load_digits

    raw = load_digits()
    expected = np.column_stack((raw.data / 16.0, raw.target)).astype(rows.dtype)
    order, expected_order = np.lexsort(rows.T), np.lexsort(expected.T)
    np.testing.assert_allclose(rows[order], expected[expected_order], atol=1e-6)


@pytest.mark.parametrize("devices", [4, 10, 40])
def test_shares_are_uneven_overlapping_and_bounded(devices: int) -> None:
    train = data.load_digits(0).train
    drawn = data.shares(train, devices, seed=9)
    sizes = [len(rows) for rows in drawn]
    assert all(0.1 * len(train) <= size <= 0.5 * len(train) for size in sizes)
    assert len(set(sizes)) > devices // 2
    assert all(len(np.unique(rows)) == len(rows) for rows in drawn)
    assert np.intersect1d(drawn[0], drawn[1]).size > 0
    again = data.shares(train, devices, seed=9)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not np.array_equal(drawn[0], data.shares(train, devices, seed=10)[0])


def test_class_list() -> None:
    assert data.class_list(np.array([7, 1, 1, 3])) == [1, 3, 7]
