"""The residual block of diffusion U-Nets: two convolutions, conditioned on an embedding between them."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from .fused import Map, Projections, modules_of, on_maps
from .init import zeroed
from .norm import Norm, norm_silu

Conditioning = Literal["scale_shift", "scale", "add"]


class TimeResidualBlock(nn.Module):
    """shortcut(x) + conv2(dropout(silu(norm2(conv1(silu(norm1(x))))))), conditioned on c = Linear(silu(emb)).

    conditioning, the place and form of c:
        scale_shift: after the second norm, norm2(h) * (1 + scale) + shift with [scale, shift] = c, in one op with SiLU
        scale: after the first convolution, h * c; c starts at 1
        add: after the first convolution, h + c
    The last two come before a norm, which removes what all channels of a group have in common: with one channel per
    group nothing of them is left, and the constructor warns.
    norm: group (groups None: the largest divisor of the channels not above 32), instance or batch.
    The second convolution starts at zero, so that the block starts as its shortcut: the identity, or a 1x1
    convolution where the number of channels changes.

    x: [N, in_channels, H, W]; emb: [N, time_embed_dim] in the weights' dtype (any floating one under autocast).
    Returns [N, out_channels, H, W]. Raises ValueError naming the argument.
    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B (add); Dhariwal & Nichol 2021,
    "Diffusion Models Beat GANs on Image Synthesis", section 3 (scale_shift).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_embed_dim: int,
        conditioning: Conditioning = "scale_shift",
        norm: Norm = "group",
        groups: int | None = None,
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if conditioning not in get_args(Conditioning):
            raise ValueError(f"conditioning must be one of {', '.join(get_args(Conditioning))}, got {conditioning!r}")
        self.conditioning = conditioning
        self.norm1 = norm_silu(norm, in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_embed_dim, out_channels * (2 if conditioning == "scale_shift" else 1))
        self.norm2 = norm_silu(norm, out_channels, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

        if conditioning == "scale":
            nn.init.zeros_(self.time_proj.weight)
            nn.init.ones_(self.time_proj.bias)
        if conditioning != "scale_shift" and getattr(self.norm2, "num_groups", None) == out_channels:
            warnings.warn(
                f"conditioning={conditioning!r} cancels in a norm with one channel per group: "
                f"choose groups below {out_channels}, or conditioning='scale_shift'",
                stacklevel=2,
            )

    @on_maps
    def forward(self, x: torch.Tensor, emb: torch.Tensor | Projections) -> torch.Tensor:
        h = self.conv1(self.norm1(x))
        c = emb.of(self.time_proj) if isinstance(emb, Projections) else self._projected(emb, x).to(h.dtype)
        match self.conditioning:
            case "scale_shift":
                h = self.norm2(h, *c.chunk(2, dim=1))
            case "scale":
                h = self.norm2(h.film(c) if isinstance(h, Map) else ops.film(h, c))
            case "add":
                h = self.norm2(h + c[:, :, None, None])
        return self.shortcut(x) + self.conv2(self.dropout(h))

    def _projected(self, emb: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        wanted = (x.shape[0], self.time_proj.in_features)
        if emb.shape != wanted:
            raise ValueError(f"emb must have shape {wanted} = [N, time_embed_dim], got {tuple(emb.shape)}")
        return self.time_proj(F.silu(emb))


def projections(network: nn.Module, emb: torch.Tensor) -> Projections:
    """What all residual blocks of a network make of the embedding."""
    return Projections(network, [m.time_proj for m in modules_of(network) if isinstance(m, TimeResidualBlock)], emb)
