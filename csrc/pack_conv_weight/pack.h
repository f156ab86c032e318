// Packing of a tensor, for the ops that do it within themselves.
#pragma once
#include <algorithm>

#include "../torch_abi.h"
#include "pack_conv_weight.h"

namespace fastdiff {

constexpr int64_t kPackGrain = 4;  // blocks a thread takes at least

// weight [Cout, Cin, kh, kw] for images of dtype `of`. turned: as the gradient of the input needs it, Cin outputs of Cout
// inputs, and each kernel turned by half a circle.
inline Tensor packed_weight(const Tensor& weight, DType of, bool winograd, bool turned) {
  PackConvWeightArgs a{};
  a.weight = weight.data(), a.from = weight.dtype(), a.to = of == DType::f16 ? DType::f32 : of, a.winograd = winograd;
  a.outputs = weight.size(0), a.inputs = weight.size(1), a.kernel_height = weight.size(2), a.kernel_width = weight.size(3);
  a.output_stride = weight.stride(0), a.input_stride = weight.stride(1);
  a.row_stride = weight.stride(2), a.column_stride = weight.stride(3);
  if (turned) {
    const int64_t size = a.from == DType::f64 ? 8 : a.from == DType::f32 ? 4 : 2;
    const int64_t last = (a.kernel_height - 1) * a.row_stride + (a.kernel_width - 1) * a.column_stride;
    a.weight = static_cast<const char*>(a.weight) + last * size;
    a.row_stride = -a.row_stride, a.column_stride = -a.column_stride;
    std::swap(a.outputs, a.inputs), std::swap(a.output_stride, a.input_stride);
  }
  const int64_t block = packed_block(a.to), blocks = (a.outputs + 31) / 32 * ((a.inputs + block - 1) / block);
  Tensor out = empty({blocks * 32 * block * (winograd ? 16 : a.kernel_height * a.kernel_width)}, a.to, weight);
  a.packed = out.mutable_data();
  parallel_for(0, blocks, kPackGrain,
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(pack_conv_weight_kernel)(a, begin, end); });
  return out;
}

}  // namespace fastdiff
