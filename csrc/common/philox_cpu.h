// Philox on CPU vectors: the primitives that philox.h asks for. Compile with -ffp-contract=off.
//
// Two things make it fast. A product of two words has 64 bits, and the machine's multiplication leaves it in a 64-bit lane, so
// the words stay in such lanes through all ten rounds: the low word is the product itself (multiplication ignores the upper
// half), the high word the product shuffled down, and nothing is blended until the end. And both Philox and Box-Muller are
// long chains of dependent instructions: four vectors go through them side by side, which fills the pipelines.
//
// Counters are dealt to the lanes so that, of the four normals of each, transposing within 128 bits brings all into the order
// of the elements. The deal is a table in memory: as a loop over lanes it cost 2 us in each call.
#pragma once
#include "noise.h"
#include "simd.h"

namespace fastdiff::FASTDIFF_ISA {

// Four vectors that go through a computation side by side.
template <class V>
struct Batch {
  V part[4];
};

template <class R, class V, class F>
FASTDIFF_INLINE Batch<R> each(const Batch<V>& a, F&& f) {
  return {f(a.part[0]), f(a.part[1]), f(a.part[2]), f(a.part[3])};
}
template <class R, class V, class W, class F>
FASTDIFF_INLINE Batch<R> each(const Batch<V>& a, const Batch<W>& b, F&& f) {
  return {f(a.part[0], b.part[0]), f(a.part[1], b.part[1]), f(a.part[2], b.part[2]), f(a.part[3], b.part[3])};
}

#define FASTDIFF_LIFT(op)                                                                  \
  template <class V>                                                                       \
  FASTDIFF_INLINE Batch<V> operator op(const Batch<V>& a, const Batch<V>& b) {             \
    return each<V>(a, b, [](V x, V y) { return x op y; });                                 \
  }                                                                                        \
  template <class V>                                                                       \
  FASTDIFF_INLINE Batch<V> operator op(const Batch<V>& a, std::type_identity_t<Element<V>> b) { \
    return each<V>(a, [=](V x) { return x op b; });                                        \
  }
FASTDIFF_LIFT(+)
FASTDIFF_LIFT(-)
FASTDIFF_LIFT(*)
FASTDIFF_LIFT(&)
FASTDIFF_LIFT(^)
FASTDIFF_LIFT(>>)
#undef FASTDIFF_LIFT

template <class To> struct PartOf;
template <class V> struct PartOf<Batch<V>> { using type = V; };
template <class To, class V>
FASTDIFF_INLINE To bits_as(const Batch<V>& a) {
  using R = typename PartOf<To>::type;
  return each<R>(a, [](V v) { return bits_as<R>(v); });
}

using FloatBatch = Batch<Floats>;
using WordBatch = Batch<Words>;
using Longs = Vec<uint64_t>;
using LongBatch = Batch<Longs>;  // words in the low halves of 64-bit lanes; the upper halves hold anything

FASTDIFF_INLINE FloatBatch add(const FloatBatch& a, const FloatBatch& b) { return a + b; }
FASTDIFF_INLINE FloatBatch add(const FloatBatch& a, float b) { return a + b; }
FASTDIFF_INLINE FloatBatch mul(const FloatBatch& a, const FloatBatch& b) { return a * b; }
FASTDIFF_INLINE FloatBatch mul(const FloatBatch& a, float b) { return a * b; }

template <class F, class V>
FASTDIFF_INLINE FloatBatch to_float(const Batch<V>& a) {
  return each<Floats>(a, [](V v) { return __builtin_convertvector(v, Floats); });
}

FASTDIFF_INLINE FloatBatch choose(const WordBatch& condition, const FloatBatch& yes, const FloatBatch& no) {
  FloatBatch out;
  for (int i = 0; i < 4; ++i) out.part[i] = condition.part[i] != 0u ? yes.part[i] : no.part[i];
  return out;
}

// One instruction on each width of x86 register.
#if defined(__AVX512F__)
#define FASTDIFF_MM(name) _mm512_##name
using FloatRegister = __m512;
using DoubleRegister = __m512d;
using IntRegister = __m512i;
#elif defined(__AVX2__)
#define FASTDIFF_MM(name) _mm256_##name
using FloatRegister = __m256;
using DoubleRegister = __m256d;
using IntRegister = __m256i;
#elif defined(__SSE2__)
#define FASTDIFF_MM(name) _mm_##name
using FloatRegister = __m128;
using DoubleRegister = __m128d;
using IntRegister = __m128i;
#endif

FASTDIFF_INLINE FloatBatch square_root(const FloatBatch& a) {
  return each<Floats>(a, [](Floats v) {
#ifdef FASTDIFF_MM
    return bits_as<Floats>(FASTDIFF_MM(sqrt_ps)(bits_as<FloatRegister>(v)));
#else
    return map_lanes(v, [](float x) { return __builtin_sqrtf(x); });
#endif
  });
}

FASTDIFF_INLINE Longs multiply_low_words(Longs a, uint32_t b) {
#ifdef FASTDIFF_MM
  return bits_as<Longs>(FASTDIFF_MM(mul_epu32)(bits_as<IntRegister>(a), bits_as<IntRegister>(splat<Longs>(b))));
#else
  return (a & 0xFFFFFFFFu) * uint64_t{b};
#endif
}

FASTDIFF_INLINE LongBatch high_words(const LongBatch& a) {
  return each<Longs>(a, [](Longs v) {
#if defined(__AVX512F__)
    return bits_as<Longs>(_mm512_shuffle_epi32(bits_as<__m512i>(v), static_cast<_MM_PERM_ENUM>(0xF5)));
#elif defined(FASTDIFF_MM)  // shifts and multiplications share pipelines, shuffles do not
    return bits_as<Longs>(FASTDIFF_MM(shuffle_epi32)(bits_as<IntRegister>(v), 0xF5));
#else
    return v >> 32;
#endif
  });
}

FASTDIFF_INLINE void high_low(const LongBatch& a, uint32_t b, LongBatch& high, LongBatch& low) {
  low = each<Longs>(a, [=](Longs v) { return multiply_low_words(v, b); });
  high = high_words(low);
}

FASTDIFF_INLINE void high_low(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  const uint64_t product = uint64_t{a} * b;
  high = static_cast<uint32_t>(product >> 32), low = static_cast<uint32_t>(product);
}

// Each 128 bits of four vectors as a 4x4 matrix, transposed.
FASTDIFF_INLINE FloatBatch transpose_quads(const FloatBatch& a) {
#ifdef FASTDIFF_MM
  const auto wide = [](FloatRegister v) { return bits_as<DoubleRegister>(v); };
  const auto floats = [](DoubleRegister v) { return bits_as<Floats>(v); };
  const auto [v0, v1, v2, v3] = each<FloatRegister>(a, [](Floats v) { return bits_as<FloatRegister>(v); }).part;
  const auto low01 = wide(FASTDIFF_MM(unpacklo_ps)(v0, v1)), high01 = wide(FASTDIFF_MM(unpackhi_ps)(v0, v1));
  const auto low23 = wide(FASTDIFF_MM(unpacklo_ps)(v2, v3)), high23 = wide(FASTDIFF_MM(unpackhi_ps)(v2, v3));
  return {floats(FASTDIFF_MM(unpacklo_pd)(low01, low23)), floats(FASTDIFF_MM(unpackhi_pd)(low01, low23)),
          floats(FASTDIFF_MM(unpacklo_pd)(high01, high23)), floats(FASTDIFF_MM(unpackhi_pd)(high01, high23))};
#else
  FloatBatch out;
  for (int i = 0; i < kLanesOf<float>; ++i)
    for (int k = 0; k < 4; ++k) out.part[i % 4][i / 4 * 4 + k] = a.part[k][i];
  return out;
#endif
}

}  // namespace fastdiff::FASTDIFF_ISA

#include "philox.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int kVectors = 8;                              // of normals, made at a time: two groups of counters
constexpr int64_t kNormals = kVectors * kLanesOf<float>;

// Which counter each lane takes, from the first on: of each group of kLanes, those in even lanes, then those in odd ones.
struct Deal {
  static constexpr int kLanes = kLanesOf<float>;
  uint64_t counter[2 * kLanes] = {};
  constexpr Deal() {
    for (int group = 0; group < 2; ++group)
      for (int lane = 0; lane < kLanes; ++lane)
        counter[group * kLanes + lane % 2 * (kLanes / 2) + lane / 2] = group * kLanes + lane % 4 * (kLanes / 4) + lane / 4;
  }
};
constexpr Deal kDeal;

// The normals of elements [4 first, 4 first + kNormals) of one image, in order.
FASTDIFF_INLINE void normals(const Draw& draw, int64_t first, Floats (&out)[kVectors]) {
  LongBatch dealt;
  std::memcpy(&dealt, kDeal.counter, sizeof(dealt));
  const LongBatch low = dealt + static_cast<uint64_t>(first), zero{};
  const auto w = philox4x32(Counter<LongBatch>{low, high_words(low), zero ^ draw.step, zero ^ draw.purpose},
                            static_cast<uint32_t>(draw.seed), static_cast<uint32_t>(draw.seed >> 32));

  const auto joined = [](const LongBatch& v, int group) {
    return bits_as<Words>((v.part[2 * group] & 0xFFFFFFFFu) | (v.part[2 * group + 1] << 32));
  };
  FloatBatch even, odd;  // the first and second normal of each pair of words
  box_muller<FloatBatch, Batch<Ints>>(WordBatch{joined(w.c0, 0), joined(w.c0, 1), joined(w.c2, 0), joined(w.c2, 1)},
                                      WordBatch{joined(w.c1, 0), joined(w.c1, 1), joined(w.c3, 0), joined(w.c3, 1)}, even, odd);
  for (int group = 0; group < 2; ++group) {
    const FloatBatch quads{even.part[group], odd.part[group], even.part[2 + group], odd.part[2 + group]};
    const FloatBatch ordered = transpose_quads(quads);
    for (int k = 0; k < 4; ++k) out[4 * group + k] = ordered.part[k];
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
