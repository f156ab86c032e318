"""One reverse step of DDPM: x0 from the network's output, clipped; posterior mean; noise made in the op.

    x0       = clamp(k0 x_t + k1 m, -clip, clip)            m: the network's output (eps, x0 or v: k0 and k1 say which)
    x_{t-1}  = k2 x0 + k3 x_t + k4 noise                    posterior mean and standard deviation

with the five coefficients in row t[n] of a float32 table [T, 5], so images of one batch may be at different timesteps. A
timestep out of range gives NaN for that image. k4 is 0 where t = 0.
Shapes: x, m [N, ...] alike, floating; t int [N] or [1]; seeds int64 [N], see `philox_normal`. Returns x_{t-1} in x's dtype.
Differentiable for x and m.
Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equations 6, 7 and 15, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ._checks import check_timesteps
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import laid_out_like
from .philox_normal import Purpose, check_noise
from .q_sample import check_table, gather_rows
from .sampler_step import _samples as _step_samples
from .sampler_step import check_step, columns, make_noise, predict_x0


def reference(
    x: torch.Tensor,
    m: torch.Tensor,
    t: torch.Tensor,
    table: torch.Tensor,
    clip: float,
    seeds: torch.Tensor,
    step: torch.Tensor,
    purpose: int,
) -> torch.Tensor:
    k = columns(gather_rows(table, t), x)
    x0 = predict_x0(x, m, k, clip)
    after = k[2] * x0 + k[3] * x.to(x0.dtype) + k[4] * make_noise(x, seeds, step, purpose)
    return laid_out_like(after.to(x.dtype), x)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    table = torch.linspace(-0.9, 1.1, 50, device=device).reshape(10, 5)
    for sample in _step_samples(dtype, device):
        x, m, _, _, clip, seeds, _, purpose = sample.args
        n = x.shape[0]
        seeds = torch.arange(n, device=device) if seeds is None else seeds
        t = torch.tensor([(3 * i) % 10 for i in range(n)], dtype=torch.int64, device=device)
        args = (x, m, t, table, clip, seeds, torch.tensor(4, device=device), purpose)
        yield Sample(sample.name, args, tiny=sample.tiny, large=sample.large)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, m, t, table, ctx.clip, *_ = inputs
    ctx.save_for_backward(x, m, t, table)


def _autograd(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, m, t, table = ctx.saved_tensors
    k = columns(gather_rows(table, t), x)
    grad = grad.to(k[0].dtype)
    free = (k[0] * x.to(grad.dtype) + k[1] * m.to(grad.dtype)).abs() <= ctx.clip  # the clamp passes no gradient outside
    d = k[2] * grad * free
    return (k[0] * d + k[3] * grad).to(x.dtype), (k[1] * d).to(x.dtype), None, None, None, None, None, None


_op = define(
    "ddpm_step(Tensor x, Tensor m, Tensor t, Tensor table, float clip, Tensor seeds, Tensor step, int purpose) -> Tensor",
    reference,
    samples=_samples,
    native=NATIVE_FLOATS,
    backward=_autograd,
    setup_context=_setup_context,
)


def ddpm_step(
    x: torch.Tensor,
    m: torch.Tensor,
    t: torch.Tensor,
    table: torch.Tensor,
    *,
    seeds: torch.Tensor,
    step: int | torch.Tensor = 0,
    purpose: int = Purpose.SAMPLER_STEP,
    clip: float | None = None,
) -> torch.Tensor:
    """x_{t-1} from x_t and the network's output m. Differentiable for x and m.

    x, m: [N, ...] alike, floating. t: int64 or int32 [N] or [1], in 0..T-1. table: float32 [T, 5], the rows (k0 .. k4) of
    `NoiseScheduler.ddpm_table`. seeds: int64 [N], with step and purpose as in `philox_normal`. clip: x0 is clamped to
    [-clip, clip]; None does not clamp.
    Raises TypeError or ValueError naming the argument; timesteps are range-checked on the CPU, and on CUDA one that is out of
    range gives NaN for that image, since a check would synchronise.
    """
    clip = check_step(x, m, clip)
    check_table("table", table, x)
    if table.dim() != 2 or table.shape[1] != 5:
        raise ValueError(f"table must have shape [T, 5], got {tuple(table.shape)}")
    check_timesteps("t", t, x.shape[0], table.shape[0], x)
    seeds, step = check_noise(seeds, step, purpose, x.shape[0])
    return _op(x, m, t, table, clip, seeds, step, int(purpose))
