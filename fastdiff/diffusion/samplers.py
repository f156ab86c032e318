"""Samplers as tables: each is a pure function that gives the timesteps to visit and one row of coefficients per step.

Row k, float64, holds the six coefficients of `ops.sampler_step` for the step from timesteps[k] to timesteps[k + 1], the
last to the image itself (abar = 1):

    x0   = k0 x + k1 m                                      m: the network's output at timesteps[k]
    next = k2 x0 + k3 x + k4 noise + k5 previous x0

Everything is computed once, on the host; `loop.run_sampler` runs any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from fastdiff.diffusion.prediction import x0_coefficients

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

SPACINGS = ("leading", "linspace", "trailing")
VARIANCES = ("fixed_small", "fixed_large")

Steps = tuple[list[int], torch.Tensor]


def spaced_timesteps(timesteps: int, steps: int, spacing: str = "leading") -> list[int]:
    """`steps` distinct timesteps of 0..timesteps-1, strictly decreasing. Lin et al. 2023, table 2.

    'leading' is floor(k T / n) and ends at 0, but starts the further below T-1 the fewer the steps; 'linspace' takes in
    both ends; 'trailing' starts at T-1, as a few steps and zero terminal SNR ask for. All T steps are the same in each.
    Raises ValueError unless 1 <= steps <= timesteps and the spacing is one of the three.
    """
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be in 1..{timesteps}, the number of timesteps, got {steps}")
    # In integers: rounded floats can coincide.
    if spacing == "leading":
        return [k * timesteps // steps for k in reversed(range(steps))]
    if spacing == "trailing":
        return [(2 * timesteps * k + steps) // (2 * steps) - 1 for k in range(steps, 0, -1)]
    if spacing == "linspace":
        if steps == 1:
            return [timesteps - 1]
        gaps = steps - 1
        return [(2 * k * (timesteps - 1) + gaps) // (2 * gaps) for k in reversed(range(steps))]
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def ddpm(scheduler: NoiseScheduler, timesteps: Sequence[int], prediction: str = "eps", variance: str = "fixed_small") -> Steps:
    """Ancestral sampling from the posterior q(x_s | x_t, x_0). Ho et al. 2020, equations 6 and 7, algorithm 2.

    Works for any strictly decreasing timesteps t > s: alpha_t = abar_t / abar_s takes the place of the one-step alpha.
    variance: of the noise, 'fixed_small' (the posterior's) or 'fixed_large' (beta); the last step adds none.
    Raises ValueError for an argument out of range.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    t, s = _abar_before_and_after(scheduler, timesteps)
    alpha = t / s
    beta = 1 - alpha
    sigma2 = beta * (1 - s) / (1 - t) if variance == "fixed_small" else beta * (s < 1)
    of_x0 = s.sqrt() * beta / (1 - t)
    of_x = alpha.sqrt() * (1 - s) / (1 - t)
    return list(timesteps), _rows(*x0_coefficients(prediction, t), of_x0, of_x, sigma2.sqrt())


def ddim(scheduler: NoiseScheduler, timesteps: Sequence[int], prediction: str = "eps", eta: float = 0.0) -> Steps:
    """Non-Markovian sampling, deterministic for eta = 0, DDPM for eta = 1. Song et al. 2021, equations 12 and 16.

    The noise direction is (x - sqrt(abar_t) x0) / sqrt(1 - abar_t), so it agrees with x0 where that is clipped.
    Raises ValueError for an argument out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")
    t, s = _abar_before_and_after(scheduler, timesteps)
    sigma2 = eta**2 * (1 - s) / (1 - t) * (1 - t / s)
    direction = ((1 - s - sigma2).clamp(min=0) / (1 - t)).sqrt()
    of_x0 = s.sqrt() - direction * t.sqrt()
    return list(timesteps), _rows(*x0_coefficients(prediction, t), of_x0, direction, sigma2.sqrt())


SAMPLERS: dict[str, Callable[..., Steps]] = {"ddpm": ddpm, "ddim": ddim}


def _abar_before_and_after(scheduler: NoiseScheduler, timesteps: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """abar float64 [K] at each timestep and at the one that follows it, 1 after the last."""
    steps = torch.tensor(list(timesteps), dtype=torch.int64, device="cpu")
    if not len(steps) or not 0 <= steps[-1] <= steps[0] < scheduler.timesteps or (steps.diff() >= 0).any():
        raise ValueError(f"timesteps must fall strictly within 0..{scheduler.timesteps - 1}, got {list(timesteps)}")
    abar = scheduler.exact["alphas_cumprod"][steps]
    return abar, torch.cat([abar[1:], abar.new_ones(1)])


def _rows(*columns: torch.Tensor) -> torch.Tensor:
    """Columns k0..k4 as rows [K, 6]; k5 is 0 where a sampler has no memory."""
    return torch.stack([*columns, torch.zeros_like(columns[0])], dim=1)
