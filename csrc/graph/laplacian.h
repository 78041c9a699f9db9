// The smallest non-trivial Laplacian eigenvalue of an undirected multigraph.
#pragma once

#include <cstdint>
#include <vector>

namespace gtkern::graph {

// Neighbours of every node, both directions of every edge: node i has ptr[i] .. ptr[i + 1].
struct Neighbors {
  std::vector<std::int64_t> ptr;
  std::vector<std::int32_t> index;
};

// Groups the edges source[e] -> destination[e] by destination.
Neighbors group(std::int64_t num_nodes, const std::int64_t* source, const std::int64_t* destination,
                std::int64_t num_edges);

// The second smallest eigenvalue of L = degree - adjacency (0 when the graph is disconnected), by
// the Lanczos method on -L with the constant vector projected out. The start vector is a fixed
// function of num_nodes. Stops when the Ritz pair's residual is below `residual`: the error is then
// at most that, and in practice near its square over the gap to the next eigenvalue.
double spectral_gap(const Neighbors& neighbors, double residual);

}  // namespace gtkern::graph
