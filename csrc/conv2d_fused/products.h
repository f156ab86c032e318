// The products of a convolution: kPositions neighbouring outputs of a row by two vectors of output channels, in registers.
#pragma once
#include "kept_rows.h"

namespace fastdiff::FASTDIFF_ISA {

#if defined(__AVX512F__)
constexpr int kMostPositions = 14;  // 28 sums, 2 vectors of weights and one of inputs in 32 registers
#else
constexpr int kMostPositions = 6;  // 12 sums in 16 registers
#endif

// What one step multiplies: a pair of bf16, a float or a double.
template <class T> struct StepType { using type = Kept<T>; };
template <> struct StepType<bf16> { using type = uint32_t; };
template <class T> using Step = typename StepType<T>::type;
template <class T> constexpr int64_t kSteps = kBlockBytes / sizeof(Step<T>);              // of a block of channels
template <class T> constexpr int64_t kTapBytes = kSteps<T> * kOutputBlock * sizeof(Step<T>);  // weights of a block and element

template <class V, class W, class U>
FASTDIFF_INLINE V step(V acc, U x, W w) {
  if constexpr (sizeof(U) == 4 && std::is_integral_v<U>) return dot_pairs(acc, splat<Words>(x), w);
  else return madd(splat<V>(x), w, acc);
}

// Offsets of the kernel's elements within what is kept, and how far blocks of channels are apart.
struct Taps {
  const int64_t* offsets;
  int64_t count, blocks, block_bytes;
};

// Of two vectors of output channels at neighbouring positions.
template <class S> using Sums = Vec<S> (*)[2];

template <class T, int kPositions>
void multiply(Sums<Compute<T>> out, const unsigned char* x, const Taps& taps, const unsigned char* weights, int64_t second) {
  using U = Step<T>;
  using W = std::conditional_t<std::is_same_v<U, uint32_t>, Words, Vec<Compute<T>>>;
  constexpr int64_t kRow = kOutputHalf * sizeof(U);  // weights of a step and half
  Vec<Compute<T>> sums[kPositions][2] = {};
  for (int64_t block = 0; block < taps.blocks; ++block, x += taps.block_bytes)
    for (int64_t tap = 0; tap < taps.count; ++tap, weights += kTapBytes<T>) {
      const unsigned char *at = x + taps.offsets[tap], *w = weights;
      for (int64_t s = 0; s < kSteps<T>; ++s, at += sizeof(U), w += kRow) {
        W w0, w1;
        std::memcpy(&w0, w, sizeof(W)), std::memcpy(&w1, w + second, sizeof(W));
        FASTDIFF_UNROLL
        for (int p = 0; p < kPositions; ++p) {
          U value;
          std::memcpy(&value, at + p * kBlockBytes, sizeof(U));
          sums[p][0] = step(sums[p][0], value, w0), sums[p][1] = step(sums[p][1], value, w1);
        }
      }
    }
  FASTDIFF_UNROLL
  for (int p = 0; p < kPositions; ++p) out[p][0] = sums[p][0], out[p][1] = sums[p][1];
}

template <class T>
using Multiply = void (*)(Sums<Compute<T>>, const unsigned char*, const Taps&, const unsigned char*, int64_t);

template <class T>
Multiply<T> multiply_of(int64_t positions) {
  static constexpr Multiply<T> kAll[] = {
      multiply<T, 1>, multiply<T, 2>, multiply<T, 3>, multiply<T, 4>, multiply<T, 5>, multiply<T, 6>,
#if defined(__AVX512F__)
      multiply<T, 7>, multiply<T, 8>, multiply<T, 9>, multiply<T, 10>, multiply<T, 11>, multiply<T, 12>,
      multiply<T, 13>, multiply<T, 14>,
#endif
  };
  return kAll[positions - 1];
}

}  // namespace fastdiff::FASTDIFF_ISA
