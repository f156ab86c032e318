// GroupNorm + FiLM + activation on the CPU, forward: moments of chunks, their combination, one pass that writes y.
//
// Sums are shifted: a chunk adds x - shift and its square in registers, where shift is the mean of its first few values, so
// that squares are no larger than the spread of the chunk. In channels_last every channel is a lane with its own sums, taken
// over kPixels pixels at a time before they touch memory. Chunks are joined in double about the
// group's mean, in the order of memory; a chunk keeps its mean as shift + offset, since at a large mean the rounded sum of the
// two would lose more than the chunks' means differ by.
#include "cpu.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

constexpr int kTile = 4;  // vectors in flight, so that additions need not wait for each other
constexpr int kPixels = 8;

template <class S>
S* moments_of(const GroupNormSiluArgs& a, int64_t n, int64_t chunk) {
  return static_cast<S*>(a.moments) + (n * a.runs.count + chunk) * 3 * a.columns;
}

// NCHW: a chunk of one group's elements.
template <class T>
void run_moments(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using V = Vec<S>;
  constexpr int64_t kLanes = kLanesOf<S>;
  for_indices(begin, end, a.groups, a.runs.count, [&](int64_t n, int64_t g, int64_t chunk) FASTDIFF_INLINE_LAMBDA {
    const int64_t first = chunk * a.runs.size, size = least(a.runs.size, a.runs.length - first);
    const T* x = static_cast<const T*>(a.x) + (n * a.groups + g) * a.runs.length + first;
    V shift = splat<V>(load(x, 1)[0]);
    if (size >= kTile * kLanes) {  // a power of two: the mean of equal values is exact
      V start = load(x);
      for (int t = 1; t < kTile; ++t) start += load(x + t * kLanes);
      shift = splat<V>(sum_lanes(start) / (kTile * kLanes));
    }
    V sum[kTile] = {}, square[kTile] = {};
    for_vectors<kTile * kLanes>(size, [&](int64_t at, int64_t count) {
      for (int t = 0; t < kTile && t * kLanes < count; ++t) {
        const int64_t lanes = least(kLanes, count - t * kLanes);
        const V d = keep_up_to(load_up_to(x + at + t * kLanes, lanes) - shift, lanes);
        sum[t] += d, square[t] = madd(d, d, square[t]);
      }
    });
    const S total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])), offset = total / static_cast<S>(size);
    S* moments = moments_of<S>(a, n, chunk) + g;
    moments[0] = shift[0], moments[a.columns] = offset;
    moments[2 * a.columns] = sum_lanes((square[0] + square[1]) + (square[2] + square[3])) - total * offset;
  });
}

// channels_last: a chunk of one image's pixels, each channel by itself.
template <class T>
void pixel_moments(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  using V = Vec<S>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / a.runs.count, first = i % a.runs.count * a.runs.size;
    const int64_t size = least(a.runs.size, a.pixels - first);
    const T* x = static_cast<const T*>(a.x) + (n * a.pixels + first) * a.channels;
    S* shift = moments_of<S>(a, n, i % a.runs.count);
    S *sum = shift + a.channels, *square = sum + a.channels;
    std::memset(sum, 0, 2 * a.channels * sizeof(S));
    for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t lanes) {
      V first_values = load_up_to(x + c, lanes);
      if (size >= kPixels) {  // a power of two: the mean of equal values is exact
        for (int p = 1; p < kPixels; ++p) first_values += load_up_to(x + p * a.channels + c, lanes);
        first_values /= kPixels;
      }
      store_up_to(shift + c, first_values, lanes);
    });
    for (int64_t pixel = 0; pixel < size; pixel += kPixels) {
      const T* tile = x + pixel * a.channels;
      for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t lanes) {
        const V origin = load_up_to(shift + c, lanes);
        V s[2] = {}, q[2] = {};
        const auto add = [&](int64_t p) __attribute__((always_inline)) {
          const V d = load_up_to(tile + p * a.channels + c, lanes) - origin;
          s[p % 2] += d, q[p % 2] = madd(d, d, q[p % 2]);
        };
        if (size - pixel >= kPixels)
          for (int p = 0; p < kPixels; ++p) add(p);
        else
          for (int64_t p = 0; p < size - pixel; ++p) add(p);
        store_up_to(sum + c, load_up_to(sum + c, lanes) + (s[0] + s[1]), lanes);
        store_up_to(square + c, load_up_to(square + c, lanes) + (q[0] + q[1]), lanes);
      });
    }
    for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t lanes) {
      const V total = load_up_to(sum + c, lanes), offset = total / static_cast<S>(size);
      store_up_to(sum + c, offset, lanes);
      store_up_to(square + c, load_up_to(square + c, lanes) - total * offset, lanes);
    });
  }
}

// Joins the chunks of groups [first, last) of image n: mean and rstd, and the coefficients of their channels.
template <class S>
void finish(const GroupNormSiluArgs& a, int64_t n, int64_t first, int64_t last) {
  const int64_t groups = last - first, columns = a.columns / a.groups, channels = a.channels / a.groups;
  const int64_t width = groups * columns;
  const Scratch<double> scratch(2 * width + 2 * groups);
  double* __restrict center = scratch.data();
  double *__restrict sum = center + width, *__restrict mean = sum + width, *__restrict variance = mean + groups;

  // Sums over the chunks f(size of the chunk, its mean less center, its squared deviations), then their group means.
  const auto means = [&](double* out, auto&& f) FASTDIFF_INLINE_LAMBDA {
    for (int64_t c = 0; c < width; ++c) sum[c] = 0;
    for (int64_t chunk = 0; chunk < a.runs.count; ++chunk) {
      const S* shift = moments_of<S>(a, n, chunk) + first * columns;
      const S *offset = shift + a.columns, *square = offset + a.columns;
      const double size = static_cast<double>(least(a.runs.size, a.runs.length - chunk * a.runs.size));
      for (int64_t c = 0; c < width; ++c) sum[c] += f(size, shift[c] - center[c] + offset[c], double{square[c]});
    }
    for_groups(groups, columns, [&](int64_t g, auto size) FASTDIFF_INLINE_LAMBDA {
      double total = 0;
      for (int64_t c = g * size; c < (g + 1) * size; ++c) total += sum[c];
      out[g] = total * a.share;
    });
  };
  const auto recenter = [&](auto&& value) FASTDIFF_INLINE_LAMBDA {
    for_groups(groups, columns, [&](int64_t g, auto size) FASTDIFF_INLINE_LAMBDA {
      for (int64_t c = g * size; c < (g + 1) * size; ++c) center[c] = value(g);
    });
  };

  const S* start = moments_of<S>(a, n, 0) + first * columns;
  recenter([&](int64_t g) { return double{start[g * columns]}; });
  means(mean, [](double size, double d, double) { return size * d; });
  for (int64_t g = 0; g < groups; ++g) mean[g] += start[g * columns];
  recenter([&](int64_t g) { return mean[g]; });
  means(variance, [](double size, double d, double square) { return square + size * d * d; });

  const Coefficients<S> k(a, n);
  S* __restrict means_out = static_cast<S*>(a.mean) + n * a.groups + first;
  S* __restrict rstds_out = static_cast<S*>(a.rstd) + n * a.groups + first;
  for (int64_t g = 0; g < groups; ++g) {
    means_out[g] = static_cast<S>(mean[g]);
    rstds_out[g] = static_cast<S>(1 / __builtin_sqrt((variance[g] < 0 ? 0 : variance[g]) + a.eps));
  }
  S *__restrict means_of = k.mean + first * channels, *__restrict factors = k.factor + first * channels;
  S* __restrict rests = k.offset + first * channels;
  for_groups(groups, channels, [&](int64_t g, auto size) FASTDIFF_INLINE_LAMBDA {
    const S rest = static_cast<S>(means_out[g] - mean[g]);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) means_of[c] = means_out[g], factors[c] = rstds_out[g], rests[c] = rest;
  });
  fold_parameters<S>(a, n, first * channels, last * channels);
}

template <class T, Act kAct>
void apply(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  for_lines<S>(a, begin, end, [&](int64_t n, int64_t at, int64_t size, auto channel) __attribute__((always_inline)) {
    const Coefficients<S> k(a, n);
    const auto mean = channel(k.mean), factor = channel(k.factor), offset = channel(k.offset);
    const T* x = static_cast<const T*>(a.x) + at;
    T* y = static_cast<T*>(a.y) + at;
    for_vectors<kLanesOf<S>>(size, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
      const Vec<S> z = madd(load_up_to(x + i, lanes) - mean(i, lanes), factor(i, lanes), offset(i, lanes));
      write_up_to(y + i, activate<kAct>(z), lanes, a.past_caches);
    });
  });
}

}  // namespace

void group_norm_silu_moments_kernel(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&]<class T>() { a.channels_last ? pixel_moments<T>(a, begin, end) : run_moments<T>(a, begin, end); });
}

void group_norm_silu_finish_kernel(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  for_images(a, begin, end, [&](int64_t n, int64_t first, int64_t last) {
    a.dtype == DType::f64 ? finish<double>(a, n, first, last) : finish<float>(a, n, first, last);
  });
}

void group_norm_silu_apply_kernel(const GroupNormSiluArgs& a, int64_t begin, int64_t end) {
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() { apply<T, kAct>(a, begin, end); });
  if (a.past_caches) end_streams();
}

}  // namespace fastdiff::FASTDIFF_ISA
