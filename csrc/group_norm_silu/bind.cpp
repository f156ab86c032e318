// group_norm_silu and its backward between torch and the kernels: memory safety, outputs, and the order of the passes.
#include <algorithm>
#include <memory>

#include "../boxing.h"
#include "../common/activation_name.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "group_norm_silu.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kGrain = 16384;  // elements a thread takes at least: below it, waking a thread costs more than it saves
constexpr int64_t kRun = 4096;     // elements of a chunk in NCHW: at most 256 additions into one lane
constexpr int64_t kRow = 1024;     // the same where one vector, not four, takes the sums
constexpr int64_t kPixelsAtMost = 256;
constexpr int64_t kThreadBytes = 1 << 17;  // of x: stays in a core's own cache between passes, with y
constexpr int64_t kSharedBytes = 1 << 22;  // stays in the cache that cores share
constexpr int64_t kPastCaches = 1 << 24;   // bytes of y or dx from which they are written past the caches
constexpr int64_t kAlignment = 64;

Chunks chunks(int64_t length, int64_t size) { return {length, size, (length + size - 1) / size}; }

Matrix matrix(const MaybeTensor& m, const Tensor& x, bool per_image, const char* name) {
  if (!m) return {};
  const int64_t last = m->dim() - 1;
  FASTDIFF_CHECK(m->dim() == 1 + per_image && m->size(last) == x.size(1) && (!per_image || m->size(0) == x.size(0)),
                 "group_norm_silu: ", name, " must be ", per_image ? "[N, C] of x" : "[C] of x");
  FASTDIFF_CHECK(m->dtype() == x.dtype() || (m->dtype() == DType::f32 && x.dtype() != DType::f64), "group_norm_silu: ", name,
                 " must be float32 or x's dtype");
  check_on_device_of(x, *m, "group_norm_silu", name);
  return {m->data(), per_image ? m->stride(0) : 0, m->stride(last), m->dtype()};
}

DType compute_dtype(const GroupNormSiluArgs& a) { return a.dtype == DType::f64 ? DType::f64 : DType::f32; }

GroupNormSiluArgs make_args(const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                            const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act) {
  FASTDIFF_CHECK(x.dim() >= 2 && x.dtype() <= DType::f16,
                 "group_norm_silu: x must be [N, C, ...], float32, bfloat16, float16 or float64");
  const Layout l = layout_of(x);
  FASTDIFF_CHECK(groups > 0 && l.channels % groups == 0, "group_norm_silu: groups must be a divisor of C");
  FASTDIFF_CHECK(l.images == 0 || l.elements() > 0, "group_norm_silu: x must have at least one element per group");
  GroupNormSiluArgs a{};
  a.images = l.images, a.channels = l.channels, a.pixels = l.pixels, a.groups = groups, a.channels_last = l.channels_last;
  a.group_channels = a.channels / groups;
  a.dtype = x.dtype(), a.act = activation_named(act);
  if (a.images > 0) a.share = 1 / static_cast<double>(a.group_channels * a.pixels);
  a.weight = matrix(weight, x, false, "weight"), a.bias = matrix(bias, x, false, "bias");
  a.scale = matrix(scale, x, true, "scale"), a.shift = matrix(shift, x, true, "shift");
  return a;
}

int64_t element_size(const GroupNormSiluArgs& a) { return a.dtype == DType::f64 ? 8 : a.dtype == DType::f32 ? 4 : 2; }

// How the work is cut and y or dx is written, once it is known in which format x lies. Chunks have a fixed size, so that sums
// depend on the shape alone; on CUDA one image then fills the GPU too.
void plan(GroupNormSiluArgs& a, const void* out) {
  const int64_t line = (a.channels_last ? a.channels : a.pixels) * element_size(a);
  a.past_caches = a.images * a.channels * a.pixels * element_size(a) >= kPastCaches && line % kAlignment == 0 &&
                  reinterpret_cast<uintptr_t>(out) % kAlignment == 0;
  a.channels_last |= a.pixels == 1;  // the same in both formats, and a row of one pixel would fill one lane
  if (a.channels_last) {
    const int64_t pixels = std::clamp<int64_t>(4 * kRun / a.channels, 32, kPixelsAtMost) / 8 * 8;
    a.runs = a.rows = chunks(a.pixels, pixels);
    a.columns = a.channels;
  } else {
    a.runs = chunks(a.group_channels * a.pixels, kRun);
    a.rows = chunks(a.pixels, kRow);
    a.columns = a.groups;
  }
}

template <class Args>
struct Pass {
  void (*kernel)(const Args&, int64_t begin, int64_t end);
  int64_t per_unit;  // how many of the kernel's indices a unit has
};

// Backward keeps dz of a block between its passes.
int64_t kept_bytes(const GroupNormSiluArgs&) { return 0; }
int64_t kept_bytes(const GroupNormSiluBackwardArgs& b) { return b.forward.dtype == DType::f64 ? 8 : 4; }
void keep(GroupNormSiluArgs&, void*, int64_t) {}
void keep(GroupNormSiluBackwardArgs& b, void* kept, int64_t from) { b.kept = kept, b.kept_from = from; }

// Runs the passes in order over every unit, the smallest part of x that has its statistics to itself: an image in
// channels_last, a group in NCHW. Small units go to threads whole, a few at a time, so that a pass finds in the core's cache
// what the one before it read; else all threads share a few units. The kernels see other ranges, and give the same bits.
template <class Args, size_t kPasses>
void run(const GroupNormSiluArgs& a, Args args, const Pass<Args> (&passes)[kPasses]) {
  const int64_t units = a.images * (a.channels_last ? 1 : a.groups);
  const int64_t elements = a.channels * a.pixels / (a.channels_last ? 1 : a.groups);
  const int64_t bytes = elements * element_size(a);
  const bool whole = bytes <= 4 * kThreadBytes && (units >= 2 * num_threads() || units * elements <= kGrain);
  const int64_t step = std::clamp<int64_t>((whole ? kThreadBytes : kSharedBytes) / bytes, 1, units);
  const auto room = [&](int64_t count) {
    const int64_t size = count * elements * kept_bytes(args);
    return std::unique_ptr<char[]>(size > 0 && size <= 2 * kSharedBytes ? new char[size] : nullptr);
  };
  if (whole) {
    parallel_for(0, units, kGrain / elements, [&](int64_t begin, int64_t end) {
      Args mine = args;
      const auto kept = room(std::min(step, end - begin));
      for (int64_t u = begin; u < end; u += step) {
        keep(mine, kept.get(), u * elements);
        for (const auto& p : passes) p.kernel(mine, u * p.per_unit, std::min(u + step, end) * p.per_unit);
      }
    });
  } else {
    const auto kept = room(step);
    for (int64_t u = 0; u < units; u += step) {
      keep(args, kept.get(), u * elements);
      for (const auto& p : passes)
        parallel_for(u * p.per_unit, std::min(u + step, units) * p.per_unit, kGrain * p.per_unit / elements,
                     [&](int64_t begin, int64_t end) { p.kernel(args, begin, end); });
    }
  }
}

int64_t groups_per_unit(const GroupNormSiluArgs& a) { return a.channels_last ? a.groups : 1; }
int64_t rows_per_unit(const GroupNormSiluArgs& a) {
  return a.rows.count * (a.channels_last ? 1 : a.channels / a.groups);
}

// launch runs the passes.
template <class Launch>
Outputs group_norm_silu(const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                        const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act, Launch&& launch) {
  GroupNormSiluArgs a = make_args(x, groups, weight, bias, scale, shift, act);
  const DType wide = compute_dtype(a);
  Outputs out{empty_like(x, a.channels_last), empty({a.images, groups}, wide, x), empty({a.images, groups}, wide, x)};
  auto& [y, mean, rstd] = out;
  if (a.images == 0) return out;
  MaybeTensor copy;
  a.x = dense(x, a.channels_last, copy).data(), a.y = y.mutable_data(), a.eps = eps;
  a.mean = mean.mutable_data(), a.rstd = rstd.mutable_data();
  plan(a, a.y);
  const Tensor moments = empty({a.images, a.runs.count, 3, a.columns}, wide, x);
  const Tensor coefficients = empty({a.images, 3, a.channels}, wide, x);
  a.moments = moments.mutable_data(), a.coefficients = coefficients.mutable_data();
  launch(a);
  return out;
}

template <class Launch>
Gradients group_norm_silu_backward(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd, int64_t groups,
                                   const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
                                   const MaybeTensor& shift, const std::string& act, Launch&& launch) {
  GroupNormSiluBackwardArgs b{};
  GroupNormSiluArgs& a = b.forward;
  a = make_args(x, groups, weight, bias, scale, shift, act);
  const DType wide = compute_dtype(a);
  check_alike(x, grad, "group_norm_silu_backward", "grad");
  for (const Tensor* s : {&mean, &rstd}) {
    check_on_device_of(x, *s, "group_norm_silu_backward", s == &mean ? "mean" : "rstd");
    FASTDIFF_CHECK(s->dim() == 2 && s->size(0) == a.images && s->size(1) == groups && s->dtype() == wide,
                   "group_norm_silu_backward: mean and rstd must be [N, groups] in the compute dtype");
  }
  const auto gradient_of = [&](const MaybeTensor& p) {
    return p ? empty({p->sizes(), p->sizes() + p->dim()}, p->dtype(), x) : empty({0}, wide, x);
  };
  Gradients out{empty_like(x, a.channels_last), gradient_of(weight), gradient_of(bias), gradient_of(scale), gradient_of(shift)};
  auto& [dx, dweight, dbias, dscale, dshift] = out;
  b.dx = dx.mutable_data(), b.dweight = dweight.mutable_data(), b.dbias = dbias.mutable_data();
  b.dscale = dscale.mutable_data(), b.dshift = dshift.mutable_data();
  MaybeTensor x_copy, grad_copy, mean_copy, rstd_copy;
  a.x = dense(x, a.channels_last, x_copy).data(), b.grad = dense(grad, a.channels_last, grad_copy).data();
  // The kernels only read the statistics here.
  a.mean = const_cast<void*>(dense(mean, false, mean_copy).data());
  a.rstd = const_cast<void*>(dense(rstd, false, rstd_copy).data());
  const Tensor shares = empty({a.images, 2, a.channels}, wide, x);
  b.shares = shares.mutable_data();
  if (a.images > 0) plan(a, b.dx);
  const int64_t rows = a.images > 0 ? a.rows.count : 0;
  const Tensor coefficients = empty({a.images, 3, a.channels}, wide, x), terms = empty({a.images, 2, a.channels}, wide, x);
  const Tensor sums = empty({a.images, rows, 2, a.channels}, wide, x);
  a.coefficients = coefficients.mutable_data(), b.terms = terms.mutable_data(), b.sums = sums.mutable_data();
  launch(b);
  return out;
}

Outputs group_norm_silu_cpu(const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                            const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act) {
  return group_norm_silu(x, groups, weight, bias, eps, scale, shift, act, [](const GroupNormSiluArgs& a) {
    const Pass<GroupNormSiluArgs> passes[] = {{FASTDIFF_CPU(group_norm_silu_moments_kernel), a.runs.count},
                                              {FASTDIFF_CPU(group_norm_silu_finish_kernel), groups_per_unit(a)},
                                              {FASTDIFF_CPU(group_norm_silu_apply_kernel), rows_per_unit(a)}};
    run(a, a, passes);
  });
}

Gradients group_norm_silu_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                       int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                                       const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act) {
  const auto launch = [](const GroupNormSiluBackwardArgs& b) {
    const GroupNormSiluArgs& a = b.forward;
    if (a.images > 0) {
      const Pass<GroupNormSiluBackwardArgs> passes[] = {
          {FASTDIFF_CPU(group_norm_silu_prepare_kernel), groups_per_unit(a)},
          {FASTDIFF_CPU(group_norm_silu_sums_kernel), rows_per_unit(a)},
          {FASTDIFF_CPU(group_norm_silu_combine_kernel), groups_per_unit(a)},
          {FASTDIFF_CPU(group_norm_silu_dx_kernel), rows_per_unit(a)},
      };
      run(a, b, passes);
    }
    parallel_for(0, a.channels, kGrain / (a.images + 1),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(group_norm_silu_parameters_kernel)(b, begin, end); });
  };
  return group_norm_silu_backward(grad, x, mean, rstd, groups, weight, bias, scale, shift, act, launch);
}

FASTDIFF_KERNEL(group_norm_silu, CPU, group_norm_silu_cpu);
FASTDIFF_KERNEL(group_norm_silu_backward, CPU, group_norm_silu_backward_cpu);

#ifdef FASTDIFF_CUDA
Outputs group_norm_silu_cuda(const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                             const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act) {
  const CudaDeviceGuard guard(x.device_index());
  return group_norm_silu(x, groups, weight, bias, eps, scale, shift, act, [&](const GroupNormSiluArgs& a) {
    cuda_ok(group_norm_silu_cuda_launch(a, guard.stream()));
  });
}

Gradients group_norm_silu_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                        int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                                        const MaybeTensor& scale, const MaybeTensor& shift, const std::string& act) {
  const CudaDeviceGuard guard(x.device_index());
  const auto launch = [&](const GroupNormSiluBackwardArgs& b) {
    cuda_ok(group_norm_silu_backward_cuda_launch(b, guard.stream()));
  };
  return group_norm_silu_backward(grad, x, mean, rstd, groups, weight, bias, scale, shift, act, launch);
}

FASTDIFF_KERNEL(group_norm_silu, CUDA, group_norm_silu_cuda);
FASTDIFF_KERNEL(group_norm_silu_backward, CUDA, group_norm_silu_backward_cuda);
#endif

}  // namespace
}  // namespace fastdiff
