"""Multistep samplers: one evaluation of the network per step, with the x0 of earlier steps for a higher order.

All step in lambda = log(signal / noise), h = lambda_next - lambda, so exp(-h) is `Levels.ratio`. The last step, to the image
itself, has infinite h: it is of first order and ends in x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fastdiff.diffusion.steps import Levels, Steps, levels_of, make_steps

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler


def dpmpp_2m(scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps") -> Steps:
    """DPM-Solver++(2M), of second order. Lu et al. 2022, "DPM-Solver++", algorithm 2. The first step is DDIM's."""
    level = levels_of(scheduler, timesteps)
    of_x0 = level.next_signal * (1 - level.ratio)
    growth = _extrapolation(level)
    of_x = level.next_noise / level.noise
    return make_steps(timesteps, prediction, level.abar, of_x0 * (1 + growth), of_x, None, -of_x0 * growth)


def dpmpp_2m_sde(scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps") -> Steps:
    """SDE-DPM-Solver++(2M): fresh noise in each step but the last. Lu et al. 2022, "DPM-Solver++".

    The first step is DDPM's.
    """
    level = levels_of(scheduler, timesteps)
    of_x0 = level.next_signal * (1 - level.ratio**2)
    growth = _extrapolation(level)
    of_x = level.next_noise / level.noise * level.ratio
    of_noise = level.next_noise * (1 - level.ratio**2).sqrt()
    return make_steps(timesteps, prediction, level.abar, of_x0 * (1 + growth), of_x, of_noise, -of_x0 * growth)


def unipc(scheduler: NoiseScheduler, timesteps: Sequence[float], prediction: str = "eps") -> Steps:
    """UniPC-2 with B(h) = exp(h) - 1: predictor of second order, and a corrector from the same evaluation makes it third.

    Zhao et al. 2023, "UniPC", algorithms 1 and 2, for x0. A step's correction is made when its end has been evaluated, in the
    row that steps on from there: x becomes x + c (m - m') + d (m' - m''), with m, m', m'' the newest x0 and the two before.
    """
    level = levels_of(scheduler, timesteps)
    of_x0, of_x = level.next_signal * (1 - level.ratio), level.next_noise / level.noise
    growth = _extrapolation(level)
    newest, middle = _corrections(level, of_x0)
    # The predictor from the corrected x: of_x (x + newest (m - m') + middle (m' - m'')) + of_x0 (m + growth (m - m')).
    of_newest = of_x * newest + of_x0 * (1 + growth)
    of_middle = of_x * (middle - newest) - of_x0 * growth
    return make_steps(timesteps, prediction, level.abar, of_newest, of_x, None, of_middle, -of_x * middle)


def _extrapolation(level: Levels) -> torch.Tensor:
    """h / (2 h') float64 [K], h' the step before: how far x0 is drawn on, in units of its last change. 0 at both ends."""
    h = -level.ratio.log()
    growth = torch.zeros_like(h)
    growth[1:-1] = h[1:-1] / (2 * h[:-2])
    return growth


def _corrections(level: Levels, of_x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(c, d) float64 [K] of the correction that row k makes at its start, for the step from k - 1 to k; 0 in row 0.

    Where the predictor was of order 1 the weight of the one difference is 1/2; of order 2, the weights (w1, w) of the two
    differences solve w1 + w = b1, r w1 + w = b2.
    """
    newest, middle = torch.zeros_like(of_x0), torch.zeros_like(of_x0)
    h = -level.ratio.log()
    newest[1:2] = of_x0[:1] / 2
    if len(h) > 2:
        step, before = -h[1:-1], h[:-2]
        b, phi = torch.expm1(step), torch.expm1(step) / step - 1  # B(h), and h phi_2(h)
        b1, b2 = phi / b, 2 * (phi / step - 0.5) / b
        r = before / step
        first = (b1 - b2) / (1 - r)
        newest[2:] = of_x0[1:-1] * (b1 - first)
        middle[2:] = of_x0[1:-1] * (0.5 - first) / r  # the predictor had 1/2 of (m'' - m') / r where the corrector has `first`
    return newest, middle
