// One uniform number for each image: see fastdiff/ops/philox_uniform.py for the definition.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/noise.h"

namespace fastdiff {

struct UniformArgs {
  Noise noise;
  double* out;
};

// Images [begin, end).
FASTDIFF_DECLARE_CPU(void, philox_uniform_kernel, (const UniformArgs&, int64_t begin, int64_t end))

const char* philox_uniform_cuda_launch(const UniformArgs&, int64_t images, void* stream);

}  // namespace fastdiff
