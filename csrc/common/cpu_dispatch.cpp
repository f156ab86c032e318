#include "cpu_dispatch.h"

#include <cstring>
#include <iterator>

#include "cpu_features.h"
#if defined(FASTDIFF_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastdiff {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};
constexpr const char* kEmulated = "amx_emulated";
constexpr const char* kUnchecked = "amx_unchecked";  // amx wherever it is, for tests that catch its instructions

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

// Linux lends tile registers to processes that ask for them, since their state makes each signal's frame 8 KB larger.
bool may_use_tiles() {
#if defined(FASTDIFF_AMX) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool granted = cpu_has_amx_bf16() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

CpuLevel level = detect();
bool emulates_tiles = false;

}  // namespace

CpuLevel cpu_level() { return level; }

bool cpu_emulates_tiles() { return emulates_tiles; }

const char* cpu_level_name() { return emulates_tiles ? kEmulated : kNames[static_cast<int>(level)]; }

void cap_cpu_level(const char* name) {
  const auto is = [&](const char* other) { return !std::strcmp(name, other); };
  CpuLevel available = detect();
  emulates_tiles = is(kEmulated) && available >= CpuLevel::avx512;
  if (is(kEmulated)) level = available;
  if (is(kUnchecked)) level = CpuLevel::amx;
  if (is("amx") && available == CpuLevel::avx512_bf16 && may_use_tiles()) available = CpuLevel::amx;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i)
    if (is(kNames[i])) level = static_cast<CpuLevel>(i) < available ? static_cast<CpuLevel>(i) : available;
}

}  // namespace fastdiff
