"""Packed weights, kept between calls.

What was made of a weight is made again when the weight is another tensor, or was changed in place, or float32 shall be
multiplied otherwise. Optimizers may change weights without telling torch (fused ones, and those of `fastdiff.training`, which
hold many weights as one tensor), so each step of any optimizer counts as a change of all. What is left are writes to `.data`
outside of an optimizer: `repack(model)` after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..ops._library import multiplies_tiles
from ..ops._precision import splits_float32
from ..ops.conv2d_fused import is_split
from ..ops.pack_conv_weight import pack_conv_weight


class BatchNorm(NamedTuple):
    """What a batch norm does in eval mode: (x - mean) / sqrt(var + eps) * weight + bias, each [C]."""

    mean: torch.Tensor
    var: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) float32 [C] with the same result a x + b."""
        a = (self.var.double() + self.eps).rsqrt()
        a = a if self.weight is None else a * self.weight
        b = -self.mean * a
        return a.float(), (b if self.bias is None else b + self.bias).float()


class Packed(NamedTuple):
    """A convolution's weight [Cout, Cin, kh, kw] in the dtype that is computed in, packed, and its bias."""

    weight: torch.Tensor
    packed: torch.Tensor | None
    bias: torch.Tensor | None


class Joined(NamedTuple):
    """Several linear layers as one: their outputs side by side."""

    weight: torch.Tensor
    bias: torch.Tensor


class _Kept(NamedTuple):
    owner: ref
    key: tuple[Any, ...]
    made: Any


_kept: dict[int, _Kept] = {}  # by the owner's id: tensors, which have no equality, are owners too
_changes = 0  # that torch does not count


def state() -> tuple[Any, ...]:
    """What is made of weights depends on, but the weights and their versions."""
    return _changes, multiplies_tiles(), splits_float32()


def _count(*_: Any) -> None:
    global _changes
    _changes += 1


register_optimizer_step_post_hook(_count)


def _made_once(owner: Any, read: Sequence[torch.Tensor | None], options: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` makes of the tensors that it reads, kept with their owner."""
    key = (state(), *options, *((v.data_ptr(), v._version, v.device) for v in read if v is not None))
    found = _kept.get(id(owner))
    if found is not None and found.key == key:
        return found.made
    with torch.inference_mode(False), torch.no_grad():  # what is kept must serve outside of inference mode too
        made = make()
    _kept[id(owner)] = _Kept(ref(owner, partial(_forget, id(owner))), key, made)
    return made


def _forget(owner: int, _: ref) -> None:
    """When an owner goes, before another object takes its id."""
    _kept.pop(owner, None)


def packed_weight(
    weight: torch.Tensor,
    dtype: torch.dtype,
    winograd: bool | None,
    bias: torch.Tensor | None = None,
    norm: BatchNorm | None = None,
) -> Packed:
    """A convolution's weight for `conv2d_fused` in this dtype, the batch norm behind it included.

    weight: [Cout, Cin / groups, kh, kw], or a linear layer's [Cout, Cin], a 1x1 convolution. winograd: None: not packed.
    """

    def make() -> Packed:
        w, b = weight.detach(), bias
        w = w[:, :, None, None] if w.dim() == 2 else w
        if norm is not None:
            factor, offset = norm.affine()
            w = w.float() * factor[:, None, None, None]
            b = offset if b is None else torch.addcmul(offset, b.detach().float(), factor)
        w = w.to(dtype)
        return Packed(w, None if winograd is None else pack_conv_weight(w, winograd, is_split(w)), b)

    read = (weight,) if norm is None else (weight, bias, norm.mean, norm.var, norm.weight, norm.bias)
    made = _made_once(weight, read, (dtype, winograd, norm and norm.eps), make)
    return made if norm is not None else made._replace(bias=bias)


def joined(owner: nn.Module, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Joined:
    """The layers' weights and biases in this dtype, one below the other; `owner` is the module that they are kept with."""

    def make() -> Joined:
        weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
        return Joined(weight.to(dtype), bias.to(dtype))

    return _made_once(owner, [p for layer in layers for p in (layer.weight, layer.bias)], (dtype,), make)


def repack(model: nn.Module) -> None:
    """Forget what was made of a model's weights: needed only after a write to a weight's `.data`."""
    _count()
    drop(model)


def drop(model: nn.Module) -> None:
    """Free what was made of a model's weights."""
    for owner in (*model.modules(), *model.parameters()):
        _kept.pop(id(owner), None)
