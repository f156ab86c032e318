// norm_conv2d and its backward between torch and the kernels: memory safety, outputs, and the order of the passes.
#include <algorithm>

#include "../boxing.h"
#include "../common/activation_name.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "../conv2d_fused/plan.h"
#include "../norm_affine/norm_affine.h"
#include "../pack_conv_weight/pack.h"
#include "norm_conv2d.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Integers = std::vector<int64_t>;

constexpr const char* kOp = "norm_conv2d";
constexpr int64_t kWinogradChannels = 16;    // as gains_by_winograd in conv2d_fused.py
constexpr int64_t kGrain = 16384;            // elements a thread takes at least
constexpr int64_t kSumBytes = 2 << 20;       // of a weight gradient's sums: more chunks of images only below it
constexpr int64_t kChunks = 4;               // of images at most
constexpr int64_t kLineBytes = 4 << 20;      // of tiles that are gathered before they are multiplied
constexpr int64_t kBandBytes = 512 << 10;    // of rows that are, where there are no tiles
constexpr int64_t kPositionsAtLeast = 32;

int64_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }
DType wide_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
int64_t multiple(int64_t a, int64_t of) { return up(a, of) * of; }

void check_images_of(const Tensor& x, const Tensor& v, int64_t channels, int64_t height, int64_t width, const char* name) {
  FASTDIFF_CHECK(v.dim() == 4 && v.size(0) == x.size(0) && v.size(1) == channels && v.size(2) == height &&
                     v.size(3) == width && v.dtype() == x.dtype(),
                 kOp, ": ", name, " must be [", x.size(0), ", ", channels, ", ", height, ", ", width, "] in x's dtype");
  check_on_device_of(x, v, kOp, name);
}

// The convolution's sizes; its tensors are set later.
Conv2dArgs sizes_of(const Tensor& x, const MaybeTensor& x2, const std::string& act, const Tensor& weight, int64_t stride,
                    const Integers& padding, bool upsample) {
  FASTDIFF_CHECK(x.dim() == 4 && x.dtype() <= DType::f16, kOp, ": x must be [N, C, H, W], float32, bfloat16, float16 or float64");
  FASTDIFF_CHECK(padding.size() == 4 && std::all_of(padding.begin(), padding.end(), [](int64_t p) { return p >= 0; }) && stride > 0,
                 kOp, ": padding must be four numbers, none negative, and stride at least 1");
  Conv2dArgs c{};
  c.images = x.size(0), c.channels = x.size(1), c.height = x.size(2), c.width = x.size(3);
  c.dtype = x.dtype(), c.act_in = activation_named(act);
  if (x2) {
    FASTDIFF_CHECK(x2->dim() == 4, kOp, ": x2 must be [N, C, H, W]");
    c.channels2 = x2->size(1);
    check_images_of(x, *x2, c.channels2, c.height, c.width, "x2");
  }
  FASTDIFF_CHECK(weight.dim() == 4 && weight.size(1) == c.channels + c.channels2 && weight.numel() > 0 &&
                     (weight.dtype() == x.dtype() || weight.dtype() == wide_of(x.dtype())),
                 kOp, ": weight must be [Cout, C, kh, kw], in the compute dtype or x's");
  check_on_device_of(x, weight, kOp, "weight");
  c.out_channels = weight.size(0), c.kernel_height = weight.size(2), c.kernel_width = weight.size(3);
  c.stride = stride, c.left = padding[0], c.top = padding[2], c.upsample = upsample;
  const int64_t height = (c.height << upsample) + padding[2] + padding[3], width = (c.width << upsample) + padding[0] + padding[1];
  FASTDIFF_CHECK(c.height > 0 && c.width > 0 && height >= c.kernel_height && width >= c.kernel_width, kOp,
                 ": x must be at least as large as the kernel");
  c.out_height = (height - c.kernel_height) / stride + 1, c.out_width = (width - c.kernel_width) / stride + 1;
  c.winograd = c.kernel_height == 3 && c.kernel_width == 3 && stride == 1 &&
               std::min(c.channels + c.channels2, c.out_channels) >= kWinogradChannels;
  cut_into_parts(c);
  return c;
}

Matrix matrix(const MaybeTensor& m, const Tensor& x, int64_t channels, bool per_image, const char* name) {
  if (!m) return {};
  const int64_t last = m->dim() - 1;
  FASTDIFF_CHECK(m->dim() == 1 + per_image && m->size(last) == channels && (!per_image || m->size(0) == x.size(0)) &&
                     (m->dtype() == x.dtype() || m->dtype() == wide_of(x.dtype())),
                 kOp, ": ", name, " must be ", per_image ? "[N, C]" : "[C]", ", in the compute dtype or x's");
  check_on_device_of(x, *m, kOp, name);
  return {m->data(), per_image ? m->stride(0) : 0, m->stride(last), m->dtype()};
}

Tensor images(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  const int64_t sizes[] = {like.size(0), channels, height, width};
  return empty_strided(sizes, dense_strides(sizes, 4, true).data(), 4, like.dtype(), like);
}

// The statistics of one input: those given, or taken now.
Partials partials_of(const MaybeTensor& given, const Tensor& x, const Tensor& dense_x, const char* name, MaybeTensor& storage) {
  const DType wide = wide_of(x.dtype());
  if (given) {
    FASTDIFF_CHECK(given->dim() == 4 && given->size(0) == x.size(0) && given->size(1) == x.size(1) && given->size(2) > 0 &&
                       given->size(3) == 3 && given->dtype() == wide,
                   kOp, ": ", name, " must be [N, C, P, 3] in the compute dtype");
    check_on_device_of(x, *given, kOp, name);
    return {dense(*given, false, storage).data(), x.size(1), given->size(2)};
  }
  storage.emplace(empty({x.size(0), x.size(1), 1, 3}, wide, x));
  const ChannelStatisticsArgs a{x.size(0), x.size(1), x.size(2) * x.size(3), x.dtype(), dense_x.data(), storage->mutable_data()};
  parallel_for(0, a.images, kGrain / (a.channels * a.pixels + 1),
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(channel_statistics_kernel)(a, begin, end); });
  return {storage->data(), x.size(1), 1};
}

// The planes [N, C] of the coefficients: mean, rstd, a, b.
struct Planes {
  void* plane[4];
  Planes(void* data, int64_t elements, DType wide) {
    for (int i = 0; i < 4; ++i) plane[i] = static_cast<char*>(data) + i * elements * size_of(wide);
  }
};

Outputs norm_conv2d_cpu(const Tensor& x, const MaybeTensor& x2, const MaybeTensor& partials, const MaybeTensor& partials2,
                        int64_t groups, const MaybeTensor& gn_weight, const MaybeTensor& gn_bias, double eps,
                        const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act, const Tensor& weight,
                        const MaybeTensor& bias, const MaybeTensor& residual, int64_t stride, const Integers& padding,
                        bool upsample, bool statistics) {
  Conv2dArgs c = sizes_of(x, x2, act, weight, stride, padding, upsample);
  const DType wide = wide_of(c.dtype);
  const int64_t channels = c.channels + c.channels2;
  FASTDIFF_CHECK(groups == 0 || (groups > 0 && channels % groups == 0), kOp, ": groups must be a divisor of C, or 0");
  if (residual) check_images_of(x, *residual, c.out_channels, c.out_height, c.out_width, "residual");
  if (bias) c.bias = matrix(bias, x, c.out_channels, bias->dim() == 2, "bias");
  Outputs out{images(x, c.out_channels, c.out_height, c.out_width),
              empty({c.images, c.out_channels, statistics ? c.parts : 0, 3}, wide, x),
              empty({groups ? 4 : 0, c.images, channels}, wide, x)};
  MaybeTensor copies[5];
  const Tensor& first = dense(x, true, copies[0]);
  c.x = first.data();
  if (x2) c.x2 = dense(*x2, true, copies[1]).data();
  if (groups) {
    const Planes p(std::get<2>(out).mutable_data(), c.images * channels, wide);
    NormAffineArgs a{};
    a.images = c.images, a.groups = groups, a.eps = eps, a.wide = wide == DType::f64;
    a.weight = matrix(gn_weight, x, channels, false, "gn_weight"), a.bias = matrix(gn_bias, x, channels, false, "gn_bias");
    a.scale = matrix(scale, x, channels, true, "scale"), a.shift = matrix(shift, x, channels, true, "shift");
    a.inputs[0] = partials_of(partials, x, first, "partials", copies[2]);
    if (x2) a.inputs[1] = partials_of(partials2, *x2, copies[1] ? *copies[1] : *x2, "partials2", copies[3]);
    a.mean = p.plane[0], a.rstd = p.plane[1], a.a = p.plane[2], a.b = p.plane[3], c.a = a.a, c.b = a.b;
    parallel_for(0, a.images, kGrain / (channels * 8),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(norm_affine_kernel)(a, begin, end); });
  }
  if (c.images == 0) return out;
  const Tensor packed = packed_weight(weight, c.dtype, c.winograd, false);
  c.packed = packed.data();
  if (residual) c.residual = dense(*residual, true, copies[4]).data();
  c.y = std::get<0>(out).mutable_data(), c.partials = statistics ? std::get<1>(out).mutable_data() : nullptr;
  run_conv2d_fused(c);
  return out;
}

// The gradient of what the convolution read, at its resolution: a convolution of dy by the turned kernels, of dy with zeros
// between its pixels where the stride or the padding asks for them.
Tensor input_gradient(const Conv2dArgs& c, const Tensor& dy, const Tensor& weight) {
  Conv2dArgs d{};
  d.images = c.images, d.channels = c.out_channels, d.height = c.out_height, d.width = c.out_width, d.dtype = c.dtype;
  d.out_channels = c.channels + c.channels2, d.out_height = c.height << c.upsample, d.out_width = c.width << c.upsample;
  d.kernel_height = c.kernel_height, d.kernel_width = c.kernel_width, d.stride = 1;
  d.top = c.kernel_height - 1 - c.top, d.left = c.kernel_width - 1 - c.left;
  MaybeTensor spread;
  if (c.stride > 1 || d.top < 0 || d.left < 0) {
    d.height = d.out_height + d.kernel_height - 1, d.width = d.out_width + d.kernel_width - 1;
    spread.emplace(images(dy, c.out_channels, d.height, d.width));
    const int64_t pixel = c.out_channels * size_of(c.dtype), image = d.height * d.width * pixel;
    char* to = static_cast<char*>(spread->mutable_data());
    const char* from = static_cast<const char*>(dy.data());
    parallel_for(0, c.images, 1, [&](int64_t begin, int64_t end) {
      std::memset(to + begin * image, 0, (end - begin) * image);
      for (int64_t n = begin; n < end; ++n)
        for (int64_t y = 0; y < c.out_height; ++y)
          for (int64_t x = 0; x < c.out_width; ++x) {
            const int64_t row = y * c.stride + d.top, column = x * c.stride + d.left;
            if (row >= 0 && row < d.height && column >= 0 && column < d.width)
              std::memcpy(to + n * image + (row * d.width + column) * pixel,
                          from + ((n * c.out_height + y) * c.out_width + x) * pixel, pixel);
          }
    });
    d.top = d.left = 0;
  }
  // Of bf16 not by tiles: dy is exact, and what their transforms round shows in sums over pixels, 1.6 times the error without.
  d.winograd = c.dtype != DType::bf16 && d.kernel_height == 3 && d.kernel_width == 3 &&
               std::min(d.channels, d.out_channels) >= kWinogradChannels;
  const Tensor packed = packed_weight(weight, c.dtype, d.winograd, true);
  Tensor dh = images(dy, d.out_channels, d.out_height, d.out_width);
  d.x = (spread ? *spread : dy).data(), d.packed = packed.data(), d.y = dh.mutable_data();
  cut_into_parts(d);
  run_conv2d_fused(d);
  return dh;
}

void weight_gradient(Conv2dArgs c, const Tensor& dy, const Tensor& dw) {
  WeightGradientArgs g{};
  if (c.dtype == DType::bf16 && !c.a && c.act_in == Act::none) c.winograd = false;  // x is exact: tiles would round what is not
  g.conv = c, g.dy = dy.data(), g.dw = dw.mutable_data(), g.dtype = dw.dtype();
  g.output_stride = dw.stride(0), g.input_stride = dw.stride(1), g.row_stride = dw.stride(2), g.column_stride = dw.stride(3);
  g.together = c.dtype == DType::bf16 ? 2 : 1;
  const DType wide = wide_of(c.dtype);
  const int64_t channels = c.channels + c.channels2, threads = num_threads(), steps = up(c.images, g.together);
  g.elements = c.winograd ? 16 : c.kernel_height * c.kernel_width;
  g.rows = multiple(c.out_channels, 8), g.columns = multiple(channels, 16);
  const int64_t bytes = g.elements * g.rows * g.columns * size_of(wide);
  const int64_t chunks = std::clamp<int64_t>(kSumBytes / bytes, 1, std::min(kChunks, steps));
  g.chunk_images = up(steps, chunks) * g.together, g.chunks = up(c.images, g.chunk_images);
  g.outputs_together = multiple(up(g.rows, std::clamp<int64_t>(threads / g.chunks, 1, g.rows)), kOutputHalf);
  g.parts = up(g.rows, g.outputs_together);

  const int64_t kept = kept_size(c.dtype) * g.together, block = 2 * kOutputHalf;
  if (c.winograd) {
    const int64_t position = 16 * (multiple(channels, block) + multiple(c.out_channels, block)) * kept;
    const int64_t across = up(c.out_width, 2), down = up(c.out_height, 2), all = across * down * (g.chunk_images / g.together);
    g.positions = std::max(std::min(kLineBytes / position, all), std::min(kPositionsAtLeast, all));
    const int64_t band = std::clamp<int64_t>(g.positions / across, 1, down);
    g.positions = std::max(g.positions, band * across), g.band_rows = 2 * band;
  } else {
    const int64_t row = (c.out_width * c.stride * c.stride * multiple(channels, block) + c.out_width * multiple(c.out_channels, block)) * kept;
    g.band_rows = std::clamp<int64_t>(kBandBytes / row, 1, c.out_height);
  }
  const Tensor sums = empty({g.chunks, g.elements, g.rows, g.columns}, wide, dy);
  g.sums = sums.mutable_data();
  parallel_for(0, g.chunks * g.parts, 1,
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU_BF16(weight_gradient_kernel)(g, begin, end); });
  parallel_for(0, c.out_channels, kGrain / (g.elements * g.columns),
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU_BF16(weight_gradient_finish_kernel)(g, begin, end); });
}

void sum_images(const Tensor& from, int64_t images, void* out, DType dtype, int64_t columns) {
  const SumImagesArgs a{images, columns, from.dtype() == DType::f64, from.data(), out, dtype};
  parallel_for(0, columns, kGrain / (images + 1),
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(sum_images_kernel)(a, begin, end); });
}

Tensor gradient_like(const MaybeTensor& p, bool wanted, const Tensor& x) {
  return p && wanted ? empty(Integers(p->sizes(), p->sizes() + p->dim()), p->dtype(), x) : empty({0}, x.dtype(), x);
}

Gradients norm_conv2d_backward_cpu(const Tensor& grad, const Tensor& x, const MaybeTensor& x2, const Tensor& coefficients,
                                   int64_t groups, const MaybeTensor& gn_weight, const MaybeTensor& gn_bias,
                                   const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act,
                                   const Tensor& weight, const MaybeTensor& bias, int64_t stride, const Integers& padding,
                                   bool upsample, bool inputs) {
  Conv2dArgs c = sizes_of(x, x2, act, weight, stride, padding, upsample);
  const DType wide = wide_of(c.dtype);
  const int64_t channels = c.channels + c.channels2;
  FASTDIFF_CHECK(groups == 0 || (groups > 0 && channels % groups == 0), kOp, ": groups must be a divisor of C, or 0");
  FASTDIFF_CHECK(coefficients.dim() == 3 && coefficients.size(0) == (groups ? 4 : 0) && coefficients.size(1) == c.images &&
                     coefficients.size(2) == channels && coefficients.dtype() == wide,
                 kOp, ": coefficients must be the forward's");
  check_images_of(x, grad, c.out_channels, c.out_height, c.out_width, "grad");
  const bool simple = !groups && c.act_in == Act::none && !upsample && !x2;
  MaybeTensor copies[4];
  const Tensor& dy = dense(grad, true, copies[0]);
  const Tensor& first = dense(x, true, copies[1]);
  const Tensor& planes = dense(coefficients, false, copies[3]);
  c.x = first.data();
  if (x2) c.x2 = dense(*x2, true, copies[2]).data();
  const Planes p(const_cast<void*>(planes.data()), c.images * channels, wide);
  if (groups) c.a = p.plane[2], c.b = p.plane[3];

  Gradients out{inputs && !simple ? images(x, c.channels, c.height, c.width) : empty({0}, x.dtype(), x),
                inputs && x2 ? images(x, c.channels2, c.height, c.width) : empty({0}, x.dtype(), x),
                gradient_like(gn_weight, groups && inputs, x), gradient_like(gn_bias, groups && inputs, x),
                gradient_like(scale, groups && inputs, x), gradient_like(shift, groups && inputs, x),
                empty_like(weight, suggests_channels_last(weight)), gradient_like(bias, true, x)};
  auto& [dx, dx2, dgn_weight, dgn_bias, dscale, dshift, dw, dbias] = out;
  if (bias) {
    const Tensor sums = empty({c.images, c.out_channels}, wide, x);
    const ChannelSumsArgs s{c.images, c.out_channels, c.out_height * c.out_width, c.dtype, dy.data(), sums.mutable_data()};
    parallel_for(0, c.images, kGrain / (s.channels * s.pixels),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(channel_sums_kernel)(s, begin, end); });
    FASTDIFF_CHECK(dbias.numel() == c.out_channels * (bias->dim() == 2 ? c.images : 1), kOp, ": bias must be [Cout] or [N, Cout]");
    sum_images(sums, bias->dim() == 2 ? 1 : c.images, dbias.mutable_data(), dbias.dtype(), dbias.numel());
  }
  if (c.images == 0) std::memset(dw.mutable_data(), 0, dw.numel() * size_of(dw.dtype()));
  else weight_gradient(c, dy, dw);
  if (!inputs) return out;

  Tensor dh = c.images ? input_gradient(c, dy, weight) : images(x, channels, c.height << upsample, c.width << upsample);
  if (simple) {
    dx = std::move(dh);
    return out;
  }
  NormBackwardArgs n{};
  n.images = c.images, n.channels = channels, n.height = c.height, n.width = c.width, n.groups = groups, n.upsample = upsample;
  n.dtype = c.dtype, n.act = c.act_in, n.dh = dh.data();
  n.inputs[0] = {c.x, dx.mutable_data(), 0, c.channels};
  if (x2) n.inputs[1] = {c.x2, dx2.mutable_data(), c.channels, c.channels2};
  const Tensor shares = empty({2, c.images, channels}, wide, x);
  if (groups) {
    n.mean = p.plane[0], n.rstd = p.plane[1], n.a = p.plane[2], n.b = p.plane[3], n.shares = shares.mutable_data();
    n.weight = matrix(gn_weight, x, channels, false, "gn_weight"), n.bias = matrix(gn_bias, x, channels, false, "gn_bias");
    n.scale = matrix(scale, x, channels, true, "scale"), n.shift = matrix(shift, x, channels, true, "shift");
    n.dscale = dscale.mutable_data(), n.dshift = dshift.mutable_data();
  }
  parallel_for(0, c.images, kGrain / (channels * c.height * c.width + 1),
               [&](int64_t begin, int64_t end) { FASTDIFF_CPU(norm_conv2d_inputs_kernel)(n, begin, end); });
  if (groups && gn_weight) sum_images(shares, c.images, dgn_weight.mutable_data(), dgn_weight.dtype(), channels);
  if (groups && gn_bias) {
    const SumImagesArgs s{c.images, channels, wide == DType::f64, static_cast<const char*>(shares.data()) + c.images * channels * size_of(wide),
                          dgn_bias.mutable_data(), dgn_bias.dtype()};
    FASTDIFF_CPU(sum_images_kernel)(s, 0, channels);
  }
  return out;
}

FASTDIFF_KERNEL(norm_conv2d, CPU, norm_conv2d_cpu);
FASTDIFF_KERNEL(norm_conv2d_backward, CPU, norm_conv2d_backward_cpu);

}  // namespace
}  // namespace fastdiff
