// timestep_embedding between torch and the kernels.
#include "timestep_embedding.h"

#include <cmath>

#include "../boxing.h"
#include "../common/layout.h"

namespace fastdiff {
namespace {

constexpr int64_t kGrain = 4096;  // sines a thread takes at least

template <class Launch>
Tensor timestep_embedding(const Tensor& t, int64_t dim, double max_period, Launch&& launch) {
  FASTDIFF_CHECK(t.dim() == 1, "timestep_embedding: t must be [N]");
  FASTDIFF_CHECK(dim >= 2 && dim % 2 == 0, "timestep_embedding: dim must be even and at least 2");
  std::optional<Tensor> copy;
  const bool whole = t.dtype() == DType::i64;
  const Tensor& values = whole || t.dtype() == DType::f64 ? t : converted(t, DType::f64, copy);
  Tensor out = empty({t.size(0), dim}, DType::f32, t);
  EmbeddingArgs a{};
  if (whole) a.integers = static_cast<const int64_t*>(values.data());
  else a.fractions = static_cast<const double*>(values.data());
  a.stride = values.stride(0), a.half = dim / 2;
  a.slope = -2 * std::log(max_period) / static_cast<double>(dim);
  a.out = static_cast<float*>(out.mutable_data());
  launch(a, t.size(0));
  return out;
}

Tensor timestep_embedding_cpu(const Tensor& t, int64_t dim, double max_period) {
  return timestep_embedding(t, dim, max_period, [](EmbeddingArgs& a, int64_t images) {
    // The frequencies are the same for every timestep and need as many exponentials as a timestep needs sines: made once, here.
    std::vector<double> frequencies(a.half);
    for (int64_t i = 0; i < a.half; ++i) frequencies[i] = std::exp(static_cast<double>(i) * a.slope);
    a.frequencies = frequencies.data();
    parallel_for(0, images, kGrain / a.half,
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(timestep_embedding_kernel)(a, begin, end); });
  });
}
FASTDIFF_KERNEL(timestep_embedding, CPU, timestep_embedding_cpu);

#ifdef FASTDIFF_CUDA
Tensor timestep_embedding_cuda(const Tensor& t, int64_t dim, double max_period) {
  const CudaDeviceGuard guard(t.device_index());
  return timestep_embedding(t, dim, max_period, [&](const EmbeddingArgs& a, int64_t images) {
    cuda_ok(timestep_embedding_cuda_launch(a, images, guard.stream()));
  });
}
FASTDIFF_KERNEL(timestep_embedding, CUDA, timestep_embedding_cuda);
#endif

}  // namespace
}  // namespace fastdiff
