// Philox on CPU vectors: the primitives that philox.h asks for. Compile with -ffp-contract=off.
#pragma once
#include "simd.h"

namespace fastdiff::FASTDIFF_ISA {

FASTDIFF_INLINE Floats add(Floats a, Floats b) { return a + b; }
FASTDIFF_INLINE Floats add(Floats a, float b) { return a + b; }
FASTDIFF_INLINE Floats mul(Floats a, Floats b) { return a * b; }
FASTDIFF_INLINE Floats mul(Floats a, float b) { return a * b; }
template <class F, class I> FASTDIFF_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }

FASTDIFF_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
  return bits_as<Floats>(_mm512_sqrt_ps(bits_as<__m512>(v)));
#elif defined(__AVX2__)
  return bits_as<Floats>(_mm256_sqrt_ps(bits_as<__m256>(v)));
#else
  return map_lanes(v, [](float x) { return __builtin_sqrtf(x); });
#endif
}

// The 64-bit product of each lane with a constant. The instruction multiplies even lanes, so odd lanes take a second one.
FASTDIFF_INLINE void high_low(Words a, uint32_t b, Words& high, Words& low) {
#if defined(__AVX512F__)
  const __m512i x = bits_as<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  high = bits_as<Words>(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
  low = bits_as<Words>(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
#elif defined(__AVX2__)
  const __m256i x = bits_as<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  high = bits_as<Words>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
  low = bits_as<Words>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
#else
  for (int i = 0; i < kLanesOf<float>; ++i) {
    const uint64_t product = static_cast<uint64_t>(a[i]) * b;
    high[i] = static_cast<uint32_t>(product >> 32), low[i] = static_cast<uint32_t>(product);
  }
#endif
}

}  // namespace fastdiff::FASTDIFF_ISA

#include "philox.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int kCounters = kLanesOf<float>;  // counters at a time

// Normals of elements [4 first, 4 (first + kCounters)) of one image, in order.
FASTDIFF_INLINE void normals(int64_t first, uint32_t step, uint32_t purpose, uint64_t seed, float* out) {
  Words lane;
  for (int i = 0; i < kCounters; ++i) lane[i] = static_cast<uint32_t>(i);
  const Words low = lane + static_cast<uint32_t>(first);
  // A vector may cross a multiple of 2^32 counters: where the low word wrapped, the high word is one more.
  const Words carry = bits_as<Words>(low < static_cast<uint32_t>(first)) & 1u;
  const Counter<Words> counter{low, carry + static_cast<uint32_t>(first >> 32), splat<Words>(step), splat<Words>(purpose)};
  Floats quads[4];
  philox_normals<Floats, Ints>(counter, seed, quads);
  for (int i = 0; i < kCounters; ++i)
    for (int k = 0; k < 4; ++k) out[4 * i + k] = quads[k][i];
}

}  // namespace fastdiff::FASTDIFF_ISA
