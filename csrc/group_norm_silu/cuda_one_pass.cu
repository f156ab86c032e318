// group_norm_silu forward where groups fit in shared memory: one read of x, one write of y.
//
// About the rough mean of a first sum the squares cannot cancel, and the sum of what is left mends the mean.
#include "cuda_one_pass.h"

namespace fastdiff::cuda {
namespace {

// ---- NCHW ----

template <class T>
struct KeptGroup {
  using S = Compute<T>;
  T* x;
  S *factor, *offset;
  int64_t bytes;
  __host__ FASTDIFF_INLINE KeptGroup(const GroupNormSiluArgs& a, unsigned char* memory) {
    Carver carver{memory};
    x = carver.take<T>(a.runs.length);
    factor = carver.take<S>(a.group_channels), offset = carver.take<S>(a.group_channels);
    bytes = carver.bytes;
  }
};

template <class T, Act kAct, int kCount, int kTeam>
__global__ void __launch_bounds__(kThreads, kBlocks) one_pass(const GroupNormSiluArgs a) {
  using S = Compute<T>;
  using P = Pack<T, kCount>;
  __shared__ S shared[kWarps];
  FASTDIFF_DYNAMIC_SHARED(memory);
  const Team<kTeam> team;
  const int64_t run = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + team.index;
  if (run >= a.images * a.groups) return;  // a whole warp, which has no barrier but its own
  const int64_t n = group_image(a, run), g = run - n * a.groups;
  const int length = static_cast<int>(a.runs.length), pixels = static_cast<int>(a.pixels);
  const S share = static_cast<S>(a.share);
  const KeptGroup<T> own(a, memory + team.index * KeptGroup<T>(a, nullptr).bytes);
  auto* kept = reinterpret_cast<P*>(own.x);

  const auto* x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + run * a.runs.length);
  for (int i = team.thread; i < length / kCount; i += kTeam) copy_async(kept + i, x + i);
  const S first = widen(*reinterpret_cast<const T*>(x));
  const auto sum = [&](S v) { return kTeam == 32 ? warp_sum(v) : block_sum<kThreads>(v, shared); };
  wait_for_copies();  // a thread reads only what it has copied
  S total{};
  for (int i = team.thread; i < length / kCount; i += kTeam) {
    const P v = kept[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) total += widen(v.v[k]) - first;
  }
  const S rough = first + sum(total) * share;
  S rest{}, square{};
  for (int i = team.thread; i < length / kCount; i += kTeam) {
    const P v = kept[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S d = widen(v.v[k]) - rough;
      rest += d, square += d * d;
    }
  }
  rest = sum(rest) * share, square = sum(square) * share - rest * rest;
  const S mean = rough + rest, rstd = 1 / square_root((square < 0 ? 0 : square) + static_cast<S>(a.eps));
  for (int c = team.thread; c < a.group_channels; c += kTeam) {
    const Folded<S> f = fold(a, n, g * a.group_channels + c, rstd, (mean - rough) - rest);
    own.factor[c] = f.factor, own.offset[c] = f.offset;
  }
  if (team.thread == 0) static_cast<S*>(a.mean)[run] = mean, static_cast<S*>(a.rstd)[run] = rstd;
  team.sync();

  auto* y = reinterpret_cast<P*>(static_cast<T*>(a.y) + run * a.runs.length);
  for (int i = team.thread; i < length / kCount; i += kTeam) {
    P v = kept[i];
    const int c = i * kCount / pixels;
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      v.v[k] = narrow<T>(activate<kAct>(madd(widen(v.v[k]) - mean, own.factor[c], own.offset[c])));
    y[i] = v;
  }
}

template <class T, Act kAct>
bool launch_nchw(const GroupNormSiluArgs& a, void* stream, const char*& error) {
  const int64_t bytes = KeptGroup<T>(a, nullptr).bytes, runs = a.images * a.groups;
  if (bytes > kSharedBytes) return false;
  const bool packed = a.pixels % kPack<T> == 0 && (address(a.x) | address(a.y)) % 16 == 0;
  if (kWarps * bytes <= kSharedUnasked)
    error = launch_with_shared(packed ? one_pass<T, kAct, kPack<T>, 32> : one_pass<T, kAct, 1, 32>,
                               (runs + kWarps - 1) / kWarps, kWarps * bytes, stream, a);
  else
    error = launch_with_shared(packed ? one_pass<T, kAct, kPack<T>, kThreads> : one_pass<T, kAct, 1, kThreads>, runs, bytes,
                               stream, a);
  return true;
}

// ---- channels_last ----

template <class T, int kCount>
struct KeptBundle {
  using S = Compute<T>;
  Pack<T, kCount>* x;
  S *sums, *factor, *offset;          // of channels
  S *rough, *rest, *mean, *rstd, *lost;  // of groups; lost: when the mean was rounded
  int64_t bytes;
  __host__ FASTDIFF_INLINE KeptBundle(const GroupNormSiluArgs& a, int64_t width, int64_t groups, unsigned char* memory) {
    Carver carver{memory};
    x = carver.take<Pack<T, kCount>>(a.pixels * (width / kCount)), sums = carver.take<S>(kThreads * kCount);
    factor = carver.take<S>(width), offset = carver.take<S>(width);
    rough = carver.take<S>(groups), rest = carver.take<S>(groups), mean = carver.take<S>(groups);
    rstd = carver.take<S>(groups), lost = carver.take<S>(groups);
    bytes = carver.bytes;
  }
};

template <class T, Act kAct, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocks) one_pass_bundle(const GroupNormSiluArgs a, const int groups) {
  using S = Compute<T>;
  using P = Pack<T, kCount>;
  FASTDIFF_DYNAMIC_SHARED(memory);
  const Bundle<kCount> bundle(a, groups);
  const KeptBundle<T, kCount> own(a, groups * a.group_channels, groups, memory);
  const T *x = static_cast<const T*>(a.x), *first_pixel = x + bundle.n * a.pixels * a.channels + bundle.channel;
  const S share = static_cast<S>(a.share);
  const auto first_of = [&](int g) { return widen(first_pixel[g * a.group_channels]); };

  bundle.for_packs(a, [&](int i, int64_t at) { copy_async(own.x + i, reinterpret_cast<const P*>(x + at)); });
  S about[kCount] = {}, sum[kCount] = {}, square[kCount] = {};
  if (bundle.inside) bundle.for_lanes(a, [&](int k, int, int g) { about[k] = first_of(g); });
  wait_for_copies();  // a thread reads only what it has copied
  bundle.for_packs(a, [&](int i, int64_t) {
    const P v = own.x[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum[k] += widen(v.v[k]) - about[k];
  });
  bundle.sum_groups(a, sum, own.sums, [&](int g, S total) { own.rough[g] = first_of(g) + total * share; });
#pragma unroll
  for (int k = 0; k < kCount; ++k) sum[k] = 0;
  if (bundle.inside) bundle.for_lanes(a, [&](int k, int, int g) { about[k] = own.rough[g]; });
  bundle.for_packs(a, [&](int i, int64_t) {
    const P v = own.x[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S d = widen(v.v[k]) - about[k];
      sum[k] += d, square[k] += d * d;
    }
  });
  bundle.sum_groups(a, sum, own.sums, [&](int g, S total) { own.rest[g] = total * share; });
  bundle.sum_groups(a, square, own.sums, [&](int g, S total) {
    const S rest = own.rest[g], variance = total * share - rest * rest, mean = own.rough[g] + rest;
    const S rstd = 1 / square_root((variance < 0 ? 0 : variance) + static_cast<S>(a.eps));
    own.mean[g] = mean, own.rstd[g] = rstd, own.lost[g] = (mean - own.rough[g]) - rest;
    const int64_t at = bundle.n * a.groups + bundle.group + g;
    static_cast<S*>(a.mean)[at] = mean, static_cast<S*>(a.rstd)[at] = rstd;
  });
  for (int c = threadIdx.x; c < bundle.width; c += kThreads) {
    const int g = c / static_cast<int>(a.group_channels);
    const Folded<S> f = fold(a, bundle.n, bundle.channel + c, own.rstd[g], own.lost[g]);
    own.factor[c] = f.factor, own.offset[c] = f.offset;
  }
  __syncthreads();

  S factor[kCount] = {}, offset[kCount] = {};
  if (bundle.inside)
    bundle.for_lanes(a, [&](int k, int c, int g) {
      about[k] = own.mean[g], factor[k] = own.factor[c], offset[k] = own.offset[c];
    });
  bundle.for_packs(a, [&](int i, int64_t at) {
    P v = own.x[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) v.v[k] = narrow<T>(activate<kAct>(madd(widen(v.v[k]) - about[k], factor[k], offset[k])));
    *reinterpret_cast<P*>(static_cast<T*>(a.y) + at) = v;
  });
}

template <class T, Act kAct, int kCount>
bool launch_channels_last(const GroupNormSiluArgs& a, void* stream, const char*& error) {
  const int64_t groups = bundle_of<T>(a, kCount, [&](int64_t width, int64_t count) {
    return KeptBundle<T, kCount>(a, width, count, nullptr).bytes;
  });
  if (groups == 0) return false;
  error = launch_with_shared(one_pass_bundle<T, kAct, kCount>, a.images * ((a.groups + groups - 1) / groups),
                             KeptBundle<T, kCount>(a, groups * a.group_channels, groups, nullptr).bytes, stream, a,
                             static_cast<int>(groups));
  return true;
}

}  // namespace

bool launch_one_pass(const GroupNormSiluArgs& a, void* stream, const char*& error) {
  bool done = false;
  if (a.dtype == DType::f64 || too_many_groups(a)) return false;  // doubles are there to be right, not fast
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() {
    if constexpr (sizeof(T) < 8) {
      const bool packed = a.channels % kPack<T> == 0 && (address(a.x) | address(a.y)) % 16 == 0;
      done = !a.channels_last ? launch_nchw<T, kAct>(a, stream, error)
             : packed         ? launch_channels_last<T, kAct, kPack<T>>(a, stream, error)
                              : launch_channels_last<T, kAct, 1>(a, stream, error);
    }
  });
  return done;
}

}  // namespace fastdiff::cuda
