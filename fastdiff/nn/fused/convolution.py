"""A convolution that is put off, with what comes before and behind it, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import functional as F

from ... import ops
from ...ops._activation import activate
from ...ops._layout import per_channel
from ...ops.conv2d_fused import gains_by_winograd
from ..packed import BatchNorm, packed_weight

if TYPE_CHECKING:
    from .feature_map import Map

_CONVOLUTION = ops.REGISTRY["conv2d_fused"]
FEW_CHANNELS = 4  # of an image, for which conv2d_fused fills its blocks with zeros
Either = TypeVar("Either", "Convolution", "Map")


def changed(v: Either, **changes: Any) -> Either:
    """As `dataclasses.replace`, in a fifth of its time."""
    new = object.__new__(type(v))
    new.__dict__.update(v.__dict__, **changes)
    return new


@dataclass(eq=False)
class Convolution:
    """A convolution that is put off: of `source`, whose own prologue it takes along, and what comes after it."""

    source: Map
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    norm: BatchNorm | None = None
    image_bias: torch.Tensor | None = None  # [N, Cout]
    residual: torch.Tensor | None = None
    act: str = "none"

    def __post_init__(self) -> None:
        n, _, height, width = self.source.shape
        left, right, top, bottom = self.padding
        outputs, _, kh, kw = self.weight.shape if self.weight.dim() == 4 else (*self.weight.shape, 1, 1)
        height = (height + top + bottom - self.dilation[0] * (kh - 1) - 1) // self.stride[0] + 1
        width = (width + left + right - self.dilation[1] * (kw - 1) - 1) // self.stride[1] + 1
        self.shape = torch.Size((n, outputs, height, width))

    def run(self, statistics: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, stride = self.source, self.stride[0]
        if not self._is_ours(statistics):
            return self._by_torch(x.tensor()), None
        winograd = gains_by_winograd(self.weight, stride, self.shape[2] * self.shape[3], x.dtype)
        w = packed_weight(self.weight, x.dtype, winograd, self.bias, self.norm)
        first, second = x.parts if len(x.parts) == 2 else (*x.parts, None)
        a, b = x.affine or (None, None)
        bias = w.bias
        if self.image_bias is not None:
            bias = self.image_bias if bias is None else bias + self.image_bias
        inputs = (first, second, w.weight, w.packed, a, b, x.act)
        place = (stride, list(self.padding), x.doubled)
        y, partials = _CONVOLUTION(*inputs, bias, self.residual, self.act, *place, statistics)
        return y, partials if statistics else None

    def _is_ours(self, statistics: bool) -> bool:
        """What `conv2d_fused` does at all, and faster than torch."""
        if self.groups != 1 or self.dilation != (1, 1) or self.stride[0] != self.stride[1]:
            return False
        return statistics or not self.source.plain or self.source.shape[1] > FEW_CHANNELS

    def _by_torch(self, x: torch.Tensor) -> torch.Tensor:
        w = packed_weight(self.weight, x.dtype, None, self.bias, self.norm)
        bias = None if w.bias is None else w.bias.to(x.dtype)
        y = F.conv2d(F.pad(x, self.padding), w.weight, bias, self.stride, 0, self.dilation, self.groups)
        if self.image_bias is not None:
            y = y + per_channel(self.image_bias.to(y.dtype), y)
        if self.residual is not None:
            y = y + self.residual
        y = y.contiguous(memory_format=torch.channels_last)
        return y.relu_() if self.act == "relu" else activate(y, self.act)
