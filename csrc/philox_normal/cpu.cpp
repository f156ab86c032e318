// Noise on the CPU: a vector of counters at a time.
#include "../common/philox_cpu.h"
#include "philox_normal.h"

namespace fastdiff::FASTDIFF_ISA {

void philox_normal_kernel(const PhiloxArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kAtOnce = 4 * kCounters;
  const auto step = static_cast<uint32_t>(*a.step);
  const int64_t units = philox_units(a);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / units, first = unit % units * kPhiloxUnit;
    const int64_t last = first + kPhiloxUnit < a.size ? first + kPhiloxUnit : a.size;
    const auto seed = static_cast<uint64_t>(a.seeds[image * a.seeds_stride]);
    float* out = a.out + image * a.size;
    for (int64_t i = first; i < last; i += kAtOnce) {
      if (i + kAtOnce <= last) {
        normals(i / 4, step, a.purpose, seed, out + i);
      } else {
        float buffer[kAtOnce];
        normals(i / 4, step, a.purpose, seed, buffer);
        std::memcpy(out + i, buffer, (last - i) * sizeof(float));
      }
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
