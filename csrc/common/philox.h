// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and standard normals from it.
//
// The same bits on the CPU, on CUDA and in plain torch (fastdiff/ops/_philox.py): every float operation is one float32
// multiplication, addition or square root, rounded on its own. F is float or vectors of them, I and U int32_t and uint32_t
// alike; add, mul, square_root, bits_as, to_float, choose and high_low come from the includer: philox_cpu.h or philox_cuda.h.
#pragma once
#include <cstdint>

namespace fastdiff::FASTDIFF_ISA {

template <class U>
struct Counter {
  U c0, c1, c2, c3;
};

template <class U>
FASTDIFF_INLINE Counter<U> philox4x32(Counter<U> c, uint32_t k0, uint32_t k1) {
FASTDIFF_UNROLL
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    high_low(c.c0, 0xD2511F53u, high0, low0);
    high_low(c.c2, 0xCD9E8D57u, high1, low1);
    c = {high1 ^ c.c1 ^ k0, low1, high0 ^ c.c3 ^ k1, low0};
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

template <class F, int kCount>
FASTDIFF_INLINE F horner(const float (&coefficients)[kCount], F x) {
  F p = add(mul(x, coefficients[0]), coefficients[1]);
FASTDIFF_UNROLL
  for (int i = 2; i < kCount; ++i) p = add(mul(p, x), coefficients[i]);
  return p;
}

// log(u) for u in (0, 1]: u = m 2^e with m in [sqrt(1/2), sqrt(2)); Cephes logf.
template <class F, class I>
FASTDIFF_INLINE F logarithm(F u) {
  constexpr float kLog[] = {7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                            -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
  constexpr int32_t kSqrtHalf = 0x3F3504F3;
  const I bits = bits_as<I>(u) - kSqrtHalf;
  const F exponent = to_float<F>(bits >> 23);
  const F x = add(bits_as<F>((bits & 0x007FFFFF) + kSqrtHalf), -1.0f);
  const F z = mul(x, x);
  F y = mul(mul(horner(kLog, x), x), z);
  y = add(y, mul(exponent, -2.12194440e-4f));
  y = add(y, mul(mul(z, 0.5f), -1.0f));
  return add(add(x, y), mul(exponent, 0.693359375f));
}

// x, negated where the top bit of w is set.
template <class F, class I, class U>
FASTDIFF_INLINE F with_sign(F x, U w) {
  return bits_as<F>(bits_as<I>(x) ^ bits_as<I>(w & 0x80000000u));
}

// Two words to two normals: radius from a, angle 2 pi b / 2^32, reduced in integers to [-pi/4, pi/4]; Cephes sinf, cosf.
template <class F, class I, class U>
FASTDIFF_INLINE void box_muller(U a, U b, F& first, F& second) {
  constexpr float kSin[] = {-1.9515295891e-4f, 8.3321608736e-3f, -1.6666654611e-1f};
  constexpr float kCos[] = {2.443315711809948e-5f, -1.388731625493765e-3f, 4.166664568298827e-2f};
  const F u = add(mul(to_float<F>(a), 0x1p-32f), 0x1p-33f);
  const F radius = square_root(mul(logarithm<F, I>(u), -2.0f));
  const U turned = b + 0x20000000u;  // bits 31 and 30: the quadrant; the others: the angle from its middle, plus pi/4
  const F theta = mul(to_float<F>(bits_as<I>(turned & 0x3FFFFFFFu) - 0x20000000), 1.4629180792671596e-9f);
  const F z = mul(theta, theta);
  const F s = add(mul(mul(horner(kSin, z), z), theta), theta);
  const F c = add(add(mul(mul(horner(kCos, z), z), z), mul(mul(z, 0.5f), -1.0f)), 1.0f);
  const U odd = turned & 0x40000000u;
  const F sine = choose(odd, c, s), cosine = choose(odd, s, c);
  second = mul(radius, with_sign<F, I>(sine, turned));
  first = mul(radius, with_sign<F, I>(cosine, turned + 0x40000000u));
}

}  // namespace fastdiff::FASTDIFF_ISA
