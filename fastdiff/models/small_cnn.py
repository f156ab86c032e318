"""Small classifiers for images of 32x32: what a first course trains."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import Conv2d, conv_block
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments


class SmallCNN(Classifier):
    """Two of 3x3 convolution, batch norm, ReLU and a 2x2 maximum, of 32 and 64 channels, then 128 hidden units.

    x: [N, in_ch, 32, 32], no other size. 545,290 parameters for 3 channels and 10 classes.
    """

    def __init__(self, in_ch: int = 3, num_classes: int = 10) -> None:
        config = constructor_arguments(locals())
        super().__init__(in_ch, num_classes, 32, "classifier.2", config, fixed_size=True)
        layers: list[nn.Module] = []
        for inputs, outputs in ((in_ch, 32), (32, 64)):
            layers += [Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(64 * 8 * 8, 128), nn.ReLU(inplace=True), nn.Linear(128, num_classes))

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class DeeperCNN(Classifier):
    """Four `conv_block`s of 64, 64, 128 and 256 channels, a 2x2 maximum after the second and third, the mean over pixels.

    x: [N, in_ch, H, W], from 4x4 on. 410,826 parameters for 3 channels and 10 classes.
    """

    def __init__(self, in_ch: int = 3, num_classes: int = 10) -> None:
        config = constructor_arguments(locals())
        super().__init__(in_ch, num_classes, 4, "fc", config)
        self.features = nn.Sequential(
            conv_block(in_ch, 64),
            conv_block(64, 64),
            nn.MaxPool2d(2),
            conv_block(64, 128),
            nn.MaxPool2d(2),
            conv_block(128, 256),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(256, num_classes)

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
