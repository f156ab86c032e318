// How conv2d_fused is cut on CUDA, and the way of x through the prologue into shared memory.
//
// A block has one part of an image (the rows whose statistics are taken together) and kOutputBlock output channels for each
// warp across. It goes through the part in tiles of equal rows and columns, and through the input in slabs: kBlockBytes of
// channels of all the pixels that the tile reads.
//     raw[slot][pixel][64 bytes]    by cp.async, `ahead` slabs early, with a and b; a thread transforms what it has copied
//     operands[pixel][64 bytes]     after the prologue, with the zeros that pad; every element of the kernel reads them
// so that the prologue runs once for an input of a tile, and an element of the kernel is an offset in pixels.
#pragma once
#include "../common/cuda_device.h"

#include "../common/activation.h"
#include "conv2d_fused.h"

namespace fastdiff::cuda {

constexpr int kPiece = 16;  // bytes of an access
constexpr int kPieces = kBlockBytes / kPiece;
constexpr int kWarpsDown = 2;  // a block's warps with the same outputs, each at positions of its own
constexpr int kFragment = 16;  // positions whose products are taken together
constexpr int kStages = 4;     // of weights: three elements of the kernel are on their way while one is multiplied
constexpr int kSlabCoefficients = 2 * 32 * sizeof(float);  // bytes of a and b for the channels of a slab, at most
constexpr int kTapBytes = kOutputBlock * kBlockBytes;  // weights of a warp for an element of the kernel and a slab

struct Conv2dTiles {
  Conv2dArgs c;
  int channels, inputs, rows, columns;  // of x; of x and x2; of what is read, up-sampled
  int width, up;                        // x's own, and 1 where its pixels count twice
  int outputs, output_blocks;           // channels, and blocks side by side
  int kernel_rows, taps, turns;         // of the kernel that a slab serves, and their elements; slabs with the same channels
  int slabs;                            // in all, those with the same channels in a row
  int tile_rows, tile_columns, tiles_across, tiles;
  int line, row_pixels, pixels;         // of a tile's input: columns a stride apart, in a row, in all
  int ahead, slot;                      // slabs that are on their way, and the bytes of one: its pixels, and a and b
  bool whole_inputs, whole_outputs;     // channels come in pieces that can be accessed at once
};

// A block's image, part of it, and which of the blocks of output channels it has. Found out anew where they are needed: the
// registers that they would hold in between are wanted for sums.
struct Share {
  int n, part, block_of_outputs;
  FASTDIFF_INLINE explicit Share(const Conv2dTiles& t) {
    unsigned block = blockIdx.x;
#ifndef FASTDIFF_SIMULATED
    asm volatile("" : "+r"(block));
#endif
    const unsigned image_part = block / static_cast<unsigned>(t.output_blocks), parts = static_cast<unsigned>(t.c.parts);
    block_of_outputs = static_cast<int>(block - image_part * t.output_blocks);
    n = static_cast<int>(image_part / parts), part = static_cast<int>(image_part - n * parts);
  }
};

// Where a byte of the operands lies: the two bits that say which 16 bytes of a pixel it is in are changed by two of the pixel's
// number, so that the same 16 bytes of eight pixels in a row, which ldmatrix reads, are in all 32 banks.
FASTDIFF_INLINE int swizzled(int byte) {
  return byte ^ (byte >> 3 & (kPieces - 1) * kPiece);
}

// All threads take the same branch.
template <int kCount, class S>
FASTDIFF_INLINE void activate_all(S (&v)[kCount], Act act) {
  const auto all = [&](auto&& f) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) v[k] = f(v[k]);
  };
  switch (act) {
    case Act::none: return;
    case Act::silu: return all([](S z) { return activate<Act::silu>(z); });
    case Act::relu: return all([](S z) { return activate<Act::relu>(z); });
    case Act::leaky_relu: return all([](S z) { return activate<Act::leaky_relu>(z); });
    case Act::gelu: return all([](S z) { return activate<Act::gelu>(z); });
  }
}

// A thread's share of what a tile reads: the same 16 bytes of one pixel in kThreadsOfBlock / kPieces.
template <class T, int kThreadsOfBlock>
struct Reader {
  using S = Compute<T>;
  static constexpr int kCount = kPiece / sizeof(T), kChannels = kCount * kPieces, kApart = kThreadsOfBlock / kPieces;
  static_assert(2 * kChannels * sizeof(S) <= kSlabCoefficients && 2 * kChannels <= kThreadsOfBlock);
  static constexpr int kTogether = kPiece / sizeof(S);  // numbers of the compute type in an access
  using P = Pack<T, kCount>;

  const Conv2dTiles& t;
  int row, column;    // of the up-sampled image, where the tile's input begins; may lie in the padding
  const int* places;  // a pixel's row and column within the tile's input, 16 bits each
  unsigned char *raw, *operands;

  FASTDIFF_INLINE int piece() const { return threadIdx.x % kPieces; }
  FASTDIFF_INLINE int first_pixel() const { return threadIdx.x / kPieces; }
  FASTDIFF_INLINE int channel(int slab) const { return (slab / t.turns * kPieces + piece()) * kCount; }
  FASTDIFF_INLINE unsigned char* slot(int slab) const { return raw + slab % t.ahead * t.slot; }
  FASTDIFF_INLINE P* raw_at(int slab, int pixel) const {
    return reinterpret_cast<P*>(slot(slab) + (pixel * kPieces + piece()) * kPiece);
  }
  FASTDIFF_INLINE S* coefficients(int slab) const { return reinterpret_cast<S*>(slot(slab) + t.pixels * kBlockBytes); }
  FASTDIFF_INLINE static Pack<S, kTogether> at_once(const S* p) { return *reinterpret_cast<const Pack<S, kTogether>*>(p); }

  // A pixel of x's image; -1 where there are zeros in its place.
  FASTDIFF_INLINE int source(int first_row, int pixel) const {
    const int y = first_row + (places[pixel] >> 16), x = column + (places[pixel] & 0xFFFF);
    const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(t.rows) &&
                        static_cast<unsigned>(x) < static_cast<unsigned>(t.columns);
    return inside ? (y >> t.up) * t.width + (x >> t.up) : -1;
  }
  FASTDIFF_INLINE int first_row(int slab) const { return row + slab % t.turns * t.kernel_rows; }

  FASTDIFF_INLINE const T* input(int64_t pixel, int c) const {
    return c < t.channels ? static_cast<const T*>(t.c.x) + pixel * t.channels + c
                          : static_cast<const T*>(t.c.x2) + pixel * (t.inputs - t.channels) + (c - t.channels);
  }

  FASTDIFF_INLINE void start(int slab) const {
    const int from = first_row(slab), c = channel(slab);
    const int64_t image = Share(t).n;
    if (t.c.a && threadIdx.x < 2 * kChannels) {
      const int of = slab / t.turns * kChannels + threadIdx.x % kChannels;
      const S* all = static_cast<const S*>(threadIdx.x < kChannels ? t.c.a : t.c.b);
      if (of < t.inputs) copy_async(coefficients(slab) + threadIdx.x, all + image * t.inputs + of);
      else coefficients(slab)[threadIdx.x] = S{};
    }
    if (c >= t.inputs) return;
    const int64_t pixels = image * (t.rows >> t.up) * t.width;
#pragma unroll 1
    for (int pixel = first_pixel(); pixel < t.pixels; pixel += kApart) {
      const int at = source(from, pixel);
      if (at < 0) continue;
      P* to = raw_at(slab, pixel);
      if (t.whole_inputs) {
        copy_async(to, reinterpret_cast<const P*>(input(pixels + at, c)));
      } else {
#pragma unroll 1
        for (int k = 0; k < kCount; ++k) to->v[k] = c + k < t.inputs ? *input(pixels + at, c + k) : T{};
      }
    }
  }

  FASTDIFF_INLINE void transform(int slab) const {
    const int from = first_row(slab), c = channel(slab);
    const S* const factors = coefficients(slab) + piece() * kCount;
#pragma unroll 1
    for (int pixel = first_pixel(); pixel < t.pixels; pixel += kApart) {
      P v{};
      if (c < t.inputs && source(from, pixel) >= 0) {
        v = *raw_at(slab, pixel);
#pragma unroll
        for (int k = 0; k < kCount; k += kTogether) {
          S some[kTogether];
          const auto factor = at_once(factors + k), offset = at_once(factors + kChannels + k);
#pragma unroll
          for (int u = 0; u < kTogether; ++u)
            some[u] = t.c.a ? madd(widen(v.v[k + u]), factor.v[u], offset.v[u]) : widen(v.v[k + u]);
          activate_all(some, t.c.act_in);
#pragma unroll
          for (int u = 0; u < kTogether; ++u) v.v[k + u] = narrow<T>(some[u]);
        }
      }
      *reinterpret_cast<P*>(operands + swizzled((pixel * kPieces + piece()) * kPiece)) = v;
    }
  }
};

}  // namespace fastdiff::cuda
