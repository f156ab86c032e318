// philox_normal between torch and the kernels.
#include "philox_normal.h"

#include "../boxing.h"
#include "../common/noise_bind.h"

namespace fastdiff {
namespace {

template <class Launch>
Tensor philox_normal(const std::vector<int64_t>& shape, const Tensor& seeds, const Tensor& step, int64_t purpose,
                     Launch&& launch) {
  FASTDIFF_CHECK(!shape.empty(), "philox_normal: shape must be [N, ...]");
  const Noise noise = noise_of(seeds, step, purpose, shape[0], seeds, "philox_normal");
  int64_t size = 1;
  for (size_t i = 1; i < shape.size(); ++i) {
    FASTDIFF_CHECK(shape[i] >= 0, "philox_normal: shape must have no negative size");
    size *= shape[i];
  }
  Tensor out = empty(shape, DType::f32, seeds);
  const PhiloxArgs a{make_walk(shape[0], 1, size, false), noise, static_cast<float*>(out.mutable_data())};
  if (shape[0] * size > 0) launch(a);
  return out;
}

Tensor philox_normal_cpu(const std::vector<int64_t>& shape, const Tensor& seeds, const Tensor& step, int64_t purpose) {
  return philox_normal(shape, seeds, step, purpose, [](const PhiloxArgs& a) {
    parallel_tiles(a.walk, [&](int64_t begin, int64_t end) { FASTDIFF_CPU(philox_normal_kernel)(a, begin, end); });
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
