// Noise kernels on pointers: see fastdiff/ops/philox_normal.py for the definition.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/noise.h"

namespace fastdiff {

struct PhiloxArgs {
  Walk walk;  // of images of one channel
  Noise noise;
  float* out;
};

// Tiles [begin, end) of the walk.
FASTDIFF_DECLARE_CPU(void, philox_normal_kernel, (const PhiloxArgs&, int64_t begin, int64_t end))

const char* philox_normal_cuda_launch(const PhiloxArgs&, void* stream);

}  // namespace fastdiff
