"""The training loss: mean squared or Huber error of the network's output, each image weighted by its timestep.

A weighting is stated for the error of x0, as w0(snr). An error of the network's output m is k1 times as large in x0
(`x0_coefficients`), so the weight on the squared error of m is w0 k1^2, for any prediction:

    uniform   1, on m itself             Ho et al. 2020, equation 14, for 'eps'
    min_snr   w0 = min(snr, 5)           Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"
    p2        w0 = snr / (1 + snr)       Choi et al. 2022, "Perception Prioritized Training", with k = gamma = 1

so min-SNR is min(snr, 5) / snr for 'eps' and min(snr, 5) / (snr + 1) for 'v'. A timestep of zero SNR has weight in uniform
alone: with zero_terminal_snr train by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fastdiff.diffusion.prediction import x0_coefficients

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler

LOSSES = ("mse", "huber")
WEIGHTINGS = ("uniform", "min_snr", "p2")
MIN_SNR_GAMMA = 5.0
HUBER_DELTA = 1.0  # the spread of noise, which is what 'eps' and, nearly, 'v' predict


def check_loss(loss: str, weighting: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"loss_weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")


def loss_weights(weighting: str, prediction: str, abar: torch.Tensor) -> torch.Tensor:
    """The weight on the squared error of the network's output, like abar, float64 in [0, 1). Raises ValueError."""
    check_loss("mse", weighting)
    _, k1 = x0_coefficients(prediction, abar)
    snr = abar / (1 - abar)
    return {
        "uniform": torch.ones_like(abar),
        "min_snr": snr.clamp(max=MIN_SNR_GAMMA) * k1**2,
        "p2": snr / (1 + snr) * k1**2,
    }[weighting]


def diffusion_loss(
    predicted: torch.Tensor,
    actual: torch.Tensor,
    t: torch.Tensor,
    scheduler: NoiseScheduler,
    prediction: str,
    loss: str = "mse",
    weighting: str = "uniform",
) -> torch.Tensor:
    """The mean over images of the weighted mean error, a float32 scalar. predicted, actual: [N, ...] alike; t: int [N]."""
    predicted, actual = predicted.float(), actual.float()
    reduction = "mean" if weighting == "uniform" else "none"
    if loss == "mse":
        error = F.mse_loss(predicted, actual, reduction=reduction)
    else:
        error = F.huber_loss(predicted, actual, reduction=reduction, delta=HUBER_DELTA)
    if weighting == "uniform":
        return error
    weights = scheduler.at(scheduler.loss_weights(prediction, weighting), t, dims=1)
    return (error.flatten(1).mean(1) * weights).mean()
