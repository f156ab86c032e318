// q_sample on the CPU: one pass over memory, noise made on the way.
#include "../common/dispatch.h"
#include "../common/image_coefficients.h"
#include "../common/noise_walk.h"
#include "q_sample.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class T>
void q_sample_tiles(const QSampleArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using V = Vec<S>;
  for (int64_t i = begin; i < end; ++i) {
    const Tile tile = tile_of(a.walk, i);
    const int64_t start = tile.image * a.walk.channels * a.walk.pixels;
    const T* x0 = static_cast<const T*>(a.x0) + start;
    T* xt = static_cast<T*>(a.xt) + start;
    const V signal = splat<V>(static_cast<S>(coefficient(a.signal, a.timesteps, tile.image, 0)));
    const V sigma = splat<V>(static_cast<S>(coefficient(a.sigma, a.timesteps, tile.image, 0)));
    if (a.given) {
      const T* given = static_cast<const T*>(a.given) + start;
      without_noise<S>(a.walk, tile, [&](int64_t at, int64_t n, V) FASTDIFF_INLINE_LAMBDA {
        store_up_to(xt + at, madd(load_up_to(x0 + at, n), signal, load_up_to(given + at, n) * sigma), n);
      });
    } else {
      T* made = static_cast<T*>(a.made) + start;
      with_noise<S>(a.walk, tile, draw_of(a.noise, tile.image), [&](int64_t at, int64_t n, V noise) FASTDIFF_INLINE_LAMBDA {
        store_up_to(xt + at, madd(load_up_to(x0 + at, n), signal, noise * sigma), n);
        store_up_to(made + at, noise, n);
      });
    }
  }
}

}  // namespace

void q_sample_kernel(const QSampleArgs& a, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&]<class T>() { q_sample_tiles<T>(a, begin, end); });
}

}  // namespace fastdiff::FASTDIFF_ISA
