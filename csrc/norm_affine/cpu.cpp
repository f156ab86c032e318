// norm_affine on the CPU: a group's parts are joined in double, first their mean, then the deviations from it.
#include "norm_affine.h"

#include "../common/matrix.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

template <class S>
FASTDIFF_INLINE const S* part_of(const NormAffineArgs& a, int64_t n, int64_t channel, int64_t& count) {
  const Partials& p = a.inputs[channel >= a.inputs[0].channels];
  count = p.parts;
  return static_cast<const S*>(p.data) + (n * p.channels + channel - (&p - a.inputs) * a.inputs[0].channels) * p.parts * 3;
}

template <class S>
void image(const NormAffineArgs& a, int64_t n) {
  const int64_t channels = a.inputs[0].channels + a.inputs[1].channels, each = channels / a.groups;
  const auto value = [&](const Matrix& m, int64_t c, double otherwise) {
    return m.data ? static_cast<double>(element<S>(m, n, c)) : otherwise;
  };
  for (int64_t first = 0; first < channels; first += each) {
    // body(part) of all parts of the group's channels
    const auto for_parts = [&](auto&& body) FASTDIFF_INLINE_LAMBDA {
      for (int64_t c = first; c < first + each; ++c) {
        int64_t count;
        const S* part = part_of<S>(a, n, c, count);
        for (const S* end = part + 3 * count; part != end; part += 3) body(part);
      }
    };
    int64_t parts;
    const double start = part_of<S>(a, n, first, parts)[1];
    double count = 0, sum = 0, square = 0;
    for_parts([&](const S* p) FASTDIFF_INLINE_LAMBDA { count += p[0], sum += p[0] * (p[1] - start); });
    const double mean = start + sum / count;
    for_parts([&](const S* p) FASTDIFF_INLINE_LAMBDA { square += p[2] + p[0] * (p[1] - mean) * (p[1] - mean); });
    const double rstd = 1 / __builtin_sqrt(square / count + a.eps);
    for (int64_t c = first; c < first + each; ++c) {
      const double factor = rstd * value(a.weight, c, 1), modulation = 1 + value(a.scale, c, 0);
      const double offset = value(a.bias, c, 0) - mean * factor;
      static_cast<S*>(a.a)[n * channels + c] = static_cast<S>(factor * modulation);
      static_cast<S*>(a.b)[n * channels + c] = static_cast<S>(offset * modulation + value(a.shift, c, 0));
      if (!a.mean) continue;
      static_cast<S*>(a.mean)[n * channels + c] = static_cast<S>(mean);
      static_cast<S*>(a.rstd)[n * channels + c] = static_cast<S>(rstd);
    }
  }
}

}  // namespace

void norm_affine_kernel(const NormAffineArgs& a, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) a.wide ? image<double>(a, n) : image<float>(a, n);
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
