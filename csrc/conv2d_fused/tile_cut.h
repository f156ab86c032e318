// How the positions of a part's rows are cut into tiles of up to 16 neighbours: each row by itself, or, where that takes more
// time, the rows joined, what lies between two of them included.
#pragma once
#include "../common/amx_tile.h"
#include "conv2d_fused.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Positions are counted from the part's first one: `pitch` of them from row to row, of which `width` are outputs.
struct TileCut {
  bool joined;
  int64_t pitch, width, size;  // of the largest tile

  int64_t lines(int64_t rows) const { return joined ? 1 : rows; }
  int64_t length(int64_t rows) const { return joined ? (rows - 1) * pitch + width : width; }
  int64_t in_line(int64_t rows) const { return ceil_div(length(rows), size); }
  int64_t count(int64_t rows) const { return lines(rows) * in_line(rows); }

  struct Positions {
    int64_t begin, end;
  };
  Positions tile(int64_t rows, int64_t index) const {
    const int64_t n = in_line(rows), first = index / n * pitch, i = index % n;
    return {first + i * length(rows) / n, first + (i + 1) * length(rows) / n};
  }

  // Cycles of a step of the sum: a product takes one for each position of its tile, and the products that share two tiles of
  // weights no less than these take from the second cache (at 48 bytes a cycle).
  int64_t cost(int64_t rows) const {
    constexpr int64_t kWeights = 2 * kTileBytes / 48;
    const int64_t pair = 4 * size > kWeights ? 4 * size : kWeights, single = 2 * size > kWeights ? 2 * size : kWeights;
    return count(rows) / 2 * pair + count(rows) % 2 * single;
  }
};

inline TileCut best_cut(const Conv2dArgs& c, int64_t pitch) {
  TileCut best{false, pitch, c.out_width, kTileRows};
  for (int joined = 0; joined < (c.stride == 1 ? 2 : 1); ++joined) {  // of other strides other rows lie between
    for (int64_t more = 0; more < 2; ++more) {
      TileCut cut{joined == 1, pitch, c.out_width, kTileRows};
      const int64_t length = cut.length(c.part_rows);
      cut.size = ceil_div(length, ceil_div(length, kTileRows) + more);
      if (cut.cost(c.part_rows) < best.cost(c.part_rows)) best = cut;
    }
  }
  return best;
}

}  // namespace fastdiff::FASTDIFF_ISA
