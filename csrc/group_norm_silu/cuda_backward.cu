// GroupNorm + FiLM + activation on CUDA, backward. Groups whose x and gradient fit in shared memory are read once
// (cuda_backward_one_pass.cu). Else sums of dz (x - mean) and of dz for each image and channel over chunks of fixed size, their
// combination in a fixed order, then one pass that writes dx.
#include "cuda.h"

namespace fastdiff {
namespace cuda {
namespace {

template <class S>
FASTDIFF_INLINE S* sums_of(const GroupNormSiluBackwardArgs& b, int64_t n, int64_t chunk) {
  return static_cast<S*>(b.sums) + (n * b.forward.rows.count + chunk) * 2 * b.forward.channels;
}

template <class S>
__global__ void __launch_bounds__(kThreads) prepare(const GroupNormSiluArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.images * a.channels) return;
  const int64_t n = i / a.channels, c = i % a.channels, group = n * a.groups + c / a.group_channels;
  const Coefficients<S> coefficients(a, n);
  const Folded<S> f = fold(a, n, c, static_cast<const S*>(a.rstd)[group], S{});
  coefficients.mean[c] = static_cast<const S*>(a.mean)[group];
  coefficients.factor[c] = f.factor, coefficients.offset[c] = f.offset;
}

// NCHW: a warp has a chunk of one channel's pixels.
template <class T, Act kAct, int kCount>
__global__ void __launch_bounds__(kThreads) row_sums(const GroupNormSiluBackwardArgs b) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= a.images * a.channels * a.rows.count) return;
  const int64_t row = i / a.rows.count, chunk = i % a.rows.count, n = row / a.channels, c = row % a.channels;
  const int64_t first = chunk * a.rows.size, at = row * a.pixels + first;
  const int64_t size = a.rows.size < a.pixels - first ? a.rows.size : a.pixels - first;
  const Coefficients<S> m(a, n);
  const S mean = m.mean[c], factor = m.factor[c], offset = m.offset[c];
  const auto* x = reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(a.x) + at);
  const auto* grad = reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(b.grad) + at);
  // A few elements first, then those sums: an addition to a large sum loses most.
  constexpr int kFew = sizeof(T) == 8 ? 1 : kCount >= 4 ? 2 : 8;
  S sum_dz_x{}, sum_dz{};
  for (int64_t p = lane; p < size / kCount; p += 32 * kFew) {
    S few_dz_x{}, few_dz{};
#pragma unroll
    for (int u = 0; u < kFew; ++u) {
      if (p + 32 * u >= size / kCount) break;
      const Pack<T, kCount> vx = x[p + 32 * u], vg = grad[p + 32 * u];
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const S centred = widen(vx.v[k]) - mean, dz = derivative_at<kAct>(widen(vg.v[k]), centred, factor, offset);
        few_dz_x += dz * centred, few_dz += dz;
      }
    }
    sum_dz_x += few_dz_x, sum_dz += few_dz;
  }
  sum_dz_x = warp_sum(sum_dz_x), sum_dz = warp_sum(sum_dz);
  if (lane) return;
  S* sums = sums_of<S>(b, n, chunk) + c;
  sums[0] = sum_dz_x, sums[a.channels] = sum_dz;
}

// channels_last: a block has a chunk of one image's pixels and kAcross packs of channels.
template <class T, Act kAct, int kCount>
__global__ void __launch_bounds__(kThreads) pixel_sums(const GroupNormSiluBackwardArgs b) {
  using S = Compute<T>;
  __shared__ S shared[kDown][kAcross * kCount];
  const GroupNormSiluArgs& a = b.forward;
  const PixelTile<kCount> tile(a, a.rows);
  S sum_dz_x[kCount] = {}, sum_dz[kCount] = {};
  if (tile.inside) {
    const Coefficients<S> m(a, tile.n);
    S mean[kCount], factor[kCount], offset[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int64_t c = tile.channel + k;
      mean[k] = m.mean[c], factor[k] = m.factor[c], offset[k] = m.offset[c];
    }
    const int64_t first = (tile.n * a.pixels + tile.first_pixel) * a.channels + tile.channel;
#pragma unroll 2
    for (int64_t p = threadIdx.x / kAcross; p < tile.pixels; p += kDown) {
      const int64_t at = first + p * a.channels;
      const auto x = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(a.x) + at);
      const auto grad = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(b.grad) + at);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const S centred = widen(x.v[k]) - mean[k];
        const S dz = derivative_at<kAct>(widen(grad.v[k]), centred, factor[k], offset[k]);
        sum_dz_x[k] += dz * centred, sum_dz[k] += dz;
      }
    }
  }
  add_rows<kCount>(sum_dz_x, shared), add_rows<kCount>(sum_dz, shared);
  if (!tile.inside || threadIdx.x >= kAcross) return;
  S* sums = sums_of<S>(b, tile.n, tile.chunk % a.rows.count) + tile.channel;
#pragma unroll
  for (int k = 0; k < kCount; ++k) sums[k] = sum_dz_x[k], sums[a.channels + k] = sum_dz[k];
}

// A warp joins the chunks of one group: dscale and dshift, the image's shares of dweight and dbias, and the two terms that the
// statistics add to dx.
template <class S>
__global__ void __launch_bounds__(kThreads) combine(const GroupNormSiluBackwardArgs b) {
  const GroupNormSiluArgs& a = b.forward;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= a.images * a.groups) return;
  const int64_t n = group_image(a, i), channels = a.group_channels, begin = (i - n * a.groups) * channels;
  const S rstd = static_cast<const S*>(a.rstd)[i];
  const Coefficients<S> m(a, n);
  double with_x = 0, without = 0;
  for (int64_t c = begin + lane; c < begin + channels; c += 32) {
    double dz_x = 0, dz = 0;
    for (int64_t chunk = 0; chunk < a.rows.count; ++chunk) {
      const S* sums = sums_of<S>(b, n, chunk) + c;
      dz_x += sums[0], dz += sums[a.channels];
    }
    with_x += m.factor[c] * dz_x, without += m.factor[c] * dz;
    write_gradients(b, n, c, rstd, static_cast<S>(dz_x), static_cast<S>(dz));
  }
  with_x = warp_sum(with_x), without = warp_sum(without);
  const Terms<S> group(a, rstd, with_x, without);
  S* terms = static_cast<S*>(b.terms) + n * 2 * a.channels;
  for (int64_t c = begin + lane; c < begin + channels; c += 32) terms[c] = group.slope, terms[a.channels + c] = group.level;
}

template <class T, Act kAct, class I, int kCount>
__global__ void __launch_bounds__(kThreads) write_dx(const GroupNormSiluBackwardArgs b) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  for_packs<I, kCount>(a, [&](int64_t first, Place place) {
    Pack<T, kCount> v = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(a.x) + first);
    const auto grad = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(b.grad) + first);
    const Coefficients<S> m(a, place.n);
    const S* terms = static_cast<const S*>(b.terms) + place.n * 2 * a.channels;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int64_t c = place.c + (a.channels_last ? k : 0);
      const S centred = widen(v.v[k]) - m.mean[c];
      const S dz = derivative_at<kAct>(widen(grad.v[k]), centred, m.factor[c], m.offset[c]);
      v.v[k] = narrow<T>(dx_of(dz, centred, m.factor[c], terms[c], terms[a.channels + c]));
    }
    *reinterpret_cast<Pack<T, kCount>*>(static_cast<T*>(b.dx) + first) = v;
  });
}

// dweight and dbias: the sums of the images' shares, in order.
template <class S>
__global__ void __launch_bounds__(kThreads) parameters(const GroupNormSiluBackwardArgs b) {
  const GroupNormSiluArgs& a = b.forward;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  double dweight = 0, dbias = 0;
  for (int64_t n = 0; n < a.images; ++n) {
    const S* shares = static_cast<const S*>(b.shares) + n * 2 * a.channels + c;
    dweight += shares[0], dbias += shares[a.channels];
  }
  if (a.weight.data) store_element(b.dweight, a.weight.dtype, c, dweight);
  if (a.bias.data) store_element(b.dbias, a.bias.dtype, c, dbias);
}

template <class T, Act kAct>
const char* launch_passes(const GroupNormSiluBackwardArgs& b, void* stream) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  const bool aligned = (address(a.x) | address(b.grad)) % 16 == 0;
  const bool packed = aligned && (a.channels_last ? a.channels : a.pixels) % kPack<T> == 0;
  const char* error = launch(prepare<S>, blocks_for(a.images * a.channels), stream, a);
  if (error) return error;
  if (a.channels_last) {
    const int64_t tiles = packed ? PixelTile<kPack<T>>::pixel_tiles(a) : PixelTile<1>::pixel_tiles(a);
    const auto kernel = packed ? pixel_sums<T, kAct, kPack<T>> : pixel_sums<T, kAct, 1>;
    error = launch(kernel, a.images * a.rows.count * tiles, stream, b);
  } else {
    const auto kernel = packed ? row_sums<T, kAct, kPack<T>> : row_sums<T, kAct, 1>;
    error = launch(kernel, blocks_for(a.images * a.channels * a.rows.count * 32), stream, b);
  }
  if (!error) error = too_many_groups(a);
  if (!error) error = launch(combine<S>, blocks_for(a.images * a.groups * 32), stream, b);
  if (error) return error;
  with_packs<T>(a, address(a.x) | address(b.grad) | address(b.dx), [&]<class I, int kCount>(int64_t blocks) {
    error = launch(write_dx<T, kAct, I, kCount>, blocks, stream, b);
  });
  return error;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* group_norm_silu_backward_cuda_launch(const GroupNormSiluBackwardArgs& b, void* stream) {
  const GroupNormSiluArgs& a = b.forward;
  const char* error = nullptr;
  if (a.images > 0 && !launch_one_pass(b, stream, error))
    with_types(a.dtype, a.act, [&]<class T, Act kAct>() { error = launch_passes<T, kAct>(b, stream); });
  if (error) return error;
  return a.dtype == DType::f64 ? launch(parameters<double>, blocks_for(a.channels), stream, b)
                               : launch(parameters<float>, blocks_for(a.channels), stream, b);
}

}  // namespace fastdiff
