// film and film_backward between torch and the kernels: memory safety, outputs, threads or stream.
#include "../boxing.h"
#include "../common/activation_name.h"
#include "../common/checks.h"
#include "../common/layout.h"
#include "film.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr int64_t kGrain = 16384;  // elements a thread takes at least: below it, waking a thread costs more than it saves

Matrix matrix(const Tensor& m, const Tensor& x, const char* name) {
  FASTDIFF_CHECK(m.dim() == 2 && m.size(0) == x.size(0) && m.size(1) == x.size(1), "film: ", name, " must be [N, C] of x");
  FASTDIFF_CHECK(m.dtype() == x.dtype() || (m.dtype() == DType::f32 && x.dtype() != DType::f64), "film: ", name,
                 " must be float32 or x's dtype");
  check_on_device_of(x, m, "film", name);
  return {m.data(), m.stride(0), m.stride(1), m.dtype()};
}

FilmArgs make_args(const Tensor& x, const Tensor& scale, const MaybeTensor& shift, const std::string& act) {
  FASTDIFF_CHECK(x.dim() >= 2 && x.dtype() <= DType::f16, "film: x must be [N, C, ...], float32, bfloat16, float16 or float64");
  const Layout l = layout_of(x);
  FilmArgs a{};
  a.images = l.images, a.channels = l.channels, a.pixels = l.pixels, a.channels_last = l.channels_last;
  a.dtype = x.dtype(), a.act = activation_named(act);
  a.scale = matrix(scale, x, "scale");
  if (shift) a.shift = matrix(*shift, x, "shift");
  FASTDIFF_CHECK(!shift || a.shift.dtype == a.scale.dtype, "film: shift must have scale's dtype");
  return a;
}

// One pixel per channel is the same in both formats; the kernels for channels_last are the faster ones there.
bool by_pixels(const FilmArgs& a) { return a.channels_last || a.pixels == 1; }

template <class Launch>
Tensor film(const Tensor& x, const Tensor& scale, const MaybeTensor& shift, const std::string& act, Launch&& launch) {
  FilmArgs a = make_args(x, scale, shift, act);
  MaybeTensor copy;
  Tensor y = empty_like(x, a.channels_last);
  if (a.images * a.channels * a.pixels == 0) return y;
  a.x = dense(x, a.channels_last, copy).data(), a.y = y.mutable_data();
  a.channels_last = by_pixels(a);
  launch(a);
  return y;
}

template <class Launch>
Gradients film_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const MaybeTensor& shift,
                        const std::string& act, Launch&& launch) {
  FilmBackwardArgs b{};
  FilmArgs& a = b.forward;
  a = make_args(x, scale, shift, act);
  check_alike(x, grad, "film_backward", "grad");
  MaybeTensor x_copy, grad_copy;
  Gradients out{empty_like(x, a.channels_last), empty({a.images, a.channels}, scale.dtype(), scale),
                empty({a.images, a.channels}, scale.dtype(), scale)};
  auto& [dx, dscale, dshift] = out;
  b.dscale = dscale.mutable_data(), b.dshift = dshift.mutable_data(), b.dx = dx.mutable_data();
  a.x = dense(x, a.channels_last, x_copy).data(), b.grad = dense(grad, a.channels_last, grad_copy).data();
  a.channels_last = by_pixels(a);
  b.chunks = film_chunks(a);
  Tensor partial = empty({a.images, b.chunks, 2, a.channels}, a.dtype == DType::f64 ? DType::f64 : DType::f32, x);
  b.partial = partial.mutable_data();
  if (a.images * a.channels > 0) launch(b);  // without pixels the sums are still written: zeros
  return out;
}

Tensor film_cpu(const Tensor& x, const Tensor& scale, const MaybeTensor& shift, const std::string& act) {
  return film(x, scale, shift, act, [](const FilmArgs& a) {
    const int64_t units = a.images * (a.channels_last ? a.pixels : a.channels);
    parallel_for(0, units, kGrain / (a.channels_last ? a.channels : a.pixels),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(film_kernel)(a, begin, end); });
  });
}

Gradients film_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& scale, const MaybeTensor& shift,
                            const std::string& act) {
  return film_backward(grad, x, scale, shift, act, [](const FilmBackwardArgs& b) {
    const FilmArgs& a = b.forward;
    const int64_t units = a.images * (a.channels_last ? b.chunks : a.channels);
    const int64_t unit = a.channels_last ? kFilmChunk * a.channels : a.pixels;
    parallel_for(0, units, kGrain / (unit + 1),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(film_backward_kernel)(b, begin, end); });
    parallel_for(0, a.images, kGrain / (b.chunks * a.channels + 1),
                 [&](int64_t begin, int64_t end) { FASTDIFF_CPU(film_combine_kernel)(b, begin, end); });
  });
}

FASTDIFF_KERNEL(film, CPU, film_cpu);
FASTDIFF_KERNEL(film_backward, CPU, film_backward_cpu);

#ifdef FASTDIFF_CUDA
Tensor film_cuda(const Tensor& x, const Tensor& scale, const MaybeTensor& shift, const std::string& act) {
  const CudaDeviceGuard guard(x.device_index());
  return film(x, scale, shift, act, [&](const FilmArgs& a) { cuda_ok(film_cuda_launch(a, guard.stream())); });
}

Gradients film_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& scale, const MaybeTensor& shift,
                             const std::string& act) {
  const CudaDeviceGuard guard(x.device_index());
  return film_backward(grad, x, scale, shift, act,
                       [&](const FilmBackwardArgs& b) { cuda_ok(film_backward_cuda_launch(b, guard.stream())); });
}

FASTDIFF_KERNEL(film, CUDA, film_cuda);
FASTDIFF_KERNEL(film_backward, CUDA, film_backward_cuda);
#endif

}  // namespace
}  // namespace fastdiff
