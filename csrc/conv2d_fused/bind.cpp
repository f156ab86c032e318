// conv2d_fused between torch and the kernels: memory safety, outputs, and how the work is cut.
#include <algorithm>

#include "../boxing.h"
#include "../common/activation_name.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "plan.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;
using Integers = std::vector<int64_t>;

constexpr const char* kOp = "conv2d_fused";

int64_t element_size(DType dtype) { return dtype == DType::f16 ? 2 : kept_size(dtype); }

void check_images_of(const Tensor& x, const Tensor& v, int64_t channels, int64_t height, int64_t width, const char* name) {
  FASTDIFF_CHECK(v.dim() == 4 && v.size(0) == x.size(0) && v.size(1) == channels && v.size(2) == height &&
                     v.size(3) == width && v.dtype() == x.dtype(),
                 kOp, ": ", name, " must be [", x.size(0), ", ", channels, ", ", height, ", ", width, "] in x's dtype");
  check_on_device_of(x, v, kOp, name);
}

// launch runs the kernel. On CUDA weights have an order of their own, which keeps fp16.
template <class Launch>
Outputs conv2d_fused(bool cuda, const Tensor& x, const MaybeTensor& x2, const Tensor& weight, const Tensor& packed,
                     const MaybeTensor& a, const MaybeTensor& b, const std::string& act_in, const MaybeTensor& bias,
                     const MaybeTensor& residual, const std::string& act_out, int64_t stride, const Integers& padding,
                     bool upsample, bool statistics, Launch&& launch) {
  FASTDIFF_CHECK(x.dim() == 4 && x.dtype() <= DType::f16, kOp, ": x must be [N, C, H, W], float32, bfloat16, float16 or float64");
  FASTDIFF_CHECK(padding.size() == 4 && std::all_of(padding.begin(), padding.end(), [](int64_t p) { return p >= 0; }) && stride > 0,
                 kOp, ": padding must be four numbers, none negative, and stride at least 1");
  Conv2dArgs c{};
  c.images = x.size(0), c.channels = x.size(1), c.height = x.size(2), c.width = x.size(3);
  c.dtype = x.dtype(), c.act_in = activation_named(act_in), c.act_out = activation_named(act_out);
  const DType wide = c.dtype == DType::f64 ? DType::f64 : DType::f32;
  if (x2) {
    FASTDIFF_CHECK(x2->dim() == 4, kOp, ": x2 must be [N, C, H, W]");
    c.channels2 = x2->size(1);
    check_images_of(x, *x2, c.channels2, c.height, c.width, "x2");
  }
  const int64_t channels = c.channels + c.channels2;
  FASTDIFF_CHECK(weight.dim() == 4 && weight.size(1) == channels && weight.dtype() == x.dtype() && weight.numel() > 0, kOp,
                 ": weight must be [Cout, C, kh, kw] in x's dtype");
  c.out_channels = weight.size(0), c.kernel_height = weight.size(2), c.kernel_width = weight.size(3);
  c.stride = stride, c.left = padding[0], c.top = padding[2], c.upsample = upsample;
  const int64_t height = (c.height << upsample) + padding[2] + padding[3], width = (c.width << upsample) + padding[0] + padding[1];
  FASTDIFF_CHECK(height >= c.kernel_height && width >= c.kernel_width, kOp, ": x must be at least as large as the kernel");
  c.out_height = (height - c.kernel_height) / stride + 1, c.out_width = (width - c.kernel_width) / stride + 1;

  const bool split = !cuda && c.dtype == DType::f32 && packed.dtype() == DType::bf16;
  const int64_t block = kBlockBytes / (split ? 2 : cuda ? element_size(c.dtype) : kept_size(c.dtype));
  const DType packed_dtype = split ? DType::bf16 : c.dtype == DType::f16 && !cuda ? DType::f32 : c.dtype;
  const int64_t matrix = up(c.out_channels, kOutputBlock) * kOutputBlock * up(channels, block) * block;
  const int64_t size = packed.dim() == 1 && packed.dtype() == packed_dtype && packed.stride(0) == 1 ? packed.size(0) : 0;
  c.winograd = !split && !cuda && size == 16 * matrix && c.kernel_height == 3 && c.kernel_width == 3 && stride == 1;
  FASTDIFF_CHECK(c.winograd || size == c.kernel_height * c.kernel_width * matrix * (split ? 2 : 1), kOp,
                 ": packed must be what pack_conv_weight makes of weight");
  FASTDIFF_CHECK(!split || cpu_multiplies_tiles(), kOp,
                 ": packed is split, for precision high on a CPU with AMX; the level in use is ", cpu_level_name());
  c.tiles = !cuda && cpu_multiplies_tiles() && !c.winograd && (split || c.dtype == DType::bf16);
  check_on_device_of(x, packed, kOp, "packed");
  FASTDIFF_CHECK(a.has_value() == b.has_value(), kOp, ": a and b must be given together");
  MaybeTensor a_copy, b_copy, x_copy, x2_copy, residual_copy;
  for (const MaybeTensor* v : {&a, &b}) {
    if (!*v) continue;
    FASTDIFF_CHECK((*v)->dim() == 2 && (*v)->size(0) == c.images && (*v)->size(1) == channels && (*v)->dtype() == wide, kOp,
                   ": a and b must be [N, C] in the compute dtype");
    check_on_device_of(x, **v, kOp, "a and b");
  }
  if (a) c.a = dense(*a, false, a_copy).data(), c.b = dense(*b, false, b_copy).data();
  if (bias) {
    const int64_t last = bias->dim() - 1;
    FASTDIFF_CHECK((last == 0 || (last == 1 && bias->size(0) == c.images)) && bias->size(last) == c.out_channels &&
                       (bias->dtype() == x.dtype() || bias->dtype() == wide),
                   kOp, ": bias must be [Cout] or [N, Cout], in the compute dtype or x's");
    check_on_device_of(x, *bias, kOp, "bias");
    c.bias = {bias->data(), last ? bias->stride(0) : 0, bias->stride(last), bias->dtype()};
  }
  if (residual) check_images_of(x, *residual, c.out_channels, c.out_height, c.out_width, "residual");

  cut_into_parts(c);
  const int64_t sizes[] = {c.images, c.out_channels, c.out_height, c.out_width};
  Outputs out{empty_strided(sizes, dense_strides(sizes, 4, true).data(), 4, x.dtype(), x),
              empty({c.images, c.out_channels, statistics ? c.parts : 0, 3}, wide, x)};
  if (c.images == 0) return out;
  c.x = dense(x, true, x_copy).data(), c.packed = packed.data();
  if (x2) c.x2 = dense(*x2, true, x2_copy).data();
  if (residual) c.residual = dense(*residual, true, residual_copy).data();
  c.y = std::get<0>(out).mutable_data(), c.partials = statistics ? std::get<1>(out).mutable_data() : nullptr;
  launch(c);
  return out;
}

Outputs conv2d_fused_cpu(const Tensor& x, const MaybeTensor& x2, const Tensor& weight, const Tensor& packed,
                         const MaybeTensor& a, const MaybeTensor& b, const std::string& act_in, const MaybeTensor& bias,
                         const MaybeTensor& residual, const std::string& act_out, int64_t stride, const Integers& padding,
                         bool upsample, bool statistics) {
  return conv2d_fused(false, x, x2, weight, packed, a, b, act_in, bias, residual, act_out, stride, padding, upsample, statistics,
                      run_conv2d_fused);
}

FASTDIFF_KERNEL(conv2d_fused, CPU, conv2d_fused_cpu);

#ifdef FASTDIFF_CUDA
Outputs conv2d_fused_cuda(const Tensor& x, const MaybeTensor& x2, const Tensor& weight, const Tensor& packed,
                          const MaybeTensor& a, const MaybeTensor& b, const std::string& act_in, const MaybeTensor& bias,
                          const MaybeTensor& residual, const std::string& act_out, int64_t stride, const Integers& padding,
                          bool upsample, bool statistics) {
  const CudaDeviceGuard guard(x.device_index());
  const auto launch = [&](const Conv2dArgs& c) { cuda_ok(conv2d_fused_cuda_launch(c, guard.stream())); };
  return conv2d_fused(true, x, x2, weight, packed, a, b, act_in, bias, residual, act_out, stride, padding, upsample, statistics,
                      launch);
}

FASTDIFF_KERNEL(conv2d_fused, CUDA, conv2d_fused_cuda);
#endif

}  // namespace
}  // namespace fastdiff
