// The gradient of a convolution's weights on the CPU. What the convolution read is made again, band by band, and turned into
// lines: 64 bytes of channels of one position, of bf16 with a pair of images in each word. Tiles of Winograd's algorithm take 16
// products in place of 36 here too: dw = G^T [(A dy A^T) . (B^T h B)] G, summed over tiles between the brackets.
#include "../common/dispatch.h"
#include "../common/matrix.h"
#include "../conv2d_fused/winograd.h"
#include "norm_conv2d.h"

namespace fastdiff {
namespace FASTDIFF_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // output channels whose sums are in registers, by two vectors of input channels
#else
constexpr int kRows = 4;
#endif

constexpr int64_t kPositions = 128;  // whose two lines of inputs take a third of the first cache

// Positions as a matrix, how far its rows and columns are apart in both operands.
struct Walk {
  int64_t rows, columns, x_row, dy_row;
};

template <class T> constexpr int64_t kLine = kBlockBytes / sizeof(Step<T>);  // channels of a line
template <class T> constexpr int64_t kTogether = std::is_same_v<T, bf16> ? 2 : 1;  // images of a line

// sums[output][input] += dy[position][output] x[position][input] for kRows outputs and kVectors vectors of inputs.
template <class T, int kVectors>
__attribute__((noinline)) void accumulate(Compute<T>* sums, int64_t stride, const unsigned char* x, int64_t second,
                                          const unsigned char* dy, const Walk& walk) {
  using S = Compute<T>;
  using U = Step<T>;
  using W = std::conditional_t<std::is_same_v<U, uint32_t>, Words, Vec<S>>;
  Vec<S> acc[kRows][kVectors] = {};  // added to the sums at the end: an addition to a large sum loses most
  for (int64_t r = 0; r < walk.rows; ++r, x += walk.x_row, dy += walk.dy_row)
    for (int64_t c = 0; c < walk.columns; ++c) {
      W inputs[kVectors];
      for (int j = 0; j < kVectors; ++j) std::memcpy(&inputs[j], x + c * kBlockBytes + j * second, sizeof(W));
      FASTDIFF_UNROLL
      for (int i = 0; i < kRows; ++i) {
        U value;
        std::memcpy(&value, dy + c * kBlockBytes + i * sizeof(U), sizeof(U));
        for (int j = 0; j < kVectors; ++j) acc[i][j] = step(acc[i][j], value, inputs[j]);
      }
    }
  FASTDIFF_UNROLL
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) {
      S* to = sums + i * stride + j * kLanesOf<S>;
      store(to, load(to) + acc[i][j]);
    }
}

// A block of channels of one position of each image as lines; of bf16 the block is two of them, `apart` from each other.
template <class T>
FASTDIFF_INLINE void put_lines(unsigned char* to, int64_t apart, const unsigned char* first, const unsigned char* second) {
  if constexpr (kTogether<T> == 1) {
    std::memcpy(to, first, kBlockBytes);
  } else {
    constexpr int64_t kLanes = kLanesOf<float>;
    for (int64_t i = 0; i < 2 * kLine<T>; i += kLanes) {
      Halves low, high;
      std::memcpy(&low, first + 2 * i, sizeof(low)), std::memcpy(&high, second + 2 * i, sizeof(high));
      const Words pairs = __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
      std::memcpy(to + i / kLine<T> * apart + i % kLine<T> * 4, &pairs, sizeof(pairs));
    }
  }
}

// dy as the input of a convolution that reads each position once.
Conv2dArgs reading_dy(const WeightGradientArgs& g) {
  Conv2dArgs d{};
  d.images = g.conv.images, d.channels = g.conv.out_channels, d.height = d.out_height = g.conv.out_height;
  d.width = d.out_width = g.conv.out_width, d.kernel_height = d.kernel_width = d.stride = 1;
  d.dtype = g.conv.dtype, d.x = g.dy, d.winograd = g.conv.winograd, d.part_rows = g.band_rows;
  return d;
}

// One job: the products of a chunk of images for a part of the output channels.
template <class T>
class Job {
  using S = Compute<T>;
  using V = Vec<S>;
  using K = Kept<T>;
  static constexpr int64_t kVectorsOfLine = kBlockBytes / sizeof(V), kHalves = kTogether<T>;

 public:
  explicit Job(const WeightGradientArgs& g)
      : g_(g), c_(g.conv), d_(reading_dy(g)), x_rows_(c_, 0, least(g.band_rows, c_.out_height)),
        dy_rows_(d_, 0, least(g.band_rows, c_.out_height)), kept_(kTogether<T> * x_rows_.bytes() + kBlockBytes),
        kept_dy_(kTogether<T> * dy_rows_.bytes() + kBlockBytes),
        most_(c_.winograd ? g.positions : 0),
        x_lines_((c_.winograd ? kTileElements * x_rows_.blocks * kHalves * most_ * kBlockBytes : kHalves * x_rows_.bytes()) +
                 kBlockBytes),
        dy_lines_((c_.winograd ? kTileElements * dy_rows_.blocks * kHalves * most_ * kBlockBytes : kHalves * dy_rows_.bytes()) +
                  kBlockBytes) {}

  void run(int64_t chunk, int64_t part) {
    sums_ = static_cast<S*>(g_.sums) + chunk * g_.elements * g_.rows * g_.columns;
    first_output_ = part * g_.outputs_together, last_output_ = least(first_output_ + g_.outputs_together, g_.rows);
    for (int64_t e = 0; e < g_.elements; ++e)
      std::memset(sums_ + (e * g_.rows + first_output_) * g_.columns, 0,
                  (last_output_ - first_output_) * g_.columns * sizeof(S));
    filled_ = 0;
    const int64_t image_end = least((chunk + 1) * g_.chunk_images, c_.images);
    for (int64_t n = chunk * g_.chunk_images; n < image_end; n += kTogether<T>)
      for (int64_t begin = 0; begin < c_.out_height; begin += g_.band_rows) {
        const int64_t end = least(begin + g_.band_rows, c_.out_height);
        const KeptRows<T> x(c_, begin, end), dy(d_, begin, end);
        unsigned char *kept = aligned(kept_.data()), *kept_dy = aligned(kept_dy_.data());
        for (int64_t i = 0; i < kTogether<T>; ++i) {
          if (n + i < image_end) {
            conv2d_fused_keep_rows(c_, n + i, begin, end, kept + i * x.bytes());
            conv2d_fused_keep_rows(d_, n + i, begin, end, kept_dy + i * dy.bytes());
          } else {
            std::memset(kept + i * x.bytes(), 0, x.bytes()), std::memset(kept_dy + i * dy.bytes(), 0, dy.bytes());
          }
        }
        c_.winograd ? tiles(x, dy, kept, kept_dy, end - begin) : taps(x, dy, kept, kept_dy, end - begin);
      }
    if (filled_) multiply_tiles();
  }

 private:
  // sums of one element += the products of all its lines. A vector of inputs is at `x + (its line) * x_line`.
  // A few positions at a time, whose inputs stay in the first cache while they meet all outputs.
  void multiply(int64_t element, const unsigned char* x, int64_t x_line, const unsigned char* dy, int64_t dy_line, Walk walk) {
    const int64_t rows = walk.rows, columns = walk.columns;
    const int64_t together = columns < kPositions ? kPositions / columns : 1;
    for (int64_t row = 0; row < rows; row += together)
      for (int64_t column = 0; column < columns; column += kPositions) {
        walk.rows = least(together, rows - row), walk.columns = least(kPositions, columns - column);
        multiply_few(element, x + row * walk.x_row + column * kBlockBytes, x_line,
                     dy + row * walk.dy_row + column * kBlockBytes, dy_line, walk);
      }
  }

  void multiply_few(int64_t element, const unsigned char* x, int64_t x_line, const unsigned char* dy, int64_t dy_line,
                    const Walk& walk) {
    const int64_t vectors = (c_.channels + c_.channels2 + kLanesOf<S> - 1) / kLanesOf<S>;
    const auto place = [&](int64_t vector) { return vector / kVectorsOfLine * x_line + vector % kVectorsOfLine * int64_t{sizeof(V)}; };
    for (int64_t v = 0; v < vectors; v += 2)
      for (int64_t output = first_output_; output < last_output_; output += kRows) {
        S* sums = sums_ + (element * g_.rows + output) * g_.columns + v * kLanesOf<S>;
        const unsigned char* of = dy + output / kLine<T> * dy_line + output % kLine<T> * int64_t{sizeof(Step<T>)};
        if (v + 1 < vectors) accumulate<T, 2>(sums, g_.columns, x + place(v), place(v + 1) - place(v), of, walk);
        else accumulate<T, 1>(sums, g_.columns, x + place(v), 0, of, walk);
      }
  }

  // Kept rows of the images as rows of lines [row][line of channels][column].
  void join(const KeptRows<T>& rows, const unsigned char* kept, unsigned char* lines) {
    const int64_t columns = rows.block_bytes / kBlockBytes;
    for (int64_t i = 0; i < rows.rows * rows.blocks; ++i)
      for (int64_t at = 0; at < columns; ++at)
        put_lines<T>(lines + (i * kHalves * columns + at) * kBlockBytes, rows.block_bytes, kept + (i * columns + at) * kBlockBytes,
                     kept + rows.bytes() + (i * columns + at) * kBlockBytes);
  }

  void taps(const KeptRows<T>& x, const KeptRows<T>& dy, const unsigned char* kept, const unsigned char* kept_dy, int64_t rows) {
    unsigned char *x_lines = aligned(x_lines_.data()), *dy_lines = aligned(dy_lines_.data());
    join(x, kept, x_lines), join(dy, kept_dy, dy_lines);
    const Walk walk{rows, c_.out_width, kHalves * x.row_bytes * c_.stride, kHalves * dy.row_bytes};
    for (int64_t tap = 0; tap < g_.elements; ++tap)
      multiply(tap, x_lines + tap / c_.kernel_width * kHalves * x.row_bytes + x.column(c_, tap % c_.kernel_width), x.block_bytes,
               dy_lines, dy.block_bytes, walk);
  }

  // A band's tiles are added to those gathered: [element][line of channels][position].
  void tiles(const KeptRows<T>& x, const KeptRows<T>& dy, const unsigned char* kept, const unsigned char* kept_dy, int64_t rows) {
    const int64_t down = (rows + 1) / 2, across = (c_.out_width + 1) / 2;
    if (filled_ + down * across > most_) multiply_tiles();
    for (int64_t y = 0; y < down; ++y, filled_ += across) {
      for_lanes(x, x_lines_, [&](int64_t at, unsigned char* to, int64_t apart) {
        transform_x(kept + 2 * y * x.row_bytes + at, x.bytes(), x.row_bytes, across, to, apart);
      });
      for_lanes(dy, dy_lines_, [&](int64_t at, unsigned char* to, int64_t apart) {
        transform_dy(kept_dy + 2 * y * dy.row_bytes + at, dy.bytes(), dy.row_bytes, across, to, apart);
      });
    }
  }

  // f(offset in a kept row, where its lines begin, how far elements are apart) for each vector of channels.
  template <class F>
  void for_lanes(const KeptRows<T>& rows, const Scratch<unsigned char>& lines, F&& f) {
    const int64_t line = most_ * kBlockBytes;
    for (int64_t block = 0; block < rows.blocks; ++block)
      for (int64_t lane = 0; lane < kBlock<T>; lane += kLanesOf<S>)
        f(block * rows.block_bytes + lane * int64_t{sizeof(K)},
          aligned(lines.data()) + (block * kHalves + lane / kLine<T>) * line + filled_ * kBlockBytes +
              lane % kLine<T> * int64_t{sizeof(Step<T>)},
          rows.blocks * kHalves * line);
  }

  // A value of each image of a line.
  struct Values {
    V of[kTogether<T>];
    FASTDIFF_INLINE Values operator+(const Values& v) const { return map(v, [](V a, V b) { return a + b; }); }
    FASTDIFF_INLINE Values operator-(const Values& v) const { return map(v, [](V a, V b) { return a - b; }); }
    template <class F>
    FASTDIFF_INLINE Values map(const Values& v, F&& f) const {
      Values out;
      for (int64_t i = 0; i < kTogether<T>; ++i) out.of[i] = f(of[i], v.of[i]);
      return out;
    }
    FASTDIFF_INLINE void put(unsigned char* to) const {
      if constexpr (kTogether<T> == 2) {
        const Words pairs = operand_pairs(of[0], of[1]);
        std::memcpy(to, &pairs, sizeof(pairs));
      } else {
        store(reinterpret_cast<K*>(to), of[0]);
      }
    }
  };
  FASTDIFF_INLINE static Values at(const unsigned char* from, int64_t image_bytes) {
    Values out;
    for (int64_t i = 0; i < kTogether<T>; ++i) out.of[i] = load(reinterpret_cast<const K*>(from + i * image_bytes));
    return out;
  }

  // B^T h B of a row of tiles; two side by side share two of their columns.
  void transform_x(const unsigned char* from, int64_t image, int64_t row, int64_t across, unsigned char* to, int64_t apart) {
    const auto rows_of_elements = [&](auto&& column) FASTDIFF_INLINE_LAMBDA {  // of one row of B^T
      Values first = column(from), second = column(from + kBlockBytes);
      for (int64_t tile = 0; tile < across; ++tile) {
        const unsigned char* next = from + (2 * tile + 2) * kBlockBytes;
        const Values third = column(next), fourth = column(next + kBlockBytes);
        unsigned char* p = to + tile * kBlockBytes;
        (first - third).put(p), (second + third).put(p + apart);
        (third - second).put(p + 2 * apart), (second - fourth).put(p + 3 * apart);
        first = third, second = fourth;
      }
      to += 4 * apart;
    };
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p, image) - at(p + 2 * row, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p + row, image) + at(p + 2 * row, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p + 2 * row, image) - at(p + row, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p + row, image) - at(p + 3 * row, image); });
  }

  // A dy A^T of a row of tiles.
  void transform_dy(const unsigned char* from, int64_t image, int64_t row, int64_t across, unsigned char* to, int64_t apart) {
    const auto rows_of_elements = [&](auto&& column) FASTDIFF_INLINE_LAMBDA {  // of one row of A
      for (int64_t tile = 0; tile < across; ++tile) {
        const unsigned char* next = from + 2 * tile * kBlockBytes;
        const Values left = column(next), right = column(next + kBlockBytes);
        unsigned char* p = to + tile * kBlockBytes;
        left.put(p), (left + right).put(p + apart), (left - right).put(p + 2 * apart), (Values{} - right).put(p + 3 * apart);
      }
      to += 4 * apart;
    };
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p, image) + at(p + row, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return at(p, image) - at(p + row, image); });
    rows_of_elements([&](const unsigned char* p) FASTDIFF_INLINE_LAMBDA { return Values{} - at(p + row, image); });
  }

  void multiply_tiles() {
    const Walk walk{1, filled_, 0, 0};
    const int64_t line = most_ * kBlockBytes;
    for (int64_t e = 0; e < kTileElements; ++e)
      multiply(e, aligned(x_lines_.data()) + e * x_rows_.blocks * kHalves * line, line,
               aligned(dy_lines_.data()) + e * dy_rows_.blocks * kHalves * line, line, walk);
    filled_ = 0;
  }

  const WeightGradientArgs& g_;
  const Conv2dArgs &c_, d_;
  KeptRows<T> x_rows_, dy_rows_;
  Scratch<unsigned char> kept_, kept_dy_;
  int64_t most_;  // tiles gathered at most
  Scratch<unsigned char> x_lines_, dy_lines_;
  S* sums_ = nullptr;
  int64_t first_output_ = 0, last_output_ = 0, filled_ = 0;
};

// One output channel's sums of all chunks as [tap][input].
template <class S>
void gather(const WeightGradientArgs& g, int64_t output, S* sums, S* taps) {
  using V = Vec<S>;
  const int64_t size = g.elements * g.rows * g.columns;
  for (int64_t input = 0; input < g.columns; input += kLanesOf<S>) {
    const auto total = [&](int64_t e) FASTDIFF_INLINE_LAMBDA {
      const S* from = sums + (e * g.rows + output) * g.columns + input;
      V v = load(from);
      for (int64_t chunk = 1; chunk < g.chunks; ++chunk) v += load(from + chunk * size);
      return v;
    };
    if (!g.conv.winograd) {
      for (int64_t e = 0; e < g.elements; ++e) store(taps + e * g.columns + input, total(e));
      continue;
    }
    V rows[3][4];  // G^T M
    FASTDIFF_UNROLL
    for (int j = 0; j < 4; ++j) {
      const V first = total(j), second = total(4 + j) * S{0.5}, third = total(8 + j) * S{0.5}, fourth = total(12 + j);
      rows[0][j] = first + (second + third), rows[1][j] = second - third, rows[2][j] = (second + third) + fourth;
    }
    FASTDIFF_UNROLL
    for (int i = 0; i < 3; ++i) {
      const V second = rows[i][1] * S{0.5}, third = rows[i][2] * S{0.5};
      S* to = taps + 3 * i * g.columns + input;
      store(to, rows[i][0] + (second + third)), store(to + g.columns, second - third);
      store(to + 2 * g.columns, (second + third) + rows[i][3]);
    }
  }
}

template <class S, class E>
void finish(const WeightGradientArgs& g, int64_t begin, int64_t end) {
  const int64_t height = g.conv.kernel_height, width = g.conv.kernel_width, inputs = g.conv.channels + g.conv.channels2;
  const Scratch<S> taps(height * width * g.columns);
  const Scratch<E> row(g.columns);
  for (int64_t output = begin; output < end; ++output) {
    gather(g, output, static_cast<S*>(g.sums), taps.data());
    for (int64_t tap = 0; tap < height * width; ++tap) {
      E* to = static_cast<E*>(g.dw) + output * g.output_stride + tap / width * g.row_stride + tap % width * g.column_stride;
      E* values = g.input_stride == 1 ? to : row.data();
      for_vectors<kLanesOf<S>>(inputs, [&](int64_t i, int64_t count) {
        store_up_to(values + i, load(taps.data() + tap * g.columns + i), count);
      });
      if (values == to) continue;
      for (int64_t i = 0; i < inputs; ++i) to[i * g.input_stride] = values[i];
    }
  }
}

}  // namespace

void weight_gradient_kernel(const WeightGradientArgs& g, int64_t begin, int64_t end) {
  with_dtype(g.conv.dtype, [&]<class T>() {
    Job<T> job(g);
    for (int64_t i = begin; i < end; ++i) job.run(i / g.parts, i % g.parts);
  });
}

void weight_gradient_finish_kernel(const WeightGradientArgs& g, int64_t begin, int64_t end) {
  if (g.conv.dtype == DType::f64) return finish<double, double>(g, begin, end);
  with_elements<float>(g.dw, g.dtype, [&]<class E>(E*) { finish<float, E>(g, begin, end); });
}

}  // namespace FASTDIFF_ISA
}  // namespace fastdiff
