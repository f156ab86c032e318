"""Samples from a checkpoint to files: what `fastdiff sample` and `fastdiff interpolate` do."""

from __future__ import annotations

import io
import math
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from .diffusion import DiffusionModel
from .diffusion.samplers import OWN_SPACING, SAMPLERS, sampler_options
from .training import load_model
from .training.callbacks import sample_columns
from .training.checkpoint import find_checkpoint
from .training.precision import Precision, autocast
from .training.trainer import pick_device
from .visualization import save_each, save_images
from .visualization.files import write_atomically

DEFAULT_STEPS = 50


class HowToSample(NamedTuple):
    """sampler, steps, spacing, threshold, options (the sampler's own), guidance, guidance_rescale: see `diffusion.sample`;
    spacing None: karras for heun, else trailing."""

    sampler: str = "ddim"
    steps: int | None = None
    spacing: str | None = None
    threshold: float | None = None
    options: dict[str, float | str] | None = None
    guidance: float = 1.5
    guidance_rescale: float = 0.0
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"
    precision: Precision = "auto"
    progress: bool = True

    def check(self) -> None:
        """Raises ValueError naming the option of the command line."""
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"--sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        for name in self.options or {}:
            if name not in sampler_options(self.sampler):
                having = [s for s in SAMPLERS if name in sampler_options(s)]
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is an option of {', '.join(having)}, not of --sampler {self.sampler}")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"--threshold must be above 0 and at most 1, got {self.threshold}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"--guidance must be at least 0 and finite, got {self.guidance}")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"--guidance-rescale must be in 0..1, got {self.guidance_rescale}")
        _check_seed("--seed", self.seed)

    def load(self, checkpoint: Path) -> DiffusionModel:
        model = load_model(checkpoint, pick_device(self.device)).to(memory_format=torch.channels_last)
        if self.steps is not None and not 1 <= self.steps <= model.timesteps:
            raise ValueError(f"--steps must be in 1..{model.timesteps}, got {self.steps}")
        return model

    def keywords(self, model: DiffusionModel, labels: torch.Tensor | int | None) -> dict[str, Any]:
        """Those of `DiffusionModel.sample` but the seeds."""
        return {
            "labels": labels,
            "guidance": 1.0 if labels is None else self.guidance,
            "guidance_rescale": 0.0 if labels is None else self.guidance_rescale,
            "sampler": self.sampler,
            "steps": self.steps or min(DEFAULT_STEPS, model.timesteps),
            "spacing": self.spacing or OWN_SPACING.get(self.sampler, "trailing"),
            "threshold": self.threshold,
            "batch_size": self.batch_size,
            "progress": self.progress,
            **(self.options or {}),
        }


def sample_to_folder(
    checkpoint: Path,
    out: Path | None = None,
    how: HowToSample | None = None,
    *,
    num_samples: int = 64,
    classes: list[int] | None = None,
    image: str | PathLike | None = None,
    mask: str | PathLike | None = None,
    strength: float | None = None,
    png: bool = False,
) -> Path:
    """Write samples.npz (`x` float32 [N, H, W, C] in [0, 1], `y` int64 [N] or empty, `seed`) and samples.png.

    Returns the folder.

    classes: image i gets classes[i % k]; None: all classes in turn. image, mask: picture files of the model's size, which
    samples begin from (strength) or keep a part of (mask, white where something new is made); see `diffusion.sample`.
    out: by default `samples/` in the run folder, or beside the checkpoint.
    Raises ValueError or OSError naming what is wrong before anything is written.
    """
    how = HowToSample() if how is None else how
    if num_samples < 1:
        raise ValueError(f"--num-samples must be at least 1, got {num_samples}")
    how.check()
    if classes is not None and not classes:
        raise ValueError("--classes must name at least one class")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"--strength must be above 0 and at most 1, got {strength}")
    model = how.load(checkpoint)
    for c in classes or ():
        _check_class("--classes", c, model)
    labels = None
    if model.num_classes is not None:
        chosen = torch.tensor(classes if classes is not None else range(model.num_classes))
        labels = chosen[torch.arange(num_samples) % len(chosen)]
    edited = {
        "image": None if image is None else read_image(image, model.image_shape) * 2 - 1,
        "mask": None if mask is None else read_image(mask, (1, *model.image_shape[1:])) >= 0.5,
        "strength": strength,
    }
    with autocast(how.precision, model.betas.device):
        shape = (num_samples, *model.image_shape)
        images = model.sample(shape, seed=how.seed, **edited, **how.keywords(model, labels))
    folder = _folder(checkpoint, out)
    images = _write(
        folder / "samples.npz", images, y=np.empty(0, np.int64) if labels is None else labels.numpy(), seed=how.seed
    )
    columns = len(classes) if classes is not None and 1 < len(classes) <= 16 else sample_columns(model)
    save_images(images, folder / "samples.png", nrow=columns, scale=None)
    if png:
        save_each(images, folder)
    return folder


def interpolate_to_folder(
    checkpoint: Path,
    out: Path | None = None,
    how: HowToSample | None = None,
    *,
    seeds: list[int],
    num_images: int = 8,
    label: int | None = None,
) -> Path:
    """Write interpolation.npz (`x` as in samples.npz, `seeds`) and interpolation.png; see `DiffusionModel.interpolate`.

    seeds: of both ends. label: class of all images, None for no class. Returns the folder; out and errors as above.
    """
    how = HowToSample() if how is None else how
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {num_images}")
    how.check()
    for seed in seeds:
        _check_seed("--seeds", seed)
    model = how.load(checkpoint)
    if label is not None:
        _check_class("--class", label, model)
    with autocast(how.precision, model.betas.device):
        images = model.interpolate(*seeds, num_images, **how.keywords(model, label))
    folder = _folder(checkpoint, out)
    images = _write(folder / "interpolation.npz", images, seeds=np.array(seeds, np.int64))
    save_images(images, folder / "interpolation.png", nrow=num_images, scale=None)
    return folder


def read_image(path: str | PathLike, shape: tuple[int, int, int]) -> torch.Tensor:
    """A picture file as float32 [1, C, H, W] in [0, 1]. Raises ValueError for another size, OSError for what is no picture."""
    channels, height, width = shape
    with Image.open(path) as picture:
        if picture.size != (width, height):
            found = f"{picture.width}x{picture.height}"
            raise ValueError(f"{path} must have the model's {width}x{height} pixels, got {found}")
        pixels = np.array(picture.convert("L" if channels == 1 else "RGB"), np.float32)
    return torch.from_numpy(pixels.reshape(1, height, width, channels)).permute(0, 3, 1, 2) / 255


def _write(file: Path, images: torch.Tensor, **more: Any) -> torch.Tensor:
    """The images as `x` with more arrays; returns them clamped and on the CPU."""
    images = images.clamp(-1, 1).cpu()
    arrays = io.BytesIO()
    unit = (images.permute(0, 2, 3, 1).contiguous() + 1) / 2
    np.savez(arrays, x=unit.numpy(), **{name: np.asarray(v) for name, v in more.items()})
    write_atomically(file, arrays.getvalue())
    return images


def _folder(checkpoint: Path, out: Path | None) -> Path:
    if out is not None:
        return out
    file = find_checkpoint(checkpoint)
    return (file.parent.parent if file.parent.name == "checkpoints" else file.parent) / "samples"


def _check_seed(option: str, seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"{option} must be in 0..2^63-1, got {seed}")


def _check_class(option: str, label: int, model: DiffusionModel) -> None:
    if model.num_classes is None:
        raise ValueError(f"{option}: this model was trained without classes")
    if not 0 <= label < model.num_classes:
        raise ValueError(f"{option} must be in 0..{model.num_classes - 1}, got {label}")
