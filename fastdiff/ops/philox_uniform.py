"""One uniform number per seed: the first Philox word of the draw.

    u = w0 2^-32,  w0 of philox4x32-10(counter = (0, 0, step, purpose), key = seed)

Shapes: seeds int64 [N], step an integer tensor of one element; float64 [N] in [0, 1), exact, the same bits everywhere.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; see `philox_normal.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ._define import Sample, define
from .philox_normal import check_noise, philox_words


def reference(seeds: torch.Tensor, step: torch.Tensor, purpose: int) -> torch.Tensor:
    first, *_ = philox_words(seeds, step, purpose, torch.zeros(1, dtype=torch.int64, device=seeds.device))
    return first[:, 0].to(torch.float64) * 2.0**-32  # float32 would round the largest up to 1


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    def make(name: str, images: int, step: int = 0, purpose: int = 4) -> Sample:  # no argument has a floating dtype
        seeds = (torch.arange(2 * images) * 0x9E3779B97F4A7C1 + 12345)[::2].to(device)
        return Sample(name, (seeds, torch.tensor(step, device=device), purpose))

    yield make("batch", 64, step=17)
    yield make("one", 1, step=2**32 - 1, purpose=2**31 - 1)
    yield make("many", 5000)
    yield make("no images", 0)


_op = define(
    "philox_uniform(Tensor seeds, Tensor step, int purpose) -> Tensor",
    reference,
    samples=_samples,
    native={"CPU": (torch.float64,), "CUDA": (torch.float64,)},
    floor=0.0,
)


def philox_uniform(seeds: torch.Tensor, step: int | torch.Tensor, purpose: int) -> torch.Tensor:
    """One uniform number per seed, float64 [N] in [0, 1), on the seeds' device.

    seeds: int64 [N]. step, purpose: as in `philox_normal`. Raises TypeError or ValueError naming the argument.
    """
    seeds, step = check_noise(seeds, step, purpose, -1)
    return _op(seeds, step, int(purpose))
