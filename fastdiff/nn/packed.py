"""Packed weights of layers, kept between calls of a network in eval mode.

A layer's are made again when its weight is another tensor, or was changed in place. Optimizers may change weights without
telling torch (fused ones, and those of `fastdiff.training`, which hold many weights as one tensor), so each step of any
optimizer counts as a change of all. What is left are writes to `.data` outside of an optimizer: `repack(model)` after them.
"""

from __future__ import annotations

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


_kept: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Packed]] = WeakKeyDictionary()
_steps = 0


def _count(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


def packed_weight(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> Packed:
    """The layer's weight for `conv2d_fused` in this dtype; a linear layer is a 1x1 convolution."""
    weight = layer.weight
    key = (weight.data_ptr(), weight._version, weight.device, dtype, _steps)
    found = _kept.get(layer)
    if found is not None and found[0] == key and not layer.training:
        return found[1]
    with torch.inference_mode(False), torch.no_grad():  # kept tensors must serve outside of inference mode too
        made = weight.detach().to(dtype)
        made = made[:, :, None, None] if made.dim() == 2 else made
        stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        packed = Packed(made, pack_conv_weight(made, gains_by_winograd(made, stride)))
    if layer.training:
        _kept.pop(layer, None)
    else:
        _kept[layer] = (key, packed)
    return packed


def repack(model: nn.Module) -> None:
    """Forget the packed weights of a model's layers: needed only after a write to a weight's `.data`."""
    for layer in model.modules():
        _kept.pop(layer, None)
