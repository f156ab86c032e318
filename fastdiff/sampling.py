"""Samples from a checkpoint to files: what `fastdiff sample` does."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch

from .diffusion.samplers import OWN_SPACING, SAMPLERS, sampler_options
from .training import load_model
from .training.callbacks import sample_columns
from .training.checkpoint import find_checkpoint
from .training.precision import Precision, autocast
from .training.trainer import pick_device
from .visualization import save_each, save_images
from .visualization.files import write_atomically

DEFAULT_STEPS = 50


def sample_to_folder(
    checkpoint: Path,
    out: Path | None = None,
    *,
    num_samples: int = 64,
    steps: int | None = None,
    sampler: str = "ddim",
    spacing: str | None = None,
    threshold: float | None = None,
    options: dict[str, float | str] | None = None,
    classes: list[int] | None = None,
    guidance: float = 1.5,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "auto",
    png: bool = False,
    progress: bool = True,
) -> Path:
    """Write samples.npz (`x` float32 [N, H, W, C] in [0, 1], `y` int64 [N] or empty, `seed`) and samples.png.

    Returns the folder.

    sampler, steps, spacing, threshold, options (the sampler's own): see `diffusion.sample`; spacing None: karras for heun,
    else trailing. classes: image i gets classes[i % k]; None: all classes in turn. out: by default `samples/` in the run
    folder, or beside the checkpoint. Raises ValueError or OSError naming what is wrong before anything is written.
    """
    if num_samples < 1:
        raise ValueError(f"--num-samples must be at least 1, got {num_samples}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    if sampler not in SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    for name in options or {}:
        if name not in sampler_options(sampler):
            having = [s for s in SAMPLERS if name in sampler_options(s)]
            raise ValueError(f"--{name.replace('_', '-')} is an option of {', '.join(having)}, not of --sampler {sampler}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"--threshold must be above 0 and at most 1, got {threshold}")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"--guidance must be at least 0 and finite, got {guidance}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be in 0..2^63-1, got {seed}")
    if classes is not None and not classes:
        raise ValueError("--classes must name at least one class")
    on = pick_device(device)
    model = load_model(checkpoint, on).to(memory_format=torch.channels_last)
    if steps is not None and not 1 <= steps <= model.timesteps:
        raise ValueError(f"--steps must be in 1..{model.timesteps}, got {steps}")
    if classes is not None and model.num_classes is None:
        raise ValueError("--classes: this model was trained without classes")
    for c in classes or ():
        if not 0 <= c < model.num_classes:
            raise ValueError(f"--classes must be in 0..{model.num_classes - 1}, got {c}")
    labels = None
    if model.num_classes is not None:
        chosen = torch.tensor(classes if classes is not None else range(model.num_classes))
        labels = chosen[torch.arange(num_samples) % len(chosen)]
    with autocast(precision, on):
        images = model.sample(
            (num_samples, *model.image_shape),
            labels=labels,
            guidance=guidance if labels is not None else 1.0,
            sampler=sampler,
            steps=steps or min(DEFAULT_STEPS, model.timesteps),
            spacing=spacing or OWN_SPACING.get(sampler, "trailing"),
            threshold=threshold,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            **(options or {}),
        )
    images = images.clamp(-1, 1).cpu()
    if out is None:
        file = find_checkpoint(checkpoint)
        out = (file.parent.parent if file.parent.name == "checkpoints" else file.parent) / "samples"

    arrays = io.BytesIO()
    unit = (images.permute(0, 2, 3, 1).contiguous() + 1) / 2
    np.savez(arrays, x=unit.numpy(), y=np.empty(0, np.int64) if labels is None else labels.numpy(), seed=np.int64(seed))
    write_atomically(out / "samples.npz", arrays.getvalue())
    columns = len(classes) if classes is not None and len(classes) <= 16 else sample_columns(model)
    save_images(images, out / "samples.png", nrow=columns, scale=None)
    if png:
        save_each(images, out)
    return out
