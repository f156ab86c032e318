"""Classifier-free guidance: the conditional and the unconditional output in one batched pass. Ho & Salimans 2022.

    m = uncond + w (cond - uncond)

so w = 1 is plain conditional sampling and w = 0 unconditional; the w of Ho & Salimans 2022, equation 6, is ours less 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Network = Callable[..., torch.Tensor]


def class_count(network: Network) -> int | None:
    """How many classes a network knows, so also the index of its null class; None where it knows none.

    Read from `network.num_classes` or else from its `config`.
    """
    count = getattr(network, "num_classes", None)
    return count if count is not None else getattr(network, "config", {}).get("num_classes")


def guided(network: Network, labels: torch.Tensor | None, scale: float = 1.0, rescale: float = 0.0) -> Denoise:
    """denoise(x, t) that runs the network under the labels with guidance.

    Args:
        network: network(x, t, labels); without labels network(x, t).
        labels: int64 [N] on the images' device, or None.
        scale: w above. At 1 the network makes one plain pass per step, else one of twice the batch.
        rescale: phi in 0..1, how far the output goes back to the spread of the conditional one; Lin et al. 2023,
            equations 15 and 16, with one standard deviation per image.

    Raises ValueError for a scale other than 1 without labels or without a null class, and rescale out of range.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be in 0..1, got {rescale}")
    if scale == 1:
        return network if labels is None else lambda x, t: network(x, t, labels)
    if labels is None:
        raise ValueError(f"guidance={scale} needs labels to guide towards")
    null = class_count(network)
    if null is None:
        raise ValueError(f"guidance={scale} needs a network with a null class: build it with num_classes")
    both = torch.cat([labels, torch.full_like(labels, null)])

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, uncond = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        mixed = uncond + scale * (cond - uncond)
        return _rescaled(mixed, cond, rescale) if rescale else mixed

    return denoise


def _rescaled(mixed: torch.Tensor, cond: torch.Tensor, phi: float) -> torch.Tensor:
    sigma_cfg, sigma_pos = (m.flatten(1).std(1, correction=0) for m in (mixed, cond))
    ratio = sigma_pos / sigma_cfg.clamp(min=torch.finfo(mixed.dtype).tiny)  # a constant image has no spread to restore
    return mixed * (phi * ratio + 1 - phi).reshape(-1, *(1,) * (mixed.dim() - 1))
