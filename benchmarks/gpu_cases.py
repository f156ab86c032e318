"""The calls that `gpu_ops.py` times: sizes that fill a GPU, most valuable first. Data is random, never zero.

Parameters are in x's dtype: torch's own GroupNorm on CUDA takes no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastdiff import ops
from fastdiff.ops import Op, Purpose
from fastdiff.ops.conv2d_fused import gains_by_winograd

Args = tuple[Any, ...]
BF16, FP32 = torch.bfloat16, torch.float32
LAST, FIRST = torch.channels_last, torch.contiguous_format


@dataclass(frozen=True)
class Case:
    """One op at one size. make(device) draws arguments; flops counts the multiplications and additions of matrix products."""

    op: Op
    name: str
    dtype: torch.dtype
    make: Callable[[str], Args]
    backward: bool = False
    layout: torch.memory_format | None = None  # of images; None: nothing has one
    flops: int = 0

    @property
    def checked(self) -> str:
        """What a row calls it: the op, or what its derivative runs."""
        return f"{self.op.name}_backward" if self.backward else self.op.name


def cases(tiny: bool) -> Iterator[Case]:
    """tiny: all of them, at sizes for which a CPU needs no time."""
    for backward in (False, True):
        for layout in (LAST, FIRST):
            yield _group_norm("64x128x64x64", (64, 128, 64, 64), BF16, layout, backward, tiny)
    for backward in (False, True):
        for length in (1024, 256):
            yield _attention(16 * 1024 // length, 16, length, 64, BF16, backward, tiny)
    for n, c in ((16, 128), (64, 128), (16, 256), (64, 64)):
        yield _convolution(n, c, c, 64, 3, BF16, tiny)
    for c, size in ((128, 32), (256, 16), (256, 8)):  # of a U-Net for 32x32 pixels
        yield _convolution(128, c, c, size, 3, BF16, tiny)
    yield _convolution(64, 256, 768, 16, 1, BF16, tiny)
    yield _convolution(64, 128, 128, 64, 1, BF16, tiny)
    yield _step("ddpm_step", BF16, tiny)
    yield _step("sampler_step", BF16, tiny)
    yield _q_sample(BF16, tiny)
    yield _normal(tiny)
    for backward in (False, True):
        yield _film((64, 128, 64, 64), BF16, LAST, backward, tiny)
    yield _group_norm("128x512x8x8", (128, 512, 8, 8), BF16, LAST, False, tiny)
    yield _group_norm("64x128x64x64", (64, 128, 64, 64), FP32, LAST, False, tiny)
    for backward in (False, True):
        yield _film((64, 128, 64, 64), BF16, FIRST, backward, tiny)
    yield _convolution(16, 128, 128, 64, 3, FP32, tiny)
    yield _attention(16, 16, 256, 64, FP32, False, tiny)
    yield _step("ddpm_step", FP32, tiny)
    yield _uniform(tiny)
    yield _embedding(tiny)
    yield _norm_affine(tiny)


def _images(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: str) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)


def _shrunk(shape: tuple[int, ...], tiny: bool) -> tuple[int, ...]:
    return (2, 32, 4, 4) if tiny else shape


def _word(layout: torch.memory_format) -> str:
    return "channels_last" if layout is LAST else "NCHW"


def _group_norm(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, backward: bool, tiny: bool
) -> Case:
    def make(device: str) -> Args:
        x = _images(_shrunk(shape, tiny), dtype, layout, device)
        n, c = x.shape[:2]
        weight, bias = torch.randn(c, device=device).to(dtype) * 0.5 + 1, torch.randn(c, device=device).to(dtype)
        scale, shift = torch.randn(n, 2 * c, device=device).to(dtype).chunk(2, dim=1)
        return x, 32, weight, bias, 1e-5, scale, shift, "silu"

    return Case(ops.REGISTRY["group_norm_silu"], f"{name} {_word(layout)}", dtype, make, backward, layout)


def _film(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, backward: bool, tiny: bool) -> Case:
    def make(device: str) -> Args:
        x = _images(_shrunk(shape, tiny), dtype, layout, device)
        return x, *torch.randn(x.shape[0], 2 * x.shape[1], device=device).to(dtype).chunk(2, dim=1), "silu"

    return Case(ops.REGISTRY["film"], f"{'x'.join(map(str, shape))} {_word(layout)}", dtype, make, backward, layout)


def _attention(n: int, heads: int, length: int, d: int, dtype: torch.dtype, backward: bool, tiny: bool) -> Case:
    shape = (2, 2, 24, 16) if tiny else (n, heads, length, d)
    products = 5 if backward else 2  # of queries by keys by head size; backward makes the logits again
    flops = products * 2 * shape[0] * shape[1] * shape[2] ** 2 * shape[3]

    def make(device: str) -> Args:
        return *(torch.randn(shape, device=device, dtype=dtype) for _ in "qkv"), None, shape[3] ** -0.5

    name = f"{n}x{heads} heads of {d}, length {length}"
    return Case(ops.REGISTRY["attention"], name, dtype, make, backward, flops=flops)


def _convolution(n: int, inputs: int, outputs: int, size: int, kernel: int, dtype: torch.dtype, tiny: bool) -> Case:
    """As in the middle of a residual block: norm and SiLU before it, bias and shortcut behind, the next norm's statistics."""
    name = f"{n}x{inputs}x{size}x{size} to {outputs}, {kernel}x{kernel} channels_last"
    if tiny:
        n, inputs, outputs, size = 2, 32, 40, 4
    flops = 2 * n * size * size * inputs * outputs * kernel * kernel

    def make(device: str) -> Args:
        x = _images((n, inputs, size, size), dtype, LAST, device)
        weight = (torch.randn(outputs, inputs, kernel, kernel, device=device) / 4).to(dtype)
        a, b = torch.randn(n, 2 * inputs, device=device).chunk(2, dim=1)
        residual = _images((n, outputs, size, size), dtype, LAST, device)
        packed = ops.pack_conv_weight(weight, gains_by_winograd(weight, 1))
        pad = [kernel // 2] * 4
        return (
            x,
            None,
            weight,
            packed,
            a + 1,
            b,
            "silu",
            torch.randn(outputs, device=device),
            residual,
            "none",
            1,
            pad,
            False,
            True,
        )

    return Case(ops.REGISTRY["conv2d_fused"], name, dtype, make, layout=LAST, flops=flops)


def _norm_affine(tiny: bool) -> Case:
    """The statistics of 128 channels of 64x64 pixels."""

    def make(device: str) -> Args:
        n, c, parts = (2, 32, 3) if tiny else (64, 128, 32)
        mean, square = torch.randn(2, n, c, parts, device=device)
        partials = torch.stack((torch.full_like(mean, 128.0), mean, 128 * square.square() + 1), -1)
        (weight, bias), (scale, shift) = torch.randn(2, c, device=device), torch.randn(2, n, c, device=device)
        return partials, None, 32, weight, bias, 1e-5, scale, shift

    return Case(ops.REGISTRY["norm_affine"], "64x128 channels in 32 parts", FP32, make)


def _noisy(tiny: bool, device: str) -> tuple[tuple[int, ...], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shape, seeds, step and timesteps of a batch."""
    shape = (2, 4, 6, 6) if tiny else (256, 4, 128, 128)
    n = shape[0]
    t = torch.arange(n, device=device) * 7 % 1000
    return shape, ops.image_seeds(3, n, device), torch.tensor(5, device=device), t


def _step(name: str, dtype: torch.dtype, tiny: bool) -> Case:
    def make(device: str) -> Args:
        shape, seeds, step, t = _noisy(tiny, device)
        x, m = (torch.randn(shape, device=device, dtype=dtype) for _ in "xm")
        last = (seeds, step, int(Purpose.SAMPLER_STEP))
        if name == "ddpm_step":
            return x, m, t, torch.rand(1000, 5, device=device) + 0.1, 1.0, *last
        return x, m, None, torch.rand(6, device=device) + 0.1, 1.0, *last

    return Case(ops.REGISTRY[name], "256x4x128x128", dtype, make, layout=FIRST)


def _q_sample(dtype: torch.dtype, tiny: bool) -> Case:
    def make(device: str) -> Args:
        shape, seeds, step, t = _noisy(tiny, device)
        signal, sigma = (torch.rand(1000, device=device) for _ in "ab")
        x0 = torch.randn(shape, device=device, dtype=dtype)
        return x0, t, signal, sigma, None, seeds, step, int(Purpose.TRAINING_NOISE)

    return Case(ops.REGISTRY["q_sample"], "256x4x128x128", dtype, make, layout=FIRST)


def _normal(tiny: bool) -> Case:
    def make(device: str) -> Args:
        shape, seeds, step, _ = _noisy(tiny, device)
        return list(shape), seeds, step, 0

    return Case(ops.REGISTRY["philox_normal"], "256x4x128x128", FP32, make)


def _uniform(tiny: bool) -> Case:
    def make(device: str) -> Args:
        count = 100 if tiny else 1 << 22
        return torch.randint(2**62, (count,), device=device), torch.tensor(5, device=device), 4

    return Case(ops.REGISTRY["philox_uniform"], "4194304 seeds", torch.float64, make)


def _embedding(tiny: bool) -> Case:
    def make(device: str) -> Args:
        return torch.randint(1000, (8 if tiny else 1 << 17,), device=device), 16 if tiny else 256, 10000.0

    return Case(ops.REGISTRY["timestep_embedding"], "131072 of 256", FP32, make)
