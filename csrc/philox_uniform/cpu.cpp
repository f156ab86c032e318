// Philox on single words: an image needs one counter.
#include "../common/philox_cpu.h"
#include "philox_uniform.h"

namespace fastdiff::FASTDIFF_ISA {

void philox_uniform_kernel(const UniformArgs& a, int64_t begin, int64_t end) {
  const uint32_t step = static_cast<uint32_t>(*a.noise.step);
  for (int64_t n = begin; n < end; ++n) {
    const uint64_t seed = static_cast<uint64_t>(a.noise.seeds[n * a.noise.stride]);
    const Counter<uint32_t> counter{0, 0, step, a.noise.purpose};
    a.out[n] = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)).c0 * 0x1p-32;
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
