// CUDA threads as fibers on one CPU thread: what cuda_runtime.h beside this file is made of. See ../README.md.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_sim {

struct Index {
  unsigned x, y, z;
};
extern Index thread_index, block_index, block_size, grid_size;

// Runs `kernel` in blocks * threads CUDA threads. What goes wrong is last_error() afterwards, as with a real launch.
void run(unsigned blocks, unsigned threads, size_t dynamic_shared_bytes, std::function<void()> kernel);
const char* last_error();  // null where the launches since the last call went well

// From here on: for CUDA threads.
void sync_block();
void sync_warp(unsigned mask);
uint64_t shuffle(unsigned mask, uint64_t value, int source_lane);
int lane();

// What a lane brings to an operation of its whole warp, and what all 32 have brought once they are there. It stays until the
// operation after the next one.
struct Hand {
  uint32_t words[12];
};
const Hand* exchange(const char* operation, const Hand& mine);
void* dynamic_shared();

// cp.async. A copy has been read when it is queued, and is written when its thread waits for its group.
struct Copy {
  void* to;
  size_t bytes;
  alignas(16) unsigned char data[16];
};
void queue_copy(const Copy& copy);
void commit_copies();
bool next_copy(size_t groups_left, Copy& copy);  // false where no more groups than those are under way

}  // namespace cuda_sim
