"""What the tests of ops share."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fastdiff.ops import REGISTRY, Op, Sample, native
from fastdiff.ops._library import set_cpu_level
from fastdiff.ops._oracle import error_and_bound, errors_and_bounds

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def needs_kernel(name: str) -> pytest.MarkDecorator:
    """For tests whose subject is the compiled kernel: a build without kernels has nothing for them to test."""
    return pytest.mark.skipif(not REGISTRY[name].compiled("CPU"), reason=f"{name} runs as plain torch: no kernel to test")


@contextmanager
def cpu_level(level: str) -> Iterator[None]:
    """CPU kernels of this instruction set, or of the highest below it that the machine has."""
    library = ctypes.CDLL(str(native.path))
    try:
        set_cpu_level(library, level)
        yield
    finally:
        set_cpu_level(library, native.cpu_level)


def check_at_level(level: str, op: Op, dtype: torch.dtype) -> None:
    """Every small sample against float64, with the kernels of one instruction set."""
    with cpu_level(level):
        for sample in small(op, dtype):
            for i, (error, bound) in enumerate(errors_and_bounds(op, sample.args)):
                what = f"{level} {op.name} [{sample.name}] output {i}"
                assert error <= bound, f"{what}: {error:.3e} is above {bound:.3e}"


def small(op: Op, dtype: torch.dtype, device: str = "cpu") -> list[Sample]:
    return list(op.small_samples(dtype, device))


def assert_close_to_truth(name: str, got: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, floor: float) -> None:
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.dtype is plain.dtype, f"{name}: {got.dtype}, expected {plain.dtype}"
    error, bound = error_and_bound(got, plain, truth, floor)
    assert error <= bound, f"{name}: error {error:.3e} is above {bound:.3e}"
