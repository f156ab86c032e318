// Activations and their derivatives; the formulas are those of fastdiff/ops/_activation.py.
//
// V is a vector on the CPU (common/simd.h) and float or double on CUDA (common/cuda_device.h); the includer brings one of them.
#pragma once
#include "numeric.h"

namespace fastdiff::FASTDIFF_ISA {

template <class V>
FASTDIFF_INLINE V sigmoid(V z) {
  return 1 / (1 + exponential(-z));
}

template <class V>
FASTDIFF_INLINE V gelu_cdf(V z) {
  return (error_function(z * Element<V>(0.70710678118654752440)) + 1) * Element<V>(0.5);
}

template <Act kAct, class V>
FASTDIFF_INLINE V activate(V z) {
  if constexpr (kAct == Act::silu) return z * sigmoid(z);
  else if constexpr (kAct == Act::relu) return z < 0 ? V{} : z;  // this way round, NaN stays
  else if constexpr (kAct == Act::leaky_relu) return z < 0 ? z * Element<V>(kLeakySlope) : z;
  else if constexpr (kAct == Act::gelu) return z * gelu_cdf(z);
  else return z;
}

template <Act kAct, class V>
FASTDIFF_INLINE V derivative(V z) {
  const V one = V{} + 1;
  if constexpr (kAct == Act::silu) {
    const V s = sigmoid(z);
    return s * (one + z * (one - s));
  } else if constexpr (kAct == Act::relu) {
    return z > 0 ? one : V{};
  } else if constexpr (kAct == Act::leaky_relu) {
    return z > 0 ? one : V{} + Element<V>(kLeakySlope);
  } else if constexpr (kAct == Act::gelu) {
    constexpr double kInvSqrt2Pi = 0.39894228040143267794;
    return gelu_cdf(z) + z * exponential(z * z * Element<V>(-0.5)) * Element<V>(kInvSqrt2Pi);
  } else {
    return one;
  }
}

// f<act>(), with the activation as a template argument.
template <class F>
inline void with_activation(Act act, F&& f) {
  switch (act) {
    case Act::none: return f.template operator()<Act::none>();
    case Act::silu: return f.template operator()<Act::silu>();
    case Act::relu: return f.template operator()<Act::relu>();
    case Act::leaky_relu: return f.template operator()<Act::leaky_relu>();
    case Act::gelu: return f.template operator()<Act::gelu>();
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
