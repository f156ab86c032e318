"""attention on the device, forward and gradients, against float64 on the CPU: head sizes, lengths, masks, layouts, repeats."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from devices import DEVICE, needs_cuda, on_device
from torch.nn import functional as F

from fastdiff import ops

pytestmark = on_device
OP, REFERENCE = ops.REGISTRY["attention"], ops.REGISTRY["attention"].reference
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Of the norm of the true result, at logits of order one.
TOLERANCE = {torch.float32: 8e-6, torch.bfloat16: 6e-3, torch.float16: 1.5e-3}
HEADS = (8, 16, 40, 64, 80, 128, 160, 256)
LENGTHS = [(1, 1), (1, 100), (7, 64), (64, 64), (100, 7), (257, 129), (130, 1000), (1024, 1024)]
MASKS = ("bool", "excluding", "late", "additive", "bias", "per image")

over_dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def drawn(queries: int, keys: int, d: int, dtype: torch.dtype, n: int = 2, h: int = 3) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(queries * keys + d)
    shapes = ((n, h, queries, d), (n, h, keys, d), (n, h, keys, d), (n, h, queries, d))
    return [torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes]


def a_mask(kind: str, queries: int, keys: int, dtype: torch.dtype, n: int = 2, h: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    picked = torch.rand(n, h, queries, keys, generator=generator) < 0.5
    mask = {
        "bool": picked,
        "excluding": picked & (torch.arange(queries)[:, None] % 3 != 0),  # queries 0, 3, 6, ... attend to nothing
        "late": torch.arange(keys).expand(1, 1, 1, keys) >= keys - 3,  # nothing in the first tiles of keys
        "additive": torch.randn(queries, keys, generator=generator).masked_fill(~picked[0, 0], -torch.inf).to(dtype),
        "bias": torch.randn(h, 1, keys, generator=generator),
        "per image": torch.randn(n, 1, 1, keys, generator=generator).to(dtype),
    }[kind]
    return mask.to(DEVICE)


def check(what: str, got: torch.Tensor, truth: torch.Tensor) -> None:
    """The error's norm beside the truth's; a truth that is zero is held against values of a third."""
    truth, bound = truth.detach(), TOLERANCE[got.dtype]
    error = float((got.detach().cpu().double() - truth).norm()) / max(float(truth.norm()), 0.3 * truth.numel() ** 0.5)
    assert error <= bound, f"{what}: {error:.2e} is above {bound:.0e}"


def check_call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, mask: torch.Tensor | None) -> None:
    scale = q.shape[-1] ** -0.5
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = ops.attention(*leaves, mask)
    gradients = torch.autograd.grad(out, leaves, grad)
    assert out.dtype is q.dtype

    true_leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    wide = None if mask is None else mask.cpu() if mask.dtype is torch.bool else mask.cpu().double()
    true_out, logsumexp = REFERENCE(*true_leaves, wide, scale)
    true_gradients = torch.autograd.grad(true_out, true_leaves, grad.cpu().double())
    check("out", out, true_out)
    for name, g, t in zip(("dq", "dk", "dv"), gradients, true_gradients, strict=True):
        check(name, g, t)
    with torch.no_grad():
        torch.testing.assert_close(OP(q, k, v, mask, scale)[1].cpu(), logsumexp.float(), rtol=4e-6, atol=4e-6)


@needs_cuda
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.ops import _attention_triton

    calls = []
    for name in ("forward", "backward"):
        own = getattr(_attention_triton, name)
        monkeypatch.setattr(_attention_triton, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    q, k, v, grad = drawn(20, 33, 16, torch.bfloat16)
    ops.attention(q.requires_grad_(), k, v).backward(grad)
    assert calls == ["forward", "backward"]


@over_dtypes
@pytest.mark.parametrize("d", HEADS)
@pytest.mark.parametrize("kind", ["none", "bool"])
def test_head_sizes(d: int, kind: str, dtype: torch.dtype) -> None:
    q, k, v, grad = drawn(77, 150, d, dtype)
    check_call(q, k, v, grad, None if kind == "none" else a_mask(kind, 77, 150, dtype))


@over_dtypes
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_lengths(queries: int, keys: int, dtype: torch.dtype) -> None:
    check_call(*drawn(queries, keys, 64, dtype), None)


@over_dtypes
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("d", [40, 128])
def test_masks(kind: str, d: int, dtype: torch.dtype) -> None:
    q, k, v, grad = drawn(70, 203, d, dtype)
    check_call(q, k, v, grad, a_mask(kind, 70, 203, dtype))


@over_dtypes
def test_layouts(dtype: torch.dtype) -> None:
    """As a projection leaves q, k and v, and with the head size strided."""
    n, h, length, d = 2, 3, 65, 40
    one = torch.randn(n, length, 3, h, d, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    grad = torch.randn(n, h, length, d, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    q, k, v = one.permute(2, 0, 3, 1, 4)
    check_call(q, k, v, grad, None)
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    check_call(*strided, grad[:1, :1, :1, :1].expand_as(grad), None)


@over_dtypes
def test_the_same_bits_from_run_to_run(dtype: torch.dtype) -> None:
    q, k, v, grad = (x.requires_grad_() for x in drawn(300, 500, 64, dtype))
    runs = []
    for _ in range(4):
        out = ops.attention(q, k, v)
        runs.append((out, *torch.autograd.grad(out, (q, k, v), grad)))
    for again in runs[1:]:
        assert all(map(torch.equal, runs[0], again))


@over_dtypes
def test_it_agrees_with_torchs(dtype: torch.dtype) -> None:
    q, k, v, _ = drawn(200, 333, 64, dtype)
    tolerance = max(2 * TOLERANCE[dtype], 1e-4)  # torch's own may multiply float32 in parts
    torch.testing.assert_close(ops.attention(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=tolerance, atol=tolerance)


def test_nothing_excluded_is_lost_in_long_sequences() -> None:
    """Each query has one key of weight one: a wrong tile of keys shows as a wrong row."""
    length, d = 4096, 64
    mask = torch.eye(length, dtype=torch.bool, device=DEVICE).roll(1234, 1)[None, None]
    q, k, v, _ = drawn(length, length, d, torch.bfloat16, n=1, h=1)
    assert torch.equal(ops.attention(q, k, v, mask), v.roll(-1234, 2))
