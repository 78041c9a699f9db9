// What the CPU kernels of ragged_attention compute on, and how a batch is cut into tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "common/lanes.h"
#include "common/memory.h"
#include "common/parallel.h"
#include "ragged_attention/product.h"

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
  std::int64_t graphs = 0, nodes = 0, pairs = 0, slots = 0, sets = 1, max_nodes = 0;
  std::int64_t heads = 0, width = 0, value_width = 0;
  std::int64_t q_row = 0, k_row = 0, v_row = 0;  // from one row of the batch to the next
  // row_set: the set of slots that a row's graph sees; null where all see the same
  const std::int64_t *ptr = nullptr, *pair_ptr = nullptr, *row_set = nullptr;
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
  // that of a graph, -1 for none
  std::int64_t set_of(std::int64_t graph) const {
    if (!row_set) return 0;
    const std::int64_t set = size(graph) ? row_set[ptr[graph]] : -1;
    return set < sets ? std::max<std::int64_t>(set, -1) : -1;
  }
  std::int64_t slots_of(std::int64_t graph) const { return set_of(graph) < 0 ? 0 : slots; }
};

// What a graph's matrices measure. Queries are taken in blocks: as many as keep the scores of the
// heads that are computed side by side in the L1 or L2 cache.
template <class A>
struct Shape {
  Shape(std::int64_t n, std::int64_t slots, int group)
      : nodes(n), keys(n + slots), wide(padded<A>(n + slots)) {
    const std::int64_t fewest = fewest_queries(group);
    const std::int64_t vectors = wide / Lanes<A>::kCount;
    const std::int64_t panels =
        std::max<std::int64_t>(1, (vectors + kTileColumns - 1) / kTileColumns);
    panel = (vectors + panels - 1) / panels * Lanes<A>::kCount;
    // rows an even number of vectors apart would crowd into few sets of the caches
    ld = panels > 1 && vectors % 2 == 0 ? wide + Lanes<A>::kCount : wide;
    const std::int64_t most = std::max(fewest, kScores / std::max<std::int64_t>(wide, 1));
    const std::int64_t count = (n + most - 1) / most;
    block = count ? (n + count - 1) / count : 0;
  }
  std::int64_t nodes, keys;
  std::int64_t wide, ld;  // keys in whole vectors; from one row of scores to the next
  std::int64_t panel;     // keys that a tile of scores has, but for the last
  std::int64_t block;     // queries at a time
  bool whole() const { return block >= nodes; }

  // Scores of the largest block of any graph of up to `most_nodes` nodes. A smaller graph may have
  // a larger block than that one: of as many queries, or of kScores in vectors and their padding.
  static std::int64_t most_scores(std::int64_t most_nodes, std::int64_t slots, int group) {
    const Shape largest(most_nodes, slots, group);
    return std::max(2 * kScores, fewest_queries(group) * largest.ld);
  }

 private:
  static constexpr std::int64_t kScores = 4096;
  static std::int64_t fewest_queries(int group) { return group == 1 ? 24 : 12; }
};

// A graph whose queries are taken in parts, because its heads alone are too few tasks. Sums over
// its queries are kept by part and added in the order of parts.
struct Split {
  std::int64_t graph, parts;
  std::int64_t first_row;  // of its sums: n rows for each part and head

  // the first query of a part of n queries, n for those past the last
  std::int64_t begin(std::int64_t part, std::int64_t n) const {
    return n * std::min(part, parts) / parts;
  }
};

// Some heads of some consecutive graphs, or of some parts of one. `chunk` numbers the range of
// graphs or parts: partial sums over the batch are kept by chunk and added in the order of chunks.
struct Task {
  std::int64_t chunk, graph_begin, graph_end, head_begin, head_end;
  std::int64_t part_begin = 0, part_end = std::numeric_limits<std::int64_t>::max();
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Split> splits;
  std::int64_t chunks = 0, split_rows = 0;

  // that of a graph; null where it is not split
  const Split* split_of(std::int64_t graph) const {
    const auto at =
        std::lower_bound(splits.begin(), splits.end(), graph,
                         [](const Split& split, std::int64_t g) { return split.graph < g; });
    return at != splits.end() && at->graph == graph ? &*at : nullptr;
  }
};

// The parts of a graph's queries: by its own size alone, so that its sums are the same in any
// batch.
inline std::int64_t query_parts(std::int64_t nodes, std::int64_t groups) {
  constexpr std::int64_t kTasks = 16, kFewestQueries = 256;
  return std::clamp<std::int64_t>((kTasks + groups - 1) / groups, 1,
                                  std::max<std::int64_t>(1, nodes / kFewestQueries));
}

// Cuts a batch into tasks of about equal work, the largest first, in at most `most_chunks` chunks.
// Depends on the batch alone, never on the number of threads.
template <class T, class A>
Plan plan(const Problem<T, A>& in, std::int64_t most_chunks) {
  constexpr std::int64_t kChunks = 96, kLeastWork = 1 << 18;
  const auto work = [&](std::int64_t graph) {
    const std::int64_t n = in.size(graph);
    return (n * (n + in.slots_of(graph)) + 8 * n) * (in.width + in.value_width) * in.heads;
  };
  std::int64_t total = 0;
  for (std::int64_t g = 0; g < in.graphs; ++g) total += work(g);
  const std::int64_t target = std::max(total / kChunks + 1, kLeastWork);
  const std::int64_t chunk_target = std::max(total / most_chunks + 1, target);
  const std::int64_t groups = (in.heads + in.group() - 1) / in.group();
  Plan made;
  std::vector<std::int64_t> order, cost;
  std::vector<Task> tasks;
  for (std::int64_t g = 0; g < in.graphs; ++g) {
    const std::int64_t parts = query_parts(in.size(g), groups);
    if (parts == 1) continue;
    made.splits.push_back({g, parts, made.split_rows});
    made.split_rows += parts * in.heads * in.size(g);
  }
  // the heads of `task`, cut by its work
  const auto share_out = [&](Task task, std::int64_t sum) {
    const std::int64_t parts = std::clamp<std::int64_t>(sum / target, 1, groups);
    for (std::int64_t part = 0; part < parts; ++part) {
      task.head_begin = part ? task.head_end : 0;
      task.head_end =
          std::min(in.heads, groups * (part + 1) / parts * static_cast<std::int64_t>(in.group()));
      tasks.push_back(task);
      cost.push_back(sum / parts);
    }
  };
  for (std::int64_t g = 0; g < in.graphs;) {
    const std::int64_t begin = g++;
    // the last chunk takes all that is left
    const bool last = made.chunks + 1 == most_chunks;
    if (const Split* split = made.split_of(begin); split && !last) {
      const std::int64_t free = most_chunks - made.chunks - (g < in.graphs ? 1 : 0);
      const std::int64_t shares = std::clamp<std::int64_t>(free, 1, split->parts);
      for (std::int64_t share = 0; share < shares; ++share) {
        share_out({made.chunks++, begin, g, 0, 0, split->parts * share / shares,
                   split->parts * (share + 1) / shares},
                  work(begin) / shares);
      }
      continue;
    }
    std::int64_t sum = work(begin);
    while (g < in.graphs && (last || (sum + work(g) <= chunk_target && !made.split_of(g)))) {
      sum += work(g++);
    }
    share_out({made.chunks++, begin, g, 0, 0}, sum);
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
