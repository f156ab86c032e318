"""What the tests of ops share."""

from __future__ import annotations

import torch

from fastdiff.ops import Op, Sample
from fastdiff.ops._oracle import error_and_bound

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def small(op: Op, dtype: torch.dtype, device: str = "cpu") -> list[Sample]:
    return [s for s in op.samples(dtype, device) if not s.large]


def assert_close_to_truth(name: str, got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, floor: float) -> None:
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype is plain.dtype, f"{name}: {got.dtype}, expected {plain.dtype}"
    error, bound = error_and_bound(got, plain, truth, floor)
    assert error <= bound, f"{name}: error {error:.3e} is above {bound:.3e}"
