"""attention through its public function: against the formula and torch, masks, lengths, head sizes, errors, its routes."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from typing import Any

import pytest
import torch
from oracle import DTYPES, assert_close_to_truth, needs_kernel
from torch.nn import functional as F

from fastdiff import ops
from fastdiff.ops import attention
from fastdiff.ops._oracle import error_and_bound

ROOM = sys.modules["fastdiff.ops.attention"]  # the module: the function has its name in the package
FORWARD, BACKWARD = ops.REGISTRY["attention"], ops.REGISTRY["attention_backward"]
LENGTHS = pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 64), (7, 7), (7, 100), (64, 7), (100, 64), (100, 1)])
HEADS = pytest.mark.parametrize("d", [8, 40, 64, 160])
MASKS = ("none", "bool", "keys", "excluding", "additive", "bias")


def drawn(queries: int, keys: int, d: int, dtype: torch.dtype = torch.float32, n: int = 2, h: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * keys + d)
    shapes = ((n, h, queries, d), (n, h, keys, d), (n, h, keys, d))
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


def a_mask(kind: str, queries: int, keys: int, n: int = 2, h: int = 2) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(n, h, queries, keys, generator=generator) < 0.5
    chosen[..., 0] = True
    return {
        "none": None,
        "bool": chosen,
        "keys": torch.arange(keys) < torch.tensor([keys, (keys + 1) // 2])[:, None, None, None],
        "excluding": chosen & (torch.arange(queries)[:, None] % 3 != 0),  # queries 0, 3, 6, ... attend to nothing
        "additive": torch.randn(queries, keys, generator=generator).masked_fill(~chosen[0, 0], -torch.inf),
        "bias": torch.randn(h, 1, keys, generator=generator),
    }[kind]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """The formula in float64, written apart from the op's reference."""
    logits = torch.einsum("nhld,nhsd->nhls", q.double(), k.double()) * scale
    if mask is not None:
        logits = torch.where(mask, logits, -torch.inf) if mask.dtype is torch.bool else logits + mask.double()
    p = torch.nan_to_num(torch.softmax(logits, -1), 0.0)  # 0/0 where there is no key
    return torch.einsum("nhls,nhsd->nhld", p, v.double())


def test_two_keys_by_hand() -> None:
    """Logits 0 and log 3 weigh the values 1:3."""
    q, k, v = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8)
    q[..., 0], k[0, 0, 1, 0], v[0, 0, 1] = 2, math.log(3), 4.0
    torch.testing.assert_close(attention(q, k, v, scale=0.5), torch.full((1, 1, 1, 8), 3.0))
    _, logsumexp = FORWARD(q, k, v, None, 0.5)
    torch.testing.assert_close(logsumexp, torch.full((1, 1, 1), math.log(4)))


@LENGTHS
@HEADS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(queries: int, keys: int, d: int, dtype: torch.dtype) -> None:
    """The public function and the op, against the formula."""
    q, k, v = drawn(queries, keys, d, dtype)
    seed = torch.randn(q.shape, generator=torch.Generator().manual_seed(d), dtype=torch.float64).to(dtype)

    def run(call: Any, *of: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in of]
        y = call(*leaves, None, d**-0.5)
        return [y.detach(), *torch.autograd.grad(y, leaves, seed.to(y.dtype))]

    truth = run(by_hand, q.double(), k.double(), v.double())
    plain = run(lambda *a: FORWARD.plain(*a)[0], q, k, v)
    for name, call in (("op", lambda *a: FORWARD(*a)[0]), ("public", attention)):
        for what, got, p, t in zip(("out", "dq", "dk", "dv"), run(call, q, k, v), plain, truth, strict=True):
            assert_close_to_truth(f"{name} {what}", got, p, t, 1e-6)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (7, 1), (16, 33)])
def test_masks(kind: str, queries: int, keys: int) -> None:
    mask = a_mask(kind, queries, keys)
    q, k, v = (x.double().requires_grad_() for x in drawn(queries, keys, 40))
    want = by_hand(q, k, v, mask, 0.2)
    want_gradients = torch.autograd.grad(want.sin().sum(), (q, k, v))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        of = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        given = mask if mask is None or mask.dtype is torch.bool else mask.to(dtype)
        for call in (attention, lambda *a: FORWARD(*a)[0]):
            got = call(*of, given, 0.2)
            gradients = torch.autograd.grad(got.sin().sum(), of)
            for g, w in zip((got, *gradients), (want, *want_gradients), strict=True):
                torch.testing.assert_close(g.double(), w.detach(), rtol=tolerance, atol=tolerance)
    if kind == "excluding":
        assert not want[:, :, ::3].any()  # the truth itself has zeros, and so a gradient of 0
        assert not want_gradients[0][:, :, ::3].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("additive", [False, True])
def test_a_query_without_keys_gives_zeros(dtype: torch.dtype, additive: bool) -> None:
    q, k, v = (x.requires_grad_() for x in drawn(7, 5, 16, dtype))
    mask = torch.ones(7, 5, dtype=torch.bool)
    mask[3] = False
    if additive:
        mask = torch.zeros(7, 5, dtype=dtype).masked_fill(~mask, -torch.inf)
    for call in (attention, lambda *a: FORWARD(*a)[0]):
        out = call(q, k, v, mask, 0.25)
        assert not out[:, :, 3].any()
        assert out[:, :, 4].any()
        dq, dk, dv = torch.autograd.grad(out.sum(), (q, k, v))
        assert not dq[:, :, 3].any()
        assert not any(g.isnan().any() for g in (dq, dk, dv))
    logsumexp = FORWARD(q, k, v, mask, 0.25)[1]
    assert (logsumexp[:, :, 3] == -torch.inf).all()
    assert logsumexp[:, :, :3].isfinite().all()


def test_the_default_scale_is_one_over_the_root_of_the_head_size() -> None:
    q, k, v = drawn(7, 9, 40)
    torch.testing.assert_close(attention(q, k, v), attention(q, k, v, scale=40**-0.5))
    assert not torch.allclose(attention(q, k, v), attention(q, k, v, scale=1))


@pytest.mark.parametrize("shape", [(7, 9), (9,), (1, 9), (7, 1), (1, 1, 9), (3, 7, 9), (2, 1, 7, 9), (2, 3, 7, 9), (1,), ()])
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    q, k, v = drawn(7, 9, 16, h=3)
    mask = torch.randn(shape)
    torch.testing.assert_close(attention(q, k, v, mask), attention(q, k, v, mask.expand(2, 3, 7, 9).contiguous()))


def test_equal_shifts_of_all_logits_change_nothing() -> None:
    q, k, v = drawn(7, 9, 16)
    for shift in (-80.0, 90.0):
        torch.testing.assert_close(FORWARD(q, k, v, torch.full((7, 9), shift), 0.25)[0], attention(q, k, v))


def test_strided_inputs() -> None:
    projected = torch.randn(2, 20, 3, 4, 16)
    q, k, v = projected.permute(2, 0, 3, 1, 4)
    want = by_hand(q, k, v, None, 0.25).float()
    for call in (lambda *a: attention(*a), lambda *a: FORWARD(*a, None, 0.25)[0]):
        torch.testing.assert_close(call(q, k, v), want)
        torch.testing.assert_close(call(*(x.contiguous() for x in (q, k, v))), want)


def test_autocast_casts_nothing_in_the_public_function() -> None:
    q, k, v = drawn(16, 16, 16)
    plain = attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attention(q, k, v)
    assert inside.dtype is torch.float32
    assert torch.equal(plain, inside)


def test_it_compiles_without_a_break() -> None:
    q, k, v = (x.requires_grad_() for x in drawn(7, 9, 16))
    mask = a_mask("excluding", 7, 9)
    compiled = torch.compile(lambda *a: attention(*a).sin().sum(), fullgraph=True, backend="aot_eager")
    got, want = compiled(q, k, v, mask), attention(q, k, v, mask).sin().sum()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (q, k, v)), torch.autograd.grad(want, (q, k, v)))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the public function does in an installation where nothing was compiled."""
    monkeypatch.setattr(ops, "native", dataclasses.replace(ops.native, path=None, disabled=()))


@pytest.fixture
def torchs_own(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of torch's own attention from here on."""
    calls, own = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or own(*a, **k))
    return calls


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_it_is_torchs_own_attention_and_in_double_the_op(
    monkeypatch: pytest.MonkeyPatch, torchs_own: list[Any]
) -> None:
    q, k, v = drawn(7, 9, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention(q, k, v)
    assert len(torchs_own) == 1
    attention(q.double(), k.double(), v.double())
    assert len(torchs_own) == 1
    monkeypatch.setattr(ops, "native", dataclasses.replace(ops.native, disabled=("attention",)))
    assert torch.equal(attention(q, k, v), FORWARD(q, k, v, None, 0.25)[0])
    assert len(torchs_own) == 1


@needs_kernel("attention")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_with_kernels_it_is_the_op(dtype: torch.dtype, gradients: bool, torchs_own: list[Any]) -> None:
    q, k, v = (x.requires_grad_(gradients) for x in drawn(9, 9, 16, dtype, n=16))
    assert torch.equal(attention(q, k, v), FORWARD(q, k, v, None, 0.25)[0])
    assert not torchs_own


@pytest.mark.parametrize(("queries", "keys", "d"), [(100, 100, 32), (9, 5, 8), (8, 40, 40), (17, 1, 64), (196, 77, 160)])
@pytest.mark.parametrize("spread", [1, 10, 30])
@pytest.mark.parametrize("kernels", [False, True])
def test_bf16_is_as_near_to_the_truth_as_torchs_own(
    request: pytest.FixtureRequest, queries: int, keys: int, d: int, spread: float, kernels: bool
) -> None:
    """Many short sequences, with logits so large that 8 bits of them would not do; by matrix products where no kernel is."""
    if not kernels:
        request.getfixturevalue("without_kernels")
    q, k, v = drawn(queries, keys, d, torch.bfloat16, n=8, h=2)
    q = q * spread
    seed = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert ROOM._gains_by_products(q, k)

    def run(call: Any, *of: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in of]
        y = call(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, seed.to(y.dtype))]

    truth = run(lambda *a: by_hand(*a, None, d**-0.5), *(x.double() for x in (q, k, v)))
    got, own = run(attention, q, k, v), run(F.scaled_dot_product_attention, q, k, v)
    for name, g, o, t in zip(("out", "dq", "dk", "dv"), got, own, truth, strict=True):
        assert_close_to_truth(name, g, o, t, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "heads", "queries", "keys", "mask", "products"),
    [
        (torch.bfloat16, 16, 128, 77, False, True),
        (torch.bfloat16, 15, 128, 77, False, False),
        (torch.bfloat16, 16, 7, 77, False, False),
        (torch.bfloat16, 16, 128, 1025, False, False),
        (torch.bfloat16, 16, 128, 77, True, False),
        (torch.float16, 16, 128, 77, False, False),
        (torch.float32, 16, 128, 77, False, False),
    ],
)
@pytest.mark.usefixtures("without_kernels")
def test_who_runs_products(
    torchs_own: list[Any], dtype: torch.dtype, heads: int, queries: int, keys: int, mask: bool, products: bool
) -> None:
    q, k, v = drawn(queries, keys, 16, dtype, n=1, h=heads)
    got = attention(q, k, v, torch.ones(queries, keys, dtype=torch.bool) if mask else None)
    assert len(torchs_own) == (not products)
    assert_close_to_truth("out", got, F.scaled_dot_product_attention(q, k, v), by_hand(q, k, v, None, 0.25), 1e-6)


@pytest.mark.usefixtures("without_kernels")
def test_products_compile_without_a_break() -> None:
    q, k, v = (x.requires_grad_() for x in drawn(9, 7, 16, torch.bfloat16, n=8))
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    got, want = compiled(q, k, v), attention(q, k, v)
    assert ROOM._gains_by_products(q, k)
    assert torch.equal(got, want)
    for g, w in zip(*(torch.autograd.grad(y.float().sin().sum(), (q, k, v)) for y in (got, want)), strict=True):
        torch.testing.assert_close(g, w)


def test_without_triton_it_warns_once() -> None:
    ROOM._warn_of_no_triton.cache_clear()
    with pytest.warns(UserWarning, match="triton is not installed"):
        ROOM._warn_of_no_triton()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ROOM._warn_of_no_triton()


class _OnCuda:
    """What the choice of a route looks at."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.device, self.dtype = torch.device("cuda"), dtype


def test_who_runs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ROOM, "_HAS_TRITON", True)
    assert ROOM._runs_triton(_OnCuda(torch.bfloat16))
    assert not ROOM._runs_triton(_OnCuda(torch.float64))
    assert not ROOM._runs_triton(torch.zeros(1))
    monkeypatch.setattr(ops, "native", dataclasses.replace(ops.native, disabled=("attention_backward",)))
    assert not ROOM._runs_triton(_OnCuda(torch.bfloat16))
    monkeypatch.undo()
    monkeypatch.setattr(ROOM, "_HAS_TRITON", False)
    assert not ROOM._runs_triton(_OnCuda(torch.bfloat16))


Q = torch.zeros(2, 3, 7, 16)
K = torch.zeros(2, 3, 9, 16)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"q": 1.0}, TypeError, "q must be a torch.Tensor, got float"),
        ({"q": Q[0]}, ValueError, r"q must have 4 dimensions \[N, H, L, D\], got shape \(3, 7, 16\)"),
        ({"q": Q.int()}, TypeError, "q must be float32, bfloat16, float16 or float64, got torch.int32"),
        ({"q": Q[..., :4]}, ValueError, r"q must have .* a head size of 8 to 256, got shape \(2, 3, 7, 4\)"),
        ({"q": torch.zeros(1, 1, 1, 257)}, ValueError, "q must have .* a head size of 8 to 256"),
        ({"q": Q[:, :, :0]}, ValueError, "q must have a length of at least 1"),
        ({"k": None}, TypeError, "k must be a torch.Tensor, got NoneType"),
        ({"k": K.half()}, TypeError, "k must have q's dtype torch.float32, got torch.float16"),
        ({"k": K.to("meta")}, ValueError, "k must be on q's device cpu, got meta"),
        ({"k": K[:1]}, ValueError, r"k must have shape \(2, 3, S, 16\) with S at least 1, got \(1, 3, 9, 16\)"),
        ({"k": K[:, :, :0]}, ValueError, "k must have shape .* with S at least 1"),
        ({"k": K[..., :8]}, ValueError, r"k must have shape \(2, 3, S, 16\)"),
        ({"v": K.bfloat16()}, TypeError, "v must have q's dtype torch.float32, got torch.bfloat16"),
        ({"v": Q}, ValueError, r"v must have k's shape \(2, 3, 9, 16\), got \(2, 3, 7, 16\)"),
        ({"mask": True}, TypeError, "mask must be a torch.Tensor, got bool"),
        (
            {"mask": torch.zeros(7, 9).int()},
            TypeError,
            "mask must be bool, float32 or q's dtype torch.float32, got torch.int32",
        ),
        (
            {"mask": torch.zeros(9, 7)},
            ValueError,
            r"mask must broadcast to \[N, H, L, S\] = \(2, 3, 7, 9\), got shape \(9, 7\)",
        ),
        ({"mask": torch.zeros(1, 1, 1, 1, 1)}, ValueError, "mask must broadcast"),
        ({"mask": torch.zeros(7, 9, device="meta")}, ValueError, "mask must be on q's device cpu, got meta"),
        ({"mask": torch.zeros(7, 9, requires_grad=True)}, ValueError, "mask must not require a gradient"),
        ({"scale": "1"}, TypeError, "scale must be None or a number, got str"),
        ({"scale": True}, TypeError, "scale must be None or a number, got bool"),
        ({"scale": math.nan}, ValueError, "scale must be finite, got nan"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"^{match}"):
        attention(**{"q": Q, "k": K, "v": K} | arguments)


def test_a_mask_in_double_goes_with_double_only() -> None:
    mask = torch.zeros(7, 9)
    with pytest.raises(TypeError, match=r"mask must be bool or q's dtype torch\.float64, got torch.float32"):
        attention(Q.double(), K.double(), K.double(), mask)
    with pytest.raises(TypeError, match="mask must be"):
        attention(Q, K, K, mask.double())
    with torch.no_grad():
        attention(Q, K, K, mask.requires_grad_())  # nothing asks for its gradient


@pytest.mark.parametrize("d", [8, 64, 256])
def test_the_reference_against_torch(d: int) -> None:
    q, k, v = (x.double() for x in drawn(33, 50, d))
    out, logsumexp = FORWARD.reference(q, k, v, None, d**-0.5)
    error, bound = error_and_bound(out, out, F.scaled_dot_product_attention(q, k, v), 1e-12)
    assert error <= bound
    torch.testing.assert_close(logsumexp, (q @ k.transpose(2, 3) * d**-0.5).logsumexp(-1))
