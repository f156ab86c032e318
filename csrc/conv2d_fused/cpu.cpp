// conv2d_fused on the CPU: rows through the prologue into the core's cache, products in registers, the epilogue on them.
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "winograd.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

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
struct Tile {
  int64_t n, channel, counts[2], row, column;
};

// Bias, residual and activation on the sums, which become the values that are stored.
template <class T, Act kAct>
void finish(const Conv2dArgs& c, const Tile& t, int64_t positions, Sums<Compute<T>> sums, const Vec<Compute<T>>* bias) {
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

// Two vectors of output channels: where their weights lie, their bias, and how many of each exist.
template <class T>
struct Outputs {
  using S = Compute<T>;
  static constexpr int64_t kLanes = kLanesOf<S>, kTogether = 2 * kLanes;
  Tile tile;
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
void finish_row(const Conv2dArgs& c, const Tile& t, int64_t positions, Sums<Compute<T>> sums, const Vec<Compute<T>>* bias,
                Statistics<Compute<T>>& statistics) {
  with_activation(c.act_out, [&]<Act kAct>() { finish<T, kAct>(c, t, positions, sums, bias); });
  if (c.partials) statistics.add(sums, positions);
}

// One part of the rows of an image, element by element of the kernel.
template <class T>
void direct(const Conv2dArgs& c, const KeptRows<T>& kept, const unsigned char* memory, int64_t n, int64_t part,
            int64_t channel_begin, int64_t channel_end) {
  using S = Compute<T>;
  const int64_t count = c.kernel_height * c.kernel_width;
  const Scratch<int64_t> offsets(count);
  for (int64_t tap = 0; tap < count; ++tap)
    offsets.data()[tap] = tap / c.kernel_width * kept.row_bytes + kept.column(c, tap % c.kernel_width);
  const Taps taps{offsets.data(), count, kept.blocks, kept.block_bytes};
  const int64_t tiles = (c.out_width + kMostPositions - 1) / kMostPositions;
  const int64_t end = least((part + 1) * c.part_rows, c.out_height);
  Vec<S> sums[kMostPositions][2];
  for (int64_t channel = channel_begin; channel < channel_end; channel += Outputs<T>::kTogether) {
    Outputs<T> outputs(c, n, channel, kept.blocks * count * kTapBytes<T>);
    Statistics<S> statistics;
    Tile& t = outputs.tile;
    for (t.row = part * c.part_rows; t.row < end; ++t.row) {
      const unsigned char* row = memory + (t.row * c.stride - kept.first_row) * kept.row_bytes;
      for (int64_t i = 0; i < tiles; ++i) {
        t.column = i * c.out_width / tiles;
        const int64_t positions = (i + 1) * c.out_width / tiles - t.column;
        multiply_of<T>(positions)(sums, row + t.column * kBlockBytes, taps, outputs.weights, outputs.second);
        finish_row<T>(c, t, positions, sums, outputs.bias, statistics);
      }
    }
    if (c.partials) write_partials(c, t, part, statistics);
  }
}

// One part of the rows of an image by Winograd's tiles.
template <class T>
void by_tiles(const Conv2dArgs& c, const KeptRows<T>& kept, const unsigned char* memory, int64_t n, int64_t part,
              int64_t channel_begin, int64_t channel_end, Tiles<T>& tiles) {
  using S = Compute<T>;
  const int64_t begin = part * c.part_rows, end = least(begin + c.part_rows, c.out_height);
  tiles.transform_inputs(kept, memory + (begin - kept.first_row) * kept.row_bytes, (end - begin + 1) / 2);
  for (int64_t channel = channel_begin; channel < channel_end; channel += Outputs<T>::kTogether) {
    Outputs<T> outputs(c, n, channel, kTileElements * kept.blocks * kTapBytes<T>);
    tiles.multiply_all(outputs.weights, outputs.second);
    Statistics<S> statistics;
    Tile& t = outputs.tile;
    for (t.row = begin; t.row < end; ++t.row)
      finish_row<T>(c, t, c.out_width, tiles.row_of_outputs(t.row - begin), outputs.bias, statistics);
    if (c.partials) write_partials(c, t, part, statistics);
  }
}

template <class T>
void jobs(const Conv2dArgs& c, int64_t begin, int64_t end) {
  const KeptRows<T> most(c, 0, least(c.band_parts * c.part_rows, c.out_height));
  const Scratch<unsigned char> memory(most.bytes() + kBlockBytes);
  unsigned char* kept = aligned(memory.data());
  Tiles<T> tiles(c, most.blocks);
  int64_t kept_image = -1, kept_band = -1;
  for (int64_t job = begin; job < end; ++job) {
    const int64_t n = job / (c.bands * c.block_parts), rest = job % (c.bands * c.block_parts), band = rest / c.block_parts;
    const int64_t first = rest % c.block_parts * c.blocks_together * kOutputBlock;
    const int64_t last = least(first + c.blocks_together * kOutputBlock, c.out_channels);
    const int64_t part = band * c.band_parts, part_end = least(part + c.band_parts, c.parts);
    const KeptRows<T> rows(c, part * c.part_rows, least(part_end * c.part_rows, c.out_height));
    if (n != kept_image || band != kept_band)
      with_activation(c.act_in, [&]<Act kAct>() {
        for (int64_t r = 0; r < rows.rows; ++r)
          keep_row<T, kAct>(c, rows, n, rows.first_row + r - c.top, kept + r * rows.row_bytes);
      });
    kept_image = n, kept_band = band;
    for (int64_t p = part; p < part_end; ++p)
      c.winograd ? by_tiles<T>(c, rows, kept, n, p, first, last, tiles) : direct<T>(c, rows, kept, n, p, first, last);
  }
}

}  // namespace

void conv2d_fused_kernel(const Conv2dArgs& c, int64_t begin, int64_t end) {
  with_dtype(c.dtype, [&]<class T>() { jobs<T>(c, begin, end); });
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
