// FiLM on the CPU. NCHW has one factor and offset per row of pixels; channels_last a vector of them per pixel, which each
// task lays out once. A tensor of one pixel per channel is the same in both formats and takes the second way.
#include "../common/simd.h"

#include "../common/activation.h"
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "film.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

template <class S>
struct Modulation {
  S factor, offset;
};

template <class S>
Modulation<S> modulation(const FilmArgs& a, int64_t n, int64_t c) {
  const S scale = element<S>(a.scale, n, c);
  if (!a.shift.data) return {scale, S{0}};
  return {S{1} + scale, element<S>(a.shift, n, c)};
}

// Factors and offsets of one image, contiguous over channels.
template <class S>
class ImageModulation {
 public:
  explicit ImageModulation(const FilmArgs& a) : args_(a), values_(2 * a.channels) {}
  void load_image(int64_t n) {
    for (int64_t c = 0; c < args_.channels; ++c) {
      const auto m = modulation<S>(args_, n, c);
      values_.data()[c] = m.factor, values_.data()[args_.channels + c] = m.offset;
    }
  }
  const S* factor() const { return values_.data(); }
  const S* offset() const { return values_.data() + args_.channels; }

 private:
  const FilmArgs& args_;
  Scratch<S> values_;
};

template <class T, Act kAct>
void film_rows(const FilmArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  for (int64_t row = begin; row < end; ++row) {
    const auto m = modulation<S>(a, row / a.channels, row % a.channels);
    const Vec<S> factor = splat<Vec<S>>(m.factor), offset = splat<Vec<S>>(m.offset);
    const T* x = static_cast<const T*>(a.x) + row * a.pixels;
    T* y = static_cast<T*>(a.y) + row * a.pixels;
    for_vectors<kLanesOf<S>>(a.pixels, [&](int64_t i, int64_t n) {
      store_up_to(y + i, activate<kAct>(madd(load_up_to(x + i, n), factor, offset)), n);
    });
  }
}

template <class T, Act kAct>
void film_pixels(const FilmArgs& a, int64_t begin, int64_t end) {
  using S = Compute<T>;
  ImageModulation<S> m(a);
  int64_t image = -1;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    if (pixel / a.pixels != image) m.load_image(image = pixel / a.pixels);
    const T* x = static_cast<const T*>(a.x) + pixel * a.channels;
    T* y = static_cast<T*>(a.y) + pixel * a.channels;
    for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t n) {
      const Vec<S> z = madd(load_up_to(x + c, n), load_up_to(m.factor() + c, n), load_up_to(m.offset() + c, n));
      store_up_to(y + c, activate<kAct>(z), n);
    });
  }
}

template <class T, Act kAct>
void film_backward_rows(const FilmBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  constexpr int64_t kRun = 64 * kLanesOf<S>;  // elements added lane by lane before the sums are carried on in double
  const FilmArgs& a = b.forward;
  for (int64_t row = begin; row < end; ++row) {
    const auto m = modulation<S>(a, row / a.channels, row % a.channels);
    const Vec<S> factor = splat<Vec<S>>(m.factor), offset = splat<Vec<S>>(m.offset);
    double sum_dz_x = 0, sum_dz = 0;
    for (int64_t start = 0; start < a.pixels; start += kRun) {
      const T* x = static_cast<const T*>(a.x) + row * a.pixels + start;
      const T* grad = static_cast<const T*>(b.grad) + row * a.pixels + start;
      T* dx = static_cast<T*>(b.dx) + row * a.pixels + start;
      Vec<S> run_dz_x{}, run_dz{};
      for_vectors<kLanesOf<S>>(a.pixels - start < kRun ? a.pixels - start : kRun, [&](int64_t i, int64_t n) {
        const Vec<S> v = load_up_to(x + i, n);  // past the end, zeros: grad is zero there, so the sums do not see them
        const Vec<S> dz = load_up_to(grad + i, n) * derivative<kAct>(madd(v, factor, offset));
        store_up_to(dx + i, dz * factor, n);
        run_dz_x = madd(dz, v, run_dz_x), run_dz += dz;
      });
      sum_dz_x += sum_lanes(run_dz_x), sum_dz += sum_lanes(run_dz);
    }
    const int64_t image = row / a.channels, c = row % a.channels;
    S* partial = static_cast<S*>(b.partial) + image * 2 * a.channels + c;
    partial[0] = static_cast<S>(sum_dz_x), partial[a.channels] = static_cast<S>(sum_dz);
  }
}

template <class T, Act kAct>
void film_backward_chunks(const FilmBackwardArgs& b, int64_t begin, int64_t end) {
  using S = Compute<T>;
  const FilmArgs& a = b.forward;
  ImageModulation<S> m(a);
  int64_t image = -1;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (chunk / b.chunks != image) m.load_image(image = chunk / b.chunks);
    const int64_t first = chunk % b.chunks * kFilmChunk;
    const int64_t last = first + kFilmChunk < a.pixels ? first + kFilmChunk : a.pixels;
    S* sum_dz_x = static_cast<S*>(b.partial) + chunk * 2 * a.channels;
    S* sum_dz = sum_dz_x + a.channels;
    std::memset(sum_dz_x, 0, 2 * a.channels * sizeof(S));
    for (int64_t pixel = image * a.pixels + first; pixel < image * a.pixels + last; ++pixel) {
      const int64_t at = pixel * a.channels;
      for_vectors<kLanesOf<S>>(a.channels, [&](int64_t c, int64_t n) {
        const Vec<S> v = load_up_to(static_cast<const T*>(a.x) + at + c, n);
        const Vec<S> factor = load_up_to(m.factor() + c, n);
        const Vec<S> z = madd(v, factor, load_up_to(m.offset() + c, n));
        const Vec<S> dz = load_up_to(static_cast<const T*>(b.grad) + at + c, n) * derivative<kAct>(z);
        store_up_to(static_cast<T*>(b.dx) + at + c, dz * factor, n);
        store_up_to(sum_dz_x + c, madd(dz, v, load_up_to(sum_dz_x + c, n)), n);
        store_up_to(sum_dz + c, load_up_to(sum_dz + c, n) + dz, n);
      });
    }
  }
}

template <class S>
void combine(const FilmBackwardArgs& b, int64_t begin, int64_t end) {
  const FilmArgs& a = b.forward;
  for (int64_t n = begin; n < end; ++n) {
    const S* partial = static_cast<const S*>(b.partial) + n * b.chunks * 2 * a.channels;
    for (int64_t c = 0; c < a.channels; ++c) {
      double sum_dz_x = 0, sum_dz = 0;
      for (int64_t chunk = 0; chunk < b.chunks; ++chunk) {
        sum_dz_x += partial[chunk * 2 * a.channels + c];
        sum_dz += partial[(chunk * 2 + 1) * a.channels + c];
      }
      store_elements<S>(b.dscale, a.scale.dtype, n * a.channels + c, splat<Vec<S>>(static_cast<S>(sum_dz_x)), 1);
      store_elements<S>(b.dshift, a.scale.dtype, n * a.channels + c, splat<Vec<S>>(static_cast<S>(sum_dz)), 1);
    }
  }
}

}  // namespace

void film_kernel(const FilmArgs& a, int64_t begin, int64_t end) {
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() {
    a.channels_last ? film_pixels<T, kAct>(a, begin, end) : film_rows<T, kAct>(a, begin, end);
  });
}

void film_backward_kernel(const FilmBackwardArgs& b, int64_t begin, int64_t end) {
  with_types(b.forward.dtype, b.forward.act, [&]<class T, Act kAct>() {
    b.forward.channels_last ? film_backward_chunks<T, kAct>(b, begin, end) : film_backward_rows<T, kAct>(b, begin, end);
  });
}

void film_combine_kernel(const FilmBackwardArgs& b, int64_t begin, int64_t end) {
  b.forward.dtype == DType::f64 ? combine<double>(b, begin, end) : combine<float>(b, begin, end);
}

}  // namespace fastdiff::FASTDIFF_ISA
