// What the compiler's __builtin_cpu_supports does not know everywhere.
#pragma once
#ifdef FASTDIFF_X86
#include <cpuid.h>

#include <cstdint>

namespace fastdiff {

// Tile registers with products of bf16, saved and restored by the system. A process must still ask to use them.
inline bool cpu_has_amx_bf16() {
  constexpr uint32_t kSaving = 1u << 27, kBf16 = 1u << 22, kTiles = 1u << 24, kTileState = 3u << 17;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSaving)) return false;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kTileState) != kTileState) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTiles);
}

}  // namespace fastdiff
#endif
