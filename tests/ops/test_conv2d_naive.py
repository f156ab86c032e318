"""The convolution in NumPy, torch's, and conv2d_fused: three implementations of one definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastdiff import ops


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
)
def test_all_are_one(
    sizes: tuple[int, int, int], kernel: tuple[int, int], beyond: tuple[int, int], stride: int, padding: int, has_bias: bool
) -> None:
    n, inputs, outputs = sizes
    height, width = (max(k + more - 2 * padding, 1) for k, more in zip(kernel, beyond, strict=True))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((n, inputs, height, width)), rng.standard_normal((outputs, inputs, *kernel))
    b = rng.standard_normal(outputs) if has_bias else None
    naive = ops.conv2d_naive(x, w, b, stride, padding)
    assert naive.shape[2:] == ops.conv2d_output_shape((height, width), kernel, stride, padding)
    np.testing.assert_allclose(ops.conv2d_im2col(x, w, b, stride, padding), naive, rtol=1e-12, atol=1e-12)
    tx, tw, tb = (None if v is None else torch.from_numpy(v) for v in (x, w, b))
    np.testing.assert_allclose(F.conv2d(tx, tw, tb, stride, padding), naive, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ops.conv2d_fused(tx, tw, tb, stride=stride, padding=padding), naive, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(*[st.integers(1, 12)] * 2, *[st.integers(1, 3)] * 4, st.integers(0, 1))
def test_the_shape_formula_is_torchs(h: int, w: int, kh: int, kw: int, stride: int, dilation: int, padding: int) -> None:
    x = torch.empty(1, 1, h, w, device="meta")
    try:
        want = F.conv2d(x, x.new_empty(1, 1, kh, kw), None, stride, padding, dilation).shape[2:]
    except RuntimeError:
        with pytest.raises(ValueError, match="is smaller than the kernel"):
            ops.conv2d_output_shape((h, w), (kh, kw), stride, padding, dilation)
        return
    assert ops.conv2d_output_shape((h, w), (kh, kw), stride, padding, dilation) == tuple(want)


def test_by_hand() -> None:
    x, w = np.arange(9.0).reshape(1, 1, 3, 3), np.array([[[[1.0, 0], [0, -1]]]])
    for conv in (ops.conv2d_naive, ops.conv2d_im2col):
        assert conv(x, w, np.array([10.0])).tolist() == [[[[6, 6], [6, 6]]]]


X, W = np.zeros((1, 3, 5, 5)), np.zeros((2, 3, 3, 3))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": X[0]}, r"x must have shape \[N, C, H, W\], got \(3, 5, 5\)"),
    ({"w": W[:, :2]}, r"w must have shape \[Cout, 3, kh, kw\], got \(2, 2, 3, 3\)"),
    ({"b": np.zeros(3)}, r"b must have shape \(2,\), got \(3,\)"),
    ({"stride": 0}, "stride and dilation must be at least 1 and padding not negative, got 0, 1 and 0"),
    ({"x": X[:, :, :2]}, "x of 2x5 with padding 0 is smaller than the kernel of 3x3"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda v: v[:12] if isinstance(v, str) else "")
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    for conv in (ops.conv2d_naive, ops.conv2d_im2col):
        with pytest.raises(ValueError, match=message):
            conv(**{"x": X, "w": W} | change)
