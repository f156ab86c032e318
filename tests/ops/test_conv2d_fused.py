"""conv2d_fused, norm_affine and pack_conv_weight: against torch's layers, by hand, across instruction sets, threads, errors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from oracle import DTYPES, check_at_level, needs_kernel
from torch import nn
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.ops._library import CPU_LEVELS
from fastdiff.ops._oracle import as_tuple
from fastdiff.ops.conv2d_fused import partials_of
from fastdiff.ops.pack_conv_weight import order_of

OP, NORM = ops.REGISTRY["conv2d_fused"], ops.REGISTRY["norm_affine"]
compiled_only = needs_kernel("conv2d_fused")


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0), (3, 1), (5, 2), (4, 1)])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 32), (32, 33), (20, 64)])
def test_is_torchs_convolution(inputs: int, outputs: int, kernel: int, padding: int, stride: int) -> None:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    x = images(2, inputs, 9, 11)
    with torch.no_grad():
        got = ops.conv2d_fused(x, layer.weight, layer.bias, stride=stride, padding=padding)
        torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_residual_block_by_torchs_layers() -> None:
    """norm, SiLU, convolution of a concatenation; FiLM in the second norm; a shortcut that is a convolution."""
    x, skip = images(2, 24, 7, 6), images(2, 40, 7, 6)
    norm1, norm2 = nn.GroupNorm(8, 64, eps=1e-4), nn.GroupNorm(4, 32)
    conv1, conv2, shortcut = nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(64, 32, 1)
    for norm in (norm1, norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    emb, scale, shift = torch.randn(2, 32), torch.randn(2, 32), torch.randn(2, 32)
    identity = torch.eye(24)[:, :, None, None], torch.eye(40)[:, :, None, None]
    with torch.no_grad():
        (_, p), (_, p2) = (ops.conv2d_fused(v, i, statistics=True) for v, i in zip((x, skip), identity, strict=True))
        a, b = ops.norm_affine(p, 8, norm1.weight, norm1.bias, norm1.eps, partials2=p2)
        direct = ops.conv2d_fused(x, shortcut.weight, shortcut.bias, x2=skip)
        h, p = ops.conv2d_fused(x, conv1.weight, conv1.bias + emb, x2=skip, a=a, b=b, act_in="silu", padding=1, statistics=True)
        a, b = ops.norm_affine(p, 4, norm2.weight, norm2.bias, norm2.eps, scale, shift)
        got = ops.conv2d_fused(h, conv2.weight, conv2.bias, a=a, b=b, act_in="silu", residual=direct, padding=1)

        both = torch.cat((x, skip), 1)
        h = conv1(F.silu(norm1(both))) + emb[:, :, None, None]
        h = F.silu(norm2(h) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
        want = conv2(h) + shortcut(both)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (28, 28), (2, 200), (61, 3)])
def test_statistics_are_those_of_the_rows_that_are_said(size: tuple[int, int]) -> None:
    x, weight = images(2, 6, *size) + 100, torch.randn(5, 6, 1, 1)
    y, partials = ops.conv2d_fused(x, weight, statistics=True)
    rows, parts = partials_of(*size)
    assert partials.shape == (2, 5, parts, 3)
    for p in range(parts):
        pixels = y[:, :, p * rows : (p + 1) * rows].flatten(2).double()
        mean = pixels.mean(2)
        assert (partials[:, :, p, 0] == pixels.shape[2]).all()
        torch.testing.assert_close(partials[:, :, p, 1].double(), mean, rtol=1e-5, atol=1e-5)
        deviations = (pixels - mean[..., None]).square().sum(2)
        torch.testing.assert_close(partials[:, :, p, 2].double(), deviations, rtol=1e-4, atol=1e-3)


def test_padding_is_zeros_after_the_activation() -> None:
    """A constant image that the prologue makes 1: the corner sees four of nine pixels."""
    x, weight = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    y = ops.conv2d_fused(x, weight, a=torch.ones(1, 1), b=torch.ones(1, 1), padding=1)
    assert y[0, 0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]
    y = ops.conv2d_fused(x, weight, a=torch.ones(1, 1), b=torch.ones(1, 1), padding=(0, 1, 0, 2))  # right and bottom only
    assert y[0, 0].tolist() == [[9, 9, 6], [9, 9, 6], [6, 6, 4], [3, 3, 2]]


def test_up_sampling_is_torchs() -> None:
    x, weight = images(2, 8, 3, 5), torch.randn(4, 8, 3, 3)
    want = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(ops.conv2d_fused(x, weight, upsample=True, padding=1), want, rtol=1e-5, atol=1e-5)


def test_the_order_of_packed_weights() -> None:
    weight = torch.arange(40 * 35 * 6, dtype=torch.float32).view(40, 35, 2, 3)
    for dtype, block, pair in ((torch.float32, 16, 1), (torch.bfloat16, 32, 2), (torch.float64, 8, 1), (torch.float16, 16, 1)):
        packed = ops.pack_conv_weight(weight.to(dtype))
        assert packed.dtype is (torch.float32 if dtype is torch.float16 else dtype)
        packed = packed.view(2, -1, 6, 2, block // pair, 16, pair)
        for output, channel, tap in ((0, 0, 0), (17, 1, 4), (39, 34, 5), (31, 33, 2)):
            place = (
                output // 32,
                channel // block,
                tap,
                output % 32 // 16,
                channel % block // pair,
                output % 16,
                channel % pair,
            )
            assert packed[place] == weight.to(dtype)[output, channel, tap // 3, tap % 3], (dtype, output, channel, tap)
        assert not packed[1, :, :, :, :, 8:].any()  # outputs 40 and on, and 56 and on
        assert not packed[:, -1, :, :, 3 // pair + 1 :].any()  # channels past the last


PLACES = ((0, 0, 0), (17, 1, 4), (39, 34, 5), (31, 33, 2), (12, 27, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_order_for_products_one_by_one_on_cuda(dtype: torch.dtype) -> None:
    weight, block = torch.randn(40, 35, 2, 3).to(dtype), 64 // dtype.itemsize
    packed = ops.REGISTRY["pack_conv_weight"].reference(weight, *order_of(dtype, "cuda"), False).view(2, -1, 6, block, 32)
    for output, channel, tap in PLACES:
        place = (output // 32, channel // block, tap, channel % block, output % 32)
        assert packed[place] == weight[output, channel, tap // 3, tap % 3], (output, channel, tap)
    assert not packed[1, ..., 8:].any()
    assert not packed[:, -1, :, 35 % block :].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_order_for_tensor_cores(dtype: torch.dtype) -> None:
    """A lane's registers of two right-hand matrices [16, 8], side by side, and four matrices give it neighbouring outputs."""
    weight = torch.randn(40, 35, 2, 3).to(dtype)
    packed = ops.REGISTRY["pack_conv_weight"].reference(weight, *order_of(dtype, "cuda"), False)
    assert packed.dtype is dtype
    packed = packed.view(2, 2, 6, 2, 2, 32, 2, 4)  # of outputs, of channels, element, 16 channels, two matrices, lane, one, row
    found = {}
    for matrix, lane, held in itertools.product(range(4), range(32), range(4)):
        row, column = lane % 4 * 2 + held % 2 + 8 * (held // 2), lane // 4  # of the matrix, by the PTX ISA
        owner, sum_ = column // 2, column % 2  # the lane in four that gets this column's sums, and which of two
        found[8 * owner + 2 * matrix + sum_, row] = (matrix // 2, lane, matrix % 2, held)
    for output, channel, tap in PLACES:
        pair, *rest = found[output % 32, channel % 16]
        got = packed[(output // 32, channel // 32, tap, channel % 32 // 16, pair, *rest)]
        assert got == weight[output, channel, tap // 3, tap % 3], (output, channel, tap)
    assert packed.count_nonzero() == weight.count_nonzero()


@compiled_only
@pytest.mark.parametrize("level", CPU_LEVELS[:4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(level: str, dtype: torch.dtype) -> None:
    for op in (OP, NORM):
        check_at_level(level, op, dtype)


@compiled_only
@pytest.mark.parametrize("shape", [(1, 64, 28, 28), (3, 40, 40, 9), (1, 96, 5, 5), (7, 12, 6, 5)], ids=str)
def test_bits_do_not_depend_on_threads(shape: tuple[int, ...]) -> None:
    """However the work is cut: into images, bands of rows, or parts of the outputs."""
    x, weight, residual = images(*shape), torch.randn(100, shape[1], 3, 3) / 20, images(shape[0], 100, *shape[2:])
    a, b = torch.rand(2, *shape[:2])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(ops.conv2d_fused(x, weight, a=a, b=b, act_in="silu", residual=residual, padding=1, statistics=True))
    finally:
        torch.set_num_threads(threads)
    for y, partials in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(partials, results[0][1])


def test_tiles_by_hand() -> None:
    """One tile of a single channel: the transformed weights are the outer products of a kernel's row and column sums."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 4.0
    packed = ops.pack_conv_weight(weight, winograd=True).view(4, 4, 2, 16, 16)[:, :, 0, 0, 0]
    assert packed.tolist() == [[0, 0, 0, 0], [0, 1, -1, 0], [0, -1, 1, 0], [0, 0, 0, 0]]


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 4), (5, 5), (7, 7), (28, 28), (4, 100)], ids=str)
def test_tiles_give_what_elements_give(size: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = images(2, 48, *size, dtype=dtype), (torch.randn(40, 48, 3, 3) / 20).to(dtype)
    results = [
        ops.conv2d_fused(x, weight, packed=ops.pack_conv_weight(weight, winograd), act_in="silu", padding=1, statistics=True)
        for winograd in (False, True)
    ]
    tolerance = 2e-5 if dtype is torch.float32 else 2e-2
    for direct, tiles in zip(*results, strict=True):
        torch.testing.assert_close(tiles, direct, rtol=tolerance, atol=tolerance)
    assert not torch.equal(results[0][0], results[1][0]) or size == (1, 1)  # they are two ways of computing


X, W = torch.randn(2, 6, 5, 5), torch.randn(4, 6, 3, 3)
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[0]}, ValueError, r"x must have shape \[N, C, H, W\], got \(6, 5, 5\)"),
    ({"x": X.long()}, TypeError, "x must be float32, bfloat16, float16 or float64, got torch.int64"),
    ({"weight": W[:, :5]}, ValueError, r"weight must have shape \[Cout, 6, kh, kw\], got \(4, 5, 3, 3\)"),
    ({"weight": W.double()}, TypeError, "weight must have x's dtype torch.float32, got torch.float64"),
    ({"x2": X[:, :, :4]}, ValueError, r"x2 must have shape \(2, C, 5, 5\), got \(2, 6, 4, 5\)"),
    ({"a": X[:, :, 0, 0]}, ValueError, "b must be given with a, got None"),
    ({"a": X[:1, :, 0, 0], "b": X[:1, :, 0, 0]}, ValueError, r"a must have shape \(2, 6\), got \(1, 6\)"),
    ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(4,\) or \(2, 4\), got \(5,\)"),
    ({"residual": X}, ValueError, r"residual must have the result's shape \(2, 4, 3, 3\), got \(2, 6, 5, 5\)"),
    ({"act_in": "tanh"}, ValueError, "act_in must be one of none, silu, relu, leaky_relu, gelu, got 'tanh'"),
    ({"stride": 0}, ValueError, "stride must be an integer of at least 1, got 0"),
    ({"padding": (1, 1)}, ValueError, r"padding must be a number or \(left, right, top, bottom\), none negative, got \(1, 1\)"),
    ({"padding": -1}, ValueError, "none negative"),
    ({"x": X[:, :, :2]}, ValueError, "x must be at least as large as the kernel of 3x3, got 2x5 with its padding"),
    (
        {"packed": ops.pack_conv_weight(W, winograd=True), "stride": 2},
        RuntimeError,
        "packed must be what pack_conv_weight makes",
    ),
    ({"packed": torch.zeros(7)}, RuntimeError, "packed must be what pack_conv_weight makes of weight"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda v: v[:30] if isinstance(v, str) else "")
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    if "packed" in change and not OP.compiled("CPU"):
        pytest.skip("the reference does not read packed weights")
    with pytest.raises(error, match=message):
        ops.conv2d_fused(**{"x": X, "weight": W} | change)


def test_wrong_arguments_of_norm_affine() -> None:
    p = torch.rand(2, 6, 3, 3)
    for change, error, message in (
        ({"groups": 4}, ValueError, "groups must be a divisor of the 6 channels, got 4"),
        (
            {"partials": p[..., :2]},
            ValueError,
            r"partials must have shape \[N, C, P, 3\] with P at least 1, got \(2, 6, 3, 2\)",
        ),
        ({"partials": p.half()}, TypeError, "partials must be float32, got torch.float16"),
        ({"weight": torch.ones(5)}, ValueError, r"weight must have shape \(6,\), got \(5,\)"),
        ({"scale": torch.ones(6)}, ValueError, r"scale must have shape \(2, 6\), got \(6,\)"),
    ):
        with pytest.raises(error, match=message):
            ops.norm_affine(**{"partials": p, "groups": 3} | change)


def test_no_derivative_is_an_error() -> None:
    y = as_tuple(ops.conv2d_fused(X.clone().requires_grad_(), W))[0]
    with pytest.raises(RuntimeError, match="conv2d_fused has no derivative"):
        y.sum().backward()
