"""Sinusoidal timestep embedding.

    e[n] = [sin(t[n] f), cos(t[n] f)],   f[i] = exp(-ln(max_period) i / (dim / 2)),   i = 0 .. dim/2 - 1

so index 0 is the highest frequency, 1, and the last is close to 1 / max_period.
Shapes: t [N], integer or floating; float32 [N, dim]. The angle is taken in float64: at t = 1000 a float32 angle is off by 1e-4.
Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with sines and cosines side by side as in Ho et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ._checks import check_tensor
from ._define import NATIVE_FLOATS, Sample, define


def reference(t: torch.Tensor, dim: int, max_period: float) -> torch.Tensor:
    index = torch.arange(dim // 2, dtype=torch.float64, device=t.device)
    frequency = torch.exp(index * (-2 * math.log(max_period) / dim))
    angle = t.to(torch.float64)[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1).to(torch.float32)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    yield Sample("fractions", (torch.linspace(0, 999, 7).to(device, dtype), 64, 10000.0))
    if dtype is torch.float32:  # integer timesteps are sampled once, not once per float dtype
        yield Sample("integers", (torch.tensor([0, 1, 500, 999], device=device), 256, 10000.0))
        yield Sample("int32, smallest dim", (torch.tensor([3], dtype=torch.int32, device=device), 2, 10000.0))
        yield Sample("none", (torch.zeros(0, dtype=torch.int64, device=device), 8, 10000.0))
        yield Sample("large", (torch.arange(128, device=device), 256, 10000.0), large=True)


_op = define(
    "timestep_embedding(Tensor t, int dim, float max_period) -> Tensor",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
)


def timestep_embedding(t: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """[sin, cos] of t at dim/2 frequencies from 1 down to about 1/max_period; float32 [N, dim].

    t: [N], integer or floating, in timesteps. dim: even, at least 2. max_period: above 1.
    Raises TypeError or ValueError naming the argument.
    """
    check_tensor("t", t)
    if t.dim() != 1:
        raise ValueError(f"t must have shape [N], got {tuple(t.shape)}")
    if t.dtype is torch.bool or t.dtype.is_complex:
        raise TypeError(f"t must be integer or floating, got {t.dtype}")
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2, got {dim}")
    if not max_period > 1:
        raise ValueError(f"max_period must be above 1, got {max_period}")
    return _op(t, dim, float(max_period))
