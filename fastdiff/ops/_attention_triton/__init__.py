"""Attention on CUDA: Triton kernels that keep a tile of the matrix of queries by keys at a time.

    forward     a program per block of queries goes over the keys: softmax with a running maximum and sum
    backward    delta[l] = sum_d dout[l, d] out[l, d], then two kernels without atomics, so that bits repeat:
                a program per block of keys goes over the queries for dk and dv, one per block of queries over the keys for dq

Exponentials are powers of two, with log2(e) in the scale. Sums are float32 throughout; products of float32 inputs are float32
products, not tf32. Head sizes that are no power of two are padded with zeros inside. Any strides.
Source: Dao 2023, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", algorithms 1 and 2.
"""

from __future__ import annotations

from .launch import backward, forward

__all__ = ["backward", "forward"]
