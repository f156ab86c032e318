"""AlexNet in the form that torchvision has."""

from __future__ import annotations

import torch
from torch import nn

from ..nn import Conv2d
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments


class AlexNet(Classifier):
    """Five convolutions, three maxima, three linear layers. Parameters are named as torchvision's.

    x: [N, in_channels, H, W] from 63x63 on, made for 224x224. dropout: before the first two linear layers.
    Source: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", footnote 1.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5, in_channels: int = 3) -> None:
        config = constructor_arguments(locals())
        super().__init__(in_channels, num_classes, 63, "classifier.6", config)
        self.features = nn.Sequential(
            Conv2d(in_channels, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
