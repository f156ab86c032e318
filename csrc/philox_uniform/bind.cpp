// philox_uniform between torch and the kernel.
#include "philox_uniform.h"

#include "../boxing.h"
#include "../common/noise_bind.h"

namespace fastdiff {
namespace {

constexpr int64_t kGrain = 1024;  // images a thread takes at least

template <class Launch>
Tensor philox_uniform(const Tensor& seeds, const Tensor& step, int64_t purpose, Launch&& launch) {
  FASTDIFF_CHECK(seeds.dim() == 1, "philox_uniform: seeds must be int64 of shape [N]");
  const int64_t images = seeds.size(0);
  const Noise noise = noise_of(seeds, step, purpose, images, seeds, "philox_uniform");
  Tensor out = empty({images}, DType::f64, seeds);
  launch(UniformArgs{noise, static_cast<double*>(out.mutable_data())}, images);
  return out;
}

Tensor philox_uniform_cpu(const Tensor& seeds, const Tensor& step, int64_t purpose) {
  return philox_uniform(seeds, step, purpose, [](const UniformArgs& a, int64_t images) {
    parallel_for(0, images, kGrain,
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(philox_uniform_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(philox_uniform, CPU, philox_uniform_cpu);

#ifdef FASTDIFF_CUDA
Tensor philox_uniform_cuda(const Tensor& seeds, const Tensor& step, int64_t purpose) {
  const CudaDeviceGuard guard(seeds.device_index());
  return philox_uniform(seeds, step, purpose, [&](const UniformArgs& a, int64_t images) {
    cuda_ok(philox_uniform_cuda_launch(a, images, guard.stream()));
  });
}
FASTDIFF_KERNEL(philox_uniform, CUDA, philox_uniform_cuda);
#endif

}  // namespace
}  // namespace fastdiff
