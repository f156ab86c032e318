"""Argument checks of the public functions: each error names the argument, what was got and what is allowed."""

from __future__ import annotations

from typing import Any

import torch

from ._activation import ACTIVATIONS

_FLOATING = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def check_images(name: str, x: Any) -> None:
    """[N, C, ...] with 3 to 5 dimensions, floating point."""
    check_tensor(name, x)
    if not 3 <= x.dim() <= 5:
        raise ValueError(f"{name} must have 3 to 5 dimensions [N, C, ...], got shape {tuple(x.shape)}")
    check_floating(name, x)


def check_floating(name: str, x: torch.Tensor) -> None:
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def check_parameter(name: str, v: Any, shape: tuple[int, ...], x: torch.Tensor) -> None:
    """A weight, scale or shift that goes with x: None, or the given shape, float32 or x's dtype, x's device."""
    if v is None:
        return
    check_tensor(name, v)
    if v.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(v.shape)}")
    if v.dtype is not x.dtype and (v.dtype is not torch.float32 or x.dtype is torch.float64):
        allowed = f"{x.dtype}" if x.dtype in (torch.float32, torch.float64) else f"float32 or {x.dtype} (x's dtype)"
        raise TypeError(f"{name} must be {allowed}, got {v.dtype}")
    check_device(name, v, x)


def check_device(name: str, v: torch.Tensor, x: torch.Tensor) -> None:
    if v.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {v.device}")


def check_like(name: str, v: Any, x: torch.Tensor) -> None:
    """Same shape, dtype and device as x."""
    check_tensor(name, v)
    if v.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {tuple(x.shape)}, got {tuple(v.shape)}")
    if v.dtype is not x.dtype:
        raise TypeError(f"{name} must have x's dtype {x.dtype}, got {v.dtype}")
    check_device(name, v, x)


def check_act(act: Any, name: str = "act") -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}, got {act!r}")


def check_timesteps(name: str, t: Any, batch: int, count: int, x: torch.Tensor) -> None:
    """Integer timesteps [N] (or [1], for all images) in 0..count-1, checked on the host only where that is free."""
    check_tensor(name, t)
    if t.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {t.dtype}")
    if t.shape not in ((batch,), (1,)):
        raise ValueError(f"{name} must have shape ({batch},) or (1,), got {tuple(t.shape)}")
    check_device(name, t, x)
    # On CUDA a check would synchronise: there the op yields NaN for that image. A traced tensor has no values to check.
    if t.device.type == "cpu" and t.numel() and not torch.compiler.is_compiling():
        values = (t if t.numel() <= 64 else torch.stack(torch.aminmax(t))).tolist()  # of a few, Python finds the ends faster
        low, high = min(values), max(values)
        if low < 0 or high >= count:
            raise ValueError(f"{name} must be in 0..{count - 1}, got {low if low < 0 else high}")
