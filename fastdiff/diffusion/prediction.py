"""What the network predicts: the noise ('eps'), the image ('x0') or the velocity ('v'); and the way to the image.

    eps = noise        x0 = x0        v = sqrt(abar) noise - sqrt(1 - abar) x0

v: Salimans & Ho 2022, "Progressive Distillation", appendix D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

PREDICTIONS = ("eps", "x0", "v")


def check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def x0_coefficients(prediction: str, abar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(k0, k1), each like abar, with x0 = k0 x_t + k1 m for the network's output m. abar: float64, in [0, 1).

    Raises ValueError for an unknown prediction, and for 'eps' where abar is 0: pure noise says nothing of the image.
    """
    check_prediction(prediction)
    signal, sigma = abar.sqrt(), (1 - abar).sqrt()
    if prediction == "x0":
        return torch.zeros_like(abar), torch.ones_like(abar)
    if prediction == "v":
        return signal, -sigma
    if (abar == 0).any():
        raise ValueError("prediction 'eps' cannot give x0 at a timestep with zero signal (zero_terminal_snr): use 'v' or 'x0'")
    return 1 / signal, -sigma / signal


def training_target(
    prediction: str, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, scheduler: NoiseScheduler
) -> torch.Tensor:
    """What the network should give for x_t, like x0. x0, noise: [N, ...]; t: int [N] or [1], in 0..T-1."""
    check_prediction(prediction)
    if prediction == "eps":
        return noise
    if prediction == "x0":
        return x0
    signal = scheduler.at(scheduler.sqrt_alphas_cumprod, t, x0.dim()).to(x0.dtype)
    sigma = scheduler.at(scheduler.sqrt_one_minus_alphas_cumprod, t, x0.dim()).to(x0.dtype)
    return signal * noise - sigma * x0
