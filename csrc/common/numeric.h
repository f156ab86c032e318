// Scalar types of kernels and the type each is computed in. Shared by CPU and CUDA kernels; no torch, no STL.
#pragma once
#include <cstdint>

namespace fastdiff {

enum class DType : int8_t { f64, f32, bf16, f16, i64, i32, b8, other };

enum class Act : int8_t { none, silu, relu, leaky_relu, gelu };
constexpr double kLeakySlope = 0.01;

// The [N, C] matrix of any strides that modulates images: scale, shift. float32 or the images' dtype.
struct Matrix {
  const void* data = nullptr;  // null where the argument is absent
  int64_t stride_n = 0, stride_c = 0;
  DType dtype = DType::f32;
};

}  // namespace fastdiff
