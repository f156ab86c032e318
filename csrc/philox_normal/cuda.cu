// Noise on CUDA: one thread per counter, four normals each.
#include "../common/noise_walk_cuda.h"
#include "philox_normal.h"

namespace fastdiff {
namespace cuda {
namespace {

template <bool kPacked>
__global__ void __launch_bounds__(kThreads) philox_normal_kernel(const PhiloxArgs a) {
  const auto q = quad_of_thread<kPacked>(a.walk);
  if (q.count == 0) return;
  float v[4];
  normals_of_quad(a.noise, q, v);
  store_quad<float>(a.out, q, v);
}

}  // namespace
}  // namespace cuda

const char* philox_normal_cuda_launch(const PhiloxArgs& a, void* stream) {
  using namespace cuda;
  return launch_quads<float>(philox_normal_kernel<true>, philox_normal_kernel<false>, a, stream, a.out);
}

}  // namespace fastdiff
