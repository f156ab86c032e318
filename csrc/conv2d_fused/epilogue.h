// What is done with a convolution's sums: bias, residual, activation, the store, and the statistics of the next norm.
#pragma once
#include "../common/simd.h"

#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "products.h"

namespace fastdiff::FASTDIFF_ISA {

// Statistics of a part for two vectors of output channels, joined tile by tile (Chan et al. 1979).
template <class S>
struct Statistics {
  Vec<S> mean[2] = {}, m2[2] = {};
  S count = 0;
  void add(Sums<S> values, int64_t positions) {
    const S total = count + positions, share = positions / total;
    for (int half = 0; half < 2; ++half) {
      Vec<S> sum{}, square{};
      for (int64_t p = 0; p < positions; ++p) sum += values[p][half];
      sum /= splat<Vec<S>>(static_cast<S>(positions));
      for (int64_t p = 0; p < positions; ++p) {
        const Vec<S> d = values[p][half] - sum;
        square = madd(d, d, square);
      }
      const Vec<S> delta = sum - mean[half];
      mean[half] += delta * share;
      m2[half] += square + delta * delta * (count * share);
    }
    count = total;
  }
};

// Image, first output channel, how many there are of each of two vectors, row and first column of a tile.
struct OutputTile {
  int64_t n, channel, counts[2], row, column;
};

// Bias, residual and activation on the sums, which become the values that are stored.
template <class T, Act kAct>
void finish(const Conv2dArgs& c, const OutputTile& t, int64_t positions, Sums<Compute<T>> sums, const Vec<Compute<T>>* bias) {
  using S = Compute<T>;
  const int64_t first = ((t.n * c.out_height + t.row) * c.out_width + t.column) * c.out_channels + t.channel;
  const auto* residual = static_cast<const T*>(c.residual);
  for (int64_t p = 0; p < positions; ++p)
    for (int half = 0; half < 2 && t.counts[half]; ++half) {
      const int64_t at = first + p * c.out_channels + half * kLanesOf<S>;
      Vec<S> v = sums[p][half] + bias[half];
      if (residual) v += load_up_to(residual + at, t.counts[half]);
      v = activate<kAct>(v);
      store_up_to(static_cast<T*>(c.y) + at, v, t.counts[half]);
      sums[p][half] = v;
    }
}

template <class S>
void write_partials(const Conv2dArgs& c, const OutputTile& t, int64_t part, const Statistics<S>& s) {
  for (int half = 0; half < 2; ++half)
    for (int64_t i = 0; i < t.counts[half]; ++i) {
      const int64_t channel = t.channel + half * kLanesOf<S> + i;
      S* to = static_cast<S*>(c.partials) + ((t.n * c.out_channels + channel) * c.parts + part) * 3;
      to[0] = s.count, to[1] = s.mean[half][i], to[2] = s.m2[half][i];
    }
}

// Two vectors of output channels: where their weights lie, their bias, and how many of each exist.
template <class T>
struct Outputs {
  using S = Compute<T>;
  static constexpr int64_t kLanes = kLanesOf<S>, kTogether = 2 * kLanes;
  OutputTile tile;
  Vec<S> bias[2] = {};
  const unsigned char* weights;  // of the first element of the first block of input channels
  int64_t second;                // how far from there the second vector's are
  Outputs(const Conv2dArgs& c, int64_t n, int64_t channel, int64_t bytes_of_block) : tile{n, channel, {}, 0, 0} {
    for (int half = 0; half < 2; ++half) {
      const int64_t from = channel + half * kLanes;
      tile.counts[half] = from < c.out_channels ? least(kLanes, c.out_channels - from) : 0;
      if (c.bias.data && tile.counts[half]) bias[half] = elements<S>(c.bias, n, from, tile.counts[half]);
    }
    const auto place = [](int64_t output) {  // bytes of an output's weight within those of a step
      const int64_t half = output / kOutputHalf, within = output % kOutputHalf;
      return (half * kSteps<T> * kOutputHalf + within) * int64_t{sizeof(Step<T>)};
    };
    const int64_t within = channel % kOutputBlock;
    weights = static_cast<const unsigned char*>(c.packed) + channel / kOutputBlock * bytes_of_block + place(within);
    second = place(within + kLanes) - place(within);
  }
};

// The values of a row of outputs: stored, and counted among the statistics.
template <class T>
void finish_row(const Conv2dArgs& c, const OutputTile& t, int64_t positions, Sums<Compute<T>> sums,
                const Vec<Compute<T>>* bias, Statistics<Compute<T>>& statistics) {
  with_activation(c.act_out, [&]<Act kAct>() { finish<T, kAct>(c, t, positions, sums, bias); });
  if (c.partials) statistics.add(sums, positions);
}

}  // namespace fastdiff::FASTDIFF_ISA
