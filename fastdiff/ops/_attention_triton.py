"""Attention on CUDA: Triton kernels that keep a tile of the matrix of queries by keys at a time.

    forward     a program per block of queries goes over the keys: softmax with a running maximum and sum
    backward    delta[l] = sum_d dout[l, d] out[l, d], then two kernels without atomics, so that bits repeat:
                a program per block of keys goes over the queries for dk and dv, one per block of queries over the keys for dq

Exponentials are powers of two, with log2(e) in the scale. Sums are float32 throughout; products of float32 inputs are float32
products, not tf32. Head sizes that are no power of two are padded with zeros inside. Any strides.
Source: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", algorithms 1 and 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch._prims_common import suggest_memory_format

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NO_MASK, BOOL_MASK, ADDED_MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps of a program, and how many tiles are in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def tilings(padded: int, dtype: torch.dtype, masked: bool) -> dict[str, Tiling]:
    """For a head size padded to a power of two. Chosen so that nothing spills; `tests/triton_resources.py` prints them."""
    if dtype is torch.float32:  # products without tensor cores, and twice the bytes
        rows = 32 if padded <= 64 else 16
        return {
            "forward": Tiling(rows, 16, 4, 1),
            "dkdv": Tiling(16, 16 if masked else rows, 4, 1),
            "dq": Tiling(rows, 16, 4, 1),
        }
    if padded <= 64 and masked:
        return {"forward": Tiling(64, 32, 4, 3), "dkdv": Tiling(32, 32, 4, 2), "dq": Tiling(32, 32, 4, 2)}
    if padded <= 64:
        return {"forward": Tiling(128, 64, 8, 3), "dkdv": Tiling(32, 64, 4, 2), "dq": Tiling(64, 32, 4, 2)}
    if padded == 128:
        forward = Tiling(64, 32, 8, 2) if masked else Tiling(128, 64, 8, 2)
        return {"forward": forward, "dkdv": Tiling(32, 64, 8, 2), "dq": Tiling(64, 32, 8, 2)}
    return {"forward": Tiling(64, 32, 8, 1), "dkdv": Tiling(16, 32, 8, 1), "dq": Tiling(32, 32, 8, 1)}


@triton.jit
def _tile_pointers(base, first, stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to a tile that starts at row `first`. Only the step to it may need 64 bits."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return base + tl.cast(first, tl.int64) * stride_row + rows[:, None] * stride_row + columns[None, :] * stride_column


@triton.jit
def _tile_there(first, rows_there, ROWS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr):
    return (first + tl.arange(0, ROWS) < rows_there)[:, None] & (tl.arange(0, PADDED) < HEAD)[None, :]


@triton.jit
def _logits(
    row_tile,
    column_tile,
    mask,
    first_row,
    first_column,
    stride_mask_row,
    stride_mask_column,
    rows_there,
    columns_there,
    scale_log2,
    MASK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Logits of a tile in units of log(2), -inf where the mask excludes or a column is not there.

    Rows are queries and columns keys, or the other way round. Rows that are not there are for the caller to leave out.
    """
    s = tl.dot(row_tile, tl.trans(column_tile), input_precision="ieee") * scale_log2
    column_there = first_column + tl.arange(0, COLUMNS) < columns_there
    there = column_there[None, :]
    if MASK != NO_MASK:
        there = (first_row + tl.arange(0, ROWS) < rows_there)[:, None] & there
        # 64 bits for the step to the tile alone: a matrix of 64-bit offsets would take the registers of two of the logits
        mask += tl.cast(first_row, tl.int64) * stride_mask_row + tl.cast(first_column, tl.int64) * stride_mask_column
        offsets = tl.arange(0, ROWS)[:, None] * stride_mask_row + tl.arange(0, COLUMNS)[None, :] * stride_mask_column
        values = tl.load(mask + offsets, mask=there, other=0)
        if MASK == BOOL_MASK:
            there = there & (values != 0)
        else:
            s += values.to(tl.float32) * LOG2_E
    return tl.where(there, s, float("-inf"))


@triton.jit
def _forward_kernel(
    q,
    k,
    v,
    mask,
    out,
    logsumexp,
    sq_n,
    sq_h,
    sq_l,
    sq_d,
    sk_n,
    sk_h,
    sk_l,
    sk_d,
    sv_n,
    sv_h,
    sv_l,
    sv_d,
    sm_n,
    sm_h,
    sm_l,
    sm_s,
    so_n,
    so_h,
    so_l,
    so_d,
    heads,
    queries,
    keys,
    scale_log2,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    MASK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    blocks = tl.cdiv(queries, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    n, h = image_head // heads, image_head % heads
    k += n * sk_n + h * sk_h
    v += n * sv_n + h * sv_h
    if MASK != NO_MASK:
        mask += n * sm_n + h * sm_h

    query_tile = _tile_there(first, queries, QUERIES, HEAD, PADDED)
    q_tile = tl.load(_tile_pointers(q + n * sq_n + h * sq_h, first, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for key in range(0, keys, KEYS):
        key_tile = _tile_there(key, keys, KEYS, HEAD, PADDED)
        k_tile = tl.load(_tile_pointers(k, key, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
        s = _logits(q_tile, k_tile, mask, first, key, sm_l, sm_s, queries, keys, scale_log2, MASK, QUERIES, KEYS)
        larger = tl.maximum(largest, tl.max(s, 1))
        safe = larger
        if MASK != NO_MASK:  # a query may have met no key yet, and -inf - -inf is NaN
            safe = tl.where(larger == float("-inf"), 0.0, larger)
        p = tl.exp2(s - safe[:, None])
        before = tl.exp2(largest - safe)
        v_tile = tl.load(_tile_pointers(v, key, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
        total = total * before + tl.sum(p, 1)
        sums = tl.dot(p.to(v_tile.dtype), v_tile, sums * before[:, None], input_precision="ieee")
        largest = larger

    safe_total = tl.where(total == 0.0, 1.0, total)
    result = sums / safe_total[:, None]
    tl.store(
        _tile_pointers(out + n * so_n + h * so_h, first, so_l, so_d, QUERIES, PADDED),
        result.to(out.dtype.element_ty),
        mask=query_tile,
    )
    rows = first + tl.arange(0, QUERIES)
    tl.store(logsumexp + image_head * queries + rows, (largest + tl.log2(safe_total)) * LN_2, mask=rows < queries)


@triton.jit
def _delta_kernel(
    grad,
    out,
    delta,
    sg_n,
    sg_h,
    sg_l,
    sg_d,
    so_n,
    so_h,
    so_l,
    so_d,
    heads,
    queries,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """delta[l] = sum_d dout[l, d] out[l, d], which is sum_i p[l, i] dp[l, i]."""
    blocks = tl.cdiv(queries, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    n, h = image_head // heads, image_head % heads
    there = _tile_there(first, queries, QUERIES, HEAD, PADDED)
    g = tl.load(_tile_pointers(grad + n * sg_n + h * sg_h, first, sg_l, sg_d, QUERIES, PADDED), mask=there, other=0.0)
    o = tl.load(_tile_pointers(out + n * so_n + h * so_h, first, so_l, so_d, QUERIES, PADDED), mask=there, other=0.0)
    rows = first + tl.arange(0, QUERIES)
    products = g.to(tl.float32) * o.to(tl.float32)
    tl.store(delta + image_head * queries + rows, tl.sum(products, 1), mask=rows < queries)


@triton.jit
def _of_queries(logsumexp, delta, first, queries, QUERIES: tl.constexpr):
    """A block's logsumexp in units of log(2), 0 for a query without keys (its logits are -inf), and its delta."""
    rows = first + tl.arange(0, QUERIES)
    total = tl.load(logsumexp + rows, mask=rows < queries, other=0.0)
    total = tl.where(total == float("-inf"), 0.0, total * LOG2_E)
    return total, tl.load(delta + rows, mask=rows < queries, other=0.0)


@triton.jit
def _dkdv_kernel(
    grad,
    q,
    k,
    v,
    mask,
    logsumexp,
    delta,
    dk,
    dv,
    sg_n,
    sg_h,
    sg_l,
    sg_d,
    sq_n,
    sq_h,
    sq_l,
    sq_d,
    sk_n,
    sk_h,
    sk_l,
    sk_d,
    sv_n,
    sv_h,
    sv_l,
    sv_d,
    sm_n,
    sm_h,
    sm_l,
    sm_s,
    sdk_n,
    sdk_h,
    sdk_l,
    sdk_d,
    sdv_n,
    sdv_h,
    sdv_l,
    sdv_d,
    heads,
    queries,
    keys,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    MASK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """All tiles here are keys by queries: what is summed over queries then needs no transpose of p and ds."""
    blocks = tl.cdiv(keys, KEYS)
    first = tl.program_id(0) % blocks * KEYS
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    n, h = image_head // heads, image_head % heads
    q += n * sq_n + h * sq_h
    grad += n * sg_n + h * sg_h
    if MASK != NO_MASK:
        mask += n * sm_n + h * sm_h

    key_tile = _tile_there(first, keys, KEYS, HEAD, PADDED)
    k_tile = tl.load(_tile_pointers(k + n * sk_n + h * sk_h, first, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
    v_tile = tl.load(_tile_pointers(v + n * sv_n + h * sv_h, first, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
    dk_sums = tl.zeros([KEYS, PADDED], tl.float32)
    dv_sums = tl.zeros([KEYS, PADDED], tl.float32)
    for query in range(0, queries, QUERIES):
        query_tile = _tile_there(query, queries, QUERIES, HEAD, PADDED)
        q_tile = tl.load(_tile_pointers(q, query, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
        g_tile = tl.load(_tile_pointers(grad, query, sg_l, sg_d, QUERIES, PADDED), mask=query_tile, other=0.0)
        total, d = _of_queries(logsumexp + image_head * queries, delta + image_head * queries, query, queries, QUERIES)
        s = _logits(k_tile, q_tile, mask, first, query, sm_s, sm_l, keys, queries, scale_log2, MASK, KEYS, QUERIES)
        p = tl.exp2(s - total[None, :])
        dv_sums = tl.dot(p.to(g_tile.dtype), g_tile, dv_sums, input_precision="ieee")
        dp = tl.dot(v_tile, tl.trans(g_tile), input_precision="ieee")
        ds = p * (dp - d[None, :])
        dk_sums = tl.dot(ds.to(q_tile.dtype), q_tile, dk_sums, input_precision="ieee")

    tl.store(
        _tile_pointers(dk + n * sdk_n + h * sdk_h, first, sdk_l, sdk_d, KEYS, PADDED),
        (dk_sums * scale).to(dk.dtype.element_ty),
        mask=key_tile,
    )
    tl.store(
        _tile_pointers(dv + n * sdv_n + h * sdv_h, first, sdv_l, sdv_d, KEYS, PADDED),
        dv_sums.to(dv.dtype.element_ty),
        mask=key_tile,
    )


@triton.jit
def _dq_kernel(
    grad,
    q,
    k,
    v,
    mask,
    logsumexp,
    delta,
    dq,
    sg_n,
    sg_h,
    sg_l,
    sg_d,
    sq_n,
    sq_h,
    sq_l,
    sq_d,
    sk_n,
    sk_h,
    sk_l,
    sk_d,
    sv_n,
    sv_h,
    sv_l,
    sv_d,
    sm_n,
    sm_h,
    sm_l,
    sm_s,
    sdq_n,
    sdq_h,
    sdq_l,
    sdq_d,
    heads,
    queries,
    keys,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    MASK: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    blocks = tl.cdiv(queries, QUERIES)
    first = tl.program_id(0) % blocks * QUERIES
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    n, h = image_head // heads, image_head % heads
    k += n * sk_n + h * sk_h
    v += n * sv_n + h * sv_h
    if MASK != NO_MASK:
        mask += n * sm_n + h * sm_h

    query_tile = _tile_there(first, queries, QUERIES, HEAD, PADDED)
    q_tile = tl.load(_tile_pointers(q + n * sq_n + h * sq_h, first, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    g_tile = tl.load(_tile_pointers(grad + n * sg_n + h * sg_h, first, sg_l, sg_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    total, d = _of_queries(logsumexp + image_head * queries, delta + image_head * queries, first, queries, QUERIES)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for key in range(0, keys, KEYS):
        key_tile = _tile_there(key, keys, KEYS, HEAD, PADDED)
        k_tile = tl.load(_tile_pointers(k, key, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
        v_tile = tl.load(_tile_pointers(v, key, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
        s = _logits(q_tile, k_tile, mask, first, key, sm_l, sm_s, queries, keys, scale_log2, MASK, QUERIES, KEYS)
        p = tl.exp2(s - total[:, None])
        dp = tl.dot(g_tile, tl.trans(v_tile), input_precision="ieee")
        ds = p * (dp - d[:, None])
        sums = tl.dot(ds.to(k_tile.dtype), k_tile, sums, input_precision="ieee")

    tl.store(
        _tile_pointers(dq + n * sdq_n + h * sdq_h, first, sdq_l, sdq_d, QUERIES, PADDED),
        (sums * scale).to(dq.dtype.element_ty),
        mask=query_tile,
    )


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


def _fitted(tiling: Tiling, queries: int, keys: int) -> Tiling:
    """No more rows than short sequences have, and no fewer than the 16 of a matrix instruction."""
    fit = [min(most, max(16, triton.next_power_of_2(n))) for most, n in zip(tiling[:2], (queries, keys), strict=True)]
    return Tiling(*fit, *tiling[2:])


def _constants(tiling: Tiling, head: int, mask: torch.Tensor | None) -> dict[str, Any]:
    return {
        "HEAD": head,
        "PADDED": max(16, triton.next_power_of_2(head)),
        "MASK": _mask_kind(mask),
        "QUERIES": tiling.queries,
        "KEYS": tiling.keys,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


def _chosen(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> dict[str, Tiling]:
    chosen = tilings(max(16, triton.next_power_of_2(q.shape[3])), q.dtype, mask is not None)
    return {name: _fitted(tiling, q.shape[2], k.shape[2]) for name, tiling in chosen.items()}


def _like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised, and laid out as the reference's output is."""
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `attention`: (out, logsumexp)."""
    n, heads, queries, head = q.shape
    out, logsumexp = _like(q), q.new_empty((n, heads, queries), dtype=torch.float32)
    tiling = _chosen(q, k, mask)["forward"]
    mask_tensor, mask_strides = _prepared_mask(mask, q, k)
    if not n * heads:
        return out, logsumexp
    with torch.cuda.device_of(q):
        _forward_kernel[(triton.cdiv(queries, tiling.queries) * n * heads,)](
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
    chosen = _chosen(q, k, mask)
    mask_tensor, mask_strides = _prepared_mask(mask, q, k)
    logsumexp = logsumexp.contiguous()
    delta = torch.empty_like(logsumexp)
    tensors = (grad, q, k, v, mask_tensor, logsumexp, delta)
    strides = (*grad.stride(), *q.stride(), *k.stride(), *v.stride(), *mask_strides)
    sizes = (heads, queries, keys, scale, scale * LOG2_E.value)
    with torch.cuda.device_of(q):
        rows = min(chosen["dq"].queries, 32)
        _delta_kernel[(triton.cdiv(queries, rows) * n * heads,)](
            *(grad, out, delta, *grad.stride(), *out.stride(), heads, queries),
            HEAD=head,
            PADDED=max(16, triton.next_power_of_2(head)),
            QUERIES=rows,
        )
        _dkdv_kernel[(triton.cdiv(keys, chosen["dkdv"].keys) * n * heads,)](
            *(*tensors, dk, dv, *strides, *dk.stride(), *dv.stride(), *sizes), **_constants(chosen["dkdv"], head, mask)
        )
        _dq_kernel[(triton.cdiv(queries, chosen["dq"].queries) * n * heads,)](
            *(*tensors, dq, *strides, *dq.stride(), *sizes), **_constants(chosen["dq"], head, mask)
        )
    return dq, dk, dv
