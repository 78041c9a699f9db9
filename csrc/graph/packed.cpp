#include "graph/packed.h"

#include <numeric>

namespace gtkern::graph {

Incidence incidence(const PackedGraphs& graphs, Direction direction) {
  const bool incoming = direction == Direction::kIncoming;
  const std::int64_t* at = incoming ? graphs.destination : graphs.source;
  const std::int64_t* other = incoming ? graphs.source : graphs.destination;
  Incidence result{std::vector<std::int64_t>(graphs.num_nodes() + 1, 0),
                   std::vector<std::int32_t>(graphs.num_edges),
                   std::vector<std::int32_t>(graphs.num_edges)};
  for (std::int64_t e = 0; e < graphs.num_edges; ++e) ++result.begin[at[e] + 1];
  std::partial_sum(result.begin.begin(), result.begin.end(), result.begin.begin());
  std::vector<std::int64_t> next(result.begin.begin(), result.begin.end() - 1);
  const std::vector<std::int32_t> graph = graph_of_node(graphs);
  for (std::int64_t e = 0; e < graphs.num_edges; ++e) {
    const std::int64_t place = next[at[e]]++;
    result.node[place] = static_cast<std::int32_t>(other[e] - graphs.ptr[graph[at[e]]]);
    result.edge[place] = static_cast<std::int32_t>(e);
  }
  return result;
}

std::vector<std::int64_t> pair_begins(const PackedGraphs& graphs) {
  std::vector<std::int64_t> begins(graphs.num_graphs + 1, 0);
  for (std::int64_t g = 0; g < graphs.num_graphs; ++g) {
    const std::int64_t nodes = graphs.ptr[g + 1] - graphs.ptr[g];
    begins[g + 1] = begins[g] + nodes * nodes;
  }
  return begins;
}

std::vector<std::int32_t> graph_of_node(const PackedGraphs& graphs) {
  std::vector<std::int32_t> graph(graphs.num_nodes());
  for (std::int64_t g = 0; g < graphs.num_graphs; ++g)
    for (std::int64_t i = graphs.ptr[g]; i < graphs.ptr[g + 1]; ++i)
      graph[i] = static_cast<std::int32_t>(g);
  return graph;
}

}  // namespace gtkern::graph
