// Groups kept in shared memory, so that what they are made of is read once: what forward and backward share.
//
//     NCHW           a warp or a block has one group, whose elements lie together
//     channels_last  a block has a bundle of groups of one image, whose channels lie together in each pixel
#pragma once
#include "cuda.h"

namespace fastdiff::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 3;  // on a multiprocessor; left to itself, ptxas spills to make room for more than shared memory holds

// Arrays one after another in shared memory, each aligned to 16 bytes. The host counts the bytes of what a kernel lays out.
struct Carver {
  unsigned char* memory;
  int64_t bytes = 0;
  template <class V>
  __host__ FASTDIFF_INLINE V* take(int64_t count) {
    V* array = reinterpret_cast<V*>(reinterpret_cast<uintptr_t>(memory) + bytes);
    bytes += (count * static_cast<int64_t>(sizeof(V)) + 15) / 16 * 16;
    return array;
  }
};

// ---- NCHW ----

// kTeam threads, a warp or the block.
template <int kTeam>
struct Team {
  int index, thread;  // of the block's teams, and of the team's threads
  FASTDIFF_INLINE Team() : index(threadIdx.x / kTeam), thread(threadIdx.x % kTeam) {}
  FASTDIFF_INLINE static void sync() {
    if (kTeam == 32) __syncwarp();
    else __syncthreads();
  }
};

// ---- channels_last ----

// The block's groups. A thread keeps to one pack of kCount channels, and takes every `rows`th pixel; the threads that are left
// over are not inside.
template <int kCount>
struct Bundle {
  int64_t n;
  int group, groups, channel, width;  // first group and channel, how many
  int packs, rows, row, pack;
  bool inside;
  FASTDIFF_INLINE Bundle(const GroupNormSiluArgs& a, int most) {
    const uint32_t all = static_cast<uint32_t>(a.groups), bundles = (all + most - 1) / most;
    const uint32_t image = blockIdx.x / bundles;
    n = image, group = static_cast<int>((blockIdx.x - image * bundles) * most);
    const int left = static_cast<int>(all) - group;
    groups = most < left ? most : left;
    const int each = static_cast<int>(a.group_channels);
    channel = group * each, width = groups * each;
    packs = width / kCount, rows = kThreads / packs;
    row = static_cast<int>(threadIdx.x) / packs, pack = static_cast<int>(threadIdx.x) % packs;
    inside = row < rows;
  }
  FASTDIFF_INLINE int64_t first(const GroupNormSiluArgs& a) const {  // element of this thread's pack in pixel 0
    return n * a.pixels * a.channels + channel + pack * kCount;
  }
  // body(kept index, element) for the thread's packs.
  template <class Body>
  FASTDIFF_INLINE void for_packs(const GroupNormSiluArgs& a, Body&& body) const {
    if (!inside) return;
    const int pixels = static_cast<int>(a.pixels);
    int64_t element = first(a) + row * a.channels;
#pragma unroll 2
    for (int p = row; p < pixels; p += rows, element += rows * a.channels) body(p * packs + pack, element);
  }
  // body(k, channel of the bundle, its group in the bundle) for the thread's channels.
  template <class Body>
  FASTDIFF_INLINE void for_lanes(const GroupNormSiluArgs& a, Body&& body) const {
    const int each = static_cast<int>(a.group_channels);
    int g = pack * kCount / each, rest = pack * kCount % each;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      body(k, pack * kCount + k, g);
      if (++rest == each) rest = 0, ++g;
    }
  }
  // Sums over pixels of what all threads hold, in a fixed order: sums[slot(channel)], for every thread. `sums` has room for
  // kThreads * kCount.
  template <class S>
  FASTDIFF_INLINE void sum_pixels(const S (&v)[kCount], S* sums) const {
    __syncthreads();  // it may still be read
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      if (inside) sums[(row * kCount + k) * packs + pack] = v[k];
    int half = 1;
    while (2 * half < rows) half *= 2;
    for (; half; half /= 2) {
      __syncthreads();
      if (row < half && row + half < rows) {
#pragma unroll
        for (int k = 0; k < kCount; ++k)
          sums[(row * kCount + k) * packs + pack] += sums[((row + half) * kCount + k) * packs + pack];
      }
    }
    __syncthreads();
  }
  FASTDIFF_INLINE int slot(int c) const { return c % kCount * packs + c / kCount; }
  // The same summed over each group's channels too: body(group of the bundle, sum) by the first lane of a warp.
  template <class S, class Body>
  FASTDIFF_INLINE void sum_groups(const GroupNormSiluArgs& a, const S (&v)[kCount], S* sums, Body&& body) const {
    sum_pixels(v, sums);
    const int each = static_cast<int>(a.group_channels);
    for (int g = threadIdx.x / 32; g < groups; g += kWarps) {
      S total{};
      for (int c = threadIdx.x % 32; c < each; c += 32) total += sums[slot(g * each + c)];
      total = warp_sum(total);
      if (threadIdx.x % 32 == 0) body(g, total);
    }
    __syncthreads();
  }
};

// How many groups a block takes, 0 where not one fits. `bytes_of(width, groups)`: what it would keep. A pixel's part of a
// bundle has kPart bytes, in which memory moves, and a thread a pack, where there are blocks enough for that.
constexpr int64_t kPart = 64, kSector = 32, kBlocksEnough = 256;
template <class T, class Bytes>
int64_t bundle_of(const GroupNormSiluArgs& a, int count, Bytes&& bytes_of) {
  int64_t most = 0;
  for (int64_t groups = 1; groups <= a.groups; ++groups) {
    const int64_t width = groups * a.group_channels;
    if (width / count > kThreads || bytes_of(width, groups) > kSharedBytes) break;
    if (width % count) continue;
    const int64_t part = width * static_cast<int64_t>(sizeof(T)), blocks = a.images * ((a.groups + groups - 1) / groups);
    if (most && part > kSector && blocks < kBlocksEnough) break;
    most = groups;
    if (part >= kPart && part * a.pixels >= kThreads * 16) break;
  }
  return most;
}

}  // namespace fastdiff::cuda
