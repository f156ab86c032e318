// Images, noise and timesteps from tensors, for the bind.cpp of ops on [N, ...] that make noise.
#pragma once
#include <algorithm>

#include "checks.h"
#include "layout.h"
#include "noise.h"
#include "timesteps.h"

namespace fastdiff {

constexpr int64_t kNoiseGrain = 16384;  // elements a thread takes at least: waking one costs as much

inline void check_images(const Tensor& x, const char* op, const char* name) {
  FASTDIFF_CHECK(x.dim() >= 1 && x.dtype() <= DType::f16, op, ": ", name,
                 " must be [N, ...], float32, bfloat16, float16 or float64");
}

inline Walk make_walk(int64_t images, int64_t channels, int64_t pixels, bool channels_last) {
  Walk w{};
  w.images = images;
  w.channels = channels_last ? channels : 1;
  w.pixels = channels_last ? pixels : channels * pixels;
  const int64_t rows = kTile / std::max<int64_t>(w.channels, 1) / kRow * kRow;
  w.tile_pixels = std::min(std::max(rows, kRow), w.pixels);
  w.tile_channels = std::min(kTile / std::max<int64_t>(w.tile_pixels, 1), w.channels);
  const auto pieces = [](int64_t size, int64_t piece) { return size ? (size + piece - 1) / piece : 0; };
  w.tiles_across = pieces(w.channels, w.tile_channels);
  w.tiles_per_image = w.tiles_across * pieces(w.pixels, w.tile_pixels);
  return w;
}

// How images [N, ...] of any rank are walked.
inline Walk walk_of(const Tensor& x, bool channels_last) {
  const int64_t channels = x.dim() > 1 ? x.size(1) : 1;
  int64_t pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) pixels *= x.size(i);
  return make_walk(x.size(0), channels, pixels, channels_last && pixels > 1);  // with one pixel both formats are the same
}

// body(first, last) on the walk's tiles, on as many threads as pay.
template <class Body>
void parallel_tiles(const Walk& w, Body&& body) {
  const int64_t elements = w.tiles_per_image ? (w.channels * w.pixels + w.tiles_per_image - 1) / w.tiles_per_image : 1;
  parallel_for(0, w.images * w.tiles_per_image, kNoiseGrain / elements, body);
}

// The noise of `images` images; x is any tensor on the device of the call.
inline Noise noise_of(const Tensor& seeds, const Tensor& step, int64_t purpose, int64_t images, const Tensor& x,
                      const char* op) {
  FASTDIFF_CHECK(seeds.dim() == 1 && seeds.dtype() == DType::i64 && seeds.size(0) == images, op,
                 ": seeds must be int64 of shape [N], one for each of the N images");
  FASTDIFF_CHECK(step.numel() == 1 && step.dtype() == DType::i64, op, ": step must be an int64 tensor of one element");
  check_on_device_of(x, seeds, op, "seeds");
  check_on_device_of(x, step, op, "step");
  return {static_cast<const int64_t*>(seeds.data()), seeds.stride(0), static_cast<const int64_t*>(step.data()),
          static_cast<uint32_t>(purpose)};
}

// Timesteps t [N] or [1] of x's images, for tables of `count` rows. int32 ones are copied to `storage`.
inline Timesteps timesteps_of(const Tensor& t, int64_t count, const Tensor& x, const char* op, std::optional<Tensor>& storage) {
  FASTDIFF_CHECK(t.dim() == 1 && (t.size(0) == x.size(0) || t.size(0) == 1), op, ": t must be of shape [N] or [1]");
  FASTDIFF_CHECK(t.dtype() == DType::i64 || t.dtype() == DType::i32, op, ": t must be int64 or int32");
  check_on_device_of(x, t, op, "t");
  const Tensor& wide = t.dtype() == DType::i64 ? t : converted(t, DType::i64, storage);
  return {static_cast<const int64_t*>(wide.data()), t.size(0) == 1 ? 0 : wide.stride(0), count};
}

}  // namespace fastdiff
