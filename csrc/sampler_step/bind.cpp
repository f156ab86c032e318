// sampler_step between torch and the kernels.
#include "../boxing.h"
#include "../common/noise_bind.h"
#include "sampler_step.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Step = std::tuple<Tensor, Tensor>;

template <class Launch>
Step sampler_step(const Tensor& x, const Tensor& m, const MaybeTensor& previous, const Tensor& coefficients, double clip,
                  const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose, Launch&& launch) {
  check_images(x, "sampler_step", "x");
  check_alike(x, m, "sampler_step", "m");
  if (previous) check_alike(x, *previous, "sampler_step", "previous");
  const int64_t rank = coefficients.dim();
  FASTDIFF_CHECK((rank == 1 || (rank == 2 && coefficients.size(0) == x.size(0))) && coefficients.size(rank - 1) == 6 &&
                     coefficients.dtype() == DType::f32,
                 "sampler_step: coefficients must be float32 [6] or [N, 6]");
  check_on_device_of(x, coefficients, "sampler_step", "coefficients");
  FASTDIFF_CHECK(!seeds || step, "sampler_step: step must be given with seeds");
  MaybeTensor x_copy, m_copy, previous_copy;
  StepArgs a{};
  a.dtype = x.dtype(), a.clip = clip;
  a.coefficients = {static_cast<const float*>(coefficients.data()), rank == 2 ? coefficients.stride(0) : 0,
                    coefficients.stride(rank - 1)};
  if (seeds) a.noise = noise_of(*seeds, *step, purpose, x.size(0), x, "sampler_step");
  const bool channels_last = suggests_channels_last(x);
  Step out{empty_like(x, channels_last), empty_like(x, channels_last)};
  if (x.numel() == 0) return out;
  a.walk = walk_of(x, channels_last);
  a.x = dense(x, channels_last, x_copy).data(), a.m = dense(m, channels_last, m_copy).data();
  if (previous) a.previous = dense(*previous, channels_last, previous_copy).data();
  a.next = std::get<0>(out).mutable_data(), a.x0 = std::get<1>(out).mutable_data();
  launch(a);
  return out;
}

Step sampler_step_cpu(const Tensor& x, const Tensor& m, const MaybeTensor& previous, const Tensor& coefficients, double clip,
                      const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose) {
  return sampler_step(x, m, previous, coefficients, clip, seeds, step, purpose, [](const StepArgs& a) {
    parallel_tiles(a.walk, [&](int64_t begin, int64_t end) { FASTDIFF_CPU(sampler_step_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(sampler_step, CPU, sampler_step_cpu);

#ifdef FASTDIFF_CUDA
Step sampler_step_cuda(const Tensor& x, const Tensor& m, const MaybeTensor& previous, const Tensor& coefficients, double clip,
                       const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose) {
  const CudaDeviceGuard guard(x.device_index());
  return sampler_step(x, m, previous, coefficients, clip, seeds, step, purpose,
                      [&](const StepArgs& a) { cuda_ok(sampler_step_cuda_launch(a, guard.stream())); });
}
FASTDIFF_KERNEL(sampler_step, CUDA, sampler_step_cuda);
#endif

}  // namespace
}  // namespace fastdiff
