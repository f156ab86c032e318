// Kernel of timestep_embedding on pointers; see fastdiff/ops/timestep_embedding.py.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"

namespace fastdiff {

struct EmbeddingArgs {
  const int64_t* integers;  // timesteps, or null where they are
  const double* fractions;  // these
  int64_t stride;
  double slope;               // frequency i is exp(i * slope)
  const double* frequencies;  // [half], on the CPU
  int64_t half;               // of dim
  float* out;                 // [N, 2 half]
};

// Timesteps [begin, end).
FASTDIFF_DECLARE_CPU(void, timestep_embedding_kernel, (const EmbeddingArgs&, int64_t begin, int64_t end))

const char* timestep_embedding_cuda_launch(const EmbeddingArgs&, int64_t images, void* stream);

}  // namespace fastdiff
