// conv2d_fused on CUDA: an implicit product of matrices, whose left one is read through the prologue (cuda_tiles.h), on tensor
// cores (cuda_products.h), with the epilogue and the statistics of the next norm on the sums in registers.
#include "cuda_products.h"

#include "../common/dispatch.h"

namespace fastdiff {
namespace cuda {
namespace {

template <int kWarpsAcross> constexpr int kThreadsOfBlock = kWarpsDown * kWarpsAcross * 32;

// Weights of a block for one step: an element of the kernel and a slab, which follow each other as they are packed.
template <int kWarpsAcross>
FASTDIFF_INLINE void start_weights(const Conv2dTiles& t, unsigned first_block, unsigned step, unsigned char* stages) {
  using P = Pack<uint32_t, 4>;
  constexpr unsigned kOfTap = kTapBytes / kPiece, kThreadsHere = kThreadsOfBlock<kWarpsAcross>;
  const unsigned steps = t.slabs * t.taps, last = (t.outputs - 1) / static_cast<unsigned>(kOutputBlock);
  if (step >= steps) return;
  P* const to = reinterpret_cast<P*>(stages) + step % kStages * (kWarpsAcross * kOfTap) + threadIdx.x;
  const P* const from = static_cast<const P*>(t.c.packed) + threadIdx.x % kOfTap;
#pragma unroll
  for (unsigned i = 0; i < kOfTap * kWarpsAcross; i += kThreadsHere) {
    const unsigned block = first_block + (i + threadIdx.x) / kOfTap;  // past the last one a warp has nothing to do
    copy_async(to + i, from + ((block < last ? block : last) * steps + step) * kOfTap);
  }
}

// Of neighbouring channels; kCount of them in 16 bytes where there are that many.
template <class T, class S>
FASTDIFF_INLINE void add_elements(S (&v)[kLaneOutputs], const T* from, int count, bool whole) {
  constexpr int kCount = kPiece / sizeof(T);
  if (whole) {
#pragma unroll
    for (int k = 0; k < kLaneOutputs; k += kCount) {
      const auto some = *reinterpret_cast<const Pack<T, kCount>*>(from + k);
#pragma unroll
      for (int u = 0; u < kCount; ++u) v[k + u] += widen(some.v[u]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k)
      if (k < count) v[k] += widen(from[k]);
  }
}

template <class T, class S>
FASTDIFF_INLINE void store_elements(T* to, const S (&v)[kLaneOutputs], int count, bool whole) {
  constexpr int kCount = kPiece / sizeof(T);
  if (whole) {
#pragma unroll
    for (int k = 0; k < kLaneOutputs; k += kCount) {
      Pack<T, kCount> some;
#pragma unroll
      for (int u = 0; u < kCount; ++u) some.v[u] = narrow<T>(v[k + u]);
      *reinterpret_cast<Pack<T, kCount>*>(to + k) = some;
    }
  } else {
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k)
      if (k < count) to[k] = narrow<T>(v[k]);
  }
}

// Count, mean and squared deviations of some pixels of a channel.
template <class S>
struct Moments {
  S count, mean, m2;
  // Chan et al. 1979, equations 2.1.
  FASTDIFF_INLINE void join(const Moments& other) {
    if (other.count == 0) return;
    const S total = count + other.count, share = divide(other.count, total), delta = other.mean - mean;
    m2 += other.m2 + delta * delta * (count * share), mean += delta * share, count = total;
  }
};

// Over the lanes with the same channels.
template <class S>
FASTDIFF_INLINE S sum_of_positions(S v) {
  for (int offset = 4; offset < 32; offset *= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, offset);
  return v;
}

// Where a tile's outputs lie: its first row and column, and how many of each there are.
struct Place {
  int row, column, rows, columns;
  FASTDIFF_INLINE Place(const Conv2dTiles& t, int part, int tile) {
    const int part_rows = static_cast<int>(t.c.part_rows), down = tile / t.tiles_across * t.tile_rows;
    row = part * part_rows + down, column = tile % t.tiles_across * t.tile_columns;
    rows = least(least(t.tile_rows, part_rows - down), static_cast<int>(t.c.out_height) - row);
    columns = least(t.tile_columns, static_cast<int>(t.c.out_width) - column);
  }
  FASTDIFF_INLINE static int least(int a, int b) { return a < b ? a : b; }
  // Fragments of the tile's positions, the first half (rounded up) for one warp and the rest for the other.
  FASTDIFF_INLINE int fragments(const Conv2dTiles& t, int down) const {
    const int all = rows > 0 ? (rows * t.tile_columns + kFragment - 1) / kFragment : 0;
    return (all + (down ? 0 : 1)) / kWarpsDown;
  }
  FASTDIFF_INLINE int first_fragment(const Conv2dTiles& t, int down) const { return down ? fragments(t, 0) : 0; }
};

// A warp's outputs: sums begin with the bias; residual and activation are put on them, and they are stored.
template <class T>
struct Epilogue {
  using S = Compute<T>;
  const Conv2dTiles& t;
  int64_t n;
  int first_channel, count;  // the lane's

  FASTDIFF_INLINE Epilogue(const Conv2dTiles& t_, int64_t n_, int block) : t(t_), n(n_) {
    first_channel = block * static_cast<int>(kOutputBlock) + threadIdx.x % 4 * kLaneOutputs;
    count = t.outputs - first_channel;
  }

  FASTDIFF_INLINE void begin(Sums<S, kDown<T>>& sums) const {
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k) {
      const S bias = t.c.bias.data && k < count ? static_cast<S>(element(t.c.bias, n, first_channel + k)) : S{};
#pragma unroll
      for (int p = 0; p < 2 * kDown<T>; ++p) sums[p / 2][k / 2][2 * (p % 2) + k % 2] = bias;
    }
  }

  // By way of the thread's own shared memory and one at a time, or the code of eight would hold too many registers.
  template <int kThreadsOfBlock>
  FASTDIFF_INLINE void activate_in(S (&v)[kLaneOutputs], S* shared) const {
    S* mine = shared + threadIdx.x;
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k) mine[k * kThreadsOfBlock] = v[k];
#pragma unroll 1
    for (int k = 0; k < kLaneOutputs; ++k) {
      S one[1] = {mine[k * kThreadsOfBlock]};
      activate_all(one, t.c.act_out);
      mine[k * kThreadsOfBlock] = one[0];
    }
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k) v[k] = mine[k * kThreadsOfBlock];
  }

  // Returns a bit for each of the lane's positions that exist.
  template <int kThreadsOfBlock>
  FASTDIFF_INLINE unsigned store(Sums<S, kDown<T>>& sums, const Place& at, int down, S* shared) const {
    unsigned existing = 0;
    const int first = at.first_fragment(t, down), fragments = count > 0 ? at.fragments(t, down) : 0;
    const bool whole = t.whole_outputs && count >= kLaneOutputs;
#pragma unroll
    for (int p = 0; p < 2 * kDown<T>; ++p) {
      const int i = p / 2, h = p % 2, m = (first + i) * kFragment + 8 * h + threadIdx.x % 32 / 4;
      const int row = m / t.tile_columns, column = m - row * t.tile_columns;
      if (i >= fragments || row >= at.rows || column >= at.columns) continue;
      existing |= 1u << p;
      const int64_t pixel = (n * t.c.out_height + at.row + row) * t.c.out_width + at.column + column;
      const int64_t from = pixel * t.outputs + first_channel;
      S v[kLaneOutputs];
#pragma unroll
      for (int k = 0; k < kLaneOutputs; ++k) v[k] = sums[i][k / 2][2 * h + k % 2];
      if (t.c.residual) add_elements(v, static_cast<const T*>(t.c.residual) + from, count, whole);
      if (t.c.act_out != Act::none) activate_in<kThreadsOfBlock>(v, shared);
      store_elements(static_cast<T*>(t.c.y) + from, v, count, whole);
#pragma unroll
      for (int k = 0; k < kLaneOutputs; ++k) sums[i][k / 2][2 * h + k % 2] = v[k];
    }
    return existing;
  }

  // Writes the moments of the warp's channels; two passes over its registers, so that nothing cancels.
  FASTDIFF_INLINE static void moments(const Sums<S, kDown<T>>& sums, unsigned existing, Moments<S>* of_warp) {
    S rows{};
#pragma unroll
    for (int p = 0; p < 2 * kDown<T>; ++p) rows += existing >> p & 1;
    const S positions = sum_of_positions(rows), share = positions > 0 ? divide(S{1}, positions) : S{};
#pragma unroll
    for (int k = 0; k < kLaneOutputs; ++k) {
      const auto sum = [&](auto&& f) {
        S total{};
#pragma unroll
        for (int p = 0; p < 2 * kDown<T>; ++p)
          if (existing >> p & 1) total += f(sums[p / 2][k / 2][2 * (p % 2) + k % 2]);
        return sum_of_positions(total);
      };
      const S mean = sum([](S v) { return v; }) * share;
      const S m2 = sum([&](S v) { return (v - mean) * (v - mean); });
      if (threadIdx.x % 32 < 4) of_warp[threadIdx.x % 4 * kLaneOutputs + k] = {positions, mean, m2};
    }
  }
};

// Joins what the warps have of a tile to what there is of the part, each thread for a channel; partials hold it between tiles.
template <int kOutputs, class S>
FASTDIFF_INLINE void join_warps(const Conv2dTiles& t, const Moments<S>* of_warps, const Share& share, bool first) {
  const int channel = share.block_of_outputs * kOutputs + threadIdx.x;
  if (threadIdx.x >= kOutputs || channel >= t.outputs) return;
  const int64_t row = int64_t{share.n} * t.outputs + channel;
  Moments<S>& moments = static_cast<Moments<S>*>(t.c.partials)[row * t.c.parts + share.part];
  Moments<S> m = first ? Moments<S>{} : moments;
#pragma unroll
  for (int warp = 0; warp < kWarpsDown; ++warp) m.join(of_warps[warp * kOutputs + threadIdx.x]);
  moments = m;
}

// How many threads a multiprocessor must have room for: 128 registers each in 16 bits, else all that there are.
template <class T> constexpr int kThreadsAtOnce = sizeof(T) == 2 ? 512 : 256;

template <class T, int kWarpsAcross>
__global__ void __launch_bounds__(kThreadsOfBlock<kWarpsAcross>, kThreadsAtOnce<T> / kThreadsOfBlock<kWarpsAcross>)
    conv2d_fused_kernel(const Conv2dTiles t) {
  using S = Compute<T>;
  constexpr int kThreadsHere = kThreadsOfBlock<kWarpsAcross>, kStageBytes = kWarpsAcross * kTapBytes;
  constexpr int kOutputs = kWarpsAcross * static_cast<int>(kOutputBlock);
  static_assert(kWarpsDown * kOutputs * sizeof(Moments<S>) + kThreadsHere * kLaneOutputs * sizeof(S) <= kStages * kStageBytes,
                "what the epilogue needs");
  FASTDIFF_DYNAMIC_SHARED(memory);
  unsigned char *const operands = memory + kStages * kStageBytes, *const raw = operands + t.pixels * kBlockBytes;
  int* const places = reinterpret_cast<int*>(raw + t.ahead * t.slot);
  int* const offsets = places + t.pixels;  // of the kernel's elements, in bytes
  const int stride = static_cast<int>(t.c.stride);
  for (int pixel = threadIdx.x; pixel < t.pixels; pixel += kThreadsHere) {
    const int row = pixel / t.row_pixels, rest = pixel - row * t.row_pixels, phase = rest / t.line;
    places[pixel] = row << 16 | ((rest - phase * t.line) * stride + phase);
  }
  for (int tap = threadIdx.x; tap < t.taps; tap += kThreadsHere) {
    const int row = tap / static_cast<int>(t.c.kernel_width), column = tap - row * static_cast<int>(t.c.kernel_width);
    offsets[tap] = (row * t.row_pixels + column % stride * t.line + column / stride) * static_cast<int>(kBlockBytes);
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, down = warp / kWarpsAcross, across = warp % kWarpsAcross;
  for (int tile = 0; tile < t.tiles; ++tile) {
    const Share share(t);
    const Place at(t, share.part, tile);
    const Reader<T, kThreadsHere> reader{t, at.row * stride - static_cast<int>(t.c.top),
                                         at.column * stride - static_cast<int>(t.c.left), places, raw, operands};
    const int first_block = share.block_of_outputs * kWarpsAcross;
    const bool idle = (first_block + across) * static_cast<int>(kOutputBlock) >= t.outputs;
    const int fragments = idle ? 0 : at.fragments(t, down);
    Products<T> products;
    Epilogue<T>(t, share.n, first_block + across).begin(products.sums);
    products.place(t, at.first_fragment(t, down));

    for (int slab = 0; slab < t.ahead && slab < t.slabs; ++slab) reader.start(slab);
    for (unsigned early = 0; early < kStages - 1; ++early) {
      start_weights<kWarpsAcross>(t, first_block, early, memory);
      commit_copies();
    }
    unsigned step = 0;
    for (int slab = 0; slab < t.slabs; ++slab)
      for (int tap = 0; tap < t.taps; ++tap, ++step) {
        wait_for_copies<kStages - 2>();  // but for those of the last two steps
        __syncthreads();                 // all threads' have come, and nobody reads any more what the last step did
        if (tap == 0) {
          reader.transform(slab);
          __syncthreads();
          if (slab + t.ahead < t.slabs) reader.start(slab + t.ahead);
        }
        start_weights<kWarpsAcross>(t, first_block, step + kStages - 1, memory);
        commit_copies();
        const unsigned char* weights = memory + step % kStages * kStageBytes + across * kTapBytes;
        multiply(products, fragments, operands, offsets[tap], weights);
      }

    __syncthreads();  // weights and operands are done with, and their memory serves for what follows
    auto* of_warps = reinterpret_cast<Moments<S>*>(memory);
    auto* scratch = reinterpret_cast<S*>(of_warps + kWarpsDown * kOutputs);
    const Share again(t);
    const Epilogue<T> epilogue(t, again.n, again.block_of_outputs * kWarpsAcross + across);
    const unsigned existing = epilogue.template store<kThreadsHere>(products.sums, Place(t, again.part, tile), down, scratch);
    if (t.c.partials) {
      Epilogue<T>::moments(products.sums, existing, of_warps + down * kOutputs + across * static_cast<int>(kOutputBlock));
      __syncthreads();
      join_warps<kOutputs>(t, of_warps, again, tile == 0);
    }
    __syncthreads();  // the next tile's weights come where this was
  }
}

int up(int a, int b) { return (a + b - 1) / b; }

// Geometry of a tile, and the shared memory of a block in bytes.
int64_t cut(Conv2dTiles& t, int warps_across, int slabs_across) {
  const Conv2dArgs& c = t.c;
  const int stride = static_cast<int>(c.stride), kernel_width = static_cast<int>(c.kernel_width);
  t.taps = t.kernel_rows * kernel_width, t.turns = static_cast<int>(c.kernel_height) / t.kernel_rows;
  t.slabs = slabs_across * t.turns;
  t.tiles_across = up(static_cast<int>(c.out_width), t.tile_columns);
  t.tiles = t.tiles_across * up(static_cast<int>(c.part_rows), t.tile_rows);
  t.line = up((t.tile_columns - 1) * stride + kernel_width, stride);
  t.row_pixels = t.line * stride;
  t.pixels = ((t.tile_rows - 1) * stride + t.kernel_rows) * t.row_pixels;
  t.ahead = up(kStages - 1, t.taps);
  t.slot = t.pixels * static_cast<int>(kBlockBytes) + kSlabCoefficients;
  const int64_t ints = t.pixels + t.taps;
  return int64_t{kStages} * warps_across * kTapBytes + t.pixels * kBlockBytes + int64_t{t.ahead} * t.slot +
         ints * int64_t{sizeof(int)};
}

// The largest tile of which the positions fit in registers and the input in shared memory.
int64_t fit(Conv2dTiles& t, int warps_across, int slabs_across, int most_positions) {
  const Conv2dArgs& c = t.c;
  t.kernel_rows = static_cast<int>(c.kernel_height);
  t.tile_rows = static_cast<int>(c.part_rows);
  const int width = static_cast<int>(c.out_width);
  t.tile_columns = up(width, up(t.tile_rows * width, most_positions));
  for (;;) {
    const int64_t bytes = cut(t, warps_across, slabs_across);
    if (t.tile_rows * t.tile_columns <= most_positions && bytes <= kSharedBytes) return bytes;
    if (t.tile_columns > 1) t.tile_columns = up(t.tile_columns, 2);
    else if (t.tile_rows > 1) t.tile_rows = up(t.tile_rows, 2);
    else if (t.kernel_rows > 1) t.kernel_rows = 1;
    else return -1;
  }
}

constexpr int64_t kManyBlocks = 216;  // two for each multiprocessor of an A100

template <class T>
const char* launch_kernel(Conv2dTiles& t, void* stream) {
  const auto run = [&]<int kWarpsAcross>() -> const char* {
    t.output_blocks = up(t.outputs, kWarpsAcross * static_cast<int>(kOutputBlock));
    const int64_t bytes = fit(t, kWarpsAcross, up(t.inputs, kBlockBytes / sizeof(T)), kWarpsDown * kDown<T> * kFragment);
    if (bytes < 0) return "conv2d_fused: the kernel or the stride is too large for shared memory";
    return launch_with_shared<kThreadsOfBlock<kWarpsAcross>>(
        conv2d_fused_kernel<T, kWarpsAcross>, t.c.images * t.c.parts * t.output_blocks, bytes, stream, t);
  };
  constexpr int kWide = 4;  // warps
  const int64_t wide_blocks = t.c.images * t.c.parts * up(t.outputs, kWide * static_cast<int>(kOutputBlock));
  const bool wide = t.outputs > kWide / 2 * kOutputBlock && wide_blocks >= kManyBlocks;
  return wide ? run.template operator()<kWide>() : run.template operator()<kWide / 2>();
}

uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

}  // namespace
}  // namespace cuda

using namespace cuda;

const char* conv2d_fused_cuda_launch(const Conv2dArgs& c, void* stream) {
  constexpr int64_t kMost = int64_t{1} << 29;  // pixels of an image, up-sampled, and weights: both are counted in 32 bits
  if ((c.height << c.upsample) * (c.width << c.upsample) > kMost || c.out_height * c.out_width > kMost ||
      (c.channels + c.channels2) * c.kernel_height * c.kernel_width > kMost / c.out_channels || c.stride > kMost)
    return "conv2d_fused: an image or the weights have more than 2^29 elements";
  Conv2dTiles t{};
  t.c = c;
  t.channels = static_cast<int>(c.channels), t.inputs = static_cast<int>(c.channels + c.channels2);
  t.up = c.upsample, t.width = static_cast<int>(c.width);
  t.rows = static_cast<int>(c.height) << t.up, t.columns = static_cast<int>(c.width) << t.up;
  t.outputs = static_cast<int>(c.out_channels);
  const char* error = nullptr;
  with_dtype(c.dtype, [&]<class T>() {
    constexpr int kCount = kPiece / sizeof(T);
    t.whole_inputs = c.channels % kCount == 0 && c.channels2 % kCount == 0 && (address(c.x) | address(c.x2)) % kPiece == 0;
    t.whole_outputs = c.out_channels % kCount == 0 && (address(c.y) | address(c.residual)) % kPiece == 0;
    error = launch_kernel<T>(t, stream);
  });
  return error;
}

}  // namespace fastdiff
