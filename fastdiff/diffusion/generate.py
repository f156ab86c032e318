"""From a model to pictures in one call."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import nn

from fastdiff import ops
from fastdiff.diffusion.model import DiffusionModel
from fastdiff.diffusion.sampling import sample
from fastdiff.diffusion.schedule import NoiseScheduler


def generate_images(
    model: DiffusionModel,
    num_images: int,
    device: torch.device | str,
    save_path: str | os.PathLike | None = None,
    show_images: bool = True,
    seed: int | None = None,
    **sampling: Any,
) -> torch.Tensor:
    """Images [num_images, C, H, W] in [-1, 1], made on the device, where the model is moved.

    save_path: picture file for a grid of them. show_images: show the grid, in a notebook or in the system's viewer.
    seed: by default drawn from torch's generator. For the other keywords see `sampling.sample`.
    """
    model.to(device)
    images = model.sample((num_images, *model.image_shape), device, seed=seed, **sampling)
    if save_path is not None:
        from fastdiff.visualization import save_images

        save_images(images, save_path, nrow=4, normalize=True)
    if show_images:
        _show(images)
    return images


def generate_interpolation(
    model: DiffusionModel,
    num_steps: int,
    device: torch.device | str,
    save_path: str | os.PathLike | None = None,
    seed: int | None = None,
    **sampling: Any,
) -> torch.Tensor:
    """Images [num_steps, C, H, W] between two noises, made on the device, where the model is moved.

    The first noise belongs to the seed, the second to one derived from it; see `DiffusionModel.interpolate`.
    save_path: picture file for all of them in one row.
    """
    model.to(device)
    first = ops.draw_seed(seed)
    second = int(ops.image_seeds(first, 1))
    images = model.interpolate(first, second, num_steps, device=device, **sampling)
    if save_path is not None:
        from fastdiff.visualization import save_images

        save_images(images, save_path, nrow=num_steps, normalize=True)
    return images


class DDPMSampler:
    """Draws images from a network that predicts noise, or from a `DiffusionModel` with its own prediction type.

    Args:
        model: network(x, t), or a DiffusionModel. It is moved to the device.
        scheduler: the schedule that it was trained with.
        img_shape: (H, W, C); by default the model's, or 28 x 28 with its channels.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: NoiseScheduler,
        device: torch.device | str = "cpu",
        img_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.model = model.to(device)
        self.scheduler, self.device = scheduler, device
        whole = model if isinstance(model, DiffusionModel) else DiffusionModel(network=model, scheduler=scheduler)
        self.network, self.prediction = whole.network, whole.prediction
        self.image_shape = whole.image_shape if img_shape is None else (img_shape[2], *img_shape[:2])

    def sample(self, num_samples: int, **sampling: Any) -> torch.Tensor:
        """Images [num_samples, C, H, W] in [-1, 1]; for the keywords see `sampling.sample`."""
        sampling = {"prediction": self.prediction, "device": self.device, **sampling}
        return sample(self.network, self.scheduler, (num_samples, *self.image_shape), **sampling)


def _show(images: torch.Tensor) -> None:
    from fastdiff.visualization import plot_images

    figure = plot_images(images, title="Generated Images")
    notebook = sys.modules.get("IPython")
    if notebook is not None and notebook.get_ipython() is not None:
        notebook.display.display(figure)
    else:
        figure.show()
