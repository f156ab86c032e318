// What attention's forward and backward share on the CPU.
#pragma once
#include "operands.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int64_t kChunk = 64;  // keys whose exponentials are held at a time, a multiple of kTileStep
constexpr double kLog2E = 1.4426950408889634074;

// f.operator()<T>(). To the instruction set with products of bf16 pairs nothing else is sent.
template <class F>
void with_operands(DType dtype, F&& f) {
#if defined(__AVX512BF16__)
  if (dtype == DType::bf16) f.template operator()<bf16>();
#else
  with_dtype(dtype, f);
#endif
}

template <class T>
const T* rows_of(const Sequence& s, int64_t heads, int64_t head) {
  return static_cast<const T*>(s.data) + head / heads * s.stride_n + head % heads * s.stride_h;
}

// Rows far apart are not fetched ahead by the machine itself.
template <class T>
void prefetch_rows(const T* x, int64_t stride, int64_t rows, int64_t d) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < d; i += kLine) __builtin_prefetch(x + row * stride + i);
}

enum class Masking { none, excluding, adding };

// f.operator()<kMasking>()
template <class F>
void with_masking(const AttentionMask& m, F&& f) {
  if (!m.data) f.template operator()<Masking::none>();
  else if (m.dtype == DType::b8) f.template operator()<Masking::excluding>();
  else f.template operator()<Masking::adding>();
}

// f.operator()<kVectors>(), up to kMostVectors
template <class F>
void with_vectors(int64_t vectors, F&& f) {
  switch (vectors) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<kMostVectors == 4 ? 3 : 1>();
    default: return f.template operator()<kMostVectors>();
  }
}

// The mask of some queries and keys as what is added to logits (a boolean one is 0 or -inf): [keys, width], queries along a
// row, or [queries, width], keys along it.
template <class S>
void load_mask(const AttentionArgs& a, int64_t head, int64_t query, int64_t queries, int64_t key, int64_t keys, bool by_queries,
               int64_t width, S* out) {
  const AttentionMask& m = a.mask;
  const int64_t at = head / a.heads * m.stride_n + head % a.heads * m.stride_h + query * m.stride_query + key * m.stride_key;
  const int64_t rows = by_queries ? keys : queries, row = by_queries ? m.stride_key : m.stride_query;
  const int64_t lanes = by_queries ? queries : keys, lane = by_queries ? m.stride_query : m.stride_key;
  const auto fill = [&](auto* data, auto&& value) {
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t l = 0; l < width; ++l) out[j * width + l] = l < lanes ? value(data + at + j * row + l * lane) : S{0};
  };
  if (m.dtype == DType::b8)
    fill(static_cast<const uint8_t*>(m.data), [](auto* p) { return *p ? S{0} : -static_cast<S>(__builtin_inf()); });
  else
    with_elements<S>(m.data, m.dtype, [&](auto* data) { fill(data, [](auto* p) { return load(p, 1)[0]; }); });
}

// A logit less an offset, of a product q k.
template <Masking kMasking, class V, class S>
FASTDIFF_INLINE V logit(V product, V scale, [[maybe_unused]] const S* mask, V offset) {
  if constexpr (kMasking == Masking::none) return madd(product, scale, -offset);
  else {
    const V m = vector_at(mask);
    if constexpr (kMasking == Masking::adding) return madd(product, scale, m) - offset;
    else return m < 0 ? m : madd(product, scale, -offset);
  }
}

template <class V>
FASTDIFF_INLINE V exponential(V x) {
  return exponential2(x * static_cast<Element<V>>(kLog2E));
}

}  // namespace fastdiff::FASTDIFF_ISA
