// The activation that a schema names, for bind.cpp.
#pragma once
#include <string>

#include "../torch_abi.h"
#include "numeric.h"

namespace fastdiff {

inline Act activation_named(const std::string& name) {
  constexpr const char* kNames[] = {"none", "silu", "relu", "leaky_relu", "gelu"};
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) return static_cast<Act>(i);
  fail("act must be one of none, silu, relu, leaky_relu, gelu, got ", name);
}

}  // namespace fastdiff
