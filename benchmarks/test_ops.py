"""Every op against what plain torch has in its place (`rivals.py`), eager and compiled: `pytest benchmarks --benchmark-only`.

Correctness comes first: a time is taken only of values that passed. For tables see `benchmarks/run.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gate import ours, passes
from rivals import rival

from fastdiff import ops
from fastdiff.memory import keep_freed_memory
from fastdiff.ops import Op, Sample

keep_freed_memory()  # else page faults are most of the time of every variant

LARGE = [
    pytest.param(op, dtype, index, id=f"{op.name}-{sample.name}-{str(dtype).removeprefix('torch.')}")
    for op in ops.REGISTRY.values()
    for dtype in (torch.float32, torch.bfloat16)
    for index, sample in enumerate(op.samples(dtype, "cpu"))
    if sample.large
]


def _variants(op: Op) -> dict[str, Callable[..., Any]]:
    return {"fastdiff": ours(op), "eager": rival(op), "compile": torch.compile(rival(op))}


@pytest.mark.parametrize("variant", ["fastdiff", "eager", "compile"])
@pytest.mark.parametrize(("op", "dtype", "index"), LARGE)
def test_op(benchmark: Any, op: Op, dtype: torch.dtype, index: int, variant: str) -> None:
    sample: Sample = list(op.samples(dtype, "cpu"))[index]
    with torch.no_grad():
        if variant == "fastdiff":
            passes(op, sample.args, op, sample.args)
        elif variant == "compile" and benchmark.disabled:
            pytest.skip("compiling takes seconds and times nothing here")
        benchmark.group = f"{op.name} {sample.name} {dtype}"
        benchmark(_variants(op)[variant], *sample.args)


@pytest.mark.parametrize("variant", ["film", "torch.add"])
def test_overhead_of_a_call(benchmark: Any, variant: str) -> None:
    """Microseconds of one call on a tensor too small to count."""
    x, scale = torch.randn(1, 8, 2, 2), torch.randn(1, 8)
    benchmark.group = "overhead of a call"
    with torch.no_grad():
        if variant == "film":
            benchmark(ops.film, x, scale, scale, "silu")
        else:
            benchmark(torch.add, x, x)
