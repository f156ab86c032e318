// Images on CUDA, a thread for each counter: its four normals are made in registers, beside the elements that they belong to.
// The counterpart of noise_walk.h.
#pragma once
#include "noise.h"
#include "philox_cuda.h"

namespace fastdiff::cuda {

// A thread's elements: those of one counter, at most four of one image.
template <bool kPacked>
struct Quad {
  int64_t image, counter;
  int64_t at[kPacked ? 1 : 4];  // in memory, from the start of the batch; packed, all four lie together
  int count;                    // 0: the thread has none
};

__host__ __device__ inline int64_t most_counters_of_a_channel(const Walk& w) { return (w.pixels + 3) / 4; }

// Neighbouring threads take neighbouring channels, which lie together in memory. Counters that span channels are taken with
// the channel of their first element, so a channel may have one less than the most, and its last thread nothing to do.
template <bool kPacked>
FASTDIFF_INLINE Quad<kPacked> quad_of_thread(const Walk& w) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t per_image = most_counters_of_a_channel(w) * w.channels;
  Quad<kPacked> q{};
  q.image = i / per_image;
  if (q.image >= w.images) return q;
  const int64_t in_image = i - q.image * per_image;
  if constexpr (kPacked) {
    q.counter = in_image, q.at[0] = 4 * i, q.count = 4;
  } else {
    int64_t channel = in_image % w.channels;
    const int64_t before = channel * w.pixels;  // elements of the channels before
    q.counter = (before + 3) / 4 + in_image / w.channels;
    int64_t pixel = 4 * q.counter - before;
    if (pixel >= w.pixels) return q;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (channel == w.channels) continue;  // past the image's end
      q.at[k] = (q.image * w.pixels + pixel) * w.channels + channel, q.count = k + 1;
      if (++pixel == w.pixels) pixel = 0, ++channel;
    }
  }
  return q;
}

template <class T, bool kPacked>
FASTDIFF_INLINE void load_quad(const void* data, const Quad<kPacked>& q, Compute<T> (&v)[4]) {
  const T* p = static_cast<const T*>(data);
  if constexpr (kPacked) {
    const Pack<T, 4> pack = *reinterpret_cast<const Pack<T, 4>*>(p + q.at[0]);
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = widen(pack.v[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = k < q.count ? widen(p[q.at[k]]) : Compute<T>{};
  }
}

template <class T, bool kPacked>
FASTDIFF_INLINE void store_quad(void* data, const Quad<kPacked>& q, const Compute<T> (&v)[4]) {
  T* p = static_cast<T*>(data);
  if constexpr (kPacked) {
    Pack<T, 4> pack;
#pragma unroll
    for (int k = 0; k < 4; ++k) pack.v[k] = narrow<T>(v[k]);
    *reinterpret_cast<Pack<T, 4>*>(p + q.at[0]) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (k < q.count) p[q.at[k]] = narrow<T>(v[k]);
  }
}

template <class S, bool kPacked>
FASTDIFF_INLINE void normals_of_quad(const Noise& noise, const Quad<kPacked>& q, S (&v)[4]) {
  float made[4];
  philox_normals(Counter<uint32_t>{static_cast<uint32_t>(q.counter), static_cast<uint32_t>(q.counter >> 32),
                                   static_cast<uint32_t>(*noise.step), noise.purpose},
                 static_cast<uint64_t>(noise.seeds[q.image * noise.stride]), made);
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = made[k];
}

// Without noise there are no counters to keep together: any image is walked in the order of memory.
inline Walk walk_for(const Noise& noise, Walk w) {
  if (!noise.seeds) w.pixels *= w.channels, w.channels = 1;
  return w;
}

// Launches a kernel over the quads of a walk: `packed` where four elements are one access in each tensor, else `strided`.
template <class T, class Args, class... Pointers>
const char* launch_quads(void (*packed)(Args), void (*strided)(Args), const Args& a, void* stream, const Pointers*... tensors) {
  const Walk& w = a.walk;
  const bool aligned = ((reinterpret_cast<uintptr_t>(tensors) % sizeof(Pack<T, 4>) == 0) && ...);
  const bool pack = aligned && w.channels == 1 && w.pixels % 4 == 0;
  return launch(pack ? packed : strided, blocks_for(w.images * w.channels * most_counters_of_a_channel(w)), stream, a);
}

}  // namespace fastdiff::cuda
