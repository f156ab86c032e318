"""A network of fastdiff on torch's own layers: what a user of torch alone would have."""

from __future__ import annotations

import math
from functools import partial

import torch
from rivals import group_norm_silu
from torch import nn

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


def with_torch_layers(network: nn.Module) -> None:
    """Norms and the timesteps' embedding of fastdiff's own give way to torch's; attention is torch's on a GPU."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GroupNorm | GroupNormSiLU):
                setattr(module, name, TorchNorm(child))
            elif isinstance(child, TimeEmbedding):
                child.forward = partial(timestep_embedding, dim=child.embed_dim)


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = torch.exp(torch.arange(dim // 2, device=t.device) * (-math.log(10000.0) / (dim // 2 - 1)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
