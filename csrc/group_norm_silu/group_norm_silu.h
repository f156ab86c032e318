// GroupNorm, FiLM and activation on pointers.
//
// With the statistics known, the affine and FiLM fold into three numbers per image and channel:
//     y = act((x - mean) * factor + offset),   factor = rstd weight (1 + scale),   offset = bias (1 + scale) + shift
// mean stays apart, since x * factor + (offset - mean * factor) cancels where means are large. Backward needs no more than
// the sums of dz = grad act'(z) and of dz (x - mean) over the pixels of each image and channel:
//     dx = dz factor + (x - mean) slope + level,
//     slope = -rstd^2 / elements * sum_c factor_c sum_dz_x_c,   level = -1 / elements * sum_c factor_c sum_dz_c
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

// A stretch of elements or pixels taken in chunks of fixed size, so that sums do not depend on threads.
struct Chunks {
  int64_t length, size, count;
};

struct GroupNormSiluArgs {
  int64_t images, channels, pixels, groups;
  int64_t group_channels;  // channels / groups
  bool channels_last;  // x, grad, y and dx are dense in this format
  bool past_caches;    // y and dx are too large to stay in a cache: written past it, and aligned for it
  DType dtype;         // of x, grad, y, dx; S below is double for double, else float
  Act act;
  double eps;
  double share;        // one over the elements of a group
  Matrix weight, bias;  // one row, whatever the image
  Matrix scale, shift;
  // channels_last: both are the pixels of one image. NCHW: a run is the elements of one group, a row the pixels of one
  // channel. `spans` of them in one image.
  Chunks runs, rows;
  const void* x;
  void* y;
  void *mean, *rstd;   // S [images, groups]
  // S [images, runs.count, 3, columns]: shift, mean - shift and the sum of squared deviations from the mean of a chunk
  void* moments;
  int64_t columns;     // channels, or groups in NCHW
  void* coefficients;  // S [images, 3, channels]: mean, factor, offset
};

struct GroupNormSiluBackwardArgs {
  GroupNormSiluArgs forward;  // y, eps, moments unused
  const void* grad;
  void* dx;
  void* sums;    // S [images, rows.count, 2, channels]: sums of dz (x - mean) and of dz
  void* terms;   // S [images, 2, channels]: slope, level
  // S, dz of the elements from kept_from on, between the two passes over what a cache holds; null: dz is computed again
  void* kept;
  int64_t kept_from;
  void* shares;  // S [images, 2, channels]: the image's share of dweight and dbias
  void *dweight, *dbias, *dscale, *dshift;  // each in its parameter's dtype; unused where that is absent
};

#define FASTDIFF_DECLARE_PASS(name, Args) FASTDIFF_DECLARE_CPU(void, name, (const Args&, int64_t begin, int64_t end))

// Forward, in order. Ranges are of chunks of runs, of groups (images * groups), of chunks of rows.
FASTDIFF_DECLARE_PASS(group_norm_silu_moments_kernel, GroupNormSiluArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_finish_kernel, GroupNormSiluArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_apply_kernel, GroupNormSiluArgs)

// Backward, in order. Ranges are of groups, of chunks of rows, of groups, of chunks of rows, of channels.
FASTDIFF_DECLARE_PASS(group_norm_silu_prepare_kernel, GroupNormSiluBackwardArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_sums_kernel, GroupNormSiluBackwardArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_combine_kernel, GroupNormSiluBackwardArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_dx_kernel, GroupNormSiluBackwardArgs)
FASTDIFF_DECLARE_PASS(group_norm_silu_parameters_kernel, GroupNormSiluBackwardArgs)

// On CUDA, all passes in order. Return null, or what is wrong.
const char* group_norm_silu_cuda_launch(const GroupNormSiluArgs& a, void* stream);
const char* group_norm_silu_backward_cuda_launch(const GroupNormSiluBackwardArgs& b, void* stream);

}  // namespace fastdiff
