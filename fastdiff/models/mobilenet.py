"""MobileNet of depthwise separable convolutions."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import DepthwiseSeparableConv2d, conv_block
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments

# channels and stride: table 1 of the paper
LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNetV1(Classifier):
    """A 3x3 convolution of stride 2, thirteen `DepthwiseSeparableConv2d`, the mean over pixels, one linear layer.

    width: factor for all numbers of channels, rounded down, at least 1. x: [N, in_channels, H, W], any size.
    Raises ValueError naming the argument.
    Source: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", table 1.
    """

    def __init__(self, num_classes: int = 1000, width: float = 1.0, in_channels: int = 3) -> None:
        config = constructor_arguments(locals())
        if not width > 0:
            raise ValueError(f"width must be above 0, got {width!r}")
        super().__init__(in_channels, num_classes, 1, "fc", config)
        channels = max(int(32 * width), 1)
        layers: list[nn.Module] = [conv_block(in_channels, channels, s=2)]
        for outputs, stride in LAYERS:
            outputs = max(int(outputs * width), 1)
            layers.append(DepthwiseSeparableConv2d(channels, outputs, 3, padding=1, stride=stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
