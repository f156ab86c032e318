"""Which noise levels a sampler visits: as timesteps, whole ones of the schedule or between them.

sigma = sqrt((1 - abar) / abar) is the noise over the signal, the sigma of Karras et al. 2022. Between whole timesteps log
sigma is linear in t, so a network that embeds its timestep is asked between those that it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fastdiff.diffusion.betas import karras_sigmas

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

SPACINGS = ("leading", "linspace", "trailing", "karras")
SIGMA_MAX = 80.0  # Karras et al. 2022, table 1: above it an image is noise to the eye and to the network


def choose_timesteps(scheduler: NoiseScheduler, steps: int | None = None, spacing: str = "leading") -> list[float]:
    """Timesteps of a run, strictly decreasing: all of the schedule by default, or `steps` of them in this spacing.

    spacing: see `spaced_timesteps`, or 'karras' for `karras_timesteps`. Raises ValueError as they do.
    """
    steps = scheduler.timesteps if steps is None else steps
    if spacing == "karras":
        return karras_timesteps(scheduler, steps)
    return spaced_timesteps(scheduler.timesteps, steps, spacing)


def spaced_timesteps(timesteps: int, steps: int, spacing: str = "leading") -> list[float]:
    """`steps` distinct whole timesteps of 0..timesteps-1, strictly decreasing. Lin et al. 2023, table 2.

    'leading' is floor(k T / n) and ends at 0, but starts the further below T-1 the fewer the steps; 'linspace' takes in
    both ends; 'trailing' starts at T-1, as a few steps and zero terminal SNR ask for. All T steps are the same in each.
    Raises ValueError unless 1 <= steps <= timesteps and the spacing is one of the three.
    """
    _check_steps(steps, timesteps)
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


def karras_timesteps(scheduler: NoiseScheduler, steps: int, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> list[float]:
    """Timesteps with the noise levels of Karras et al. 2022, equation 5: dense where there is little noise.

    From the schedule's largest sigma, or sigma_max where that is less, down to the sigma of timestep 0.
    Raises ValueError unless 1 <= steps <= T and rho > 0.
    """
    _check_steps(steps, scheduler.timesteps)
    low, high = float(_sigmas(scheduler)[0]), largest_sigma(scheduler)
    levels = karras_sigmas(steps, low, min(high, max(sigma_max, low)), rho)[:-1]
    return timesteps_at(scheduler, levels).tolist()


def abar_at(scheduler: NoiseScheduler, timesteps: Sequence[float]) -> torch.Tensor:
    """abar float64 [K] at timesteps in 0..T-1."""
    t = torch.tensor(list(timesteps), dtype=torch.float64, device="cpu")
    below, above = t.floor().long(), t.ceil().long()
    exact = scheduler.exact["alphas_cumprod"]
    log_sigma = _sigmas(scheduler).log()
    between = torch.lerp(log_sigma[below], log_sigma[above], t - below)
    return torch.where(below == above, exact[below], 1 / (1 + (2 * between).exp()))


def timesteps_at(scheduler: NoiseScheduler, sigmas: torch.Tensor) -> torch.Tensor:
    """Timesteps float64 [K] at which the noise is sigma [K]; `abar_at` is the way back.

    A sigma beyond the schedule's is held at its ends, where the upper end is the last timestep with any signal.
    """
    table = _sigmas(scheduler).log()
    table = table[table.isfinite()]
    if len(table) == 1:
        return torch.zeros_like(sigmas)
    wanted = sigmas.log().clamp(table[0], table[-1])
    above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
    return above - (table[above] - wanted) / (table[above] - table[above - 1])


def largest_sigma(scheduler: NoiseScheduler) -> float:
    """Of the last timestep that has any signal."""
    sigmas = _sigmas(scheduler)
    return float(sigmas[sigmas.isfinite()][-1])


def _sigmas(scheduler: NoiseScheduler) -> torch.Tensor:
    abar = scheduler.exact["alphas_cumprod"]
    return ((1 - abar) / abar).sqrt()


def _check_steps(steps: int, timesteps: int) -> None:
    if not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if not 1 <= steps <= timesteps:
        raise ValueError(f"steps must be in 1..{timesteps}, the number of timesteps, got {steps}")
