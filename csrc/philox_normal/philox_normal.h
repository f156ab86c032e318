// Noise kernels on pointers: see fastdiff/ops/philox_normal.py for the definition.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"

namespace fastdiff {

struct PhiloxArgs {
  int64_t images, size;   // elements of one image
  const int64_t* seeds;   // [images]
  int64_t seeds_stride;
  const int64_t* step;    // one value, on the device of the call
  uint32_t purpose;
  float* out;             // [images, size]
};

// Counters of one image, padded so that a unit of work is the same on every instruction set.
constexpr int64_t kPhiloxUnit = 256;  // elements: the widest vector makes 64 at a time

inline int64_t philox_units(const PhiloxArgs& a) { return (a.size + kPhiloxUnit - 1) / kPhiloxUnit; }

// Units [begin, end) of images * philox_units.
FASTDIFF_DECLARE_CPU(void, philox_normal_kernel, (const PhiloxArgs&, int64_t begin, int64_t end))

const char* philox_normal_cuda_launch(const PhiloxArgs&, void* stream);

}  // namespace fastdiff
