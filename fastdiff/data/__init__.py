"""Data sets as one tensor in memory, and batches whose order depends on a seed and an epoch alone.

Everywhere in fastdiff images are float32, [N, C, H, W], in [-1, 1].
"""

from fastdiff.data.catalogue import digits, load_dataset, mnist
from fastdiff.data.datasets import ImageDataset, arrays
from fastdiff.data.loader import Batches, get_mnist_dataloader
from fastdiff.data.normalize import denormalize_images, normalize_images

__all__ = [
    "Batches",
    "ImageDataset",
    "arrays",
    "denormalize_images",
    "digits",
    "get_mnist_dataloader",
    "load_dataset",
    "mnist",
    "normalize_images",
]
