// A warp's products: up to kDown x 16 positions by kOutputBlock output channels in registers, over a slab and an element of the
// kernel at a time. Tensor cores in bf16 and fp16; float32 is not theirs (TF32 has 10 bits), so it and double are multiplied
// and added one by one, in the same fragments.
//
// sums[i][j][2 h + e] is position 16 i + 8 h + lane / 4 and channel 8 (lane % 4) + 2 j + e: weights are packed so that a lane's
// channels are neighbours, and it reads and writes 16 bytes of a pixel. 16 products take 4 fragments of inputs and 4 of
// weights, 3 KB of shared memory: 192 bytes each, of the 256 that a multiprocessor of an A100 reads in the time of one.
#pragma once
#include "../common/mma.h"
#include "cuda_tiles.h"

namespace fastdiff::cuda {

constexpr int kAcross = 4;          // fragments of eight channels
constexpr int kLaneOutputs = 8;     // channels of a lane
template <class T> constexpr int kDown = sizeof(T) == 8 ? 2 : 4;
template <class S, int kDown> using Sums = S[kDown][kAcross][4];

// Where the input of the tile's position m begins, in bytes; positions past the last compute something that nobody stores.
FASTDIFF_INLINE int first_byte_of(const Conv2dTiles& t, int m) {
  const int row = m / t.tile_columns;
  const int pixel = row < t.tile_rows ? row * static_cast<int>(t.c.stride) * t.row_pixels + (m - row * t.tile_columns) : 0;
  return pixel * static_cast<int>(kBlockBytes);
}

template <class T>
struct Products {  // bf16, f16
  static constexpr int kSteps = kBlockBytes / (kFragment * sizeof(T));
  Sums<float, kDown<T>> sums;
  int bytes[kDown<T>];  // the lane says where half a row of each fragment lies

  FASTDIFF_INLINE void place(const Conv2dTiles& t, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kDown<T>; ++i)
      bytes[i] = first_byte_of(t, (first + i) * kFragment + lane % kFragment) + lane / kFragment * kPiece;
  }

  template <int kFragments>
  FASTDIFF_INLINE void multiply(const unsigned char* operands, int offset, const unsigned char* weights) {
    using Four = Pack<uint32_t, 4>;
    const Four* right = reinterpret_cast<const Four*>(weights) + threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[kAcross][2];
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        const Four two = right[(step * (kAcross / 2) + j / 2) * 32];
        b[j][0] = two.v[0], b[j][1] = two.v[1], b[j + 1][0] = two.v[2], b[j + 1][1] = two.v[3];
      }
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        uint32_t a[4];
        load_matrices(a, operands + (swizzled(bytes[i] + offset) ^ 2 * step * kPiece));
#pragma unroll
        for (int j = 0; j < kAcross; ++j) multiply_add<T>(sums[i][j], a, b[j]);
      }
    }
  }
};

template <class S>
struct OneByOne {
  static constexpr int kCount = kPiece / sizeof(S);
  Sums<S, kDown<S>> sums;
  int bytes[kDown<S>][2];

  FASTDIFF_INLINE void place(const Conv2dTiles& t, int first) {
#pragma unroll
    for (int i = 0; i < kDown<S>; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) bytes[i][h] = first_byte_of(t, (first + i) * kFragment + 8 * h + threadIdx.x % 32 / 4);
  }

  template <int kFragments>
  FASTDIFF_INLINE void multiply(const unsigned char* operands, int offset, const unsigned char* weights) {
    using P = Pack<S, kCount>;
#pragma unroll 1
    for (int piece = 0; piece < kPieces; ++piece) {
      P a[kFragments][2];
#pragma unroll
      for (int i = 0; i < kFragments; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          a[i][h] = *reinterpret_cast<const P*>(operands + (swizzled(bytes[i][h] + offset) ^ piece * kPiece));
      const auto* b = reinterpret_cast<const P*>(weights) + piece * kOutputBlock + threadIdx.x % 4 * (kLaneOutputs / kCount);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        S w[kLaneOutputs];
#pragma unroll
        for (int o = 0; o < kLaneOutputs; o += kCount) {
          const P some = b[(k * kOutputBlock + o) / kCount];
#pragma unroll
          for (int u = 0; u < kCount; ++u) w[o + u] = some.v[u];
        }
#pragma unroll
        for (int i = 0; i < kFragments; ++i)
#pragma unroll
          for (int j = 0; j < kAcross; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) sums[i][j][r] = madd(a[i][r / 2].v[k], w[2 * j + r % 2], sums[i][j][r]);
      }
    }
  }
};
template <> struct Products<float> : OneByOne<float> {};
template <> struct Products<double> : OneByOne<double> {};

// Of the warp's fragments, of which a tile may fill fewer; code for each number, without branches between its products.
template <class T>
FASTDIFF_INLINE void multiply(Products<T>& products, int fragments, const unsigned char* operands, int offset,
                              const unsigned char* weights) {
  if (fragments == 4 && kDown<T> == 4) products.template multiply<kDown<T>>(operands, offset, weights);
  else if (fragments == 3 && kDown<T> == 4) products.template multiply<kDown<T> - 1>(operands, offset, weights);
  else if (fragments == 2) products.template multiply<2>(operands, offset, weights);
  else if (fragments == 1) products.template multiply<1>(operands, offset, weights);
}

}  // namespace fastdiff::cuda
