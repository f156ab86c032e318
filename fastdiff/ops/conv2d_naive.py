"""The convolution itself in NumPy: as its definition says, and as one matrix product. An independent truth, not a fast op.

    y[n, o, i, j] = b[o] + sum over c, k, l of x_padded[n, c, i s + k, j s + l] w[o, c, k, l]
    H' = floor((H + 2 padding - kh) / s) + 1, W' likewise

Shapes: x [N, C, H, W]; w [Cout, C, kh, kw]; b [Cout]; y [N, Cout, H', W']. Any real dtype; the result's is NumPy's for their
product. As in all of deep learning it is the correlation: the kernel is not flipped.
Source: Dumoulin & Visin 2016, "A guide to convolution arithmetic for deep learning", relationship 6; im2col: Chellapilla et al.
2006, "High Performance Convolutional Neural Networks for Document Processing", section 3.
"""

from __future__ import annotations

import numpy as np

__all__ = ["conv2d_im2col", "conv2d_naive", "conv2d_output_shape"]


def conv2d_output_shape(
    size: tuple[int, int], kernel: tuple[int, int], stride: int = 1, padding: int = 0, dilation: int = 1
) -> tuple[int, int]:
    """(H', W') of a convolution or a pooling of images of `size` = (H, W). Raises ValueError where nothing is left."""
    if stride < 1 or dilation < 1 or padding < 0:
        raise ValueError(
            f"stride and dilation must be at least 1 and padding not negative, got {stride}, {dilation} and {padding}"
        )
    height, width = ((s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s, k in zip(size, kernel, strict=True))
    if min(height, width) < 1:
        raise ValueError(
            f"x of {size[0]}x{size[1]} with padding {padding} is smaller than the kernel of {kernel[0]}x{kernel[1]}"
        )
    return height, width


def conv2d_naive(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, stride: int = 1, padding: int = 0) -> np.ndarray:
    """By the definition, one output pixel after another. Raises ValueError naming the argument."""
    padded, (height, width) = _checked(x, w, b, stride, padding)
    kh, kw = w.shape[2:]
    y = np.empty((x.shape[0], w.shape[0], height, width), np.result_type(x, w))
    for i in range(height):
        for j in range(width):
            window = padded[:, None, :, i * stride : i * stride + kh, j * stride : j * stride + kw]  # [N, 1, C, kh, kw]
            y[:, :, i, j] = (window * w).sum(axis=(2, 3, 4))
    return y if b is None else y + b[:, None, None]


def conv2d_im2col(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, stride: int = 1, padding: int = 0) -> np.ndarray:
    """As one matrix product: every window of x becomes a column. Raises ValueError naming the argument."""
    padded, (height, width) = _checked(x, w, b, stride, padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(x.shape[0], -1, height * width)  # [N, C kh kw, H' W']
    y = (w.reshape(w.shape[0], -1) @ columns).reshape(x.shape[0], -1, height, width)
    return y if b is None else y + b[:, None, None]


def _checked(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, stride: int, padding: int
) -> tuple[np.ndarray, tuple[int, int]]:
    if x.ndim != 4:
        raise ValueError(f"x must have shape [N, C, H, W], got {x.shape}")
    if w.ndim != 4 or w.shape[1] != x.shape[1]:
        raise ValueError(f"w must have shape [Cout, {x.shape[1]}, kh, kw], got {w.shape}")
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"b must have shape ({w.shape[0]},), got {b.shape}")
    size = conv2d_output_shape(x.shape[2:], w.shape[2:], stride, padding)
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding))), size
