"""Self-attention over the pixels of an image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from ..ops.attention import HEAD_DIMS
from .init import zeroed
from .norm import GroupNorm, default_groups


def attention_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, each [N, heads, pixels, d]: torch's own where d is none of the sizes that our op takes."""
    return (ops.attention if q.shape[3] in HEAD_DIMS else F.scaled_dot_product_attention)(q, k, v)


def default_head_dim(channels: int) -> int:
    """64, as in Dhariwal & Nichol 2021; all channels where they are fewer, else their largest divisor below 64."""
    return next(d for d in range(min(64, channels), 0, -1) if channels % d == 0)


class AttentionBlock(nn.Module):
    """x + proj(attention(qkv(group_norm(x)))): multi-head self-attention, every pixel attends to all of its image.

    head_dim: channels of one head, a divisor of channels; None: 64, or all channels where they are fewer. Sizes from 8 to 256
        run as `fastdiff.ops.attention`, others as torch's own.
    groups: of the norm; None: the largest divisor of channels not above 32.
    The output projection starts at zero, so that the block starts as the identity.
    x: [N, channels, H, W], any H and W. Returns x's shape and memory format. Raises ValueError naming the argument.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; in U-Nets Ho et al. 2020, appendix B.
    """

    def __init__(self, channels: int, head_dim: int | None = None, groups: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.head_dim = default_head_dim(channels) if head_dim is None else head_dim
        if self.head_dim < 1 or channels % self.head_dim:
            raise ValueError(f"head_dim must be a divisor of the {channels} channels, got {head_dim}")
        self.norm = GroupNorm(default_groups(channels) if groups is None else groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # [N, HW, C]: a view where x is channels_last
        qkv = self.qkv(pixels).unflatten(2, (3, -1, self.head_dim))  # [N, HW, 3, heads, d]
        h = attention_of(*qkv.permute(2, 0, 3, 1, 4))  # [N, heads, HW, d]
        h = self.proj(h.transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}"
