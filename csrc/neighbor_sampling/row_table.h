// The table of a row: integer prefix sums of its weights.
#pragma once

#include <bit>

#include "neighbor_sampling/problem.h"

namespace gtkern::neighbor_sampling {

// Writes the prefix sums of n weights, README.md's "Table"; `prefix` has room for 15 more.
inline void make_row_table(const float* weight, std::int64_t n, std::uint32_t* prefix) {
  F16 lanes = {};
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const F16 x = load_first<F16>(weight + i, n - i);
    const F16 candidate = (x >= kSmallestWeight) & (x <= kLargestWeight) ? x : F16{};
    lanes = candidate > lanes ? candidate : lanes;
  }
  float largest = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) largest = std::max(largest, lanes[lane]);
  if (largest == 0.0f) largest = 1.0f;
  std::uint64_t total = 0;
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const F16 x = load_first<F16>(weight + i, n - i);
    const I16 candidate = (x >= kSmallestWeight) & (x <= kLargestWeight);
    const F16 scaled = (candidate ? x / largest : F16{}) * 0x1p24f;
    I16 share = __builtin_convertvector(scaled, I16);
    share = candidate ? (share > 1 ? share : I16{} + 1) : I16{};
    store_lanes(prefix + i, share);
    // sixteen shares of at most 2**24 fit in 32 bits
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
    for (int half = 8; half > 0; half /= 2) share += __builtin_shuffle(share, lane ^ half);
    total += static_cast<std::uint32_t>(share[0]);
  }
  const int shift = std::max(0, static_cast<int>(std::bit_width(total)) - 32);
  std::uint64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    sum += prefix[i];
    prefix[i] = static_cast<std::uint32_t>(sum >> shift);
  }
}

}  // namespace gtkern::neighbor_sampling
