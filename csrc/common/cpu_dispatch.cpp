#include "cpu_dispatch.h"

#include <cstring>
#include <iterator>

namespace fastdiff {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

CpuLevel detect() {
#ifdef FASTDIFF_X86
  // The kernels of a level use all of that level's features, so all must be there (the OS's support included).
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuLevel::avx512_bf16;
  return avx512 ? CpuLevel::avx512 : avx2 ? CpuLevel::avx2 : CpuLevel::baseline;
#else
  return CpuLevel::baseline;
#endif
}

CpuLevel level = detect();

}  // namespace

CpuLevel cpu_level() { return level; }

const char* cpu_level_name() { return kNames[static_cast<int>(level)]; }

void cap_cpu_level(const char* name) {
  const CpuLevel available = detect();
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (!std::strcmp(name, kNames[i])) level = static_cast<CpuLevel>(i) < available ? static_cast<CpuLevel>(i) : available;
}

}  // namespace fastdiff
