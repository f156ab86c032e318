"""What the network predicts: the noise ('eps'), the image ('x0'), the velocity ('v') or, preconditioned, F ('edm').

    eps = noise        x0 = x0        v = sqrt(abar) noise - sqrt(1 - abar) x0
    x0 = c_skip x / sqrt(abar) + c_out F(c x)        edm

v: Salimans & Ho 2022, "Progressive Distillation", appendix D.
edm: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 7 and table 1, with
sigma_data = 0.5, in this library's x = sqrt(abar) x_EDM: c makes the network's input of unit variance, and the plain loss on F
is that of their table, 1 / c_out^2 on x0. The network is told t where theirs is told ln(sigma) / 4. With sigma_data = 1, for
data of unit variance, F would be -v: that is prediction 'v'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

PREDICTIONS = ("eps", "x0", "v", "edm")
SIGMA_DATA = 0.5  # the spread of images in [-1, 1]


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
    if prediction == "edm":
        variance = _variance(abar)
        return SIGMA_DATA**2 * signal / variance, SIGMA_DATA * sigma / variance.sqrt()
    if (abar == 0).any():
        raise ValueError(
            "prediction 'eps' cannot give x0 at a timestep with zero signal (zero_terminal_snr): use 'v', 'x0' or 'edm'"
        )
    return 1 / signal, -sigma / signal


def input_scale(prediction: str, abar: torch.Tensor) -> torch.Tensor | None:
    """What x_t is multiplied by before the network gets it, like abar; None: by nothing."""
    return _variance(abar).rsqrt() if prediction == "edm" else None


def _variance(abar: torch.Tensor) -> torch.Tensor:
    """Of x_t, for data of spread SIGMA_DATA."""
    return abar * SIGMA_DATA**2 + 1 - abar


def network_input(prediction: str, xt: torch.Tensor, t: torch.Tensor, scheduler: NoiseScheduler) -> torch.Tensor:
    """x_t [N, ...] as a network of this prediction is to get it; t: int [N] or [1], in 0..T-1."""
    scale = input_scale(prediction, scheduler.alphas_cumprod)
    return xt if scale is None else xt * scheduler.at(scale, t, xt.dim()).to(xt.dtype)


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
    if prediction == "v":
        return signal * noise - sigma * x0
    # (x0 - k0 x_t) / k1 with the noise gathered: no division by a small sigma is left.
    scale = scheduler.at(input_scale(prediction, scheduler.alphas_cumprod), t, x0.dim()).to(x0.dtype)
    return scale * (sigma / SIGMA_DATA * x0 - SIGMA_DATA * signal * noise)
