"""film through its public function: values by hand, errors, layers of strides, large indices."""

from __future__ import annotations

import pytest
import torch
from oracle import needs_kernel
from torch.nn import functional as F

from fastdiff.ops import film

X, S = torch.randn(2, 3, 4, 5), torch.randn(2, 3)


def test_it_is_the_formula() -> None:
    got = film(X, S, -S, act="silu")
    torch.testing.assert_close(got, F.silu(X * (1 + S[:, :, None, None]) - S[:, :, None, None]))


def test_scale_alone_multiplies() -> None:
    torch.testing.assert_close(film(X, S), X * S[:, :, None, None])


def test_gradients_reach_halves_of_one_projection() -> None:
    both = torch.randn(2, 6, requires_grad=True)
    scale, shift = both.chunk(2, dim=1)
    film(X, scale, shift).sum().backward()
    expected = torch.cat([X.sum((2, 3)), torch.full((2, 3), 20.0)], dim=1)
    torch.testing.assert_close(both.grad, expected)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a torch.Tensor, got int"),
        ({"x": torch.zeros(2, 3)}, ValueError, r"x must have 3 to 5 dimensions .*got shape \(2, 3\)"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "x must be float32, .* got torch.int64"),
        ({"scale": None}, TypeError, "scale must be a torch.Tensor, got NoneType"),
        ({"scale": torch.zeros(3)}, ValueError, r"scale must have shape \(2, 3\), got \(3,\)"),
        ({"scale": torch.zeros(2, 4)}, ValueError, r"scale must have shape \(2, 3\), got \(2, 4\)"),
        ({"scale": S.double()}, TypeError, "scale must be torch.float32, got torch.float64"),
        ({"x": X.bfloat16(), "scale": S.half()}, TypeError, "scale must be float32 or torch.bfloat16"),
        ({"x": X.double()}, TypeError, "scale must be torch.float64, got torch.float32"),
        ({"x": X.bfloat16(), "shift": S.bfloat16()}, TypeError, "shift must have scale's dtype torch.float32"),
        ({"shift": torch.zeros(1, 3)}, ValueError, r"shift must have shape \(2, 3\), got \(1, 3\)"),
        ({"scale": S.to("meta")}, ValueError, "scale must be on x's device cpu, got meta"),
        ({"act": "swish"}, ValueError, "act must be one of none, silu, relu, leaky_relu, gelu, got 'swish'"),
        ({"act": None}, ValueError, "act must be one of"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        film(**({"x": X, "scale": S} | kwargs))


@needs_kernel("film")
def test_the_kernel_checks_memory_safety_again() -> None:
    """Calls that pass by the public function must not read out of bounds."""
    op = torch.ops.fastdiff.film.default
    with pytest.raises(RuntimeError, match=r"scale must be \[N, C\]"):
        op(X, S[:, :2], None, "none")
    with pytest.raises(RuntimeError, match="scale must be float32 or x's dtype"):
        op(X, S.double(), None, "none")
    with pytest.raises(RuntimeError, match="act must be one of"):
        op(X, S, None, "tanh")
    with pytest.raises(RuntimeError, match="grad must have the images' shape and dtype"):
        torch.ops.fastdiff.film_backward.default(X[:1], X, S, None, "none")
    with pytest.raises(RuntimeError, match="x must be"):
        op(X.to(torch.int32), S, None, "none")


def test_half_precision_conversions_are_torchs() -> None:
    """Every bf16 and fp16 value, and the float32 values around their rounding boundaries, through the kernels' conversions."""
    one, zero = torch.zeros(1, 1), torch.zeros(1, 1)
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        got = film(every.reshape(1, 1, -1), one, zero).flatten()
        assert torch.equal(got.isnan(), every.isnan())
        assert torch.equal(got.nan_to_num(), every.nan_to_num())

        finite = every[every.isfinite()].float()
        low, high = finite.sort().values[:-1], finite.sort().values[1:]
        scale = torch.cat([(low + high) / 2, torch.nextafter((low + high) / 2, high), torch.nextafter((low + high) / 2, low)])
        ones = torch.ones(len(scale), 1, 1, dtype=dtype)
        got = film(ones, scale[:, None]).flatten()  # 1 * scale, rounded to the dtype
        assert torch.equal(got, scale.to(dtype))


def test_images_of_more_than_2_31_elements_are_addressed() -> None:
    """Expanded inputs take no memory, but the result would: the meta device checks sizes, the kernels index in 64 bits."""
    x = torch.empty(1, device="meta").expand(3, 2**15, 2**16)
    assert film(x, torch.empty(3, 2**15, device="meta")).numel() == 3 * 2**31
