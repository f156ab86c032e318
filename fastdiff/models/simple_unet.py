"""The smallest U-Net worth the name: three resolutions, one residual block each way, no attention."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import DownBlock, Downsample, UpBlock
from ..nn.fused import Map, on_maps
from ..nn.init import zeroed
from ..nn.norm import norm_silu
from ..nn.residual import projections
from .denoiser import Denoiser, constructor_arguments


class SimpleUNet(Denoiser):
    """U-Net with base_channels, twice and four times as many at full, half and quarter size: 28 -> 14 -> 7 for MNIST.

    base_channels: at the full size. in_channels: of the images and of the prediction.
    time_embed_dim: width of the embedding of t and label, even; None: 4 * base_channels.
    num_classes: None without labels.
    The last convolution starts at zero. Images of 4x4 pixels and more. Calls: see `Denoiser.forward`.
    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B, cut down.
    """

    def __init__(
        self,
        base_channels: int = 64,
        in_channels: int = 1,
        time_embed_dim: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        config = constructor_arguments(locals())
        dim = 4 * base_channels if time_embed_dim is None else time_embed_dim
        super().__init__(in_channels, dim, num_classes, levels=3, config=config)
        full, half, quarter = base_channels, 2 * base_channels, 4 * base_channels

        self.conv_in = nn.Conv2d(in_channels, full, 3, padding=1)
        self.down_full = DownBlock(full, full, dim)
        self.to_half = Downsample(full)
        self.down_half = DownBlock(full, half, dim)
        self.to_quarter = Downsample(half)
        self.middle = DownBlock(half, quarter, dim)
        self.up_half = UpBlock(quarter + half, half, dim)
        self.up_full = UpBlock(half + full, full, dim)
        self.norm_out = norm_silu("group", full)
        self.conv_out = zeroed(nn.Conv2d(full, in_channels, 3, padding=1))

    @on_maps
    def predict(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        if isinstance(x, Map):
            emb = projections(self, emb)
        full = self.down_full(self.conv_in(x), emb)
        half = self.down_half(self.to_half(full), emb)
        quarter = self.middle(self.to_quarter(half), emb)
        x = self.up_full(self.up_half(quarter, half, emb), full, emb)
        return self.conv_out(self.norm_out(x))
