// One warp's mma.sync and ldmatrix on registers that the caller fills and reads, for test_fragments.py.
#include "common/mma.h"

namespace fastdiff::cuda {
namespace {

constexpr int kWarp = 32;

template <class T>
__global__ void multiply(const uint32_t (*a)[4], const uint32_t (*b)[2], float (*sums)[4], unsigned lanes) {
  if (lanes >> threadIdx.x & 1) multiply_add<T>(sums[threadIdx.x], a[threadIdx.x], b[threadIdx.x]);
}

// Rows of 16 bytes, of which the lane names the one that bears its number.
template <int kMatrices, bool kTransposed>
__global__ void load(const Pack<uint32_t, 4>* rows, uint32_t (*out)[4]) {
  uint32_t registers[kMatrices];
  ::cuda_sim::load_matrices<kMatrices, kTransposed>(registers, rows + threadIdx.x);
  for (int i = 0; i < kMatrices; ++i) out[threadIdx.x][i] = registers[i];
}

__global__ void differ(const Pack<uint32_t, 4>* rows) {
  uint32_t registers[4];
  if (threadIdx.x % 2) load_matrices(registers, rows + threadIdx.x);
  else __syncwarp();
}

}  // namespace
}  // namespace fastdiff::cuda

using namespace fastdiff::cuda;

#define EXPORT extern "C" __attribute__((visibility("default")))

// lanes: a bit for each lane that comes to the product.
EXPORT const char* multiply_fragments(bool half, const uint32_t (*a)[4], const uint32_t (*b)[2], float (*sums)[4],
                                      unsigned lanes) {
  return launch_with_shared<kWarp>(half ? multiply<f16> : multiply<bf16>, 1, 0, nullptr, a, b, sums, lanes);
}

EXPORT const char* load_rows(int matrices, bool transposed, const void* rows, uint32_t (*out)[4]) {
  const auto kernel = matrices == 1   ? (transposed ? load<1, true> : load<1, false>)
                      : matrices == 2 ? (transposed ? load<2, true> : load<2, false>)
                                      : (transposed ? load<4, true> : load<4, false>);
  return launch_with_shared<kWarp>(kernel, 1, 0, nullptr, static_cast<const Pack<uint32_t, 4>*>(rows), out);
}

EXPORT const char* load_where_others_wait(const void* rows) {
  return launch_with_shared<kWarp>(differ, 1, 0, nullptr, static_cast<const Pack<uint32_t, 4>*>(rows));
}
