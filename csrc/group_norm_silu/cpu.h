// What forward and backward share on the CPU: the folded coefficients, and one loop over lines of memory for both formats.
#pragma once
#include "../common/simd.h"

#include "../common/activation.h"
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "group_norm_silu.h"

namespace fastdiff::FASTDIFF_ISA {

// The coefficients of one image, each [channels].
template <class S>
struct Coefficients {
  Coefficients(const GroupNormSiluArgs& a, int64_t n)
      : mean(static_cast<S*>(a.coefficients) + n * 3 * a.channels), factor(mean + a.channels), offset(factor + a.channels) {}
  S *mean, *factor, *offset;
};

// Turns (mean, rstd, rest) of channels [begin, end) into (mean, factor, offset). The rest is what was lost when the mean was
// rounded, mean - true mean; it returns here.
template <class S>
void fold_parameters(const GroupNormSiluArgs& a, int64_t n, int64_t begin, int64_t end) {
  using V = Vec<S>;
  const Coefficients<S> k(a, n);
  for_vectors<kLanesOf<S>>(end - begin, [&](int64_t i, int64_t count) {
    const int64_t c = begin + i;
    const V one = splat<V>(1), modulation = a.scale.data ? one + elements<S>(a.scale, n, c, count) : one;
    V factor = load_up_to(k.factor + c, count) * modulation;
    if (a.weight.data) factor *= elements<S>(a.weight, 0, c, count);
    V offset = load_up_to(k.offset + c, count) * factor;
    if (a.bias.data) offset = madd(elements<S>(a.bias, 0, c, count), modulation, offset);
    if (a.shift.data) offset += elements<S>(a.shift, n, c, count);
    store_up_to(k.factor + c, factor, count), store_up_to(k.offset + c, offset, count);
  });
}

// f(i / (middle * inner), i / inner % middle, i % inner) for i of [begin, end), divided once for all of them: rows are short.
template <class F>
FASTDIFF_INLINE void for_indices(int64_t begin, int64_t end, int64_t middle, int64_t inner, F&& f) {
  int64_t low = begin % inner, mid = begin / inner % middle, high = begin / inner / middle;
  for (int64_t i = begin; i < end; ++i) {
    f(high, mid, low);
    if (++low < inner) continue;
    low = 0;
    if (++mid < middle) continue;
    mid = 0, ++high;
  }
}

// f(g, size) for each group; a size of one is a constant, so that the loop over groups becomes one of vectors.
template <class F>
FASTDIFF_INLINE void for_groups(int64_t groups, int64_t size, F&& f) {
  if (size == 1)
    for (int64_t g = 0; g < groups; ++g) f(g, std::integral_constant<int64_t, 1>{});
  else
    for (int64_t g = 0; g < groups; ++g) f(g, size);
}

// f(image, first group, last group) for each image's part of groups [begin, end) of images * groups.
template <class F>
void for_images(const GroupNormSiluArgs& a, int64_t begin, int64_t end, F&& f) {
  while (begin < end) {
    const int64_t n = begin / a.groups, first = begin % a.groups, last = least(a.groups, first + end - begin);
    f(n, first, last);
    begin += last - first;
  }
}

// Values per channel as a line sees them: a row of pixels of one channel, or all channels of one pixel.
template <class S>
struct OneChannel {
  int64_t c;
  struct Values {
    Vec<S> value;
    FASTDIFF_INLINE Vec<S> operator()(int64_t, int64_t) const { return value; }
  };
  FASTDIFF_INLINE Values operator()(const S* values) const { return {splat<Vec<S>>(values[c])}; }
};
template <class S>
struct AllChannels {
  struct Values {
    const S* values;
    FASTDIFF_INLINE Vec<S> operator()(int64_t c, int64_t count) const { return load_up_to(values + c, count); }
  };
  FASTDIFF_INLINE Values operator()(const S* values) const { return {values}; }
};

// line(image, first element, size, OneChannel or AllChannels) for each line of chunks [begin, end) of rows.
template <class S, class F>
FASTDIFF_INLINE void for_lines(const GroupNormSiluArgs& a, int64_t begin, int64_t end, F&& line) {
  const int64_t channels = a.channels_last ? 1 : a.channels;  // that a row is one of
  for_indices(begin, end, channels, a.rows.count, [&](int64_t n, int64_t c, int64_t chunk) FASTDIFF_INLINE_LAMBDA {
    const int64_t first = chunk * a.rows.size, at = (n * channels + c) * a.rows.length + first;
    const int64_t size = least(a.rows.size, a.rows.length - first);
    if (a.channels_last)
      for (int64_t pixel = at; pixel < at + size; ++pixel) line(n, pixel * a.channels, a.channels, AllChannels<S>{});
    else
      line(n, at, size, OneChannel<S>{c});
  });
}

}  // namespace fastdiff::FASTDIFF_ISA
