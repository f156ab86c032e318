// q_sample on CUDA: one pass over memory, noise made on the way.
#include "../common/noise_walk_cuda.h"

#include "../common/dispatch.h"
#include "../common/image_coefficients.h"
#include "q_sample.h"

namespace fastdiff {
namespace cuda {
namespace {

template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) q_sample_kernel(const QSampleArgs a) {
  using S = Compute<T>;
  const auto q = quad_of_thread<kPacked>(a.walk);
  if (q.count == 0) return;
  const S signal = static_cast<S>(coefficient(a.signal, a.timesteps, q.image, 0));
  const S sigma = static_cast<S>(coefficient(a.sigma, a.timesteps, q.image, 0));
  S x0[4], noise[4], xt[4];
  load_quad<T>(a.x0, q, x0);
  if (a.given) load_quad<T>(a.given, q, noise);
  else normals_of_quad(a.noise, q, noise);
#pragma unroll
  for (int k = 0; k < 4; ++k) xt[k] = madd(x0[k], signal, noise[k] * sigma);
  store_quad<T>(a.xt, q, xt);
  if (a.made) store_quad<T>(a.made, q, noise);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* q_sample_cuda_launch(const QSampleArgs& given, void* stream) {
  QSampleArgs a = given;
  a.walk = walk_for(a.noise, a.walk);
  const char* error = nullptr;
  with_dtype(a.dtype, [&]<class T>() {
    error = launch_quads<T>(q_sample_kernel<T, true>, q_sample_kernel<T, false>, a, stream, a.x0, a.given, a.xt, a.made);
  });
  return error;
}

}  // namespace fastdiff
