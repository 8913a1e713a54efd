"""The demo's data: scikit-learn's digits, or MNIST from its four IDX files.

Images are rows of float32 in [0, 1], labels are int64. The owner keeps a validation and a test
set; the devices' shares are drawn from the training set alone, uneven and overlapping.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradledger.errors import ConfigError

IDX_BYTES_MAX = 1 << 27
"""Largest IDX file, unpacked, that is read (MNIST's largest has 47 MB)."""

SHARE_MIN = 0.1
SHARE_MAX = 0.5
"""A device's share of the training set lies between these."""

_IMAGES_MAGIC = 0x00000803
_LABELS_MAGIC = 0x00000801
_FILES = (
    ("train-images", "idx3-ubyte"),
    ("train-labels", "idx1-ubyte"),
    ("t10k-images", "idx3-ubyte"),
    ("t10k-labels", "idx1-ubyte"),
)


@dataclass(frozen=True)
class Samples:
    """Labelled images.

    Parameters
    ----------
    x : float32 array of shape (n_samples, n_features)
        Pixels in [0, 1].
    y : int64 array of shape (n_samples,)
        Class of each row.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def least(self) -> int:
        """Return how many samples the rarest class has, of those that occur."""
        return int(np.unique(self.y, return_counts=True)[1].min())

    def take(self, rows: np.ndarray) -> Samples:
        """Return the samples at `rows`, in that order."""
        return Samples(np.ascontiguousarray(self.x[rows]), np.ascontiguousarray(self.y[rows]))


@dataclass(frozen=True)
class Dataset:
    """A data set as the demo uses it.

    Parameters
    ----------
    name : str
        ``"digits"`` or ``"mnist"``.
    train, validation, test : Samples
        Disjoint. Devices draw from `train`; the owner alone holds the other two.
    classes : int
        Labels are 0..classes-1.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    classes: int


def load(directory: Path | None, seed: int) -> Dataset:
    """Return the data set: digits, or MNIST where a directory is given.

    Parameters
    ----------
    directory : Path or None
        Holds the four MNIST files, plain or as .gz; None for scikit-learn's digits.
    seed : int
        Decides which samples are set aside for the owner.

    Raises
    ------
    ConfigError
        A file is missing, or is not what its name says.
    """
    return load_digits(seed) if directory is None else load_mnist(directory, seed)


def load_digits(seed: int) -> Dataset:
    """Return scikit-learn's 1,797 digits of 8x8 pixels: 1,197 train, 240 validation, 360 test."""
    try:
        from sklearn.datasets import load_digits as bundled
    except ImportError as exc:
        raise ConfigError(
            "the demo needs scikit-learn: install gradledger with the extra 'localnet'"
        ) from exc
    raw = bundled()
    everything = Samples((raw.data / 16.0).astype(np.float32), raw.target.astype(np.int64))
    order = np.random.default_rng([seed, 1]).permutation(len(everything))
    return Dataset(
        name="digits",
        test=everything.take(order[:360]),
        validation=everything.take(order[360:600]),
        train=everything.take(order[600:]),
        classes=10,
    )


def load_mnist(directory: Path, seed: int) -> Dataset:
    """Return MNIST from its four IDX files: 50,000 train, 10,000 validation, 10,000 test.

    A smaller set in the same format is split in the same proportions.

    Raises
    ------
    ConfigError
        The directory or a file is missing, or a file is not what its name says.
    """
    if not directory.is_dir():
        raise ConfigError(f"--data: expected a directory with the four IDX files, not {directory}")
    paths = [_find(directory, stem, suffix) for stem, suffix in _FILES]
    train = _samples(paths[0], paths[1])
    test = _samples(paths[2], paths[3])
    if train.x.shape[1] != test.x.shape[1]:
        raise ConfigError(
            f"--data: training images have {train.x.shape[1]} pixels, test images {test.x.shape[1]}"
        )
    if len(train) < 600 or len(test) < 10:
        raise ConfigError(
            f"--data: expected at least 600 training and 10 test images, "
            f"found {len(train)} and {len(test)}"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(train))
    held = len(train) // 6
    validation = train.take(order[:held])
    missing = sorted({*class_list(train.y)} - {*class_list(validation.y)})
    if missing:
        raise ConfigError(f"--data: too few images of class {missing[0]} to set some aside")
    return Dataset(
        name="mnist",
        train=train.take(order[held:]),
        validation=validation,
        test=test,
        classes=10,
    )


def read_idx_images(path: Path) -> np.ndarray:
    """Return the images of an IDX3 file: uint8 of shape (n, rows, columns).

    Raises
    ------
    ConfigError
        The file cannot be read, is too large, or does not have the magic, or the length, that
        its header promises.
    """
    count, rows, columns, pixels = _read_idx(path, _IMAGES_MAGIC, 3)
    return np.frombuffer(pixels, np.uint8).reshape(count, rows, columns)


def read_idx_labels(path: Path) -> np.ndarray:
    """Return the labels of an IDX1 file: uint8 of shape (n,).

    Raises
    ------
    ConfigError
        As for `read_idx_images`.
    """
    _, labels = _read_idx(path, _LABELS_MAGIC, 1)
    return np.frombuffer(labels, np.uint8)


def shares(train: Samples, devices: int, seed: int) -> list[np.ndarray]:
    """Draw an uneven share of the training set for each device; shares overlap.

    Parameters
    ----------
    train : Samples
        The training set.
    devices : int
        Number of shares.
    seed : int
        The same seed gives the same shares.

    Returns
    -------
    list of int64 arrays
        Rows of `train`, ascending and without repetition within a share; each share has between
        a tenth and a half of the rows.
    """
    rng = np.random.default_rng([seed, 2])
    low, high = math.ceil(SHARE_MIN * len(train)), math.floor(SHARE_MAX * len(train))
    result = []
    for _ in range(devices):
        size = int(rng.integers(low, high + 1))
        result.append(np.sort(rng.choice(len(train), size=size, replace=False)))
    return result


def class_list(labels: np.ndarray) -> list[int]:
    """Return the classes that occur in `labels`, ascending."""
    return [int(c) for c in np.unique(labels)]


def _find(directory: Path, stem: str, suffix: str) -> Path:
    for name in (f"{stem}-{suffix}", f"{stem}.{suffix}"):
        for candidate in (directory / name, directory / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise ConfigError(f"--data: {directory} has no file {stem}-{suffix} or {stem}-{suffix}.gz")


def _samples(images: Path, labels: Path) -> Samples:
    pixels, classes = read_idx_images(images), read_idx_labels(labels)
    if len(pixels) != len(classes):
        raise ConfigError(
            f"{images.name} has {len(pixels)} images, but {labels.name} has {len(classes)} labels"
        )
    if len(classes) and int(classes.max()) > 9:
        raise ConfigError(f"{labels.name}: expected labels 0 to 9, found {int(classes.max())}")
    x = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)
    return Samples(x, classes.astype(np.int64))


def _read_idx(path: Path, magic: int, dimensions: int) -> tuple:
    """Check length, magic and sizes, in that order; return the sizes and the bytes."""
    raw = _read_bounded(path)
    head = 4 + 4 * dimensions
    if len(raw) < head:
        raise ConfigError(f"{path.name}: expected a header of {head} bytes, found {len(raw)} bytes")
    found, *sizes = struct.unpack_from(f">{1 + dimensions}I", raw)
    if found != magic:
        raise ConfigError(f"{path.name}: expected the IDX magic 0x{magic:08x}, found 0x{found:08x}")
    expected = head + math.prod(sizes)
    if len(raw) != expected:
        raise ConfigError(
            f"{path.name}: the header promises {'x'.join(map(str, sizes))}, so {expected} bytes, "
            f"but the file has {len(raw)}"
        )
    return (*sizes, memoryview(raw)[head:])


def _read_bounded(path: Path) -> bytes:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            raw = file.read(IDX_BYTES_MAX + 1)
    except (OSError, EOFError, zlib.error) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    if len(raw) > IDX_BYTES_MAX:
        raise ConfigError(f"{path.name}: more than {IDX_BYTES_MAX} bytes unpacked")
    return raw
