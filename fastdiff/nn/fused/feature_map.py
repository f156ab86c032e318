"""`Map`: a feature map whose last operations are put off, so that the convolutions around them take them along.

Torch's functions take a Map in place of a tensor (`__torch_function__`). Those named in `functions.py` are put off; before any
other the Map becomes the tensor that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from ... import ops
from ...ops._activation import activate
from ...ops._layout import per_channel
from ..packed import packed_weight
from .convolution import Convolution, changed
from .stand_in import StandIn, value

_NORM = ops.REGISTRY["norm_affine"]


@dataclass(eq=False)
class Map(StandIn):
    """act(a x + b), twice as high and wide where `doubled`, x being one tensor or two next to each other over channels.

    parts: x, [N, C, H, W], channels_last; empty until `put_off` has run. partials: statistics of each part, before a and b.
    affine: (a, b), float32 [N, C] each. counts: whether convolutions leave statistics, for group norms that follow.
    """

    FUNCTIONS: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}  # filled by functions.py

    parts: tuple[torch.Tensor, ...]
    partials: tuple[torch.Tensor, ...] = ()
    affine: tuple[torch.Tensor, torch.Tensor] | None = None
    act: str = "none"
    doubled: bool = False
    put_off: Convolution | None = None
    counts: bool = False

    @classmethod
    def of(cls, x: torch.Tensor, counts: bool) -> Map:
        return cls((x.contiguous(memory_format=torch.channels_last),), counts=counts)

    def done(self, statistics: bool | None = None) -> Map:
        """Itself, with no convolution put off any more."""
        if self.put_off is not None:
            y, partials = self.put_off.run(self.counts if statistics is None else statistics)
            self.parts, self.partials, self.put_off = (y,), () if partials is None else (partials,), None
        return self

    @property
    def plain(self) -> bool:
        """Whether nothing is to be done to x."""
        return self.put_off is None and self.affine is None and self.act == "none" and not self.doubled

    def tensor(self) -> torch.Tensor:
        self.done(False)
        if not self.plain or len(self.parts) > 1:
            x = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1)
            if self.affine is not None:
                x = torch.addcmul(per_channel(self.affine[1], x), x.float(), per_channel(self.affine[0], x)).to(x.dtype)
            x = activate(x, self.act)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.doubled else x
            same_statistics = self.affine is None and self.act == "none" and not self.doubled
            self.partials = (torch.cat(self.partials, 1),) if same_statistics and self.partials else ()
            self.parts, self.affine, self.act, self.doubled = (x,), None, "none", False
        return self.parts[0]

    def become(self, other: Map) -> Map:
        """What an operation in place leaves."""
        self.__dict__ = dict(other.__dict__)
        return self

    # What a tensor says of itself.

    @property
    def shape(self) -> torch.Size:
        if self.put_off is not None:
            return self.put_off.shape
        if len(self.parts) == 1 and not self.doubled:
            return self.parts[0].shape
        n, _, height, width = self.parts[0].shape
        times = 2 if self.doubled else 1
        return torch.Size((n, sum(part.shape[1] for part in self.parts), times * height, times * width))

    @property
    def dtype(self) -> torch.dtype:
        return self.put_off.source.dtype if self.put_off is not None else self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.put_off.source.device if self.put_off is not None else self.parts[0].device

    def dim(self) -> int:
        return 4

    def __len__(self) -> int:
        return self.shape[0]

    # What is put off.

    def convolved(self, weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> Map:
        return Map((), put_off=Convolution(self.done(), weight, bias, **options), counts=self.counts)

    def pointwise(self, layer: nn.Linear) -> Map:
        """A linear layer over the channels of each pixel."""
        return self.convolved(layer.weight, layer.bias)

    def activated(self, act: str) -> Map:
        if act == "none":
            return self
        if self.put_off is not None and self.put_off.act == "none":
            return changed(self, put_off=changed(self.put_off, act=act))
        if self.act != "none":
            self.tensor()
        return changed(self.done(), act=act)

    def film(self, scale: torch.Tensor, shift: torch.Tensor | None = None, act: str = "none") -> Map:
        """`ops.film`: act(x (1 + scale) + shift), or x scale without shift; scale and shift [N, C]."""
        factor = scale.float() if shift is None else 1 + scale.float()
        return self.scaled(factor, torch.zeros_like(factor) if shift is None else shift.float()).activated(act)

    def scaled(self, factor: torch.Tensor, offset: torch.Tensor) -> Map:
        """factor x + offset, float32 [N, C] each."""
        x = self.done()
        if x.act != "none":
            x.tensor()
        if x.affine is not None:
            a, b = x.affine
            factor, offset = factor * a, torch.addcmul(offset, factor, b)
        return changed(x, affine=(factor.contiguous(), offset.contiguous()))

    def normed(self, groups: int, weight: Any, bias: Any, eps: float, scale: Any = None, shift: Any = None) -> Map:
        """The group norm with its affine, and FiLM."""
        x = self.done(True)
        if x.act != "none":
            x.tensor()
        if not x.partials:
            x.partials = tuple(statistics_of(part) for part in x.parts)
        partials = x.partials
        if x.affine is not None:
            widths = [part.shape[1] for part in x.parts]
            a, b = (v.split(widths, 1) for v in x.affine)
            partials = [moved(*of) for of in zip(partials, a, b, strict=True)]
        first, second = partials if len(partials) == 2 else (*partials, None)
        return x.scaled(*_NORM(first, second, groups, weight, bias, eps, scale, shift))

    def joined(self, other: Map) -> Map:
        """Next to each other over channels."""
        both = [v if v.done().plain and len(v.parts) == 1 else v.repeated() for v in (self, other)]
        partials = tuple(p for v in both for p in v.partials)
        return type(self)(tuple(v.parts[0] for v in both), partials if len(partials) == 2 else (), counts=self.counts)

    def repeated(self) -> Map:
        """Itself as one tensor; statistics of a doubled map are those of four times each pixel."""
        kept = ()
        if self.doubled and self.affine is None and self.act == "none" and len(self.partials) == 1:
            kept = (self.partials[0] * self.partials[0].new_tensor((4.0, 1.0, 4.0)),)
        self.tensor()
        self.partials = kept or self.partials
        return self

    def added(self, other: Map | torch.Tensor) -> Map:
        """Itself and other, of one shape, or a tensor [N, C, 1, 1]."""
        if isinstance(other, torch.Tensor) and other.shape == (*self.shape[:2], 1, 1):
            return self._shifted(other[:, :, 0, 0])
        first, second = (self, other) if _free(other) else (other, self)
        if _free(second) and first.shape == second.shape and first.dtype is second.dtype:
            return changed(second, put_off=changed(second.put_off, residual=value(first)))
        return self.of((value(first) + value(second)).to(self.dtype), self.counts)

    def _shifted(self, offset: torch.Tensor) -> Map:
        if _free(self):
            own = self.put_off.image_bias
            return changed(self, put_off=changed(self.put_off, image_bias=offset if own is None else own + offset))
        offset = offset.float()
        return self.scaled(torch.ones_like(offset), offset)

    def __add__(self, other: Any) -> Map:
        return self.added(other) if isinstance(other, Map | torch.Tensor) else super().__add__(other)

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Map:
        return self.become(self + other)

    def standing_for(self, y: torch.Tensor) -> Any:
        if y.dim() == 4:
            return Map.of(y.to(self.dtype), self.counts)
        return Features(y) if y.dim() == 2 else y


class Features(StandIn):
    """What was an image as rows [N, C]: weights of linear layers are kept in the dtype that is computed in."""

    FUNCTIONS: ClassVar[dict[Callable[..., Any], Callable[..., Any]]] = {}

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def tensor(self) -> torch.Tensor:
        return self.x

    def standing_for(self, y: torch.Tensor) -> Any:
        return Features(y) if y.dim() == 2 else y

    def projected(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Features:
        kept = packed_weight(weight, self.x.dtype, None, bias)
        return Features(F.linear(self.x, kept.weight[:, :, 0, 0], None if bias is None else bias.to(self.x.dtype)))


def _free(v: Any) -> bool:
    """Whether a convolution is put off that can still take a bias or a residual."""
    return isinstance(v, Map) and v.put_off is not None and v.put_off.residual is None and v.put_off.act == "none"


def moved(partials: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Statistics of a x + b."""
    count, mean, m2 = partials.unbind(-1)
    a, b = a[:, :, None], b[:, :, None]
    return torch.stack((count, a * mean + b, a * a * m2), -1)


def statistics_of(x: torch.Tensor) -> torch.Tensor:
    """Partials [N, C, 1, 3] of a tensor, for `norm_affine`."""
    pixels = x.float().flatten(2)
    var, mean = torch.var_mean(pixels, 2, correction=0)
    count = torch.full_like(mean, pixels.shape[2])
    return torch.stack((count, mean, count * var), -1)[:, :, None].contiguous()
