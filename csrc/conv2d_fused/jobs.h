// A job's band of input rows, kept until another band's are wanted.
#pragma once
#include "../common/dispatch.h"
#include "kept_rows.h"

namespace fastdiff::FASTDIFF_ISA {

inline unsigned char* aligned(unsigned char* p) {
  return p + (kBlockBytes - reinterpret_cast<uintptr_t>(p) % kBlockBytes) % kBlockBytes;
}

// Parts [part, part_end) of some images, output channels [channel, channel_end).
struct RowsJob {
  int64_t n, images, band, part, part_end, channel, channel_end;
  RowsJob(const Conv2dArgs& c, int64_t index) {
    const int64_t rest = index % (c.bands * c.block_parts);
    n = index / (c.bands * c.block_parts) * c.images_together, images = least(c.images_together, c.images - n);
    band = rest / c.block_parts, part = band * c.band_parts, part_end = least(part + c.band_parts, c.parts);
    channel = rest % c.block_parts * c.blocks_together * kOutputBlock;
    channel_end = least(channel + c.blocks_together * kOutputBlock, c.out_channels);
  }
};

template <class T>
void keep_rows(const Conv2dArgs& c, const KeptRows<T>& rows, int64_t n, unsigned char* kept) {
  with_activation(c.act_in, [&]<Act kAct>() {
    for (int64_t r = 0; r < rows.rows; ++r) keep_row<T, kAct>(c, rows, n, rows.first_row + r - c.top, kept + r * rows.row_bytes);
  });
}

// f(job, where an image's rows lie, the rows of its images), behind which there are some bytes more that may be read.
template <class T, class F>
void for_each_job(const Conv2dArgs& c, int64_t begin, int64_t end, int64_t behind, F&& f) {
  const KeptRows<T> most(c, 0, least(c.band_parts * c.part_rows, c.out_height));
  const Scratch<unsigned char> memory(c.images_together * most.bytes() + behind + kBlockBytes);
  unsigned char* kept = aligned(memory.data());
  int64_t kept_image = -1, kept_band = -1;
  for (int64_t index = begin; index < end; ++index) {
    const RowsJob job(c, index);
    const KeptRows<T> rows(c, job.part * c.part_rows, least(job.part_end * c.part_rows, c.out_height));
    if (job.n != kept_image || job.band != kept_band)
      for (int64_t i = 0; i < job.images; ++i) keep_rows<T>(c, rows, job.n + i, kept + i * rows.bytes());
    kept_image = job.n, kept_band = job.band;
    f(job, rows, kept);
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
