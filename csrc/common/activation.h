// Activations and their derivatives; the formulas are those of fastdiff/ops/_activation.py.
//
// V is a vector on the CPU (common/simd.h) and float or double on CUDA (common/cuda_device.h); the includer brings one of them.
#pragma once
#include "numeric.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr double kLog2E = 1.44269504088896340736;

// exp(-z). The relative error is that of z log2(e), |z| 2^-24, and s = 1 / (1 + exp(-z)) sees it times s (1 - s): 2e-8 at most.
template <class V>
FASTDIFF_INLINE V exp_minus(V z) {
  return exponential2(z * Element<V>(-kLog2E));
}

template <class V>
FASTDIFF_INLINE V gelu_cdf(V z) {
  return (error_function(z * Element<V>(0.70710678118654752440)) + 1) * Element<V>(0.5);
}

template <Act kAct, class V>
FASTDIFF_INLINE V activate(V z) {
  if constexpr (kAct == Act::silu) return divide(z, 1 + exp_minus(z));
  else if constexpr (kAct == Act::relu) return z < 0 ? V{} : z;  // this way round, NaN stays
  else if constexpr (kAct == Act::leaky_relu) return z < 0 ? z * Element<V>(kLeakySlope) : z;
  else if constexpr (kAct == Act::gelu) return z * gelu_cdf(z);
  else return z;
}

template <Act kAct, class V>
FASTDIFF_INLINE V derivative(V z) {
  const V one = V{} + 1;
  if constexpr (kAct == Act::silu) {
    const V s = divide(one, 1 + exp_minus(z));
    return s * madd(z, one - s, one);
  } else if constexpr (kAct == Act::relu) {
    return z > 0 ? one : V{};
  } else if constexpr (kAct == Act::leaky_relu) {
    return z > 0 ? one : V{} + Element<V>(kLeakySlope);
  } else if constexpr (kAct == Act::gelu) {
    constexpr double kInvSqrt2Pi = 0.39894228040143267794;
    return gelu_cdf(z) + z * exp_minus(z * z * Element<V>(0.5)) * Element<V>(kInvSqrt2Pi);
  } else {
    return one;
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
