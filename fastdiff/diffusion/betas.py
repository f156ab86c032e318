"""Noise schedules as pure functions: betas [T], float64 on the CPU. `NoiseScheduler` derives the rest from them."""

from __future__ import annotations

import math

import torch

MAX_BETA = 0.999  # a beta of 1 would wipe out the image before the last step

_HOST = {"dtype": torch.float64, "device": "cpu"}


def linear_betas(timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Ho et al. 2020, section 4."""
    return torch.linspace(beta_start, beta_end, timesteps, **_HOST)


def scaled_linear_betas(timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """Linear in the root of beta. Rombach et al. 2022, "Latent Diffusion", whose code has 0.00085 to 0.012."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, **_HOST) ** 2


def sigmoid_betas(timesteps: int, beta_start: float, beta_end: float) -> torch.Tensor:
    """A sigmoid over [-6, 6] between the two ends. Xu et al. 2022, "GeoDiff", in its code."""
    return torch.linspace(-6, 6, timesteps, **_HOST).sigmoid() * (beta_end - beta_start) + beta_start


def cosine_betas(timesteps: int, s: float = 0.008) -> torch.Tensor:
    """abar(t) = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2). Nichol & Dhariwal 2021, equation 17."""
    angle = (torch.arange(timesteps + 1, **_HOST) / timesteps + s) / (1 + s) * (math.pi / 2)
    f = angle.cos() ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=MAX_BETA)


def zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Betas whose last timestep is pure noise, abar = 0, with the first as it was. Lin et al. 2023, algorithm 1.

    Raises ValueError for a single timestep, which cannot be both.
    """
    if len(betas) < 2:
        raise ValueError("zero_terminal_snr needs at least 2 timesteps")
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Noise levels float64 [n + 1], from sigma_max down to sigma_min and then 0. Karras et al. 2022, equation 5.

    Raises ValueError for n < 1, or unless 0 < sigma_min <= sigma_max and rho > 0.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"sigma_min and sigma_max must satisfy 0 < min <= max, got {sigma_min} and {sigma_max}")
    if not rho > 0:
        raise ValueError(f"rho must be above 0, got {rho}")
    levels = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n, **_HOST) ** rho
    return torch.cat([levels, levels.new_zeros(1)])
