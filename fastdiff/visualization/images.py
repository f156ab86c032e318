"""Batches of images as pictures: 8-bit pixels, grids, files and animations."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastdiff.visualization.files import write_image

Images = torch.Tensor | np.ndarray

PADDING_GRAY = 96  # darker than most pictures and lighter than black digits: tiles keep their borders
SMALLEST_TILE = 48  # pixels: below this an 8x8 or 28x28 tile is hard to judge by eye


def to_uint8(images: Images, normalize: bool = True) -> np.ndarray:
    """Images as 8-bit pixels, uint8 [N, H, W, C] with C = 1 or 3.

    Takes a torch tensor or a NumPy array of shape [N, C, H, W], [N, H, W, C], [C, H, W], [H, W, C] or [H, W]. Where
    both axes are 1 or 3 long and so could be the channels, a tensor is read channels first and an array channels last.

    `normalize=True` maps [-1, 1] to 0..255, `False` maps [0, 1]; values outside are clipped and halves round up.
    uint8 input keeps its values and may share memory with the result.

    Raises TypeError for other input types and dtypes, ValueError for other shapes, for no images at all and for
    non-finite values.
    """
    if isinstance(images, torch.Tensor):
        pixels = images.detach().cpu()
        pixels = (pixels.float() if pixels.is_floating_point() else pixels).numpy()
        channels_first = True
    elif isinstance(images, np.ndarray):
        pixels, channels_first = images, False
    else:
        raise TypeError(f"images must be a torch tensor or a NumPy array, not {type(images).__name__}")

    pixels = _to_nhwc(pixels, channels_first)
    if pixels.size == 0:
        raise ValueError(f"images are empty: shape {tuple(images.shape)}")
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise TypeError(f"images must be floating point or uint8, not {images.dtype}")

    non_finite = np.count_nonzero(~np.isfinite(pixels))
    if non_finite:
        raise ValueError(f"images hold {non_finite} non-finite values among {pixels.size}")
    unit = (pixels.astype(np.float32) + 1) / 2 if normalize else pixels.astype(np.float32)
    return np.floor(np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)


def _to_nhwc(pixels: np.ndarray, channels_first: bool) -> np.ndarray:
    """Brings the layouts that `to_uint8` takes to [N, H, W, C]."""
    if pixels.ndim == 2:
        return pixels[None, :, :, None]
    if pixels.ndim not in (3, 4):
        raise ValueError(f"images must be [N, C, H, W], [N, H, W, C], [C, H, W] or [H, W], not {pixels.shape}")
    batch = pixels if pixels.ndim == 4 else pixels[None]
    could_be_first, could_be_last = batch.shape[1] in (1, 3), batch.shape[3] in (1, 3)
    if not (could_be_first or could_be_last):
        raise ValueError(f"images must have 1 or 3 channels, first or last; shape {pixels.shape} has neither")
    if could_be_first and (channels_first or not could_be_last):
        return batch.transpose(0, 2, 3, 1)
    return batch


def image_grid(images: Images, nrow: int = 4, normalize: bool = True, padding: int = 2, scale: int | None = 1) -> Image.Image:
    """A grid of images, `nrow` to a row, filled row by row; mode L for one channel, RGB for three.

    `padding` is the width in pixels of the grey lines between and around the tiles. `scale` enlarges each tile by a
    whole factor (nearest neighbour); `None` takes the smallest that makes both sides of a tile at least 48 pixels.
    Layouts, value ranges and errors are those of `to_uint8`; ValueError also for nrow < 1, padding < 0, scale < 1.
    """
    tiles = to_uint8(images, normalize)  # [N, H, W, C]
    if scale is None:
        scale = math.ceil(SMALLEST_TILE / min(tiles.shape[1:3]))
    for name, value, least in (("nrow", nrow, 1), ("padding", padding, 0), ("scale", scale, 1)):
        if value != int(value) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")

    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = tiles.shape
    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    row_step, column_step = height + padding, width + padding
    grid = np.full((rows * row_step + padding, columns * column_step + padding, channels), PADDING_GRAY, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = padding + index // columns * row_step, padding + index % columns * column_step
        grid[top : top + height, left : left + width] = tile
    return Image.fromarray(grid[:, :, 0] if channels == 1 else grid)


def save_images(
    images: Images,
    filepath: str | os.PathLike,
    nrow: int = 4,
    normalize: bool = True,
    scale: int | None = 1,
    padding: int = 2,
) -> Path:
    """Saves images as one grid (see `image_grid`) in the format of the suffix, and returns the path.

    Parent folders are created and the file appears whole or not at all. Raises ValueError for an unknown suffix and
    OSError, naming the path, where it cannot be written.
    """
    return write_image(image_grid(images, nrow, normalize, padding, scale), filepath)


def save_each(images: Images, folder: str | os.PathLike, prefix: str = "image", normalize: bool = True) -> list[Path]:
    """Saves every image as its own `folder/prefix-00000.png` and returns the paths, in the order of the batch."""
    pictures = (Image.fromarray(tile[:, :, 0] if tile.shape[2] == 1 else tile) for tile in to_uint8(images, normalize))
    return [write_image(picture, Path(folder) / f"{prefix}-{i:05d}.png") for i, picture in enumerate(pictures)]


def save_animation(
    frames: Iterable[Images],
    filepath: str | os.PathLike,
    duration_ms: int = 60,
    nrow: int = 4,
    normalize: bool = True,
    padding: int = 2,
    scale: int | None = 1,
    last_ms: int = 1500,
) -> Path:
    """Saves an endless animation, one grid (see `image_grid`) per batch in `frames`, and returns the path.

    The suffix decides: `.webp` is lossless, `.gif` has 256 colours per frame and times in steps of 10 ms. A frame shows
    for `duration_ms` milliseconds, the last for `last_ms`. Equal neighbours may be stored once, for their summed time.
    Raises ValueError for another suffix, for no frames and for frames of different sizes, OSError as `save_images`.
    """
    encoder_options = {".webp": {"lossless": True}, ".gif": {}}
    suffix = Path(filepath).suffix.lower()
    if suffix not in encoder_options:
        raise ValueError(f"filepath {str(filepath)!r} must end in .webp or .gif")
    grids = [image_grid(batch, nrow, normalize, padding, scale) for batch in frames]
    if not grids:
        raise ValueError("frames are empty: an animation needs at least one")
    sizes = sorted({grid.size for grid in grids})
    if len(sizes) > 1:
        raise ValueError(f"frames must all give grids of one size, not {sizes}")
    durations = [duration_ms] * (len(grids) - 1) + [last_ms]
    options = {"append_images": grids[1:], "duration": durations, "loop": 0, **encoder_options[suffix]}
    return write_image(grids[0], filepath, save_all=True, **options)
