"""What the kernels share: addresses of a tile, which of it is there, and its logits under a mask."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NO_MASK, BOOL_MASK, ADDED_MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def tile_pointers(base, first, stride_row, stride_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to a tile that starts at row `first`. Only the step to it may need 64 bits."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    return base + tl.cast(first, tl.int64) * stride_row + rows[:, None] * stride_row + columns[None, :] * stride_column


@triton.jit
def tile_there(first, rows_there, ROWS: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr):
    return (first + tl.arange(0, ROWS) < rows_there)[:, None] & (tl.arange(0, PADDED) < HEAD)[None, :]


@triton.jit
def logits(
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
