// philox_normal between torch and the kernels.
#include "philox_normal.h"

#include "../torch_abi.h"

namespace fastdiff {
namespace {

template <class Launch>
Tensor philox_normal(const std::vector<int64_t>& shape, const Tensor& seeds, const Tensor& step, int64_t purpose,
                     Launch&& launch) {
  FASTDIFF_CHECK(!shape.empty() && seeds.dim() == 1 && seeds.dtype() == DType::i64 && seeds.size(0) == shape[0],
                 "philox_normal: seeds must be int64 of shape [N], one for each of the N images of shape");
  FASTDIFF_CHECK(step.numel() == 1 && step.dtype() == DType::i64, "philox_normal: step must be an int64 tensor of one element");
  FASTDIFF_CHECK(step.device_type() == seeds.device_type() && step.device_index() == seeds.device_index(),
                 "philox_normal: step must be on the seeds' device");
  int64_t size = 1;
  for (size_t i = 1; i < shape.size(); ++i) {
    FASTDIFF_CHECK(shape[i] >= 0, "philox_normal: shape must have no negative size");
    size *= shape[i];
  }
  Tensor out = empty(shape, DType::f32, seeds);
  const PhiloxArgs a{shape[0], size, static_cast<const int64_t*>(seeds.data()), seeds.stride(0),
                     static_cast<const int64_t*>(step.data()), static_cast<uint32_t>(purpose), static_cast<float*>(out.mutable_data())};
  if (a.images * a.size > 0) launch(a);
  return out;
}

Tensor philox_normal_cpu(const std::vector<int64_t>& shape, const Tensor& seeds, const Tensor& step, int64_t purpose) {
  return philox_normal(shape, seeds, step, purpose, [](const PhiloxArgs& a) {
    parallel_for(0, a.images * philox_units(a), 32,
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(philox_normal_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(philox_normal, CPU, philox_normal_cpu);

#ifdef FASTDIFF_CUDA
Tensor philox_normal_cuda(const std::vector<int64_t>& shape, const Tensor& seeds, const Tensor& step, int64_t purpose) {
  const CudaDeviceGuard guard(seeds.device_index());
  return philox_normal(shape, seeds, step, purpose,
                       [&](const PhiloxArgs& a) { cuda_ok(philox_normal_cuda_launch(a, guard.stream())); });
}
FASTDIFF_KERNEL(philox_normal, CUDA, philox_normal_cuda);
#endif

}  // namespace
}  // namespace fastdiff
