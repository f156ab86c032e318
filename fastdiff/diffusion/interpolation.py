"""Interpolation between two noises. Shoemake 1985; for generative models White 2016, "Sampling Generative Networks"."""

from __future__ import annotations

import torch


def slerp(a: torch.Tensor, b: torch.Tensor, fraction: float | torch.Tensor) -> torch.Tensor:
    """From a to b [N, ...] along the great circle through both, image by image: a at fraction 0, b at 1; like a.

        sin((1 - f) w) / sin(w) a + sin(f w) / sin(w) b,    w: the angle between a and b

    The straight mix of two independent noises has 0.71 of their spread halfway, which no network was trained on; this
    has all of it. fraction: a number or [N]. Parallel images are mixed straight. Raises ValueError for two shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    u, v = (torch.nn.functional.normalize(x.double().flatten(1), dim=1) for x in (a, b))
    angle = (u * v).sum(1).clamp(-1, 1).acos()
    f = torch.as_tensor(fraction, dtype=torch.float64, device=a.device).expand_as(angle)
    parallel = angle.sin() < 1e-6
    sine = torch.where(parallel, 1.0, angle.sin())
    of_a = torch.where(parallel, 1 - f, ((1 - f) * angle).sin() / sine)
    of_b = torch.where(parallel, f, (f * angle).sin() / sine)
    column = (-1, *(1,) * (a.dim() - 1))
    return (of_a.reshape(column) * a.double() + of_b.reshape(column) * b.double()).to(a.dtype)
