"""A network of fastdiff on torch's own layers: what a user of torch alone would have."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from rivals import group_norm_silu
from torch import nn
from torch.nn import functional as F

from fastdiff.nn import AttentionBlock
from fastdiff.nn.embedding import TimeEmbedding
from fastdiff.nn.norm import GroupNorm, GroupNormSiLU


class TorchNorm(nn.Module):
    """`GroupNormSiLU` and `GroupNorm` as torch has them."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm, self.act = norm, getattr(norm, "act", "none")

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        norm = self.norm
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, scale, shift, self.act)


def seeded(build: Callable[[], nn.Module], side: str) -> nn.Module:
    """A new network, of the same weights on each side of a comparison; "torch": on torch's own layers."""
    torch.manual_seed(0)
    network = build()
    for p in network.parameters():  # some start at zero, which would hide what they multiply
        if not p.any():
            nn.init.normal_(p, std=0.02)
    if side == "torch":
        with_torch_layers(network)
    return network


def with_torch_layers(network: nn.Module) -> None:
    """Norms, attention and the timesteps' embedding of fastdiff's own give way to torch's."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GroupNorm | GroupNormSiLU):
                setattr(module, name, TorchNorm(child))
            elif isinstance(child, TimeEmbedding):
                child.forward = partial(timestep_embedding, dim=child.embed_dim)
            elif isinstance(child, AttentionBlock):
                child.forward = partial(attend, child)


def attend(block: AttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """`AttentionBlock.forward`, with torch's fused attention."""
    pixels = block.norm(x).flatten(2).transpose(1, 2)  # [N, HW, C]
    qkv = block.qkv(pixels).unflatten(2, (3, -1, block.head_dim)).permute(2, 0, 3, 1, 4)  # [3, N, heads, HW, d]
    h = block.proj(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
    return x + h.transpose(1, 2).reshape(x.shape)


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = torch.exp(torch.arange(dim // 2, device=t.device) * (-math.log(10000.0) / (dim // 2)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
