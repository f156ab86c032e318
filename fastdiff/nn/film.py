"""FiLM layer: an embedding scales and shifts the channels of an image."""

from __future__ import annotations

import torch
from torch import nn

from .. import ops
from ..ops._checks import check_act
from .fused import Map
from .init import zeroed


class FiLM(nn.Module):
    """act(x * (1 + scale) + shift) with [scale, shift] = Linear(emb); scale and shift start at zero.

    x: [N, channels, L], [N, channels, H, W] or [N, channels, T, H, W]; emb: [N, embed_dim].
    act: none, silu, relu, leaky_relu (slope 0.01) or gelu (exact).
    Returns x's shape, dtype and memory format. Raises ValueError naming the argument.
    Source: Perez et al. 2018, "FiLM: Visual Reasoning with a General Conditioning Layer", equations 1 and 2.
    """

    def __init__(self, embed_dim: int, channels: int, act: str = "none") -> None:
        super().__init__()
        check_act(act)
        self.act = act
        self.proj = zeroed(nn.Linear(embed_dim, 2 * channels))

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        scale, shift = self.proj(emb).to(x.dtype).chunk(2, dim=1)  # autocast may have made the projection bf16
        return x.film(scale, shift, self.act) if isinstance(x, Map) else ops.film(x, scale, shift, self.act)

    def extra_repr(self) -> str:
        return f"act={self.act}"
