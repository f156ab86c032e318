// The scheduler. It is compiled without sanitizers, so they see what kernels do and not what it does; where one is loaded, it is
// told of fibers and of the order that barriers make.
#include "simulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

extern "C" {
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t size);
extern char __start_cuda_shared[], __stop_cuda_shared[];

void cuda_sim_switch(void** save, void* to);
}

// Saves what a call must keep and the stack pointer, and goes on where `to` was saved.
asm(R"(
.text
.globl cuda_sim_switch
.type cuda_sim_switch, @function
cuda_sim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_sim_switch, . - cuda_sim_switch
)");

namespace cuda_sim {

Index thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr int kPoison = 0xFF;  // four bytes of it are a NaN
constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber: a switch orders nothing

enum class State { running, at_barrier, at_warp, done };

struct Fiber {
  unsigned id;
  State state;
  unsigned mask;  // of the warp operation that it waits at
  const char* operation;  // its name
  unsigned exchanges;     // operations of whole warps so far

  uint64_t value;
  void *stack_pointer, *tsan;
  std::deque<std::vector<Copy>> copies{};  // groups under way, the last one not committed
};

// What ThreadSanitizer keeps the order of threads at one barrier by. In turn with another: a thread that leaves a barrier late
// must not be ordered after those that have come to the next one already.
struct Tag {
  char turns[2];
  bool turn = false;
  char* now() { return &turns[turn]; }
  void next() { turn = !turn; }
};
// A block's own, since blocks have no order.
struct Tags {
  Tag barrier;
  std::map<unsigned, Tag> warps[32];  // by the mask of the operation
};

struct Simulation {
  std::function<void()> kernel;
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  void *host_stack = nullptr, *host_tsan = nullptr;
  std::unique_ptr<Tags> tags;
  std::vector<Hand> hands;  // of each warp two sets in turn: a lane may be one exchange ahead of another
  char start, end;  // tags: the host before the launch and after it
  std::unique_ptr<char[]> dynamic;
  std::string error;
} sim;

std::string last;  // what last_error() still points to

// Each set of fibers (see tsan_fiber) has its own.
char* stack_of(unsigned id, unsigned set) {
  static std::vector<char*> sets[2];
  while (sets[set].size() <= id)
    sets[set].push_back(static_cast<char*>(
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  return sets[set][id];
}

void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}

void to_host() {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(sim.host_tsan, kNoSync);
  cuda_sim_switch(&sim.current->stack_pointer, sim.host_stack);
}

void fail(const std::string& what) {
  if (sim.error.empty())
    sim.error = what + " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(thread_index.x) + ")";
  to_host();  // and never back
}

void enter() {
  acquire(&sim.start);
  sim.kernel();
  release(&sim.end);
  sim.current->state = State::done;
  to_host();
}

void resume(Fiber& fiber) {
  sim.current = &fiber;
  thread_index = {fiber.id, 0, 0};
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, kNoSync);
  cuda_sim_switch(&sim.host_stack, fiber.stack_pointer);
}

// For ThreadSanitizer a fiber is one thread for good. Two sets take turns, so that blocks in a row are different threads to it;
// of other pairs of blocks it does not see the races of a thread with the one of the same number.
void* tsan_fiber(unsigned id, unsigned set) {
  static std::vector<void*> sets[2];
  while (__tsan_create_fiber && sets[set].size() <= id) sets[set].push_back(__tsan_create_fiber(0));
  return __tsan_create_fiber ? sets[set][id] : nullptr;
}

void prepare(Fiber& fiber, unsigned id, unsigned set) {
  char* stack = stack_of(id, set);
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack, kStack);
  void** top = reinterpret_cast<void**>(stack + kStack - 64);  // as after a call: 8 bytes off a multiple of 16
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&enter);
  top -= 6;  // the registers that a switch restores
  std::memset(top, 0, 6 * sizeof(void*));
  fiber = {id, State::running, 0, nullptr, 0, 0, top, tsan_fiber(id, set), {}};  // copies that nobody waited for never arrive
}

// Lets every warp go on whose waiting lanes are all that its operation names.
bool release_warps() {
  bool any = false;
  const auto& fibers = sim.fibers;
  for (auto& fiber : sim.fibers) {
    if (fiber.state != State::at_warp) continue;
    const size_t first = fiber.id / 32 * 32;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(fiber.mask >> lane & 1)) continue;
      const bool exists = first + lane < fibers.size();
      if (!exists || fibers[first + lane].state == State::done) {
        sim.error = "a warp operation waits for lane " + std::to_string(lane) +
                    (exists ? ", which has exited" : ", which is not in the block") + " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(fiber.id) + ")";
        return false;
      }
      const Fiber& other = fibers[first + lane];
      all &= other.state == State::at_warp && other.mask == fiber.mask;
      if (other.state == State::at_warp && other.mask == fiber.mask && other.operation != fiber.operation) {
        sim.error = std::string("lanes of a warp wait at different operations: ") + fiber.operation + " and " + other.operation +
                    " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(fiber.id) + ")";
        return false;
      }
    }
    if (!all) continue;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (fiber.mask >> lane & 1) sim.fibers[first + lane].state = State::running;
    sim.tags->warps[first / 32][fiber.mask].next();
    any = true;
  }
  return any;
}

// __shared__ variables lie in a section of their own, in whole pages (see build.py). New pages are memory that ThreadSanitizer
// knows no accesses of: blocks share the variables here, but not on a GPU.
void fresh_shared_memory() {
  const size_t size = __stop_cuda_shared - __start_cuda_shared;
  constexpr int kWhere = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (__tsan_create_fiber && mmap(__start_cuda_shared, size, PROT_READ | PROT_WRITE, kWhere, -1, 0) == MAP_FAILED) std::abort();
  std::memset(__start_cuda_shared, kPoison, size);
}

// How threads and blocks take turns: CUDA_SIM_ORDER = up, down, or a number that seeds a shuffle.
struct Order {
  explicit Order(const char* text)
      : down(text && !std::strcmp(text, "down")),
        random(text && *text >= '0' && *text <= '9'),
        generator(random ? std::atoi(text) : 0) {}
  bool down, random;
  std::mt19937 generator;
  void arrange(std::vector<unsigned>& turns) {
    std::iota(turns.begin(), turns.end(), 0u);
    if (down) std::reverse(turns.begin(), turns.end());
    if (random) std::shuffle(turns.begin(), turns.end(), generator);
  }
};

void run_block(Order& order) {
  const size_t count = sim.fibers.size();
  std::vector<unsigned> turns(count);
  for (;;) {
    order.arrange(turns);
    bool ran = false;
    for (unsigned i : turns) {
      if (sim.fibers[i].state != State::running) continue;
      resume(sim.fibers[i]);
      ran = true;
      if (!sim.error.empty()) return;
    }
    const auto in = [&](State s) {
      return static_cast<size_t>(std::count_if(sim.fibers.begin(), sim.fibers.end(), [s](auto& f) { return f.state == s; }));
    };
    const size_t done = in(State::done), waiting = in(State::at_barrier);
    if (done == count) return;
    if (waiting == count) {
      for (auto& fiber : sim.fibers) fiber.state = State::running;
      sim.tags->barrier.next();
      continue;
    }
    if (release_warps()) continue;
    if (!sim.error.empty()) return;
    if (!ran) {
      sim.error = "block " + std::to_string(block_index.x) + " hangs: " + std::to_string(waiting) +
                  " threads wait at __syncthreads, " + std::to_string(done) + " have exited, " + std::to_string(count - waiting - done) + " wait for their warp";
      return;
    }
  }
}

}  // namespace

void run(unsigned blocks, unsigned threads, size_t dynamic_shared_bytes, std::function<void()> kernel) {
  sim.error.clear();
  if (threads < 1 || threads > 1024) sim.error = "a block of " + std::to_string(threads) + " threads: 1 to 1024 are possible";
  if (dynamic_shared_bytes > 227 << 10) sim.error = "more shared memory than 227 KB";
  if (!sim.error.empty()) return;
  sim.kernel = std::move(kernel);
  grid_size = {blocks, 1, 1}, block_size = {threads, 1, 1};
  if (__tsan_get_current_fiber) sim.host_tsan = __tsan_get_current_fiber();
  Order order(std::getenv("CUDA_SIM_ORDER"));
  std::vector<unsigned> turns(blocks);
  order.arrange(turns);
  release(&sim.start);
  unsigned set = 0;
  for (unsigned block : turns) {
    block_index = {block, 0, 0};
    sim.tags = std::make_unique<Tags>();
    sim.dynamic.reset(new char[dynamic_shared_bytes]);
    std::memset(sim.dynamic.get(), kPoison, dynamic_shared_bytes);
    fresh_shared_memory();
    sim.fibers.resize(threads);
    sim.hands.resize(threads / 32 * 2 * 32);
    for (unsigned i = 0; i < threads; ++i) prepare(sim.fibers[i], i, set);
    run_block(order);
    if (!sim.error.empty()) break;
    set = 1 - set;
  }
  acquire(&sim.end);
}

const char* last_error() {
  last = std::exchange(sim.error, "");
  return last.empty() ? nullptr : last.c_str();
}

void sync_block() {
  char* tag = sim.tags->barrier.now();
  sim.current->state = State::at_barrier;
  release(tag);
  to_host();
  acquire(tag);
}

namespace {

void wait_for_warp(unsigned mask, const char* operation) {
  Fiber& self = *sim.current;
  if (!(mask >> self.id % 32 & 1)) fail("a thread takes part in a warp operation whose mask leaves it out");
  self.mask = mask, self.operation = operation, self.state = State::at_warp;
  to_host();
}

}  // namespace

void sync_warp(unsigned mask) {
  char* tag = sim.tags->warps[sim.current->id / 32][mask].now();
  release(tag);
  wait_for_warp(mask, "__syncwarp");
  acquire(tag);
}

uint64_t shuffle(unsigned mask, uint64_t value, int source_lane) {
  Fiber* self = sim.current;
  self->value = value;
  wait_for_warp(mask, "a shuffle");
  if (!(mask >> (source_lane & 31) & 1))
    fail("a shuffle reads lane " + std::to_string(source_lane & 31) + ", which its mask leaves out");
  const uint64_t out = sim.fibers[self->id / 32 * 32 + (source_lane & 31)].value;
  wait_for_warp(mask, "the end of a shuffle");  // before anyone writes the next value
  return out;
}

const Hand* exchange(const char* operation, const Hand& mine) {
  Fiber& self = *sim.current;
  const unsigned warp = self.id / 32, set = self.exchanges++ % 2;
  if (warp * 32 + 32 > sim.fibers.size()) fail(std::string(operation) + " by a warp that has not 32 lanes");
  Hand* hands = &sim.hands[(warp * 2 + set) * 32];
  hands[self.id % 32] = mine;
  wait_for_warp(0xFFFFFFFFu, operation);
  return hands;
}

void queue_copy(const Copy& copy) {
  auto& groups = sim.current->copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void commit_copies() {
  auto& groups = sim.current->copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

bool next_copy(size_t groups_left, Copy& copy) {
  auto& groups = sim.current->copies;
  while (groups.size() > groups_left + 1 && groups.front().empty()) groups.pop_front();
  if (groups.size() <= groups_left + 1) return false;
  copy = groups.front().back();
  groups.front().pop_back();
  return true;
}

int lane() { return static_cast<int>(sim.current->id % 32); }
void* dynamic_shared() { return sim.dynamic.get(); }

}  // namespace cuda_sim
