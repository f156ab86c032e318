"""What the denoising networks share: one call, its checks, the embedding of time and label, and the config."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..nn import LabelEmbedding, TimeMLP
from .checks import check_images


def constructor_arguments(local: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an `__init__` out of its locals(), taken at its first line, as JSON can hold them."""
    named = {name: value for name, value in local.items() if name not in ("self", "__class__")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


class Denoiser(nn.Module):
    """Base of networks that predict from noisy images, timesteps and labels. A subclass defines `predict(x, emb)`.

    in_channels: of the images. time_embed_dim: width of the embedding, even. num_classes: None without labels.
    levels: resolutions of the network; each but the first halves height and width.
    config: the subclass's `constructor_arguments`. sinusoid_dim, freq_shift: see `TimeMLP`; null_class: see `LabelEmbedding`.
    context_dim: features of a context's tokens, None without; with one it is `predict(x, emb, context, mask)`.
    """

    def __init__(
        self,
        in_channels: int,
        time_embed_dim: int,
        num_classes: int | None,
        levels: int,
        config: dict[str, Any],
        sinusoid_dim: int | None = None,
        freq_shift: float = 0,
        null_class: bool = True,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.context_dim = context_dim
        self.min_size = 2 ** (levels - 1)
        self.time_embedding = TimeMLP(time_embed_dim, sinusoid_dim, freq_shift)
        self.label_embedding = None if num_classes is None else LabelEmbedding(num_classes, time_embed_dim, null_class)
        self._config = config

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON can hold them: `UNet(**unet.config)` builds the same network."""
        return copy.deepcopy(self._config)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor | float,
        labels: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The prediction for noisy images x at timesteps t.

        x: [N, in_channels, H, W], at least one pixel wide and high at the lowest resolution.
        t: [N], in timesteps; a number or a 0-dim tensor stands for the whole batch.
        labels: int [N] in 0..num_classes-1, or num_classes for no label; None is no label throughout.
        context: [N, S, context_dim], floating; None is no context throughout. context_mask: bool [N, S], False for tokens to
            pass over; an image with nothing else has no context.
        Returns [N, out_channels, H, W]. Raises TypeError or ValueError naming the argument.
        """
        self._check_images(x)
        emb = self.time_embedding(self._timesteps(t, x))
        if self.label_embedding is not None:
            label_emb = self.label_embedding(labels)
            if labels is not None and len(labels) != len(x):
                raise ValueError(f"labels must have shape ({len(x)},), got {tuple(labels.shape)}")
            emb = emb + label_emb
        elif labels is not None:
            raise ValueError("labels were given to a network without classes: build it with num_classes")
        if self.context_dim is not None:
            return self.predict(x, emb, *self._context(context, context_mask, x))
        if context is not None:
            raise ValueError("context was given to a network without one: build it with context_dim")
        return self.predict(x, emb)

    def predict(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x: [N, in_channels, H, W]; emb: [N, time_embed_dim]. Returns [N, out_channels, H, W]."""
        raise NotImplementedError

    def _check_images(self, x: torch.Tensor) -> None:
        check_images(x, self.in_channels)
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f"x is too small: this network needs at least {self.min_size}x{self.min_size} pixels, "
                f"got {x.shape[2]}x{x.shape[3]}"
            )

    def _context(
        self, context: torch.Tensor | None, mask: torch.Tensor | None, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if context is not None:
            return context.to(x.dtype), mask
        if mask is not None:
            raise ValueError("context_mask needs a context: give context too")
        none = x.new_zeros(len(x), 1, self.context_dim)
        return none, torch.zeros(none.shape[:2], dtype=torch.bool, device=x.device)

    def _timesteps(self, t: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        if not isinstance(t, torch.Tensor):
            return torch.full((n,), t, device=x.device)
        if t.dim() == 0:
            return t.to(x.device).expand(n)
        if t.shape != (n,):
            raise ValueError(f"t must have shape ({n},), or be one number for the whole batch, got {tuple(t.shape)}")
        return t
