"""What classification networks share: the call's checks, the config, and learning from somebody else's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

from .checks import check_images


class Classifier(nn.Module):
    """Base of networks from images to logits. A subclass defines `classify(x)`.

    in_channels: of the images. min_size: least height and width, or the only one where `fixed_size`.
    head: the name of the last layer, a linear one. config: the subclass's `constructor_arguments`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, min_size: int, head: str, config: dict[str, Any], fixed_size: bool = False
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        self.in_channels, self.min_size, self.fixed_size = in_channels, min_size, fixed_size
        self.head = head
        self.frozen = False
        self._config = config

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON can hold them: `VGG(**vgg.config)` builds the same network."""
        return copy.deepcopy(self._config)

    @property
    def num_classes(self) -> int:
        return self.get_submodule(self.head).out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, num_classes] of images x [N, in_channels, H, W]. Raises ValueError for images of another shape."""
        self._check_images(x)
        return self.classify(x)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _check_images(self, x: torch.Tensor) -> None:
        check_images(x, self.in_channels)
        size, least = tuple(x.shape[2:]), self.min_size
        if size != (least, least) and (self.fixed_size or min(size) < least):
            raise ValueError(
                f"x must be of {'' if self.fixed_size else 'at least '}{least}x{least} pixels for {type(self).__name__}, "
                f"got {size[0]}x{size[1]}"
            )

    def load_pretrained(self, weights: Mapping[str, torch.Tensor] | str | PathLike[str]) -> list[str]:
        """Take over weights that were trained on other classes: all of them but the head's, where its shape is another.

        weights: a state_dict, or the path of one: .safetensors, or what torch.save wrote (loaded with weights_only).
        Returns the names of the parameters that stay as they were: none, or the head's.
        Raises ValueError for names that are missing or unknown and shapes that differ, saying which were expected.
        """
        weights = dict(weights) if isinstance(weights, Mapping) else _read(weights)
        own = self.state_dict()
        left = [
            name
            for name in own
            if name.startswith(f"{self.head}.") and name in weights and weights[name].shape != own[name].shape
        ]
        missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
        missing = {name for name in missing if not name.endswith("num_batches_tracked")}  # older files have none
        wrong = [name for name in own.keys() & weights.keys() - set(left) if own[name].shape != weights[name].shape]
        problems = [f"it lacks {_some(missing)}"] if missing else []
        problems += [f"it has {_some(unknown)}, which this network does not"] if unknown else []
        problems += [
            f"{name} must have shape {tuple(own[name].shape)}, got {tuple(weights[name].shape)}" for name in sorted(wrong)[:3]
        ]
        if problems:
            raise ValueError(f"these are not weights of this {type(self).__name__}: {'; '.join(problems)}")
        self.load_state_dict({name: v for name, v in weights.items() if name not in left}, strict=False)
        return left

    def replace_head(self, num_classes: int) -> None:
        """A new last layer, with torch's initial weights, for this number of classes."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        old = self.get_submodule(self.head)
        new = nn.Linear(old.in_features, num_classes, old.bias is not None, old.weight.device, old.weight.dtype)
        parent, _, name = self.head.rpartition(".")
        setattr(self.get_submodule(parent), name, new.train(old.training))
        self._config["num_classes"] = num_classes

    def freeze_backbone(self) -> None:
        """Train the head alone: nothing else takes gradients, and batch norms and dropout stay in eval, in `train()` too."""
        self._freeze(True)

    def unfreeze(self) -> None:
        """Train everything again."""
        self._freeze(False)

    def _freeze(self, frozen: bool) -> None:
        self.frozen = frozen
        head = {id(p) for p in self.get_submodule(self.head).parameters()}
        for p in self.parameters():
            p.requires_grad_(not frozen or id(p) in head)
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.frozen and mode:
            head = self.get_submodule(self.head)
            for module in self.modules():
                module.training = module in (self, head)
        return self


def _read(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _some(names: set[str]) -> str:
    first = sorted(names)[:5]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
