// What norm_conv2d needs beside conv2d_fused's kernel: statistics where none are given, and the passes of the backward.
//
//     dh = the convolution of dy by the turned kernels                         conv2d_fused's kernel, on dy
//     dw = sum over images and positions of h dy                               below, h made again row by row
//     dx = dz a + (x - mean) slope + level, dz = act'(a x + b) dh              as group_norm_silu's backward
#pragma once
#include "../conv2d_fused/conv2d_fused.h"

namespace fastdiff {

// One of the tensors next to each other that a convolution reads.
struct NormInput {
  const void* x;
  void* dx;
  int64_t first, channels;  // its place among the channels of all
};

struct ChannelStatisticsArgs {
  int64_t images, channels, pixels;
  DType dtype;
  const void* x;   // channels_last
  void* partials;  // S [images, channels, 1, 3], as conv2d_fused's
};

// Images [begin, end).
FASTDIFF_DECLARE_CPU(void, channel_statistics_kernel, (const ChannelStatisticsArgs&, int64_t begin, int64_t end))

// S [images, channels]: sums over an image's pixels.
struct ChannelSumsArgs {
  int64_t images, channels, pixels;
  DType dtype;
  const void* x;  // channels_last
  void* sums;
};

// Images [begin, end).
FASTDIFF_DECLARE_CPU(void, channel_sums_kernel, (const ChannelSumsArgs&, int64_t begin, int64_t end))

struct NormBackwardArgs {
  int64_t images, channels, height, width, groups;  // of all inputs together; groups 0: no norm
  bool upsample;
  DType dtype;  // of inputs and dh; S below is double for double, else float
  Act act;
  NormInput inputs[2];
  const void* dh;                  // channels_last, of twice the height and width where upsample
  const void *mean, *rstd, *a, *b;  // S [images, channels]
  Matrix weight, bias, scale, shift;
  void *dscale, *dshift;  // in their parameter's dtype, dense
  void* shares;           // S [2, images, channels]: the image's share of the gradients of weight and bias
};

// Images [begin, end).
FASTDIFF_DECLARE_CPU(void, norm_conv2d_inputs_kernel, (const NormBackwardArgs&, int64_t begin, int64_t end))

// out[c] = sum over images of S [images, columns]. Columns [begin, end).
struct SumImagesArgs {
  int64_t images, columns;
  bool wide;  // S is double, else float
  const void* from;
  void* out;
  DType dtype;  // of out
};
FASTDIFF_DECLARE_CPU(void, sum_images_kernel, (const SumImagesArgs&, int64_t begin, int64_t end))

// The gradient of a convolution's weights: for each element of the kernel a product of matrices, whose sum is over positions.
// A step of it takes one position of as many images as the machine multiplies together (two of bf16), so that rows of operands
// are lines of 64 bytes whatever the kernel, the stride or the number of positions.
struct WeightGradientArgs {
  Conv2dArgs conv;        // the forward's; y, packed, bias, residual and partials unused
  const void* dy;         // channels_last
  int64_t together;       // images of a step
  int64_t band_rows;      // of outputs
  int64_t chunk_images, chunks;    // images whose products are added in one place, in order
  int64_t outputs_together, parts;  // output channels of a job
  int64_t elements, rows, columns;  // of the sums: taps or 16 of a tile; output channels; input channels up to whole lines
  int64_t positions;      // of tiles that are gathered before they are multiplied
  void* sums;             // S [chunks, elements, rows, columns]
  void* dw;               // in `dtype`, strides below
  DType dtype;
  int64_t output_stride, input_stride, row_stride, column_stride;
};

// Jobs [begin, end) of chunks * parts.
FASTDIFF_DECLARE_CPU_BF16(void, weight_gradient_kernel, (const WeightGradientArgs&, int64_t begin, int64_t end))
// The sums as dw, for output channels [begin, end).
FASTDIFF_DECLARE_CPU_BF16(void, weight_gradient_finish_kernel, (const WeightGradientArgs&, int64_t begin, int64_t end))

}  // namespace fastdiff
