// The instructions of AMX-BF16 on tile registers, in C++: what tests run kernels on where the machine lacks them.
//
// Source: Intel's Software Developer's Manual, volume 2 (LDTILECFG, TILELOADD, TILEZERO, TDPBF16PS, TILESTORED, TILERELEASE).
// What would raise an exception there ends the process here, with a word about it.
#pragma once
#include "simd.h"

#include <cstdio>
#include <cstdlib>

namespace fastdiff::FASTDIFF_ISA {

constexpr int kTileRegisters = 8, kTileRows = 16, kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

// The 64 bytes that ldtilecfg reads.
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

class EmulatedTiles {
 public:
  void configure(const void* from) {
    std::memcpy(&config_, from, sizeof(config_));
    const TileConfig nothing;
    need(config_.palette == 1 && config_.start_row == 0, "palette 1 from row 0");
    need(!std::memcmp(config_.reserved, nothing.reserved, sizeof(nothing.reserved)), "reserved bytes that are zero");
    for (int i = 0; i < 16; ++i) {
      need(config_.rows[i] <= kTileRows && config_.row_bytes[i] <= kTileRowBytes, "at most 16 rows of 64 bytes");
      need(!config_.rows[i] == !config_.row_bytes[i], "rows of some bytes");
      need(i < kTileRegisters || !config_.rows[i], "eight tiles");
    }
    std::memset(tiles_, 0, sizeof(tiles_));
    configured_ = true;
  }

  void release() {
    std::memset(tiles_, 0, sizeof(tiles_));
    configured_ = false;
  }

  void zero(int tile) {
    use(tile);
    std::memset(tiles_[tile], 0, sizeof(tiles_[tile]));
  }

  void load(int tile, const void* from, int64_t stride) {
    zero(tile);  // what lies past the tile's rows and bytes
    for (int64_t row = 0; row < config_.rows[tile]; ++row)
      std::memcpy(tiles_[tile][row], static_cast<const unsigned char*>(from) + row * stride, config_.row_bytes[tile]);
  }

  void store(int tile, void* to, int64_t stride) {
    use(tile);
    for (int64_t row = 0; row < config_.rows[tile]; ++row)
      std::memcpy(static_cast<unsigned char*>(to) + row * stride, tiles_[tile][row], config_.row_bytes[tile]);
  }

  int rows(int tile) const { return config_.rows[tile]; }

  // tdpbf16ps. To nearest even, subnormals flushed and taken for zeros whatever MXCSR says, which stays as it is.
  __attribute__((noinline)) void dot_pairs(int sums, int a, int b) {
    use(sums), use(a), use(b);
    need(sums != a && sums != b && a != b, "three tiles that differ");
    need(config_.rows[sums] == config_.rows[a], "as many sums down as the first operand has rows");
    need(config_.row_bytes[sums] == config_.row_bytes[b], "as many sums across as the second operand has columns");
    need(config_.row_bytes[a] / 4 == config_.rows[b], "as many pairs across as the second operand has rows");
    constexpr unsigned kMasked = 0x1F80, kFlushToZero = 0x8000, kDenormalsAreZeros = 0x40;
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(kMasked | kFlushToZero | kDenormalsAreZeros);
    asm volatile("" ::: "memory");  // the arithmetic, on memory, stays between
    for (int row = 0; row < config_.rows[sums]; ++row) accumulate(tiles_[sums][row], tiles_[a][row], b);
    asm volatile("" ::: "memory");
    _mm_setcsr(mode);
  }

 private:
  static_assert(sizeof(Floats) == kTileRowBytes, "the emulation is for vectors as long as a tile's rows");

  // First numbers and second numbers of pairs are summed apart, each by fused multiply-adds from zero on.
  void accumulate(unsigned char* sums, const unsigned char* a, int b) {
    Floats first{}, second{}, total;
    for (int pair = 0; pair < config_.rows[b]; ++pair) {
      uint32_t x;
      Words w;
      std::memcpy(&x, a + 4 * pair, sizeof(x)), std::memcpy(&w, tiles_[b][pair], sizeof(w));
      first = madd(bits_as<Floats>(splat<Words>(x << 16)), bits_as<Floats>(w << 16), first);
      second = madd(bits_as<Floats>(splat<Words>(x & 0xFFFF0000u)), bits_as<Floats>(w & 0xFFFF0000u), second);
    }
    std::memcpy(&total, sums, sizeof(total));
    total += first + second;
    std::memcpy(sums, &total, sizeof(total));
  }

  void use(int tile) const {
    need(configured_, "a configuration");
    need(tile >= 0 && tile < kTileRegisters && config_.rows[tile], "a tile that is configured");
    need(config_.row_bytes[tile] % 4 == 0, "rows of whole words");
  }

  static void need(bool there, const char* what) {
    if (there) return;
    std::fprintf(stderr, "tile instruction without %s\n", what);
    std::abort();
  }

  TileConfig config_;
  bool configured_ = false;
  alignas(kTileRowBytes) unsigned char tiles_[kTileRegisters][kTileRows][kTileRowBytes];
};

}  // namespace fastdiff::FASTDIFF_ISA
