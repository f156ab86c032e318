"""The backward kernels: delta, then dk and dv by blocks of keys, then dq by blocks of queries."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LOG2_E, NO_MASK, logits, tile_pointers, tile_there


@triton.jit
def delta_kernel(
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
    there = tile_there(first, queries, QUERIES, HEAD, PADDED)
    g = tl.load(tile_pointers(grad + n * sg_n + h * sg_h, first, sg_l, sg_d, QUERIES, PADDED), mask=there, other=0.0)
    o = tl.load(tile_pointers(out + n * so_n + h * so_h, first, so_l, so_d, QUERIES, PADDED), mask=there, other=0.0)
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
def dkdv_kernel(
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

    key_tile = tile_there(first, keys, KEYS, HEAD, PADDED)
    k_tile = tl.load(tile_pointers(k + n * sk_n + h * sk_h, first, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
    v_tile = tl.load(tile_pointers(v + n * sv_n + h * sv_h, first, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
    dk_sums = tl.zeros([KEYS, PADDED], tl.float32)
    dv_sums = tl.zeros([KEYS, PADDED], tl.float32)
    for query in range(0, queries, QUERIES):
        query_tile = tile_there(query, queries, QUERIES, HEAD, PADDED)
        q_tile = tl.load(tile_pointers(q, query, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
        g_tile = tl.load(tile_pointers(grad, query, sg_l, sg_d, QUERIES, PADDED), mask=query_tile, other=0.0)
        total, d = _of_queries(logsumexp + image_head * queries, delta + image_head * queries, query, queries, QUERIES)
        s = logits(k_tile, q_tile, mask, first, query, sm_s, sm_l, keys, queries, scale_log2, MASK, KEYS, QUERIES)
        p = tl.exp2(s - total[None, :])
        dv_sums = tl.dot(p.to(g_tile.dtype), g_tile, dv_sums, input_precision="ieee")
        dp = tl.dot(v_tile, tl.trans(g_tile), input_precision="ieee")
        ds = p * (dp - d[None, :])
        dk_sums = tl.dot(ds.to(q_tile.dtype), q_tile, dk_sums, input_precision="ieee")

    tl.store(
        tile_pointers(dk + n * sdk_n + h * sdk_h, first, sdk_l, sdk_d, KEYS, PADDED),
        (dk_sums * scale).to(dk.dtype.element_ty),
        mask=key_tile,
    )
    tl.store(
        tile_pointers(dv + n * sdv_n + h * sdv_h, first, sdv_l, sdv_d, KEYS, PADDED),
        dv_sums.to(dv.dtype.element_ty),
        mask=key_tile,
    )


@triton.jit
def dq_kernel(
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

    query_tile = tile_there(first, queries, QUERIES, HEAD, PADDED)
    q_tile = tl.load(tile_pointers(q + n * sq_n + h * sq_h, first, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    g_tile = tl.load(tile_pointers(grad + n * sg_n + h * sg_h, first, sg_l, sg_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    total, d = _of_queries(logsumexp + image_head * queries, delta + image_head * queries, first, queries, QUERIES)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for key in range(0, keys, KEYS):
        key_tile = tile_there(key, keys, KEYS, HEAD, PADDED)
        k_tile = tl.load(tile_pointers(k, key, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
        v_tile = tl.load(tile_pointers(v, key, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
        s = logits(q_tile, k_tile, mask, first, key, sm_l, sm_s, queries, keys, scale_log2, MASK, QUERIES, KEYS)
        p = tl.exp2(s - total[:, None])
        dp = tl.dot(g_tile, tl.trans(v_tile), input_precision="ieee")
        ds = p * (dp - d[:, None])
        sums = tl.dot(ds.to(k_tile.dtype), k_tile, sums, input_precision="ieee")

    tl.store(
        tile_pointers(dq + n * sdq_n + h * sdq_h, first, sdq_l, sdq_d, QUERIES, PADDED),
        (sums * scale).to(dq.dtype.element_ty),
        mask=query_tile,
    )
