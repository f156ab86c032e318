"""The general linear step of a diffusion sampler, with the noise made in the op.

    x0   = clamp(k0 x + k1 m, -clip, clip)                  m: the network's output (eps, x0 or v: k0 and k1 say which)
    next = k2 x0 + k3 x + k4 noise + k5 previous            previous: a multistep solver's last x0

DDPM, DDIM, Euler, Heun, DPM-Solver++ and UniPC steps are all of this form; coefficients come from the host in float64, once
per run, and are stored as float32 [6], or [N, 6] where images differ.
Shapes: x, m, previous [N, ...] alike, floating. Noise is that of `philox_normal` for (seeds, step, purpose); without seeds
there is none. clip = inf does not clip. Returns (next, x0) in x's dtype. Differentiable for x, m and previous.
Source: Song et al. 2021, "Denoising Diffusion Implicit Models", equation 12, is the two-term case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from ._checks import check_floating, check_like, check_tensor
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, laid_out_like
from .philox_normal import Purpose, check_noise
from .philox_normal import _op as _philox_normal
from .q_sample import check_table

Maybe = torch.Tensor | None


def columns(coefficients: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Coefficients [K] or [N, K] as K factors that broadcast over x [N, ...]."""
    rows = coefficients.to(compute_dtype(x)).reshape(-1, coefficients.shape[-1])
    return tuple(column.reshape(-1, *(1,) * (x.dim() - 1)) for column in rows.unbind(1))


def predict_x0(x: torch.Tensor, m: torch.Tensor, k: tuple[torch.Tensor, ...], clip: float) -> torch.Tensor:
    return (k[0] * x.to(k[0].dtype) + k[1] * m.to(k[0].dtype)).clamp(-clip, clip)


def make_noise(x: torch.Tensor, seeds: Maybe, step: Maybe, purpose: int) -> torch.Tensor | float:
    if seeds is None:
        return 0.0
    return _philox_normal.overload(x.shape, seeds, step, purpose).to(compute_dtype(x))


def reference(
    x: torch.Tensor,
    m: torch.Tensor,
    previous: Maybe,
    coefficients: torch.Tensor,
    clip: float,
    seeds: Maybe,
    step: Maybe,
    purpose: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    k = columns(coefficients, x)
    x0 = predict_x0(x, m, k, clip)
    after = k[2] * x0 + k[3] * x.to(x0.dtype) + k[4] * make_noise(x, seeds, step, purpose)
    if previous is not None:
        after = after + k[5] * previous.to(x0.dtype)
    return laid_out_like(after.to(x.dtype), x), laid_out_like(x0.to(x.dtype), x)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def make(
        name: str, x: torch.Tensor, clip: float = 1.0, noise: bool = True, previous: bool = False, rows: bool = False,
        **kind: bool,
    ) -> Sample:  # fmt: skip
        n = x.shape[0]
        coefficients = torch.tensor([1.1, -0.4, 0.6, 0.5, 0.3, -0.2], device=device)
        if rows:
            coefficients = coefficients * torch.linspace(0.5, 1.0, n, device=device)[:, None]
        seeds, step = (torch.arange(n, device=device), torch.tensor(3, device=device)) if noise else (None, None)
        args = (x, normal(*x.shape), normal(*x.shape) if previous else None, coefficients, clip, seeds, step)
        return Sample(name, (*args, int(Purpose.SAMPLER_STEP)), **kind)

    yield make("tiny", normal(2, 2, 2, 2), clip=0.7, previous=True, tiny=True)
    yield make("images", normal(4, 3, 8, 8))
    yield make("not clipped, deterministic", normal(4, 3, 7, 5), clip=math.inf, noise=False)
    yield make("a row per image, multistep", normal(3, 1, 9, 9), previous=True, rows=True)
    yield make("channels_last", normal(3, 3, 6, 5).contiguous(memory_format=torch.channels_last))
    yield make("video", normal(2, 3, 2, 4, 4))
    yield make("video channels_last", normal(2, 3, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d))
    yield make("sliced", normal(4, 5, 6, 10)[:, 1:4, :, ::2], previous=True)
    yield make("expanded", normal(1, 3, 1, 6).expand(3, 3, 4, 6))
    yield make("more channels than a tile", normal(1, 80, 9, 9).contiguous(memory_format=torch.channels_last), previous=True)
    yield make("vectors", normal(3, 70), rows=True)
    yield make("one value per image", normal(5))
    yield make("no images", normal(0, 3, 4, 4))
    yield make("no pixels", normal(2, 3, 0, 4))
    yield make("large", normal(64, 3, 32, 32), large=True)
    yield make("large channels_last", normal(64, 3, 32, 32).contiguous(memory_format=torch.channels_last), large=True)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, m, previous, coefficients, ctx.clip, *_ = inputs
    ctx.multistep = previous is not None
    ctx.save_for_backward(x, m, coefficients)


def _autograd(ctx: Any, dnext: torch.Tensor, dx0: torch.Tensor) -> tuple[Maybe, ...]:
    x, m, coefficients = ctx.saved_tensors
    k = columns(coefficients, x)
    dnext = dnext.to(k[0].dtype)
    free = (k[0] * x.to(k[0].dtype) + k[1] * m.to(k[0].dtype)).abs() <= ctx.clip  # the clamp passes no gradient outside
    d = (k[2] * dnext + dx0.to(k[0].dtype)) * free
    dx, dm = k[0] * d + k[3] * dnext, k[1] * d
    dprevious = (k[5] * dnext).to(x.dtype) if ctx.multistep else None
    return dx.to(x.dtype), dm.to(x.dtype), dprevious, None, None, None, None, None


_op = define(
    "sampler_step(Tensor x, Tensor m, Tensor? previous, Tensor coefficients, float clip, Tensor? seeds, Tensor? step, "
    "int purpose) -> (Tensor, Tensor)",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
    backward=_autograd,
    setup_context=_setup_context,
)


def sampler_step(
    x: torch.Tensor,
    m: torch.Tensor,
    coefficients: torch.Tensor,
    previous: Maybe = None,
    *,
    clip: float | None = None,
    seeds: Maybe = None,
    step: int | torch.Tensor = 0,
    purpose: int = Purpose.SAMPLER_STEP,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(next, x0): x0 = clamp(k0 x + k1 m), next = k2 x0 + k3 x + k4 noise + k5 previous. Differentiable.

    x, m, previous: [N, ...] alike, floating; m is the network's output, previous a multistep solver's last x0 or None.
    coefficients: float32 [6] or [N, 6]. clip: x0 is clamped to [-clip, clip]; None does not clamp.
    seeds: int64 [N], with step and purpose as in `philox_normal`; None for a deterministic step.
    Raises TypeError or ValueError naming the argument.
    """
    clip = check_step(x, m, clip)
    check_coefficients(coefficients, 6, x)
    if previous is not None:
        check_like("previous", previous, x)
    if seeds is not None:
        seeds, step = check_noise(seeds, step, purpose, x.shape[0])
    return _op(x, m, previous, coefficients, clip, seeds, None if seeds is None else step, int(purpose))


def check_step(x: torch.Tensor, m: torch.Tensor, clip: float | None) -> float:
    """Check what all steps share; clip as a float, inf for None."""
    check_tensor("x", x)
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x must be [N, ...], got a scalar")
    check_like("m", m, x)
    if clip is None:
        return math.inf
    if not clip > 0:
        raise ValueError(f"clip must be above 0 or None, got {clip}")
    return float(clip)


def check_coefficients(coefficients: torch.Tensor, count: int, x: torch.Tensor) -> None:
    check_table("coefficients", coefficients, x)
    if coefficients.shape not in ((count,), (x.shape[0], count)):
        raise ValueError(f"coefficients must have shape ({count},) or ({x.shape[0]}, {count}), got {tuple(coefficients.shape)}")
