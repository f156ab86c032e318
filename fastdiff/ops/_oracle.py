"""How an op is held against the truth, its reference in float64. Written once, for the tests, benchmarks and the doctor."""

from __future__ import annotations

from typing import Any

import torch

from ._define import Op

# Half the spacing of values of order one.
_ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}


def as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def in_float64(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def errors_and_bounds(op: Op, args: tuple[Any, ...]) -> list[tuple[float, float]]:
    """`error_and_bound` of each output of one call."""
    outputs, plain, truth = (as_tuple(v) for v in (op(*args), op.plain(*args), op.reference(*in_float64(args))))
    return [error_and_bound(*values, op.floor) for values in zip(outputs, plain, truth, strict=True)]


def error_and_bound(got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, floor: float) -> tuple[float, float]:
    """The largest error against the truth, and what is allowed: twice that of plain torch in the same dtype, plus a floor.

    The floor is stated for values of order one: it scales with the largest true value, and is no finer than the dtype's
    rounding. A NaN where the truth has none is an infinite error, and so is a wrong shape or dtype.
    """
    if got.shape != truth.shape or got.dtype is not plain.dtype:
        return float("inf"), 0.0
    if not got.numel():
        return 0.0, 0.0
    error, plain_error = (_largest_difference(v.double(), truth.double()) for v in (got, plain))
    scale = max(1.0, float(truth.nan_to_num(0, 0, 0).abs().max()))
    finest = max(floor, _ROUNDING[got.dtype]) if got.dtype in _ROUNDING else 1e-12
    return error, 2 * plain_error + finest * scale


def _largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())  # infinities too
    return float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(torch.inf).max())
