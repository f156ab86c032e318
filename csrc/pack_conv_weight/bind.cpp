// pack_conv_weight between torch and the kernel.
#include "../boxing.h"
#include "pack.h"

namespace fastdiff {
namespace {

Tensor pack_conv_weight_cpu(const Tensor& weight, int64_t block, int64_t pair, bool winograd) {
  FASTDIFF_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.dtype() <= DType::f16,
                 "pack_conv_weight: weight must be [Cout, Cin, kh, kw], float32, bfloat16, float16 or float64");
  FASTDIFF_CHECK(!winograd || (weight.size(2) == 3 && weight.size(3) == 3), "pack_conv_weight: weight must be of 3x3 kernels for winograd");
  const DType to = weight.dtype() == DType::f16 ? DType::f32 : weight.dtype();
  FASTDIFF_CHECK(block == packed_block(to) && pair == (to == DType::bf16 ? 2 : 1),
                 "pack_conv_weight: block and pair must be those of weight's dtype");
  return packed_weight(weight, weight.dtype(), winograd, false);
}

FASTDIFF_KERNEL(pack_conv_weight, CPU, pack_conv_weight_cpu);

}  // namespace
}  // namespace fastdiff
