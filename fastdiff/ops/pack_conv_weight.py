"""A convolution's weights in the order in which `conv2d_fused`'s kernels read them.

    packed = [Cout / 32][Cin / block][kernel row, kernel column][2][block / pair][16][pair]         for any kernel
    packed = [Cout / 32][4, 4][Cin / block][2][block / pair][16][pair] of G weight G^T              for Winograd's F(2x2, 3x3)
    packed = [Cout / 32][Cin / 32][kernel row, kernel column][high, low][2][16][16][2]              for precision high

32 output channels, in halves of 16; `block` input channels, the 64 bytes that a kernel reads of a pixel at a time; `pair` of
them side by side: two for bfloat16, whose products are taken in pairs, else one. Where sizes are no multiples, zeros fill the
blocks. The order depends on the dtype alone, not on the machine's instruction set. G = [1 0 0; .5 .5 .5; .5 -.5 .5; 0 0 1].
Float32 for precision high is two bfloat16: high = bf16(weight), low = bf16(weight - high).
On CUDA, where `pair` is 0, the kernels of csrc/conv2d_fused/cuda_products.h have an order of their own and know no tiles:

    packed = [Cout / 32][Cin / block][kernel row, kernel column][block][32]                         fp32 and double
    packed = [Cout / 32][Cin / block][kernel row, kernel column][2][2][32 lanes][2][2][2]           bf16 and fp16

In 16 bits that is, for 16 input and 16 output channels at a time, what each lane of a warp holds of two right-hand matrices of
an mma.m16n8k16: column g = lane / 4 of matrix j is output 8 (g / 2) + 2 j + g % 2, so that the four matrices of 32 outputs give
a lane eight neighbours.
Shapes: weight [Cout, Cin, kh, kw]; packed has one dimension. Dtypes: bf16, fp32 and double stay, fp16 becomes fp32 on CPU. It
has no derivative.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ._checks import check_floating, check_tensor
from ._define import NATIVE_FLOATS, Sample, define

BLOCK_BYTES, OUTPUTS, HALF = 64, 32, 16
G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def reference(weight: torch.Tensor, block: int, pair: int, winograd: bool) -> torch.Tensor:
    if pair == 0:
        return _for_cuda(weight, block)
    w = weight.float() if weight.dtype is torch.float16 else weight
    outputs, inputs = w.shape[:2]
    if winograd:
        g = torch.tensor(G, dtype=torch.float64, device=w.device)
        w = (g @ w.double() @ g.T).to(w.dtype)
    elements = w.shape[2] * w.shape[3]
    w = F.pad(w.flatten(2), (0, 0, 0, -inputs % block, 0, -outputs % OUTPUTS))
    w = w.reshape(-1, 2, HALF, (inputs + block - 1) // block, block // pair, pair, elements)
    return w.permute(0, *((6, 3) if winograd else (3, 6)), 1, 4, 2, 5).reshape(-1).clone()


def _for_cuda(w: torch.Tensor, block: int) -> torch.Tensor:
    outputs, inputs = w.shape[:2]
    w = F.pad(w.flatten(2), (0, 0, 0, -inputs % block, 0, -outputs % OUTPUTS))
    blocks, elements = w.shape[1] // block, w.shape[2]
    if w.itemsize > 2:
        return w.reshape(-1, OUTPUTS, blocks, block, elements).permute(0, 2, 4, 3, 1).reshape(-1).clone()
    # Output 8 (g / 2) + 4 (j / 2) + 2 (j % 2) + g % 2, input 16 step + 8 far + 2 t + e; lane = 4 g + t.
    w = w.reshape(-1, 4, 2, 2, 2, blocks, 2, 2, 4, 2, elements)
    return w.permute(0, 5, 10, 6, 2, 1, 4, 8, 3, 7, 9).reshape(-1).clone()


def order_of(dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[int, int]:
    """(block, pair) for weights of this dtype on this device."""
    if torch.device(device).type == "cuda":
        return BLOCK_BYTES // dtype.itemsize, 0
    if dtype is torch.bfloat16:
        return BLOCK_BYTES // 2, 2
    return BLOCK_BYTES // torch.promote_types(dtype, torch.float32).itemsize, 1


def _samples(dtype: torch.dtype, device: torch.device | str) -> Iterator[Sample]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in {
        "blocks": (64, 64, 3, 3),
        "ragged": (5, 7, 3, 3),
        "1x1": (40, 33, 1, 1),
        "uneven kernel": (3, 70, 2, 5),
        "one": (1, 1, 1, 1),
    }.items():
        yield Sample(name, (torch.randn(shape, generator=generator).to(device, dtype), *order_of(dtype, device), False))
    weight = torch.randn(40, 33, 3, 3, generator=generator).to(device, dtype)
    yield Sample("tiles", (weight, *order_of(dtype), True))


_op = define(
    "pack_conv_weight(Tensor weight, int block, int pair, bool winograd) -> Tensor",
    reference,
    samples=_samples,
    native={"CPU": NATIVE_FLOATS["CPU"]},
)


def pack_conv_weight(weight: Any, winograd: bool = False, split: bool = False) -> torch.Tensor:
    """`weight` [Cout, Cin, kh, kw] as `conv2d_fused` takes it as `packed`, a tensor of one dimension.

    winograd: for 3x3 kernels of stride 1, which then take 16 products in place of 36 for each 2x2 outputs. The sums of the
        transforms are rounded to x's dtype: in bf16 the error is that of torch's own convolution, twice the direct one's.
        CUDA's kernels have no such tiles: there it is not heeded.
    split: of float32, for precision high where AMX is (see `fastdiff.set_float32_precision`): the result is of bfloat16.
    bf16, fp32, fp16 (packed as fp32 on CPU) or double, any strides. Not differentiable: gradients go to the weight that is
    packed.
    Raises TypeError for a wrong type or dtype, ValueError for a wrong shape, or for both of winograd and split.
    """
    check_tensor("weight", weight)
    check_floating("weight", weight)
    if weight.dim() != 4 or not weight.numel():
        raise ValueError(f"weight must have shape [Cout, Cin, kh, kw] without a zero, got {tuple(weight.shape)}")
    if winograd and tuple(weight.shape[2:]) != (3, 3):
        raise ValueError(f"weight must be of 3x3 kernels for winograd, got shape {tuple(weight.shape)}")
    weight = weight.detach()
    if not split:
        return _op(weight, *order_of(weight.dtype, weight.device), bool(winograd))
    if winograd:
        raise ValueError("winograd must be false with split, got True")
    if weight.dtype is not torch.float32:
        raise TypeError(f"weight must be torch.float32 for split, got {weight.dtype}")
    high = weight.bfloat16()
    order = order_of(torch.bfloat16)
    parts = [_op(part, *order, False).view(-1, OUTPUTS * order[0]) for part in (high, (weight - high.float()).bfloat16())]
    return torch.stack(parts, 1).flatten()
