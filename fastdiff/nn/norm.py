"""Normalisation layers, with modulation and activation in the same pass over memory."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from ..ops._checks import check_act
from .fused import Map

Norm = Literal["group", "instance", "batch"]


def default_groups(channels: int) -> int:
    """The largest divisor of channels that is not above 32."""
    if channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}")
    return next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm, with its arguments, state_dict and repr, computed by `ops.group_norm_silu`.

    x: [N, C, L], [N, C, H, W] or [N, C, T, H, W]; the result has its shape, dtype and memory format.
    Unlike torch's it takes no other number of dimensions, and eps must be above 0.
    Source: Wu & He 2018, "Group Normalization".
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, Map):
            return super().forward(x)
        return ops.group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, act="none")


class GroupNormSiLU(nn.GroupNorm):
    """act(group_norm(x) * (1 + scale) + shift) in one op; without scale and shift act(group_norm(x)).

    x: [N, C, L], [N, C, H, W] or [N, C, T, H, W]; scale, shift: [N, C] in float32 or x's dtype, each may be None.
    act: none, silu, relu, leaky_relu (slope 0.01) or gelu (exact). The state_dict is that of torch.nn.GroupNorm.
    Returns x's shape, dtype and memory format. Raises TypeError or ValueError naming the argument.
    Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 (AdaGN).
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, act: str = "silu") -> None:
        super().__init__(num_groups, num_channels, eps, affine)
        check_act(act)
        self.act = act

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        if isinstance(x, Map):
            return x.normed(self.num_groups, self.weight, self.bias, self.eps, scale, shift).activated(self.act)
        return ops.group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, self.act)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act}"


class BatchNormSiLU(nn.BatchNorm2d):
    """silu(batch_norm(x) * (1 + scale) + shift): `GroupNormSiLU` with the statistics of the batch.

    x: [N, C, H, W]; scale, shift: [N, C], both or neither. The state_dict is that of torch.nn.BatchNorm2d.
    Source: Ioffe & Szegedy 2015, "Batch Normalization".
    """

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        x = super().forward(x)
        if scale is None:
            return F.silu(x)
        return x.film(scale, shift, "silu") if isinstance(x, Map) else ops.film(x, scale, shift, act="silu")


def norm_silu(norm: Norm, channels: int, groups: int | None = None, eps: float = 1e-5) -> GroupNormSiLU | BatchNormSiLU:
    """The layer norm + FiLM + SiLU for a norm's name. groups is for norm "group" alone; None means `default_groups`."""
    match norm:
        case "group":
            groups = default_groups(channels) if groups is None else groups
            if groups < 1 or channels % groups:
                raise ValueError(f"groups must be a divisor of the {channels} channels to normalise, got {groups}")
            return GroupNormSiLU(groups, channels, eps)
        case "instance":
            return GroupNormSiLU(channels, channels, eps)
        case "batch":
            return BatchNormSiLU(channels, eps)
    raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
