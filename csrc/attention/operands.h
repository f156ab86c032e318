// The operands of attention's products, and the product of a tile. A product adds up outer products: numbers of one operand,
// each spread over a vector, times vectors of the other. Where the machine multiplies pairs of bf16 numbers, an element is two
// of them that follow each other along the sum; elsewhere it is one number in the compute type.
#pragma once
#include "../common/simd.h"

#include <utility>

#include "../common/bf16_dot.h"
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "attention.h"

namespace fastdiff::FASTDIFF_ISA {

template <class T>
struct Operand {
  using Element = Compute<T>;
};
#if defined(__AVX512BF16__)
template <>
struct Operand<bf16> {
  using Element = uint32_t;
};
#endif
template <class T> using OperandElement = typename Operand<T>::Element;
template <class E> constexpr int kTerms = std::is_integral_v<E> ? 2 : 1;                  // of the sum, in one element
template <class E> using Sum = std::conditional_t<std::is_integral_v<E>, float, E>;  // what products are added in

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Vectors side by side in a tile: as many as leave registers for its rows.
constexpr int kMostVectors = kVectorBytes == 64 ? 4 : 2;
template <int kVectors> constexpr int kTileRows = kVectors <= kMostVectors / 2 ? 8 : 4;
constexpr int64_t kRun = 64;       // steps of a sum
constexpr int64_t kTileStep = 8;  // a multiple of every tile's rows

// Scratch whose rows begin at addresses aligned to vectors.
template <class S>
class AlignedScratch {
 public:
  explicit AlignedScratch(int64_t size) : bytes_(size * sizeof(S) + kVectorBytes) {
    const auto at = reinterpret_cast<uintptr_t>(bytes_.data());
    data_ = reinterpret_cast<S*>(round_up(static_cast<int64_t>(at), kVectorBytes));
  }
  S* data() const { return data_; }

 private:
  Scratch<unsigned char> bytes_;
  S* data_;
};

template <class E>
FASTDIFF_INLINE Vec<E> vector_at(const E* p) {
  Vec<E> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
template <class V, class E>
FASTDIFF_INLINE void put_vector(E* p, const V& v) {
  std::memcpy(p, &v, sizeof(v));
}

// splat() adds to zeros, an instruction that the compiler must keep for the sake of -0; here it would be one of few.
template <class V>
FASTDIFF_INLINE V spread(Element<V> value) {
  return value - V{};
}
FASTDIFF_INLINE Vec<float> add_product(Vec<float> sum, float a, Vec<float> b) { return madd(spread<Vec<float>>(a), b, sum); }
FASTDIFF_INLINE Vec<double> add_product(Vec<double> sum, double a, Vec<double> b) {
  return madd(spread<Vec<double>>(a), b, sum);
}
FASTDIFF_INLINE Vec<float> add_product(Vec<float> sum, uint32_t a, Words b) { return dot_pairs(sum, spread<Words>(a), b); }

// GCC would load a vector again for each of its uses, and loads would then be what the product waits for.
template <class V>
FASTDIFF_INLINE void keep_in_register([[maybe_unused]] V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
}

// tile[r][c] = sum over steps i of a[r * a_row + i * a_step] * the c-th vector at b + i * b_step
// Runs of steps are added up apart, for their rounding. Not inlined: what the caller keeps in registers around it would leave
// too few for the tile.
template <int kRows, int kVectors, class V, class E>
__attribute__((noinline)) void multiply(V (&out)[kRows][kVectors], const E* a, int64_t a_row, int64_t a_step, const E* b,
                              int64_t b_step, int64_t steps) {
  for (int64_t done = 0; done == 0 || done < steps; done += kRun) {
    V tile[kRows][kVectors] = {};
    for (int64_t i = least(kRun, steps - done); i > 0; --i, a += a_step, b += b_step) {
      Vec<E> v[kVectors];
      FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) v[c] = vector_at(b + c * kLanesOf<E>), keep_in_register(v[c]);
      FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
        const E value = a[r * a_row];
        FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) tile[r][c] = add_product(tile[r][c], value, v[c]);
      }
    }
    FASTDIFF_UNROLL for (int r = 0; r < kRows; ++r) {
      FASTDIFF_UNROLL for (int c = 0; c < kVectors; ++c) out[r][c] = done == 0 ? tile[r][c] : out[r][c] + tile[r][c];
    }
  }
}

// ---- from tensors to operands ----

// Numbers [i, i + lanes * terms) of a row of d as a vector of elements, zeros past the end.
template <class T>
FASTDIFF_INLINE Vec<OperandElement<T>> row_elements(const T* row, int64_t i, int64_t d) {
#if defined(__AVX512BF16__)
  if constexpr (kTerms<OperandElement<T>> == 2) {
    const uint32_t lanes = d - i >= 32 ? ~0u : (1u << (d - i)) - 1;
    return bits_as<Words>(_mm512_maskz_loadu_epi16(lanes, row + i));
  } else
#endif
    return load_up_to(row + i, least(d - i, kLanesOf<Compute<T>>));
}

// [rows, d] to [padded, d / terms], zeros below.
template <class T>
void pack_rows(const T* x, int64_t stride, int64_t rows, int64_t padded, int64_t d, OperandElement<T>* out) {
  using E = OperandElement<T>;
  const int64_t width = round_up(d, kTerms<E>) / kTerms<E>;
  for (int64_t row = 0; row < padded; ++row)
    for_vectors<kLanesOf<E>>(width, [&](int64_t i, int64_t n) {
      Vec<E> v{};
      if (row < rows) v = row_elements(x + row * stride, i * kTerms<E>, d);
      std::memcpy(out + row * width + i, &v, n * sizeof(E));
    });
}

// [rows, d] to [padded / terms, width], zeros below and to the right: what a sum over rows takes.
template <class T>
void pack_row_terms(const T* x, int64_t stride, int64_t rows, int64_t padded, int64_t d, int64_t width,
                    OperandElement<T>* out) {
  using E = OperandElement<T>;
  using V = Vec<Compute<T>>;
  const auto numbers = [&](int64_t row, int64_t i) {
    return row < rows && i < d ? load_up_to(x + row * stride + i, least(d - i, kLanesOf<Compute<T>>)) : V{};
  };
  for (int64_t row = 0; row < padded; row += kTerms<E>)
    for_vectors<kLanesOf<E>>(width, [&](int64_t i, int64_t n) {
      const V first = numbers(row, i);
      E* to = out + row / kTerms<E> * width + i;
      if constexpr (kTerms<E> == 1) std::memcpy(to, &first, n * sizeof(E));
      else {
        const Words both = (bits_as<Words>(first) >> 16) | bits_as<Words>(numbers(row + 1, i));
        std::memcpy(to, &both, n * sizeof(E));
      }
    });
}

// The lower or upper halves of a and b, lane by lane in turn.
template <int kHigh, class V, int... i>
FASTDIFF_INLINE V interleave(V a, V b, std::integer_sequence<int, i...>) {
  constexpr int kLanes = sizeof...(i);
  return __builtin_shufflevector(a, b, (i / 2 + kHigh * kLanes / 2 + i % 2 * kLanes)...);
}

template <class V>
FASTDIFF_INLINE void transpose(V (&v)[sizeof(V) / sizeof(Element<V>)]) {
  constexpr int kLanes = sizeof(V) / sizeof(Element<V>);
  FASTDIFF_UNROLL for (int stage = 1; stage < kLanes; stage *= 2) {
    V next[kLanes];
    FASTDIFF_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(v[i], v[i + kLanes / 2], std::make_integer_sequence<int, kLanes>{});
      next[2 * i + 1] = interleave<1>(v[i], v[i + kLanes / 2], std::make_integer_sequence<int, kLanes>{});
    }
    FASTDIFF_UNROLL for (int i = 0; i < kLanes; ++i) v[i] = next[i];
  }
}

// [rows, d] to [d / terms, width], rows along vectors, zeros to the right.
template <class T>
void pack_columns(const T* x, int64_t stride, int64_t rows, int64_t d, int64_t width, OperandElement<T>* out) {
  using E = OperandElement<T>;
  constexpr int kLanes = kLanesOf<E>;
  for (int64_t row = 0; row < width; row += kLanes)
    for_vectors<kLanes>(round_up(d, kTerms<E>) / kTerms<E>, [&](int64_t i, int64_t n) {
      Vec<E> block[kLanes];
      for (int k = 0; k < kLanes; ++k)
        block[k] = row + k < rows ? row_elements(x + (row + k) * stride, i * kTerms<E>, d) : Vec<E>{};
      transpose(block);
      for (int64_t k = 0; k < n; ++k) put_vector(out + (i + k) * width + row, block[k]);
    });
}

// [d, width] to [rows, d]: pack_columns the other way.
template <class T>
void unpack_columns(const Compute<T>* x, int64_t rows, int64_t d, int64_t width, T* out, int64_t stride) {
  using S = Compute<T>;
  constexpr int kLanes = kLanesOf<S>;
  for (int64_t row = 0; row < rows; row += kLanes)
    for_vectors<kLanes>(d, [&](int64_t i, int64_t n) {
      Vec<S> block[kLanes];
      for (int k = 0; k < kLanes; ++k) block[k] = k < n ? vector_at(x + (i + k) * width + row) : Vec<S>{};
      transpose(block);
      for (int k = 0; k < kLanes && row + k < rows; ++k) store_up_to(out + (row + k) * stride + i, block[k], n);
    });
}

FASTDIFF_INLINE Vec<float> add_square(Vec<float> sum, Vec<float> v) { return madd(v, v, sum); }
FASTDIFF_INLINE Vec<double> add_square(Vec<double> sum, Vec<double> v) { return madd(v, v, sum); }
FASTDIFF_INLINE Vec<float> add_square(Vec<float> sum, Words v) { return dot_pairs(sum, v, v); }

// rows[0], and rows[next] where an element has two terms, as an element of the next product.
template <class E>
FASTDIFF_INLINE Vec<E> as_operand(const Vec<Sum<E>>* rows, [[maybe_unused]] int next) {
  if constexpr (kTerms<E> == 1) return rows[0];
#if defined(__AVX512BF16__)
  else {
    constexpr uint16_t kInTurn[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i halves = bits_as<__m512i>(_mm512_cvtne2ps_pbh(bits_as<__m512>(rows[next]), bits_as<__m512>(rows[0])));
    return bits_as<Words>(_mm512_permutexvar_epi16(_mm512_loadu_si512(kInTurn), halves));
  }
#endif
}
// sum + both terms of each element
FASTDIFF_INLINE Vec<float> add_terms(Vec<float> sum, Words v) { return dot_pairs(sum, v, splat<Words>(0x3F803F80)); }

}  // namespace fastdiff::FASTDIFF_ISA
