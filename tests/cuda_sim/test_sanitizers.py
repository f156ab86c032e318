"""The CUDA kernels under ThreadSanitizer, and under AddressSanitizer with UBSan, on the CPU; see README.md.

A seeded share of the registry's calls in each order of threads; all of them where FASTDIFF_FULL=1 is set.
"""

from __future__ import annotations

import os

import pytest
import torch
from cuda_sim.build import build, missing
from cuda_sim.calls import chosen, cuda_samples
from cuda_sim.sanitizers import run

from fastdiff import ops

ORDERS, DTYPES = ("up", "down", "1"), ("float32", "bfloat16", "float16")
SEED, SHARE = 0, 1.0 if os.environ.get("FASTDIFF_FULL") == "1" else 0.3
VARIANTS = [
    pytest.param(variant, marks=pytest.mark.skipif(missing(variant) is not None, reason=str(missing(variant))))
    for variant in ("thread", "address")
]


def expected_calls() -> list[tuple[str, str, str, str]]:
    return [
        (order, name, dtype, sample.name)
        for order in ORDERS
        for name, op in ops.REGISTRY.items()
        for dtype in (DTYPES if "CUDA" in op.native else ())
        for sample in cuda_samples(op, getattr(torch, dtype))
        if chosen(SHARE, SEED, order, name, sample.name, dtype)
    ]


def test_the_share_has_each_op() -> None:
    assert {name for _, name, *_ in expected_calls()} == {name for name, op in ops.REGISTRY.items() if "CUDA" in op.native}


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_are_right_and_nothing_is_reported(variant: str) -> None:
    options = ("--orders", ",".join(ORDERS), "--dtypes", ",".join(DTYPES), "--share", str(SHARE), "--seed", str(SEED))
    [(code, output)] = run(variant, [build(variant)], *options)
    assert (code, output) == (0, f"{len(expected_calls())} calls are right\n"), output
