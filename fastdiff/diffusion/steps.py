"""What a sampler is made of: a table of coefficients, one row for each evaluation of the network.

    x0   = k0 x + k1 m                                      m: the network's output for x, at timesteps[k]
    next = k2 x0 + k3 x + k4 noise + k5 previous + k6 one before

`previous` is the x0 of the row before and `one before` that of the row before it. `loop.run_sampler` runs any such table by
`ops.sampler_step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastdiff.diffusion.levels import abar_at
from fastdiff.diffusion.prediction import input_scale, x0_coefficients

if TYPE_CHECKING:
    from fastdiff.diffusion.schedule import NoiseScheduler


class Steps(NamedTuple):
    """timesteps [K] that the network is told, rows float64 [K, 7] of k0..k6, and what x is multiplied by before the network
    gets it, float64 [K] (None: by nothing; see `prediction.input_scale`)."""

    timesteps: list[float]
    rows: torch.Tensor
    scale: torch.Tensor | None


class Levels(NamedTuple):
    """The signal and the noise of x at the timesteps of a run, float64 [K] each, and at those that follow them, the last of
    which is the image itself."""

    abar: torch.Tensor
    signal: torch.Tensor
    noise: torch.Tensor
    next_signal: torch.Tensor
    next_noise: torch.Tensor

    @property
    def ratio(self) -> torch.Tensor:
        """sigma after over sigma before, 0 in the last step: exp(-h) of Lu et al. 2022, h being the step in log-SNR / 2."""
        return self.signal * self.next_noise / (self.next_signal * self.noise)


def levels_of(scheduler: NoiseScheduler, timesteps: Sequence[float]) -> Levels:
    """Raises ValueError unless timesteps fall strictly within 0..T-1, with less noise at each."""
    t, last = list(timesteps), scheduler.timesteps - 1
    falls = all(a > b for a, b in pairwise(t))
    if not t or not falls or not 0 <= t[-1] <= t[0] <= last:
        raise ValueError(f"timesteps must fall strictly within 0..{last}, got {t}")
    abar = abar_at(scheduler, t)
    after = torch.cat([abar[1:], abar.new_ones(1)])
    if not (after > abar).all():
        raise ValueError(f"timesteps must each have less noise than the one before, got abar {abar.tolist()} at {t}")
    return Levels(abar, abar.sqrt(), (1 - abar).sqrt(), after.sqrt(), (1 - after).sqrt())


def make_steps(
    timesteps: Sequence[float],
    prediction: str,
    abar: torch.Tensor,
    of_x0: torch.Tensor,
    of_x: torch.Tensor,
    of_noise: torch.Tensor | None = None,
    of_previous: torch.Tensor | None = None,
    of_one_before: torch.Tensor | None = None,
) -> Steps:
    """The table of k2..k6, each float64 [K] or None for 0, for a network of this prediction at levels abar [K]."""
    zero = torch.zeros_like(abar)
    optional = (zero if column is None else column for column in (of_noise, of_previous, of_one_before))
    rows = torch.stack([*x0_coefficients(prediction, abar), of_x0, of_x, *optional], dim=1)
    return Steps(list(timesteps), rows, input_scale(prediction, abar))
