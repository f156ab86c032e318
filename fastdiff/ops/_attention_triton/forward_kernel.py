"""The forward kernel: a program per block of queries goes over the keys."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import LN_2, NO_MASK, logits, tile_pointers, tile_there


@triton.jit
def forward_kernel(
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

    query_tile = tile_there(first, queries, QUERIES, HEAD, PADDED)
    q_tile = tl.load(tile_pointers(q + n * sq_n + h * sq_h, first, sq_l, sq_d, QUERIES, PADDED), mask=query_tile, other=0.0)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, PADDED], tl.float32)
    for key in range(0, keys, KEYS):
        key_tile = tile_there(key, keys, KEYS, HEAD, PADDED)
        k_tile = tl.load(tile_pointers(k, key, sk_l, sk_d, KEYS, PADDED), mask=key_tile, other=0.0)
        s = logits(q_tile, k_tile, mask, first, key, sm_l, sm_s, queries, keys, scale_log2, MASK, QUERIES, KEYS)
        larger = tl.maximum(largest, tl.max(s, 1))
        safe = larger
        if MASK != NO_MASK:  # a query may have met no key yet, and -inf - -inf is NaN
            safe = tl.where(larger == float("-inf"), 0.0, larger)
        p = tl.exp2(s - safe[:, None])
        before = tl.exp2(largest - safe)
        v_tile = tl.load(tile_pointers(v, key, sv_l, sv_d, KEYS, PADDED), mask=key_tile, other=0.0)
        total = total * before + tl.sum(p, 1)
        sums = tl.dot(p.to(v_tile.dtype), v_tile, sums * before[:, None], input_precision="ieee")
        largest = larger

    safe_total = tl.where(total == 0.0, 1.0, total)
    result = sums / safe_total[:, None]
    tl.store(
        tile_pointers(out + n * so_n + h * so_h, first, so_l, so_d, QUERIES, PADDED),
        result.to(out.dtype.element_ty),
        mask=query_tile,
    )
    rows = first + tl.arange(0, QUERIES)
    tl.store(logsumexp + image_head * queries + rows, (largest + tl.log2(safe_total)) * LN_2, mask=rows < queries)
