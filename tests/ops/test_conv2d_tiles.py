"""conv2d_fused by tile registers, on an emulation of AMX's instructions (level amx_emulated), and float32's precision high."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracle import check_at_level, cpu_level, needs_kernel
from torch.nn import functional as F

import fastdiff
from fastdiff import ops
from fastdiff.models import UNet
from fastdiff.nn import fused
from fastdiff.nn.packed import packed_weight
from fastdiff.ops._library import EMULATED, multiplies_tiles
from fastdiff.ops._oracle import errors_and_bounds
from fastdiff.ops.conv2d_fused import gains_by_winograd

OP = ops.REGISTRY["conv2d_fused"]


def emulates() -> bool:
    if not OP.compiled("CPU"):
        return False
    with cpu_level(EMULATED):
        return multiplies_tiles()


pytestmark = [needs_kernel("conv2d_fused"), pytest.mark.skipif(not emulates(), reason="the emulation needs AVX-512")]


@pytest.fixture
def tiles() -> Iterator[None]:
    with cpu_level(EMULATED):
        yield


@contextmanager
def precision(value: Any) -> Iterator[None]:
    before = fastdiff.float32_precision()
    fastdiff.set_float32_precision(value)
    try:
        yield
    finally:
        fastdiff.set_float32_precision(before)


def call(
    size: tuple[int, int], inputs: int, outputs: int, kernel: int, stride: int, padding: list[int], upsample: bool = False
) -> tuple[Any, ...]:
    """Arguments of the op in bf16, with everything that a call may have."""
    generator = torch.Generator().manual_seed(sum(size) + inputs)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, weight = (
        normal(2, inputs, *size).bfloat16(),
        (normal(outputs, inputs, kernel, kernel) / (inputs**0.5 * kernel)).bfloat16(),
    )
    up = 2 if upsample else 1
    out = [(up * size[d] + sum(padding[2 - 2 * d : 4 - 2 * d]) - kernel) // stride + 1 for d in (0, 1)]
    residual = normal(2, outputs, *out).bfloat16()
    a, b = 1 + normal(2, inputs) / 2, normal(2, inputs)
    packed = ops.pack_conv_weight(weight)
    return x, None, weight, packed, a, b, "silu", normal(2, outputs), residual, "none", stride, padding, upsample, True


def test_every_sample(tiles: None) -> None:
    check_at_level(EMULATED, OP, torch.bfloat16)


# Rows by themselves and joined; one tile, an odd number of them, ragged ones; several parts, of fewer rows at the end.
@pytest.mark.parametrize(
    "size", [(1, 1), (7, 7), (3, 15), (9, 14), (14, 14), (5, 17), (28, 28), (3, 33), (2, 100), (30, 3)], ids=str
)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "upsample"),
    [
        (3, 1, [1, 1, 1, 1], False),
        (1, 1, [0, 0, 0, 0], False),
        (3, 2, [1, 1, 1, 1], False),
        (3, 1, [2, 1, 0, 3], True),
        (1, 1, [2, 1, 1, 1], False),
    ],
)
def test_every_way_to_cut(
    size: tuple[int, int], kernel: int, stride: int, padding: list[int], upsample: bool, tiles: None
) -> None:
    for error, bound in errors_and_bounds(OP, call(size, 40, 33, kernel, stride, padding, upsample)):
        assert error <= bound


def test_more_weights_than_a_cache_holds(tiles: None) -> None:
    """Output channels then go outermost, some blocks of them at a time."""
    args = call((4, 5), 1024, 96, 3, 1, [1, 1, 1, 1])
    assert args[3].numel() * args[3].itemsize > 3 << 19
    for error, bound in errors_and_bounds(OP, args):
        assert error <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, tiles: None) -> None:
    x, weight = torch.randn(3, 40, 30, 9).to(dtype), (torch.randn(100, 40, 3, 3) / 20).to(dtype)
    packed = ops.pack_conv_weight(weight, split=dtype is torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(ops.conv2d_fused(x, weight, packed=packed, padding=1, act_in="silu", statistics=True))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(v, first) for v, first in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_nan_is_in_what_reads_it_alone(dtype: torch.dtype, tiles: None) -> None:
    """Joined rows share their zeros, and tiles read past the last of them: neither may bring a number to another's place."""
    x, weight = torch.randn(2, 32, 7, 7).to(dtype), torch.randn(32, 32, 3, 3).to(dtype)
    packed = ops.pack_conv_weight(weight, split=dtype is torch.float32)
    for row, column in ((0, 0), (3, 6), (4, 0), (6, 6)):
        v = x.clone()
        v[0, 5, row, column] = torch.nan
        reads = torch.zeros(2, 32, 7, 7, dtype=torch.bool)
        reads[0, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
        assert torch.equal(ops.conv2d_fused(v, weight, packed=packed, padding=1).isnan(), reads)


def split_call(inputs: int, size: int, *, kernel: int = 3, stride: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, and the truth in float64 with what its errors are relative to: the sums of magnitudes."""
    x, weight = torch.randn(2, inputs, size, size) * 3, torch.randn(48, inputs, kernel, kernel)
    truth, magnitudes = (
        F.conv2d(f(x.double()), f(weight.double()), stride=stride, padding=kernel // 2) for f in (lambda v: v, torch.Tensor.abs)
    )
    return x, weight, torch.stack((truth, magnitudes))


@pytest.mark.parametrize(("inputs", "size", "kernel", "stride"), [(3, 9, 3, 1), (64, 14, 3, 1), (40, 7, 1, 1), (33, 28, 3, 2)])
def test_high_is_within_its_error(inputs: int, size: int, kernel: int, stride: int, tiles: None) -> None:
    """Each number's second bf16 leaves 2^-18 of it, and the product of two second parts is 2^-18 of that of the numbers."""
    x, weight, (truth, magnitudes) = split_call(inputs, size, kernel=kernel, stride=stride)
    with precision("high"):
        y = ops.conv2d_fused(x, weight, stride=stride, padding=kernel // 2)
    share = ((y - truth).abs() / magnitudes).max()
    assert share < 2**-16
    exact = ops.conv2d_fused(x, weight, stride=stride, padding=kernel // 2)
    assert 2 * ((exact - truth).abs() / magnitudes).max() < share, "high is not as exact as highest"


def test_high_is_highest_where_there_is_no_amx() -> None:
    x, weight, _ = split_call(20, 8)
    with cpu_level("avx512_bf16"):
        with precision("high"):
            high = ops.conv2d_fused(x, weight, padding=1)
        assert torch.equal(high, ops.conv2d_fused(x, weight, padding=1))
        with pytest.raises(
            RuntimeError, match="packed is split, for precision high on a CPU with AMX; the level in use is avx512"
        ):
            ops.conv2d_fused(x, weight, packed=ops.pack_conv_weight(weight, split=True), padding=1)


def test_split_weights() -> None:
    weight = torch.randn(40, 35, 2, 3)
    packed = ops.pack_conv_weight(weight, split=True).view(2, 2, 6, 2, 2, 16, 16, 2)
    for output, channel, tap in ((0, 0, 0), (17, 1, 4), (39, 34, 5)):
        place = output // 32, channel // 32, tap, slice(None), output % 32 // 16, channel % 32 // 2, output % 16, channel % 2
        high, low = packed[place]
        assert high == weight[output, channel, tap // 3, tap % 3].bfloat16()
        assert low == (weight[output, channel, tap // 3, tap % 3] - high.float()).bfloat16()
    with pytest.raises(TypeError, match=r"weight must be torch\.float32 for split, got torch\.bfloat16"):
        ops.pack_conv_weight(weight.bfloat16(), split=True)
    with pytest.raises(ValueError, match="winograd must be false with split"):
        ops.pack_conv_weight(torch.randn(4, 4, 3, 3), winograd=True, split=True)


def test_the_precision_is_one_of_two() -> None:
    assert fastdiff.float32_precision() == "highest"
    with pytest.raises(ValueError, match="precision must be one of highest, high, got 'medium'"):
        fastdiff.set_float32_precision("medium")


def test_packed_weights_follow_level_and_precision() -> None:
    """Tiles take no weights that were transformed for Winograd's, and high takes split ones."""
    weight = torch.randn(32, 16, 3, 3)

    def packed(dtype: torch.dtype) -> torch.Tensor:
        return packed_weight(weight, dtype, gains_by_winograd(weight, 1, dtype=dtype)).packed

    for _ in range(2):
        with cpu_level("avx512_bf16"):
            assert torch.equal(packed(torch.bfloat16), ops.pack_conv_weight(weight.bfloat16(), winograd=True))
        with cpu_level(EMULATED):
            assert torch.equal(packed(torch.bfloat16), ops.pack_conv_weight(weight.bfloat16()))
            assert torch.equal(packed(torch.float32), ops.pack_conv_weight(weight, winograd=True))
            with precision("high"):
                assert torch.equal(packed(torch.float32), ops.pack_conv_weight(weight, split=True))


def test_compiled_code_follows_the_precision(tiles: None) -> None:
    """Without a break in the graph; a change compiles again."""
    x, weight, _ = split_call(20, 6)
    compiled = torch.compile(lambda: ops.conv2d_fused(x, weight, padding=1), backend="eager", fullgraph=True)
    results = []
    for value in ("highest", "high", "highest"):
        with precision(value):
            results.append(compiled())
            assert torch.equal(results[-1], ops.conv2d_fused(x, weight, padding=1))
    assert not torch.equal(results[0], results[1])


@pytest.fixture(scope="module")
def network() -> tuple[UNet, torch.Tensor, torch.Tensor]:
    """In eval mode, an input, and its output in float64."""
    torch.manual_seed(0)
    net = UNet(model_channels=32, time_embed_dim=32, channel_multipliers=(1, 2), num_res_blocks=1).eval()
    for p in net.parameters():  # some start at zero, which would hide what they multiply
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(2, 1, 14, 14)
    with torch.no_grad():
        truth = net.double()(x.double(), torch.tensor([1, 500]))
    return net.float(), x, truth


@pytest.mark.parametrize(
    ("value", "dtype", "allowed", "least"),
    [("highest", torch.float32, 1e-5, 0), ("high", torch.float32, 1e-4, 1e-6), ("highest", torch.bfloat16, 3e-2, 1e-3)],
    ids=str,
)
def test_a_networks_output(
    value: str, dtype: torch.dtype, allowed: float, least: float, network: tuple[UNet, torch.Tensor, torch.Tensor], tiles: None
) -> None:
    net, x, truth = network
    with precision(value), torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        assert fused.serves(net, x)
        y = net(x, torch.tensor([1, 500]))
    error = float((y - truth).norm() / truth.norm())
    assert least <= error <= allowed, "by the precision that is asked for, neither better nor worse"
