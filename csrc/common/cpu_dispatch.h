// CPU kernels are compiled once per instruction set, in a namespace of that name, and chosen at run time.
#pragma once

namespace fastdiff {

enum class CpuLevel { baseline, avx2, avx512, avx512_bf16, amx };

CpuLevel cpu_level();
bool cpu_emulates_tiles();  // level amx_emulated, for tests: kernels of level amx on an emulation, all others as without
inline bool cpu_multiplies_tiles() { return cpu_emulates_tiles() || cpu_level() >= CpuLevel::amx; }
const char* cpu_level_name();
void cap_cpu_level(const char* name);

}  // namespace fastdiff

// FASTDIFF_DECLARE_CPU(void, film_kernel, (const FilmArgs&, int64_t, int64_t)) declares the variants of a kernel;
// FASTDIFF_CPU(film_kernel)(args, begin, end) calls the one for this machine.
#ifdef FASTDIFF_X86
#define FASTDIFF_DECLARE_CPU(type, name, arguments)      \
  namespace baseline { type name arguments; }            \
  namespace avx2 { type name arguments; }                \
  namespace avx512 { type name arguments; }
#define FASTDIFF_CPU(name)                                                  \
  (::fastdiff::cpu_level() >= ::fastdiff::CpuLevel::avx512 ? avx512::name   \
   : ::fastdiff::cpu_level() >= ::fastdiff::CpuLevel::avx2 ? avx2::name     \
                                                           : baseline::name)
// The same for kernels of a folder that also has cpu_bf16.cpp, compiled with the bf16 dot product of AVX512_BF16.
#define FASTDIFF_DECLARE_CPU_BF16(type, name, arguments) \
  FASTDIFF_DECLARE_CPU(type, name, arguments)            \
  namespace avx512_bf16 { type name arguments; }
#define FASTDIFF_CPU_BF16(name) \
  (::fastdiff::cpu_level() >= ::fastdiff::CpuLevel::avx512_bf16 ? avx512_bf16::name : FASTDIFF_CPU(name))
// The same for kernels of a folder that also has cpu_amx.cpp, for which bind.cpp asks where cpu_multiplies_tiles().
#define FASTDIFF_DECLARE_CPU_AMX(type, name, arguments) \
  FASTDIFF_DECLARE_CPU_BF16(type, name, arguments)      \
  namespace amx { type name arguments; }                \
  namespace amx_emulated { type name arguments; }
#ifdef FASTDIFF_AMX
#define FASTDIFF_CPU_AMX(name) (::fastdiff::cpu_emulates_tiles() ? amx_emulated::name : amx::name)
#else
#define FASTDIFF_CPU_AMX(name) amx_emulated::name
#endif
#else
#define FASTDIFF_DECLARE_CPU(type, name, arguments) \
  namespace baseline { type name arguments; }
#define FASTDIFF_CPU(name) baseline::name
#define FASTDIFF_DECLARE_CPU_BF16(type, name, arguments) FASTDIFF_DECLARE_CPU(type, name, arguments)
#define FASTDIFF_CPU_BF16(name) FASTDIFF_CPU(name)
#define FASTDIFF_DECLARE_CPU_AMX(type, name, arguments) FASTDIFF_DECLARE_CPU(type, name, arguments)
#define FASTDIFF_CPU_AMX(name) FASTDIFF_CPU(name)
#endif
