"""Maps with gradients: each convolution is `ops.norm_conv2d`, which takes the norm and the activation before it along and has
the derivatives of all three; it saves their input alone, and the statistics that the convolution before has left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ... import ops
from ...ops._layout import per_channel
from .convolution import Convolution, changed
from .feature_map import Map, moved

_CONVOLUTION = ops.REGISTRY["norm_conv2d"]


class Norm(NamedTuple):
    """A group norm, and FiLM, that are put off."""

    groups: int
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float
    scale: torch.Tensor | None
    shift: torch.Tensor | None


NO_NORM = Norm(0, None, None, 0.0, None, None)


class TrainedConvolution(Convolution):
    """With gradients of all that it takes; nothing but a bias and a residual comes after it."""

    def run(self, statistics: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, bias = self.source, self.bias
        if self.image_bias is not None:
            bias = self.image_bias if bias is None else bias + self.image_bias
        if self.groups != 1 or self.dilation != (1, 1) or self.stride[0] != self.stride[1]:
            return self._by_torch(x.tensor()), None
        first, second = x.parts if len(x.parts) == 2 else (*x.parts, None)
        partials = (*x.partials, None, None)[:2] if len(x.partials) == len(x.parts) else (None, None)
        weight = self.weight if self.weight.dim() == 4 else self.weight[:, :, None, None]
        norm = NO_NORM if x.norm is None else x.norm
        place = (self.stride[0], list(self.padding), x.doubled)
        y, found, _ = _CONVOLUTION(first, second, *partials, *norm, x.act, weight, bias, self.residual, *place, statistics)
        return y, found if statistics else None

    def _by_torch(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(F.pad(x, self.padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        if self.image_bias is not None:
            y = y + per_channel(self.image_bias.to(y.dtype), y)
        y = y if self.residual is None else y + self.residual
        return y.contiguous(memory_format=torch.channels_last)


@dataclass(eq=False)
class TrainedMap(Map):
    """act(norm(x)), with gradients."""

    norm: Norm | None = None

    @property
    def plain(self) -> bool:
        return self.norm is None and super().plain

    def tensor(self) -> torch.Tensor:
        self.done(False)
        if self.norm is None:
            return super().tensor()
        x = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1)
        x = ops.group_norm_silu(x, *self.norm, self.act)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.doubled else x
        self.parts, self.partials, self.norm, self.act, self.doubled = (x,), (), None, "none", False
        return x

    def convolved(self, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> Map:
        return TrainedMap((), put_off=TrainedConvolution(self.done(), weight, bias, **options), counts=self.counts)

    def activated(self, act: str) -> Map:
        if act == "none":
            return self
        x = self.done()
        if x.act != "none":
            x.tensor()
        return changed(x, act=act)

    def normed(self, groups: int, weight: Any, bias: Any, eps: float, scale: Any = None, shift: Any = None) -> Map:
        x = self.done(True)
        if x.act != "none" or x.norm is not None:
            x.tensor()
        return changed(x, norm=Norm(groups, weight, bias, eps, scale, shift))

    def film(self, scale: torch.Tensor, shift: torch.Tensor | None = None, act: str = "none") -> Map:
        x = self.done(True)
        y = TrainedMap.of(ops.film(x.tensor(), scale, shift, act), self.counts)
        if act == "none" and len(x.partials) == 1:
            with torch.no_grad():
                a = scale.float() if shift is None else 1 + scale.float()
                y.partials = (moved(x.partials[0], a, torch.zeros_like(a) if shift is None else shift.float()),)
        return y

    def scaled(self, factor: torch.Tensor, offset: torch.Tensor) -> Map:
        x = self.tensor()
        return TrainedMap.of((x * per_channel(factor, x) + per_channel(offset, x)).to(x.dtype), self.counts)

    def standing_for(self, y: torch.Tensor) -> Any:
        return TrainedMap.of(y.to(self.dtype), self.counts) if y.dim() == 4 else y
