// A walk over tiles in the order of memory that brings each element its noise: made in registers, never in memory of the size
// of the image. Where the order of memory is not that of the noise (channels_last), a tile's noise is made row by row into a
// scratch that fits the first-level cache and turned there, so that no normal is made twice.
#pragma once
#include "philox_cpu.h"

namespace fastdiff::FASTDIFF_ISA {

FASTDIFF_INLINE Draw draw_of(const Noise& noise, int64_t image) {
  return {static_cast<uint64_t>(noise.seeds[image * noise.stride]), static_cast<uint32_t>(*noise.step), noise.purpose};
}

// One unit of work; last is one past it.
struct Tile {
  int64_t image, first_channel, last_channel, first_pixel, last_pixel;
};

FASTDIFF_INLINE Tile tile_of(const Walk& w, int64_t i) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t in_image = i % w.tiles_per_image;
  const int64_t channel = in_image % w.tiles_across * w.tile_channels, pixel = in_image / w.tiles_across * w.tile_pixels;
  return {i / w.tiles_per_image, channel, least(channel + w.tile_channels, w.channels), pixel,
          least(pixel + w.tile_pixels, w.pixels)};
}

// Normals of elements [first, first + count) of one image; up to kNormals - 1 more are written. Returns where `first` is:
// up to 3 elements after out, since counters make four each.
FASTDIFF_INLINE const float* fill_normals(const Draw& draw, int64_t first, int64_t count, float* out) {
  const int64_t ahead = first % 4;
  for (int64_t i = 0; i < ahead + count; i += kNormals) {
    Floats v[kVectors];
    normals(draw, (first + i) / 4, v);
    for (int k = 0; k < kVectors; ++k) store(out + i + k * kLanesOf<float>, v[k]);
  }
  return out + ahead;
}

template <class S>
FASTDIFF_INLINE Vec<S> load_as(const float* p) {
  if constexpr (sizeof(S) == sizeof(float)) return load(p);
  typename VectorOf<float, kLanesOf<S>>::type v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Vec<S>);
}

// body(at, count): the tile as runs that lie together in memory, from offset `at` in the image.
template <class Body>
FASTDIFF_INLINE void for_runs(const Walk& walk, const Tile& t, Body&& body) {
  const int64_t channels = t.last_channel - t.first_channel;
  if (channels == walk.channels) return body(t.first_pixel * channels, (t.last_pixel - t.first_pixel) * channels);
  for (int64_t p = t.first_pixel; p < t.last_pixel; ++p) body(p * walk.channels + t.first_channel, channels);
}

// body(at, n, zeros), in the order of with_noise.
template <class S, class Body>
FASTDIFF_INLINE void without_noise(const Walk& walk, const Tile& t, Body&& body) {
  for_runs(walk, t, [&](int64_t at, int64_t count) {
    for_vectors<kLanesOf<S>>(count, [&](int64_t i, int64_t n) { body(at + i, n, Vec<S>{}); });
  });
}

constexpr int64_t kSlack = 2 * kNormals;  // that vectors may pass the end of a tile's noise by

// [channels, pixels] to [pixels, channels]. Four channels at a time, whose values at one pixel are one store; up to kSlack floats
// are read and written past both ends.
inline void turn(const float* rows, int64_t channels, int64_t pixels, float* out) {
  constexpr int kLanes = kLanesOf<float>;
  for (int64_t group = 0; group < channels; group += 4) {
    // The last group goes back to be whole. Of two or three channels it is not: the next pixel overwrites what is too much.
    const int64_t c = channels < 4 ? 0 : least(group, channels - 4);
    for (int64_t p = 0; p < pixels; p += kLanes) {
      FloatBatch v;
      for (int k = 0; k < 4; ++k) v.part[k] = load(rows + (c + k) * pixels + p);
      v = transpose_quads(v);
      for (int j = 0; j < kLanes / 4; ++j)
        for (int k = 0; k < 4; ++k)
          if (p + 4 * j + k < pixels)
            std::memcpy(out + (p + 4 * j + k) * channels + c, reinterpret_cast<const float*>(&v.part[k]) + 4 * j, 16);
    }
  }
}

// The tile's noise in the order of memory, turned from that of N C H W. `made` and `turned` hold kTile + kSlack.
inline void turned_noise(const Walk& walk, const Tile& t, const Draw& draw, float* made, float* turned) {
  const int64_t channels = t.last_channel - t.first_channel, pixels = t.last_pixel - t.first_pixel;
  const int64_t first = t.first_channel * walk.pixels + t.first_pixel;
  if (pixels == walk.pixels) return turn(fill_normals(draw, first, channels * pixels, made), channels, pixels, turned);
  // Row after row: the next one overwrites what a row has too much, and gives back what it has before its start.
  float* rows = made + 4;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = first + c * walk.pixels, ahead = at % 4;
    float* row = rows + c * pixels - ahead;
    float before[4];
    std::memcpy(before, row, sizeof(before));
    fill_normals(draw, at, pixels, row);
    std::memcpy(row, before, ahead * sizeof(float));
  }
  turn(rows, channels, pixels, turned);
}

// body(at, n, noise): n elements from offset `at` in the image, and the noise of kLanesOf<S> elements from there.
template <class S, class Body>
FASTDIFF_INLINE void with_noise(const Walk& walk, const Tile& t, const Draw& draw, Body&& body) {
  constexpr int64_t kLanes = kLanesOf<S>;
  if (walk.channels > 1) {
    float made[kTile + kSlack], turned[kTile + kSlack];
    turned_noise(walk, t, draw, made, turned);
    const float* noise = turned;
    return for_runs(walk, t, [&](int64_t at, int64_t count) {
      for_vectors<kLanes>(count, [&](int64_t i, int64_t n) { body(at + i, n, load_as<S>(noise + i)); });
      noise += count;
    });
  }
  for (int64_t at = t.first_pixel; at < t.last_pixel; at += kNormals) {
    const int64_t count = t.last_pixel - at < kNormals ? t.last_pixel - at : kNormals;
    Floats v[kVectors];
    normals(draw, at / 4, v);
    if constexpr (sizeof(S) != sizeof(float)) {
      float made[kNormals];
      std::memcpy(made, v, sizeof(made));
      for_vectors<kLanes>(count, [&](int64_t i, int64_t n) { body(at + i, n, load_as<S>(made + i)); });
    } else if (count == kNormals) {
      for (int k = 0; k < kVectors; ++k) body(at + k * kLanes, kLanes, v[k]);
    } else {
      for (int64_t i = 0; i < count; i += kLanes) body(at + i, count - i < kLanes ? count - i : kLanes, v[i / kLanes]);
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
