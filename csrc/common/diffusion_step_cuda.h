// The arithmetic of ddpm_step and sampler_step on CUDA: one pass over memory, noise made on the way.
#pragma once
#include "noise_walk_cuda.h"

#include "diffusion_step.h"
#include "dispatch.h"
#include "image_coefficients.h"

namespace fastdiff::cuda {
namespace {  // each op that includes this compiles its own

template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) step_kernel(const StepArgs a) {
  using S = Compute<T>;
  const auto q = quad_of_thread<kPacked>(a.walk);
  if (q.count == 0) return;
  const auto k = [&](int c) { return static_cast<S>(coefficient(a.coefficients, a.timesteps, q.image, c)); };
  const S high = static_cast<S>(a.clip), low = -high, k0 = k(0), k1 = k(1), k2 = k(2), k3 = k(3), k4 = k(4);
  const S k5 = a.previous ? k(5) : S{};
  S x[4], m[4], previous[4], noise[4] = {}, x0[4], next[4];
  load_quad<T>(a.x, q, x), load_quad<T>(a.m, q, m);
  if (a.previous) load_quad<T>(a.previous, q, previous);
  if (a.noise.seeds && k4 != 0) normals_of_quad(a.noise, q, noise);  // a NaN is not 0
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x0[i] = madd(x[i], k0, m[i] * k1);
    x0[i] = x0[i] > high ? high : x0[i];  // this way round, NaN stays
    x0[i] = x0[i] < low ? low : x0[i];
    next[i] = madd(noise[i], k4, madd(x0[i], k2, x[i] * k3));
    if (a.previous) next[i] = madd(previous[i], k5, next[i]);
  }
  store_quad<T>(a.next, q, next);
  if (a.x0) store_quad<T>(a.x0, q, x0);
}

const char* step(StepArgs a, void* stream) {
  a.walk = walk_for(a.noise, a.walk);
  const char* error = nullptr;
  with_dtype(a.dtype, [&]<class T>() {
    error = launch_quads<T>(step_kernel<T, true>, step_kernel<T, false>, a, stream, a.x, a.m, a.previous, a.next, a.x0);
  });
  return error;
}

}  // namespace
}  // namespace fastdiff::cuda
