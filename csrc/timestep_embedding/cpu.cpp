// Sinusoidal embedding on the CPU: a vector of float64 angles at a time, sine and cosine from one reduction.
#include "../common/simd.h"
#include "timestep_embedding.h"

namespace fastdiff::FASTDIFF_ISA {
namespace {

using Doubles = Vec<double>;
using Longs = Vec<int64_t>;

FASTDIFF_INLINE Doubles horner(const double (&coefficients)[6], Doubles x) {
  Doubles p = splat<Doubles>(coefficients[0]);
  for (int i = 1; i < 6; ++i) p = madd(p, x, splat<Doubles>(coefficients[i]));
  return p;
}

// Angle reduced to [-pi/4, pi/4] by Cody & Waite in three parts, the first two of 33 bits: exact up to 2^20 quarter turns.
// Polynomials of fdlibm's k_sin.c and k_cos.c.
FASTDIFF_INLINE void sine_cosine(Doubles angle, Doubles& sine, Doubles& cosine) {
  constexpr double kSin[] = {1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
                             -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01};
  constexpr double kCos[] = {-1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
                             2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02};
  constexpr double kHalfPi[] = {-1.57079632673412561417e+00, -6.07710050630396597660e-11, -2.02226624879595063154e-21};
  const Doubles shifter = splat<Doubles>(0x1.8p52);  // adding it rounds to an integer, left in the low bits
  const Doubles shifted = madd(angle, splat<Doubles>(0.63661977236758134308), shifter), turns = shifted - shifter;
  Doubles r = angle;
  for (double part : kHalfPi) r = madd(turns, splat<Doubles>(part), r);
  const Doubles z = r * r;
  const Doubles s = madd(horner(kSin, z) * z, r, r);
  const Doubles c = madd(horner(kCos, z), z * z, madd(z, splat<Doubles>(-0.5), splat<Doubles>(1.0)));
  const Longs quadrant = bits_as<Longs>(shifted);
  const Longs odd = (quadrant & 1) != 0;
  sine = odd ? c : s, cosine = odd ? s : c;
  sine = (quadrant & 2) != 0 ? -sine : sine;
  cosine = ((quadrant + 1) & 2) != 0 ? -cosine : cosine;
}

FASTDIFF_INLINE void store_floats(float* p, Doubles v, int64_t count) {
  const auto narrow = __builtin_convertvector(v, VectorOf<float, kLanesOf<double>>::type);
  count == kLanesOf<double> ? std::memcpy(p, &narrow, sizeof(narrow)) : std::memcpy(p, &narrow, count * sizeof(float));
}

}  // namespace

void timestep_embedding_kernel(const EmbeddingArgs& a, int64_t begin, int64_t end) {
  constexpr double kExact = 1e6;
  for (int64_t n = begin; n < end; ++n) {
    const double t = a.integers ? static_cast<double>(a.integers[n * a.stride]) : a.fractions[n * a.stride];
    float* out = a.out + n * 2 * a.half;
    const bool small = t < kExact && t > -kExact;  // frequencies are at most 1; false for NaN
    for_vectors<kLanesOf<double>>(a.half, [&](int64_t i, int64_t count) {
      const Doubles angle = load_up_to(a.frequencies + i, count) * t;
      Doubles sine, cosine;
      if (small) {
        sine_cosine(angle, sine, cosine);
      } else {
        sine = map_lanes(angle, [](double v) { return __builtin_sin(v); });
        cosine = map_lanes(angle, [](double v) { return __builtin_cos(v); });
      }
      store_floats(out + i, sine, count);
      store_floats(out + a.half + i, cosine, count);
    });
  }
}

}  // namespace fastdiff::FASTDIFF_ISA
