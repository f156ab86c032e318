// timestep_embedding between torch and the kernels.
#include "timestep_embedding.h"

#include <cmath>

#include "../boxing.h"
#include "../common/layout.h"

namespace fastdiff {
namespace {

constexpr int64_t kGrain = 4096;  // sines a thread takes at least

// The frequencies are the same for every timestep and need as many exponentials as a timestep needs sines: made once, here.
std::vector<double> frequencies(int64_t dim, double max_period) {
  std::vector<double> out(dim / 2);
  const double slope = -2 * std::log(max_period) / static_cast<double>(dim);
  for (int64_t i = 0; i < dim / 2; ++i) out[i] = std::exp(static_cast<double>(i) * slope);
  return out;
}

Tensor timestep_embedding_cpu(const Tensor& t, int64_t dim, double max_period) {
  FASTDIFF_CHECK(t.dim() == 1, "timestep_embedding: t must be [N]");
  FASTDIFF_CHECK(dim >= 2 && dim % 2 == 0, "timestep_embedding: dim must be even and at least 2");
  std::optional<Tensor> copy;
  const bool whole = t.dtype() == DType::i64;
  const Tensor& values = whole || t.dtype() == DType::f64 ? t : converted(t, DType::f64, copy);
  Tensor out = empty({t.size(0), dim}, DType::f32, t);
  const std::vector<double> f = frequencies(dim, max_period);
  EmbeddingArgs a{};
  if (whole) a.integers = static_cast<const int64_t*>(values.data());
  else a.fractions = static_cast<const double*>(values.data());
  a.stride = values.stride(0), a.frequencies = f.data(), a.half = dim / 2;
  a.out = static_cast<float*>(out.mutable_data());
  parallel_for(0, t.size(0), kGrain / a.half,
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(timestep_embedding_kernel)(a, begin, end); });
  return out;
}
FASTDIFF_KERNEL(timestep_embedding, CPU, timestep_embedding_cpu);

}  // namespace
}  // namespace fastdiff
