"""Halving and doubling of an image's height and width, with a 3x3 convolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .fused import Map


class Downsample(nn.Conv2d):
    """3x3 convolution with stride 2: [N, C, H, W] to [N, C, ceil(H/2), ceil(W/2)], or with padding 0 to [.., H // 2, W // 2].

    padding: 1, a line of zeros all around; 0, one on the right and one below alone, as in the code of Ho et al. 2020.
    Raises ValueError for another padding.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        if padding not in (0, 1):
            raise ValueError(f"padding must be 0 or 1, got {padding}")
        super().__init__(channels, channels, 3, stride=2, padding=padding)
        self.zeros = (padding, 1, padding, 1)  # lines on the left and right, above and below

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, Map):
            return x.convolved(self.weight, self.bias, stride=self.stride, padding=self.zeros)
        return super().forward(x if self.padding == (1, 1) else F.pad(x, self.zeros))


class Upsample(nn.Conv2d):
    """Nearest neighbour to the given size, twice the image's unless given, then a 3x3 convolution.

    x: [N, C, H, W]; size: (height, width) of the result, so that an odd size that was halved can be met again.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        return super().forward(F.interpolate(x, size=size, mode="nearest"))
