"""The one sampling loop: any sampler is a table of coefficients (`samplers.py`), any model a function denoise(x, t)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

from fastdiff import ops
from fastdiff.diffusion.guidance import Conditions, Denoise, Network, class_count, guided
from fastdiff.diffusion.samplers import SAMPLERS, spaced_timesteps
from fastdiff.diffusion.schedule import NoiseScheduler

Callback = Callable[[int, int, torch.Tensor, torch.Tensor], None]


@torch.inference_mode(False)  # images made here can go on into training
@torch.no_grad()
def run_sampler(
    denoise: Denoise,
    x: torch.Tensor,
    timesteps: Sequence[int],
    coefficients: torch.Tensor,
    *,
    clip: float | None = 1.0,
    seeds: torch.Tensor | None = None,
    progress: bool = False,
    frames: int | None = None,
    callback: Callback | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Walk x along a sampler's table: (images [N, ...], frames [F, N, ...]).

    Args:
        denoise: denoise(x, t) -> the network's output like x, for t int64 [N].
        x: [N, ...], floating, the start noise.
        timesteps, coefficients: a sampler's table, [K] and [K, 6]; see `samplers.py`.
        clip: x0 is clamped to [-clip, clip] in each step; None does not clamp.
        seeds: int64 [N], one per image, for the noise of each step, keyed by the step's position in the loop; None
            where no step has noise.
        progress: show a bar with the steps done.
        frames: keep x after this many steps, evenly spread and with the last among them; at most K.
        callback: callback(k, timesteps[k], x, x0) after step k.

    Raises ValueError where a step needs noise and there are no seeds, or frames is out of range.
    """
    count, frames = len(timesteps), frames or 0
    if not 0 <= frames <= count:
        raise ValueError(f"frames must be in 0..{count}, the number of steps, got {frames}")
    noisy, multistep = ((coefficients[:, k] != 0).tolist() for k in (4, 5))
    if any(noisy) and seeds is None:
        raise ValueError("seeds must be given: this sampler makes noise in its steps")
    rows = coefficients.to(x.device, torch.float32)
    positions = torch.arange(count, device=x.device)
    ts = torch.tensor(list(timesteps), device=x.device)[:, None].repeat(1, x.shape[0])  # [K, N]
    kept_after = {(f + 1) * count // frames - 1 for f in range(frames)}

    kept, x0 = [], None
    for k in tqdm(range(count), desc="sampling", unit="step", disable=not progress):
        m = denoise(x, ts[k]).to(x.dtype)
        previous, keys = x0 if multistep[k] else None, seeds if noisy[k] else None
        x, x0 = ops.sampler_step(x, m, rows[k], previous, clip=clip, seeds=keys, step=positions[k])
        if k in kept_after:
            kept.append(x)
        if callback is not None:
            callback(k, int(timesteps[k]), x, x0)
    return x, torch.stack(kept) if kept else x.new_empty((0, *x.shape))


def start_noise(shape: Sequence[int], seeds: torch.Tensor) -> torch.Tensor:
    """The noise float32 [N, ...] from which the images with these seeds (int64 [N]) start."""
    return ops.philox_normal(shape, seeds, 0, ops.Purpose.SAMPLER_START)


@torch.inference_mode(False)
def sample(
    network: Network,
    scheduler: NoiseScheduler,
    shape: Sequence[int],
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    spacing: str = "leading",
    eta: float = 0.0,
    variance: str = "fixed_small",
    prediction: str = "eps",
    labels: torch.Tensor | Sequence[int] | int | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    clip: float | None = 1.0,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    seeds: torch.Tensor | None = None,
    x_start: torch.Tensor | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    frames: int = 0,
    batch_size: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, ...] from noise, each a function of its own seed: the same in any batch, but for rounding.

    Args:
        network: network(x, t) or, with labels, network(x, t, labels); in eval mode while it samples here.
        shape: [N, C, H, W], or [N, C, T, H, W] for video.
        sampler: a name in SAMPLERS. eta is for 'ddim', variance for 'ddpm'; see `samplers.py`.
        steps: 1..T, all T by default; spacing: 'leading', 'linspace' or 'trailing', see `spaced_timesteps`.
        prediction: what the network predicts, 'eps', 'x0' or 'v'.
        labels: class of each image, int64 [N], or one for all.
        guidance, guidance_rescale: the scale w (1: none) and phi; see `guidance.guided`.
        clip: x0 is clamped to [-clip, clip] in each step; None does not clamp.
        seed, generator: the run's seed, by default drawn from torch's generator. seeds: int64 [N], each image's own,
            instead.
        x_start: [N, ...] in place of the start noise.
        device: by default where the network's parameters are; the network must be there.
        progress: show a bar. batch_size: images at a time, all by default.
        frames: keep x after this many steps, see `run_sampler`.

    Returns the images, or (images, frames [F, N, ...]) where frames > 0. Raises ValueError naming the argument.
    """
    count = shape[0]
    if device is None:
        device = next((p.device for p in _parameters(network)), scheduler.betas.device)
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    options = {"ddim": {"eta": eta}, "ddpm": {"variance": variance}}.get(sampler, {})
    chosen = spaced_timesteps(scheduler.timesteps, scheduler.timesteps if steps is None else steps, spacing)
    timesteps, coefficients = SAMPLERS[sampler](scheduler, chosen, prediction, **options)
    seeds = _image_seeds(count, seed, generator, seeds).to(device)
    conditions = Conditions(_labels(labels, count, class_count(network), device))
    if x_start is not None and x_start.shape != torch.Size(shape):
        raise ValueError(f"x_start must have shape {tuple(shape)}, got {tuple(x_start.shape)}")

    done = []
    with _eval_mode(network):
        for first in range(0, max(count, 1), batch_size or max(count, 1)):
            part = slice(first, first + (batch_size or count))
            own = seeds[part]
            x = start_noise((len(own), *shape[1:]), own) if x_start is None else x_start[part].to(device)
            denoise = guided(network, conditions.of(part), guidance, guidance_rescale)
            options = {"clip": clip, "seeds": own, "progress": progress, "frames": frames}
            done.append(run_sampler(denoise, x, timesteps, coefficients, **options))
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
