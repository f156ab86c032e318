"""How large the tiles of each kernel are."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton


class Tiling(NamedTuple):
    """Queries and keys of a tile, warps of a program, and how many tiles are in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def padded(size: int) -> int:
    """A head size or length as the kernels hold it: a power of two, and no fewer than the 16 of a matrix instruction."""
    return max(16, triton.next_power_of_2(size))


def chosen(shape: tuple[int, ...], keys: int, dtype: torch.dtype, masked: bool) -> dict[str, Tiling]:
    """For queries [N, H, L, D]: no more rows than short sequences have, and no fewer than the 16 of a matrix instruction."""

    def fitted(tiling: Tiling) -> Tiling:
        rows = [min(most, padded(there)) for most, there in zip(tiling[:2], (shape[2], keys), strict=True)]
        return Tiling(*rows, *tiling[2:])

    return {name: fitted(tiling) for name, tiling in tilings(shape[3], dtype, masked).items()}


def tilings(head: int, dtype: torch.dtype, masked: bool) -> dict[str, Tiling]:
    """Of each kernel for long sequences. Chosen so that nothing spills: `benchmarks/results/triton/resources.csv`."""
    width = padded(head)
    delta = Tiling(16 if dtype is torch.float32 and width > 64 else 32, 0, 4, 1)  # goes over queries alone
    return {"delta": delta, **_of_products(width, dtype, masked)}


def _of_products(width: int, dtype: torch.dtype, masked: bool) -> dict[str, Tiling]:
    if dtype is torch.float32:  # products without tensor cores, and twice the bytes
        rows, warps = (32 if width <= 64 else 16), (8 if width == 128 else 4)
        return {
            "forward": Tiling(rows, 16, 8 if masked and width <= 64 else 4, 1),
            "dkdv": Tiling(16, 16 if masked else rows, warps, 1),
            "dq": Tiling(rows, 16, warps, 1),
        }
    if width <= 64 and masked:
        return {"forward": Tiling(64, 32, 4, 3), "dkdv": Tiling(32, 32, 4, 2), "dq": Tiling(32, 32, 4, 2)}
    if width <= 64:
        stages = 2 if width == 16 else 3
        return {"forward": Tiling(128, 64, 8, stages), "dkdv": Tiling(32, 64, 4, 2), "dq": Tiling(64, 32, 4, 2)}
    if width == 128 and masked:
        return {"forward": Tiling(64, 32, 8, 2), "dkdv": Tiling(32, 32, 8, 2), "dq": Tiling(64, 32, 8, 2)}
    if width == 128:
        return {"forward": Tiling(128, 64, 8, 2), "dkdv": Tiling(32, 64, 8, 2), "dq": Tiling(64, 32, 8, 2)}
    return {"forward": Tiling(64, 32, 8, 1), "dkdv": Tiling(16, 32, 8, 1), "dq": Tiling(32, 32, 8, 1)}
