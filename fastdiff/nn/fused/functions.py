"""Torch's functions on Maps: what can be put off is, whatever else answers NotImplemented and runs on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ..packed import BatchNorm
from .convolution import changed
from .feature_map import Features, Map, _free


def _on_maps(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def note(ours: Callable[..., Any]) -> Callable[..., Any]:
        Map.FUNCTIONS.update(dict.fromkeys(functions, ours))
        return ours

    return note


def _pair(v: Any) -> tuple[int, int]:
    if type(v) is tuple and len(v) == 2:
        return v
    if isinstance(v, int):
        return v, v
    first, second = v if len(v) == 2 else (*v, *v)
    return first, second


@_on_maps(F.conv2d)
def conv2d(
    x: Any, weight: torch.Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Any:
    if not isinstance(x, Map) or weight.dim() != 4 or x.shape[1] != weight.shape[1] * groups:
        return NotImplemented
    if weight.dtype is not x.dtype and not torch.is_autocast_enabled(x.device.type):
        return NotImplemented
    stride, dilation = _pair(stride), _pair(dilation)
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        top, left, bottom, right = reach[0] // 2, reach[1] // 2, (reach[0] + 1) // 2, (reach[1] + 1) // 2
    else:
        top, left = bottom, right = (0, 0) if padding == "valid" else _pair(padding)
    y = x.convolved(weight, bias, stride=stride, padding=(left, right, top, bottom), dilation=dilation, groups=groups)
    return y if min(y.put_off.shape) > 0 else NotImplemented  # torch says what is wrong


@_on_maps(F.batch_norm)
def batch_norm(
    x: Any,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or torch.is_grad_enabled() or mean is None or var is None or x.shape[1] != mean.shape[0]:
        return NotImplemented
    norm = BatchNorm(mean, var, weight, bias, eps)
    if _free(x) and x.put_off.norm is None and x.put_off.image_bias is None:
        return changed(x, put_off=changed(x.put_off, norm=norm))
    a, b = norm.affine()
    n = x.shape[0]
    return x.scaled(a.expand(n, -1), b.expand(n, -1))


@_on_maps(torch.add, torch.Tensor.add, torch.Tensor.__add__)
def add(x: Any, y: Any, alpha: Any = 1) -> Any:
    if alpha != 1:
        return NotImplemented
    return x + y if isinstance(x, Map) else y + x


@_on_maps(F.group_norm)
def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    return x.normed(groups, weight, bias, eps) if x.shape[1] % groups == 0 else NotImplemented


def _activation(name: str) -> Callable[..., Any]:
    def act(x: Any, inplace: bool = False) -> Any:
        y = x.activated(name)
        return x.become(y) if inplace else y

    return act


for _name, *_functions in (("relu", F.relu, torch.relu, torch.Tensor.relu), ("silu", F.silu)):
    _on_maps(*_functions)(_activation(_name))
_on_maps(torch.relu_)(lambda x: x.become(x.activated("relu")))


@_on_maps(F.gelu)
def gelu(x: Any, approximate: str = "none") -> Any:
    return x.activated("gelu") if approximate == "none" else NotImplemented


@_on_maps(F.leaky_relu)
def leaky_relu(x: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    if negative_slope != 0.01:
        return NotImplemented
    y = x.activated("leaky_relu")
    return x.become(y) if inplace else y


@_on_maps(F.dropout, F.dropout2d)
def dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training else x


@_on_maps(F.interpolate)
def interpolate(x: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args: Any, **kwargs: Any) -> Any:
    height, width = x.shape[2:]
    twice = tuple(size) == (2 * height, 2 * width) if isinstance(size, Sequence) else scale_factor in (2, (2, 2))
    if mode != "nearest" or not twice or args or any(v is not None and v is not False for v in kwargs.values()):
        return NotImplemented
    return changed(x.done(), doubled=True) if not x.doubled else NotImplemented


@_on_maps(torch.cat, torch.concat)
def cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    if dim not in (1, -3) or len(tensors) != 2 or not all(isinstance(v, Map) for v in tensors):
        return NotImplemented
    first, second = tensors
    return first.joined(second) if first.shape[2:] == second.shape[2:] else NotImplemented


def linear(x: Features, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    if weight.dtype is x.dtype or not torch.is_autocast_enabled(x.device.type):
        return NotImplemented
    return x.projected(weight, bias)


Features.FUNCTIONS[F.linear] = linear
