"""Networks as chains of `ops.conv2d_fused`, or of `ops.norm_conv2d` where there are gradients: norms, activations, biases,
shortcuts, concatenation and up-sampling are not passes over memory of their own, but prologue and epilogue of the convolutions
around them.

A block whose forward has the decorator `on_maps` runs so wherever `serves` says that it may: the forward is the one that is
written there, on `Map`s in place of images. A Map puts off what it is asked for until the convolution that can take it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ... import ops
from ..packed import joined
from . import functions  # fills the table of what Maps put off
from .feature_map import Map
from .plan import forget, key_of, plans_of
from .stand_in import tensors
from .trained import TrainedMap

__all__ = ["Map", "Projections", "by_layers", "functions", "modules_of", "on_maps", "serves", "trains"]

_CONVOLUTION, _TRAINED = ops.REGISTRY["conv2d_fused"], ops.REGISTRY["norm_conv2d"]
# On CUDA those of tensor cores: in float32 torch's convolutions are faster than products one by one.
_DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16, torch.float16)}
_KNOWN = ("torch.nn.modules.", "fastdiff.")  # where layers come from whose forward takes Maps, or whatever acts like a tensor


_off = False


@contextmanager
def by_layers() -> Iterator[None]:
    """Where networks run on their layers one by one, to be compared with."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def on_maps(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's forward, or another method of it, with its images as Maps where `serves` allows it."""

    @wraps(forward)
    def run(self: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Any:
        if _off or torch.compiler.is_compiling() or not isinstance(x, torch.Tensor) or x.device.type not in _DTYPES:
            return forward(self, x, *args, **kwargs)
        if torch.is_grad_enabled():
            if self.training:
                forget(self)
            of = _on_maps if trains(self, x) else _by_layers
            return of(forward, self, x, *args, **kwargs)
        given = (x, *args, *kwargs.values())
        key, plans = (forward, *key_of(given), *kwargs), plans_of(self)
        inputs = [v for v in given if isinstance(v, torch.Tensor)]
        if (plan := plans.find(key)) is not None:
            return plan(*inputs)
        if not serves(self, x):
            return forward(self, x, *args, **kwargs)
        return plans.run(key, modules_of(self), lambda: _on_maps(forward, self, x, *args, **kwargs), inputs)

    return run


def _on_maps(forward: Callable[..., Any], network: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    dtype, kind = computed_in(x), TrainedMap if torch.is_grad_enabled() else Map
    counts = any(isinstance(module, nn.GroupNorm) for module in modules_of(network))

    def start(v: Any) -> Any:
        return kind.of(v.to(dtype), counts) if isinstance(v, torch.Tensor) and v.dim() == 4 else v

    y = forward(network, start(x), *map(start, args), **{name: start(v) for name, v in kwargs.items()})
    if not isinstance(y, Map):
        return tensors(y)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.tensor().contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _by_layers(forward: Callable[..., Any], network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return forward(network, *args, **kwargs)


def serves(network: nn.Module, x: Any) -> bool:
    """Whether this call may run on Maps: in eval mode on a device with kernels, without gradients, traces and hooks."""
    if torch.is_grad_enabled() or network.training or not _takes(x) or not _CONVOLUTION.compiled(x.device.type.upper()):
        return False
    return all(_as_built(module, network) for module in modules_of(network))


def trains(network: nn.Module, x: Any) -> bool:
    """Whether this call may run on Maps with gradients: networks with group norms, on a CPU with kernels, without dropout,
    traces and hooks. Without group norms most of a network's layers would be torch's own all the same."""
    if not torch.is_grad_enabled() or not _takes(x) or x.device.type != "cpu" or not _TRAINED.compiled("CPU"):
        return False
    modules = modules_of(network)
    if not any(isinstance(module, nn.GroupNorm) for module in modules):
        return False
    return all(_as_built(m, network) and not (m._backward_hooks or m._backward_pre_hooks or _drops(m)) for m in modules)


def _takes(x: Any) -> bool:
    if _off or torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, torch.Tensor):
        return False
    return x.dim() == 4 and x.numel() > 0 and computed_in(x) in _DTYPES.get(x.device.type, ())


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout | nn.Dropout2d) and module.training and module.p > 0


def modules_of(network: nn.Module) -> list[nn.Module]:
    """As `network.modules()`, in a tenth of its time, which is some of a small network's; one that is shared may come twice."""
    found = [network]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
    return found


def _as_built(module: nn.Module, network: nn.Module) -> bool:
    """Another class, a parametrised layer say, may compute something else."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    return module is network or type(module).__module__.startswith(_KNOWN)


def computed_in(x: torch.Tensor) -> torch.dtype:
    """x's dtype, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Projections:
    """An embedding [N, E] on its way to all of a network's linear layers that project silu(embedding): without
    gradients one product for all."""

    def __init__(self, network: nn.Module, layers: Sequence[nn.Linear], emb: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            emb = F.silu(emb)
            self._found = {id(layer): layer(emb).float() for layer in layers}
            return
        weight, bias = joined(network, layers, computed_in(emb))
        widths = [layer.out_features for layer in layers]
        parts = F.linear(F.silu(emb), weight, bias).float().split(widths, 1)
        self._found = {id(layer): part for layer, part in zip(layers, parts, strict=True)}

    def of(self, layer: nn.Linear) -> torch.Tensor:
        """Float32 [N, the layer's width]."""
        return self._found[id(layer)]
