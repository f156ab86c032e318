"""What the tests of ops that make noise share."""

from __future__ import annotations

import torch
from oracle import cpu_level

from fastdiff.ops._library import CPU_LEVELS

__all__ = ["CPU_LEVELS", "SHAPES", "cpu_level", "layouts"]

# Ragged against vectors, rows and tiles of noise; whole planes in one tile and not; more channels than a tile holds.
SHAPES = [(3,), (2, 5), (3, 70), (2, 3, 7), (2, 3, 7, 5), (2, 1, 28, 28), (2, 3, 40, 41), (1, 4, 64, 64), (1, 70, 9, 9),
          (1, 300, 5, 4), (1, 130, 33, 2), (2, 3, 5, 4, 3), (1, 1, 130, 131), (2, 8, 1, 1), (1, 6000, 2, 1)]  # fmt: skip


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    """x in each memory format of its rank, and with gaps."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    apart = torch.stack((x, x), -1)[..., 0]
    return [x, apart, *([x.contiguous(memory_format=formats[x.dim()])] if x.dim() in formats else [])]
