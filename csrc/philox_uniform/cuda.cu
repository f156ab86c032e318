// Philox on CUDA: one thread per image, which needs one counter.
#include "../common/philox_cuda.h"
#include "philox_uniform.h"

namespace fastdiff {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads) philox_uniform_kernel(const UniformArgs a, int64_t images) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= images) return;
  const uint64_t seed = static_cast<uint64_t>(a.noise.seeds[n * a.noise.stride]);
  const Counter<uint32_t> counter{0, 0, static_cast<uint32_t>(*a.noise.step), a.noise.purpose};
  a.out[n] = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)).c0 * 0x1p-32;
}

}  // namespace
}  // namespace cuda

const char* philox_uniform_cuda_launch(const UniformArgs& a, int64_t images, void* stream) {
  using namespace cuda;
  return launch(philox_uniform_kernel, blocks_for(images), stream, a, images);
}

}  // namespace fastdiff
