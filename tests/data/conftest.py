import gzip
import struct

import numpy as np
import pytest


def idx_bytes(array: np.ndarray) -> bytes:
    """The array as an IDX file of uint8, written from the format's description and not by the code under test."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def encode_idx():
    return idx_bytes


@pytest.fixture
def tiny_mnist():
    """The four MNIST files by stem, plain IDX: 60 images to train and 10 to test, 4x3 pixels, labels 0..9 in turn.

    Every pixel of image i has the value i, so an image tells which one it is.
    """
    files = {}
    for prefix, count in (("train", 60), ("t10k", 10)):
        images = np.repeat(np.arange(count, dtype=np.uint8), 12).reshape(count, 4, 3)
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(np.arange(count, dtype=np.uint8) % 10)
    return files


@pytest.fixture
def mnist_root(tmp_path, tiny_mnist):
    """A folder with the tiny MNIST in `mnist`, gzip."""
    root = tmp_path / "datasets"
    (root / "mnist").mkdir(parents=True)
    for stem, content in tiny_mnist.items():
        (root / "mnist" / f"{stem}.gz").write_bytes(gzip.compress(content))
    return root
