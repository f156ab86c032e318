// How a convolution's work is cut, for the ops whose bind.cpp runs conv2d_fused's kernel.
#pragma once
#include <algorithm>

#include "../torch_abi.h"
#include "conv2d_fused.h"

namespace fastdiff {

constexpr int64_t kPartPixels = 128;        // as PIXELS_OF_A_PART in conv2d_fused.py
constexpr int64_t kKeptBytes = 384 << 10;   // of input rows that a job keeps: they stay in a core's cache beside weights
constexpr int64_t kJobProducts = 1 << 19;   // multiplications a thread takes at least; of tiles, which are
constexpr int64_t kTilesFaster = 8;         // multiplied so many times as fast, more

inline int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t kept_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::bf16 ? 2 : 4; }

// The parts of an output's rows whose statistics are taken together.
inline void cut_into_parts(Conv2dArgs& c) {
  c.part_rows = std::min(up(up(kPartPixels, c.out_width), 2) * 2, c.out_height);  // even, for tiles of two rows
  c.parts = up(c.out_height, c.part_rows);
}

// Bands of rows small enough to be kept, and enough jobs for all threads.
inline void plan(Conv2dArgs& c, int64_t threads) {
  const int64_t row_bytes = ((c.out_width - 1) * c.stride + c.kernel_width) * (c.channels + c.channels2) * kept_size(c.dtype);
  const int64_t rows = std::max<int64_t>((kKeptBytes / row_bytes - c.kernel_height) / c.stride + 1, 1);
  c.band_parts = std::clamp<int64_t>(rows / c.part_rows, 1, c.parts);
  c.band_parts = up(c.parts, up(c.parts, c.band_parts));  // of one size
  while (c.band_parts > 1 && c.images * up(c.parts, c.band_parts) < threads) c.band_parts = up(c.band_parts, 2);
  c.bands = up(c.parts, c.band_parts);
  c.images_together = 1;
  if (c.bands == 1 && !c.winograd && !c.tiles)
    c.images_together = std::clamp<int64_t>(rows / c.out_height, 1, std::max<int64_t>(c.images / threads, 1));
  c.groups = up(c.images, c.images_together);
  const int64_t blocks = up(c.out_channels, kOutputBlock);
  c.block_parts = std::clamp<int64_t>(threads / (c.groups * c.bands), 1, blocks);
  c.blocks_together = up(blocks, c.block_parts);
  c.block_parts = up(blocks, c.blocks_together);
}

// Plans and runs; parts are cut already.
inline void run_conv2d_fused(Conv2dArgs& c) {
  plan(c, num_threads());
  const int64_t jobs = c.groups * c.bands * c.block_parts;
  const int64_t products = c.images * c.out_height * c.out_width * c.out_channels * (c.channels + c.channels2) * c.kernel_height *
                           c.kernel_width;
  const int64_t least_products = kJobProducts * (c.tiles ? kTilesFaster : 1);
  parallel_for(0, jobs, std::max<int64_t>(least_products * jobs / std::max<int64_t>(products, 1), 1),
               [&](int64_t begin, int64_t end) {
                 const auto kernel = c.tiles ? FASTDIFF_CPU_AMX(conv2d_fused_kernel) : FASTDIFF_CPU_BF16(conv2d_fused_kernel);
                 kernel(c, begin, end);
               });
}

}  // namespace fastdiff
