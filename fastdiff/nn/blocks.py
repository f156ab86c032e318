"""One level of a U-Net on its way down and on its way up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .fused import on_maps
from .residual import TimeResidualBlock


class DownBlock(TimeResidualBlock):
    """A residual block of the way down. It keeps height and width: its result is the skip, `Downsample` comes after.

    x: [N, in_channels, H, W]; emb: [N, time_embed_dim]. Returns [N, out_channels, H, W]. Arguments as the base class.
    """


class UpBlock(nn.Module):
    """Nearest-neighbour up-sampling to the size of the skip, concatenation with it, a residual block.

    in_channels: those of x and skip together; options: further arguments of `TimeResidualBlock`.
    x: [N, C, H, W]; skip: [N, in_channels - C, H', W'], usually 2H and 2W; emb: [N, time_embed_dim].
    Returns [N, out_channels, H', W']. Raises ValueError where the channels do not add up to in_channels.
    Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", section 2.
    """

    def __init__(self, in_channels: int, out_channels: int, time_embed_dim: int, **options: Any) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.residual = TimeResidualBlock(in_channels, out_channels, time_embed_dim, **options)

    @on_maps
    def forward(self, x: torch.Tensor, skip: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if x.shape[1] + skip.shape[1] != self.in_channels:
            raise ValueError(f"x and skip must have {self.in_channels} channels together, got {x.shape[1]} and {skip.shape[1]}")
        x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
        return self.residual(torch.cat((x, skip), dim=1), emb)
