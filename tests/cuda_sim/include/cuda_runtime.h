// The part of CUDA that fastdiff's kernels use, for g++. Found in place of NVIDIA's header when kernels are simulated.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another, so one copy serves all; build.py says where it lies

#define threadIdx (::cuda_sim::thread_index)
#define blockIdx (::cuda_sim::block_index)
#define blockDim (::cuda_sim::block_size)
#define gridDim (::cuda_sim::grid_size)

using cudaStream_t = void*;
using cudaError_t = const char*;
constexpr cudaError_t cudaSuccess = nullptr;
inline cudaError_t cudaGetLastError() { return cuda_sim::last_error(); }
inline const char* cudaGetErrorString(cudaError_t error) { return error; }

inline void __syncthreads() { cuda_sim::sync_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { cuda_sim::sync_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_sim::shuffle(mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, cuda_sim::lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int lanes) {
  const int source = cuda_sim::lane() + lanes;
  return __shfl_sync(mask, value, source < 32 ? source : cuda_sim::lane());
}

// Compile with -ffp-contract=off: each of these is rounded on its own.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline void sincospi(double x, double* sine, double* cosine) {
  const double angle = std::fmod(x, 2) * 3.14159265358979323846;
  *sine = std::sin(angle), *cosine = std::cos(angle);
}
inline float __fdividef(float a, float b) { return a / b; }
inline double rsqrt(double a) { return 1 / std::sqrt(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __uint2float_rn(unsigned a) { return static_cast<float>(a); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __float_as_int(float a) {
  int out;
  std::memcpy(&out, &a, 4);
  return out;
}
inline float __int_as_float(int a) {
  float out;
  std::memcpy(&out, &a, 4);
  return out;
}
