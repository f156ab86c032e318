// Coefficients of images: rows of a float32 table. Shared by CPU and CUDA kernels.
#pragma once
#include <cstdint>

namespace fastdiff {

// Rows are chosen by the images' timesteps.
struct Timesteps {
  const int64_t* data = nullptr;
  int64_t stride = 0;  // 0: one timestep for all
  int64_t count = 0;   // rows of the table: a timestep outside of 0 .. count-1 gives NaN
};

struct Table {
  const float* data = nullptr;
  int64_t stride_row = 0, stride_column = 0;
};

}  // namespace fastdiff
