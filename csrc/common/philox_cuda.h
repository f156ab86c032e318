// Philox in a CUDA thread: the primitives that philox.h asks for, each rounded on its own.
#pragma once
#include "cuda_device.h"

namespace fastdiff::cuda {

FASTDIFF_INLINE float add(float a, float b) { return __fadd_rn(a, b); }
FASTDIFF_INLINE float mul(float a, float b) { return __fmul_rn(a, b); }
template <class F> FASTDIFF_INLINE F to_float(uint32_t v) { return __uint2float_rn(v); }
template <class F> FASTDIFF_INLINE F to_float(int32_t v) { return __int2float_rn(v); }
template <class To> FASTDIFF_INLINE To bits_as(float v) { return static_cast<To>(__float_as_int(v)); }
template <class To> FASTDIFF_INLINE To bits_as(uint32_t v) { return static_cast<To>(v); }
template <class To> FASTDIFF_INLINE To bits_as(int32_t v) { return __int_as_float(v); }
FASTDIFF_INLINE void high_low(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  high = __umulhi(a, b), low = a * b;
}
FASTDIFF_INLINE float choose(uint32_t condition, float yes, float no) { return condition ? yes : no; }

}  // namespace fastdiff::cuda

#include "philox.h"

namespace fastdiff::cuda {

// Four normals, for elements 4i .. 4i+3 of an image.
FASTDIFF_INLINE void philox_normals(Counter<uint32_t> counter, uint64_t seed, float (&out)[4]) {
  const auto w = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  box_muller<float, int32_t>(w.c0, w.c1, out[0], out[1]);
  box_muller<float, int32_t>(w.c2, w.c3, out[2], out[3]);
}

}  // namespace fastdiff::cuda
