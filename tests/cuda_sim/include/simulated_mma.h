// mma.sync and ldmatrix for g++, by what the PTX ISA says of fragments ("Warp-level matrix instructions"). All 32 lanes must
// come to the same one; a row is read by the lane that names it, for the sanitizers to see.
#pragma once
#include <cstdint>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "simulator.h"

namespace cuda_sim {

inline float number(__nv_bfloat16 v) { return __bfloat162float(v); }
inline float number(__half v) { return __half2float(v); }

// The lower or the upper half of a register.
template <class T>
float half_of(uint32_t word, int upper) {
  const uint16_t bits = static_cast<uint16_t>(word >> 16 * upper);
  T v;
  std::memcpy(&v, &bits, 2);
  return number(v);
}

// m16n8k16, row.col, sums in float32. A lane makes the sums that it holds, in the order of k.
template <class T>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float mine[12];  // two numbers of each register: of a, then of b
  for (int i = 0; i < 12; ++i) mine[i] = half_of<T>(i < 8 ? a[i / 2] : b[i / 2 - 4], i % 2);
  Hand hand;
  std::memcpy(hand.words, mine, sizeof(mine));
  const Hand* lanes = exchange("mma.sync", hand);
  const auto number_of = [&](int of_lane, int i) {
    float v;
    std::memcpy(&v, &lanes[of_lane].words[i], sizeof(v));
    return v;
  };
  const int group = lane() / 4, in_group = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int lower_row = i / 2, column = 2 * in_group + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, far = k / 8;
      const float left = number_of(group * 4 + owner, 2 * (2 * far + lower_row) + k % 2);
      sums[i] += left * number_of(column * 4 + owner, 8 + 2 * far + k % 2);
    }
  }
}

// ldmatrix.m8n8.b16, x1, x2 or x4: row i of matrix m is named by lane 8 m + i.
template <int kMatrices, bool kTransposed>
void load_matrices(uint32_t (&out)[kMatrices], const void* row) {
  struct alignas(16) Row {
    uint32_t words[4];
  };
  Hand mine{};
  if (lane() < 8 * kMatrices) {
    const Row read = *static_cast<const Row*>(row);
    std::memcpy(mine.words, read.words, sizeof(read));
  }
  const Hand* lanes = exchange("ldmatrix", mine);
  const int group = lane() / 4, in_group = lane() % 4;
  for (int m = 0; m < kMatrices; ++m) {
    const auto at = [&](int r, int c) { return lanes[8 * m + r].words[c / 2] >> 16 * (c % 2) & 0xFFFF; };
    if (kTransposed) out[m] = at(2 * in_group, group) | at(2 * in_group + 1, group) << 16;
    else out[m] = at(group, 2 * in_group) | at(group, 2 * in_group + 1) << 16;
  }
}

}  // namespace cuda_sim
