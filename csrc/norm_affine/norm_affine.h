// Statistics of channels, in parts, as a factor and an offset for each image and channel.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

// S [images, channels, parts, 3]: count, mean and sum of squared deviations from it.
struct Partials {
  const void* data;
  int64_t channels, parts;
};

struct NormAffineArgs {
  int64_t images, groups;
  Partials inputs[2];  // the second's channels follow the first's; 0 of them where there is none
  bool wide;           // S is double, else float
  double eps;
  Matrix weight, bias;  // one row, whatever the image
  Matrix scale, shift;
  void *a, *b;        // S [images, channels of both]
  void *mean, *rstd;  // the same of each channel's group, or null
};

// Images [begin, end).
FASTDIFF_DECLARE_CPU(void, norm_affine_kernel, (const NormAffineArgs&, int64_t begin, int64_t end))

// Launch on a stream; null, or what went wrong.
const char* norm_affine_cuda_launch(const NormAffineArgs&, void* stream);

}  // namespace fastdiff
