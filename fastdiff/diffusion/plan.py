"""What is fixed for a run of the sampling loop, made once on the device, and its one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastdiff import ops
from fastdiff.diffusion.guidance import Denoise
from fastdiff.diffusion.steps import Steps

# Columns of the table on the device: those of the step, those that mix the two earlier x0, those of x0, the network's scale.
ROW, MIX, TO_X0, SCALE = slice(0, 6), slice(6, 12), slice(12, 14), slice(14, 15)


class Plan:
    """A table float32 [K, 15], timesteps [K, N] and the rows' numbers [K], on x's device. Arguments as in `run_sampler`."""

    def __init__(
        self,
        denoise: Denoise,
        steps: Steps,
        x: torch.Tensor,
        clip: float | None,
        threshold: float | None,
        seeds: torch.Tensor | None,
    ) -> None:
        rows, count = steps.rows, len(steps.timesteps)
        self.noisy, previous, one_before = ((rows[:, k] != 0).tolist() for k in (4, 5, 6))
        self.memory = [2 if b else int(a) for a, b in zip(previous, one_before, strict=True)]
        if any(self.noisy) and seeds is None:
            raise ValueError("seeds must be given: this sampler makes noise in its steps")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
        if threshold is not None and clip is None:
            raise ValueError("threshold needs clip: the range that images are scaled back into")
        self.denoise, self.seeds, self.clip, self.threshold = denoise, seeds, clip, threshold
        self.scaled = steps.scale is not None

        row, mix = rows[:, :6].clone(), rows.new_zeros(count, 6)
        if threshold is not None:  # the step gets x0 in the place of the network's output
            row[:, 0], row[:, 1] = 0, 1
        mixed = rows[:, 6] != 0
        row[mixed, 5], mix[:, 1], mix[:, 2] = 1, 1, 1
        mix[mixed, 2:4] = rows[mixed, 5:]
        scale = steps.scale[:, None] if self.scaled else rows.new_ones(count, 1)
        self.table = torch.cat([row, mix, rows[:, :2], scale], dim=1).to(x.device, torch.float32)
        whole = all(t == int(t) for t in steps.timesteps)
        t = torch.tensor(steps.timesteps, dtype=torch.int64 if whole else torch.float32)
        self.timesteps = t.to(x.device)[:, None].repeat(1, x.shape[0])
        self.numbers = torch.arange(count, device=x.device)

    def step(
        self,
        x: torch.Tensor,
        past: Sequence[torch.Tensor | None],
        t: torch.Tensor,
        entry: torch.Tensor,
        number: torch.Tensor,
        noisy: bool,
        memory: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(next, x0) like x. past: the last x0 and the one before, as many as `memory`; entry, t and number of the row."""
        m = self.denoise(x * entry[SCALE] if self.scaled else x, t).to(x.dtype)
        clip = self.clip
        if self.threshold is not None:
            of_x, of_m = entry[TO_X0].to(x.dtype)
            m, clip = thresholded(of_x * x + of_m * m, self.threshold, clip), None
        previous = past[0] if memory else None
        if memory == 2:
            previous, _ = ops.sampler_step(past[1], previous, entry[MIX])
        return ops.sampler_step(x, m, entry[ROW], previous, clip=clip, seeds=self.seeds if noisy else None, step=number)

    def walk(self, x: torch.Tensor) -> Walk:
        return Walk(self, x)


class Walk:
    """The plan's steps one after another from x."""

    def __init__(self, plan: Plan, x: torch.Tensor) -> None:
        self.plan, self.x = plan, x
        self.past: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
        self.fixed = list(zip(plan.timesteps, plan.table, plan.numbers, plan.noisy, plan.memory, strict=True))

    def __call__(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.x, x0 = self.plan.step(self.x, self.past, *self.fixed[k])
        self.past = (x0, self.past[0])
        return self.x, x0

    def replace(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return x


def thresholded(x0: torch.Tensor, share: float, clip: float) -> torch.Tensor:
    """Dynamic thresholding: x0 clamped to its own s and scaled back to [-clip, clip]. Saharia et al. 2022, "Imagen", 2.3.

    s is the quantile `share` of an image's absolute values, interpolated between neighbours, and at least clip.
    """
    size = x0[0].numel() if len(x0) else 0
    if not size:
        return x0
    flat = x0.abs().flatten(1)
    place = share * (size - 1)
    below = int(place)
    low = flat.kthvalue(below + 1, dim=1).values  # two selections take less than the sort of torch.quantile, at any size
    high = flat.kthvalue(min(below + 2, size), dim=1).values
    s = torch.lerp(low, high, place - below).clamp(min=clip).reshape(-1, *(1,) * (x0.dim() - 1))
    return x0.clamp(-s, s) * (clip / s)
