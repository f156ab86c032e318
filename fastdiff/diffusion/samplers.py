"""Samplers as tables: each is a pure function of a schedule, timesteps and a prediction that gives `Steps` (`steps.py`).

Everything is computed once, in float64 on the host; `loop.run_sampler` runs any of them. SAMPLERS is the registry: what stands
there is known to `sample`, to the configuration and to the command line.

In x = sqrt(abar) x_EDM some samplers of different papers are one and the same step: `euler` without churn is `ddim`, and
`euler_ancestral`, like `ddim` with eta = 1, is `ddpm`. They differ in the noise levels that their papers visit (`levels.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastdiff.diffusion.levels import abar_at, largest_sigma, timesteps_at
from fastdiff.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from fastdiff.diffusion.steps import Steps, levels_of, make_steps

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

VARIANCES = ("fixed_small", "fixed_large")


def ddpm(
    scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps", variance: str = "fixed_small"
) -> Steps:
    """Ancestral sampling from the posterior q(x_s | x_t, x_0). Ho et al. 2020, equations 6 and 7, algorithm 2.

    Works for any strictly decreasing timesteps t > s: alpha_t = abar_t / abar_s takes the place of the one-step alpha.
    variance: of the noise, 'fixed_small' (the posterior's) or 'fixed_large' (beta); the last step adds none.
    Raises ValueError for an argument out of range.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    level = levels_of(scheduler, timesteps)
    alpha = (level.signal / level.next_signal) ** 2
    beta, left = 1 - alpha, (level.next_noise / level.noise) ** 2
    sigma2 = beta * left if variance == "fixed_small" else beta * (left > 0)
    of_x0 = level.next_signal * beta / level.noise**2
    return make_steps(timesteps, prediction, level.abar, of_x0, alpha.sqrt() * left, sigma2.sqrt())


def ddim(scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps", eta: float = 0.0) -> Steps:
    """Non-Markovian sampling, deterministic for eta = 0, DDPM for eta = 1. Song et al. 2021, equations 12 and 16.

    The noise direction is (x - sqrt(abar_t) x0) / sqrt(1 - abar_t), so it agrees with x0 where that is clipped.
    Raises ValueError for an argument out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")
    level = levels_of(scheduler, timesteps)
    sigma = eta * level.next_noise * (1 - level.ratio**2).sqrt()
    direction = (level.next_noise**2 - sigma**2).clamp(min=0).sqrt() / level.noise
    return make_steps(timesteps, prediction, level.abar, level.next_signal - direction * level.signal, direction, sigma)


def euler_ancestral(scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps", eta: float = 1.0) -> Steps:
    """Euler's step in sigma down to sigma_down, then fresh noise of spread sigma_up; eta scales sigma_up.

    sigma_up^2 = eta^2 sigma_next^2 (1 - sigma_next^2 / sigma^2), sigma_down^2 = sigma_next^2 - sigma_up^2, which is `ddim`
    with this eta. Song et al. 2021, "Score-Based Generative Modeling", appendix F, for eta = 1.
    """
    return ddim(scheduler, timesteps, prediction, eta)


def euler(
    scheduler: NoiseScheduler,
    timesteps: Sequence[float],
    prediction: str = "eps",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Steps:
    """Euler's method in sigma. Karras et al. 2022, algorithm 2 without its second half; for churn see `heun`."""
    return _stochastic(scheduler, timesteps, prediction, False, churn, churn_min, churn_max, churn_noise)


def heun(
    scheduler: NoiseScheduler,
    timesteps: Sequence[float],
    prediction: str = "eps",
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Steps:
    """Heun's method in sigma, of second order: two evaluations per step, one in the last. Karras et al. 2022, algorithm 2.

    churn: S_churn. Before each step from sigma the noise is raised to sigma (1 + min(churn / K, sqrt(2) - 1)), where sigma is
    in churn_min..churn_max (S_tmin, S_tmax), by fresh noise of spread churn_noise (S_noise); never above the schedule's own.
    Where a step would leave pure noise (zero terminal SNR), whose sigma is infinite, it is Euler's. Use it with spacing
    'karras': evenly spaced timesteps of a schedule whose sigma begins in thousands, as cosine's, begin with steps too long.
    Raises ValueError for an argument out of range.
    """
    return _stochastic(scheduler, timesteps, prediction, True, churn, churn_min, churn_max, churn_noise)


def _stochastic(
    scheduler: NoiseScheduler,
    timesteps: Sequence[float],
    prediction: str,
    second_order: bool,
    churn: float,
    churn_min: float,
    churn_max: float,
    churn_noise: float,
) -> Steps:
    """Karras et al. 2022, algorithm 2. Noise is added at the end of the row before, which leads to where the network looks."""
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn must be at least 0 and finite, got {churn}")
    if not 0 <= churn_min <= churn_max:
        raise ValueError(f"churn_min and churn_max must satisfy 0 <= min <= max, got {churn_min} and {churn_max}")
    if not 0 < churn_noise < math.inf:
        raise ValueError(f"churn_noise must be above 0 and finite, got {churn_noise}")
    level = levels_of(scheduler, timesteps)
    sigma = level.noise / level.signal
    top = largest_sigma(scheduler)
    gamma = min(churn / len(sigma), math.sqrt(2) - 1)
    churned = (sigma >= churn_min) & (sigma <= churn_max) & (sigma < top) & (gamma > 0)
    hot = torch.where(churned, (sigma * (1 + gamma)).clamp(max=top), sigma)
    own = torch.tensor(list(timesteps), dtype=torch.float64)
    t = torch.where(churned, timesteps_at(scheduler, hot), own)
    after, hot_next = (torch.cat([s[1:], s.new_zeros(1)]) for s in (sigma, hot))
    ratio, noise = after / hot, torch.where(hot.isinf(), 1.0, hot * (1 + hot**2).rsqrt())
    corrected = (after > 0) & hot.isfinite() if second_order else torch.zeros_like(after, dtype=torch.bool)

    # The scale of x, sqrt(abar), at the end of the step, and of a row with noise behind it, which raises x to `hot`.
    unit, unit_hot = (1 + after**2).rsqrt(), (1 + hot_next**2).rsqrt()
    fresh = unit_hot * (hot_next**2 - after**2).clamp(min=0).sqrt() * churn_noise
    zero = torch.zeros_like(after)
    end = torch.where(corrected, unit, unit_hot)
    first = [end * (1 - ratio), end * after / noise, torch.where(corrected, zero, fresh), zero]
    # x + (sigma_next - sigma) (d + d') / 2 in terms of Euler's x' there: x' + half (x0' - x0).
    half = unit_hot * torch.where(corrected, 1 / ratio - 1, zero) / 2
    second = [half, unit_hot / unit, fresh, -half]

    both = torch.stack([torch.ones_like(corrected), corrected], dim=1)
    columns = (torch.stack(pair, dim=1)[both] for pair in zip(first, second, strict=True))
    visited = torch.stack([t, own.roll(-1)], dim=1)[both].tolist()
    return make_steps(visited, prediction, abar_at(scheduler, visited), *columns)


SAMPLERS: dict[str, Callable[..., Steps]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
OWN_SPACING = {"heun": "karras"}  # where the usual ones would take it out of what its order holds for


def sampler_options(name: str) -> dict[str, Any]:
    """The options that a sampler of the registry takes, with their defaults."""
    shared = ("scheduler", "timesteps", "prediction")
    return {key: p.default for key, p in inspect.signature(SAMPLERS[name]).parameters.items() if key not in shared}


def sampler_steps(
    name: str, scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps", **options: Any
) -> Steps:
    """The table of a sampler of the registry. Raises ValueError for an unknown name, TypeError for an option it has not."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    known = sampler_options(name)
    if wrong := [key for key in options if key not in known]:
        raise TypeError(f"{wrong[0]!r} is no option of sampler {name!r}, which has {', '.join(known) or 'none'}")
    return SAMPLERS[name](scheduler, timesteps, prediction, **options)
