"""`Batches`: an order of the data that depends on (seed, epoch) alone, so a resumed run sees what it would have."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from fastdiff.data.catalogue import mnist
from fastdiff.data.datasets import ImageDataset
from fastdiff.data.order import permutation

KEY_LIMIT = 2**64  # seed and epoch are the two words of a Philox key

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Batches:
    """Batches in an order that depends on the seed and the epoch alone: no state, nothing global.

    Args:
        dataset: an `ImageDataset`, or anything with `len()` and `[i]` that gives tensors or arrays: either (image,
            label) pairs or plain images, all of one shape.
        batch_size: images in a batch. A smaller data set is one batch: an epoch never has none.
        seed: in 0 .. 2**64 - 1.
        drop_last: leave out the last batch of an epoch where it is not full.
        shuffle: False keeps the data set's order in every epoch.

    Raises:
        ValueError: the data set is empty, or batch_size or seed is out of range.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, drop_last: bool = True, shuffle: bool = True) -> None:
        if not len(dataset):
            raise ValueError("dataset is empty: there is nothing to batch")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= seed < KEY_LIMIT:
            raise ValueError(f"seed must lie in 0..2**64-1, got {seed}")
        self.dataset = dataset
        self.batch_size = min(batch_size, len(dataset))
        self.seed = seed
        self.drop_last = drop_last
        self.shuffle = shuffle

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch number `start` on: those with which an epoch cut off there would go on.

        Args:
            epoch: from 0 on.
            start: 0 .. len(self); len(self) gives nothing, as the epoch is over.

        Returns:
            An iterator over (indices int64 [B], images [B, C, H, W], labels [B] or None).

        Raises:
            ValueError: epoch or start is out of range; at the call, not at the first batch.
        """
        if not 0 <= epoch < KEY_LIMIT:
            raise ValueError(f"epoch must lie in 0..2**64-1, got {epoch}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must lie in 0..{len(self)}, the batches of an epoch, got {start}")
        count = len(self.dataset)
        order = permutation(count, self.seed, epoch) if self.shuffle else torch.arange(count)
        chosen = order.split(self.batch_size)[start : len(self)]
        return ((indices, *self._gather(indices)) for indices in chosen)

    def _gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(self.dataset, ImageDataset):
            return self.dataset.batch(indices)
        items = [self.dataset[i] for i in indices.tolist()]
        images, labels = zip(*(_image_and_label(item) for item in items), strict=True)
        unlabelled = any(label is None for label in labels)
        return (
            torch.stack([torch.as_tensor(image) for image in images]),
            None if unlabelled else torch.stack([torch.as_tensor(label) for label in labels]),
        )


def _image_and_label(item: object) -> tuple[object, object]:
    """A data set's item as (image, label or None); a tuple of one is what TensorDataset makes of plain images."""
    if not isinstance(item, tuple | list):
        return item, None
    if len(item) not in (1, 2):
        raise ValueError(f"a data set's item must be an image or (image, label), got {len(item)} parts")
    return item[0], item[1] if len(item) == 2 else None


def get_mnist_dataloader(
    batch_size: int = 128, train: bool = True, root: str | Path | None = None, download: bool = False, **kwargs: object
) -> DataLoader:
    """A torch DataLoader over MNIST: images float32 [B, 1, 28, 28] in [-1, 1], labels int64 [B].

    Args:
        batch_size: images in a batch.
        train: True for the 55,000 images of the train split, shuffled; False for the 10,000 of the test split.
        root, download: see `mnist`.
        kwargs: any other argument of DataLoader, such as `shuffle`, `num_workers`, `generator`.

    Raises:
        FileNotFoundError, OSError, ValueError: see `mnist`.
    """
    dataset = mnist("train" if train else "test", root, download)
    return DataLoader(dataset, batch_size=batch_size, **{"shuffle": train, **kwargs})
