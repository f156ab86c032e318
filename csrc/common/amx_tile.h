// Tile registers of AMX: the instructions, or for level amx_emulated (FASTDIFF_AMX_EMULATED) their emulation, under one name.
//
// The instructions are written as assembly: GCC 12's _tile_loadconfig names 8 of the 64 bytes that it reads as its input, and
// its _tile_loadd does not say that it reads memory, so that stores before either may be dropped or come after it.
#pragma once
#include "amx_emulation.h"

namespace fastdiff::FASTDIFF_ISA {

// Registers 0 to 7 while the object lives, on the thread that made it; then they are given up, so that nothing of them is left
// for the system to save.
class TileRegisters {
 public:
  TileRegisters(const TileRegisters&) = delete;
#ifdef FASTDIFF_AMX_EMULATED
  explicit TileRegisters(const TileConfig& config) { tiles_.configure(&config); }
  ~TileRegisters() { tiles_.release(); }
  template <int kTile> void zero() { tiles_.zero(kTile); }
  template <int kTile> void load(const void* from, int64_t stride) { tiles_.load(kTile, from, stride); }
  template <int kTile> void load_once(const void* from, int64_t stride) { tiles_.load(kTile, from, stride); }
  template <int kTile> void store(void* to, int64_t stride) { tiles_.store(kTile, to, stride); }
  template <int kSums, int kA, int kB> void dot_pairs() { tiles_.dot_pairs(kSums, kA, kB); }

 private:
  EmulatedTiles tiles_;
#else
  explicit TileRegisters(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  ~TileRegisters() { asm volatile("tilerelease"); }
  template <int kTile>
  FASTDIFF_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Rows of a tile from memory, `stride` bytes apart.
  template <int kTile>
  FASTDIFF_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
  }
  // With a hint that they are not wanted again soon.
  template <int kTile>
  FASTDIFF_INLINE void load_once(const void* from, int64_t stride) {
    asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
  }
  template <int kTile>
  FASTDIFF_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(to), "r"(stride) : "memory");
  }
  // sums[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1] over all k: floats from pairs of bf16.
  template <int kSums, int kA, int kB>
  FASTDIFF_INLINE void dot_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
#endif
};

}  // namespace fastdiff::FASTDIFF_ISA
