// A convolution's weights in the order of conv2d_fused's kernels; the order is that of fastdiff/ops/pack_conv_weight.py.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

struct PackConvWeightArgs {
  const void* weight;  // its first element; strides may be negative, so that a turned kernel is a view as well
  DType from, to;      // of weight; of packed: bf16, f32 or f64
  int64_t outputs, inputs, kernel_height, kernel_width;
  int64_t output_stride, input_stride, row_stride, column_stride;
  bool winograd;
  void* packed;
};

inline int64_t packed_block(DType to) { return to == DType::bf16 ? 32 : to == DType::f64 ? 8 : 16; }  // inputs of 64 bytes

// Blocks [begin, end) of all blocks of 32 outputs times all blocks of inputs.
FASTDIFF_DECLARE_CPU(void, pack_conv_weight_kernel, (const PackConvWeightArgs&, int64_t begin, int64_t end))

}  // namespace fastdiff
