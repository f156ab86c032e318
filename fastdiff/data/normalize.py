"""The one definition of fastdiff's image range: [-1, 1] inside, [0, 1] outside."""

from typing import TypeVar

import numpy as np
import torch

Images = TypeVar("Images", torch.Tensor, np.ndarray)


def normalize_images(x: Images) -> Images:
    """Maps images from [0, 1] to [-1, 1]: `2 x - 1`.

    Args:
        x: floating-point tensor or NumPy array of any shape. Values are not clipped.

    Returns:
        A new tensor or array of the same kind, shape and dtype.

    Raises:
        TypeError: x is no tensor or array, or is not floating-point (uint8 pixels: divide by 255 first).
    """
    _require_floating(x, "x.float() / 255" if isinstance(x, torch.Tensor) else "x.astype('float32') / 255")
    return x * 2 - 1


def denormalize_images(x: Images) -> Images:
    """Maps images from [-1, 1] to [0, 1]: `(x + 1) / 2`, the inverse of `normalize_images`.

    Args:
        x: floating-point tensor or NumPy array of any shape. Values are not clipped.

    Returns:
        A new tensor or array of the same kind, shape and dtype.

    Raises:
        TypeError: x is no tensor or array, or is not floating-point (uint8 pixels are not in [-1, 1]).
    """
    _require_floating(x, "normalize_images on x / 255, or use x / 255 as it is")
    return (x + 1) / 2


def _require_floating(x: object, advice: str) -> None:
    if not isinstance(x, torch.Tensor | np.ndarray):
        raise TypeError(f"images must be a torch tensor or a NumPy array, got {type(x).__name__}")
    floating = x.is_floating_point() if isinstance(x, torch.Tensor) else np.issubdtype(x.dtype, np.floating)
    if not floating:
        raise TypeError(f"images must be floating-point, got {x.dtype}; for pixels in 0..255 take {advice}")
