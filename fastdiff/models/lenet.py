"""LeNet-5, the first convolutional network in wide use."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import Conv2d
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments


class LeNet5(Classifier):
    """Two 5x5 convolutions of 6 and 16 channels, each with tanh and a 2x2 mean, then 120, 84 and num_classes units.

    x: [N, in_channels, 28, 28], which the first convolution pads to the paper's 32x32; no other size.
    Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section II.B, with all maps connected
    and a linear last layer.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        config = constructor_arguments(locals())
        super().__init__(in_channels, num_classes, 28, "classifier.4", config, fixed_size=True)
        self.features = nn.Sequential(
            Conv2d(in_channels, 6, 5, padding=2, init="torch"),
            nn.Tanh(),
            nn.AvgPool2d(2),
            Conv2d(6, 16, 5, init="torch"),
            nn.Tanh(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes)
        )

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
