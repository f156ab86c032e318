// From a dtype and an activation known at run time to template arguments. On CUDA, cuda_device.h comes first.
#pragma once
#ifndef FASTDIFF_INLINE
#include "simd.h"
#endif

namespace fastdiff::FASTDIFF_ISA {

// f.operator()<T>()
template <class F>
inline void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f.template operator()<double>();
    case DType::f32: return f.template operator()<float>();
    case DType::bf16: return f.template operator()<bf16>();
    default: return f.template operator()<f16>();
  }
}

// f.operator()<act>()
template <class F>
inline void with_activation(Act act, F&& f) {
  switch (act) {
    case Act::none: return f.template operator()<Act::none>();
    case Act::silu: return f.template operator()<Act::silu>();
    case Act::relu: return f.template operator()<Act::relu>();
    case Act::leaky_relu: return f.template operator()<Act::leaky_relu>();
    case Act::gelu: return f.template operator()<Act::gelu>();
  }
}

// f.operator()<T, act>()
template <class F>
inline void with_types(DType dtype, Act act, F&& f) {
  with_activation(act, [&]<Act kAct>() { with_dtype(dtype, [&]<class T>() { f.template operator()<T, kAct>(); }); });
}

}  // namespace fastdiff::FASTDIFF_ISA
