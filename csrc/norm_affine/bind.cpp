// norm_affine between torch and the kernel: memory safety and outputs.
#include "../boxing.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "norm_affine.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;

constexpr const char* kOp = "norm_affine";
constexpr int64_t kGrain = 4096;  // parts a thread takes at least: below it, waking a thread costs more than it saves

Partials partials_of(const Tensor& p, const Tensor& first, const char* name, MaybeTensor& copy) {
  FASTDIFF_CHECK(p.dim() == 4 && p.size(3) == 3 && p.size(2) > 0 && p.size(0) == first.size(0) &&
                     (p.dtype() == DType::f32 || p.dtype() == DType::f64) && p.dtype() == first.dtype(),
                 kOp, ": ", name, " must be [N, C, P, 3], float32 or float64");
  check_on_device_of(first, p, kOp, name);
  return {dense(p, false, copy).data(), p.size(1), p.size(2)};
}

Matrix matrix(const MaybeTensor& m, const Tensor& partials, int64_t channels, bool per_image, const char* name) {
  if (!m) return {};
  const int64_t last = m->dim() - 1;
  FASTDIFF_CHECK(m->dim() == 1 + per_image && m->size(last) == channels && (!per_image || m->size(0) == partials.size(0)), kOp, ": ",
                 name, " must be ", per_image ? "[N, C]" : "[C]");
  FASTDIFF_CHECK(partials.dtype() == DType::f64 ? m->dtype() == DType::f64 : m->dtype() != DType::f64 && m->dtype() <= DType::f16,
                 kOp, ": ", name, " must be float32, bfloat16 or float16, float64 where partials are");
  check_on_device_of(partials, *m, kOp, name);
  return {m->data(), per_image ? m->stride(0) : 0, m->stride(last), m->dtype()};
}

// launch runs the kernel.
template <class Launch>
Outputs norm_affine(const Tensor& partials, const MaybeTensor& partials2, int64_t groups, const MaybeTensor& weight,
                    const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift, Launch&& launch) {
  MaybeTensor copies[2];
  NormAffineArgs a{};
  a.images = partials.size(0), a.groups = groups, a.eps = eps, a.wide = partials.dtype() == DType::f64;
  a.inputs[0] = partials_of(partials, partials, "partials", copies[0]);
  if (partials2) a.inputs[1] = partials_of(*partials2, partials, "partials2", copies[1]);
  const int64_t channels = a.inputs[0].channels + a.inputs[1].channels;
  FASTDIFF_CHECK(groups > 0 && channels % groups == 0, kOp, ": groups must be a divisor of C");
  a.weight = matrix(weight, partials, channels, false, "weight"), a.bias = matrix(bias, partials, channels, false, "bias");
  a.scale = matrix(scale, partials, channels, true, "scale"), a.shift = matrix(shift, partials, channels, true, "shift");
  Outputs out{empty({a.images, channels}, partials.dtype(), partials), empty({a.images, channels}, partials.dtype(), partials)};
  a.a = std::get<0>(out).mutable_data(), a.b = std::get<1>(out).mutable_data();
  launch(a);
  return out;
}

Outputs norm_affine_cpu(const Tensor& partials, const MaybeTensor& partials2, int64_t groups, const MaybeTensor& weight,
                        const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift) {
  return norm_affine(partials, partials2, groups, weight, bias, eps, scale, shift, [](const NormAffineArgs& a) {
    const int64_t parts = a.inputs[0].channels * a.inputs[0].parts + a.inputs[1].channels * a.inputs[1].parts;
    parallel_for(0, a.images, kGrain / (parts + 1),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(norm_affine_kernel)(a, begin, end); });
  });
}

FASTDIFF_KERNEL(norm_affine, CPU, norm_affine_cpu);

#ifdef FASTDIFF_CUDA
Outputs norm_affine_cuda(const Tensor& partials, const MaybeTensor& partials2, int64_t groups, const MaybeTensor& weight,
                         const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift) {
  const CudaDeviceGuard guard(partials.device_index());
  return norm_affine(partials, partials2, groups, weight, bias, eps, scale, shift,
                     [&](const NormAffineArgs& a) { cuda_ok(norm_affine_cuda_launch(a, guard.stream())); });
}

FASTDIFF_KERNEL(norm_affine, CUDA, norm_affine_cuda);
#endif

}  // namespace
}  // namespace fastdiff
