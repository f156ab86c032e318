// The arithmetic of ddpm_step and sampler_step on the CPU: one pass over memory, noise made on the way.
#pragma once
#include "diffusion_step.h"
#include "dispatch.h"
#include "image_coefficients.h"
#include "noise_walk.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
void step_tiles(const StepArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using V = Vec<S>;
  const V high = splat<V>(static_cast<S>(a.clip)), low = -high;
  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_of(a.walk, i);
    const int64_t start = tile.image * a.walk.channels * a.walk.pixels;
    const T *x = static_cast<const T*>(a.x) + start, *m = static_cast<const T*>(a.m) + start;
    const T* previous = a.previous ? static_cast<const T*>(a.previous) + start : nullptr;
    T *next = static_cast<T*>(a.next) + start, *x0 = a.x0 ? static_cast<T*>(a.x0) + start : nullptr;

    V k[6];
    for (int c = 0; c < (previous ? 6 : 5); ++c)
      k[c] = splat<V>(static_cast<S>(coefficient(a.coefficients, a.timesteps, tile.image, c)));

    const auto body = [&](int64_t at, int64_t n, V noise) FASTDIFF_INLINE_LAMBDA {
      const V vx = load_up_to(x + at, n);
      V predicted = madd(vx, k[0], load_up_to(m + at, n) * k[1]);
      predicted = predicted > high ? high : predicted;  // this way round, NaN stays
      predicted = predicted < low ? low : predicted;
      if (x0) store_up_to(x0 + at, predicted, n);
      V after = madd(noise, k[4], madd(predicted, k[2], vx * k[3]));
      if (previous) after = madd(load_up_to(previous + at, n), k[5], after);
      store_up_to(next + at, after, n);
    };
    const bool noisy = a.noise.seeds && k[4][0] != 0;  // a NaN is
    noisy ? with_noise<S>(a.walk, tile, draw_of(a.noise, tile.image), body) : without_noise<S>(a.walk, tile, body);
  }
}

FASTDIFF_INLINE void step(const StepArgs& a, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&]<class T>() { step_tiles<T>(a, begin, end); });
}

}  // namespace fastdiff::FASTDIFF_ISA
