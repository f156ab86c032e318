"""VGG networks of 11, 13, 16 and 19 layers."""

from __future__ import annotations

import torch
from torch import nn

from ..nn.cnn_blocks import vgg_layers
from ..nn.fused import on_maps
from .classifier import Classifier
from .denoiser import constructor_arguments

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Classifier):
    """Five blocks of 3x3 convolutions with a 2x2 maximum each (`VGGBlock`), three linear layers. Parameters as torchvision's.

    depth: 11, 13, 16 or 19 layers with weights. batch_norm: behind each convolution. dropout: behind two of the linear layers.
    x: [N, in_channels, H, W] from 32x32 on, made for 224x224. Raises ValueError naming the argument.
    Source: Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1.
    """

    def __init__(
        self, depth: int, batch_norm: bool = False, num_classes: int = 1000, dropout: float = 0.5, in_channels: int = 3
    ) -> None:
        config = constructor_arguments(locals())
        if depth not in CONVOLUTIONS:
            raise ValueError(f"depth must be one of {', '.join(map(str, CONVOLUTIONS))}, got {depth!r}")
        super().__init__(in_channels, num_classes, 32, "classifier.6", config)
        widths = zip((in_channels, *WIDTHS), WIDTHS, CONVOLUTIONS[depth], strict=False)
        self.features = nn.Sequential(*(layer for block in widths for layer in vgg_layers(*block, batch_norm)))
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )

    @on_maps
    def classify(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
