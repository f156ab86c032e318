// FiLM kernels on pointers: y = act(x * factor + offset), factor = 1 + scale (or scale where there is no shift).
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

struct FilmArgs {
  int64_t images, channels, pixels;
  bool channels_last;  // x, grad, y and dx are dense in this format
  DType dtype;         // of x, grad, y, dx
  Act act;
  Matrix scale, shift;
  const void* x;
  void* y;
};

// Sums over pixels are taken in chunks of fixed size, so that they do not depend on threads, and the chunks' sums in order.
constexpr int64_t kFilmChunk = 64;  // pixels, channels_last only: in NCHW one (n, c) row is one chunk

struct FilmBackwardArgs {
  FilmArgs forward;  // y unused
  const void* grad;
  void* dx;
  // [images, chunks, 2, channels] in the compute type (double for double, else float): sums of dz * x and of dz.
  void* partial;
  int64_t chunks;
  void *dscale, *dshift;  // [images, channels], in scale's dtype
};

inline int64_t film_chunks(const FilmArgs& a) {
  return a.channels_last ? (a.pixels + kFilmChunk - 1) / kFilmChunk : 1;
}

// NCHW: rows [begin, end) of images * channels. channels_last: pixels [begin, end) of images * pixels.
FASTDIFF_DECLARE_CPU(void, film_kernel, (const FilmArgs&, int64_t begin, int64_t end))
// NCHW: rows [begin, end). channels_last: chunks [begin, end) of images * chunks.
FASTDIFF_DECLARE_CPU(void, film_backward_kernel, (const FilmBackwardArgs&, int64_t begin, int64_t end))
// Adds the chunks' sums of images [begin, end) into dscale and dshift.
FASTDIFF_DECLARE_CPU(void, film_combine_kernel, (const FilmBackwardArgs&, int64_t begin, int64_t end))

// Launch on a stream; null, or what went wrong.
const char* film_cuda_launch(const FilmArgs&, void* stream);
const char* film_backward_cuda_launch(const FilmBackwardArgs&, void* stream);

}  // namespace fastdiff
