"""Softmax attention, of a sequence to itself or to another.

    s[l, j] = scale * sum_d q[l, d] k[j, d]                    plus an additive mask; -inf where a boolean one is False
    out[l] = sum_j p[l, j] v[j]                                p = softmax(s) over the keys j
    logsumexp[l] = log sum_j exp(s[l, j])

A query whose mask excludes all keys has out = 0, logsumexp = -inf and no gradient.

    dv[j] = sum_l p[l, j] dout[l]
    ds[l, j] = p[l, j] (dp[l, j] - sum_i p[l, i] dp[l, i])     dp[l, j] = sum_d dout[l, d] v[j, d]
    dq[l] = scale sum_j ds[l, j] k[j],  dk[j] = scale sum_l ds[l, j] q[l]

Shapes: q [N, H, L, D]; k, v [N, H, S, D]; mask broadcasts to [N, H, L, S]. out is like q, logsumexp [N, H, L].
Dtypes: q, k, v fp32, bf16, fp16, double (on CUDA by the reference); mask bool, float32 or q's dtype; computed in float32, in
which logsumexp is returned. Backward saves the inputs, out and logsumexp, and computes p again; the rounding of a logsumexp of
100 is then a relative error of 4e-6 in p.
No kernel holds a matrix of L x S. On the CPU the op is native (`csrc/attention`): with AVX512_BF16 it multiplies bf16 numbers
in pairs, which rounds p and ds to bf16 and takes subnormal numbers for zeros. On CUDA it is Triton kernels where triton is
installed: `_attention_triton/`.
Sources: Vaswani et al. 2017, "Attention Is All You Need", equation 1; Dao 2023, "FlashAttention-2", algorithms 1 and 2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional as F

from ._checks import check_floating, check_tensor
from ._define import NATIVE_FLOATS, Sample, define
from ._layout import compute_dtype, laid_out_like

Maybe = torch.Tensor | None
HEAD_DIMS = range(8, 257)
_NoAutocast = torch._C._DisableAutocast  # for every device at once, and the reference is traced on meta, which has none

_HAS_TRITON = find_spec("triton") is not None  # imported by the first call that runs its kernels

# Without compiled kernels: torch's fused attention takes on the CPU in bf16 2 to 5 times as long as matrix products for forward
# and backward together, and about as long for forward alone, unless the products are few; in fp32 neither gains. Large
# matrices would cost memory, and over few queries the 16-bit roundings of a gradient do not average out.
PRODUCTS_LOGITS, PRODUCTS_HEADS, PRODUCTS_QUERIES = 1 << 17, 16, 8


def _logits(q: torch.Tensor, k: torch.Tensor, mask: Maybe, scale: float) -> torch.Tensor:
    """s, in the compute dtype."""
    dtype = compute_dtype(q)
    s = q.to(dtype) @ k.to(dtype).transpose(-2, -1) * scale
    if mask is None:
        return s
    return s.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else s + mask.to(dtype)


def _finite(x: torch.Tensor) -> torch.Tensor:
    """0 for -inf: exp(-inf - 0) is the 0 that is wanted of an excluded key, exp(-inf + inf) is NaN."""
    return x.masked_fill(x == -torch.inf, 0)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Maybe, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    s = _logits(q, k, mask, scale)
    largest = _finite(s.detach().amax(-1, keepdim=True))
    p = (s - largest).exp()
    total = p.sum(-1, keepdim=True)
    out = p @ v.to(s.dtype) / total.masked_fill(total == 0, 1)
    return laid_out_like(out.to(q.dtype), q), (largest + total.log()).squeeze(-1)


def backward_reference(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: Maybe,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v.

    sum_i p dp equals dout . out, but out may be rounded to 16 bits: that is left to kernels. It is divided by the sum of p,
    1 but for logsumexp's rounding, so that this does not stand out where dp - sum_i p dp cancels.
    """
    s = _logits(q, k, mask, scale)
    p = (s - _finite(logsumexp)[..., None]).exp()
    g = grad.to(s.dtype)
    dp = g @ v.to(s.dtype).transpose(-2, -1)
    total = p.sum(-1, keepdim=True)
    ds = p * (dp - (p * dp).sum(-1, keepdim=True) / total.masked_fill(total == 0, 1)) * scale
    dq, dk, dv = ds @ k.to(s.dtype), ds.transpose(-2, -1) @ q.to(s.dtype), p.transpose(-2, -1) @ g
    return laid_out_like(dq.to(q.dtype), q), laid_out_like(dk.to(k.dtype), k), laid_out_like(dv.to(v.dtype), v)


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Maybe, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Torch's own, which in 16 bits rounds p and ds before their products as any flash attention does."""
    logsumexp = reference(q, k, v, mask, scale)[1].detach()
    if mask is not None:  # torch wants two dimensions, and q's dtype
        mask = torch.atleast_2d(mask if mask.dtype is torch.bool else mask.to(q.dtype))
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale), logsumexp


def _backward_plain(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    *rest: Any,
) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        return torch.autograd.grad(_plain(*leaves, *rest)[0], leaves, grad)


def _runs_triton(q: torch.Tensor) -> bool:
    return _HAS_TRITON and q.device.type == "cuda" and q.dtype is not torch.float64 and not _disabled()


def _runs_native(q: torch.Tensor) -> bool:
    from . import native

    return native.path is not None and q.device.type == "cpu"


def _disabled() -> bool:
    from . import native  # loaded after the ops are defined

    return "attention" in native.disabled or "attention_backward" in native.disabled


def _forward_kernel(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with _NoAutocast():
        return _kernel("forward", reference, args[0])(*args)


def _backward_kernel(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with _NoAutocast():
        return _kernel("backward", backward_reference, args[1])(*args)


def _kernel(name: str, plain: Callable[..., Any], q: torch.Tensor) -> Callable[..., Any]:
    if not _runs_triton(q):
        return plain
    from . import _attention_triton

    return getattr(_attention_triton, name)


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def make(name: str, shape: tuple[int, int, int, int], keys: int, mask: Maybe = None, **kind: bool) -> Sample:
        n, h, _, d = shape
        mask = None if mask is None else mask.to(device)
        return Sample(name, (normal(*shape), normal(n, h, keys, d), normal(n, h, keys, d), mask, d**-0.5), **kind)

    def chosen(*shape: int) -> torch.Tensor:
        """A boolean mask; the second query attends to nothing."""
        mask = torch.rand(shape, generator=generator) < 0.6
        mask[..., 1, :] = False
        return mask

    yield make("tiny", (2, 2, 3, 8), 4, tiny=True)
    yield make("tiny mask", (1, 2, 3, 8), 5, chosen(1, 1, 3, 5), tiny=True)
    yield make("self", (2, 3, 64, 40), 64)
    yield make("cross", (2, 2, 50, 64), 77)
    yield make("one query", (2, 2, 1, 16), 33)
    yield make("one key", (2, 2, 33, 16), 1)
    yield make("wide head", (1, 2, 20, 160), 24)
    yield make("bool mask", (2, 2, 17, 32), 19, chosen(2, 2, 17, 19))
    yield make(
        "bool mask of keys", (2, 2, 17, 32), 19, torch.arange(19)[None, None, None] < torch.tensor([5, 19])[:, None, None, None]
    )
    additive = torch.randn(3, 17, 19, generator=generator).masked_fill(~chosen(3, 17, 19), -torch.inf)
    yield make("additive mask", (2, 3, 17, 24), 19, additive.to(dtype))
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    yield make("additive mask float32", (2, 3, 17, 24), 19, additive[:1].to(wide))
    q, k, v = normal(2, 20, 3, 4, 16).permute(2, 0, 3, 1, 4)  # as a projection to all three leaves them
    yield Sample("one projection", (q, k, v, None, 0.3))
    q, k, v = normal(3, 2, 16, 9, 5).permute(0, 1, 4, 3, 2)
    yield Sample("last dimension strided", (q, k, v, None, 0.25))
    yield Sample("keys expanded", (normal(2, 4, 9, 16), *(normal(2, 1, 12, 16).expand(2, 4, 12, 16) for _ in "kv"), None, 0.25))
    yield Sample("large logits", (10 * normal(2, 2, 12, 16), normal(2, 2, 12, 16), normal(2, 2, 12, 16), None, 1.0))
    yield Sample("negative scale", (normal(2, 2, 12, 16), normal(2, 2, 12, 16), normal(2, 2, 12, 16), None, -0.5))
    yield make("no images", (0, 2, 5, 8), 6)
    yield make("large self 14x14", (16, 4, 196, 32), 196, large=True)
    yield make("large self 32x32", (1, 8, 1024, 64), 1024, large=True)
    yield make("large cross 32x32", (4, 8, 1024, 64), 77, large=True)


def _backward_samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(1)
    for sample in _samples(dtype, device):
        q, k, v, mask, scale = sample.args
        grad = torch.randn(q.shape, generator=generator).to(device, dtype)
        out, logsumexp = reference(*sample.args)
        yield Sample(sample.name, (grad, q, k, v, out, logsumexp, mask, scale), large=sample.large)


_backward = define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, Tensor? mask, float scale)"
    " -> (Tensor, Tensor, Tensor)",
    backward_reference,
    kernel=_backward_kernel,
    plain=_backward_plain,
    samples=_backward_samples,
    native={"CPU": NATIVE_FLOATS["CPU"]},
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, mask, ctx.scale = inputs
    out, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.set_materialize_grads(False)  # no zeros for it
    ctx.save_for_backward(q, k, v, out, logsumexp, mask)


def _autograd(ctx: Any, grad: Maybe, *_: Any) -> tuple[Maybe, ...]:
    if grad is None:
        return (None,) * 5
    *tensors, mask = ctx.saved_tensors
    return (*_backward(grad, *tensors, mask, ctx.scale), None, None)


_op = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float scale) -> (Tensor, Tensor)",
    reference,
    kernel=_forward_kernel,
    plain=_plain,
    samples=_samples,
    native={"CPU": NATIVE_FLOATS["CPU"]},
    backward=_autograd,
    setup_context=_setup_context,
)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Maybe = None, scale: float | None = None
) -> torch.Tensor:
    """softmax(scale q k^T + mask) v, as torch's scaled_dot_product_attention. Differentiable in q, k and v.

    q: [N, H, L, D]; k, v: [N, H, S, D], S may differ from L; L and S at least 1, D from 8 to 256; any strides; all three
        fp32, bf16, fp16 or double.
    mask: broadcasts to [N, H, L, S]. bool: True where a query may attend to a key; float32 or q's dtype: added before the
        softmax. A query without any key gives zeros. The mask gets no gradient: one that asks for it is an error.
    scale: a finite number; None: D^-1/2.
    Returns [N, H, L, D] in q's dtype. Computed in float32 (double for double), never cast by autocast.
    CPU: compiled kernels; CUDA: Triton kernels. Without them (for CUDA warned of once): torch's own fused attention, on CPU
    matrix products for many short sequences in bf16 without a mask; double, and all where FASTDIFF_DISABLE names attention:
    the reference.
    Raises TypeError for a wrong type or dtype and ValueError for a wrong shape, value or device, naming the argument.
    Sources: Vaswani et al. 2017, "Attention Is All You Need", equation 1; Dao 2023, "FlashAttention-2".
    """
    _check_shapes(q, k, v)
    _check_mask(mask, q, k)
    scale = q.shape[3] ** -0.5 if scale is None else _checked_scale(scale)
    if q.dtype is torch.float64 or _disabled() or _runs_triton(q) or _runs_native(q):
        return _op(q, k, v, mask, scale)[0]
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        _warn_of_no_triton()
    mask = mask if mask is None else torch.atleast_2d(mask)  # torch wants two dimensions
    with torch.autocast(q.device.type, enabled=False):
        if mask is None and _gains_by_products(q, k):
            return _products(q, k, v, scale)
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _gains_by_products(q: torch.Tensor, k: torch.Tensor) -> bool:
    n, heads, queries, _ = q.shape
    if q.device.type != "cpu" or q.dtype is not torch.bfloat16:
        return False
    return n * heads >= PRODUCTS_HEADS and queries >= PRODUCTS_QUERIES and queries * k.shape[2] <= PRODUCTS_LOGITS


def _products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """By bf16 matrix products. 8 bits are too few for an exponent: a second product gives what the first's rounding lost."""
    n, heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
    with torch.no_grad():
        s = torch.baddbmm(q.new_empty(1, 1, 1), q, k, beta=0, alpha=scale)
    rest = torch.baddbmm(s, q, k, beta=-1, alpha=scale)  # its derivative is that of s + rest
    p = (s.float() + rest).softmax(-1).to(v.dtype)
    return (p @ v).unflatten(0, (n, heads))


@cache
def _warn_of_no_triton() -> None:
    warnings.warn("triton is not installed: fastdiff.ops.attention runs as torch's own attention on CUDA", stacklevel=3)


def _check_shapes(q: Any, k: Any, v: Any) -> None:
    check_tensor("q", q)
    check_floating("q", q)
    if q.dim() != 4:
        raise ValueError(f"q must have 4 dimensions [N, H, L, D], got shape {tuple(q.shape)}")
    n, h, length, d = q.shape
    if length < 1 or d not in HEAD_DIMS:
        raise ValueError(f"q must have a length of at least 1 and a head size of 8 to 256, got shape {tuple(q.shape)}")
    for name, x in (("k", k), ("v", v)):
        check_tensor(name, x)
        if x.dtype is not q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    if k.dim() != 4 or k.shape[:2] != (n, h) or k.shape[2] < 1 or k.shape[3] != d:
        raise ValueError(f"k must have shape ({n}, {h}, S, {d}) with S at least 1, got {tuple(k.shape)}")
    if v.shape != k.shape:
        raise ValueError(f"v must have k's shape {tuple(k.shape)}, got {tuple(v.shape)}")


def _check_mask(mask: Any, q: torch.Tensor, k: torch.Tensor) -> None:
    if mask is None:
        return
    check_tensor("mask", mask)
    allowed = {torch.bool, q.dtype} | ({torch.float32} if q.dtype is not torch.float64 else set())
    if mask.dtype not in allowed:
        words = f"bool, float32 or q's dtype {q.dtype}" if q.dtype is not torch.float64 else f"bool or q's dtype {q.dtype}"
        raise TypeError(f"mask must be {words}, got {mask.dtype}")
    full = (*q.shape[:3], k.shape[2])
    ends = zip(reversed(mask.shape), reversed(full), strict=False)
    if mask.dim() > 4 or any(size not in (1, most) for size, most in ends):
        raise ValueError(f"mask must broadcast to [N, H, L, S] = {full}, got shape {tuple(mask.shape)}")
    if mask.device != q.device:
        raise ValueError(f"mask must be on q's device {q.device}, got {mask.device}")
    if mask.requires_grad and torch.is_grad_enabled():
        raise ValueError("mask must not require a gradient, got one that does: only q, k and v have derivatives; detach it")


def _checked_scale(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be None or a number, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)
