// What forward and backward share on CUDA: the folded coefficients, and where an element of x lies.
#pragma once
#include "../common/cuda_device.h"

#include "../common/activation.h"
#include "../common/dispatch.h"
#include "group_norm_silu.h"

namespace fastdiff::cuda {

// The coefficients of one image, each [channels].
template <class S>
struct Coefficients {
  FASTDIFF_INLINE Coefficients(const GroupNormSiluArgs& a, int64_t n)
      : mean(static_cast<S*>(a.coefficients) + n * 3 * a.channels), factor(mean + a.channels), offset(factor + a.channels) {}
  S *mean, *factor, *offset;
};

template <class S>
struct Folded {
  S factor, offset;
};

// rstd and the affine and FiLM of one channel; rest is what was lost when the mean was rounded, mean - true mean.
template <class S>
FASTDIFF_INLINE Folded<S> fold(const GroupNormSiluArgs& a, int64_t n, int64_t c, S rstd, S rest) {
  const S modulation = a.scale.data ? 1 + static_cast<S>(element(a.scale, n, c)) : S{1};
  S factor = rstd * modulation;
  if (a.weight.data) factor *= static_cast<S>(element(a.weight, 0, c));
  S offset = rest * factor;
  if (a.bias.data) offset += static_cast<S>(element(a.bias, 0, c)) * modulation;
  if (a.shift.data) offset += static_cast<S>(element(a.shift, n, c));
  return {factor, offset};
}

struct Place {
  int64_t n, c;
};

// Image and channel of an element. Dividing is cheap in 32 bits only.
template <class I>
FASTDIFF_INLINE Place place_of(const GroupNormSiluArgs& a, int64_t element) {
  const I i = static_cast<I>(element), channels = static_cast<I>(a.channels), pixels = static_cast<I>(a.pixels);
  if (a.channels_last) {
    const I pixel = i / channels;
    return {static_cast<int64_t>(pixel / pixels), static_cast<int64_t>(i - pixel * channels)};
  }
  const I row = i / pixels, n = row / channels;
  return {static_cast<int64_t>(n), static_cast<int64_t>(row - n * channels)};
}

// body(first, place) for packs of kCount elements, kInFlight of them a thread: their loads do not wait for each other.
constexpr int kInFlight = 4;
template <class I, int kCount, class Body>
FASTDIFF_INLINE void for_packs(const GroupNormSiluArgs& a, Body&& body) {
  const int64_t packs = a.images * a.channels * a.pixels / kCount;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * kThreads * kInFlight + threadIdx.x;
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int64_t pack = start + u * kThreads;
    if (pack < packs) body(pack * kCount, place_of<I>(a, pack * kCount));
  }
}

// f.operator()<I, kCount>(blocks): the index type that all elements fit, and packs where a line is made of them and all
// pointers are aligned to 16 bytes.
template <class T, class F>
void with_packs(const GroupNormSiluArgs& a, uintptr_t pointers, F&& f) {
  const int64_t elements = a.images * a.channels * a.pixels;
  const bool packed = (a.channels_last ? a.channels : a.pixels) % kPack<T> == 0 && pointers % 16 == 0;
  const int64_t blocks = blocks_for((elements / (packed ? kPack<T> : 1) + kInFlight - 1) / kInFlight);
  const bool narrow_index = elements < (int64_t{1} << 32);
  if (packed && narrow_index) f.template operator()<uint32_t, kPack<T>>(blocks);
  else if (packed) f.template operator()<int64_t, kPack<T>>(blocks);
  else if (narrow_index) f.template operator()<uint32_t, 1>(blocks);
  else f.template operator()<int64_t, 1>(blocks);
}

inline uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// channels_last: a block sums over a chunk of pixels, kAcross packs of channels side by side, kDown pixels at a time.
constexpr int kAcross = 32, kDown = kThreads / kAcross;

// The block's place: chunk (of all images) and first channel of the tile. Blocks over tiles come first.
template <int kCount>
struct PixelTile {
  int64_t chunk, n, first_pixel, pixels, channel;
  bool inside;  // this thread has channels
  FASTDIFF_INLINE PixelTile(const GroupNormSiluArgs& a, const Chunks& chunks) {
    const int64_t tiles = pixel_tiles(a);
    chunk = blockIdx.x / tiles, n = chunk / chunks.count, first_pixel = chunk % chunks.count * chunks.size;
    pixels = chunks.size < a.pixels - first_pixel ? chunks.size : a.pixels - first_pixel;
    channel = (blockIdx.x % tiles * kAcross + threadIdx.x % kAcross) * kCount;
    inside = channel < a.channels;
  }
  __host__ FASTDIFF_INLINE static int64_t pixel_tiles(const GroupNormSiluArgs& a) {
    return (a.channels + kAcross * kCount - 1) / (kAcross * kCount);
  }
};

// Adds up what kDown threads have for the same channels, in order; the result is for the threads of the first row.
template <int kCount, class S>
FASTDIFF_INLINE void add_rows(S (&values)[kCount], S (*shared)[kAcross * kCount]) {
  const int row = threadIdx.x / kAcross, across = threadIdx.x % kAcross;
  __syncthreads();  // shared may still be read from an earlier sum
#pragma unroll
  for (int k = 0; k < kCount; ++k) shared[row][k * kAcross + across] = values[k];
  __syncthreads();
  if (row) return;
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    for (int r = 1; r < kDown; ++r) values[k] += shared[r][k * kAcross + across];
}

// The image of a group, counted over all images; in 32 bits, since 64-bit division is a call, around which registers spill.
FASTDIFF_INLINE int64_t group_image(const GroupNormSiluArgs& a, int64_t group) {
  return static_cast<uint32_t>(group) / static_cast<uint32_t>(a.groups);
}
inline const char* too_many_groups(const GroupNormSiluArgs& a) {
  return a.images * a.groups > UINT32_MAX ? "x has more than 2^32 groups" : nullptr;
}

template <class S>
FASTDIFF_INLINE S warp_sum(S v) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
  return v;
}

template <Act kAct, class S>
FASTDIFF_INLINE S derivative_at(S grad, S centred, S factor, S offset) {
  return grad * derivative<kAct>(madd(centred, factor, offset));
}

// The product is rounded before level is added, as level was: for a group of one element they cancel to the last bit.
template <class S>
FASTDIFF_INLINE S dx_of(S dz, S centred, S factor, S slope, S level) {
  return madd(centred, slope, rounded_product(dz, factor) + level);
}

// dscale and dshift of a channel, and the image's shares of its dweight and dbias.
template <class S>
FASTDIFF_INLINE void write_gradients(const GroupNormSiluBackwardArgs& b, int64_t n, int64_t c, S rstd, S dz_x, S dz) {
  const GroupNormSiluArgs& a = b.forward;
  const int64_t at = n * a.channels + c;
  const S modulation = a.scale.data ? 1 + static_cast<S>(element(a.scale, n, c)) : S{1};
  const S with_xhat = dz_x * rstd;
  S* shares = static_cast<S*>(b.shares) + n * 2 * a.channels + c;
  shares[0] = modulation * with_xhat, shares[a.channels] = modulation * dz;
  if (a.shift.data) store_element(b.dshift, a.shift.dtype, at, dz);
  if (!a.scale.data) return;
  S dscale = a.weight.data ? with_xhat * static_cast<S>(element(a.weight, 0, c)) : with_xhat;
  if (a.bias.data) dscale = madd(static_cast<S>(element(a.bias, 0, c)), dz, dscale);
  store_element(b.dscale, a.scale.dtype, at, dscale);
}

// What the statistics add to dx, from the sums over a group's channels of factor dz (x - mean) and of factor dz.
template <class S>
struct Terms {
  FASTDIFF_INLINE Terms(const GroupNormSiluArgs& a, S rstd, double with_x, double without)
      : slope(static_cast<S>(-with_x * a.share * rstd * rstd)), level(static_cast<S>(-without * a.share)) {}
  S slope, level;
};

// Where groups fit in shared memory: false where they do not, else it has run, and error says how.
bool launch_one_pass(const GroupNormSiluArgs& a, void* stream, const char*& error);
bool launch_one_pass(const GroupNormSiluBackwardArgs& b, void* stream, const char*& error);

}  // namespace fastdiff::cuda
