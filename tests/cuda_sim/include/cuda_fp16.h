// IEEE half precision as CUDA has it: conversions to nearest even, by the compiler's own type.
#pragma once

struct __half {
  _Float16 value;
};
inline float __half2float(__half v) { return static_cast<float>(v.value); }
inline __half __float2half(float v) { return {static_cast<_Float16>(v)}; }
