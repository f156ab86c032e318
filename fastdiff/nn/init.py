"""Initialisation that layers share."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias set to zero, so that the residual branch it ends starts as nothing.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1; for diffusion Ho et al. 2020.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
