// q_sample between torch and the kernels.
#include "q_sample.h"

#include "../boxing.h"
#include "../common/noise_bind.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Noised = std::tuple<Tensor, Tensor>;

Table table_of(const Tensor& v, int64_t count, const Tensor& x0, const char* name) {
  FASTDIFF_CHECK(v.dim() == 1 && v.size(0) == count && v.dtype() == DType::f32, "q_sample: ", name, " must be float32 [T]");
  check_on_device_of(x0, v, "q_sample", name);
  return {static_cast<const float*>(v.data()), v.stride(0), 0};
}

template <class Launch>
Noised q_sample(const Tensor& x0, const Tensor& t, const Tensor& signal, const Tensor& sigma, const MaybeTensor& noise,
                const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose, Launch&& launch) {
  check_images(x0, "q_sample", "x0");
  FASTDIFF_CHECK(signal.dim() == 1, "q_sample: signal must be float32 [T]");
  FASTDIFF_CHECK(noise || (seeds && step), "q_sample: noise, or seeds and step, must be given");
  const int64_t count = signal.size(0);
  MaybeTensor x0_copy, noise_copy, t_copy;
  QSampleArgs a{};
  a.dtype = x0.dtype();
  a.signal = table_of(signal, count, x0, "signal"), a.sigma = table_of(sigma, count, x0, "sigma");
  a.timesteps = timesteps_of(t, count, x0, "q_sample", t_copy);
  if (noise) check_alike(x0, *noise, "q_sample", "noise");
  else a.noise = noise_of(*seeds, *step, purpose, x0.size(0), x0, "q_sample");
  const bool channels_last = suggests_channels_last(x0);
  Noised out{empty_like(x0, channels_last), noise ? empty({0}, x0.dtype(), x0) : empty_like(x0, channels_last)};
  auto& [xt, made] = out;
  if (x0.numel() == 0) return out;
  a.walk = walk_of(x0, channels_last);
  a.x0 = dense(x0, channels_last, x0_copy).data(), a.xt = xt.mutable_data();
  if (noise) a.given = dense(*noise, channels_last, noise_copy).data();
  else a.made = made.mutable_data();
  launch(a);
  return out;
}

Noised q_sample_cpu(const Tensor& x0, const Tensor& t, const Tensor& signal, const Tensor& sigma, const MaybeTensor& noise,
                    const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose) {
  return q_sample(x0, t, signal, sigma, noise, seeds, step, purpose, [](const QSampleArgs& a) {
    parallel_tiles(a.walk, [&](int64_t begin, int64_t end) { FASTDIFF_CPU(q_sample_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(q_sample, CPU, q_sample_cpu);

#ifdef FASTDIFF_CUDA
Noised q_sample_cuda(const Tensor& x0, const Tensor& t, const Tensor& signal, const Tensor& sigma, const MaybeTensor& noise,
                     const MaybeTensor& seeds, const MaybeTensor& step, int64_t purpose) {
  const CudaDeviceGuard guard(x0.device_index());
  return q_sample(x0, t, signal, sigma, noise, seeds, step, purpose,
                  [&](const QSampleArgs& a) { cuda_ok(q_sample_cuda_launch(a, guard.stream())); });
}
FASTDIFF_KERNEL(q_sample, CUDA, q_sample_cuda);
#endif

}  // namespace
}  // namespace fastdiff
