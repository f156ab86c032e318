// norm_conv2d's passes over channels on the CPU: statistics, sums, and the backward of norm, FiLM and activation.
#include "norm_conv2d.h"

#include "../common/dispatch.h"
#include "../common/matrix.h"

#include "../common/activation.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

constexpr int64_t kFew = 64;  // pixels summed apart: an addition to a large sum loses most

// body(first pixel, last) of a few pixels at a time.
template <class F>
FASTDIFF_INLINE void for_few(int64_t pixels, F&& body) {
  for (int64_t first = 0; first < pixels; first += kFew) body(first, least(first + kFew, pixels));
}

template <class T>
void statistics(const ChannelStatisticsArgs& a, int64_t n) {
  using S = Compute<T>;
  using V = Vec<S>;
  const T* x = static_cast<const T*>(a.x) + n * a.pixels * a.channels;
  S* to = static_cast<S*>(a.partials) + n * a.channels * 3;
  for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t count) {
    const auto at = [&](int64_t pixel) FASTDIFF_INLINE_LAMBDA { return load_up_to(x + pixel * a.channels + c, count); };
    const V share = splat<V>(S{1} / static_cast<S>(a.pixels)), start = at(0);
    V mean{}, m2{};
    for_few(a.pixels, [&](int64_t first, int64_t last) FASTDIFF_INLINE_LAMBDA {
      V few{};
      for (int64_t p = first; p < last; ++p) few += at(p) - start;
      mean += few;
    });
    mean = madd(mean, share, start);
    for_few(a.pixels, [&](int64_t first, int64_t last) FASTDIFF_INLINE_LAMBDA {
      V few{};
      for (int64_t p = first; p < last; ++p) {
        const V d = at(p) - mean;
        few = madd(d, d, few);
      }
      m2 += few;
    });
    for (int64_t i = 0; i < count; ++i) {
      S* part = to + (c + i) * 3;
      part[0] = static_cast<S>(a.pixels), part[1] = mean[i], part[2] = m2[i];
    }
  });
}

template <class T>
void sums(const ChannelSumsArgs& a, int64_t n) {
  using S = Compute<T>;
  const T* x = static_cast<const T*>(a.x) + n * a.pixels * a.channels;
  for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t count) {
    Vec<S> total{};
    for_few(a.pixels, [&](int64_t first, int64_t last) FASTDIFF_INLINE_LAMBDA {
      Vec<S> few{};
      for (int64_t p = first; p < last; ++p) few += load_up_to(x + p * a.channels + c, count);
      total += few;
    });
    store_up_to(static_cast<S*>(a.sums) + n * a.channels + c, total, count);
  });
}

// One vector of channels of one input and image: x, the coefficients there, and dz of each pixel.
template <class T, Act kAct, bool kUp>
struct Column {
  using S = Compute<T>;
  using V = Vec<S>;
  const NormBackwardArgs& n;
  const T *x, *dh;
  int64_t stride, count;  // of x from pixel to pixel; of lanes
  bool norm;
  V mean{}, a{}, b{};
  Column(const NormBackwardArgs& n, const NormInput& input, int64_t image, int64_t channel, int64_t count)
      : n(n), x(static_cast<const T*>(input.x) + image * n.height * n.width * input.channels + channel),
        dh(static_cast<const T*>(n.dh) + (image * n.height * n.width * n.channels << 2 * kUp) + input.first + channel),
        stride(input.channels), count(count), norm(n.groups > 0) {
    if (!norm) return;
    const auto coefficient = [&](const void* from) {
      return load_up_to(static_cast<const S*>(from) + image * n.channels + input.first + channel, count);
    };
    mean = coefficient(n.mean), a = coefficient(n.a), b = coefficient(n.b);
  }
  FASTDIFF_INLINE V value(int64_t pixel) const { return load_up_to(x + pixel * stride, count); }
  FASTDIFF_INLINE V dz(int64_t pixel, V value) const {
    const auto at = [&](int64_t place) FASTDIFF_INLINE_LAMBDA { return load_up_to(dh + place * n.channels, count); };
    V grad;
    if constexpr (kUp) {
      const int64_t place = pixel / n.width * 4 * n.width + pixel % n.width * 2;
      grad = (at(place) + at(place + 1)) + (at(place + 2 * n.width) + at(place + 2 * n.width + 1));
    } else {
      grad = at(pixel);
    }
    if constexpr (kAct == Act::none) return grad;
    return grad * derivative<kAct>(norm ? madd(value, a, b) : value);
  }
};

// f(input, channel, count) for each vector of channels of both inputs.
template <class S, class F>
FASTDIFF_INLINE void for_columns(const NormBackwardArgs& n, F&& f) {
  for (const NormInput& input : n.inputs)
    for_vectors<kLanesOf<S>>(input.channels, [&](int64_t c, int64_t count) { f(input, c, count); });
}

// From the sums of dz (x - mean) and of dz over an image's channels: the parameters' gradients, and what the statistics add to
// dx, in the sums' place: slope and level.
template <class S>
void combine(const NormBackwardArgs& n, int64_t image, S* sum_dz_x, S* sum_dz) {
  const int64_t each = n.channels / n.groups;
  const S* a = static_cast<const S*>(n.a) + image * n.channels;
  const S* rstds = static_cast<const S*>(n.rstd) + image * n.channels;
  const double share = 1 / static_cast<double>(each * n.height * n.width);
  S* shares = static_cast<S*>(n.shares) + image * n.channels;
  for (int64_t first = 0; first < n.channels; first += each) {
    double with_x = 0, without = 0;
    const double rstd = rstds[first];
    for (int64_t c = first; c < first + each; ++c) with_x += double{a[c]} * sum_dz_x[c], without += double{a[c]} * sum_dz[c];
    for (int64_t c = first; c < first + each; ++c) {
      const S with_xhat = static_cast<S>(sum_dz_x[c] * rstd), dz = sum_dz[c];
      const S modulation = n.scale.data ? 1 + element<S>(n.scale, image, c) : S{1};
      shares[c] = modulation * with_xhat, shares[n.images * n.channels + c] = modulation * dz;
      const int64_t at = image * n.channels + c;
      if (n.shift.data) store_elements<S>(n.dshift, n.shift.dtype, at, splat<Vec<S>>(dz), 1);
      if (n.scale.data) {
        S dscale = n.weight.data ? with_xhat * element<S>(n.weight, 0, c) : with_xhat;
        if (n.bias.data) dscale += element<S>(n.bias, 0, c) * dz;
        store_elements<S>(n.dscale, n.scale.dtype, at, splat<Vec<S>>(dscale), 1);
      }
      sum_dz_x[c] = static_cast<S>(-with_x * share * rstd * rstd), sum_dz[c] = static_cast<S>(-without * share);
    }
  }
}

template <class T, Act kAct, bool kUp>
void inputs(const NormBackwardArgs& n, int64_t image) {
  using S = Compute<T>;
  using V = Vec<S>;
  const int64_t pixels = n.height * n.width;
  const Scratch<S> memory(2 * n.channels);
  S *slope = memory.data(), *level = slope + n.channels;
  if (n.groups) {
    for_columns<S>(n, [&](const NormInput& input, int64_t channel, int64_t count) {
      const Column<T, kAct, kUp> column(n, input, image, channel, count);
      V dz_x{}, dz{};
      for_few(pixels, [&](int64_t first, int64_t last) FASTDIFF_INLINE_LAMBDA {
        V few_dz_x{}, few_dz{};
        for (int64_t p = first; p < last; ++p) {
          const V value = column.value(p), d = column.dz(p, value);
          few_dz_x = madd(d, value - column.mean, few_dz_x), few_dz += d;
        }
        dz_x += few_dz_x, dz += few_dz;
      });
      store_up_to(slope + input.first + channel, dz_x, count), store_up_to(level + input.first + channel, dz, count);
    });
    combine<S>(n, image, slope, level);
  }
  for_columns<S>(n, [&](const NormInput& input, int64_t channel, int64_t count) {
    const Column<T, kAct, kUp> column(n, input, image, channel, count);
    T* dx = static_cast<T*>(input.dx) + image * pixels * input.channels + channel;
    V s{}, l{};
    if (n.groups) s = load_up_to(slope + input.first + channel, count), l = load_up_to(level + input.first + channel, count);
    for (int64_t p = 0; p < pixels; ++p) {
      const V value = column.value(p);
      V d = column.dz(p, value);
      // The product is rounded before level is added, as level was: for a group of one element they cancel to the last bit.
      if (n.groups) d = madd(value - column.mean, s, d * column.a + l);
      store_up_to(dx + p * input.channels, d, count);
    }
  });
}

template <class S>
void sum_images(const SumImagesArgs& a, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    double total = 0;
    for (int64_t n = 0; n < a.images; ++n) total += static_cast<const S*>(a.from)[n * a.columns + c];
    store_elements<S>(a.out, a.dtype, c, splat<Vec<S>>(static_cast<S>(total)), 1);
  }
}

}  // namespace

void channel_statistics_kernel(const ChannelStatisticsArgs& a, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&]<class T>() {
    for (int64_t n = begin; n < end; ++n) statistics<T>(a, n);
  });
}

void channel_sums_kernel(const ChannelSumsArgs& a, int64_t begin, int64_t end) {
  with_dtype(a.dtype, [&]<class T>() {
    for (int64_t n = begin; n < end; ++n) sums<T>(a, n);
  });
}

void norm_conv2d_inputs_kernel(const NormBackwardArgs& n, int64_t begin, int64_t end) {
  with_types(n.dtype, n.act, [&]<class T, Act kAct>() {
    for (int64_t image = begin; image < end; ++image)
      n.upsample ? inputs<T, kAct, true>(n, image) : inputs<T, kAct, false>(n, image);
  });
}

void sum_images_kernel(const SumImagesArgs& a, int64_t begin, int64_t end) {
  a.wide ? sum_images<double>(a, begin, end) : sum_images<float>(a, begin, end);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
