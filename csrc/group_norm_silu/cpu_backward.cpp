// Backward of GroupNorm + FiLM + activation on the CPU: sums of dz and dz (x - mean) per image and channel, from which all
// parameters' gradients follow, then one pass that writes dx. dz costs an exponential and a division: where the passes work on
// a block that stays in the cache, the first keeps it for the second, in S, so the bits are the same as computed again.
#include "cpu.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class S>
S* sums_of(const GroupNormSiluBackwardArgs& b, int64_t n, int64_t chunk) {
  return static_cast<S*>(b.sums) + (n * b.forward.rows.count + chunk) * 2 * b.forward.channels;
}

// x - mean and dz at one place of a line. Past the end x - mean is made zero, so that dz is grad's zero there.
template <class T, Act kAct, class Values>
struct Line {
  using S = Compute<T>;
  const T *x, *grad;
  S* kept;  // null where dz is not kept
  Values mean, factor, offset;
  FASTDIFF_INLINE Vec<S> centred(int64_t i, int64_t lanes) const {
    return keep_up_to(load_up_to(x + i, lanes) - mean(i, lanes), lanes);
  }
  FASTDIFF_INLINE Vec<S> dz(int64_t i, int64_t lanes, Vec<S> centred) const {
    return load_up_to(grad + i, lanes) * derivative<kAct>(madd(centred, factor(i, lanes), offset(i, lanes)));
  }
};

template <class T, Act kAct, class Channel>
FASTDIFF_INLINE auto line_at(const GroupNormSiluBackwardArgs& b, int64_t n, int64_t at, Channel channel) {
  using S = Compute<T>;
  const Coefficients<S> k(b.forward, n);
  return Line<T, kAct, typename Channel::Values>{
      static_cast<const T*>(b.forward.x) + at, static_cast<const T*>(b.grad) + at,
      b.kept ? static_cast<S*>(b.kept) + (at - b.kept_from) : nullptr, channel(k.mean), channel(k.factor), channel(k.offset)};
}

template <class T, Act kAct>
void row_sums(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  for_indices(begin, end, a.channels, a.rows.count, [&](int64_t n, int64_t c, int64_t chunk) FASTDIFF_INLINE_LAMBDA {
    const int64_t first = chunk * a.rows.size;
    const auto line = line_at<T, kAct>(b, n, (n * a.channels + c) * a.pixels + first, OneChannel<S>{c});
    const int64_t size = least(a.rows.size, a.pixels - first);
    // A few elements first, then those sums: an addition to a large sum loses most.
    constexpr int64_t kFew = 64;
    Vec<S> sum_dz_x{}, sum_dz{};
    for (int64_t start = 0; start < size; start += kFew) {
      Vec<S> few_dz_x{}, few_dz{};
      for_vectors<kLanesOf<S>>(least(kFew, size - start), [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        const int64_t at = start + i;
        const Vec<S> centred = line.centred(at, lanes), dz = line.dz(at, lanes, centred);
        if (line.kept) store_up_to(line.kept + at, dz, lanes);
        few_dz_x = madd(dz, centred, few_dz_x), few_dz += dz;
      });
      sum_dz_x += few_dz_x, sum_dz += few_dz;
    }
    S* sums = sums_of<S>(b, n, chunk) + c;
    sums[0] = sum_lanes(sum_dz_x), sums[a.channels] = sum_lanes(sum_dz);
  });
}

template <class T, Act kAct>
void pixel_sums(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = i / a.rows.count, first = i % a.rows.count * a.rows.size;
    S* sum_dz_x = sums_of<S>(b, n, i % a.rows.count);
    S* sum_dz = sum_dz_x + a.channels;
    std::memset(sum_dz_x, 0, 2 * a.channels * sizeof(S));
    for (int64_t pixel = first; pixel < least(first + a.rows.size, a.pixels); ++pixel) {
      const auto line = line_at<T, kAct>(b, n, (n * a.pixels + pixel) * a.channels, AllChannels<S>{});
      for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t lanes) __attribute__((always_inline)) {
        const Vec<S> centred = line.centred(c, lanes), dz = line.dz(c, lanes, centred);
        if (line.kept) store_up_to(line.kept + c, dz, lanes);
        store_up_to(sum_dz_x + c, madd(dz, centred, load_up_to(sum_dz_x + c, lanes)), lanes);
        store_up_to(sum_dz + c, load_up_to(sum_dz + c, lanes) + dz, lanes);
      });
    }
  }
}

template <class S>
void prepare(const GroupNormSiluArgs& a, int64_t n, int64_t first, int64_t last) {
  const int64_t channels = a.channels / a.groups;
  const Coefficients<S> k(a, n);
  const S* mean = static_cast<S*>(a.mean) + n * a.groups + first;
  const S* rstd = static_cast<S*>(a.rstd) + n * a.groups + first;
  S *__restrict means = k.mean + first * channels, *__restrict factors = k.factor + first * channels;
  S* __restrict rests = k.offset + first * channels;
  for_groups(last - first, channels, [&](int64_t g, auto size) FASTDIFF_INLINE_LAMBDA {
    for (int64_t c = g * size; c < (g + 1) * size; ++c) means[c] = mean[g], factors[c] = rstd[g], rests[c] = 0;
  });
  fold_parameters<S>(a, n, first * channels, last * channels);
}

// Joins the chunks of groups [first, last) of image n: dscale and dshift, the image's shares of dweight and dbias, and the
// two terms that the statistics add to dx.
template <class S>
void combine(const GroupNormSiluBackwardArgs& b, int64_t n, int64_t first, int64_t last) {
  using V = Vec<S>;
  const GroupNormSiluArgs& a = b.forward;
  const int64_t channels = a.channels / a.groups, begin = first * channels, width = (last - first) * channels;
  const Scratch<double> totals(2 * width);
  double *__restrict dz_x = totals.data(), *__restrict dz = dz_x + width;
  std::memset(dz_x, 0, 2 * width * sizeof(double));
  for (int64_t chunk = 0; chunk < a.rows.count; ++chunk) {
    const S* sums = sums_of<S>(b, n, chunk) + begin;
    for (int64_t c = 0; c < width; ++c) dz_x[c] += sums[c], dz[c] += sums[a.channels + c];
  }

  const Coefficients<S> k(a, n);
  S* __restrict slope = static_cast<S*>(b.terms) + n * 2 * a.channels + begin;
  S* __restrict level = slope + a.channels;
  const Scratch<S> rounded(3 * width);
  S *__restrict sum_dz_x = rounded.data(), *__restrict sum_dz = sum_dz_x + width, *__restrict rstd = sum_dz + width;
  const S* group_rstd = static_cast<S*>(a.rstd) + n * a.groups + first;
  const S* factor = k.factor + begin;
  for_groups(last - first, channels, [&](int64_t g, auto size) FASTDIFF_INLINE_LAMBDA {
    double with_x = 0, without = 0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) with_x += factor[c] * dz_x[c], without += factor[c] * dz[c];
    const S group_slope = static_cast<S>(-with_x * a.share * group_rstd[g] * group_rstd[g]);
    const S group_level = static_cast<S>(-without * a.share);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      slope[c] = group_slope, level[c] = group_level, rstd[c] = group_rstd[g];
      sum_dz_x[c] = static_cast<S>(dz_x[c]), sum_dz[c] = static_cast<S>(dz[c]);
    }
  });

  S* dweight = static_cast<S*>(b.shares) + n * 2 * a.channels + begin;
  S* dbias = dweight + a.channels;
  for_vectors<kLanesOf<S>>(width, [&](int64_t i, int64_t count) {
    const int64_t c = begin + i, at = n * a.channels + c;
    const V one = splat<V>(1), modulation = a.scale.data ? one + elements<S>(a.scale, n, c, count) : one;
    const V total = load_up_to(sum_dz + i, count), with_xhat = load_up_to(sum_dz_x + i, count) * load_up_to(rstd + i, count);
    store_up_to(dweight + i, modulation * with_xhat, count), store_up_to(dbias + i, modulation * total, count);
    if (a.shift.data) store_elements<S>(b.dshift, a.shift.dtype, at, total, count);
    if (!a.scale.data) return;
    V dscale = a.weight.data ? with_xhat * elements<S>(a.weight, 0, c, count) : with_xhat;
    if (a.bias.data) dscale = madd(elements<S>(a.bias, 0, c, count), total, dscale);
    store_elements<S>(b.dscale, a.scale.dtype, at, dscale, count);
  });
}

template <class T, Act kAct, bool kKept>
void write_dx(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  const GroupNormSiluArgs& a = b.forward;
  for_lines<S>(a, begin, end, [&](int64_t n, int64_t at, int64_t size, auto channel) __attribute__((always_inline)) {
    const auto line = line_at<T, kAct>(b, n, at, channel);
    const S* terms = static_cast<const S*>(b.terms) + n * 2 * a.channels;
    const auto slope = channel(terms), level = channel(terms + a.channels);
    T* dx = static_cast<T*>(b.dx) + at;
    for_vectors<kLanesOf<S>>(size, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
      const Vec<S> centred = line.centred(i, lanes);
      const Vec<S> dz = kKept ? load_up_to(line.kept + i, lanes) : line.dz(i, lanes, centred);
      // The product is rounded before level is added, as level was: for a group of one element they cancel to the last bit.
      const Vec<S> less_mean = dz * line.factor(i, lanes) + level(i, lanes);
      write_up_to(dx + i, madd(centred, slope(i, lanes), less_mean), lanes, a.past_caches);
    });
  });
}

// Channels [begin, end) of dweight and dbias: the sum of the images' shares, in order.
template <class S>
void parameters(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  const GroupNormSiluArgs& a = b.forward;
  const Scratch<double> totals(end - begin);
  const auto reduce = [&](const Matrix& parameter, int64_t which, void* out) {
    if (!parameter.data) return;
    double* total = totals.data();
    for (int64_t c = 0; c < end - begin; ++c) total[c] = 0;
    for (int64_t n = 0; n < a.images; ++n) {
      const S* share = static_cast<const S*>(b.shares) + (n * 2 + which) * a.channels + begin;
      for (int64_t c = 0; c < end - begin; ++c) total[c] += share[c];
    }
    for (int64_t c = 0; c < end - begin; ++c)
      store_elements<S>(out, parameter.dtype, begin + c, splat<Vec<S>>(static_cast<S>(total[c])), 1);
  };
  reduce(a.weight, 0, b.dweight), reduce(a.bias, 1, b.dbias);
}

}  // namespace

void group_norm_silu_prepare_kernel(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  for_images(b.forward, begin, end, [&](int64_t n, int64_t first, int64_t last) {
    b.forward.dtype == DType::f64 ? prepare<double>(b.forward, n, first, last) : prepare<float>(b.forward, n, first, last);
  });
}

void group_norm_silu_sums_kernel(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  with_types(b.forward.dtype, b.forward.act, [&]<class T, Act kAct>() {
    b.forward.channels_last ? pixel_sums<T, kAct>(b, begin, end) : row_sums<T, kAct>(b, begin, end);
  });
}

void group_norm_silu_combine_kernel(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  for_images(b.forward, begin, end, [&](int64_t n, int64_t first, int64_t last) {
    b.forward.dtype == DType::f64 ? combine<double>(b, n, first, last) : combine<float>(b, n, first, last);
  });
}

void group_norm_silu_dx_kernel(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  if (b.kept)
    with_dtype(b.forward.dtype, [&]<class T>() { write_dx<T, Act::none, true>(b, begin, end); });
  else
    with_types(b.forward.dtype, b.forward.act, [&]<class T, Act kAct>() { write_dx<T, kAct, false>(b, begin, end); });
  if (b.forward.past_caches) end_streams();
}

void group_norm_silu_parameters_kernel(const GroupNormSiluBackwardArgs& b, int64_t begin, int64_t end) {
  b.forward.dtype == DType::f64 ? parameters<double>(b, begin, end) : parameters<float>(b, begin, end);
}

}  // namespace fastdiff::FASTDIFF_ISA
