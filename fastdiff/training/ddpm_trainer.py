"""`DDPMTrainer`: the smallest trainer, a network and Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff import ops
from fastdiff.diffusion import DiffusionModel, NoiseScheduler


class DDPMTrainer:
    """Trains a network to predict noise. Ho et al. 2020, algorithm 1.

    Timesteps and noise are keyed by the seed, the number of the sample since the start and the optimizer's step.

    Args:
        model: network(x, t), or network(x, t, labels) with classes, or a DiffusionModel with its own prediction type
            and schedule. It is moved to the device.
        scheduler: the noise schedule.
        learning_rate: of Adam.
        seed: of the run, by default drawn from torch's generator.

    Attributes:
        train_losses: the loss of every step so far.
    """

    def __init__(
        self,
        model: nn.Module,
        scheduler: NoiseScheduler,
        learning_rate: float = 1e-3,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.model = model
        whole = model if isinstance(model, DiffusionModel) else DiffusionModel(network=model, scheduler=scheduler)
        self._diffusion = whole.to(device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.seed = ops.draw_seed(seed)
        self.samples_seen = 0
        self.train_losses: list[float] = []

    def train_step(self, images: np.ndarray | torch.Tensor, labels: torch.Tensor | None = None) -> float:
        """One optimizer step on images [N, C, H, W] in [-1, 1]; returns the loss. See `DiffusionModel.train_step`."""
        self.model.train()
        samples = torch.arange(self.samples_seen, self.samples_seen + len(images))
        seeds = ops.image_seeds(self.seed, samples)
        step = len(self.train_losses)
        loss = self._diffusion.train_step(images, self.optimizer, labels, seeds=seeds, step=step)
        self.samples_seen += len(images)
        self.train_losses.append(loss)
        return loss

    def train_epoch(self, loader: Iterable[Any]) -> float:
        """One step per batch of the loader; returns the mean loss of the steps.

        The loader yields images or (images, labels, ...); labels count where the network has classes.
        Raises ValueError where it yields nothing.
        """
        losses = [self.train_step(*self._images_and_labels(batch)) for batch in loader]
        if not losses:
            raise ValueError("loader is empty: there is nothing to train on")
        return sum(losses) / len(losses)

    def _images_and_labels(self, batch: Any) -> tuple[Any, Any]:
        if not isinstance(batch, list | tuple):
            return batch, None
        conditional = self._diffusion.num_classes is not None and len(batch) > 1
        return batch[0], batch[1] if conditional else None
