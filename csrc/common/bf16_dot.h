// Products of pairs of bf16 numbers, added in float32: one instruction where the machine has AVX512_BF16 (which takes
// subnormal inputs for zeros), else the even and the odd halves widened, a fused multiply-add each.
#pragma once
#include "simd.h"

namespace fastdiff::FASTDIFF_ISA {

// acc[i] + x[2i] w[2i] + x[2i+1] w[2i+1]. A pair is a 32-bit word, its first number in the lower half.
FASTDIFF_INLINE Floats dot_pairs(Floats acc, Words x, Words w) {
#if defined(__AVX512BF16__)
  return bits_as<Floats>(_mm512_dpbf16_ps(bits_as<__m512>(acc), bits_as<__m512bh>(x), bits_as<__m512bh>(w)));
#else
  acc = madd(bits_as<Floats>(x << 16), bits_as<Floats>(w << 16), acc);
  return madd(bits_as<Floats>(x & 0xFFFF0000u), bits_as<Floats>(w & 0xFFFF0000u), acc);
#endif
}

// A vector of what products are taken of. The instruction that converts to bf16 flushes subnormals, as that for products does.
template <class K, class V>
FASTDIFF_INLINE void store_operands(K* p, V v) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<K, bf16>) {
    const Halves h = bits_as<Halves>(_mm512_cvtneps_pbh(bits_as<__m512>(v)));
    std::memcpy(p, &h, sizeof(h));
    return;
  }
#endif
  store(p, v);
}

// Two vectors as the pairs that products take, low[i] in the lower half of word i.
FASTDIFF_INLINE Words operand_pairs(Floats low, Floats high) {
#if defined(__AVX512BF16__)
  const __m512i halves = bits_as<__m512i>(_mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low)));
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                              23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return bits_as<Words>(_mm512_permutexvar_epi16(interleave, halves));
#else
  const Halves l = narrow(low, bf16{}), h = narrow(high, bf16{});
  return __builtin_convertvector(l, Words) | (__builtin_convertvector(h, Words) << 16);
#endif
}

}  // namespace fastdiff::FASTDIFF_ISA
