"""`ImageDataset`: images and labels as two tensors in memory, checked once; and `arrays`, the way in from NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from fastdiff.data.normalize import normalize_images
from fastdiff.data.order import split_indices

# The letters name the axes in order; "NHW" is grey images without a channel axis.
LAYOUTS = ("NCHW", "NHWC", "NHW")
MOST_CHANNELS = 4  # an axis of up to this size can be the channels: grey, grey + alpha, RGB, RGB + alpha


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images in memory, with or without labels.

    Attributes:
        images: float32 [N, C, H, W], finite, in [-1, 1], N >= 1.
        labels: int64 [N] in 0 .. num_classes - 1, or None.
        num_classes: the number of classes; None for data without classes. Required beside labels.
        name: what messages and reports call the data set.

    Raises:
        TypeError: images or labels is not a tensor.
        ValueError: an attribute breaks the description above; the message tells which and what was found.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    num_classes: int | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        self._check_images()
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"{self.name}: num_classes must be at least 1, got {self.num_classes}")
        if self.labels is not None:
            self._check_labels()

    def _check_images(self) -> None:
        images = self.images
        if not isinstance(images, torch.Tensor):
            kind = type(images).__name__
            raise TypeError(f"{self.name}: images must be a tensor, got {kind}; see fastdiff.data.arrays")
        if images.ndim != 4:
            raise ValueError(f"{self.name}: images must be [N, C, H, W], got shape {tuple(images.shape)}")
        if images.dtype != torch.float32:
            raise ValueError(f"{self.name}: images must be float32, got {images.dtype}; see fastdiff.data.arrays")
        if not images.numel():
            raise ValueError(f"{self.name}: the data set is empty, images have shape {tuple(images.shape)}")
        low, high = (float(bound) for bound in images.aminmax())  # NaN anywhere makes both NaN
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{self.name}: images must be finite, found NaN or infinity")
        if low < -1 or high > 1:
            raise ValueError(f"{self.name}: images must lie in [-1, 1], got [{low:g}, {high:g}]")

    def _check_labels(self) -> None:
        labels = self.labels
        if not isinstance(labels, torch.Tensor):
            raise TypeError(f"{self.name}: labels must be a tensor, got {type(labels).__name__}")
        if labels.dtype != torch.int64:
            raise ValueError(f"{self.name}: labels must be int64, got {labels.dtype}")
        if labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels must be [N], one for each of {len(self)} images, got shape {tuple(labels.shape)}"
            )
        if self.num_classes is None:
            raise ValueError(f"{self.name}: labels need num_classes")
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"{self.name}: labels must lie in 0..{self.num_classes - 1}, got {low}..{high}")

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int | None]:
        """Image [C, H, W] and label number i; the label is None where the data has none."""
        return self.images[i], None if self.labels is None else int(self.labels[i])

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gathers images [B, C, H, W] and labels [B] (or None) at int64 indices [B], each in one operation."""
        return self.images[indices], None if self.labels is None else self.labels[indices]

    @property
    def img_shape(self) -> tuple[int, int, int]:
        """(H, W, C), the order in which models take `img_shape`."""
        channels, height, width = self.images.shape[1:]
        return height, width, channels

    def split(self, *fractions: float, seed: int = 0) -> "tuple[ImageDataset, ...]":
        """Cuts the data into disjoint random parts, each class in proportion: `train, rest = data.split(0.8, 0.2)`.

        Args:
            fractions: the parts' shares, positive, summing to 1.
            seed: another seed, another split; the global random state plays no part.

        Raises:
            ValueError: the fractions are not positive or do not sum to 1, or a part would be empty.
        """
        parts = split_indices(fractions, len(self), self.labels, seed)
        for number, part in enumerate(parts):
            if not len(part):
                raise ValueError(
                    f"{self.name}: part {number} of the split (fraction {fractions[number]:g} of {len(self)}) is empty"
                )
        return tuple(
            ImageDataset(*self.batch(part), num_classes=self.num_classes, name=f"{self.name}[{number}]")
            for number, part in enumerate(parts)
        )

    def __repr__(self) -> str:
        height, width, channels = self.img_shape
        classes = "no labels" if self.labels is None else f"{self.num_classes} classes"
        return f"ImageDataset({self.name!r}, {len(self)} images {channels}x{height}x{width}, {classes})"


def arrays(
    images: np.ndarray | torch.Tensor,
    labels: np.ndarray | torch.Tensor | Sequence[int] | None = None,
    *,
    layout: str | None = None,
    num_classes: int | None = None,
    name: str = "arrays",
) -> ImageDataset:
    """Makes an `ImageDataset` of NumPy arrays or tensors.

    Args:
        images: uint8 in [0, 255] or floating-point in [0, 1]; [N, C, H, W], [N, H, W, C] or grey [N, H, W].
        labels: N integers from 0 on, or None.
        layout: "NCHW", "NHWC" or "NHW". None decides by shape: three axes are NHW; of four, the second or the last is
            the channels if it alone has a size of 1 to 4.
        num_classes: default: the largest label + 1.
        name: see `ImageDataset`.

    Raises:
        TypeError: images is no array or tensor.
        ValueError: the layout is ambiguous or does not fit, the dtype or range is another, or the labels do not fit.
    """
    if not isinstance(images, torch.Tensor | np.ndarray):
        raise TypeError(f"{name}: images must be a NumPy array or a tensor, got {type(images).__name__}")
    if isinstance(images, np.ndarray):
        images = torch.tensor(np.ascontiguousarray(images))  # torch takes neither negative strides nor read-only memory
    layout = layout or _guess_layout(tuple(images.shape), name)
    if layout not in LAYOUTS or len(layout) != images.ndim:
        raise ValueError(f"{name}: layout {layout!r} does not fit shape {tuple(images.shape)}; layouts: {LAYOUTS}")
    if layout == "NHW":
        images = images.unsqueeze(1)
    elif layout == "NHWC":
        images = images.permute(0, 3, 1, 2)
    images = normalize_images(_unit_range(images, name)).contiguous()
    if labels is None:
        return ImageDataset(images, None, num_classes, name)
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name}: labels must be integers, got {labels.dtype}")
    labels = labels.to(torch.int64, copy=True)
    if num_classes is None and labels.numel():
        num_classes = max(int(labels.max()) + 1, 1)  # labels all negative are ImageDataset's to refuse
    return ImageDataset(images, labels, num_classes, name)


def _guess_layout(shape: tuple[int, ...], name: str) -> str:
    if len(shape) == 3:
        return "NHW"
    if len(shape) != 4:
        raise ValueError(f"{name}: images must have 3 or 4 axes, got shape {shape}")
    first, last = (1 <= size <= MOST_CHANNELS for size in (shape[1], shape[3]))
    if first == last:
        which = "both could" if first else "neither can"
        raise ValueError(
            f"{name}: the layout of shape {shape} is ambiguous: of axes 1 and 3, {which} be the channels "
            f"(1 to {MOST_CHANNELS}); give layout='NCHW' or layout='NHWC'"
        )
    return "NCHW" if first else "NHWC"


def _unit_range(images: torch.Tensor, name: str) -> torch.Tensor:
    """float32 images in [0, 1] from uint8 in [0, 255] or from floats that are in [0, 1] already."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise ValueError(f"{name}: images must be uint8 in [0, 255] or floating-point in [0, 1], got {images.dtype}")
    if images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= 0 and high <= 1):  # NaN compares false, so it ends here as well
            raise ValueError(f"{name}: floating-point images must lie in [0, 1], got [{low:g}, {high:g}]")
    return images.to(torch.float32)
