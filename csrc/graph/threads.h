// Work sharing for the preprocessing module, which does not link torch: dynamic over pieces that do
// not depend on the thread count, so results are the same for any number of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace gtkern::graph {

// Calls f(piece, state) once for each piece in [0, pieces), on whichever thread is free; `state` is
// what the thread got from make_state(). What a thread throws, the caller gets.
template <class Make, class F>
void share_out(std::int64_t pieces, int threads, const Make& make_state, const F& f) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  const auto work = [&] {
    try {
      auto state = make_state();
      for (std::int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
        f(piece, state);
    } catch (...) {
      next.store(pieces, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(guard);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  // beforehand: a vector that cannot grow would leave threads behind that nobody joins
  others.reserve(std::max(threads, 1));
  try {
    for (std::int64_t t = 1; t < std::min<std::int64_t>(threads, pieces); ++t)
      others.emplace_back(work);
  } catch (const std::system_error&) {
    // no more threads to have: those there are do the work
  }
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace gtkern::graph
