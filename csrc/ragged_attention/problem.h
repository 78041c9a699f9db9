// What the CPU kernels of ragged_attention compute on, and how a batch is cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/memory.h"
#include "common/parallel.h"
#include "ragged_attention/lanes.h"

namespace gtkern::ragged_attention {

// Heads whose biases and dropout masks are made together: they lie side by side in a table's row,
// and come out of one call of Philox.
constexpr int kQuad = 4;

// One index of the bias: a byte or two for every pair of nodes.
struct Index {
  const std::uint8_t* bytes = nullptr;
  const std::int16_t* shorts = nullptr;
  std::int64_t first_row = 0, rows = 0;  // of its table, among those of all tables
};

// T is the dtype of q, k, v; A that of sums (float, or double with double).
template <class T, class A>
struct Problem {
  std::int64_t graphs = 0, nodes = 0, pairs = 0, slots = 0, max_nodes = 0;
  std::int64_t heads = 0, width = 0, value_width = 0;
  std::int64_t q_row = 0, k_row = 0, v_row = 0;  // from one row of the batch to the next
  const std::int64_t *ptr = nullptr, *pair_ptr = nullptr;
  const T *q = nullptr, *k = nullptr, *v = nullptr, *prefix_k = nullptr, *prefix_v = nullptr;
  std::vector<Index> indices;
  const A* table = nullptr;  // [rows, H]
  std::int64_t table_rows = 0;
  double scale = 1, dropout = 0;
  std::uint64_t seed = 0;

  std::int64_t quads() const { return (heads + kQuad - 1) / kQuad; }
  // heads that are computed side by side
  int group() const { return indices.empty() && dropout == 0 ? 1 : kQuad; }
  std::int64_t size(std::int64_t graph) const { return ptr[graph + 1] - ptr[graph]; }
};

// What a graph's matrices measure. Queries are taken in blocks: as many as keep the scores of a
// quad in the L1 or L2 cache.
template <class A>
struct Shape {
  Shape(std::int64_t n, std::int64_t slots) : nodes(n), keys(n + slots), ld(padded<A>(n + slots)) {
    constexpr std::int64_t kScores = 4096, kFewest = 12;
    const std::int64_t most = std::max(kFewest, kScores / std::max<std::int64_t>(ld, 1));
    const std::int64_t count = (n + most - 1) / std::max<std::int64_t>(most, 1);
    block = count ? (n + count - 1) / count : 0;
  }
  std::int64_t nodes, keys, ld;  // ld: keys in whole vectors
  std::int64_t block;            // queries at a time
  bool whole() const { return block >= nodes; }
};

// Some heads of some consecutive graphs. `chunk` numbers the graphs' range: partial sums over the
// batch are kept by chunk and added in the order of chunks.
struct Task {
  std::int64_t chunk, graph_begin, graph_end, head_begin, head_end;
};

struct Plan {
  std::vector<Task> tasks;
  std::int64_t chunks = 0;
};

// Cuts a batch into tasks of about equal work, the largest first. Depends on the batch alone, never
// on the number of threads.
template <class T, class A>
Plan plan(const Problem<T, A>& in, std::int64_t most_chunks) {
  constexpr std::int64_t kChunks = 96, kLeastWork = 1 << 18;
  const auto work = [&](std::int64_t graph) {
    const std::int64_t n = in.size(graph);
    return (n * (n + in.slots) + 8 * n) * (in.width + in.value_width) * in.heads;
  };
  std::int64_t total = 0;
  for (std::int64_t g = 0; g < in.graphs; ++g) total += work(g);
  const std::int64_t target =
      std::max({total / std::min(kChunks, most_chunks) + 1, total / most_chunks + 1, kLeastWork});
  Plan made;
  std::vector<std::int64_t> order, cost;
  std::vector<Task> tasks;
  for (std::int64_t g = 0; g < in.graphs;) {
    const std::int64_t begin = g;
    std::int64_t sum = 0;
    do {
      sum += work(g++);
    } while (g < in.graphs && (sum + work(g) <= target || made.chunks + 1 == most_chunks));
    const std::int64_t parts =
        std::clamp<std::int64_t>(sum / target, 1, (in.heads + in.group() - 1) / in.group());
    for (std::int64_t part = 0, head = 0; part < parts; ++part) {
      const std::int64_t groups = (in.heads + in.group() - 1) / in.group();
      const std::int64_t end =
          std::min(in.heads, groups * (part + 1) / parts * static_cast<std::int64_t>(in.group()));
      tasks.push_back({made.chunks, begin, g, head, end});
      cost.push_back(sum / parts);
      head = end;
    }
    ++made.chunks;
  }
  order.resize(tasks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return cost[a] > cost[b]; });
  for (const std::int64_t at : order) made.tasks.push_back(tasks[at]);
  return made;
}

// Asks for the slices [width] of `rows` rows, which a task reads (or writes) next: slices of one
// head lie too far apart for the hardware to see them coming.
template <bool kWrite, class T>
GTKERN_INLINE void prefetch_slices(const T* from, std::int64_t stride, std::int64_t rows,
                                   std::int64_t width) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t bytes = width * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < rows; ++i) {
    const char* row = reinterpret_cast<const char*>(from + i * stride);
    for (std::int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at, kWrite, 3);
    __builtin_prefetch(row + bytes - 1, kWrite, 3);
  }
}

// Matrices of one thread, handed out one after the other, each on a cache line.
template <class A>
class Arena {
 public:
  explicit Arena(std::int64_t values)
      : scratch_(values * static_cast<std::int64_t>(sizeof(A) / sizeof(float))) {}
  A* take(std::int64_t values) {
    A* at = reinterpret_cast<A*>(scratch_.data()) + used_;
    used_ += padded<A>(values);
    return at;
  }

 private:
  Scratch scratch_;
  std::int64_t used_ = 0;
};

}  // namespace gtkern::ragged_attention
