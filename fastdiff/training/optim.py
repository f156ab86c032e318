"""Optimizer, learning rate and weight averaging."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from ..config import TrainingConfig
from .flat import Flat, flatten


def flatten_trained(model: nn.Module) -> list[Flat]:
    """The model's trained parameters, those of one dtype, device and weight decay in one `Flat` each."""
    kinds: dict[tuple, list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            kinds.setdefault((_decays(p), p.dtype, p.device), []).append(p)
    return [flatten(parameters) for parameters in kinds.values()]


def _decays(parameter: nn.Parameter) -> bool:
    """Only tensors of two and more dimensions decay: biases and norms do not."""
    return parameter.dim() >= 2


def build_optimizer(flats: Sequence[Flat], config: TrainingConfig) -> torch.optim.Optimizer:
    """The config's optimizer over a model's `flatten_trained`."""
    groups = [{"params": [f], "weight_decay": config.weight_decay if _decays(f.parameters[0]) else 0.0} for f in flats]
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

    Update 0, buffers and parameters that are not trained are taken as they are. `model` is the averaged one.
    flats: the model's `flatten_trained`.
    """

    def __init__(self, model: nn.Module, flats: Sequence[Flat], decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.updates = 0
        own = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        averages = [flatten([own[p] for p in flat.parameters], gradients=False) for flat in flats]
        self._weights = [a.detach() for a in averages], [f.detach() for f in flats]
        fixed = own.keys() - {p for flat in flats for p in flat.parameters}
        self._fixed = [*self.model.buffers(), *(own[p] for p in fixed)], [*model.buffers(), *fixed]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are now."""
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 1.0
        torch._foreach_lerp_(*self._weights, share)
        if self._fixed[0]:
            torch._foreach_copy_(*self._fixed)
        self.updates += 1
