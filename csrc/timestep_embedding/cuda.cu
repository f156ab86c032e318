// Sinusoidal embedding on CUDA: one thread per timestep and frequency, in float64 as the reference.
#include "../common/cuda_device.h"
#include "timestep_embedding.h"

namespace fastdiff {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads) timestep_embedding_kernel(const EmbeddingArgs a, int64_t images) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = thread / a.half, i = thread - n * a.half;
  if (n >= images) return;
  const double t = a.integers ? static_cast<double>(a.integers[n * a.stride]) : a.fractions[n * a.stride];
  double sine, cosine;
  // In half turns: reducing a large angle in radians takes an array of local memory.
  constexpr double kInvPi = 0.318309886183790671538;
  sincospi(t * exp(static_cast<double>(i) * a.slope) * kInvPi, &sine, &cosine);
  float* out = a.out + n * 2 * a.half + i;
  out[0] = static_cast<float>(sine), out[a.half] = static_cast<float>(cosine);
}

}  // namespace
}  // namespace cuda

const char* timestep_embedding_cuda_launch(const EmbeddingArgs& a, int64_t images, void* stream) {
  using namespace cuda;
  return launch(timestep_embedding_kernel, blocks_for(images * a.half), stream, a, images);
}

}  // namespace fastdiff
