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
#define FASTDIFF_UNROLL _Pragma("GCC unroll 16")  // the loop that follows, in full
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

FASTDIFF_INLINE Floats widen(Halves h, bf16) { return bits_as<Floats>(__builtin_convertvector(h, Words) << 16); }

FASTDIFF_INLINE Halves narrow(Floats v, bf16) {  // round to nearest even, NaN stays NaN
  const Words u = bits_as<Words>(v);
  const Words rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
  return __builtin_convertvector(v == v ? rounded : (u >> 16) | 0x40, Halves);
}

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
  T buffer[kLanesOf<Compute<T>>] = {};
  std::memcpy(static_cast<void*>(buffer), p, count * sizeof(T));
  return load(buffer);
}

template <class T>
FASTDIFF_INLINE void store(T* p, Vec<Compute<T>> v, int64_t count) {
  T buffer[kLanesOf<Compute<T>>];
  store(buffer, v);
  std::memcpy(static_cast<void*>(p), buffer, count * sizeof(T));
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

template <class V, class F>
FASTDIFF_INLINE V map_lanes(V v, F&& f) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = f(v[i]);
  return v;
}

template <class V>
FASTDIFF_INLINE double sum_lanes(V v) {
  double total = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) total += v[i];
  return total;
}

// exp by Cephes' expf: argument reduced to [-ln2/2, ln2/2], degree-5 polynomial; within 2 ulp. NaN stays NaN.
FASTDIFF_INLINE Floats exponential(Floats x) {
  const Floats top = splat<Floats>(89.0f), bottom = splat<Floats>(-87.0f);  // 89 overflows to infinity below
  x = x > top ? top : x;
  x = x < bottom ? bottom : x;
  const Floats shifter = splat<Floats>(0x1.8p23f);  // adding and subtracting it rounds to the nearest integer
  const Floats n = madd(x, splat<Floats>(1.44269504f), shifter) - shifter;
  Floats r = madd(n, splat<Floats>(-0.693359375f), x);
  r = madd(n, splat<Floats>(2.12194440e-4f), r);
  constexpr float kExp[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
  Floats p = splat<Floats>(1.9875691500e-4f);
  for (float c : kExp) p = madd(p, r, splat<Floats>(c));
  p = madd(p, r * r, r + 1.0f);
  const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * bits_as<Floats>(power);
}
FASTDIFF_INLINE Vec<double> exponential(Vec<double> x) {
  return map_lanes(x, [](double v) { return __builtin_exp(v); });
}

template <class V>
FASTDIFF_INLINE V error_function(V x) {
  return map_lanes(x, [](Element<V> v) {
    if constexpr (sizeof(v) == 4) return __builtin_erff(v);
    else return __builtin_erf(v);
  });
}

}  // namespace fastdiff::FASTDIFF_ISA
