// norm_affine on CUDA: a warp joins the parts of a group in double, first their mean, then the deviations from it, always in
// the same order, and writes its channels' numbers.
#include "../common/cuda_device.h"

#include "norm_affine.h"

namespace fastdiff {
namespace cuda {
namespace {

FASTDIFF_INLINE double warp_sum(double v) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
  return v;
}

template <class S>
__global__ void __launch_bounds__(kThreads) norm_affine_kernel(const NormAffineArgs a) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (i >= a.images * a.groups) return;
  // In 32 bits, since 64-bit division is a call, around which registers spill.
  const int64_t n = static_cast<uint32_t>(i) / static_cast<uint32_t>(a.groups), group = i - n * a.groups;
  const int64_t channels = a.inputs[0].channels + a.inputs[1].channels;
  const int64_t each = static_cast<uint32_t>(channels) / static_cast<uint32_t>(a.groups), first = group * each;
  const auto input_of = [&](int64_t channel) { return channel >= a.inputs[0].channels; };
  const auto part_of = [&](int input, int64_t channel, int64_t part) {
    const Partials& p = a.inputs[input];
    const int64_t row = n * p.channels + channel - (input ? a.inputs[0].channels : 0);
    return static_cast<const S*>(p.data) + (row * p.parts + part) * 3;
  };
  // The sum of f(part) over the group, the channels of one input after those of the other.
  const auto over_parts = [&](auto&& f) {
    double total = 0;
    for (int input = 0; input < 2; ++input) {
      const int64_t border = a.inputs[0].channels, end = first + each;
      const int64_t from = input && first < border ? border : first, to = !input && end > border ? border : end;
      const auto parts = static_cast<uint32_t>(a.inputs[input].parts);
      for (int64_t k = lane; k < (to - from) * parts; k += 32) {
        const uint32_t channel = static_cast<uint32_t>(k) / parts;
        total += f(part_of(input, from + channel, k - static_cast<int64_t>(channel) * parts));
      }
    }
    return warp_sum(total);
  };
  const double start = part_of(input_of(first), first, 0)[1];
  const double count = over_parts([](const S* p) { return static_cast<double>(p[0]); });
  const double mean = start + over_parts([&](const S* p) { return p[0] * (p[1] - start); }) / count;
  const double square = over_parts([&](const S* p) { return p[2] + p[0] * (p[1] - mean) * (p[1] - mean); });
  const double rstd = rsqrt(square / count + a.eps);
  for (int64_t c = first + lane; c < first + each; c += 32) {
    const auto value = [&](const Matrix& m, double otherwise) { return m.data ? element(m, n, c) : otherwise; };
    const double factor = rstd * value(a.weight, 1), modulation = 1 + value(a.scale, 0);
    const double offset = value(a.bias, 0) - mean * factor;
    static_cast<S*>(a.a)[n * channels + c] = static_cast<S>(factor * modulation);
    static_cast<S*>(a.b)[n * channels + c] = static_cast<S>(offset * modulation + value(a.shift, 0));
  }
}

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* norm_affine_cuda_launch(const NormAffineArgs& a, void* stream) {
  const int64_t parts = a.inputs[0].parts > a.inputs[1].parts ? a.inputs[0].parts : a.inputs[1].parts;
  const int64_t channels = a.inputs[0].channels + a.inputs[1].channels;
  if (a.images * a.groups > UINT32_MAX || channels * parts > UINT32_MAX) return "norm_affine: more than 2^32 groups or parts";
  const auto kernel = a.wide ? norm_affine_kernel<double> : norm_affine_kernel<float>;
  return launch(kernel, blocks_for(a.images * a.groups * 32), stream, a);
}

}  // namespace fastdiff
