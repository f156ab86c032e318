"""The CPU kernels of attention: every instruction set, ragged sizes, logits that need a shift, NaN, neighbours."""

from __future__ import annotations

import pytest
import torch
from noisy import CPU_LEVELS, cpu_level
from oracle import DTYPES, assert_close_to_truth, needs_kernel

from fastdiff import ops

FORWARD, BACKWARD = ops.REGISTRY["attention"], ops.REGISTRY["attention_backward"]
pytestmark = needs_kernel("attention")


def drawn(*shape: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, h, queries, d = shape
    generator = torch.Generator().manual_seed(queries * keys + d)
    return tuple(torch.randn(n, h, rows, d, generator=generator).to(dtype) for rows in (queries, keys, keys))


@pytest.mark.parametrize("level", CPU_LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "d"), [(1, 1, 8), (5, 3, 9), (16, 64, 31), (49, 49, 64), (65, 65, 40), (130, 129, 33), (3, 200, 256)]
)
def test_every_instruction_set(level: str, dtype: torch.dtype, queries: int, keys: int, d: int) -> None:
    q, k, v = drawn(2, 2, queries, d, keys=keys, dtype=dtype)
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(2)) < 0.7
    for m in (None, mask, torch.randn(queries, keys, generator=torch.Generator().manual_seed(3)).to(dtype)):
        wide = None if m is None or m.dtype is torch.bool else m.double()
        truth = FORWARD.reference(q.double(), k.double(), v.double(), m if wide is None else wide, 0.2)
        plain = FORWARD.reference(q, k, v, m, 0.2)
        with cpu_level(level):
            got = FORWARD(q, k, v, m, 0.2)
        for name, g, p, t in zip(("out", "logsumexp"), got, plain, truth, strict=True):
            assert_close_to_truth(name, g, p, t, 1e-6)
        truths = BACKWARD.reference(grad.double(), q.double(), k.double(), v.double(), *truth, m if wide is None else wide, 0.2)
        plains = BACKWARD.reference(grad, q, k, v, *plain, m, 0.2)
        with cpu_level(level):
            gots = BACKWARD(grad, q, k, v, *plain, m, 0.2)
        for name, g, p, t in zip(("dq", "dk", "dv"), gots, plains, truths, strict=True):
            assert_close_to_truth(name, g, p, t, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [5.0, 20.0, 60.0, 400.0])
def test_logits_that_need_a_shift(dtype: torch.dtype, spread: float) -> None:
    """From where nothing has to be subtracted to where e^logit would overflow; queries of both kinds in one block."""
    q, k, v = drawn(2, 2, 40, 16, keys=70, dtype=dtype)
    q = q * torch.linspace(0, spread, 40)[:, None].to(dtype)
    truth = FORWARD.reference(q.double(), k.double(), v.double(), None, 0.25)
    for name, g, p, t in zip(
        ("out", "logsumexp"), FORWARD(q, k, v, None, 0.25), FORWARD.reference(q, k, v, None, 0.25), truth, strict=True
    ):
        assert_close_to_truth(name, g, p, t, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    q, k, v = drawn(1, 2, 50, 16, keys=30, dtype=dtype)
    clean = FORWARD(q, k, v, None, 0.25)
    q[0, 1, 7, 3] = torch.nan
    for before, after in zip(clean, FORWARD(q, k, v, None, 0.25), strict=True):
        assert after[0, 1, 7].isnan().all()
        after[0, 1, 7] = before[0, 1, 7]
        assert torch.equal(before, after)


def test_a_key_that_a_mask_excludes_may_be_nan() -> None:
    q, k, v = drawn(1, 2, 20, 16, keys=30)
    mask = torch.arange(30) != 4
    clean = FORWARD(q, k, v, mask, 0.25)
    k[:, :, 4] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(clean, FORWARD(q, k, v, mask, 0.25), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_and_images_do_not_see_each_other(dtype: torch.dtype) -> None:
    q, k, v = drawn(3, 2, 100, 24, keys=77, dtype=dtype)
    together = FORWARD(q, k, v, None, 0.25)[0]
    for n in range(3):
        for h in range(2):
            alone = FORWARD(*(x[n : n + 1, h : h + 1] for x in (q, k, v)), None, 0.25)[0]
            assert torch.equal(together[n : n + 1, h : h + 1], alone)
