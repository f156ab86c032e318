// Memory formats, for bind.cpp: an [N, C, ...] tensor as N images of C channels and S pixels, contiguous or channels_last.
#pragma once
#include <vector>

#include "../torch_abi.h"

namespace fastdiff {

struct Layout {
  int64_t images, channels, pixels;
  bool channels_last;
  int64_t elements() const { return images * channels * pixels; }
};

// torch's rule for the suggested memory format (c10/core/MemoryFormat.h): strides decide, and a tie is contiguous. It also
// recognises slices of channels_last tensors, whose result should stay channels_last.
inline bool suggests_channels_last(const Tensor& x) {
  const int64_t dim = x.dim();
  if (dim != 4 && dim != 5) return false;
  if (x.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t d = i == 0 ? 1 : i == dim - 1 ? 0 : dim - i;  // C, then the pixels from the last dimension on, then N
    if (x.size(d) == 0 || x.stride(d) < least) return false;
    if (d == 0 && least == x.stride(1)) return false;
    least = x.stride(d);
    if (x.size(d) > 1) least *= x.size(d);
  }
  return true;
}

inline Layout layout_of(const Tensor& x) {
  int64_t pixels = 1;
  for (int64_t i = 2; i < x.dim(); ++i) pixels *= x.size(i);
  return {x.size(0), x.size(1), pixels, suggests_channels_last(x)};
}

inline std::vector<int64_t> dense_strides(const int64_t* sizes, int64_t dim, bool channels_last) {
  std::vector<int64_t> strides(dim);
  int64_t step = 1;
  auto place = [&](int64_t d) { strides[d] = step, step *= sizes[d] > 1 ? sizes[d] : 1; };
  if (channels_last) place(1);
  for (int64_t d = dim - 1; d >= (channels_last ? 2 : 1); --d) place(d);
  place(0);
  return strides;
}

inline Tensor empty_like(const Tensor& x, bool channels_last) {
  const auto strides = dense_strides(x.sizes(), x.dim(), channels_last);
  return empty_strided(x.sizes(), strides.data(), x.dim(), x.dtype(), x);
}

// x without gaps in the given format: x itself, or a copy that `storage` keeps.
inline const Tensor& dense(const Tensor& x, bool channels_last, std::optional<Tensor>& storage) {
  const auto strides = dense_strides(x.sizes(), x.dim(), channels_last);
  bool is_dense = true;
  for (int64_t i = 0; i < x.dim(); ++i) is_dense &= x.size(i) == 1 || x.stride(i) == strides[i];
  if (is_dense || x.numel() == 0) return x;
  storage.emplace(empty_strided(x.sizes(), strides.data(), x.dim(), x.dtype(), x));
  ok(aoti_torch_copy_(storage->handle(), x.handle(), 0));
  return *storage;
}

// x in another dtype, in a copy that `storage` keeps.
inline const Tensor& converted(const Tensor& x, DType dtype, std::optional<Tensor>& storage) {
  storage.emplace(empty(std::vector<int64_t>(x.sizes(), x.sizes() + x.dim()), dtype, x));
  ok(aoti_torch_copy_(storage->handle(), x.handle(), 0));
  return *storage;
}

}  // namespace fastdiff
