"""Blocks of classification networks. Names of parameters are torchvision's where it has the block, so that its weights load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from .conv import Conv2d
from .fused import on_maps
from .norm import default_groups

ACTS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(inplace=True),
    "gelu": nn.GELU,
}
BlockNorm = Literal["batch", "group", "none"]


class ConvNormAct(nn.Module):
    """act(norm(conv(x))).

    padding: None keeps height and width at stride 1, for odd kernels. norm: batch, group (the largest divisor of the channels
    not above 32) or none. act: none, relu, silu, leaky_relu (slope 0.01) or gelu. bias: None means only where there is no norm.
    x: [N, in_channels, H, W]. Returns [N, out_channels, H', W']. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: BlockNorm = "batch",
        act: str = "relu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if norm not in get_args(BlockNorm):
            raise ValueError(f"norm must be one of {', '.join(get_args(BlockNorm))}, got {norm!r}")
        if act not in ACTS:
            raise ValueError(f"act must be one of {', '.join(ACTS)}, got {act!r}")
        if padding is None:
            kernel, spread = (v if isinstance(v, tuple) else (v, v) for v in (kernel_size, dilation))
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, spread, strict=True))
        bias = norm == "none" if bias is None else bias
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        match norm:
            case "batch":
                self.norm = nn.BatchNorm2d(out_channels, eps)
            case "group":
                self.norm = nn.GroupNorm(default_groups(out_channels), out_channels, eps)
            case "none":
                self.norm = nn.Identity()
        self.act = ACTS[act]()

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


def conv_block(in_ch: int, out_ch: int, k: int = 3, s: int = 1, p: int = 1) -> nn.Sequential:
    """Convolution of k x k with stride s and padding p, without a bias, then batch norm and ReLU."""
    return nn.Sequential(Conv2d(in_ch, out_ch, k, s, p, bias=False), nn.BatchNorm2d(out_ch), nn.ReLU(inplace=True))


def vgg_layers(in_channels: int, out_channels: int, num_convs: int, batch_norm: bool = False) -> list[nn.Module]:
    """num_convs of 3x3 convolution, batch norm if any, and ReLU; then a 2x2 maximum with stride 2."""
    if num_convs < 1:
        raise ValueError(f"num_convs must be at least 1, got {num_convs}")
    layers: list[nn.Module] = []
    for i in range(num_convs):
        layers.append(Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, padding=1))
        layers += [nn.BatchNorm2d(out_channels)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
    return [*layers, nn.MaxPool2d(2, 2)]


class VGGBlock(nn.Sequential):
    """num_convs of 3x3 convolution (with batch norm if asked for) and ReLU, then a 2x2 maximum.

    x: [N, in_channels, H, W], at least 2x2. Returns [N, out_channels, H // 2, W // 2].
    Source: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", table 1.
    """

    def __init__(self, in_channels: int, out_channels: int, num_convs: int, batch_norm: bool = False) -> None:
        super().__init__(*vgg_layers(in_channels, out_channels, num_convs, batch_norm))

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut where its shape changes: 1x1 convolution and batch norm."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResidualBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), both convolutions 3x3, the first with the stride.

    x: [N, in_channels, H, W]. Returns [N, out_channels, ceil(H / stride), ceil(W / stride)].
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 2, option B.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class BottleneckBlock(nn.Module):
    """relu(1x1 -> 3x3 -> 1x1 + shortcut(x)), each convolution with batch norm; the 3x3 one has the stride.

    x: [N, in_channels, H, W]. Returns [N, out_channels, ceil(H / stride), ceil(W / stride)].
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", figure 5; the stride's place as in torchvision.
    """

    def __init__(self, in_channels: int, bottleneck_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, bottleneck_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(bottleneck_channels)
        self.conv2 = Conv2d(bottleneck_channels, bottleneck_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck_channels)
        self.conv3 = Conv2d(bottleneck_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class InceptionModule(nn.Module):
    """Four branches over the same image, side by side: 1x1; 1x1 then 3x3; 1x1 then 5x5; 3x3 maximum then 1x1.

    ch3x3red, ch5x5red: channels of the 1x1 convolutions before. large_kernel: of the third branch, 5 as in the paper; 3 is what
    torchvision has. batch_norm: behind each convolution, as torchvision has it; the paper has none.
    x: [N, in_channels, H, W]. Returns [N, ch1x1 + ch3x3 + ch5x5 + pool_proj, H, W].
    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", figure 2b.
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        large_kernel: int = 5,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int) -> ConvNormAct:
            return ConvNormAct(inputs, outputs, kernel, norm="batch" if batch_norm else "none", eps=1e-3)

        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3red, 1), conv(ch3x3red, ch3x3, 3))
        self.branch3 = nn.Sequential(conv(in_channels, ch5x5red, 1), conv(ch5x5red, ch5x5, large_kernel))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1, ceil_mode=True), conv(in_channels, pool_proj, 1))

    @on_maps
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)
