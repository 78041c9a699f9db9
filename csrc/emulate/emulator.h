#pragma once

// Runs the blocks of a CUDA kernel on the host, one after the other, the threads of a block as
// fibers on the calling thread. For tests: it checks what hardware leaves undefined (barriers that
// not every thread reaches, shuffles from absent lanes) and runs under the address sanitizer.
//
// A fiber runs until it waits for others, so a plain variable read without a barrier can look right
// by luck; every second block therefore runs its threads in falling order.

#include <cstddef>
#include <cstdint>
#include <functional>

namespace gtkern::emulate {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Thread {
  Index3 thread, block, block_size, grid_size;
  int lane = 0;
};

// What the lanes of a warp can do together.
enum class Together { kSync, kShuffle, kBallot, kSum, kMin, kMax, kCombine };

// The source line that called; compared between the threads of a barrier.
struct Place {
  const char* file;
  int line;
};

// The running thread; only valid inside a kernel.
const Thread& thread();

// The block's dynamic shared memory, filled with 0xff at the start of the block.
void* dynamic_shared();

// Waits for every thread of the block.
void sync_block(Place place);

// Waits for the lanes of `mask` at the same place and returns this lane's result: kShuffle the
// value of lane `source`, kBallot the bits of lanes with a value other than 0, kSum/kMin/kMax over
// values as 32-bit signed integers.
uint64_t sync_warp(Together what, unsigned mask, uint64_t value, int source, Place place);

// Waits for all 32 lanes of a warp at the same place; the last one to come calls `combine` with
// what each lane gave as `mine`, before any of them goes on.
void combine_warp(void (*combine)(void* const* lanes), void* mine, Place place);

// Copies that a thread starts and waits for later. Nothing is read or written before the thread
// waits, so that a kernel which does not wait is found out; `from` null writes zeros.
void copy_later(void* to, const void* from, size_t bytes);
// Closes a group of copies.
void commit_copies();
// Makes the copies of all groups but the `groups_left` last ones.
void wait_for_copies(int groups_left);

// Runs `body` once for each thread; throws std::runtime_error when the threads disagree.
void run(Index3 grid, Index3 block, size_t shared_bytes, const std::function<void()>& body);

// Ends the launch with an error; called from inside a kernel.
[[noreturn]] void fail(const char* message, Place place);

}  // namespace gtkern::emulate
