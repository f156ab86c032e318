// Elements of a Matrix, and of the dense [N, C] gradient of one, for CPU kernels.
#pragma once
#include "simd.h"

namespace fastdiff::FASTDIFF_ISA {

// f(pointer) with the matrix's elements as float, bf16 or f16; for S = double they are double.
template <class S, class P, class F>
FASTDIFF_INLINE auto with_elements(P* data, DType dtype, F&& f) {
  const auto as = [&](auto type) {
    using T = std::conditional_t<std::is_const_v<P>, const decltype(type), decltype(type)>;
    return f(static_cast<T*>(data));
  };
  if constexpr (sizeof(S) == 8) return as(double{});
  else if (dtype == DType::bf16) return as(bf16{});
  else if (dtype == DType::f16) return as(f16{});
  else return as(float{});
}

// m[n, c : c + count], one vector at most; lanes past `count` are zero.
template <class S>
FASTDIFF_INLINE Vec<S> elements(const Matrix& m, int64_t n, int64_t c, int64_t count) {
  return with_elements<S>(m.data, m.dtype, [&](auto* data) {
    const auto* p = data + n * m.stride_n + c * m.stride_c;
    if (m.stride_c == 1) return load_up_to(p, count);
    Vec<S> v{};
    for (int64_t i = 0; i < count; ++i) v[i] = load(p + i * m.stride_c, 1)[0];
    return v;
  });
}

template <class S>
FASTDIFF_INLINE S element(const Matrix& m, int64_t n, int64_t c) {
  return elements<S>(m, n, c, 1)[0];
}

template <class S>
FASTDIFF_INLINE void store_elements(void* out, DType dtype, int64_t i, Vec<S> v, int64_t count) {
  with_elements<S>(out, dtype, [&](auto* data) { store_up_to(data + i, v, count); });
}

}  // namespace fastdiff::FASTDIFF_ISA
