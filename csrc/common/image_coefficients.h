// An image's coefficient from a table, in kernels. On CUDA, cuda_device.h comes first.
#pragma once
#ifndef FASTDIFF_INLINE
#include "simd.h"
#endif
#include "timesteps.h"

namespace fastdiff::FASTDIFF_ISA {

// Column c of the row of the image's timestep, NaN where that is out of range; without timesteps, of the image's own row.
FASTDIFF_INLINE float coefficient(const Table& table, const Timesteps& t, int64_t image, int64_t c) {
  const int64_t row = t.data ? t.data[image * t.stride] : image;
  if (t.data && (row < 0 || row >= t.count)) return __builtin_nanf("");
  return table.data[row * table.stride_row + c * table.stride_column];
}

}  // namespace fastdiff::FASTDIFF_ISA
