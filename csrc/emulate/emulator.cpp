#include "emulate/emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace gtkern::emulate {
namespace {

constexpr int kWarpSize = 32;
// the sanitizer clears what it knows of a whole stack at every switch
constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;

enum class State { kRunnable, kAtBlockBarrier, kAtWarpBarrier, kFinished };

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  Thread thread;
  State state = State::kRunnable;
  Place place{};
  // of the collective this lane waits at
  Together what = Together::kSync;
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  uint64_t result = 0;
  void (*combine)(void* const*) = nullptr;
  void* mine = nullptr;
  // not made yet, in their order; and how many groups were closed
  std::vector<Copy> copies;
  int groups = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<std::max_align_t> shared;
  const std::function<void()>* body = nullptr;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::string error;
};

thread_local Block* running = nullptr;

std::string describe(Place place) {
  return std::string(place.file) + ":" + std::to_string(place.line);
}

std::string describe(const Fiber& fiber) {
  const Thread& t = fiber.thread;
  const std::string name = "thread (" + std::to_string(t.thread.x) + ", " +
                           std::to_string(t.thread.y) + ", " + std::to_string(t.thread.z) + ")";
  switch (fiber.state) {
    case State::kFinished: return name + " has finished";
    case State::kAtBlockBarrier: return name + " waits for the block at " + describe(fiber.place);
    case State::kAtWarpBarrier: return name + " waits for its warp at " + describe(fiber.place);
    default: return name + " runs";
  }
}

void enter_fiber(Block& block, Fiber& fiber) {
  block.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block.scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
  swapcontext(&block.scheduler, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block.scheduler_fake_stack, nullptr, nullptr);
#endif
}

void leave_fiber(Block& block, Fiber& fiber, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, block.scheduler_stack,
                                 block.scheduler_stack_bytes);
#endif
  (void)for_good;
  swapcontext(&fiber.context, &block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void fiber_main() {
  Block& block = *running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
#endif
  Fiber& fiber = *block.current;
  (*block.body)();
  fiber.state = State::kFinished;
  leave_fiber(block, fiber, /*for_good=*/true);
}

[[noreturn]] void stop(const std::string& message) {
  Block& block = *running;
  block.error = message;
  leave_fiber(block, *block.current, /*for_good=*/true);
  std::abort();
}

void wait(Block& block) {
  Fiber& fiber = *block.current;
  while (fiber.state != State::kRunnable) leave_fiber(block, fiber, /*for_good=*/false);
}

Fiber* lane_of(Block& block, const Fiber& fiber, int lane) {
  const size_t number = static_cast<size_t>(&fiber - block.fibers.data());
  const size_t other = number / kWarpSize * kWarpSize + static_cast<size_t>(lane);
  return other < block.fibers.size() ? &block.fibers[other] : nullptr;
}

uint64_t combine(Block& block, const Fiber& fiber) {
  if (fiber.what == Together::kSync || fiber.what == Together::kCombine) return 0;
  if (fiber.what == Together::kShuffle) {
    if (!((fiber.mask >> fiber.source) & 1u)) {
      stop("a shuffle reads lane " + std::to_string(fiber.source) +
           ", which its mask leaves out, at " + describe(fiber.place));
    }
    return lane_of(block, fiber, fiber.source)->value;
  }
  uint64_t bits = 0;
  bool first = true;
  int32_t total = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!((fiber.mask >> lane) & 1u)) continue;
    const uint64_t raw = lane_of(block, fiber, lane)->value;
    const int32_t value = static_cast<int32_t>(static_cast<uint32_t>(raw));
    bits |= static_cast<uint64_t>(raw != 0) << lane;
    if (first) {
      total = value;
    } else if (fiber.what == Together::kSum) {
      total += value;
    } else {
      total = fiber.what == Together::kMin ? std::min(total, value) : std::max(total, value);
    }
    first = false;
  }
  return fiber.what == Together::kBallot ? bits : static_cast<uint32_t>(total);
}

void start(Block& block, Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  // a fiber that an error abandoned leaves its frames poisoned
  __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
  fiber.state = State::kRunnable;
  fiber.fake_stack = nullptr;
  fiber.copies.clear();
  fiber.groups = 0;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = &block.scheduler;
  makecontext(&fiber.context, fiber_main, 0);
}

void run_block(Block& block, bool falling) {
  const size_t count = block.fibers.size();
  for (Fiber& fiber : block.fibers) start(block, fiber);
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t i = 0; i < count; ++i) {
      Fiber& fiber = block.fibers[falling ? count - 1 - i : i];
      if (fiber.state != State::kRunnable) continue;
      progress = true;
      enter_fiber(block, fiber);
      if (!block.error.empty()) return;
    }
  }
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == State::kFinished) continue;
    for (const Fiber& other : block.fibers) {
      const bool same = other.state == fiber.state && other.place.line == fiber.place.line &&
                        other.mask == fiber.mask;
      if (!same) {
        block.error = "the threads diverge: " + describe(fiber) + ", but " + describe(other);
        return;
      }
    }
    block.error = "the threads wait for lanes that do not come: " + describe(fiber);
    return;
  }
}

void check_launch(Index3 grid, Index3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > 1024) {
    throw std::runtime_error("a block must have 1 .. 1024 threads, got " + std::to_string(threads));
  }
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 2147483647u || grid.y > 65535u ||
      grid.z > 65535u) {
    throw std::runtime_error("a grid must have 1 .. 2147483647 x 65535 x 65535 blocks, got " +
                             std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                             std::to_string(grid.z));
  }
  if (shared_bytes > kSharedLimit) {
    throw std::runtime_error("a block must have at most " + std::to_string(kSharedLimit) +
                             " bytes of shared memory, got " + std::to_string(shared_bytes));
  }
}

}  // namespace

const Thread& thread() { return running->current->thread; }

void* dynamic_shared() { return running->shared.data(); }

void fail(const char* message, Place place) {
  stop(std::string(message) + " at " + describe(place));
}

void sync_block(Place place) {
  Block& block = *running;
  Fiber& fiber = *block.current;
  fiber.state = State::kAtBlockBarrier;
  fiber.place = place;
  fiber.mask = 0;
  const bool last = std::all_of(block.fibers.begin(), block.fibers.end(), [&](const Fiber& other) {
    return other.state == State::kAtBlockBarrier && other.place.line == place.line &&
           std::strcmp(other.place.file, place.file) == 0;
  });
  if (last) {
    for (Fiber& other : block.fibers) other.state = State::kRunnable;
  }
  wait(block);
}

uint64_t sync_warp(Together what, unsigned mask, uint64_t value, int source, Place place) {
  Block& block = *running;
  Fiber& fiber = *block.current;
  if (!((mask >> fiber.thread.lane) & 1u)) {
    stop("lane " + std::to_string(fiber.thread.lane) + " is not in its own mask at " +
         describe(place));
  }
  fiber.state = State::kAtWarpBarrier;
  fiber.place = place;
  fiber.what = what;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  bool last = true;
  for (int lane = 0; lane < kWarpSize && last; ++lane) {
    if (!((mask >> lane) & 1u)) continue;
    const Fiber* other = lane_of(block, fiber, lane);
    last = other != nullptr && other->state == State::kAtWarpBarrier && other->mask == mask &&
           other->what == what && other->place.line == place.line;
  }
  if (last && what == Together::kCombine) {
    void* lanes[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = lane_of(block, fiber, lane)->mine;
    fiber.combine(lanes);
  }
  if (last) {
    // results are taken before any lane goes on, so none can overwrite its value too early
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (!((mask >> lane) & 1u)) continue;
      Fiber& other = *lane_of(block, fiber, lane);
      other.result = combine(block, other);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if ((mask >> lane) & 1u) lane_of(block, fiber, lane)->state = State::kRunnable;
    }
  }
  wait(block);
  return fiber.result;
}

void combine_warp(void (*combine)(void* const* lanes), void* mine, Place place) {
  Fiber& fiber = *running->current;
  fiber.combine = combine;
  fiber.mine = mine;
  sync_warp(Together::kCombine, 0xffffffffu, 0, 0, place);
}

void copy_later(void* to, const void* from, size_t bytes) {
  Fiber& fiber = *running->current;
  fiber.copies.push_back({to, from, bytes, fiber.groups});
}

void commit_copies() { ++running->current->groups; }

void wait_for_copies(int groups_left) {
  Fiber& fiber = *running->current;
  const auto pending = [&](const Copy& copy) { return copy.group >= fiber.groups - groups_left; };
  const auto end = std::find_if(fiber.copies.begin(), fiber.copies.end(), pending);
  for (auto copy = fiber.copies.begin(); copy != end; ++copy) {
    if (copy->from != nullptr) {
      std::memcpy(copy->to, copy->from, copy->bytes);
    } else {
      std::memset(copy->to, 0, copy->bytes);
    }
  }
  fiber.copies.erase(fiber.copies.begin(), end);
}

void run(Index3 grid, Index3 block_size, size_t shared_bytes, const std::function<void()>& body) {
  check_launch(grid, block_size, shared_bytes);
  const size_t threads = size_t{block_size.x} * block_size.y * block_size.z;
  Block block;
  block.body = &body;
  block.fibers.resize(threads);
  block.shared.resize(shared_bytes / sizeof(std::max_align_t) + 1);
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.stack.reset(new char[kStackBytes]);
    const unsigned n = static_cast<unsigned>(i);
    fiber.thread.thread = {n % block_size.x, n / block_size.x % block_size.y,
                           n / (block_size.x * block_size.y)};
    fiber.thread.block_size = block_size;
    fiber.thread.grid_size = grid;
    fiber.thread.lane = static_cast<int>(n % kWarpSize);
  }
  Block* const outer = running;
  running = &block;
  bool falling = false;
  for (unsigned z = 0; z < grid.z && block.error.empty(); ++z) {
    for (unsigned y = 0; y < grid.y && block.error.empty(); ++y) {
      for (unsigned x = 0; x < grid.x && block.error.empty(); ++x, falling = !falling) {
        std::memset(static_cast<void*>(block.shared.data()), 0xff,
                    block.shared.size() * sizeof(std::max_align_t));
        for (Fiber& fiber : block.fibers) fiber.thread.block = {x, y, z};
        run_block(block, falling);
        if (!block.error.empty()) {
          block.error = "block (" + std::to_string(x) + ", " + std::to_string(y) + ", " +
                        std::to_string(z) + "): " + block.error;
        }
      }
    }
  }
  running = outer;
#if defined(__SANITIZE_ADDRESS__)
  for (Fiber& fiber : block.fibers) __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
  if (!block.error.empty()) throw std::runtime_error(block.error);
}

}  // namespace gtkern::emulate
