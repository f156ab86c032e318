"""The one sampling loop: any sampler is a table of coefficients (`steps.py`), any model a function denoise(x, t)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from fastdiff import ops
from fastdiff.diffusion.graph import GraphWalk
from fastdiff.diffusion.guidance import Denoise
from fastdiff.diffusion.plan import Plan
from fastdiff.diffusion.steps import Steps

Callback = Callable[[int, float, torch.Tensor, torch.Tensor], torch.Tensor | None]


@torch.inference_mode(False)  # images made here can go on into training
@torch.no_grad()
def run_sampler(
    denoise: Denoise,
    x: torch.Tensor,
    steps: Steps,
    *,
    clip: float | None = 1.0,
    threshold: float | None = None,
    seeds: torch.Tensor | None = None,
    progress: bool = False,
    frames: int | None = None,
    callback: Callback | None = None,
    graph: bool | None = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walk x along a sampler's table: (images [N, ...], frames [F, N, ...]).

    Args:
        denoise: denoise(x, t) -> the network's output like x, for t [N], int64 where all timesteps are whole, else float32.
        x: [N, ...], floating, the start noise, or images at the noise level of steps.timesteps[0].
        steps: a sampler's table of K rows; see `samplers.py`.
        clip: x0 is clamped to [-clip, clip] in each row; None does not clamp.
        threshold: quantile in (0, 1] of dynamic thresholding, which takes the place of clamping; see `plan.thresholded`.
        seeds: int64 [N], one per image, for the noise of each row, keyed by the row's number; None where no row has noise.
        progress: show a bar with the rows done.
        frames: keep x after this many rows, evenly spread and with the last among them; at most K.
        callback: callback(k, timesteps[k], x, x0) after row k; a tensor that it returns takes the place of x.
        graph: on CUDA, capture one row in a graph and replay that. None: where it pays and can be done; see `graph.py`.

    Raises ValueError where a row needs noise and there are no seeds, or an argument is out of range.
    """
    count, frames = len(steps.timesteps), frames or 0
    if not 0 <= frames <= count:
        raise ValueError(f"frames must be in 0..{count}, the number of steps, got {frames}")
    plan = Plan(denoise, steps, x, clip, threshold, seeds)
    advance = GraphWalk.of(plan, x, graph) or plan.walk(x)
    kept_after = {(f + 1) * count // frames - 1 for f in range(frames)}

    kept = []
    for k in tqdm(range(count), desc="sampling", unit="step", disable=not progress):
        x, x0 = advance(k)
        if callback is not None and (replaced := callback(k, steps.timesteps[k], x, x0)) is not None:
            x = advance.replace(replaced)
        if k in kept_after:
            kept.append(x.clone())
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def start_noise(shape: Sequence[int], seeds: torch.Tensor) -> torch.Tensor:
    """The noise float32 [N, ...] from which the images with these seeds (int64 [N]) start."""
    return ops.philox_normal(shape, seeds, 0, ops.Purpose.SAMPLER_START)
