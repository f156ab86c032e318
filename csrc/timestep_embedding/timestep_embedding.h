// Kernel of timestep_embedding on pointers; see fastdiff/ops/timestep_embedding.py.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"

namespace fastdiff {

struct EmbeddingArgs {
  const int64_t* integers;  // timesteps, or null where they are
  const double* fractions;  // these
  int64_t stride;
  const double* frequencies;  // [half]
  int64_t half;               // of dim
  float* out;                 // [N, 2 half]
};

// Timesteps [begin, end).
FASTDIFF_DECLARE_CPU(void, timestep_embedding_kernel, (const EmbeddingArgs&, int64_t begin, int64_t end))

}  // namespace fastdiff
