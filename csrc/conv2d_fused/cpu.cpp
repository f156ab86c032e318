// conv2d_fused on the CPU: rows through the prologue into the core's cache, products in registers, the epilogue on them.
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "products.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

// Statistics of a part for two vectors of output channels, joined tile by tile (Chan et al. 1979).
template <class S>
struct Statistics {
  Vec<S> mean[2] = {}, m2[2] = {};
  S count = 0;
  void add(const Sums<S>& values, int64_t positions) {
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
struct Tile {
  int64_t n, channel, counts[2], row, column;
};

// Bias, residual and activation on the sums, which become the values that are stored.
template <class T, Act kAct>
void finish(const Conv2dArgs& c, const Tile& t, int64_t positions, Sums<Compute<T>>& sums, const Vec<Compute<T>>* bias) {
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
void write_partials(const Conv2dArgs& c, const Tile& t, int64_t part, const Statistics<S>& s) {
  for (int half = 0; half < 2; ++half)
    for (int64_t i = 0; i < t.counts[half]; ++i) {
      const int64_t channel = t.channel + half * kLanesOf<S> + i;
      S* to = static_cast<S*>(c.partials) + ((t.n * c.out_channels + channel) * c.parts + part) * 3;
      to[0] = s.count, to[1] = s.mean[half][i], to[2] = s.m2[half][i];
    }
}

// Two vectors of output channels over the rows of a band.
template <class T>
void band(const Conv2dArgs& c, const KeptRows<T>& kept, const unsigned char* memory, const Taps& taps, int64_t n,
          int64_t channel, int64_t part_begin, int64_t part_end) {
  using S = Compute<T>;
  constexpr int64_t kLanes = kLanesOf<S>;
  const auto lanes = [&](int64_t from) { return from < c.out_channels ? least(kLanes, c.out_channels - from) : 0; };
  Tile t{n, channel, {lanes(channel), lanes(channel + kLanes)}, 0, 0};
  Sums<S> sums;
  Vec<S> bias[2] = {};
  for (int half = 0; half < 2; ++half)
    if (c.bias.data && t.counts[half]) bias[half] = elements<S>(c.bias, n, channel + half * kLanes, t.counts[half]);
  const auto place = [](int64_t output) {  // bytes of an output's weight within those of a step
    return output / kOutputHalf * kSteps<T> * kOutputHalf * int64_t{sizeof(Step<T>)} + output % kOutputHalf * int64_t{sizeof(Step<T>)};
  };
  const int64_t within = channel % kOutputBlock;
  const auto* weights = static_cast<const unsigned char*>(c.packed) +
                        channel / kOutputBlock * taps.blocks * taps.count * kTapBytes<T> + place(within);
  const int64_t second = place(within + kLanes) - place(within);
  const int64_t tiles = (c.out_width + kMostPositions - 1) / kMostPositions;
  for (int64_t part = part_begin; part < part_end; ++part) {
    Statistics<S> statistics;
    const int64_t end = least((part + 1) * c.part_rows, c.out_height);
    for (t.row = part * c.part_rows; t.row < end; ++t.row) {
      const unsigned char* row = memory + (t.row * c.stride - kept.first_row) * kept.row_bytes;
      for (int64_t i = 0; i < tiles; ++i) {
        t.column = i * c.out_width / tiles;
        const int64_t positions = (i + 1) * c.out_width / tiles - t.column;
        multiply_of<T>(positions)(sums, row + t.column * kBlockBytes, taps, weights, second);
        with_activation(c.act_out, [&]<Act kAct>() { finish<T, kAct>(c, t, positions, sums, bias); });
        if (c.partials) statistics.add(sums, positions);
      }
    }
    if (c.partials) write_partials(c, t, part, statistics);
  }
}

template <class T>
void jobs(const Conv2dArgs& c, int64_t begin, int64_t end) {
  constexpr int64_t kTogether = 2 * kLanesOf<Compute<T>>;  // output channels of a tile
  const int64_t count = c.kernel_height * c.kernel_width;
  const Scratch<int64_t> offsets(count);
  const KeptRows<T> most(c, 0, least(c.band_parts * c.part_rows, c.out_height));
  const Scratch<unsigned char> memory(most.bytes() + kBlockBytes);
  auto* kept = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + kBlockBytes - 1) / kBlockBytes * kBlockBytes);
  int64_t kept_image = -1, kept_band = -1;
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / (c.bands * c.block_parts), rest = job % (c.bands * c.block_parts);
    const int64_t band_index = rest / c.block_parts, blocks_from = rest % c.block_parts * c.blocks_together;
    const int64_t part = band_index * c.band_parts, part_end = least(part + c.band_parts, c.parts);
    const KeptRows<T> rows(c, part * c.part_rows, least(part_end * c.part_rows, c.out_height));
    for (int64_t tap = 0; tap < count; ++tap)
      offsets.data()[tap] = tap / c.kernel_width * rows.row_bytes + rows.column(c, tap % c.kernel_width);
    if (n != kept_image || band_index != kept_band)
      with_activation(c.act_in, [&]<Act kAct>() {
        for (int64_t r = 0; r < rows.rows; ++r)
          keep_row<T, kAct>(c, rows, n, rows.first_row + r - c.top, kept + r * rows.row_bytes);
      });
    kept_image = n, kept_band = band_index;
    const Taps taps{offsets.data(), count, rows.blocks, rows.block_bytes};
    const int64_t last = least((blocks_from + c.blocks_together) * kOutputBlock, c.out_channels);
    for (int64_t channel = blocks_from * kOutputBlock; channel < last; channel += kTogether)
      band<T>(c, rows, kept, taps, n, channel, part, part_end);
  }
}

}  // namespace

void conv2d_fused_kernel(const Conv2dArgs& c, int64_t begin, int64_t end) {
  with_dtype(c.dtype, [&]<class T>() { jobs<T>(c, begin, end); });
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
