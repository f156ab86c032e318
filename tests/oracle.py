"""What the tests of ops share."""

from __future__ import annotations

import pytest
import torch

from fastdiff.ops import REGISTRY, Op, Sample
from fastdiff.ops._oracle import error_and_bound

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def needs_kernel(name: str) -> pytest.MarkDecorator:
    """For tests whose subject is the compiled kernel: a build without kernels has nothing for them to test."""
    return pytest.mark.skipif(not REGISTRY[name].compiled("CPU"), reason=f"{name} runs as plain torch: no kernel to test")


def small(op: Op, dtype: torch.dtype, device: str = "cpu") -> list[Sample]:
    return list(op.small_samples(dtype, device))


def assert_close_to_truth(name: str, got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, floor: float) -> None:
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype is plain.dtype, f"{name}: {got.dtype}, expected {plain.dtype}"
    error, bound = error_and_bound(got, plain, truth, floor)
    assert error <= bound, f"{name}: error {error:.3e} is above {bound:.3e}"
