"""How exactly float32 is multiplied: a setting of the process, which ops' functions read and kernels never do."""

from __future__ import annotations

from typing import Literal, get_args

from ._library import multiplies_tiles

Float32Precision = Literal["highest", "high"]
_precision: Float32Precision = "highest"


def set_float32_precision(precision: Float32Precision) -> None:
    """What `conv2d_fused` may do with float32, and with it a network's inference.

    highest (the default): products of float32, whose error is that of torch's own convolution.
    high: each number as the sum of two bfloat16, and three products of these for one, added in float32: relative errors near
        2^-16, and infinities become NaN. Only where a CPU has AMX, whose bfloat16 is some sixteen times as fast as float32;
        elsewhere it is as highest: AVX512_BF16 multiplies at twice the rate of float32, so that three products would be slower.

    It holds for weights packed from here on; those that layers keep are packed again. Under torch.compile a change compiles
    again. Raises ValueError for another value.
    """
    global _precision
    if precision not in get_args(Float32Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Float32Precision))}, got {precision!r}")
    _precision = precision


def float32_precision() -> Float32Precision:
    """What was set last by `set_float32_precision`."""
    return _precision


def splits_float32() -> bool:
    """Whether CPU kernels in force shall take float32 as two bfloat16."""
    return _precision == "high" and multiplies_tiles()
