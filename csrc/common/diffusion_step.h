// One reverse step of a diffusion sampler, as ddpm_step and sampler_step take it:
//
//     x0   = clamp(k0 x + k1 m, -clip, clip)
//     next = k2 x0 + k3 x + k4 noise + k5 previous
#pragma once
#include <cstdint>

#include "noise.h"
#include "numeric.h"
#include "timesteps.h"

namespace fastdiff {

struct StepArgs {
  Walk walk;
  Noise noise;
  DType dtype;
  double clip;
  Table coefficients;   // [T, 5] with timesteps; without, [N, 6] (stride_row 0: one row for all images)
  Timesteps timesteps;
  const void *x, *m, *previous;  // previous: null where there is none
  void *next, *x0;               // x0: null where it is not wanted
};

}  // namespace fastdiff
