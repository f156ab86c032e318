"""Forward noising, with the noise made in the op.

    x_t[n] = signal[t[n]] * x0[n] + sigma[t[n]] * noise[n]        signal = sqrt(abar), sigma = sqrt(1 - abar)

Shapes: x0 [N, ...], floating; t int [N] or [1]; signal, sigma float32 [T]. The noise is the given one, or that of
`philox_normal` for (seeds, step, purpose). The op returns (x_t, noise) in x0's dtype; where the noise was given, an empty
tensor in its place. A timestep out of range gives NaN for that image. Differentiable for x0 and a given noise.
Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equation 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._checks import check_floating, check_like, check_tensor, check_timesteps
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, laid_out_like
from .philox_normal import Purpose, check_noise
from .philox_normal import _op as _philox_normal

Maybe = torch.Tensor | None


def gather_rows(table: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Rows of the table [T, ...] at timesteps t; NaN where t is out of range."""
    inside = ((t >= 0) & (t < table.shape[0])).reshape(-1, *(1,) * (table.dim() - 1))
    rows = table[t.clamp(0, table.shape[0] - 1)]
    return torch.where(inside, rows, torch.full_like(rows, torch.nan))


def _per_image(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return v.to(compute_dtype(x)).reshape(-1, *(1,) * (x.dim() - 1))


def reference(
    x0: torch.Tensor,
    t: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: Maybe,
    seeds: Maybe,
    step: Maybe,
    purpose: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (_per_image(gather_rows(table, t), x0) for table in (signal, sigma))
    made = noise is None
    if made:
        noise = _philox_normal.overload(x0.shape, seeds, step, purpose)
    xt = a * x0.to(a.dtype) + b * noise.to(a.dtype)
    returned = laid_out_like(noise.to(x0.dtype), x0) if made else x0.new_empty(0)
    return laid_out_like(xt.to(x0.dtype), x0), returned


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    signal = torch.linspace(1, 0, 10, dtype=torch.float64).sqrt().to(device, torch.float32)
    sigma = torch.linspace(0, 1, 10, dtype=torch.float64).sqrt().to(device, torch.float32)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def make(name: str, x0: torch.Tensor, given: bool = False, t: list[int] | None = None, **kind: bool) -> Sample:
        n = x0.shape[0]
        steps = torch.tensor(t if t is not None else [(3 * i) % 10 for i in range(n)], dtype=torch.int64, device=device)
        noise = normal(*x0.shape) if given else None
        seeds, step = (None, None) if given else (torch.arange(n, device=device), torch.tensor(5, device=device))
        return Sample(name, (x0, steps, signal, sigma, noise, seeds, step, int(Purpose.TRAINING_NOISE)), **kind)

    yield make("tiny", normal(2, 2, 2, 2), given=True, tiny=True)
    yield make("tiny own noise", normal(2, 1, 3), tiny=True)
    yield make("images", normal(4, 3, 8, 8))
    yield make("given noise", normal(4, 3, 7, 5), given=True)
    yield make("channels_last", normal(3, 3, 6, 5).contiguous(memory_format=torch.channels_last))
    yield make("one timestep for all", normal(3, 1, 9, 9), t=[9])
    yield make("ends", normal(2, 1, 4, 4), t=[0, 9])
    yield make("video", normal(2, 3, 2, 4, 4))
    yield make("video channels_last", normal(2, 3, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d))
    yield make("sliced", normal(4, 5, 6, 10)[:, 1:4, :, ::2])
    yield make("expanded", normal(1, 3, 1, 6).expand(3, 3, 4, 6))
    yield make("more channels than a tile", normal(1, 80, 9, 9).contiguous(memory_format=torch.channels_last))
    yield make("vectors", normal(3, 70))
    yield make("one value per image", normal(5))
    yield make("no images", normal(0, 3, 4, 4))
    yield make("no pixels", normal(2, 3, 0, 4))
    yield make("large", normal(64, 3, 32, 32), large=True)
    yield make("large channels_last", normal(64, 3, 32, 32).contiguous(memory_format=torch.channels_last), large=True)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, t, signal, sigma, noise, *_ = inputs
    ctx.given = noise is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(t, signal, sigma)


def _autograd(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Maybe, ...]:
    t, signal, sigma = ctx.saved_tensors
    wide = grad.to(compute_dtype(grad))
    dx0, dnoise = ((wide * _per_image(gather_rows(table, t), grad)).to(grad.dtype) for table in (signal, sigma))
    return dx0, None, None, None, dnoise if ctx.given else None, None, None, None


_op = define(
    "q_sample(Tensor x0, Tensor t, Tensor signal, Tensor sigma, Tensor? noise, Tensor? seeds, Tensor? step, int purpose)"
    " -> (Tensor, Tensor)",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
    backward=_autograd,
    setup_context=_setup_context,
)


def q_sample(
    x0: torch.Tensor,
    t: torch.Tensor,
    signal: torch.Tensor,
    sigma: torch.Tensor,
    noise: Maybe = None,
    *,
    seeds: Maybe = None,
    step: int | torch.Tensor = 0,
    purpose: int = Purpose.TRAINING_NOISE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_t, noise) with x_t = signal[t] * x0 + sigma[t] * noise. Differentiable for x0 and a given noise.

    x0: [N, ...], floating. t: int64 or int32 [N] or [1], in 0..T-1. signal, sigma: float32 [T], sqrt(abar) and sqrt(1 - abar).
    noise: like x0; or else it is made from seeds (int64 [N]), step and purpose, see `philox_normal`.
    Raises TypeError or ValueError naming the argument; timesteps are range-checked on the CPU, and on CUDA one that is out of
    range gives NaN for that image, since a check would synchronise.
    """
    check_tensor("x0", x0)
    check_floating("x0", x0)
    if x0.dim() < 1:
        raise ValueError("x0 must be [N, ...], got a scalar")
    for name, table in (("signal", signal), ("sigma", sigma)):
        check_table(name, table, x0)
    if signal.shape != sigma.shape or signal.dim() != 1:
        raise ValueError(f"signal and sigma must have one shape [T], got {tuple(signal.shape)} and {tuple(sigma.shape)}")
    check_timesteps("t", t, x0.shape[0], signal.shape[0], x0)
    if noise is not None:
        check_like("noise", noise, x0)
        return _op(x0, t, signal, sigma, noise, None, None, int(purpose))[0], noise
    if seeds is None:
        raise ValueError("noise or seeds must be given")
    seeds, step = check_noise(seeds, step, purpose, x0.shape[0])
    return _op(x0, t, signal, sigma, None, seeds, step, int(purpose))


def check_table(name: str, table: torch.Tensor, x: torch.Tensor) -> None:
    """A float32 coefficient table on x's device."""
    check_tensor(name, table)
    if table.dtype is not torch.float32:
        raise TypeError(f"{name} must be float32, got {table.dtype}")
    if table.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {table.device}")
