// The input rows of a band after the prologue, in the order in which the products read them.
#pragma once
#include "../common/activation.h"
#include "../common/bf16_dot.h"
#include "conv2d_fused.h"

namespace fastdiff::FASTDIFF_ISA {

struct SplitFloat {};  // float, of which two bf16 are kept: v rounded, and what is left rounded

// What is kept of T: bf16 in pairs, whose products are taken together; fp16 as float.
template <class T> struct KeptType { using type = T; };
template <> struct KeptType<f16> { using type = float; };
template <> struct KeptType<SplitFloat> { using type = bf16; };
template <class T> using Kept = typename KeptType<T>::type;
template <class T> constexpr int64_t kBlock = kBlockBytes / sizeof(Kept<T>);  // channels of a block
template <class T> constexpr int64_t kKeptParts = std::is_same_v<T, SplitFloat> ? 2 : 1;
template <class T> using Stored = std::conditional_t<std::is_same_v<T, SplitFloat>, float, T>;  // in x and y

// Where things lie in the memory that a job keeps, in bytes.
template <class T>
struct KeptRows {
  int64_t first_row, rows, columns;  // of the padded input; columns side by side of each remainder by the stride
  int64_t blocks, block_bytes, row_bytes;
  int64_t part_bytes;  // from the first of two parts to the second
  KeptRows(const Conv2dArgs& c, int64_t out_begin, int64_t out_end) {
    const int64_t even = c.winograd;  // whole tiles of two rows and columns
    first_row = out_begin * c.stride, rows = (out_end - 1 - out_begin) * c.stride + c.kernel_height;
    columns = ((c.out_width - 1) * c.stride + c.kernel_width + c.stride - 1) / c.stride;
    rows += even * (rows % 2), columns += even * (columns % 2);
    blocks = (c.channels + c.channels2 + kBlock<T> - 1) / kBlock<T>;
    if (c.tiles) {  // zeros between two rows serve both
      const int64_t right = (c.out_width - 1) + c.kernel_width - c.left - (c.width << c.upsample);
      const int64_t shared = c.stride == 1 ? least(least(c.left, right), c.kernel_width - 1) : 0;
      columns -= shared;
      row_bytes = columns * c.stride * kBlockBytes, block_bytes = rows * row_bytes + shared * kBlockBytes;
    } else {
      block_bytes = columns * c.stride * kBlockBytes, row_bytes = blocks * block_bytes;
    }
    part_bytes = blocks * (c.tiles ? block_bytes : rows * block_bytes);
  }
  int64_t bytes() const { return kKeptParts<T> * part_bytes; }
  int64_t column(const Conv2dArgs& c, int64_t padded) const {
    if (c.stride == 1) return padded * kBlockBytes;  // without the division below
    return (padded % c.stride * columns + padded / c.stride) * kBlockBytes;
  }
};

// `count` channels from `channel` on of the concatenation of x and x2 at one pixel, one vector at most.
template <class T>
FASTDIFF_INLINE Vec<Compute<T>> channels_at(const Conv2dArgs& c, int64_t pixel, int64_t channel, int64_t count) {
  const T* x = static_cast<const T*>(c.x) + pixel * c.channels + channel;
  if (channel + count <= c.channels) return load_up_to(x, count);
  const T* x2 = static_cast<const T*>(c.x2) + pixel * c.channels2 + (channel - c.channels);
  if (channel >= c.channels) return load_up_to(x2, count);
  T both[kLanesOf<Compute<T>>];
  for (int64_t i = 0; i < count; ++i) both[i] = channel + i < c.channels ? x[i] : x2[i];
  return load_up_to(both, count);
}

// Where a pixel's 64 bytes of channels lie in x or x2, if the prologue leaves them as they are and one of both holds them all.
template <class T, Act kAct>
const Stored<T>* as_they_are(const Conv2dArgs& c, int64_t pixel, int64_t channel) {
  using X = Stored<T>;
  if (!std::is_same_v<X, Kept<T>> || kAct != Act::none || c.a) return nullptr;
  if (channel + kBlock<T> <= c.channels) return static_cast<const X*>(c.x) + pixel * c.channels + channel;
  const int64_t second = channel - c.channels;
  const bool all = second >= 0 && second + kBlock<T> <= c.channels2;
  return all ? static_cast<const X*>(c.x2) + pixel * c.channels2 + second : nullptr;
}

// A vector of what products are taken of.
template <class T>
FASTDIFF_INLINE void keep(unsigned char* to, Vec<Compute<T>> v, [[maybe_unused]] int64_t part_bytes) {
  store_operands(reinterpret_cast<Kept<T>*>(to), v);
  if constexpr (std::is_same_v<T, SplitFloat>) {
    auto* rest = reinterpret_cast<bf16*>(to + part_bytes);
    store_operands(rest, v - load(reinterpret_cast<const bf16*>(to)));
  }
}

// One input row of image n through the prologue, from channel block to channel block.
template <class T, Act kAct>
void keep_row(const Conv2dArgs& c, const KeptRows<T>& k, int64_t n, int64_t row, unsigned char* to) {
  using S = Compute<T>;
  constexpr int64_t kLanes = kLanesOf<S>;
  const int64_t channels = c.channels + c.channels2, shift = c.upsample;
  const int64_t padded_width = c.winograd ? k.columns : (c.out_width - 1) * c.stride + c.kernel_width;
  for (int64_t block = 0; block < k.blocks; ++block, to += k.block_bytes) {
    const auto zero = [&](int64_t begin, int64_t end) {
      for (int64_t part = 0; part < kKeptParts<T>; ++part)
        for (int64_t at = begin; at < end; ++at) std::memset(to + k.column(c, at) + part * k.part_bytes, 0, kBlockBytes);
    };
    const int64_t inside = row >= 0 && row < (c.height << shift) ? c.width << shift : 0;
    const int64_t end = least(c.left + inside, padded_width);
    zero(0, inside ? least(c.left, padded_width) : padded_width);
    if (inside == 0) continue;
    zero(end, padded_width);
    const int64_t line = (n * c.height + (row >> shift)) * c.width;
    const auto at_copies = [&](int64_t x, auto&& store) {  // one place, or two where the row is up-sampled
      for (int64_t at = c.left + (x << shift), last = least(at + shift, end - 1); at <= last; ++at) store(to + k.column(c, at));
    };
    if (const Stored<T>* from = as_they_are<T, kAct>(c, line, block * kBlock<T>)) {
      const int64_t stride = block * kBlock<T> < c.channels ? c.channels : c.channels2;
      for (int64_t x = 0; x << shift < end - c.left; ++x, from += stride)
        at_copies(x, [&](unsigned char* place) { std::memcpy(place, from, kBlockBytes); });
      continue;
    }
    for (int64_t first = 0; first < kBlock<T>; first += kLanes) {
      const int64_t channel = block * kBlock<T> + first;
      const int64_t count = channel < channels ? least(kLanes, channels - channel) : 0;
      Vec<S> factor{}, offset{};
      if (c.a && count) {
        factor = load_up_to(static_cast<const S*>(c.a) + n * channels + channel, count);
        offset = load_up_to(static_cast<const S*>(c.b) + n * channels + channel, count);
      }
      for (int64_t x = 0; x << shift < end - c.left; ++x) {
        Vec<S> v{};
        if (count) {
          v = channels_at<Stored<T>>(c, line + x, channel, count);
          v = activate<kAct>(c.a ? madd(v, factor, offset) : v);
        }
        at_copies(x, [&](unsigned char* place) { keep<T>(place + first * sizeof(Kept<T>), v, k.part_bytes); });
      }
    }
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
