"""Samples that begin from an image, or keep a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fastdiff.diffusion.levels import abar_at
from fastdiff.diffusion.schedule import NoiseScheduler


def last_timesteps(timesteps: Sequence[float], strength: float) -> list[float]:
    """The share `strength` of a run's timesteps that image-to-image goes through, at least one. Meng et al. 2022, "SDEdit".

    Raises ValueError for a strength outside of (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    return list(timesteps)[-max(1, round(strength * len(timesteps))) :]


class Edit(NamedTuple):
    """An image that a run begins from or keeps a part of.

    image: [N, C, H, W], in [-1, 1]. mask: bool of the same shape, True where the run makes something new, False where the image
    stays; None: nothing of it stays. begins: whether the run begins from the image rather than from noise.
    """

    image: torch.Tensor
    mask: torch.Tensor | None
    begins: bool

    def of(self, images: slice) -> Edit:
        """For some of the images."""
        return Edit(self.image[images], None if self.mask is None else self.mask[images], self.begins)

    def on(self, scheduler: NoiseScheduler, timesteps: Sequence[float], noise: torch.Tensor) -> Course:
        """For a run over these timesteps from this noise, [N, C, H, W]."""
        abar = torch.cat([abar_at(scheduler, timesteps), torch.ones(1, dtype=torch.float64)])
        return Course(self, noise, abar.sqrt().tolist(), (1 - abar).sqrt().tolist())


class Course(NamedTuple):
    """An edit along a run: signal and noise of x before each of its rows, and after the last."""

    edit: Edit
    noise: torch.Tensor
    signals: list[float]
    noises: list[float]

    def start(self) -> torch.Tensor:
        """x at the first timestep."""
        return self._at(0) if self.edit.begins else self._kept(0, self.noise)

    def after(self, k: int, t: float, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor | None:
        """A callback of `run_sampler`: x after row k with the image, as noisy as x, where it stays. Song et al. 2021,
        "Score-Based Generative Modeling", appendix I.2; after the last row the image itself, bit for bit."""
        return None if self.edit.mask is None else self._kept(k + 1, x)

    def _kept(self, k: int, x: torch.Tensor) -> torch.Tensor:
        return x if self.edit.mask is None else torch.where(self.edit.mask, x, self._at(k))

    def _at(self, k: int) -> torch.Tensor:
        return self.signals[k] * self.edit.image + self.noises[k] * self.noise


def make_edit(
    image: torch.Tensor | None,
    mask: torch.Tensor | None,
    strength: float | None,
    shape: Sequence[int],
    device: torch.device | str,
) -> Edit | None:
    """None where there is no image. Raises TypeError or ValueError naming the argument."""
    shape = torch.Size(shape)
    if image is None:
        for name, given in (("mask", mask), ("strength", strength)):
            if given is not None:
                raise ValueError(f"{name} needs an image: give image too")
        return None
    if mask is None and strength is None:
        raise ValueError("image needs a mask, to keep a part of it, or a strength, to begin from it, or both")
    if not image.is_floating_point():
        raise TypeError(f"image must be floating, in [-1, 1], got {image.dtype}: see fastdiff.data.normalize_images")
    if mask is not None and mask.dtype is not torch.bool:
        raise TypeError(f"mask must be bool, True where something new is made, got {mask.dtype}")
    return Edit(
        _broadcast("image", image, shape).to(device, torch.float32),
        None if mask is None else _broadcast("mask", mask, shape).to(device),
        strength is not None,
    )


def _broadcast(name: str, x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    own = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
    fits = len(own) == len(shape) and all(a in (1, b) for a, b in zip(own[:-2], shape[:-2], strict=True))
    if not fits or own[-2:] != tuple(shape[-2:]) or (name == "image" and own[1] != shape[1]):
        raise ValueError(f"{name} must have the shape {tuple(shape)} of the samples, or broadcast to it, got {tuple(x.shape)}")
    return x.expand(shape)
