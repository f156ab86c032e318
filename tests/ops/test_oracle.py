"""How ops are held against the truth: what must not pass does not."""

from __future__ import annotations

import pytest
import torch

from fastdiff.ops._oracle import error_and_bound

TRUTH = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_where_the_truth_is_never_passes(wrong: float) -> None:
    got = TRUTH.float()
    got[7] = wrong
    error, bound = error_and_bound(got, TRUTH.float(), TRUTH, 1e-6)
    assert error > bound


def test_one_wrong_element_does_not_pass() -> None:
    got = TRUTH.bfloat16()
    got[7] += 0.05
    error, bound = error_and_bound(got, TRUTH.bfloat16(), TRUTH, 1e-6)
    assert error > bound
    error, bound = error_and_bound(TRUTH.bfloat16(), TRUTH.bfloat16(), TRUTH, 1e-6)
    assert 0 < error <= bound


def test_a_wrong_shape_or_dtype_does_not_pass() -> None:
    for got in (TRUTH[:5].float(), TRUTH.bfloat16()):
        error, bound = error_and_bound(got, TRUTH.float(), TRUTH, 1e-6)
        assert error > bound
