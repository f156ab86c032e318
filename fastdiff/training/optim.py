"""Optimizer, learning rate and weight averaging."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from ..config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The config's optimizer. Only tensors of two and more dimensions decay: biases and norms do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)
    raise ValueError(f"training.optimizer must be adamw, adam or sgd, got {config.optimizer!r}")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant, or a cosine from lr at the end of the warm-up to 0 after the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class Average:
    """An exponential moving average of a model's weights, with decay min(decay, (1 + n) / (10 + n)) in update n from 1 on.

    Update 0 and buffers are taken as they are. `model` is the averaged one. It does what torch's `AveragedModel` does with the
    tensors listed once: that one lists them anew in each step, which takes five times as long as the average itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.updates = 0
        self._weights = list(self.model.parameters()), list(model.parameters())
        self._buffers = list(self.model.buffers()), list(model.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are now."""
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 1.0
        torch._foreach_lerp_(*self._weights, share)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)
        self.updates += 1
