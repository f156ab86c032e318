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
  const int64_t counters = (a.walk.pixels + 3) / 4, blocks = (a.walk.images * counters + kThreads - 1) / kThreads;
  if (blocks > kMaxBlocks) return "philox_normal: shape has more elements than one launch covers";
  const bool packed = a.walk.pixels % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0;
  philox_normal_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(a, counters, packed);
  return launch_error();
}

}  // namespace fastdiff
