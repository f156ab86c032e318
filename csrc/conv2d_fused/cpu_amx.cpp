// conv2d_fused by tile registers: two tiles of up to 16 neighbouring positions by two of 16 outputs, over all of the sum.
//
// Float (precision high) is taken as two bf16, high + low, and a product as three: low x high, high x high, high x low. The
// fourth is below 2^-16 of the second.
#include "epilogue.h"
#include "jobs.h"
#include "tile_cut.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

constexpr int64_t kCachedWeights = 1 << 20;  // bytes that stay in a core's second cache beside a band's rows
constexpr int64_t kRowFloats = 2 * kTileRowBytes / sizeof(float);  // sums of a position

// Registers: sums 0 to 3 (position tile * 2 + output tile), positions 4 and 5, weights 6 and 7.
TileConfig registers_for(int64_t positions) {
  TileConfig config;
  for (int tile = 0; tile < kTileRegisters; ++tile) {
    config.row_bytes[tile] = kTileRowBytes;
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? positions : kTileRows);
  }
  return config;
}

// One step of the sums, of 32 input channels: positions at a (and b, of the second tile) by weights at w.
template <bool kBoth>
FASTDIFF_INLINE void multiply_step(TileRegisters& t, const unsigned char* a, const unsigned char* b, const unsigned char* w) {
  t.load<4>(a, kTileRowBytes), t.load_once<6>(w, kTileRowBytes), t.dot_pairs<0, 4, 6>();
  t.load_once<7>(w + kTileBytes, kTileRowBytes), t.dot_pairs<1, 4, 7>();
  if constexpr (kBoth) t.load<5>(b, kTileRowBytes), t.dot_pairs<2, 5, 6>(), t.dot_pairs<3, 5, 7>();
}

// The same of which each number is two; the second parts of positions are `part` bytes on, those of weights follow the first.
template <bool kBoth>
FASTDIFF_INLINE void multiply_split_step(TileRegisters& t, const unsigned char* a, const unsigned char* b, int64_t part,
                                         const unsigned char* w) {
  multiply_step<kBoth>(t, a + part, b + part, w);
  t.load<4>(a, kTileRowBytes), t.dot_pairs<0, 4, 6>(), t.dot_pairs<1, 4, 7>();
  if constexpr (kBoth) t.load<5>(b, kTileRowBytes), t.dot_pairs<2, 5, 6>(), t.dot_pairs<3, 5, 7>();
  t.load_once<6>(w + 2 * kTileBytes, kTileRowBytes), t.dot_pairs<0, 4, 6>();
  if constexpr (kBoth) t.dot_pairs<2, 5, 6>();
  t.load_once<7>(w + 3 * kTileBytes, kTileRowBytes), t.dot_pairs<1, 4, 7>();
  if constexpr (kBoth) t.dot_pairs<3, 5, 7>();
}

// sums[position][output]; those of the second tile begin at `second`.
template <class T, bool kBoth>
void multiply(TileRegisters& t, const unsigned char* a, const unsigned char* b, const Taps& taps, int64_t part,
              const unsigned char* weights, float* sums, float* second) {
  t.zero<0>(), t.zero<1>();
  if constexpr (kBoth) t.zero<2>(), t.zero<3>();
  for (int64_t block = 0; block < taps.blocks; ++block, a += taps.block_bytes, b += taps.block_bytes)
    for (int64_t tap = 0; tap < taps.count; ++tap, weights += kKeptParts<T> * 2 * kTileBytes) {
      const unsigned char *at = a + taps.offsets[tap], *other = b + taps.offsets[tap];
      if constexpr (kKeptParts<T> == 2) multiply_split_step<kBoth>(t, at, other, part, weights);
      else multiply_step<kBoth>(t, at, other, weights);
    }
  constexpr int64_t kStride = kRowFloats * sizeof(float);
  t.store<0>(sums, kStride), t.store<1>(sums + kTileRows, kStride);
  if constexpr (kBoth) t.store<2>(second, kStride), t.store<3>(second + kTileRows, kStride);
}

// A band, with whatever of the output channels' weights stays in the cache.
template <class T>
class Band {
  using Y = Stored<T>;

 public:
  Band(const Conv2dArgs& c, const RowsJob& job, const KeptRows<T>& rows, const unsigned char* kept, const TileCut& cut,
       const int64_t* offsets, TileRegisters& registers)
      : c_(c), job_(job), rows_(rows), kept_(kept), cut_(cut), registers_(registers),
        taps_{offsets, c.kernel_height * c.kernel_width, rows.blocks, rows.block_bytes},
        weights_of_block_(rows.blocks * taps_.count * kKeptParts<T> * 2 * kTileBytes),
        statistics_(ceil_div(job.channel_end - job.channel, kOutputBlock)) {}

  void run() {
    const int64_t cached = kCachedWeights / weights_of_block_, together = (cached > 1 ? cached : 1) * kOutputBlock;
    for (int64_t channel = job_.channel; channel < job_.channel_end; channel += together)
      for (int64_t part = job_.part; part < job_.part_end; ++part)
        run_part(part, channel, least(channel + together, job_.channel_end));
  }

 private:
  void run_part(int64_t part, int64_t channel_begin, int64_t channel_end) {
    const int64_t first = part * c_.part_rows, rows = least(first + c_.part_rows, c_.out_height) - first;
    const unsigned char* positions = kept_ + (first * c_.stride - rows_.first_row) * rows_.row_bytes;
    for (int64_t block = 0; block * kOutputBlock < channel_end - channel_begin; ++block) statistics_.data()[block] = {};
    const int64_t tiles = cut_.count(rows);
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const auto a = cut_.tile(rows, tile);
      const bool both = tile + 1 < tiles;
      const auto b = both ? cut_.tile(rows, tile + 1) : a;
      for (int64_t channel = channel_begin; channel < channel_end; channel += kOutputBlock) {
        Outputs<Y> outputs(c_, job_.n, channel, weights_of_block_);
        const auto product = both ? multiply<T, true> : multiply<T, false>;
        product(registers_, positions + a.begin * kBlockBytes, positions + b.begin * kBlockBytes, taps_, rows_.part_bytes,
                outputs.weights, sums_[0], sums_[kTileRows]);
        auto& statistics = statistics_.data()[(channel - channel_begin) / kOutputBlock];
        finish_tile(outputs, first, a, sums_[0], statistics);
        if (both) finish_tile(outputs, first, b, sums_[kTileRows], statistics);
        if (c_.partials && tile + 2 >= tiles) write_partials(c_, outputs.tile, part, statistics);
      }
    }
  }

  // Row by row, without the positions between two rows.
  void finish_tile(Outputs<Y>& outputs, int64_t first_row, TileCut::Positions tile, float* sums,
                   Statistics<float>& statistics) {
    for (int64_t at = tile.begin; at < tile.end;) {
      const int64_t row = at / cut_.pitch, count = least(tile.end, row * cut_.pitch + cut_.width) - at;
      outputs.tile.row = first_row + row, outputs.tile.column = at % cut_.pitch;
      if (count > 0)
        finish_row<Y>(c_, outputs.tile, count, reinterpret_cast<Sums<float>>(sums + (at - tile.begin) * kRowFloats),
                      outputs.bias, statistics);
      at = (row + 1) * cut_.pitch;
    }
  }

  const Conv2dArgs& c_;
  const RowsJob& job_;
  const KeptRows<T>& rows_;
  const unsigned char* kept_;
  const TileCut& cut_;
  TileRegisters& registers_;
  const Taps taps_;
  const int64_t weights_of_block_;
  const Scratch<Statistics<float>> statistics_;  // of the part, of each block of outputs
  alignas(kTileRowBytes) float sums_[2 * kTileRows][kRowFloats];
};

template <class T>
void run(const Conv2dArgs& c, int64_t begin, int64_t end) {
  const KeptRows<T> any(c, 0, c.part_rows);  // rows lie alike in all bands
  const TileCut cut = best_cut(c, c.stride * any.row_bytes / kBlockBytes);
  const Scratch<int64_t> offsets(c.kernel_height * c.kernel_width);
  for (int64_t tap = 0; tap < c.kernel_height * c.kernel_width; ++tap)
    offsets.data()[tap] = tap / c.kernel_width * any.row_bytes + any.column(c, tap % c.kernel_width);
  TileRegisters registers(registers_for(cut.size));
  for_each_job<T>(c, begin, end, kTileBytes, [&](const RowsJob& job, const KeptRows<T>& rows, const unsigned char* kept) {
    Band<T>(c, job, rows, kept, cut, offsets.data(), registers).run();
  });
}

}  // namespace

void conv2d_fused_kernel(const Conv2dArgs& c, int64_t begin, int64_t end) {
  c.dtype == DType::f32 ? run<SplitFloat>(c, begin, end) : run<bf16>(c, begin, end);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
