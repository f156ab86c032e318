"""Images as users hold them, as the batch that a model trains on."""

from __future__ import annotations

import numpy as np
import torch


def as_batch(images: np.ndarray | torch.Tensor, channels: int, device: torch.device) -> torch.Tensor:
    """float32 [N, channels, H, W] on the device, from a tensor [N, C, H, W] or an array [N, H, W, C], floating.

    The other order counts where the channels tell. Raises TypeError for other images, ValueError for another shape.
    """
    x = torch.as_tensor(images)
    if not x.is_floating_point():
        raise TypeError(f"images must be floating, in [-1, 1], got {x.dtype}: see fastdiff.data.normalize_images")
    if x.dim() != 4 or channels not in (x.shape[1], x.shape[3]):
        raise ValueError(
            f"images must be a tensor [N, {channels}, H, W] or an array [N, H, W, {channels}], got {tuple(x.shape)}"
        )
    usual = 1 if isinstance(images, torch.Tensor) else 3
    if x.shape[usual] != channels:
        usual = 4 - usual
    return (x.permute(0, 3, 1, 2) if usual == 3 else x).to(device, torch.float32).contiguous()
