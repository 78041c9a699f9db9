// Work sharing on torch's own threads: dynamic over blocks that do not depend on the thread count,
// so results are the same for any number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

namespace gtkern {

// Calls f(begin, end) for parts of [0, count), of at least `grain` each but the last. What a part
// throws, such as std::bad_alloc, the caller gets: from torch it would only hear that a call
// failed.
template <class F>
void for_each_range(std::int64_t count, std::int64_t grain, const F& f) {
  std::exception_ptr error;
  std::mutex guard;
  torch::stable::parallel_for(0, count, grain, [&](std::int64_t begin, std::int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// Calls f(block, state) once for each block in [0, blocks), on whichever thread is free; `state` is
// what the thread got from make_state() at its start.
template <class Make, class F>
void for_each_block_with(std::int64_t blocks, const Make& make_state, const F& f) {
  if (blocks <= 0) return;
  const std::int64_t threads =
      std::min<std::int64_t>(blocks, static_cast<std::int64_t>(torch::stable::get_num_threads()));
  std::atomic<std::int64_t> next{0};
  for_each_range(threads, 1, [&](std::int64_t, std::int64_t) {
    auto state = make_state();
    for (;;) {
      const std::int64_t block = next.fetch_add(1, std::memory_order_relaxed);
      if (block >= blocks) return;
      f(block, state);
    }
  });
}

// Calls f(block) once for each block in [0, blocks), on whichever thread is free.
template <class F>
void for_each_block(std::int64_t blocks, const F& f) {
  for_each_block_with(blocks, [] { return 0; }, [&](std::int64_t block, int) { f(block); });
}

// Rows cut into consecutive blocks of `size`.
class RowRange {
 public:
  RowRange(std::int64_t rows, std::int64_t size) : rows_(rows), size_(size) {}
  std::int64_t count() const { return (rows_ + size_ - 1) / size_; }
  std::int64_t begin(std::int64_t block) const { return block * size_; }
  std::int64_t end(std::int64_t block) const { return std::min(rows_, (block + 1) * size_); }

 private:
  std::int64_t rows_, size_;
};

// Rows cut into consecutive blocks of about equal work: edges plus `row_work` for each row.
class RowBlocks {
 public:
  RowBlocks(const std::int64_t* ptr, std::int64_t rows, std::int64_t row_work = 8) {
    constexpr std::int64_t kMaxBlocks = 512;
    const auto work = [&](std::int64_t row) { return ptr[row] - ptr[0] + row_work * row; };
    const std::int64_t total = rows > 0 ? work(rows) : 0;
    // large enough to reuse what a block gathers, small enough to share out among threads
    const std::int64_t block_work = std::clamp<std::int64_t>(total / 16, 2048, 32768);
    const std::int64_t blocks =
        std::clamp<std::int64_t>(total / block_work, rows > 0 ? 1 : 0, kMaxBlocks);
    begin_.resize(blocks + 1, rows);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t target = total / blocks * block;
      std::int64_t low = block > 0 ? begin_[block - 1] : 0, high = rows;
      while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (work(middle) < target) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      begin_[block] = low;
    }
  }

  std::int64_t count() const { return static_cast<std::int64_t>(begin_.size()) - 1; }
  std::int64_t begin(std::int64_t block) const { return begin_[block]; }
  std::int64_t end(std::int64_t block) const { return begin_[block + 1]; }

 private:
  std::vector<std::int64_t> begin_;
};

}  // namespace gtkern
