"""Classifier-free guidance: the conditional and the unconditional output in one batched pass. Ho & Salimans 2022.

    m = uncond + w (cond - uncond)

so w = 1 is plain conditional sampling and w = 0 unconditional; the w of Ho & Salimans 2022, equation 6, is ours less 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Network = Callable[..., torch.Tensor]


def class_count(network: Network) -> int | None:
    """How many classes a network knows, so also the index of its null class; None where it knows none.

    Read from `network.num_classes` or else from its `config`.
    """
    count = getattr(network, "num_classes", None)
    return count if count is not None else getattr(network, "config", {}).get("num_classes")


class Conditions(NamedTuple):
    """What images are made under, each row of each tensor for one image; None where there is no such condition."""

    labels: torch.Tensor | None = None  # int64 [N]
    context: torch.Tensor | None = None  # [N, S, context_dim]: the tokens of a text, say
    context_mask: torch.Tensor | None = None  # bool [N, S], False for tokens to pass over

    def of(self, images: slice) -> Conditions:
        """Those of some of the images."""
        return Conditions(*(None if rows is None else rows[images] for rows in self))

    def arguments(self) -> tuple[tuple[torch.Tensor | None, ...], dict[str, torch.Tensor]]:
        """What a network is called with after (x, t): labels by position, the others by name, where there are any."""
        named = {"context": self.context, "context_mask": self.context_mask}
        named = {name: rows for name, rows in named.items() if rows is not None}
        return (self.labels,) if self.labels is not None or named else (), named


def guided(network: Network, conditions: Conditions, scale: float = 1.0, rescale: float = 0.0) -> Denoise:
    """denoise(x, t) that runs the network under the conditions with guidance.

    Args:
        network: network(x, t), with labels network(x, t, labels), with a context network(x, t, labels, context=...,
            context_mask=...).
        conditions: on the images' device.
        scale: w above. At 1 the network makes one plain pass per step, else one of twice the batch, whose second half has
            the null class and a context of which every token is passed over.
        rescale: phi in 0..1, how far the output goes back to the spread of the conditional one; Lin et al. 2023,
            equations 15 and 16, with one standard deviation per image.

    Raises ValueError for a scale other than 1 without conditions, for labels without a null class, and rescale out of range.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance_rescale must be in 0..1, got {rescale}")
    if scale == 1:
        labels, named = conditions.arguments()
        return lambda x, t: network(x, t, *labels, **named)
    labels, named = _both(conditions, _unconditional(network, conditions, scale)).arguments()

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        cond, uncond = network(torch.cat([x, x]), torch.cat([t, t]), *labels, **named).chunk(2)
        mixed = uncond + scale * (cond - uncond)
        return _rescaled(mixed, cond, rescale) if rescale else mixed

    return denoise


def _unconditional(network: Network, conditions: Conditions, scale: float) -> Conditions:
    labels, context, mask = conditions
    if labels is None and context is None:
        raise ValueError(f"guidance={scale} needs labels or a context to guide towards")
    if labels is not None:
        null = class_count(network)
        if null is None or not getattr(network, "config", {}).get("null_class", True):
            raise ValueError(f"guidance={scale} needs a network with a null class: build it with num_classes")
        labels = torch.full_like(labels, null)
    if context is not None:
        mask = torch.zeros(context.shape[:2], dtype=torch.bool, device=context.device)
    return Conditions(labels, context, mask)


def _both(first: Conditions, second: Conditions) -> Conditions:
    if first.context is not None and first.context_mask is None:
        first = first._replace(context_mask=torch.ones_like(second.context_mask))
    return Conditions(*(None if a is None else torch.cat([a, b]) for a, b in zip(first, second, strict=True)))


def _rescaled(mixed: torch.Tensor, cond: torch.Tensor, phi: float) -> torch.Tensor:
    sigma_cfg, sigma_pos = (m.flatten(1).std(1, correction=0) for m in (mixed, cond))
    ratio = sigma_pos / sigma_cfg.clamp(min=torch.finfo(mixed.dtype).tiny)  # a constant image has no spread to restore
    return mixed * (phi * ratio + 1 - phi).reshape(-1, *(1,) * (mixed.dim() - 1))
