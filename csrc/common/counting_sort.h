// A stable counting sort on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace gtkern {

// The stable order of `count` items by key(item) in [0, keys): calls place(item, position).
// Each chunk of items counts on its own, so chunks run in parallel and the order stays stable.
template <class Key, class Place>
void counting_sort(std::int64_t count, std::int64_t keys, std::int64_t* ptr, const Key& key,
                   const Place& place) {
  const std::int64_t wanted = static_cast<std::int64_t>(torch::stable::get_num_threads());
  const std::int64_t chunks =
      count < 4 * keys || count < 1 << 15 ? 1 : std::max<std::int64_t>(wanted, 1);
  std::vector<std::int64_t> next(chunks * keys, 0);
  const auto bounds = [&](std::int64_t chunk) { return count / chunks * chunk; };
  const auto end_of = [&](std::int64_t chunk) {
    return chunk + 1 == chunks ? count : bounds(chunk + 1);
  };
  for_each_block(chunks, [&](std::int64_t chunk) {
    std::int64_t* mine = next.data() + chunk * keys;
    for (std::int64_t i = bounds(chunk); i < end_of(chunk); ++i) ++mine[key(i)];
  });
  std::int64_t total = 0;
  for (std::int64_t k = 0; k < keys; ++k) {
    if (ptr) ptr[k] = total;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      const std::int64_t size = next[chunk * keys + k];
      next[chunk * keys + k] = total;
      total += size;
    }
  }
  if (ptr) ptr[keys] = total;
  for_each_block(chunks, [&](std::int64_t chunk) {
    std::int64_t* mine = next.data() + chunk * keys;
    for (std::int64_t i = bounds(chunk); i < end_of(chunk); ++i) place(i, mine[key(i)]++);
  });
}

}  // namespace gtkern
