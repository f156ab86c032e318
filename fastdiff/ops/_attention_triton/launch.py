"""From tensors to launches: outputs, tilings, strides and grids."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch._prims_common import suggest_memory_format

from .backward_kernels import delta_kernel, dkdv_kernel, dq_kernel
from .forward_kernel import forward_kernel
from .tiles import ADDED_MASK, BOOL_MASK, LOG2_E, NO_MASK
from .tilings import Tiling, chosen, padded


def _mask_kind(mask: torch.Tensor | None) -> int:
    if mask is None:
        return NO_MASK.value
    return BOOL_MASK.value if mask.dtype is torch.bool else ADDED_MASK.value


def _prepared_mask(mask: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A tensor to point at and its strides over [N, H, L, S], 0 where it is broadcast."""
    if mask is None:
        return q, (0, 0, 0, 0)  # not read
    full = mask.expand(*q.shape[:3], k.shape[2])
    return full.view(torch.uint8) if mask.dtype is torch.bool else full, full.stride()


def _constants(tiling: Tiling, head: int, mask: torch.Tensor | None) -> dict[str, Any]:
    return {
        "HEAD": head,
        "PADDED": padded(head),
        "MASK": _mask_kind(mask),
        "QUERIES": tiling.queries,
        "KEYS": tiling.keys,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


def _like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised, and laid out as the reference's output is."""
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `attention`: (out, logsumexp)."""
    n, heads, queries, head = q.shape
    out, logsumexp = _like(q), q.new_empty((n, heads, queries), dtype=torch.float32)
    tiling = chosen(q.shape, k.shape[2], q.dtype, mask is not None)["forward"]
    mask_tensor, mask_strides = _prepared_mask(mask, q, k)
    if not n * heads:
        return out, logsumexp
    with torch.cuda.device_of(q):
        forward_kernel[(triton.cdiv(queries, tiling.queries) * n * heads,)](
            *(q, k, v, mask_tensor, out, logsumexp),
            *(*q.stride(), *k.stride(), *v.stride(), *mask_strides, *out.stride()),
            *(heads, queries, k.shape[2], scale * LOG2_E.value),
            **_constants(tiling, head, mask),
        )
    return out, logsumexp


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The op `attention_backward`: (dq, dk, dv). The same bits from run to run."""
    n, heads, queries, head = q.shape
    keys = k.shape[2]
    dq, dk, dv = _like(q), _like(k), _like(v)
    if not n * heads:
        return dq, dk, dv
    tiling = chosen(q.shape, keys, q.dtype, mask is not None)
    mask_tensor, mask_strides = _prepared_mask(mask, q, k)
    logsumexp = logsumexp.contiguous()
    delta = torch.empty_like(logsumexp)
    tensors = (grad, q, k, v, mask_tensor, logsumexp, delta)
    strides = (*grad.stride(), *q.stride(), *k.stride(), *v.stride(), *mask_strides)
    sizes = (heads, queries, keys, scale, scale * LOG2_E.value)
    with torch.cuda.device_of(q):
        rows = tiling["delta"].queries
        delta_kernel[(triton.cdiv(queries, rows) * n * heads,)](
            *(grad, out, delta, *grad.stride(), *out.stride(), heads, queries),
            HEAD=head,
            PADDED=padded(head),
            QUERIES=rows,
            num_warps=tiling["delta"].warps,
        )
        dkdv_kernel[(triton.cdiv(keys, tiling["dkdv"].keys) * n * heads,)](
            *(*tensors, dk, dv, *strides, *dk.stride(), *dv.stride(), *sizes), **_constants(tiling["dkdv"], head, mask)
        )
        dq_kernel[(triton.cdiv(queries, tiling["dq"].queries) * n * heads,)](
            *(*tensors, dq, *strides, *dq.stride(), *sizes), **_constants(tiling["dq"], head, mask)
        )
    return dq, dk, dv
