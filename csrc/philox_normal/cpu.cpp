// Noise on the CPU: a vector of counters at a time.
#include "../common/noise_walk.h"
#include "philox_normal.h"

namespace fastdiff::FASTDIFF_ISA {

void philox_normal_kernel(const PhiloxArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_of(a.walk, i);
    float* out = a.out + tile.image * a.walk.pixels;
    with_noise<float>(a.walk, tile, draw_of(a.noise, tile.image), [=](int64_t at, int64_t n, Floats noise) {
      store_up_to(out + at, noise, n);
    });
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
