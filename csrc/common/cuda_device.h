// What CUDA kernels are written in: scalar types, vector loads, sums over a block. The counterpart of simd.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
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
// Never part of a fused multiply-add.
FASTDIFF_INLINE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
FASTDIFF_INLINE double rounded_product(double a, double b) { return __dmul_rn(a, b); }
FASTDIFF_INLINE float exponential2(float t) { return exp2f(t); }
FASTDIFF_INLINE double exponential2(double t) { return exp2(t); }
// Within two units in the last place, and 0 for b above 2^126; the exact one is a call, around which registers spill.
FASTDIFF_INLINE float divide(float a, float b) { return __fdividef(a, b); }
FASTDIFF_INLINE double divide(double a, double b) { return a / b; }
FASTDIFF_INLINE float square_root(float v) { return __fsqrt_rn(v); }
FASTDIFF_INLINE double square_root(double v) { return sqrt(v); }
FASTDIFF_INLINE float error_function(float x) { return erff(x); }
FASTDIFF_INLINE double error_function(double x) { return erf(x); }

// 16 bytes in one access: pointers must be aligned to it.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
template <class T> constexpr int kPack = sizeof(T) == 8 ? 1 : 16 / sizeof(T);  // doubles are there to be right, not fast

// Starts a copy from global to shared memory (cp.async), which the thread's next wait_for_copies() ends. No register holds it,
// so that all of a thread's copies are under way at once. Less than 4 bytes are copied at once.
template <class P>
FASTDIFF_INLINE void copy_async(P* to, const P* from) {
  if constexpr (sizeof(P) >= 4) __pipeline_memcpy_async(to, from, sizeof(P));
  else *to = *from;
}
FASTDIFF_INLINE void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}
// Or in groups: those since the last commit are one, and a wait leaves the last kLeft groups under way.
FASTDIFF_INLINE void commit_copies() { __pipeline_commit(); }
template <int kLeft>
FASTDIFF_INLINE void wait_for_copies() {
  __pipeline_wait_prior(kLeft);
}

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

// Shared memory whose size the launch says, aligned to 16 bytes. A block may have this much on every GPU since sm_80, and an
// sm_90 then runs two of them, one loading while the other stores. A kernel's own __shared__ variables count as well.
constexpr int64_t kOwnShared = 256;  // bytes of such variables, at most, beside memory whose size the launch says
constexpr int64_t kSharedBytes = (99 << 10) - kOwnShared;
constexpr int64_t kSharedUnasked = (48 << 10) - kOwnShared;  // above it a kernel must be told
#ifdef FASTDIFF_SIMULATED  // tests/cuda_sim
#define FASTDIFF_DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(::cuda_sim::dynamic_shared())
#else
#define FASTDIFF_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// What is wrong, in words. Of a GPU that the build has no code for, CUDA says neither which it is nor what there is.
inline const char* explained(cudaError_t error) {
#ifndef FASTDIFF_SIMULATED
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidKernelImage || error == cudaErrorInvalidPtx ||
      error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidDeviceFunction) {
    thread_local char text[320];
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    std::snprintf(text, sizeof(text),
                  "%s: GPU %d has compute capability %d.%d, fastdiff was built for %s and needs at least 8.0 (CUDAARCHS says "
                  "what a build is for)",
                  cudaGetErrorString(error), device, major, minor, FASTDIFF_CUDA_ARCHITECTURES);
    return text;
  }
#endif
  return cudaGetErrorString(error);
}

// Runs a kernel in `blocks` blocks of kOfBlock threads, none if that is 0. Returns null, or what is wrong.
template <int kOfBlock = kThreads, class... P>
const char* launch_with_shared(void (*kernel)(P...), int64_t blocks, int64_t shared_bytes, void* stream,
                               std::type_identity_t<P>... arguments) {
  if (blocks > 2147483647) return "the tensor has more elements than one launch covers";
  if (blocks == 0) return nullptr;
#ifdef FASTDIFF_SIMULATED
  ::cuda_sim::run(static_cast<unsigned>(blocks), kOfBlock, shared_bytes, [=] { kernel(arguments...); });
#else
  if (shared_bytes > kSharedUnasked) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return explained(error);
  }
  kernel<<<static_cast<unsigned>(blocks), kOfBlock, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
#endif
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : explained(error);
}
template <class... P>
const char* launch(void (*kernel)(P...), int64_t blocks, void* stream, std::type_identity_t<P>... arguments) {
  return launch_with_shared(kernel, blocks, 0, stream, arguments...);
}

}  // namespace fastdiff::cuda
