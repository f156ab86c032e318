// Winograd's F(2x2, 3x3): a tile of 2x2 outputs from 4x4 inputs by 16 products, where the kernel's elements would take 36.
//
//     Y = A^T [(G g G^T) . (B^T d B)] A        the sums over input channels between the brackets, element by element
//     B^T = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1],  A^T = [1 1 1 0; 0 1 -1 -1]
//
// The packed weights are G g G^T (pack_conv_weight.py). A part's tiles are transformed once for all output channels.
// Source: Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1.
#pragma once
#include "jobs.h"
#include "products.h"

namespace fastdiff::FASTDIFF_ISA {

constexpr int64_t kTileElements = 16;

// The tiles of a part: their transformed inputs [16][block][tile][64 bytes], and products [16][tile][two vectors].
template <class T>
class Tiles {
  using S = Compute<T>;
  using V = Vec<S>;
  static constexpr int64_t kLanes = kLanesOf<S>;

 public:
  Tiles(const Conv2dArgs& c, int64_t blocks)
      : across_((c.out_width + 1) / 2), most_(c.winograd ? across_ * ((c.part_rows + 1) / 2) : 0), blocks_(blocks),
        memory_(kTileElements * blocks * most_ * kBlockBytes + kBlockBytes), inputs_(aligned(memory_.data())),
        products_(kTileElements * most_ * 2), outputs_(2 * 2 * across_ * 2 * (c.winograd ? 1 : 0)) {}

  // Of `down` rows of tiles from the kept row at `rows` on.
  void transform_inputs(const KeptRows<T>& kept, const unsigned char* rows, int64_t down) {
    count_ = across_ * down;
    for (int64_t y = 0; y < down; ++y)
      for (int64_t block = 0; block < blocks_; ++block)
        for (int64_t lane = 0; lane < kBlock<T>; lane += kLanes)
          transform_row(kept, rows + 2 * y * kept.row_bytes + block * kept.block_bytes + lane * sizeof(Kept<T>),
                        inputs_ + (block * count_ + y * across_) * kBlockBytes + lane * sizeof(Kept<T>));
  }

  void multiply_all(const unsigned char* weights, int64_t second) {
    static constexpr int64_t kNowhere[] = {0};
    const Taps taps{kNowhere, 1, blocks_, count_ * kBlockBytes};
    const int64_t groups = (count_ + kMostPositions - 1) / kMostPositions;
    for (int64_t e = 0; e < kTileElements; ++e, weights += blocks_ * kTapBytes<T>)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * count_ / groups, size = (g + 1) * count_ / groups - first;
        multiply_of<T>(size)(reinterpret_cast<Sums<S>>(products_.data()) + e * count_ + first,
                             inputs_ + (e * blocks_ * count_ + first) * kBlockBytes, taps, weights, second);
      }
  }

  // Row of the part's outputs; rows must be asked for in order, since the two of a tile are made together.
  Sums<S> row_of_outputs(int64_t row) {
    if (row % 2 == 0) transform_products(row / 2);
    return reinterpret_cast<Sums<S>>(outputs_.data()) + row % 2 * 2 * across_;
  }

 private:
  // One vector of channels of a row of tiles. Two tiles side by side share two of their columns.
  void transform_row(const KeptRows<T>& kept, const unsigned char* from, unsigned char* to) {
    const auto column = [&](int64_t x, V (&t)[4]) FASTDIFF_INLINE_LAMBDA {
      const auto at = [&](int64_t row) FASTDIFF_INLINE_LAMBDA {
        return load(reinterpret_cast<const Kept<T>*>(from + row * kept.row_bytes + x * kBlockBytes));
      };
      const V d0 = at(0), d1 = at(1), d2 = at(2), d3 = at(3);
      t[0] = d0 - d2, t[1] = d1 + d2, t[2] = d2 - d1, t[3] = d1 - d3;
    };
    const auto put = [&](int64_t element, int64_t tile, V v) FASTDIFF_INLINE_LAMBDA {
      store_operands(reinterpret_cast<Kept<T>*>(to + (element * blocks_ * count_ + tile) * kBlockBytes), v);
    };
    V first[4], second[4], third[4], fourth[4];
    column(0, first), column(1, second);
    for (int64_t tile = 0; tile < across_; ++tile) {
      column(2 * tile + 2, third), column(2 * tile + 3, fourth);
      FASTDIFF_UNROLL
      for (int i = 0; i < 4; ++i) {
        put(4 * i, tile, first[i] - third[i]), put(4 * i + 1, tile, second[i] + third[i]);
        put(4 * i + 2, tile, third[i] - second[i]), put(4 * i + 3, tile, second[i] - fourth[i]);
        first[i] = third[i], second[i] = fourth[i];
      }
    }
  }

  void transform_products(int64_t y) {
    const auto* all = reinterpret_cast<Sums<S>>(products_.data());
    auto* out = reinterpret_cast<Sums<S>>(outputs_.data());
    for (int64_t tile = 0; tile < across_; ++tile)
      for (int half = 0; half < 2; ++half) {
        const auto m = [&](int i, int j) FASTDIFF_INLINE_LAMBDA { return all[(4 * i + j) * count_ + y * across_ + tile][half]; };
        V top[4], bottom[4];
        FASTDIFF_UNROLL
        for (int j = 0; j < 4; ++j) {
          const V middle = m(1, j), other = m(2, j);
          top[j] = m(0, j) + middle + other, bottom[j] = middle - other - m(3, j);
        }
        out[2 * tile][half] = top[0] + top[1] + top[2], out[2 * tile + 1][half] = top[1] - top[2] - top[3];
        out += 2 * across_;
        out[2 * tile][half] = bottom[0] + bottom[1] + bottom[2], out[2 * tile + 1][half] = bottom[1] - bottom[2] - bottom[3];
        out -= 2 * across_;
      }
  }

  int64_t across_, most_, blocks_, count_ = 0;
  Scratch<unsigned char> memory_;
  unsigned char* inputs_;
  Scratch<V> products_, outputs_;
};

}  // namespace fastdiff::FASTDIFF_ISA
