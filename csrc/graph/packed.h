// Many graphs numbered through as one, and the edges at each of their nodes.
#pragma once

#include <cstdint>
#include <vector>

namespace gtkern::graph {

// Graph g has the nodes ptr[g] .. ptr[g + 1]; edge e runs source[e] -> destination[e], inside one
// graph. The caller has checked all of it.
struct PackedGraphs {
  std::int64_t num_graphs;
  const std::int64_t* ptr;
  std::int64_t num_edges;
  const std::int64_t* source;
  const std::int64_t* destination;

  std::int64_t num_nodes() const { return ptr[num_graphs]; }
};

// At each node the other ends of its edges, as numbers inside the graph, and the edges, which rise.
struct Incidence {
  std::vector<std::int64_t> begin;  // [N + 1]
  std::vector<std::int32_t> node;   // [E]
  std::vector<std::int32_t> edge;   // [E]
};

enum class Direction { kIncoming, kOutgoing };

Incidence incidence(const PackedGraphs& graphs, Direction direction);

// [G + 1]: the entries of graph g in an array over ordered pairs of nodes begin here.
std::vector<std::int64_t> pair_begins(const PackedGraphs& graphs);

// [N]: the graph of each node.
std::vector<std::int32_t> graph_of_node(const PackedGraphs& graphs);

}  // namespace gtkern::graph
