"""`DiffusionModel`: a network, a noise schedule and a prediction type, with training and sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fastdiff import ops
from fastdiff.diffusion.batch import as_batch
from fastdiff.diffusion.guidance import class_count
from fastdiff.diffusion.interpolation import slerp
from fastdiff.diffusion.loop import start_noise
from fastdiff.diffusion.loss import check_loss, diffusion_loss
from fastdiff.diffusion.prediction import network_input, training_target, x0_coefficients
from fastdiff.diffusion.sampling import sample
from fastdiff.diffusion.schedule import NoiseScheduler


class DiffusionModel(nn.Module):
    """A denoising diffusion model for images [N, C, H, W] in [-1, 1]. Ho et al. 2020.

    Args:
        timesteps, beta_start, beta_end, schedule_type: of the `NoiseScheduler`, where none is given.
        in_channels, model_channels, time_embed_dim, num_classes, **unet: of the `UNet`, where no network is given. With
            img_shape the channels are its last, and the multipliers (1, 2, 4) by default; see also `build_unet`.
        img_shape: (H, W, C) of an image, which `generate` makes; without it 28 x 28 with the network's channels.
        network: network(x, t) or network(x, t, labels) in place of the U-Net.
        scheduler: in place of the four arguments.
        prediction: what the network predicts, 'eps', 'x0', 'v' or 'edm'; see `prediction.py`.
        label_dropout: share of training images shown without their class, for classifier-free guidance, in [0, 1).
        loss, loss_weighting: 'mse' or 'huber'; 'uniform', 'min_snr' or 'p2' over timesteps, see `loss.py`.

    Raises ValueError for an argument out of range, and for prediction 'eps' with a schedule of zero terminal SNR.
    """

    def __init__(
        self,
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        in_channels: int = 1,
        model_channels: int = 64,
        time_embed_dim: int = 256,
        *,
        img_shape: tuple[int, int, int] | None = None,
        network: nn.Module | None = None,
        scheduler: NoiseScheduler | None = None,
        schedule_type: str = "linear",
        prediction: str = "eps",
        num_classes: int | None = None,
        label_dropout: float = 0.0,
        loss: str = "mse",
        loss_weighting: str = "uniform",
        **unet: Any,
    ) -> None:
        super().__init__()
        if img_shape is not None and (len(img_shape) != 3 or min(img_shape) < 1):
            raise ValueError(f"img_shape must be (H, W, C), got {tuple(img_shape)}")
        if network is not None and (unet or num_classes is not None):
            raise ValueError(f"give network, or arguments to build one, not both: {', '.join(unet) or 'num_classes'}")
        if scheduler is None:
            scheduler = NoiseScheduler(timesteps, beta_start, beta_end, schedule_type)
        self.scheduler = scheduler
        x0_coefficients(prediction, self.scheduler.exact["alphas_cumprod"])  # raises for what could never be sampled
        self.prediction = prediction
        self.img_shape = None if img_shape is None else tuple(img_shape)
        if network is None:
            options = {"time_embed_dim": time_embed_dim, "num_classes": num_classes, **unet}
            if img_shape is not None:
                in_channels = img_shape[2]
                options.setdefault("channel_multipliers", (1, 2, 4))
            network = _unet(in_channels=in_channels, model_channels=model_channels, **options)
        self.network = network
        self.in_channels = getattr(network, "config", {}).get("in_channels", img_shape[2] if img_shape else in_channels)
        self.time_embed_dim = time_embed_dim
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}")
        if label_dropout and self.num_classes is None:
            raise ValueError("label_dropout needs a network with classes: give num_classes")
        self.label_dropout = label_dropout
        check_loss(loss, loss_weighting)
        self.loss, self.loss_weighting = loss, loss_weighting

    def build_unet(self, base_channels: int = 64, channel_multipliers: tuple[int, ...] = (1, 2, 4), **unet: Any) -> nn.Module:
        """Replace the network by a `UNet` of this size and return it; call it before the optimizer is made."""
        options = {"time_embed_dim": self.time_embed_dim, "num_classes": self.num_classes, **unet}
        options |= {"model_channels": base_channels, "channel_multipliers": channel_multipliers}
        self.network = _unet(in_channels=self.in_channels, **options).to(self.betas.device)
        return self.network

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the model from, without its weights; JSON can hold it.

        Raises TypeError for a network without a `config` or not in `fastdiff.models.NETWORKS`.
        """
        from fastdiff.models import NETWORKS

        name = type(self.network).__name__
        if name not in NETWORKS or not hasattr(self.network, "config"):
            raise TypeError(f"{name} is not in fastdiff.models.NETWORKS, so a config cannot rebuild it")
        return {
            "network": {"type": name, **self.network.config},
            "scheduler": self.scheduler.config,
            "prediction": self.prediction,
            "img_shape": None if self.img_shape is None else list(self.img_shape),
            "label_dropout": self.label_dropout,
            "loss": self.loss,
            "loss_weighting": self.loss_weighting,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DiffusionModel:
        """The model that a `config` describes, with new weights. Raises ValueError for an unknown network type."""
        from fastdiff.models import NETWORKS

        options = dict(config["network"])
        name = options.pop("type")
        if name not in NETWORKS:
            raise ValueError(f"network type must be one of {', '.join(NETWORKS)}, got {name!r}")
        rest = {key: value for key, value in config.items() if key not in ("network", "scheduler")}
        return cls(network=NETWORKS[name](**options), scheduler=NoiseScheduler(**config["scheduler"]), **rest)

    @property
    def num_classes(self) -> int | None:
        return class_count(self.network)

    @property
    def timesteps(self) -> int:
        return self.scheduler.timesteps

    @property
    def betas(self) -> torch.Tensor:
        return self.scheduler.betas

    @property
    def alphas(self) -> torch.Tensor:
        return self.scheduler.alphas

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        return self.scheduler.alphas_cumprod

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image that `generate` makes."""
        height, width, channels = self.img_shape or (28, 28, self.in_channels)
        return channels, height, width

    def forward_diffusion(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        noise: torch.Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, noise): see `NoiseScheduler.add_noise`."""
        return self.scheduler.add_noise(x0, t, noise, seed, generator)

    def reverse_diffusion_step(
        self,
        xt: torch.Tensor,
        t: torch.Tensor,
        predicted_noise: torch.Tensor,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """x_{t-1} [N, ...] from x_t and the network's output, unclipped, without noise where t = 0.

        Ho et al. 2020, equation 11 and algorithm 2, with the posterior's variance. Seed, image and t key the noise.
        t: int [N], may differ between images. predicted_noise: the network's output, be it eps, x0 or v.
        Raises TypeError or ValueError naming the argument.
        """
        # The timestep goes into the image's number, for a loop with one seed must not see the same noise in each step.
        images = torch.arange(xt.shape[0], device=t.device) + (t.to(torch.int64) << 32)
        seeds = ops.image_seeds(ops.draw_seed(seed, generator), images, xt.device)
        table = self.scheduler.ddpm_table(self.prediction).to(xt.device)
        return ops.ddpm_step(xt, predicted_noise, t, table, seeds=seeds)

    def forward(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(predicted, actual): the network's output for x_t and what it should be. x0: [N, C, H, W]; t: int [N]."""
        xt, noise = self.forward_diffusion(x0, t, noise)
        return self._predict(xt, t, labels), training_target(self.prediction, x0, noise, t, self.scheduler)

    def _predict(self, xt: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        x = network_input(self.prediction, xt, t, self.scheduler)
        return self.network(x, t) if labels is None else self.network(x, t, labels)

    def _loss(self, predicted: torch.Tensor, actual: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return diffusion_loss(predicted, actual, t, self.scheduler, self.prediction, self.loss, self.loss_weighting)

    def compute_loss(
        self,
        x0: torch.Tensor,
        t: torch.Tensor,
        labels: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of `forward`, a scalar: by default its mean squared error, Ho et al. 2020, equation 14."""
        return self._loss(*self(x0, t, labels, noise), t)

    def keyed_loss(
        self, x0: torch.Tensor, labels: torch.Tensor | None, seeds: torch.Tensor, step: int | torch.Tensor
    ) -> torch.Tensor:
        """The training loss with each image's timestep, noise and label dropout drawn from its seed and the step.

        So an image meets the same task in any batch, on any device and rank, and a resumed run needs no other state.
        x0: [N, C, H, W]; labels: int64 [N] or None; seeds: int64 [N], see `ops.image_seeds`; step: the optimizer's.
        """
        u = ops.philox_uniform(seeds, step, ops.Purpose.TRAINING_TIMESTEP)
        t = (u * self.timesteps).to(torch.int64)
        xt, noise = self.scheduler.add_keyed_noise(x0, t, seeds, step)
        if labels is not None and self.label_dropout:
            dropped = ops.philox_uniform(seeds, step, ops.Purpose.TRAINING_LABEL_DROP) < self.label_dropout
            labels = torch.where(dropped, self.num_classes, labels)
        actual = training_target(self.prediction, x0, noise, t, self.scheduler)
        return self._loss(self._predict(xt, t, labels), actual, t)

    def train_step(
        self,
        images: np.ndarray | torch.Tensor,
        optimizer: torch.optim.Optimizer,
        labels: np.ndarray | torch.Tensor | None = None,
        *,
        seeds: torch.Tensor | None = None,
        step: int = 0,
    ) -> float:
        """One step of the optimizer on a batch in [-1, 1]; returns the loss.

        images: a tensor [N, C, H, W] or an array [N, H, W, C], floating; the other order where the channels tell.
        seeds, step: as for `keyed_loss`, by default drawn from torch's generator.
        Raises TypeError for other images, ValueError for another shape, and, before any weight has changed,
        FloatingPointError where the loss is not finite.
        """
        x0 = as_batch(images, self.in_channels, self.betas.device)
        if labels is not None:
            labels = torch.as_tensor(labels).to(x0.device, torch.int64)
        seeds = ops.image_seeds(ops.draw_seed(), len(x0)) if seeds is None else seeds
        loss = self.keyed_loss(x0, labels, seeds.to(x0.device), step)
        value = float(loss.detach())
        if not math.isfinite(value):
            cause = "finite: lower the learning rate" if x0.isfinite().all() else "not finite"
            raise FloatingPointError(f"the loss is {value}; the images are {cause}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return value

    def sample(
        self, shape: tuple[int, ...], device: torch.device | str | None = None, **sampling: Any
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Images [N, C, H, W] in [-1, 1]; for the keywords (sampler, steps, seed, guidance, ...) see `sampling.sample`."""
        return sample(self.network, self.scheduler, shape, prediction=self.prediction, device=device, **sampling)

    @torch.inference_mode(False)
    def generate(self, num_images: int = 16, show_progress: bool = True, **sampling: Any) -> torch.Tensor:
        """Images [num_images, H, W, C] in [-1, 1]; for the keywords see `sampling.sample`; `sample` alone gives frames."""
        if sampling.get("frames"):
            raise ValueError("generate returns images alone: call sample for frames")
        images = self.sample((num_images, *self.image_shape), progress=show_progress, **sampling)
        return images.clamp(-1, 1).permute(0, 2, 3, 1).contiguous()

    def interpolate(
        self, first_seed: int, second_seed: int, num_images: int = 8, *, sampler: str = "ddim", **sampling: Any
    ) -> torch.Tensor:
        """Images [num_images, C, H, W] on the way from the first image of one seed to the first image of another.

        The start noises are mixed on the sphere (see `slerp`), in even steps with both ends; noise that the sampler
        makes in its steps is that of the first seed in all. For the keywords see `sampling.sample`.
        Raises ValueError for num_images < 1.
        """
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        shape = (num_images, *self.image_shape)
        a, b = (ops.image_seeds(seed, 1).expand(num_images) for seed in (first_seed, second_seed))
        fractions = torch.linspace(0, 1, num_images, dtype=torch.float64)
        mixed = slerp(start_noise(shape, a), start_noise(shape, b), fractions)
        return self.sample(shape, sampler=sampler, seeds=a, x_start=mixed, **sampling)


def _unet(**options: Any) -> nn.Module:
    from fastdiff.models import UNet

    return UNet(**options)
