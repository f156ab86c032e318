// Noise on CUDA: one thread per counter, four normals each.
#include "../common/philox_cuda.h"
#include "philox_normal.h"

namespace fastdiff {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kThreads) philox_normal_kernel(const PhiloxArgs a, int64_t counters, bool packed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.walk.images * counters) return;
  const int64_t image = i / counters, counter = i % counters;
  float quad[4];
  philox_normals(
      Counter<uint32_t>{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                        static_cast<uint32_t>(*a.noise.step), a.noise.purpose},
      static_cast<uint64_t>(a.noise.seeds[image * a.noise.stride]), quad);
  float* out = a.out + image * a.walk.pixels + 4 * counter;
  if (packed) {
    *reinterpret_cast<float4*>(out) = make_float4(quad[0], quad[1], quad[2], quad[3]);
  } else {
    for (int k = 0; k < 4; ++k)
      if (4 * counter + k < a.walk.pixels) out[k] = quad[k];
  }
}

}  // namespace
}  // namespace cuda

const char* philox_normal_cuda_launch(const PhiloxArgs& a, void* stream) {
  using namespace cuda;
  const int64_t counters = (a.walk.pixels + 3) / 4;
  const bool packed = a.walk.pixels % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  return launch(philox_normal_kernel, blocks_for(a.walk.images * counters), stream, a, counters, packed);
}

}  // namespace fastdiff
