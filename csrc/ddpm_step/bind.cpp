// ddpm_step between torch and the kernels.
#include "../boxing.h"
#include "../common/noise_bind.h"
#include "ddpm_step.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;

template <class Launch>
Tensor ddpm_step(const Tensor& x, const Tensor& m, const Tensor& t, const Tensor& table, double clip, const Tensor& seeds,
                 const Tensor& step, int64_t purpose, Launch&& launch) {
  check_images(x, "ddpm_step", "x");
  check_alike(x, m, "ddpm_step", "m");
  FASTDIFF_CHECK(table.dim() == 2 && table.size(1) == 5 && table.dtype() == DType::f32,
                 "ddpm_step: table must be float32 [T, 5]");
  check_on_device_of(x, table, "ddpm_step", "table");
  MaybeTensor x_copy, m_copy, t_copy;
  StepArgs a{};
  a.dtype = x.dtype(), a.clip = clip;
  a.coefficients = {static_cast<const float*>(table.data()), table.stride(0), table.stride(1)};
  a.timesteps = timesteps_of(t, table.size(0), x, "ddpm_step", t_copy);
  a.noise = noise_of(seeds, step, purpose, x.size(0), x, "ddpm_step");
  const bool channels_last = suggests_channels_last(x);
  Tensor next = empty_like(x, channels_last);
  if (x.numel() == 0) return next;
  a.walk = walk_of(x, channels_last);
  a.x = dense(x, channels_last, x_copy).data(), a.m = dense(m, channels_last, m_copy).data();
  a.next = next.mutable_data();
  launch(a);
  return next;
}

Tensor ddpm_step_cpu(const Tensor& x, const Tensor& m, const Tensor& t, const Tensor& table, double clip, const Tensor& seeds,
                     const Tensor& step, int64_t purpose) {
  return ddpm_step(x, m, t, table, clip, seeds, step, purpose, [](const StepArgs& a) {
    parallel_tiles(a.walk, [&](int64_t begin, int64_t end) { FASTDIFF_CPU(ddpm_step_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(ddpm_step, CPU, ddpm_step_cpu);

#ifdef FASTDIFF_CUDA
Tensor ddpm_step_cuda(const Tensor& x, const Tensor& m, const Tensor& t, const Tensor& table, double clip, const Tensor& seeds,
                      const Tensor& step, int64_t purpose) {
  const CudaDeviceGuard guard(x.device_index());
  return ddpm_step(x, m, t, table, clip, seeds, step, purpose,
                   [&](const StepArgs& a) { cuda_ok(ddpm_step_cuda_launch(a, guard.stream())); });
}
FASTDIFF_KERNEL(ddpm_step, CUDA, ddpm_step_cuda);
#endif

}  // namespace
}  // namespace fastdiff
