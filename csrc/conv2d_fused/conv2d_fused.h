// Convolution with prologue and epilogue, on pointers.
//
// A job is a band of output rows of one image (and, where there are few of these, a part of the output channels). Its input rows
// go through the prologue once, into memory that stays in the core's cache, in blocks of 64 bytes of channels:
//     kept[row][block][column][64 bytes]        with the zeros that pad it; columns of a stride apart lie side by side
// so that a kernel element is an offset, and neighbouring outputs are 64 bytes apart whatever the stride. For tile registers
// (cpu_amx.cpp) they are kept[block][row][column][64 bytes], so that rows follow each other; of float twice, as two bf16.
//
// A 3x3 kernel of stride 1 may run as Winograd's F(2x2, 3x3): 16 products in place of 36 for each 2x2 outputs (winograd.h).
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

constexpr int64_t kBlockBytes = 64;    // of channels of one pixel
constexpr int64_t kOutputBlock = 32;   // output channels whose weights lie together, in halves
constexpr int64_t kOutputHalf = 16;

struct Conv2dArgs {
  int64_t images, channels, channels2, height, width;  // of x, and the channels of x2
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width, stride, left, top;
  bool upsample;
  DType dtype;  // of x, x2, residual, y; S below is double for double, else float
  Act act_in, act_out;
  const void *x, *x2, *packed, *residual;  // channels_last; x2 and residual may be null
  const void *a, *b;                       // S [images, channels + channels2], or null
  Matrix bias;                             // of an image's outputs, or of all images' (stride_n 0)
  void* y;
  void* partials;                // S [images, out_channels, parts, 3], or null
  int64_t part_rows, parts;      // rows whose statistics are taken together
  int64_t band_parts, bands;     // a band's rows are those of whole parts
  int64_t block_parts, blocks_together;  // into how many parts the blocks of output channels are cut, and their size
  int64_t groups, images_together;       // images of a group, one band each, meet each block of weights while it is in cache
  bool winograd;
  bool tiles;  // by tile registers, bf16 or (dtype f32) products of two bf16 for each float
};

// Jobs [begin, end) of groups * bands * block_parts.
FASTDIFF_DECLARE_CPU_AMX(void, conv2d_fused_kernel, (const Conv2dArgs&, int64_t begin, int64_t end))

// What outputs [begin, end) of image n read, through the prologue into memory laid out as KeptRows says.
FASTDIFF_DECLARE_CPU_BF16(void, conv2d_fused_keep_rows, (const Conv2dArgs&, int64_t n, int64_t begin, int64_t end, unsigned char*))

// Weights in CUDA's order (pack_conv_weight.py); what is below part_rows and parts is not read. Returns null, or what is wrong.
const char* conv2d_fused_cuda_launch(const Conv2dArgs&, void* stream);

}  // namespace fastdiff
