"""Images from a network, a schedule and seeds: arguments checked, batches walked through `loop.run_sampler`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastdiff import ops
from fastdiff.diffusion.editing import last_timesteps, make_edit
from fastdiff.diffusion.guidance import Conditions, Network, class_count, guided
from fastdiff.diffusion.levels import choose_timesteps
from fastdiff.diffusion.loop import run_sampler, start_noise
from fastdiff.diffusion.samplers import OWN_SPACING, sampler_steps
from fastdiff.diffusion.schedule import NoiseScheduler


@torch.inference_mode(False)
def sample(
    network: Network,
    scheduler: NoiseScheduler,
    shape: Sequence[int],
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str = "eps",
    labels: torch.Tensor | Sequence[int] | int | None = None,
    context: torch.Tensor | None = None,
    context_mask: torch.Tensor | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    clip: float | None = 1.0,
    threshold: float | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    seeds: torch.Tensor | None = None,
    x_start: torch.Tensor | None = None,
    image: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    strength: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    frames: int = 0,
    batch_size: int | None = None,
    graph: bool | None = None,
    **options: Any,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, ...] from noise, each a function of its own seed: the same in any batch, but for rounding.

    Args:
        network: network(x, t) or, with labels, network(x, t, labels); in eval mode while it samples here.
        shape: [N, C, H, W], or [N, C, T, H, W] for video.
        sampler: a name in SAMPLERS; options: its own, such as eta for 'ddim', see `samplers.py`.
        steps: 1..T, all T by default; spacing: 'leading', 'linspace', 'trailing' or 'karras', see `levels.py`; by default
            'karras' for 'heun', else 'leading'.
        timesteps: those to visit, strictly decreasing, in place of steps and spacing.
        prediction: what the network predicts, 'eps', 'x0', 'v' or 'edm'; see `prediction.py`.
        labels: class of each image, int64 [N], or one for all.
        context, context_mask: [N, S, context_dim] and bool [N, S], or of one for all; see `CrossAttentionBlock`.
        guidance, guidance_rescale: the scale w (1: none) and phi; see `guidance.guided`.
        clip: x0 is clamped to [-clip, clip] in each step; None does not clamp. threshold: dynamic thresholding with this
            quantile in (0, 1], such as 0.995, instead; see `plan.thresholded`.
        seed, generator: the run's seed, by default drawn from torch's generator. seeds: int64 [N], each image's own,
            instead.
        x_start: [N, ...] in place of the start noise: x at the noise level of the first timestep.
        image: in [-1, 1], of the samples' shape or of one for all, with a mask (inpainting), a strength (image-to-image) or
            both.
        mask: bool, broadcasts to the samples' shape; True where something new is made, elsewhere the image stays, bit for bit.
        strength: in (0, 1]; the run begins from the noisy image and goes through this share of its timesteps, the last ones.
        device: by default where the network's parameters are; the network must be there.
        progress: show a bar. batch_size: images at a time, all by default.
        frames: keep x after this many steps, see `run_sampler`.
        graph: on CUDA, replay one captured step. None: where the network is a module and it pays; see `graph.py`.

    Returns the images, or (images, frames [F, N, ...]) where frames > 0. Raises ValueError naming the argument, TypeError for
    an option that the sampler has not.
    """
    count = shape[0]
    if device is None:
        device = next((p.device for p in _parameters(network)), scheduler.betas.device)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if timesteps is None:
        timesteps = choose_timesteps(scheduler, steps, spacing or OWN_SPACING.get(sampler, "leading"))
    elif steps is not None or spacing is not None:
        raise ValueError("give steps and spacing, or the timesteps themselves, not both")
    edit = make_edit(image, mask, strength, shape, device)
    if strength is not None:
        timesteps = last_timesteps(timesteps, strength)
    table = sampler_steps(sampler, scheduler, timesteps, prediction, **options)
    seeds = _image_seeds(count, seed, generator, seeds).to(device)
    conditions = Conditions(
        _labels(labels, count, class_count(network), device),
        _for_each("context", context, count, device),
        _for_each("context_mask", context_mask, count, device),
    )
    if x_start is not None and x_start.shape != torch.Size(shape):
        raise ValueError(f"x_start must have shape {tuple(shape)}, got {tuple(x_start.shape)}")
    if graph is None and not isinstance(network, nn.Module):
        graph = False  # what a function does besides computing, a replay would leave out

    done = []
    with _eval_mode(network):
        for first in range(0, max(count, 1), batch_size or max(count, 1)):
            part = slice(first, first + (batch_size or count))
            own = seeds[part]
            x = start_noise((len(own), *shape[1:]), own) if x_start is None else x_start[part].to(device)
            course = None if edit is None else edit.of(part).on(scheduler, table.timesteps, x)
            denoise = guided(network, conditions.of(part), guidance, guidance_rescale)
            shared = {"clip": clip, "threshold": threshold, "progress": progress, "frames": frames, "graph": graph}
            if course is not None:
                x = course.start()
            done.append(run_sampler(denoise, x, table, seeds=own, callback=course and course.after, **shared))
    images = torch.cat([batch for batch, _ in done])
    return (images, torch.cat([kept for _, kept in done], dim=1)) if frames else images


def _image_seeds(count: int, seed: int | None, generator: torch.Generator | None, seeds: torch.Tensor | None) -> torch.Tensor:
    if seeds is None:
        return ops.image_seeds(ops.draw_seed(seed, generator), count)
    if seed is not None or generator is not None:
        raise ValueError("give seeds, one per image, or seed or generator, not both")
    if seeds.shape != (count,):
        raise ValueError(f"seeds must have shape ({count},), got {tuple(seeds.shape)}")
    return seeds


def _labels(
    labels: torch.Tensor | Sequence[int] | int | None, count: int, classes: int | None, device: torch.device | str
) -> torch.Tensor | None:
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.shape not in ((), (count,)):
        raise ValueError(f"labels must be integers, one or {count}, got {labels.dtype} of shape {tuple(labels.shape)}")
    if classes is not None and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, or {classes} for no class, got {labels.tolist()}")
    return labels.to(device, torch.int64).expand(count)


def _for_each(name: str, rows: torch.Tensor | None, count: int, device: torch.device | str) -> torch.Tensor | None:
    if rows is None:
        return None
    if len(rows) not in (1, count):
        raise ValueError(f"{name} must have {count} rows, one for each image, or one for all, got {len(rows)}")
    return rows.to(device).expand(count, *rows.shape[1:])


def _parameters(network: Network) -> Iterator[nn.Parameter]:
    return network.parameters() if isinstance(network, nn.Module) else iter(())


@contextmanager
def _eval_mode(network: Network) -> Iterator[None]:
    """Sample without dropout, then leave every module, a frozen one too, in the mode it was in."""
    modes = {m: m.training for m in network.modules()} if isinstance(network, nn.Module) else {}
    if not any(modes.values()):
        yield
        return
    network.eval()
    try:
        yield
    finally:
        network.train()
        for module, mode in modes.items():
            module.training = mode
