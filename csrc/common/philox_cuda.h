// Philox in a CUDA thread: the primitives that philox.h asks for, each rounded on its own.
#pragma once
#include "cuda_device.h"

namespace fastdiff::cuda {

FASTDIFF_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
FASTDIFF_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
FASTDIFF_INLINE float square_root(float v) { return __fsqrt_rn(v); }
template <class F> FASTDIFF_INLINE F to_float(uint32_t v) { return __uint2float_rn(v); }
template <class F> FASTDIFF_INLINE F to_float(int32_t v) { return __int2float_rn(v); }
template <class To> FASTDIFF_INLINE To bits_as(float v) { return static_cast<To>(__float_as_int(v)); }
template <class To> FASTDIFF_INLINE To bits_as(uint32_t v) { return static_cast<To>(v); }
template <class To> FASTDIFF_INLINE To bits_as(int32_t v) { return __int_as_float(v); }
FASTDIFF_INLINE void high_low(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  high = __umulhi(a, b), low = a * b;
}

}  // namespace fastdiff::cuda

#include "philox.h"
