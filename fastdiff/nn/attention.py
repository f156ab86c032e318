"""Attention of the pixels of an image: to each other, or to a context sequence such as the tokens of a text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from ..ops.attention import HEAD_DIMS
from .fused import Map, on_maps
from .init import zeroed
from .norm import GroupNorm, default_groups

HeadDim = int | Literal["all"] | None


def attention_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, each [N, heads, length, d]: torch's own where d is none of the sizes that our op takes."""
    return (ops.attention if q.shape[3] in HEAD_DIMS else F.scaled_dot_product_attention)(q, k, v, mask)


def default_head_dim(channels: int) -> int:
    """64, as in Dhariwal & Nichol 2021; all channels where they are fewer, else their largest divisor below 64."""
    return next(d for d in range(min(64, channels), 0, -1) if channels % d == 0)


def _checked_head_dim(channels: int, head_dim: HeadDim) -> int:
    chosen = default_head_dim(channels) if head_dim is None else channels if head_dim == "all" else head_dim
    if chosen < 1 or channels % chosen:
        raise ValueError(f"head_dim must be a divisor of the {channels} channels, got {head_dim}")
    return chosen


def _norm(groups: int | None, channels: int, eps: float) -> nn.Module:
    groups = default_groups(channels) if groups is None else groups
    return GroupNorm(groups, channels, eps) if groups else nn.Identity()


def _projected(x: torch.Tensor | Map, layer: nn.Linear) -> torch.Tensor:
    """The layer at each pixel of [N, C, H, W]: [N, HW, the layer's width]."""
    if isinstance(x, Map):
        return x.pointwise(layer).tensor().flatten(2).transpose(1, 2)
    return layer(x.flatten(2).transpose(1, 2))  # a view where x is channels_last


def _added(x: torch.Tensor | Map, h: torch.Tensor, layer: nn.Linear) -> torch.Tensor | Map:
    """x + layer(h), for h [N, HW, C]."""
    if isinstance(x, Map):
        return x + x.of(h.transpose(1, 2).unflatten(2, x.shape[2:]), x.counts).pointwise(layer)
    return x + layer(h).transpose(1, 2).reshape(x.shape)


class AttentionBlock(nn.Module):
    """x + proj(attention(qkv(group_norm(x)))): multi-head self-attention, every pixel attends to all of its image.

    head_dim: channels of one head, a divisor of channels; "all": one head; None: 64, or all channels where they are fewer.
        Sizes from 8 to 256 run as `fastdiff.ops.attention`, others as torch's own.
    groups: of the norm; None: the largest divisor of channels not above 32; 0: no norm.
    The output projection starts at zero, so that the block starts as the identity.
    x: [N, channels, H, W], any H and W. Returns x's shape and memory format. Raises ValueError naming the argument.
    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2; in U-Nets Ho et al. 2020, appendix B.
    """

    def __init__(self, channels: int, head_dim: HeadDim = None, groups: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.head_dim = _checked_head_dim(channels, head_dim)
        self.norm = _norm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = _projected(self.norm(x), self.qkv).unflatten(2, (3, -1, self.head_dim))  # [N, HW, 3, heads, d]
        h = attention_of(*qkv.permute(2, 0, 3, 1, 4))  # [N, heads, HW, d]
        return _added(x, h.transpose(1, 2).flatten(2), self.proj)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}"


class CrossAttentionBlock(nn.Module):
    """x + proj(attention(q(group_norm(x)), kv(context))): every pixel attends to all tokens of its image's context.

    context_dim: features of a token. head_dim, groups, eps: see `AttentionBlock`.
    The output projection starts at zero, so that the block starts as the identity.
    x: [N, channels, H, W]; context: [N, S, context_dim], S at least 1, in the weights' dtype (any floating one under autocast).
    mask: bool [N, S], False for tokens to pass over, such as padding; None: none. An image all of whose tokens are passed
        over gets no context: the projection's bias alone is added.
    Returns x's shape and memory format. Raises TypeError or ValueError naming the argument.
    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.3.
    """

    def __init__(
        self, channels: int, context_dim: int, head_dim: HeadDim = None, groups: int | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, got {context_dim}")
        self.head_dim = _checked_head_dim(channels, head_dim)
        self.norm = _norm(groups, channels, eps)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(context_dim, 2 * channels)
        self.proj = zeroed(nn.Linear(channels, channels))

    @on_maps
    def forward(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        self._check(x, context, mask)
        q = _projected(self.norm(x), self.q).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # [N, heads, HW, d]
        k, v = self.kv(context).unflatten(2, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)  # [N, heads, S, d] each
        h = attention_of(q, k, v, None if mask is None else mask[:, None, None])
        return _added(x, h.transpose(1, 2).flatten(2), self.proj)

    def _check(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> None:
        wanted = (x.shape[0], self.kv.in_features)
        if context.dim() != 3 or (context.shape[0], context.shape[2]) != wanted or context.shape[1] < 1:
            raise ValueError(
                f"context must have shape ({wanted[0]}, S, {wanted[1]}) = [N, S, context_dim], S at least 1, "
                f"got {tuple(context.shape)}"
            )
        if mask is None:
            return
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask must be a bool tensor, True for tokens to attend to, got {mask.dtype}")
        if mask.shape != context.shape[:2]:
            raise ValueError(f"mask must have shape {tuple(context.shape[:2])} = [N, S], got {tuple(mask.shape)}")

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}"
