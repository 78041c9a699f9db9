#include "graph/paths.h"

#include <algorithm>
#include <vector>

#include "graph/threads.h"

namespace gtkern::graph {
namespace {

constexpr std::int64_t kRootsInPiece = 256;

// Calls f(graph, root, row, state) for every node of every graph; `root` counts inside the graph
// and `row` is where the pairs (root, *) begin.
template <class Make, class F>
void for_each_root(const PackedGraphs& graphs, int threads, const Make& make_state, const F& f) {
  const std::vector<std::int32_t> graph = graph_of_node(graphs);
  const std::vector<std::int64_t> begins = pair_begins(graphs);
  const std::int64_t nodes = graphs.num_nodes();
  share_out((nodes + kRootsInPiece - 1) / kRootsInPiece, threads, make_state,
            [&](std::int64_t piece, auto& state) {
              const std::int64_t end = std::min(nodes, (piece + 1) * kRootsInPiece);
              for (std::int64_t i = piece * kRootsInPiece; i < end; ++i) {
                const std::int64_t g = graph[i], first = graphs.ptr[g];
                const std::int64_t size = graphs.ptr[g + 1] - first;
                f(g, static_cast<std::int32_t>(i - first), begins[g] + (i - first) * size, state);
              }
            });
}

// A breadth-first search against the edges: which nodes reach the root.
struct Search {
  std::vector<std::int32_t> queue, distance, parent, edge;
};

}  // namespace

void hop_distances(const PackedGraphs& graphs, int max_hops, int threads, std::int16_t* hops) {
  const Incidence in = incidence(graphs, Direction::kIncoming);
  const auto beyond = static_cast<std::int16_t>(max_hops + 1);
  for_each_root(
      graphs, threads, [] { return std::vector<std::int32_t>(); },
      [&](std::int64_t g, std::int32_t root, std::int64_t row, std::vector<std::int32_t>& queue) {
        const std::int64_t first = graphs.ptr[g], size = graphs.ptr[g + 1] - first;
        std::int16_t* mine = hops + row;
        std::fill_n(mine, size, beyond);
        queue.resize(size);
        mine[root] = 0;
        queue[0] = root;
        for (std::int64_t head = 0, tail = 1; head < tail; ++head) {
          const std::int64_t at = queue[head];
          const auto next = static_cast<std::int16_t>(mine[at] + 1);
          if (next == beyond) break;
          for (std::int64_t e = in.begin[first + at]; e < in.begin[first + at + 1]; ++e) {
            const std::int32_t other = in.node[e];
            if (mine[other] != beyond) continue;
            mine[other] = next;
            queue[tail++] = other;
          }
        }
      });
}

void shortest_path_edges(const PackedGraphs& graphs, int max_length, int threads,
                         std::int32_t* edges) {
  const Incidence in = incidence(graphs, Direction::kIncoming);
  for_each_root(
      graphs, threads, [] { return Search(); },
      [&](std::int64_t g, std::int32_t root, std::int64_t row, Search& search) {
        const std::int64_t first = graphs.ptr[g], size = graphs.ptr[g + 1] - first;
        search.queue.resize(size);
        search.distance.assign(size, -1);
        search.parent.resize(size);
        search.edge.resize(size);
        search.distance[root] = 0;
        search.queue[0] = root;
        std::int64_t tail = 1;
        for (std::int64_t head = 0; head < tail; ++head) {
          const std::int32_t at = search.queue[head];
          const std::int32_t next = search.distance[at] + 1;
          for (std::int64_t e = in.begin[first + at]; e < in.begin[first + at + 1]; ++e) {
            const std::int32_t other = in.node[e];
            if (search.distance[other] < 0) {
              search.distance[other] = next;
              search.queue[tail++] = other;
            } else if (search.distance[other] != next || search.parent[other] <= at) {
              continue;
            }
            search.parent[other] = at;
            search.edge[other] = in.edge[e];
          }
        }
        std::int32_t* mine = edges + row * max_length;
        std::fill_n(mine, size * max_length, -1);
        // in the order of their distance, so that the way of the nearer node is there to be copied
        for (std::int64_t head = 1; head < tail; ++head) {
          const std::int32_t node = search.queue[head];
          const std::int32_t known = search.distance[node] - 1;
          std::int32_t* path = mine + std::int64_t{node} * max_length;
          std::copy_n(mine + std::int64_t{search.parent[node]} * max_length,
                      std::min(known, max_length), path);
          if (known < max_length) path[known] = search.edge[node];
        }
      });
}

}  // namespace gtkern::graph
