"""Residual networks for classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..nn import BottleneckBlock, Conv2d, ResidualBlock
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments

BlockType = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "cifar"]
DEPTHS: dict[int, tuple[BlockType, list[int]]] = {
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
}


class ResNet(Classifier):
    """A stem, four groups of residual blocks of 64, 128, 256 and 512 channels, the mean over pixels, one linear layer.

    block_type: basic (`ResidualBlock`) or bottleneck (`BottleneckBlock`, four times as many channels between blocks).
    num_blocks: of each group; all but the first group halve height and width. `ResNet.of_depth(18)` knows the usual numbers.
    stem: imagenet is a 7x7 convolution of stride 2 and a 3x3 maximum of stride 2; cifar a 3x3 convolution of stride 1 alone,
        for images of 32x32.
    x: [N, in_channels, H, W], any size. Parameters are named as torchvision's. Raises ValueError naming the argument.
    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", table 1 and section 4.2.
    """

    def __init__(
        self,
        block_type: BlockType = "basic",
        num_blocks: Sequence[int] = (2, 2, 2, 2),
        num_classes: int = 1000,
        stem: Stem = "imagenet",
        in_channels: int = 3,
    ) -> None:
        config = constructor_arguments(locals())
        for name, value, allowed in (("block_type", block_type, BlockType), ("stem", stem, Stem)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
        if len(num_blocks) != 4 or min(num_blocks) < 1:
            raise ValueError(f"num_blocks must be four numbers from 1 on, got {num_blocks}")
        super().__init__(in_channels, num_classes, 1, "fc", config)
        small = stem == "cifar"
        self.conv1 = Conv2d(in_channels, 64, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        channels = 64
        for i, count in enumerate(num_blocks):
            width, blocks = 64 << i, []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                if block_type == "basic":
                    blocks.append(ResidualBlock(channels, width, stride))
                    channels = width
                else:
                    blocks.append(BottleneckBlock(channels, width, 4 * width, stride))
                    channels = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    @classmethod
    def of_depth(cls, depth: int, **options: Any) -> ResNet:
        """ResNet-18, 34, 50, 101 or 152; options: further arguments of the class."""
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        return cls(*DEPTHS[depth], **options)

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
