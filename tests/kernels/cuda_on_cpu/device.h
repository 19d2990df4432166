// The functions of csrc/cuda/device.h on a CPU: every CUDA thread is a fiber, barriers and shuffles
// switch between them, asynchronous copies happen as late as they may. Accesses that the chip
// would trap on (alignment, copies of more than 16 bytes) and deadlocks are errors.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define PK_DEVICE static inline
#define PK_MEMBER inline
#define PK_KERNEL(threads, blocks) static void

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace chip {

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

// Counts arrivals; a round ends when all have come.
struct Barrier {
  int expected = 0, arrived = 0;
  int64_t round = 0;

  int64_t arrive() {
    const int64_t mine = round;
    if (++arrived == expected) arrived = 0, ++round;
    return mine;
  }
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int rank = 0, thread = 0;
  bool done = false;
  Barrier* waits_for = nullptr;
  int64_t waits_round = 0;
  int64_t cluster_round = -1;
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open_group;
};

constexpr size_t kStackBytes = 64 * 1024, kGuardBytes = 64;
constexpr unsigned char kGuard = 0xAB;

struct Cluster {
  int size, num_threads;
  int64_t first_block;
  std::vector<std::unique_ptr<unsigned char[]>> memory;
  std::vector<Barrier> blocks, warps;
  std::vector<float> slots;
  Barrier all;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* now = nullptr;
  const std::function<void()>* body = nullptr;
};

static Cluster* running;
static const char* fault;

inline void check(bool good, const char* what) {
  if (!good) fault = what;
}

inline void wait(Barrier& barrier, int64_t round) {
  Fiber& me = *running->now;
  if (barrier.round > round) return;
  me.waits_for = &barrier, me.waits_round = round;
  swapcontext(&me.context, &running->scheduler);
}

inline int thread() { return running->now->thread; }
inline int num_threads() { return running->num_threads; }
inline int cluster_size() { return running->size; }
inline int cluster_rank() { return running->now->rank; }
inline int64_t block() { return running->first_block + cluster_rank(); }
inline unsigned char* shared_memory() { return running->memory[cluster_rank()].get(); }

inline void sync_block() {
  Barrier& barrier = running->blocks[cluster_rank()];
  wait(barrier, barrier.arrive());
}

inline void cluster_arrive() { running->now->cluster_round = running->all.arrive(); }
inline void cluster_wait() { wait(running->all, running->now->cluster_round); }

inline float load_from(const float* mine, int rank) {
  const auto offset = reinterpret_cast<const unsigned char*>(mine) - shared_memory();
  float value;
  memcpy(&value, running->memory[rank].get() + offset, sizeof value);
  return value;
}

inline void copy_async(void* to, const void* from, int bytes) {
  check(uintptr_t(to) % 16 == 0 && uintptr_t(from) % 16 == 0, "unaligned copy");
  check(bytes > 0 && bytes <= 16, "copy of other than 1 to 16 bytes");
  running->now->open_group.push_back({to, from, bytes});
}

inline void end_copy_group() {
  Fiber& me = *running->now;
  me.groups.push_back(std::move(me.open_group));
  me.open_group.clear();
}

template <int pending>
inline void wait_copies() {
  auto& groups = running->now->groups;
  for (; int(groups.size()) > pending; groups.pop_front()) {
    for (const Copy& copy : groups.front()) {
      memset(copy.to, 0, 16);
      memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

inline float shuffle_xor(float value, int mask) {
  const int lane = thread() % 32, warp = cluster_rank() * (num_threads() / 32) + thread() / 32;
  Barrier& barrier = running->warps[warp];
  float* slots = &running->slots[warp * 32];
  slots[lane] = value;
  wait(barrier, barrier.arrive());
  const float found = slots[lane ^ mask];
  wait(barrier, barrier.arrive());
  return found;
}

inline int least(int a, int b) { return a < b ? a : b; }

inline uint4 load16(const void* p) {
  check(uintptr_t(p) % 16 == 0, "unaligned load");
  uint4 value;
  memcpy(&value, p, sizeof value);
  return value;
}

inline void store16(void* p, uint4 value) {
  check(uintptr_t(p) % 16 == 0, "unaligned store");
  memcpy(p, &value, sizeof value);
}

inline void store8(void* p, uint2 value) {
  check(uintptr_t(p) % 8 == 0, "unaligned store");
  memcpy(p, &value, sizeof value);
}

inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float exp2(float x) { return ::exp2f(x); }
inline float larger_or_nan(float a, float b) { return a != a || a > b ? a : b; }

inline uint32_t bf16(float value) {
  const uint32_t bits = as_bits(value);
  if (value != value) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

inline uint32_t pack_bf16(float low, float high) { return bf16(low) | bf16(high) << 16; }

inline void start_fiber() {
  (*running->body)();
  running->now->done = true;
  swapcontext(&running->now->context, &running->scheduler);
}

// Run `body` in every thread of a cluster. order: 0 ascending, 1 descending (every other
// round), else shuffled, and a block at a time runs ahead.
inline void run_cluster(int64_t first_block, int size, int num_threads, size_t shared_bytes,
                        unsigned order, const std::function<void()>& body) {
  Cluster cluster;
  cluster.size = size, cluster.num_threads = num_threads, cluster.first_block = first_block;
  cluster.body = &body;
  cluster.blocks.resize(size);
  cluster.warps.resize(size * num_threads / 32);
  cluster.slots.resize(size * num_threads);
  for (auto& barrier : cluster.blocks) barrier.expected = num_threads;
  for (auto& barrier : cluster.warps) barrier.expected = 32;
  cluster.all.expected = size * num_threads;
  for (int rank = 0; rank < size; ++rank) {
    // new[] aligns to 16; unwritten memory is nan in either type
    cluster.memory.emplace_back(new unsigned char[shared_bytes + kGuardBytes]);
    memset(cluster.memory.back().get(), 0xff, shared_bytes);
    memset(cluster.memory.back().get() + shared_bytes, kGuard, kGuardBytes);
  }
  cluster.fibers = std::vector<Fiber>(size * num_threads);
  running = &cluster;
  std::vector<Fiber*> line;
  for (int i = 0; i < size * num_threads; ++i) {
    Fiber& fiber = cluster.fibers[i];
    fiber.rank = i / num_threads, fiber.thread = i % num_threads;
    fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {};
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &cluster.scheduler;
    makecontext(&fiber.context, start_fiber, 0);
    line.push_back(&fiber);
  }
  std::mt19937 shuffled(order);
  std::vector<int> alive(size, num_threads);
  const auto run_round = [&](int only) {
    bool moved = false;
    for (Fiber* fiber : line) {
      if (fiber->done || (only >= 0 && fiber->rank != only)) continue;
      if (fiber->waits_for && fiber->waits_for->round <= fiber->waits_round) continue;
      fiber->waits_for = nullptr;
      moved = true;
      cluster.now = fiber;
      swapcontext(&cluster.scheduler, &fiber->context);
      // the shared memory of a block that has ended is somebody else's
      if (fiber->done && --alive[fiber->rank] == 0) {
        memset(cluster.memory[fiber->rank].get(), 0xff, shared_bytes);
      }
    }
    return moved;
  };
  for (bool moved = true; moved && !fault;) {
    if (order == 1) std::reverse(line.begin(), line.end());
    if (order > 1) std::shuffle(line.begin(), line.end(), shuffled);
    // one block runs ahead of the others as far as it can
    moved = false;
    for (const int ahead = int(shuffled() % size); order > 1 && run_round(ahead);) moved = true;
    moved = moved || run_round(-1);
  }
  for (const Fiber& fiber : cluster.fibers) {
    check(fiber.done, "threads wait for each other for ever");
    for (const auto& group : fiber.groups) check(group.empty(), "a copy nobody has waited for");
  }
  for (const auto& memory : cluster.memory) {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      check(memory[shared_bytes + i] == kGuard, "write behind the shared memory");
    }
  }
}

}  // namespace chip
