"""Standard normal noise that depends on nothing but its seeds: Philox4x32-10 and Box-Muller.

    words   = philox4x32-10(counter = (i & 2^32-1, i >> 32, step, purpose), key = (seed & 2^32-1, seed >> 32))
    normals = four per counter: elements 4i .. 4i+3 of that image, counted in N C H W order whatever the memory format

Words to normals: for the word pairs (w0, w1) and (w2, w3), with u = w0 2^-32 + 2^-33 in (0, 1], in float32, and the angle
2 pi w1 / 2^32,

    n0 = sqrt(-2 ln u) cos(angle),  n1 = sqrt(-2 ln u) sin(angle)

so |n| <= 6.77. ln, sin and cos are the polynomials in `_philox.py`, every float32 operation rounded on its own: CPU, CUDA and
plain torch give the same bits, for any batch size. The first eight for seed 0, step 0, purpose 0:

     0.99113756 -0.92466259 -0.61760896 -0.48206860 -0.15363817  0.18082583  0.83173507  0.19743970

Keys: image i of a run with seed s has the seed (w0, w1) of philox4x32-10(counter = (i low, i high, 0, IMAGE_SEED), key = s):
`image_seeds`. `Purpose` keeps draws for different ends apart.
Shapes: shape [N, ...], seeds int64 [N], step an integer tensor of one element; float32 [N, ...], contiguous.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import IntEnum

import torch

from ._checks import check_tensor
from ._define import Sample, define
from ._philox import MASK, Words, box_muller, join64, philox4x32, split64

__all__ = ["Purpose", "draw_seed", "image_seeds", "philox_normal", "wrap64"]


class Purpose(IntEnum):
    """What a draw is for: the last counter word, so that no two ends share noise."""

    NOISE = 0  # the default of philox_normal
    SAMPLER_START = 1
    SAMPLER_STEP = 2
    TRAINING_NOISE = 3
    TRAINING_TIMESTEP = 4
    TRAINING_LABEL_DROP = 5
    IMAGE_SEED = 6
    DATA_ORDER = 7


def philox_words(seeds: torch.Tensor, step: torch.Tensor, purpose: int, counters: torch.Tensor) -> Words:
    """Four words for every seed [N] and counter [M]: [N, M] each."""
    low, high = split64(counters[None, :])
    k0, k1 = split64(seeds[:, None])
    c2 = (step.reshape(1, 1).to(torch.int64) & MASK).expand(seeds.shape[0], counters.shape[0])
    return philox4x32((low.expand_as(c2), high.expand_as(c2), c2, torch.full_like(c2, purpose)), (k0, k1))


def reference(shape: Sequence[int], seeds: torch.Tensor, step: torch.Tensor, purpose: int) -> torch.Tensor:
    size = math.prod(shape[1:])
    w0, w1, w2, w3 = philox_words(seeds, step, purpose, torch.arange((size + 3) // 4, device=seeds.device))
    normals = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=-1)  # [N, counters, 4]
    return normals.flatten(1)[:, :size].reshape(shape).contiguous()


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    if dtype is not torch.float32:
        return  # there is one output dtype

    def make(name: str, shape: tuple[int, ...], step: int = 0, purpose: int = 0, large: bool = False) -> Sample:
        seeds = (torch.arange(shape[0]) * 0x9E3779B97F4A7C1 + 12345).to(device)
        return Sample(name, (list(shape), seeds, torch.tensor(step, device=device), purpose), large=large)

    yield make("images", (3, 3, 8, 8))
    yield make("ragged", (2, 1, 7, 3), step=999, purpose=2)
    yield make("one element", (5, 1), step=2**32 - 1, purpose=2**31 - 1)
    yield make("vector", (4,), step=7)
    yield make("video", (2, 3, 4, 5, 6), step=1)
    yield make("no images", (0, 3, 4, 4))
    yield make("no pixels", (2, 3, 0, 4))
    yield make("large", (64, 3, 64, 64), large=True)


_op = define(
    "philox_normal(SymInt[] shape, Tensor seeds, Tensor step, int purpose) -> Tensor",
    reference,
    samples=_samples,
    native={"CPU": (torch.float32,), "CUDA": (torch.float32,)},
    floor=0.0,
)


def philox_normal(
    shape: Sequence[int],
    seeds: torch.Tensor,
    step: int | torch.Tensor = 0,
    purpose: int = Purpose.NOISE,
) -> torch.Tensor:
    """Standard normal noise [N, ...] float32 on the seeds' device, image n made from seeds[n] alone.

    shape: [N, ...], at least one dimension. seeds: int64 [N]. step: 0 .. 2^32-1, an int or an integer tensor of one element
    on the seeds' device (a captured graph can then replay with another step). purpose: 0 .. 2^31-1, see `Purpose`.
    Raises TypeError or ValueError naming the argument.
    """
    shape = list(shape)
    seeds, step = check_noise(seeds, step, purpose, shape[0] if shape else -1)
    if not shape or min(shape) < 0:
        raise ValueError(f"shape must be [N, ...] with no negative size, got {shape}")
    return _op(shape, seeds, step, int(purpose))


def check_noise(seeds: torch.Tensor, step: int | torch.Tensor, purpose: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the arguments of a draw and return the seeds and the step as tensors on one device."""
    check_tensor("seeds", seeds)
    if seeds.dtype is not torch.int64 or seeds.dim() != 1:
        raise TypeError(f"seeds must be int64 of shape [N], got {seeds.dtype} of shape {tuple(seeds.shape)}")
    if images >= 0 and seeds.shape[0] != images:
        raise ValueError(f"seeds must have one value per image, shape ({images},), got {tuple(seeds.shape)}")
    if not 0 <= purpose < 2**31:
        raise ValueError(f"purpose must be in 0..2^31-1, got {purpose}")
    if isinstance(step, int):
        if not 0 <= step < 2**32:
            raise ValueError(f"step must be in 0..2^32-1, got {step}")
        return seeds, torch.full((), step, device=seeds.device)  # half the cost of torch.tensor
    check_tensor("step", step)
    if step.dtype is not torch.int64 or step.numel() != 1:
        raise TypeError(f"step must be an int64 tensor of one element, got {step.dtype} of shape {tuple(step.shape)}")
    if step.device != seeds.device:
        raise ValueError(f"step must be on the seeds' device {seeds.device}, got {step.device}")
    return seeds, step


def image_seeds(seed: int, images: int | torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Seeds int64 [N] of images 0..N-1 (an int N), or of the given image indices (int64 [N]), in a run with this seed."""
    indices = torch.arange(images) if isinstance(images, int) else images
    low, high = split64(indices.to(torch.int64))
    key = split64(torch.tensor(wrap64(seed), device=indices.device))
    zero = torch.zeros_like(low)
    w0, w1, _, _ = philox4x32((low, high, zero, zero + Purpose.IMAGE_SEED), key)
    return join64(w0, w1).to(device)


def wrap64(seed: int) -> int:
    """An unsigned 64-bit seed as the int64 that holds the same bits."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def draw_seed(seed: int | None = None, generator: torch.Generator | None = None) -> int:
    """The given seed, or one drawn from the generator, by default torch's own: `torch.manual_seed` rules."""
    if seed is not None:
        if generator is not None:
            raise ValueError("give seed or generator, not both")
        return seed
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
