// What CUDA kernels are written in: scalar types, vector loads, sums over a block. The counterpart of simd.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "numeric.h"

#define FASTDIFF_ISA cuda
#define FASTDIFF_INLINE __device__ __forceinline__
#define FASTDIFF_UNROLL _Pragma("unroll")

namespace fastdiff::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T> struct ComputeType { using type = float; };
template <> struct ComputeType<double> { using type = double; };
template <class T> using Compute = typename ComputeType<T>::type;
template <class V> using Element = V;

FASTDIFF_INLINE double widen(double v) { return v; }
FASTDIFF_INLINE float widen(float v) { return v; }
FASTDIFF_INLINE float widen(bf16 v) { return __bfloat162float(v); }
FASTDIFF_INLINE float widen(f16 v) { return __half2float(v); }
template <class T> FASTDIFF_INLINE T narrow(Compute<T> v) {
  if constexpr (sizeof(T) == sizeof(v)) return v;
  else if constexpr (__is_same(T, bf16)) return __float2bfloat16(v);
  else return __float2half(v);
}

FASTDIFF_INLINE float madd(float a, float b, float c) { return fmaf(a, b, c); }
FASTDIFF_INLINE double madd(double a, double b, double c) { return fma(a, b, c); }
FASTDIFF_INLINE float exponential2(float t) { return exp2f(t); }
FASTDIFF_INLINE double exponential2(double t) { return exp2(t); }
FASTDIFF_INLINE float error_function(float x) { return erff(x); }
FASTDIFF_INLINE double error_function(double x) { return erf(x); }

// 16 bytes in one access: pointers must be aligned to it.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
template <class T> constexpr int kPack = 16 / sizeof(T);

FASTDIFF_INLINE double element(const Matrix& m, int64_t n, int64_t c) {
  const int64_t i = n * m.stride_n + c * m.stride_c;
  switch (m.dtype) {
    case DType::f64: return static_cast<const double*>(m.data)[i];
    case DType::f32: return static_cast<const float*>(m.data)[i];
    case DType::bf16: return widen(static_cast<const bf16*>(m.data)[i]);
    default: return widen(static_cast<const f16*>(m.data)[i]);
  }
}

FASTDIFF_INLINE void store_element(void* out, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::f64: static_cast<double*>(out)[i] = value; break;
    case DType::f32: static_cast<float*>(out)[i] = static_cast<float>(value); break;
    case DType::bf16: static_cast<bf16*>(out)[i] = narrow<bf16>(static_cast<float>(value)); break;
    default: static_cast<f16*>(out)[i] = narrow<f16>(static_cast<float>(value));
  }
}

// Sum over a block of kThreads, in an order that never varies; the result is thread 0's.
template <int kThreads, class S>
FASTDIFF_INLINE S block_sum(S v, S* shared) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
  __syncthreads();  // shared may still be read from an earlier sum
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  S total{};
  for (int warp = 0; warp < kThreads / 32; ++warp) total += shared[warp];
  return total;
}

constexpr int kThreads = 256;

inline int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// Runs a kernel in `blocks` blocks of kThreads threads, none if that is 0. Returns null, or what is wrong.
template <class... P>
const char* launch(void (*kernel)(P...), int64_t blocks, void* stream, std::type_identity_t<P>... arguments) {
  if (blocks > 2147483647) return "the tensor has more elements than one launch covers";
  if (blocks == 0) return nullptr;
#ifdef FASTDIFF_SIMULATED  // tests/cuda_sim
  ::cuda_sim::run(static_cast<unsigned>(blocks), kThreads, 0, [=] { kernel(arguments...); });
#else
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
#endif
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastdiff::cuda
