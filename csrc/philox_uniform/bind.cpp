// philox_uniform between torch and the kernel.
#include "philox_uniform.h"

#include "../boxing.h"
#include "../common/noise_bind.h"

namespace fastdiff {
namespace {

constexpr int64_t kGrain = 1024;  // images a thread takes at least

Tensor philox_uniform_cpu(const Tensor& seeds, const Tensor& step, int64_t purpose) {
  FASTDIFF_CHECK(seeds.dim() == 1, "philox_uniform: seeds must be int64 of shape [N]");
  const int64_t images = seeds.size(0);
  const Noise noise = noise_of(seeds, step, purpose, images, seeds, "philox_uniform");
  Tensor out = empty({images}, DType::f64, seeds);
  const UniformArgs a{noise, static_cast<double*>(out.mutable_data())};
  parallel_for(0, images, kGrain,
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(philox_uniform_kernel)(a, begin, end); });
  return out;
}
FASTDIFF_KERNEL(philox_uniform, CPU, philox_uniform_cpu);

}  // namespace
}  // namespace fastdiff
