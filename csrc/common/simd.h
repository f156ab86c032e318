// Vectors for CPU kernels: as wide as the instruction set that this file is being compiled for (FASTDIFF_ISA).
//
// Vec<float> and Vec<double> are GCC/Clang vector types, so + - * / work lane by lane on every machine; what the compilers
// do not do well by themselves (half precision, fma, square root) is below. Nothing here contracts: a * b + c is two
// roundings, madd(a, b, c) one where the machine has it.
//
// No STL in files compiled for an instruction set: the linker keeps one copy of a shared inline function, and it might be
// the one for a machine that this is not.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "numeric.h"
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define FASTDIFF_INLINE inline __attribute__((always_inline))
#define FASTDIFF_UNROLL _Pragma("GCC unroll 16")  // unrolls the loop that follows
#define FASTDIFF_INLINE_LAMBDA __attribute__((always_inline))  // after its parameters

namespace fastdiff::FASTDIFF_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class T> struct ComputeType { using type = float; };
template <> struct ComputeType<double> { using type = double; };
template <class T> using Compute = typename ComputeType<T>::type;

template <class E, int kLanes> struct VectorOf { typedef E type __attribute__((vector_size(kLanes * sizeof(E)))); };
template <class E> constexpr int kLanesOf = kVectorBytes / sizeof(E);
template <class E> using Vec = typename VectorOf<E, kLanesOf<E>>::type;
using Floats = Vec<float>;
using Ints = Vec<int32_t>;
using Words = Vec<uint32_t>;
using Halves = VectorOf<uint16_t, kLanesOf<float>>::type;

template <class To, class From>
FASTDIFF_INLINE To bits_as(const From& v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof(To));
  return out;
}

template <class V> using Element = std::remove_cvref_t<decltype(V{}[0])>;
template <class V> FASTDIFF_INLINE V splat(Element<V> value) { return V{} + value; }

// ---- half precision ----

// bf16 by integers: to nearest even, NaN stays NaN. The machine's own conversion (AVX512_BF16) flushes subnormals.
#if defined(__AVX512F__)
FASTDIFF_INLINE Floats widen(Halves h, bf16) {
  return bits_as<Floats>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits_as<__m256i>(h)), 16));
}
FASTDIFF_INLINE Halves narrow(Floats v, bf16) {
  constexpr int kNanToDefault = 0x33;  // so that no NaN has a mantissa of ones, which rounding would carry out of
  const __m512i u = _mm512_castps_si512(
      _mm512_fixupimm_ps(bits_as<__m512>(v), bits_as<__m512>(v), _mm512_set1_epi32(kNanToDefault), 0));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
  const __m512i upper = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                         31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return bits_as<Halves>(_mm512_castsi512_si256(_mm512_permutexvar_epi16(upper, rounded)));
}
#else
FASTDIFF_INLINE Floats widen(Halves h, bf16) { return bits_as<Floats>(__builtin_convertvector(h, Words) << 16); }
FASTDIFF_INLINE Halves narrow(Floats v, bf16) {
  const Words u = bits_as<Words>(v);
  const Words rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
  const Words kept = v == v ? rounded : (u >> 16) | 0x40;
#if defined(__AVX2__)  // both 128-bit halves are packed with themselves, then joined
  const __m256i packed = _mm256_packus_epi32(bits_as<__m256i>(kept), bits_as<__m256i>(kept));
  return bits_as<Halves>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  return __builtin_convertvector(kept, Halves);
#endif
}
#endif

#if defined(__AVX512F__)
FASTDIFF_INLINE Floats widen(Halves h, f16) { return bits_as<Floats>(_mm512_cvtph_ps(bits_as<__m256i>(h))); }
FASTDIFF_INLINE Halves narrow(Floats v, f16) {
  return bits_as<Halves>(_mm512_cvtps_ph(bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
FASTDIFF_INLINE Floats widen(Halves h, f16) { return bits_as<Floats>(_mm256_cvtph_ps(bits_as<__m128i>(h))); }
FASTDIFF_INLINE Halves narrow(Floats v, f16) {
  return bits_as<Halves>(_mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
FASTDIFF_INLINE Floats widen(Halves h, f16) {  // the exponent is rebiased by a multiplication, which also normalises subnormals
  const Words w = __builtin_convertvector(h, Words);
  const Floats magnitude = bits_as<Floats>((w & 0x7FFF) << 13) * 0x1p112f;
  const Words special = (w & 0x7C00) == 0x7C00 ? Words{} + 0x7F800000 : Words{};
  return bits_as<Floats>(bits_as<Words>(magnitude) | special | ((w & 0x8000) << 16));
}
FASTDIFF_INLINE Halves narrow(Floats v, f16) {  // adding a number whose last place is the half's rounds to nearest even
  const Words u = bits_as<Words>(v), sign = (u >> 16) & 0x8000, magnitude = u & 0x7FFFFFFF;
  const Words normal = (magnitude + (0xFFF - (112u << 23)) + ((magnitude >> 13) & 1)) >> 13;
  const Words subnormal = bits_as<Words>(bits_as<Floats>(magnitude) + 0.5f) - 0x3F000000;
  const Words special = magnitude > 0x7F800000 ? Words{} + 0x7E00 : Words{} + 0x7C00;
  const Words finite = magnitude < 0x38800000 ? subnormal : normal;
  return __builtin_convertvector((magnitude >= 0x477FF000 ? special : finite) | sign, Halves);
}
#endif

// ---- memory: kLanesOf<Compute<T>> elements at a time, or the first `count` of them ----

template <class T>
FASTDIFF_INLINE Vec<Compute<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    Halves h;
    std::memcpy(&h, p, sizeof(h));
    return widen(h, T{});
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
}

template <class T>
FASTDIFF_INLINE void store(T* p, Vec<Compute<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const Halves h = narrow(v, T{});
    std::memcpy(p, &h, sizeof(h));
  } else {
    std::memcpy(p, &v, sizeof(v));
  }
}

template <class T>
FASTDIFF_INLINE Vec<Compute<T>> load(const T* p, int64_t count) {  // lanes past `count` are zero
#if defined(__AVX512F__)
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) return widen(bits_as<Halves>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes), p)), T{});
  else if constexpr (sizeof(T) == 4) return bits_as<Vec<T>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p));
  else return bits_as<Vec<T>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(lanes), p));
#else
  T buffer[kLanesOf<Compute<T>>] = {};
  std::memcpy(static_cast<void*>(buffer), p, count * sizeof(T));
  return load(buffer);
#endif
}

template <class T>
FASTDIFF_INLINE void store(T* p, Vec<Compute<T>> v, int64_t count) {
#if defined(__AVX512F__)
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(lanes), bits_as<__m256i>(narrow(v, T{})));
  else if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, static_cast<__mmask16>(lanes), bits_as<__m512>(v));
  else _mm512_mask_storeu_pd(p, static_cast<__mmask8>(lanes), bits_as<__m512d>(v));
#else
  T buffer[kLanesOf<Compute<T>>];
  store(buffer, v);
  std::memcpy(static_cast<void*>(p), buffer, count * sizeof(T));
#endif
}

// body(i, n) for each full vector of [0, size), n = kLanes, then for the ragged end. n is a constant in the main loop.
template <int kLanes, class Body>
FASTDIFF_INLINE void for_vectors(int64_t size, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, int64_t{kLanes});
  if (i < size) body(i, size - i);
}

template <class T>
FASTDIFF_INLINE Vec<Compute<T>> load_up_to(const T* p, int64_t count) {
  return count == kLanesOf<Compute<T>> ? load(p) : load(p, count);
}
template <class T>
FASTDIFF_INLINE void store_up_to(T* p, Vec<Compute<T>> v, int64_t count) {
  count == kLanesOf<Compute<T>> ? store(p, v) : store(p, v, count);
}

// A whole vector to an address aligned to it, past the caches: they would first read what is about to be overwritten.
template <class T>
FASTDIFF_INLINE void stream(T* p, Vec<Compute<T>> v) {
#ifdef __SSE2__
  const auto put = [&](const auto& bits) FASTDIFF_INLINE_LAMBDA {
    if constexpr (sizeof(bits) == 8) std::memcpy(p, &bits, sizeof(bits));
    if constexpr (sizeof(bits) == 16) _mm_stream_si128(reinterpret_cast<__m128i*>(p), bits_as<__m128i>(bits));
#ifdef __AVX__
    if constexpr (sizeof(bits) == 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits_as<__m256i>(bits));
#endif
#ifdef __AVX512F__
    if constexpr (sizeof(bits) == 64) _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits_as<__m512i>(bits));
#endif
  };
  if constexpr (sizeof(T) == 2) put(narrow(v, T{}));
  else put(v);
#else
  store(p, v);
#endif
}

// Between streaming and another thread's reading.
FASTDIFF_INLINE void end_streams() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

template <class T>
FASTDIFF_INLINE void write_up_to(T* p, Vec<Compute<T>> v, int64_t count, bool past_caches) {
  past_caches && count == kLanesOf<Compute<T>> ? stream(p, v) : store_up_to(p, v, count);
}

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The first `count` lanes of v, the others zero: for sums whose terms do not vanish by themselves past the end.
template <class V>
FASTDIFF_INLINE V keep_up_to(V v, int64_t count) {
  constexpr Element<V> kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  V lane;
  if (count == sizeof(V) / sizeof(v[0])) return v;
  std::memcpy(&lane, kLane, sizeof(V));
  return lane < static_cast<Element<V>>(count) ? v : V{};
}

// Memory for one task, not initialised.
template <class S>
class Scratch {
 public:
  explicit Scratch(int64_t size) : data_(new S[size]) {}
  ~Scratch() { delete[] data_; }
  Scratch(const Scratch&) = delete;
  S* data() const { return data_; }

 private:
  S* data_;
};

// ---- arithmetic ----

template <class V>
FASTDIFF_INLINE V madd(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4) return bits_as<V>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(c)));
  else return bits_as<V>(_mm512_fmadd_pd(bits_as<__m512d>(a), bits_as<__m512d>(b), bits_as<__m512d>(c)));
#elif defined(__FMA__)
  if constexpr (sizeof(a[0]) == 4) return bits_as<V>(_mm256_fmadd_ps(bits_as<__m256>(a), bits_as<__m256>(b), bits_as<__m256>(c)));
  else return bits_as<V>(_mm256_fmadd_pd(bits_as<__m256d>(a), bits_as<__m256d>(b), bits_as<__m256d>(c)));
#else
  return a * b + c;
#endif
}

template <class V>
FASTDIFF_INLINE V divide(V a, V b) {
  return a / b;
}

template <class V, class F>
FASTDIFF_INLINE V map_lanes(V v, F&& f) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = f(v[i]);
  return v;
}

// Pairwise: halves are added until one lane is left. In registers: a half that went through memory would wait for the store.
template <class V>
FASTDIFF_INLINE Element<V> sum_lanes(V v) {
  using E = Element<V>;
  if constexpr (sizeof(V) == 16) {
    if constexpr (sizeof(E) == 4) return (v[0] + v[2]) + (v[1] + v[3]);
    else return v[0] + v[1];
  } else {
    using Half = typename VectorOf<E, sizeof(V) / sizeof(E) / 2>::type;
    Half low, high;
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      low = bits_as<Half>(_mm512_castsi512_si256(bits_as<__m512i>(v)));
      high = bits_as<Half>(_mm512_extracti64x4_epi64(bits_as<__m512i>(v), 1));
      return sum_lanes(low + high);
    }
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32) {
      low = bits_as<Half>(_mm256_castsi256_si128(bits_as<__m256i>(v)));
      high = bits_as<Half>(_mm256_extracti128_si256(bits_as<__m256i>(v), 1));
    }
#endif
    return sum_lanes(low + high);
  }
}

// 2^t: t = whole + f, f in [0, 1], and a minimax polynomial of degree 6 for 2^f; within 1.1 ulp. NaN stays NaN.
FASTDIFF_INLINE Floats exponential2(Floats t) {
#if defined(__AVX512F__)
  const Floats f = bits_as<Floats>(_mm512_reduce_ps(bits_as<__m512>(t), _MM_FROUND_TO_NEG_INF));
#else
  t = t > 128 ? splat<Floats>(128) : t;  // becomes infinity below
  t = t < -126.5f ? splat<Floats>(-126.5f) : t;  // becomes zero
  const Floats shifter = splat<Floats>(0x1.8p23f);  // adding and subtracting it rounds to the nearest integer
  const Floats whole = (t - 0.5f + shifter) - shifter, f = t - whole;
#endif
  constexpr float kExp2[] = {1.2439688e-3f, 9.678841e-3f, 5.548334e-2f, 2.4022983e-1f, 6.93147e-1f, 1.0f};
  Floats p = splat<Floats>(2.1702255e-4f);
  for (float c : kExp2) p = madd(p, f, splat<Floats>(c));
#if defined(__AVX512F__)
  return bits_as<Floats>(_mm512_scalef_ps(bits_as<__m512>(p), bits_as<__m512>(t)));  // p * 2^floor(t)
#else
  const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return p * bits_as<Floats>(power);
#endif
}
FASTDIFF_INLINE Vec<double> exponential2(Vec<double> t) {
  return map_lanes(t, [](double v) { return __builtin_exp2(v); });
}

template <class V>
FASTDIFF_INLINE V error_function(V x) {
  return map_lanes(x, [](Element<V> v) {
    if constexpr (sizeof(v) == 4) return __builtin_erff(v);
    else return __builtin_erf(v);
  });
}

}  // namespace fastdiff::FASTDIFF_ISA
