// group_norm_silu backward where groups fit in shared memory with their gradient: one read of both, one write of dx.
#include "cuda_one_pass.h"

namespace fastdiff::cuda {
namespace {

// ---- NCHW ----

constexpr int kUnit = 512;  // pixels of a channel that a warp sums up at a time

template <class T>
struct KeptGroup {
  using S = Compute<T>;
  T *x, *grad;
  S *factor, *offset, *sums;  // sums: of each unit, of dz (x - mean) and of dz
  S* terms;
  int64_t bytes;
  __host__ FASTDIFF_INLINE KeptGroup(const GroupNormSiluArgs& a, unsigned char* memory) {
    Carver carver{memory};
    const int64_t length = a.group_channels * a.pixels;
    x = carver.take<T>(length), grad = carver.take<T>(length);
    factor = carver.take<S>(a.group_channels), offset = carver.take<S>(a.group_channels);
    sums = carver.take<S>(2 * a.group_channels * units(a)), terms = carver.take<S>(2);
    bytes = carver.bytes;
  }
  __host__ FASTDIFF_INLINE static int units(const GroupNormSiluArgs& a) {  // of a channel
    return (static_cast<int>(a.pixels) + kUnit - 1) / kUnit;
  }
};

template <class T, Act kAct, int kCount, int kTeam>
__global__ void __launch_bounds__(kThreads, kBlocks) backward_one_pass(const GroupNormSiluBackwardArgs b) {
  using S = Compute<T>;
  using P = Pack<T, kCount>;
  FASTDIFF_DYNAMIC_SHARED(memory);
  const GroupNormSiluArgs& a = b.forward;
  const Team<kTeam> team;
  const int64_t run = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + team.index;
  if (run >= a.images * a.groups) return;  // a whole warp, which has no barrier but its own
  const int64_t n = group_image(a, run), g = run - n * a.groups, start = run * a.group_channels * a.pixels;
  const int channels = static_cast<int>(a.group_channels), pixels = static_cast<int>(a.pixels);
  const int packs = channels * pixels / kCount, lane = threadIdx.x % 32, units = KeptGroup<T>::units(a);
  const KeptGroup<T> own(a, memory + team.index * KeptGroup<T>(a, nullptr).bytes);
  const auto *x = reinterpret_cast<const P*>(own.x), *grad = reinterpret_cast<const P*>(own.grad);

  const auto* from_x = reinterpret_cast<const P*>(static_cast<const T*>(a.x) + start);
  const auto* from_grad = reinterpret_cast<const P*>(static_cast<const T*>(b.grad) + start);
  for (int i = team.thread; i < packs; i += kTeam) {
    copy_async(reinterpret_cast<P*>(own.x) + i, from_x + i);
    copy_async(reinterpret_cast<P*>(own.grad) + i, from_grad + i);
  }
  const S mean = static_cast<const S*>(a.mean)[run], rstd = static_cast<const S*>(a.rstd)[run];
  for (int c = team.thread; c < channels; c += kTeam) {
    const Folded<S> f = fold(a, n, g * channels + c, rstd, S{});
    own.factor[c] = f.factor, own.offset[c] = f.offset;
  }
  wait_for_copies();
  team.sync();

  for (int u = team.thread / 32; u < channels * units; u += kTeam / 32) {
    const int c = u / units, at = (u - c * units) * kUnit;
    const int size = (kUnit < pixels - at ? kUnit : pixels - at) / kCount, first = (c * pixels + at) / kCount;
    const S factor = own.factor[c], offset = own.offset[c];
    S sum_dz_x{}, sum_dz{};
    for (int i = lane; i < size; i += 32) {
      const P vx = x[first + i], vg = grad[first + i];
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const S centred = widen(vx.v[k]) - mean, dz = derivative_at<kAct>(widen(vg.v[k]), centred, factor, offset);
        sum_dz_x += dz * centred, sum_dz += dz;
      }
    }
    sum_dz_x = warp_sum(sum_dz_x), sum_dz = warp_sum(sum_dz);
    if (lane == 0) own.sums[2 * u] = sum_dz_x, own.sums[2 * u + 1] = sum_dz;
  }
  team.sync();
  if (team.thread < 32) {
    double with_x = 0, without = 0;
    for (int c = lane; c < channels; c += 32) {
      S dz_x{}, dz{};
      for (int u = c * units; u < (c + 1) * units; ++u) dz_x += own.sums[2 * u], dz += own.sums[2 * u + 1];
      write_gradients(b, n, g * channels + c, rstd, dz_x, dz);
      with_x += own.factor[c] * dz_x, without += own.factor[c] * dz;
    }
    with_x = warp_sum(with_x), without = warp_sum(without);
    const Terms<S> terms(a, rstd, with_x, without);
    if (lane == 0) own.terms[0] = terms.slope, own.terms[1] = terms.level;
  }
  team.sync();

  const S slope = own.terms[0], level = own.terms[1];
  auto* dx = reinterpret_cast<P*>(static_cast<T*>(b.dx) + start);
  for (int i = team.thread; i < packs; i += kTeam) {
    P v = x[i];
    const P vg = grad[i];
    const int c = i * kCount / pixels;
    const S factor = own.factor[c], offset = own.offset[c];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S centred = widen(v.v[k]) - mean;
      v.v[k] = narrow<T>(dx_of(derivative_at<kAct>(widen(vg.v[k]), centred, factor, offset), centred, factor, slope, level));
    }
    dx[i] = v;
  }
}

template <class T, Act kAct>
bool launch_nchw(const GroupNormSiluBackwardArgs& b, void* stream, const char*& error) {
  const GroupNormSiluArgs& a = b.forward;
  if (a.group_channels * a.pixels * static_cast<int64_t>(sizeof(T)) > kSharedBytes) return false;
  const int64_t bytes = KeptGroup<T>(a, nullptr).bytes, runs = a.images * a.groups;
  if (bytes > kSharedBytes) return false;
  const bool packed = a.pixels % kPack<T> == 0 && (address(a.x) | address(b.grad) | address(b.dx)) % 16 == 0;
  if (kWarps * bytes <= kSharedUnasked)
    error = launch_with_shared(packed ? backward_one_pass<T, kAct, kPack<T>, 32> : backward_one_pass<T, kAct, 1, 32>,
                               (runs + kWarps - 1) / kWarps, kWarps * bytes, stream, b);
  else
    error = launch_with_shared(
        packed ? backward_one_pass<T, kAct, kPack<T>, kThreads> : backward_one_pass<T, kAct, 1, kThreads>, runs, bytes, stream, b);
  return true;
}

// ---- channels_last ----

template <class T, int kCount>
struct KeptBundle {
  using S = Compute<T>;
  Pack<T, kCount>*x, *grad;
  S *sums, *sums_x;            // of channels, of dz and of dz (x - mean)
  S *mean, *factor, *offset;   // of channels
  S *slope, *level;            // of groups
  int64_t bytes;
  __host__ FASTDIFF_INLINE KeptBundle(const GroupNormSiluArgs& a, int64_t width, int64_t groups, unsigned char* memory) {
    Carver carver{memory};
    const int64_t packs = a.pixels * (width / kCount);
    x = carver.take<Pack<T, kCount>>(packs), grad = carver.take<Pack<T, kCount>>(packs);
    sums = carver.take<S>(kThreads * kCount), sums_x = carver.take<S>(width), mean = carver.take<S>(width);
    factor = carver.take<S>(width), offset = carver.take<S>(width);
    slope = carver.take<S>(groups), level = carver.take<S>(groups);
    bytes = carver.bytes;
  }
};

template <class T, Act kAct, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_one_pass_bundle(const GroupNormSiluBackwardArgs b, const int groups) {
  using S = Compute<T>;
  using P = Pack<T, kCount>;
  FASTDIFF_DYNAMIC_SHARED(memory);
  const GroupNormSiluArgs& a = b.forward;
  const Bundle<kCount> bundle(a, groups);
  const KeptBundle<T, kCount> own(a, groups * a.group_channels, groups, memory);
  const int each = static_cast<int>(a.group_channels);
  const int64_t group = bundle.n * a.groups + bundle.group;

  bundle.for_packs(a, [&](int i, int64_t at) {
    copy_async(own.x + i, reinterpret_cast<const P*>(static_cast<const T*>(a.x) + at));
    copy_async(own.grad + i, reinterpret_cast<const P*>(static_cast<const T*>(b.grad) + at));
  });
  for (int c = threadIdx.x; c < bundle.width; c += kThreads) {
    const Folded<S> f = fold(a, bundle.n, bundle.channel + c, static_cast<const S*>(a.rstd)[group + c / each], S{});
    own.mean[c] = static_cast<const S*>(a.mean)[group + c / each], own.factor[c] = f.factor, own.offset[c] = f.offset;
  }
  wait_for_copies();  // a thread reads only what it has copied
  __syncthreads();
  S mean[kCount] = {}, factor[kCount] = {}, offset[kCount] = {}, sum_dz_x[kCount] = {}, sum_dz[kCount] = {};
  if (bundle.inside)
    bundle.for_lanes(a, [&](int k, int c, int) {
      mean[k] = own.mean[c], factor[k] = own.factor[c], offset[k] = own.offset[c];
    });
  bundle.for_packs(a, [&](int i, int64_t) {
    const P vx = own.x[i], vg = own.grad[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S centred = widen(vx.v[k]) - mean[k], dz = derivative_at<kAct>(widen(vg.v[k]), centred, factor[k], offset[k]);
      sum_dz_x[k] += dz * centred, sum_dz[k] += dz;
    }
  });
  bundle.sum_pixels(sum_dz_x, own.sums);
  for (int c = threadIdx.x; c < bundle.width; c += kThreads) own.sums_x[c] = own.sums[bundle.slot(c)];
  bundle.sum_pixels(sum_dz, own.sums);
  for (int g = threadIdx.x / 32; g < bundle.groups; g += kWarps) {
    const S rstd = static_cast<const S*>(a.rstd)[group + g];
    double with_x = 0, without = 0;
    for (int c = g * each + threadIdx.x % 32; c < (g + 1) * each; c += 32) {
      const S dz_x = own.sums_x[c], dz = own.sums[bundle.slot(c)];
      write_gradients(b, bundle.n, bundle.channel + c, rstd, dz_x, dz);
      with_x += own.factor[c] * dz_x, without += own.factor[c] * dz;
    }
    with_x = warp_sum(with_x), without = warp_sum(without);
    const Terms<S> terms(a, rstd, with_x, without);
    if (threadIdx.x % 32 == 0) own.slope[g] = terms.slope, own.level[g] = terms.level;
  }
  __syncthreads();

  S slope[kCount] = {}, level[kCount] = {};
  if (bundle.inside) bundle.for_lanes(a, [&](int k, int, int g) { slope[k] = own.slope[g], level[k] = own.level[g]; });
  bundle.for_packs(a, [&](int i, int64_t at) {
    P v = own.x[i];
    const P vg = own.grad[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const S centred = widen(v.v[k]) - mean[k], dz = derivative_at<kAct>(widen(vg.v[k]), centred, factor[k], offset[k]);
      v.v[k] = narrow<T>(dx_of(dz, centred, factor[k], slope[k], level[k]));
    }
    *reinterpret_cast<P*>(static_cast<T*>(b.dx) + at) = v;
  });
}

template <class T, Act kAct, int kCount>
bool launch_channels_last(const GroupNormSiluBackwardArgs& b, void* stream, const char*& error) {
  const GroupNormSiluArgs& a = b.forward;
  const int64_t groups = bundle_of<T>(a, kCount, [&](int64_t width, int64_t count) {
    return KeptBundle<T, kCount>(a, width, count, nullptr).bytes;
  });
  if (groups == 0) return false;
  error = launch_with_shared(backward_one_pass_bundle<T, kAct, kCount>, a.images * ((a.groups + groups - 1) / groups),
                             KeptBundle<T, kCount>(a, groups * a.group_channels, groups, nullptr).bytes, stream, b,
                             static_cast<int>(groups));
  return true;
}

}  // namespace

bool launch_one_pass(const GroupNormSiluBackwardArgs& b, void* stream, const char*& error) {
  const GroupNormSiluArgs& a = b.forward;
  bool done = false;
  if (a.dtype == DType::f64 || too_many_groups(a)) return false;  // doubles are there to be right, not fast
  with_types(a.dtype, a.act, [&]<class T, Act kAct>() {
    if constexpr (sizeof(T) < 8) {
      const bool packed = a.channels % kPack<T> == 0 && (address(a.x) | address(b.grad) | address(b.dx)) % 16 == 0;
      done = !a.channels_last ? launch_nchw<T, kAct>(b, stream, error)
             : packed         ? launch_channels_last<T, kAct, kPack<T>>(b, stream, error)
                              : launch_channels_last<T, kAct, 1>(b, stream, error);
    }
  });
  return done;
}

}  // namespace fastdiff::cuda
