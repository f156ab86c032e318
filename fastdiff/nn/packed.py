"""Packed weights of layers, kept between calls of a network in eval mode.

A layer's are made again when its weight is another tensor, or was changed in place. Optimizers may change weights without
telling torch (fused ones, and those of `fastdiff.training`, which hold many weights as one tensor), so each step of any
optimizer counts as a change of all. What is left are writes to `.data` outside of an optimizer: `repack(model)` after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..ops.conv2d_fused import gains_by_winograd
from ..ops.pack_conv_weight import pack_conv_weight


class Packed(NamedTuple):
    """A layer's weight as [Cout, Cin, kh, kw] in the dtype that is computed in, and packed."""

    weight: torch.Tensor
    packed: torch.Tensor


class Joined(NamedTuple):
    """Several linear layers as one: their outputs side by side."""

    weight: torch.Tensor
    bias: torch.Tensor


_kept: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Any]] = WeakKeyDictionary()
_steps = 0


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


def _made_once(owner: nn.Module, parameters: Sequence[torch.Tensor], dtype: torch.dtype, make: Callable[[], Any]) -> Any:
    """What `make` makes of these parameters, kept with their owner while it is in eval mode."""
    key = (dtype, _steps, *((p.data_ptr(), p._version, p.device) for p in parameters))
    found = _kept.get(owner)
    if found is not None and found[0] == key and not owner.training:
        return found[1]
    with torch.inference_mode(False), torch.no_grad():  # what is kept must serve outside of inference mode too
        made = make()
    if owner.training:
        _kept.pop(owner, None)
    else:
        _kept[owner] = (key, made)
    return made


def packed_weight(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> Packed:
    """The layer's weight for `conv2d_fused` in this dtype; a linear layer is a 1x1 convolution."""

    def make() -> Packed:
        weight = layer.weight.detach().to(dtype)
        weight = weight[:, :, None, None] if weight.dim() == 2 else weight
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        return Packed(weight, pack_conv_weight(weight, gains_by_winograd(weight, stride)))

    return _made_once(layer, (layer.weight,), dtype, make)


def joined(owner: nn.Module, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Joined:
    """The layers' weights and biases in this dtype, one below the other; `owner` is the module that they are kept with."""

    def make() -> Joined:
        weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
        return Joined(weight.to(dtype), bias.to(dtype))

    return _made_once(owner, [p for layer in layers for p in (layer.weight, layer.bias)], dtype, make)


def repack(model: nn.Module) -> None:
    """Forget what was made of the weights of a model's layers: needed only after a write to a weight's `.data`."""
    for layer in model.modules():
        _kept.pop(layer, None)
