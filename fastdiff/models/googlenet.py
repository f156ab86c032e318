"""GoogLeNet, out of Inception modules."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import ConvNormAct, InceptionModule
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments

# in_channels, ch1x1, ch3x3red, ch3x3, ch5x5red, ch5x5, pool_proj: table 1 of the paper
MODULES = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class GoogLeNet(Classifier):
    """A stem of three convolutions, nine `InceptionModule`s, the mean over pixels, one linear layer; batch norm throughout.

    large_kernel: of the modules' third branch: 5 as in the paper, or 3, which torchvision's weights are made for. Those load
        with `.bn.` in their names changed to `.norm.`, without their auxiliary classifiers, which this network does not have.
    x: [N, in_channels, H, W], from 15x15 on, made for 224x224. dropout: before the linear layer.
    Source: Szegedy et al. 2015, "Going Deeper with Convolutions", table 1; batch norm: Ioffe & Szegedy 2015.
    """

    def __init__(self, num_classes: int = 1000, large_kernel: int = 5, dropout: float = 0.2, in_channels: int = 3) -> None:
        config = constructor_arguments(locals())
        if large_kernel not in (3, 5):
            raise ValueError(f"large_kernel must be 3 or 5, got {large_kernel!r}")
        super().__init__(in_channels, num_classes, 15, "fc", config)
        self.conv1 = ConvNormAct(in_channels, 64, 7, stride=2, eps=1e-3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = ConvNormAct(64, 64, 1, eps=1e-3)
        self.conv3 = ConvNormAct(64, 192, 3, eps=1e-3)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        for name, channels in MODULES.items():
            if name == "4a":
                self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
            if name == "5a":
                self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
            setattr(self, f"inception{name}", InceptionModule(*channels, large_kernel=large_kernel))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        for name, layer in self.named_children():  # in the order of the constructor
            if name == "avgpool":
                break
            x = layer(x)
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
