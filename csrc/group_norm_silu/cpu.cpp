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
  for (int64_t i = begin; i < end; ++i) {
    const int64_t run = i / a.runs.count, chunk = i % a.runs.count, first = chunk * a.runs.size;
    const int64_t size = least(a.runs.size, a.runs.length - first);
    const T* x = static_cast<const T*>(a.x) + run * a.runs.length + first;
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
    S* moments = moments_of<S>(a, run / a.groups, chunk) + run % a.groups;
    moments[0] = shift[0], moments[a.columns] = offset;
    moments[2 * a.columns] = sum_lanes((square[0] + square[1]) + (square[2] + square[3])) - total * offset;
  }
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
  const int64_t per_group = a.columns / a.groups, width = (last - first) * per_group;
  const int64_t channels = a.channels / a.groups;
  const Scratch<double> values(2 * width);
  double *sum = values.data(), *center = sum + width;
  // sum[c] of f(chunk's size, its mean less center[c], its squares)
  const auto sum_chunks = [&](auto&& f) {
    for (int64_t c = 0; c < width; ++c) sum[c] = 0;
    for (int64_t chunk = 0; chunk < a.runs.count; ++chunk) {
      const S* shift = moments_of<S>(a, n, chunk) + first * per_group;
      const S *offset = shift + a.columns, *square = offset + a.columns;
      const double size = static_cast<double>(least(a.runs.size, a.runs.length - chunk * a.runs.size));
      for (int64_t c = 0; c < width; ++c) sum[c] += f(size, shift[c] - center[c] + offset[c], double{square[c]});
    }
  };
  const auto recenter = [&](int64_t g, double value) {
    for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) center[c] = value;
  };
  const auto group_mean = [&](int64_t g) {
    double total = 0;
    for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) total += sum[c];
    return total / static_cast<double>(channels * a.pixels);
  };

  for (int64_t g = 0; g < last - first; ++g) recenter(g, moments_of<S>(a, n, 0)[(first + g) * per_group]);
  sum_chunks([](double size, double d, double) { return size * d; });
  for (int64_t g = 0; g < last - first; ++g) recenter(g, center[g * per_group] + group_mean(g));
  sum_chunks([](double size, double d, double square) { return square + size * d * d; });
  const Coefficients<S> k(a, n);
  for (int64_t g = 0; g < last - first; ++g) {
    const double mean = center[g * per_group], variance = group_mean(g);
    const S rounded = static_cast<S>(mean);
    const S rstd = static_cast<S>(1 / __builtin_sqrt((variance < 0 ? 0 : variance) + a.eps));
    static_cast<S*>(a.mean)[n * a.groups + first + g] = rounded;
    static_cast<S*>(a.rstd)[n * a.groups + first + g] = rstd;
    for (int64_t c = (first + g) * channels; c < (first + g + 1) * channels; ++c)
      k.mean[c] = rounded, k.factor[c] = rstd, k.offset[c] = static_cast<S>(rounded - mean);
  }
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
      store_up_to(y + i, activate<kAct>(z), lanes);
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
}

}  // namespace fastdiff::FASTDIFF_ISA
