// GroupNorm + FiLM + activation on CUDA, forward.
//
// Groups that fit in shared memory are read once (cuda_one_pass.cu). Else three kernels, which fill the GPU at batch 1 too:
// moments of chunks of fixed size, their combination in a fixed order, one pass that writes y.
#include "cuda.h"

namespace fastdiff {
namespace cuda {
namespace {

constexpr int kFirst = 8;  // values whose mean is what the others are taken from

template <class S>
FASTDIFF_INLINE S* moments_of(const GroupNormSiluArgs& a, int64_t n, int64_t chunk) {
  return static_cast<S*>(a.moments) + (n * a.runs.count + chunk) * 3 * a.columns;
}

// Sums about `shift` over `size` elements as the chunk's moments: shift, mean - shift, squared deviations from the mean.
template <class S>
FASTDIFF_INLINE void write_moments(S* at, int64_t columns, S shift, S sum, S square, int64_t size) {
  const S offset = sum / static_cast<S>(size);
  at[0] = shift, at[columns] = offset, at[2 * columns] = square - sum * offset;
}

// NCHW: a block has a chunk of one group's elements.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) run_moments(const GroupNormSiluArgs a) {
  using S = Compute<T>;
  __shared__ S shared[kThreads / 32];
  const int64_t run = blockIdx.x / a.runs.count, chunk = blockIdx.x % a.runs.count, first = chunk * a.runs.size;
  const int64_t size = a.runs.size < a.runs.length - first ? a.runs.size : a.runs.length - first;
  const T* x = static_cast<const T*>(a.x) + run * a.runs.length + first;
  S shift{};
  const int few = size < kFirst ? 1 : kFirst;  // a power of two: the mean of equal values is exact
  for (int i = 0; i < few; ++i) shift += widen(x[i]);
  shift /= static_cast<S>(few);
  S sum{}, square{};
  const auto* packs = reinterpret_cast<const Pack<T, kCount>*>(x);
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < size / kCount; i += kThreads) {
    const Pack<T, kCount> v = packs[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S d = widen(v.v[k]) - shift;
      sum += d, square += d * d;
    }
  }
  sum = block_sum<kThreads>(sum, shared), square = block_sum<kThreads>(square, shared);
  if (threadIdx.x == 0)
    write_moments(moments_of<S>(a, run / a.groups, chunk) + run % a.groups, a.columns, shift, sum, square, size);
}

// channels_last: a block has a chunk of one image's pixels and kAcross packs of channels, each channel by itself.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) pixel_moments(const GroupNormSiluArgs a) {
  using S = Compute<T>;
  __shared__ S shared[kDown][kAcross * kCount];
  const PixelTile<kCount> tile(a, a.runs);
  S shift[kCount] = {}, sum[kCount] = {}, square[kCount] = {};
  if (tile.inside) {
    const T* x = static_cast<const T*>(a.x) + (tile.n * a.pixels + tile.first_pixel) * a.channels + tile.channel;
    const auto at = [&](int64_t pixel) { return *reinterpret_cast<const Pack<T, kCount>*>(x + pixel * a.channels); };
    const int few = tile.pixels < kFirst ? 1 : kFirst;
    for (int p = 0; p < few; ++p) {
      const Pack<T, kCount> v = at(p);
#pragma unroll
      for (int k = 0; k < kCount; ++k) shift[k] += widen(v.v[k]);
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) shift[k] /= static_cast<S>(few);
#pragma unroll 4
    for (int64_t p = threadIdx.x / kAcross; p < tile.pixels; p += kDown) {
      const Pack<T, kCount> v = at(p);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const S d = widen(v.v[k]) - shift[k];
        sum[k] += d, square[k] += d * d;
      }
    }
  }
  add_rows<kCount>(sum, shared), add_rows<kCount>(square, shared);
  if (!tile.inside || threadIdx.x >= kAcross) return;
  S* moments = moments_of<S>(a, tile.n, tile.chunk % a.runs.count) + tile.channel;
#pragma unroll
  for (int k = 0; k < kCount; ++k) write_moments(moments + k, a.columns, shift[k], sum[k], square[k], tile.pixels);
}

// A warp joins the chunks of one group, in double about the group's mean, and writes its channels' coefficients.
template <class S>
__global__ void __launch_bounds__(kThreads) finish(const GroupNormSiluArgs a) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= a.images * a.groups) return;
  const int64_t n = group_image(a, i), g = i - n * a.groups, channels = a.group_channels;
  const int64_t columns = a.columns == a.groups ? 1 : channels;
  const double start = moments_of<S>(a, n, 0)[g * columns];
  // The mean over the group of f(size of a chunk, its mean less center, its squared deviations).
  const auto over_chunks = [&](double center, auto&& f) {
    double total = 0;
    for (int64_t k = lane; k < a.runs.count * columns; k += 32) {
      const int64_t chunk = static_cast<uint32_t>(k) / static_cast<uint32_t>(columns);
      const int64_t rest = a.runs.length - chunk * a.runs.size;
      const S* m = moments_of<S>(a, n, chunk) + g * columns + (k - chunk * columns);
      total += f(static_cast<double>(a.runs.size < rest ? a.runs.size : rest), m[0] - center + m[a.columns], m[2 * a.columns]);
    }
    return warp_sum(total) * a.share;
  };
  const double mean = start + over_chunks(start, [](double size, double d, double) { return size * d; });
  const double variance = over_chunks(mean, [](double size, double d, double square) { return square + size * d * d; });
  const S rounded = static_cast<S>(mean), rstd = static_cast<S>(rsqrt((variance < 0 ? 0 : variance) + a.eps));
  if (lane == 0) static_cast<S*>(a.mean)[i] = rounded, static_cast<S*>(a.rstd)[i] = rstd;
  const Coefficients<S> coefficients(a, n);
  for (int64_t c = g * channels + lane; c < (g + 1) * channels; c += 32) {
    const Folded<S> f = fold(a, n, c, rstd, static_cast<S>(rounded - mean));
    coefficients.mean[c] = rounded, coefficients.factor[c] = f.factor, coefficients.offset[c] = f.offset;
  }
}

template <class T, Act kAct, class I, int kCount>
__global__ void __launch_bounds__(kThreads) apply(const GroupNormSiluArgs a) {
  using S = Compute<T>;
  for_packs<I, kCount>(a, [&](int64_t first, Place place) {
    Pack<T, kCount> v = *reinterpret_cast<const Pack<T, kCount>*>(static_cast<const T*>(a.x) + first);
    const Coefficients<S> m(a, place.n);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int64_t c = place.c + (a.channels_last ? k : 0);
      v.v[k] = narrow<T>(activate<kAct>(madd(widen(v.v[k]) - m.mean[c], m.factor[c], m.offset[c])));
    }
    *reinterpret_cast<Pack<T, kCount>*>(static_cast<T*>(a.y) + first) = v;
  });
}

template <class T, Act kAct>
const char* launch_two_passes(const GroupNormSiluArgs& a, void* stream) {
  const bool aligned = address(a.x) % 16 == 0;
  const char* error;
  if (a.channels_last) {
    const bool packed = aligned && a.channels % kPack<T> == 0;
    const int64_t tiles = packed ? PixelTile<kPack<T>>::pixel_tiles(a) : PixelTile<1>::pixel_tiles(a);
    error = launch(packed ? pixel_moments<T, kPack<T>> : pixel_moments<T, 1>, a.images * a.runs.count * tiles, stream, a);
  } else {
    const bool packed = aligned && a.runs.length % kPack<T> == 0;
    error = launch(packed ? run_moments<T, kPack<T>> : run_moments<T, 1>, a.images * a.groups * a.runs.count, stream, a);
  }
  if (!error) error = too_many_groups(a);
  if (!error) error = launch(finish<Compute<T>>, blocks_for(a.images * a.groups * 32), stream, a);
  if (error) return error;
  with_packs<T>(a, address(a.x) | address(a.y), [&]<class I, int kCount>(int64_t blocks) {
    error = launch(apply<T, kAct, I, kCount>, blocks, stream, a);
  });
  return error;
}

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* group_norm_silu_cuda_launch(const GroupNormSiluArgs& a, void* stream) {
  const char* error = nullptr;
  if (launch_one_pass(a, stream, error)) return error;
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() { error = launch_two_passes<T, kAct>(a, stream); });
  return error;
}

}  // namespace fastdiff
