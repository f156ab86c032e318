"""What all networks say of images that they cannot take."""

from __future__ import annotations

import torch


def check_images(x: torch.Tensor, in_channels: int) -> None:
    """Raises ValueError unless x is [N, in_channels, H, W]."""
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions [N, C, H, W], got shape {tuple(x.shape)}")
    if x.shape[1] != in_channels:
        raise ValueError(f"x must have in_channels = {in_channels} channels, got shape {tuple(x.shape)}")
