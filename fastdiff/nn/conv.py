"""Convolution layers."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

Init = Literal["he", "torch"]


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d with its arguments, state_dict and repr, whose weights start as He et al. have them.

    init: "he" draws weights from a normal distribution of variance 2 / fan-in, which keeps the scale of activations through
        layers with ReLU, and sets biases to zero; "torch" is torch's own.
    Without gradients, in a network that runs on `conv2d_fused`, see `fastdiff.nn.fused`.
    Source: He et al. 2015, "Delving Deep into Rectifiers", equation 10.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        init: Init = "he",
    ) -> None:
        if init not in get_args(Init):
            raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {init!r}")
        self.init = init  # torch's constructor calls reset_parameters
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )

    def reset_parameters(self) -> None:
        if self.init == "torch":
            super().reset_parameters()
            return
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class DepthwiseSeparableConv2d(nn.Sequential):
    """A convolution of each channel by itself, then one of 1x1 that mixes them, each with batch norm and ReLU.

    For 3x3 about eight to nine times fewer products than an ordinary convolution. options: stride, dilation, bias (False).
    x: [N, in_channels, H, W]. Returns [N, out_channels, H', W'].
    Source: Howard et al. 2017, "MobileNets", section 3.1 and figure 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int | str = 1,
        *,
        bias: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            Conv2d(in_channels, in_channels, kernel_size, padding=padding, groups=in_channels, bias=bias, **options),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            Conv2d(in_channels, out_channels, 1, bias=bias),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
