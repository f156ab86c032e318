"""The forward process as a picture: the same images under the same noise, at growing timesteps."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from fastdiff.visualization.files import write_image
from fastdiff.visualization.images import PADDING_GRAY, image_grid


@torch.no_grad()
def visualize_diffusion_process(
    model,
    x0: torch.Tensor,
    timesteps_to_show: Sequence[int],
    save_path: str | os.PathLike | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """The images `x0` [N, C, H, W] in [-1, 1] noised to each timestep: a tensor [len(timesteps_to_show), N, C, H, W].

    Calls `model.forward_diffusion(x0, t, noise) -> (xt, noise)` alone. All timesteps share one noise, drawn on the CPU
    from `seed`, so that the rows differ by the schedule only and are the same on every device. With `save_path` the
    picture has one row per image and one column per timestep. Raises ValueError for another shape of x0 and for no
    timesteps; a timestep out of range raises what the model raises.
    """
    if x0.ndim != 4:
        raise ValueError(f"x0 must be [N, C, H, W], not {tuple(x0.shape)}")
    timesteps = [int(t) for t in timesteps_to_show]
    if not timesteps:
        raise ValueError("timesteps_to_show is empty")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    noised = torch.stack(
        [model.forward_diffusion(x0, torch.full((len(x0),), t, device=x0.device), noise)[0] for t in timesteps]
    )
    if save_path is not None:
        write_image(_labelled_rows(noised, timesteps), save_path)
    return noised


def _labelled_rows(noised: torch.Tensor, timesteps: list[int]) -> Image.Image:
    """[T, N, C, H, W] as a grid with a row per image, under a line that names the timesteps."""
    padding, header = 2, 22
    grid = image_grid(noised.transpose(0, 1).flatten(0, 1), nrow=len(timesteps), padding=padding, scale=None)
    picture = Image.new("RGB", (grid.width, grid.height + header), (PADDING_GRAY,) * 3)
    picture.paste(grid, (0, header))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    column = (grid.width - padding) / len(timesteps)
    for i, t in enumerate(timesteps):
        draw.text((padding / 2 + column * (i + 0.5), header / 2), f"t={t}", "white", font, anchor="mm")
    return picture
