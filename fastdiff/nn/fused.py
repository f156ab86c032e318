"""Inference as a chain of `ops.conv2d_fused`: each convolution normalises what it reads and leaves the statistics of what it
writes, so that norms, activations, biases, shortcuts, concatenation and up-sampling are no passes over memory of their own.

`Map` goes from layer to layer in place of a tensor. The layers' parameters, and what they compute, are those of their forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .. import ops
from .attention import AttentionBlock, attention_of
from .norm import GroupNorm, GroupNormSiLU
from .packed import joined, packed_weight
from .resample import Downsample, Upsample
from .residual import TimeResidualBlock

_CONVOLUTION, _NORM = ops.REGISTRY["conv2d_fused"], ops.REGISTRY["norm_affine"]
_DTYPES = (torch.float32, torch.bfloat16)


class Map(NamedTuple):
    """A feature map [N, C, H, W], channels_last, with the statistics of its channels."""

    x: torch.Tensor
    partials: torch.Tensor


Affine = tuple[torch.Tensor, torch.Tensor]


# What the layers of a block must be, exactly: another class, a parametrised layer say, may compute something else.
_LAYERS: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    TimeResidualBlock: {
        "norm1": (GroupNormSiLU,),
        "norm2": (GroupNormSiLU,),
        "conv1": (nn.Conv2d,),
        "conv2": (nn.Conv2d,),
        "shortcut": (nn.Conv2d, nn.Identity),
        "time_proj": (nn.Linear,),
    },
    AttentionBlock: {"norm": (GroupNorm, nn.Identity), "qkv": (nn.Linear,), "proj": (nn.Linear,)},
}


def serves(network: nn.Module, x: torch.Tensor) -> bool:
    """Whether this call of a network may run here: in eval mode on a CPU with kernels, without gradients, traces and hooks."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or network.training:
        return False
    if x.device.type != "cpu" or computed_in(x) not in _DTYPES or not _CONVOLUTION.compiled("CPU"):
        return False
    return all(_as_built(module) for module in network.modules())


def _as_built(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    layers = _LAYERS.get(type(module), {})
    return all(type(module._modules[name]) in types for name, types in layers.items())


def computed_in(x: torch.Tensor) -> torch.dtype:
    """x's dtype, or autocast's."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def convolution(
    layer: nn.Conv2d | nn.Linear,
    parts: Sequence[torch.Tensor],
    affine: Affine | None = None,
    act: str = "none",
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    upsample: bool = False,
    statistics: bool = True,
) -> Map:
    """layer(act(a x + b)) + residual of one tensor, or of two next to each other; bias: in place of the layer's."""
    x, x2 = parts if len(parts) == 2 else (*parts, None)
    weight, packed = packed_weight(layer, x.dtype)
    stride, padding = 1, [0, 0, 0, 0]
    if isinstance(layer, nn.Conv2d):
        stride, (top, left) = layer.stride[0], layer.padding
        padding = list(layer.zeros) if isinstance(layer, Downsample) else [left, left, top, top]
    a, b = affine or (None, None)
    bias = layer.bias if bias is None else bias
    return Map(*_CONVOLUTION(x, x2, weight, packed, a, b, act, bias, residual, "none", stride, padding, upsample, statistics))


def affine(
    norm: GroupNorm | GroupNormSiLU, parts: Sequence[Map], scale: torch.Tensor | None = None, shift: torch.Tensor | None = None
) -> Affine:
    """The norm of one map, or of two next to each other, as a factor and an offset for each channel."""
    first, second = parts[0].partials, parts[1].partials if len(parts) == 2 else None
    return _NORM(first, second, norm.num_groups, norm.weight, norm.bias, norm.eps, scale, shift)


def residual_block(block: TimeResidualBlock, parts: Sequence[Map], c: torch.Tensor) -> Map:
    """`TimeResidualBlock.forward`; c: the block's projection of the embedding, float32 [N, its width]."""
    tensors = [part.x for part in parts]
    shortcut = tensors[0] if len(tensors) == 1 else None
    if not isinstance(block.shortcut, nn.Identity):
        shortcut = convolution(block.shortcut, tensors, statistics=False).x
    elif shortcut is None:
        shortcut = torch.cat(tensors, 1)
    bias = block.conv1.bias + c if block.conditioning == "add" else None
    h = convolution(block.conv1, tensors, affine(block.norm1, parts), block.norm1.act, bias=bias)
    if block.conditioning == "scale_shift":
        inner = affine(block.norm2, [h], *c.chunk(2, dim=1))
    elif block.conditioning == "scale":  # the norm of c h, from the statistics of h
        factors = torch.stack((torch.ones_like(c), c, c * c), -1)[:, :, None]
        a, b = affine(block.norm2, [Map(h.x, h.partials * factors)])
        inner = (a * c, b)
    else:
        inner = affine(block.norm2, [h])
    return convolution(block.conv2, [h.x], inner, block.norm2.act, residual=shortcut)


def attention_block(block: AttentionBlock, x: Map) -> Map:
    """`AttentionBlock.forward`."""
    normed = affine(block.norm, [x]) if isinstance(block.norm, GroupNorm) else None
    qkv = convolution(block.qkv, [x.x], normed, statistics=False).x  # [N, 3 C, H, W]
    n, _, height, width = qkv.shape
    qkv = qkv.permute(0, 2, 3, 1).view(n, height * width, 3, -1, block.head_dim)
    h = attention_of(*qkv.permute(2, 0, 3, 1, 4))  # [N, heads, HW, d]
    h = h.transpose(1, 2).reshape(n, height, width, -1).permute(0, 3, 1, 2)  # [N, C, H, W], channels_last
    return convolution(block.proj, [h], residual=x.x)


def upsampled(layer: Upsample, x: Map, size: tuple[int, int]) -> Map:
    """`Upsample.forward`."""
    if tuple(size) == (2 * x.x.shape[2], 2 * x.x.shape[3]):
        return convolution(layer, [x.x], upsample=True)
    return convolution(layer, [F.interpolate(x.x, size=size, mode="nearest")])


def projections(network: nn.Module, blocks: Sequence[TimeResidualBlock], emb: torch.Tensor) -> Sequence[torch.Tensor]:
    """Every block's projection of the embedding, in float32: one product for all."""
    emb = F.silu(emb)
    weight, bias = joined(network, [block.time_proj for block in blocks], computed_in(emb))
    return F.linear(emb, weight, bias).float().split([block.time_proj.out_features for block in blocks], 1)
