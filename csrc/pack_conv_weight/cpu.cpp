// pack_conv_weight on the CPU: the kernel elements of 16 outputs are gathered, and transformed side by side.
#include "pack_conv_weight.h"

#include "../common/matrix.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

constexpr int64_t kHalf = 16, kOutputs = 32;

// Element i of `elements` of G g G^T for a row of values, g[tap][value].
template <class S, int64_t kValues>
void transform(const S (*g)[kValues], S (*out)[kValues]) {
  constexpr int64_t kLanes = kLanesOf<S>;
  for (int64_t v = 0; v < kValues; v += kLanes) {
    const auto at = [&](int row, int column) FASTDIFF_INLINE_LAMBDA { return load(g[3 * row + column] + v); };
    Vec<S> rows[4][3];  // G g
    FASTDIFF_UNROLL
    for (int j = 0; j < 3; ++j) {
      const Vec<S> ends = (at(0, j) + at(2, j)) * S{0.5}, middle = at(1, j) * S{0.5};
      rows[0][j] = at(0, j), rows[1][j] = ends + middle, rows[2][j] = ends - middle, rows[3][j] = at(2, j);
    }
    FASTDIFF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Vec<S> ends = (rows[i][0] + rows[i][2]) * S{0.5}, middle = rows[i][1] * S{0.5};
      store(out[4 * i] + v, rows[i][0]), store(out[4 * i + 1] + v, ends + middle);
      store(out[4 * i + 2] + v, ends - middle), store(out[4 * i + 3] + v, rows[i][2]);
    }
  }
}

// f(index, where its elements begin) over the dimensions, the one whose elements lie closest together innermost.
template <class F>
FASTDIFF_INLINE void for_nearest(int64_t outputs, int64_t output_stride, int64_t inputs, int64_t input_stride, F&& f) {
  const bool inputs_first = (input_stride < 0 ? -input_stride : input_stride) < (output_stride < 0 ? -output_stride : output_stride);
  const int64_t outer = inputs_first ? outputs : inputs, inner = inputs_first ? inputs : outputs;
  for (int64_t i = 0; i < outer; ++i)
    for (int64_t j = 0; j < inner; ++j) inputs_first ? f(i, j) : f(j, i);
}

template <class From, class To>
void blocks(const PackConvWeightArgs& a, int64_t begin, int64_t end) {
  using S = Compute<To>;
  constexpr int64_t kPair = sizeof(To) == 2 ? 2 : 1, kValues = kHalf * kPair, kBlock = 64 / sizeof(To), kSteps = kBlock / kPair;
  const int64_t taps = a.kernel_height * a.kernel_width, elements = a.winograd ? 16 : taps;
  const int64_t across = (a.inputs + kBlock - 1) / kBlock;
  const Scratch<S> gathered(kSteps * taps * kValues);
  S transformed[16][kValues];
  for (int64_t job = begin; job < end; ++job) {
    const int64_t output_block = job / across, input_block = job % across, input = input_block * kBlock;
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t output = output_block * kOutputs + half * kHalf;
      const int64_t outputs = a.outputs < output ? 0 : least(kHalf, a.outputs - output), inputs = least(kBlock, a.inputs - input);
      S* g = gathered.data();  // [step][tap][output][pair]
      if (outputs < kHalf || inputs < kBlock) std::memset(g, 0, kSteps * taps * kValues * sizeof(S));
      for (int64_t tap = 0; tap < taps; ++tap) {
        const From* from = static_cast<const From*>(a.weight) + output * a.output_stride + input * a.input_stride +
                           tap / a.kernel_width * a.row_stride + tap % a.kernel_width * a.column_stride;
        for_nearest(outputs, a.output_stride, inputs, a.input_stride, [&](int64_t o, int64_t i) FASTDIFF_INLINE_LAMBDA {
          const From* value = from + o * a.output_stride + i * a.input_stride;
          S& to = g[(i / kPair * taps + tap) * kValues + o * kPair + i % kPair];
          if constexpr (sizeof(From) == 2) to = load(value, 1)[0];
          else to = *value;
        });
      }
      for (int64_t step = 0; step < kSteps; ++step) {
        const S(*of_step)[kValues] = reinterpret_cast<S(*)[kValues]>(g + step * taps * kValues);
        if (a.winograd) transform<S>(of_step, transformed);
        const S(*rows)[kValues] = a.winograd ? transformed : of_step;
        for (int64_t e = 0; e < elements; ++e) {
          const int64_t block = a.winograd ? (output_block * elements + e) * across + input_block : job * elements + e;
          To* to = static_cast<To*>(a.packed) + ((block * 2 + half) * kSteps + step) * kValues;
          for (int64_t v = 0; v < kValues; v += kLanesOf<S>) store(to + v, load(rows[e] + v));
        }
      }
    }
  }
}

}  // namespace

void pack_conv_weight_kernel(const PackConvWeightArgs& a, int64_t begin, int64_t end) {
  if (a.to == DType::f64) return blocks<double, double>(a, begin, end);
  with_elements<float>(a.weight, a.from, [&]<class From>(const From*) {
    a.to == DType::bf16 ? blocks<From, bf16>(a, begin, end) : blocks<From, float>(a, begin, end);
  });
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
