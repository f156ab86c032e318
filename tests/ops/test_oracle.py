"""How ops are held against the truth: what must not pass does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastdiff import ops
from fastdiff.ops._oracle import error_and_bound, held, norm_error

TRUTH = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_norm_of_an_error() -> None:
    assert norm_error(TRUTH.float() * 1.01, TRUTH) == pytest.approx(0.01, rel=1e-3)
    assert norm_error(torch.full((100,), 0.003), torch.zeros(100).double()) == pytest.approx(0.01, rel=1e-3)  # of a third
    assert norm_error(TRUTH[:0], TRUTH[:0]) == 0


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_where_the_truth_is_never_passes(wrong: float) -> None:
    got = TRUTH.float()
    got[7] = wrong
    assert norm_error(got, TRUTH) == torch.inf
    assert norm_error(TRUTH.float(), got.double()) == torch.inf
    assert norm_error(TRUTH[:5].float(), TRUTH) == torch.inf
    error, bound = error_and_bound(got, TRUTH.float(), TRUTH, 1e-6)
    assert error > bound


def test_on_the_cpu_no_op_is_held_by_the_norm_alone() -> None:
    """One element that is wrong hardly changes a norm."""
    attention = ops.REGISTRY["attention"]
    assert attention.norm_bounds
    assert [name for name, op in ops.REGISTRY.items() if op.norm_bounds] == ["attention_backward", "attention"]
    got = TRUTH.bfloat16()
    got[7] += 0.05
    values = (got, TRUTH.bfloat16(), TRUTH, attention.floor)
    error, bound = held(attention, *values)
    assert error > bound
    assert held(dataclasses.replace(attention, norm_bounds={}), *values) == (error, bound)
