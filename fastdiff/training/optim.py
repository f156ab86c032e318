"""Optimizer, learning rate and weight averaging."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

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


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights, with decay min(decay, (1 + n) / (10 + n)) after n updates."""

    @torch.no_grad()
    def update(average: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor | int) -> None:
        count = int(n)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)
