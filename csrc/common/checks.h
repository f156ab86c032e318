// Checks that several bind.cpp make before a kernel reads memory. Each names the op and the argument.
#pragma once
#include <algorithm>

#include "../torch_abi.h"

namespace fastdiff {

inline void check_on_device_of(const Tensor& x, const Tensor& v, const char* op, const char* name) {
  FASTDIFF_CHECK(v.device_type() == x.device_type() && v.device_index() == x.device_index(), op, ": ", name,
                 " must be on the images' device");
}

inline void check_alike(const Tensor& x, const Tensor& v, const char* op, const char* name) {
  const bool same_shape = v.dim() == x.dim() && std::equal(x.sizes(), x.sizes() + x.dim(), v.sizes());
  FASTDIFF_CHECK(same_shape && v.dtype() == x.dtype(), op, ": ", name, " must have the images' shape and dtype");
  check_on_device_of(x, v, op, name);
}

}  // namespace fastdiff
