// Kernel of q_sample on pointers: x_t = signal[t] x0 + sigma[t] noise; see fastdiff/ops/q_sample.py.
#pragma once
#include "../common/cpu_dispatch.h"
#include "../common/noise.h"
#include "../common/numeric.h"
#include "../common/timesteps.h"

namespace fastdiff {

struct QSampleArgs {
  Walk walk;
  Noise noise;  // without seeds, `given`
  DType dtype;
  Table signal, sigma;
  Timesteps timesteps;
  const void *x0, *given;
  void *xt, *made;  // made: where the noise is to be stored, null where it is given
};

// Tiles [begin, end) of the walk.
FASTDIFF_DECLARE_CPU(void, q_sample_kernel, (const QSampleArgs&, int64_t begin, int64_t end))

const char* q_sample_cuda_launch(const QSampleArgs&, void* stream);

}  // namespace fastdiff
