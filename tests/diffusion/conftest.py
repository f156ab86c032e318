import math

import pytest
import torch
from torch import nn

from fastdiff.diffusion.levels import abar_at


class ToyNetwork(nn.Module):
    """Element by element and of few operations, so batch-invariant bit for bit; the class shifts the output."""

    def __init__(self, num_classes=None, channels=1):
        super().__init__()
        self.num_classes = num_classes
        self.config = {"in_channels": channels, "num_classes": num_classes}
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, x, t, labels=None):
        self.calls.append((tuple(x.shape), self.training))
        shift = 0 if labels is None else (labels * 0.125).reshape(-1, *(1,) * (x.dim() - 1))
        return self.dropout(x * self.weight) + (t * 2.0**-12).reshape(-1, *(1,) * (x.dim() - 1)) + shift


class GaussianDenoiser:
    """The exact network for images whose pixels are independent N(mean, std^2): Bayes' rule, in closed form."""

    def __init__(self, scheduler, mean=0.3, std=0.5, prediction="eps"):
        self.scheduler, self.mean, self.std, self.prediction = scheduler, mean, std, prediction
        self.whole = scheduler.exact["alphas_cumprod"].tolist()

    def abar(self, t):
        return self.whole[int(t)] if t == int(t) else float(abar_at(self.scheduler, [t]))

    def lines(self, t):
        """(p, q) with output = p + q x at timestep t, float64."""
        abar = self.abar(t)
        a = math.sqrt(abar)
        b = math.sqrt(1 - abar)
        gain = a * self.std**2 / (a**2 * self.std**2 + b**2)
        p, q = self.mean * (1 - gain * a), gain  # x0 = p + q x
        if self.prediction == "eps":
            return -a * p / b, (1 - a * q) / b
        if self.prediction == "v":
            return -p / b, (a - q) / b
        if self.prediction == "edm":  # x0 = k0 x + k1 F
            variance = 0.25 * a**2 + b**2
            k0, k1 = 0.25 * a / variance, 0.5 * b / math.sqrt(variance)
            return p / k1, (q - k0) / k1
        return p, q

    def __call__(self, x, t):
        p, q = self.lines(float(t[0]))
        if self.prediction == "edm":  # what comes has unit variance for data of spread 0.5
            abar = self.abar(float(t[0]))
            x = x * math.sqrt(0.25 * abar + 1 - abar)
        return p + q * x


@pytest.fixture
def toy():
    return ToyNetwork


@pytest.fixture
def gaussian():
    return GaussianDenoiser
