// conv2d_fused on the CPU: rows through the prologue into the core's cache, products in registers, the epilogue on them.
#include "epilogue.h"
#include "jobs.h"
#include "winograd.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

// Asks for the weights of the next output channels, a share with each product of the present ones, so that weights that lie
// beyond the core's cache come while it multiplies.
class Ahead {
 public:
  Ahead(const unsigned char* weights, int64_t bytes, int64_t products)
      : next_(weights), end_(weights + bytes), share_(bytes / products + kLine) {}
  void step() {
    for (const unsigned char* until = next_ + least(share_, end_ - next_); next_ < until; next_ += kLine)
      __builtin_prefetch(next_, 0, 2);
  }

 private:
  static constexpr int64_t kLine = 64;
  const unsigned char *next_, *end_;
  int64_t share_;
};

// One part of the rows of some images, element by element of the kernel.
template <class T>
void direct(const Conv2dArgs& c, const KeptRows<T>& kept, const unsigned char* memory, int64_t first_image, int64_t images,
            int64_t part, int64_t channel_begin, int64_t channel_end) {
  using S = Compute<T>;
  const int64_t count = c.kernel_height * c.kernel_width;
  const Scratch<int64_t> offsets(count);
  for (int64_t tap = 0; tap < count; ++tap)
    offsets.data()[tap] = tap / c.kernel_width * kept.row_bytes + kept.column(c, tap % c.kernel_width);
  const Taps taps{offsets.data(), count, kept.blocks, kept.block_bytes};
  const int64_t tiles = (c.out_width + kMostPositions - 1) / kMostPositions;
  const int64_t end = least((part + 1) * c.part_rows, c.out_height);
  const int64_t bytes = kept.blocks * count * kTapBytes<T>;
  Vec<S> sums[kMostPositions][2];
  for (int64_t channel = channel_begin; channel < channel_end; channel += Outputs<T>::kTogether)
    for (int64_t image = 0; image < images; ++image) {
      Outputs<T> outputs(c, first_image + image, channel, bytes);
      Ahead ahead(outputs.weights + bytes, channel + kOutputBlock < channel_end ? bytes : 0, (end - part * c.part_rows) * tiles);
      Statistics<S> statistics;
      OutputTile& t = outputs.tile;
      for (t.row = part * c.part_rows; t.row < end; ++t.row) {
        const unsigned char* row = memory + image * kept.bytes() + (t.row * c.stride - kept.first_row) * kept.row_bytes;
        for (int64_t i = 0; i < tiles; ++i) {
          t.column = i * c.out_width / tiles;
          const int64_t positions = (i + 1) * c.out_width / tiles - t.column;
          ahead.step();
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
    OutputTile& t = outputs.tile;
    for (t.row = begin; t.row < end; ++t.row)
      finish_row<T>(c, t, c.out_width, tiles.row_of_outputs(t.row - begin), outputs.bias, statistics);
    if (c.partials) write_partials(c, t, part, statistics);
  }
}

template <class T>
void run(const Conv2dArgs& c, int64_t begin, int64_t end) {
  Tiles<T> tiles(c, KeptRows<T>(c, 0, c.out_height).blocks);
  for_each_job<T>(c, begin, end, 0, [&](const RowsJob& job, const KeptRows<T>& rows, const unsigned char* kept) {
    for (int64_t part = job.part; part < job.part_end; ++part)
      c.winograd ? by_tiles<T>(c, rows, kept, job.n, part, job.channel, job.channel_end, tiles)
                 : direct<T>(c, rows, kept, job.n, job.images, part, job.channel, job.channel_end);
  });
}

}  // namespace

void conv2d_fused_kernel(const Conv2dArgs& c, int64_t begin, int64_t end) {
  with_dtype(c.dtype, [&]<class T>() { run<T>(c, begin, end); });
}

void conv2d_fused_keep_rows(const Conv2dArgs& c, int64_t n, int64_t begin, int64_t end, unsigned char* kept) {
  with_dtype(c.dtype, [&]<class T>() { keep_rows<T>(c, KeptRows<T>(c, begin, end), n, kept); });
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
