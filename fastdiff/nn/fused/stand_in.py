"""What takes a tensor's place in a module's forward, and torch's functions of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch


class StandIn:
    """Stands for `tensor()`: torch's functions take it, and whatever else is asked of it, is asked of the tensor."""

    FUNCTIONS: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]  # what is done otherwise; may answer NotImplemented

    def tensor(self) -> torch.Tensor:
        raise NotImplementedError

    def standing_for(self, y: torch.Tensor) -> Any:
        """What stands for a result of this one's tensor, or the result itself."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = cls.FUNCTIONS.get(function, _not_implemented)(*args, **kwargs)
        return by_torch(function, *args, **kwargs) if found is NotImplemented else found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Any:
        return by_torch(torch.Tensor.__getitem__, self, index)

    def __add__(self, other: Any) -> Any:
        return by_torch(torch.add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return by_torch(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return by_torch(torch.rsub, self, other)

    def __mul__(self, other: Any) -> Any:
        return by_torch(torch.mul, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return by_torch(torch.div, self, other)


def by_torch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function of the tensors that are stood for."""
    y = function(*tensors(args), **tensors(kwargs))
    if not isinstance(y, torch.Tensor) or not y.is_floating_point():
        return y
    return next(v for v in _flat((*args, *kwargs.values())) if isinstance(v, StandIn)).standing_for(y)


def tensors(v: Any) -> Any:
    """The same, with tensors in place of what stands for them, in lists, tuples and dicts too."""
    if type(v) in (list, tuple):
        return type(v)(tensors(each) for each in v)
    return {name: tensors(each) for name, each in v.items()} if type(v) is dict else value(v)


def value(v: Any) -> Any:
    return v.tensor() if isinstance(v, StandIn) else v


def _not_implemented(*_: Any, **__: Any) -> Any:
    return NotImplemented


def _flat(args: Sequence[Any]) -> list[Any]:
    return [v for arg in args for v in (arg if isinstance(arg, list | tuple) else (arg,))]
