// FiLM on CUDA. Forward: one thread per 16 bytes where the layout allows, else per element. Backward: in NCHW a block owns a
// row of pixels and its sums; in channels_last a block owns a chunk of pixels and its threads the channels.
#include "../common/cuda_device.h"

#include "../common/activation.h"
#include "../common/dispatch.h"
#include "film.h"

namespace fastdiff {
namespace cuda {
namespace {

template <class S>
struct Modulation {
  S factor, offset;
};

template <class S>
FASTDIFF_INLINE Modulation<S> modulation(const FilmArgs& a, int64_t n, int64_t c) {
  const S scale = static_cast<S>(element(a.scale, n, c));
  if (!a.shift.data) return {scale, S{0}};
  return {S{1} + scale, static_cast<S>(element(a.shift, n, c))};
}

// kCount consecutive elements share their row (NCHW), or are consecutive channels of one pixel (channels_last).
template <class T, Act kAct, int kCount>
__global__ void __launch_bounds__(kThreads) film_kernel(const FilmArgs a, int64_t packs) {
  using S = Compute<T>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= packs) return;
  const int64_t first = i * kCount;
  const int64_t row = a.channels_last ? first / a.channels : first / a.pixels;
  const int64_t n = a.channels_last ? row / a.pixels : row / a.channels;
  const int64_t c = a.channels_last ? first % a.channels : row % a.channels;
  const Pack<T, kCount> x = static_cast<const Pack<T, kCount>*>(a.x)[i];
  Pack<T, kCount> y;
  Modulation<S> m = modulation<S>(a, n, c);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (k && a.channels_last) m = modulation<S>(a, n, c + k);
    y.v[k] = narrow<T>(activate<kAct>(widen(x.v[k]) * m.factor + m.offset));
  }
  static_cast<Pack<T, kCount>*>(a.y)[i] = y;
}

template <class T, Act kAct, class S>
FASTDIFF_INLINE void backward_element(const FilmBackwardArgs& b, int64_t at, const Modulation<S>& m, S& sum_dz_x, S& sum_dz) {
  const S x = widen(static_cast<const T*>(b.forward.x)[at]);
  const S dz = widen(static_cast<const T*>(b.grad)[at]) * derivative<kAct>(x * m.factor + m.offset);
  static_cast<T*>(b.dx)[at] = narrow<T>(dz * m.factor);
  sum_dz_x += dz * x, sum_dz += dz;
}

template <class T, Act kAct>
__global__ void __launch_bounds__(kThreads) film_backward_rows(const FilmBackwardArgs b) {
  using S = Compute<T>;
  __shared__ S shared[kThreads / 32];
  const FilmArgs& a = b.forward;
  const int64_t row = blockIdx.x, n = row / a.channels, c = row % a.channels;
  const Modulation<S> m = modulation<S>(a, n, c);
  S sum_dz_x{}, sum_dz{};
  for (int64_t i = threadIdx.x; i < a.pixels; i += kThreads)
    backward_element<T, kAct>(b, row * a.pixels + i, m, sum_dz_x, sum_dz);
  sum_dz_x = block_sum<kThreads>(sum_dz_x, shared), sum_dz = block_sum<kThreads>(sum_dz, shared);
  if (threadIdx.x == 0) {
    S* partial = static_cast<S*>(b.partial) + n * 2 * a.channels + c;
    partial[0] = sum_dz_x, partial[a.channels] = sum_dz;
  }
}

template <class T, Act kAct>
__global__ void __launch_bounds__(kThreads) film_backward_chunks(const FilmBackwardArgs b) {
  using S = Compute<T>;
  const FilmArgs& a = b.forward;
  const unsigned chunk = blockIdx.x, chunks = static_cast<unsigned>(b.chunks);  // 64-bit division is a call, and would spill
  const int64_t n = chunk / chunks, first = static_cast<int64_t>(chunk % chunks) * kFilmChunk;
  const int64_t last = first + kFilmChunk < a.pixels ? first + kFilmChunk : a.pixels;
  for (int64_t c = threadIdx.x; c < a.channels; c += kThreads) {
    const Modulation<S> m = modulation<S>(a, n, c);
    S sum_dz_x{}, sum_dz{};
    for (int64_t pixel = n * a.pixels + first; pixel < n * a.pixels + last; ++pixel)
      backward_element<T, kAct>(b, pixel * a.channels + c, m, sum_dz_x, sum_dz);
    S* partial = static_cast<S*>(b.partial) + static_cast<int64_t>(chunk) * 2 * a.channels + c;
    partial[0] = sum_dz_x, partial[a.channels] = sum_dz;
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) film_combine(const FilmBackwardArgs b) {
  const FilmArgs& a = b.forward;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.images * a.channels) return;
  const S* partial = static_cast<const S*>(b.partial) + i / a.channels * b.chunks * 2 * a.channels + i % a.channels;
  S sum_dz_x{}, sum_dz{};
  for (int64_t chunk = 0; chunk < b.chunks; ++chunk) {
    sum_dz_x += partial[chunk * 2 * a.channels];
    sum_dz += partial[(chunk * 2 + 1) * a.channels];
  }
  store_element(b.dscale, a.scale.dtype, i, sum_dz_x);
  store_element(b.dshift, a.scale.dtype, i, sum_dz);
}

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* film_cuda_launch(const FilmArgs& a, void* stream) {
  const int64_t elements = a.images * a.channels * a.pixels;
  const char* error = nullptr;
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() {
    const bool packed = (a.channels_last ? a.channels : a.pixels) % kPack<T> == 0 &&
                        (reinterpret_cast<uintptr_t>(a.x) | reinterpret_cast<uintptr_t>(a.y)) % 16 == 0;
    const int64_t packs = packed ? elements / kPack<T> : elements;
    error = launch(packed ? film_kernel<T, kAct, kPack<T>> : film_kernel<T, kAct, 1>, blocks_for(packs), stream, a, packs);
  });
  return error;
}

const char* film_backward_cuda_launch(const FilmBackwardArgs& b, void* stream) {
  const FilmArgs& a = b.forward;
  const char* error = nullptr;
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() {
    error = a.channels_last ? launch(film_backward_chunks<T, kAct>, a.images * b.chunks, stream, b)
                            : launch(film_backward_rows<T, kAct>, a.images * a.channels, stream, b);
    if (!error) error = launch(film_combine<Compute<T>>, blocks_for(a.images * a.channels), stream, b);
  });
  return error;
}

}  // namespace fastdiff
