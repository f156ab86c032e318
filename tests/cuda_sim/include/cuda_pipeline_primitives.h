// cp.async as CUDA's C interface has it. A copy arrives no earlier than its thread waits for it, and until then its place holds
// NaN: what is read too early is wrong. Both writes are the kernel's own, for the sanitizers to see.
#pragma once
#include <cstring>

#include "simulator.h"

namespace cuda_sim {

template <size_t kBytes>
struct alignas(kBytes) Bytes {
  unsigned char v[kBytes];
};

template <size_t kBytes>
void start_copy(void* to, const void* from, size_t zeros) {
  Copy copy{to, kBytes, {}};
  if (zeros == 0) *reinterpret_cast<Bytes<kBytes>*>(copy.data) = *static_cast<const Bytes<kBytes>*>(from);
  else std::memcpy(copy.data, from, kBytes - zeros);
  auto* place = static_cast<Bytes<kBytes>*>(to);
  for (unsigned char& v : place->v) v = 0xFF;
  queue_copy(copy);
}

}  // namespace cuda_sim

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  if (bytes == 16) cuda_sim::start_copy<16>(to, from, zeros);
  else if (bytes == 8) cuda_sim::start_copy<8>(to, from, zeros);
  else if (bytes == 4) cuda_sim::start_copy<4>(to, from, zeros);
  else __builtin_trap();  // as CUDA's does
}
inline void __pipeline_commit() { cuda_sim::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups) {
  cuda_sim::Copy copy;
  while (cuda_sim::next_copy(groups, copy)) {
    if (copy.bytes == 16) *static_cast<cuda_sim::Bytes<16>*>(copy.to) = *reinterpret_cast<cuda_sim::Bytes<16>*>(copy.data);
    else if (copy.bytes == 8) *static_cast<cuda_sim::Bytes<8>*>(copy.to) = *reinterpret_cast<cuda_sim::Bytes<8>*>(copy.data);
    else *static_cast<cuda_sim::Bytes<4>*>(copy.to) = *reinterpret_cast<cuda_sim::Bytes<4>*>(copy.data);
  }
}
